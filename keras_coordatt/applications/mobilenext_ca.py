"""MobileNeXt, whose blocks are sandglasses, with coordinate attention.

Block `i`, counted through all stages, has layers `block_{i}_depthwise`,
`block_{i}_attention`, `block_{i}_reduce`, `block_{i}_expand` and
`block_{i}_depthwise_2`, each convolution with its `_BN` and, where it has one, its
`_relu`; a residual is `block_{i}_add`.
"""

import math
import os
from collections.abc import Callable
from typing import NamedTuple

import keras
from keras import layers

from keras_coordatt.applications.arguments import load_weights, network_input
from keras_coordatt.applications.blocks import (
    attention_factory,
    channel_axis,
    classifier,
    conv_bn,
    depthwise_bn,
    dilate,
    make_divisible,
    pool,
    relu6,
)
from keras_coordatt.preprocessing import decode_predictions, preprocess_input
from keras_coordatt.validation import check_number, check_positive_int

__all__ = ["MobileNeXtCA", "decode_predictions", "preprocess_input"]

STAGES = (
    # reduction, channels, blocks, stride
    (2, 96, 1, 2),
    (6, 144, 1, 1),
    (6, 192, 3, 2),
    (6, 288, 3, 2),
    (6, 384, 4, 1),
    (6, 576, 4, 2),
    (6, 960, 3, 1),
    (6, 1280, 1, 1),
)


def MobileNeXtCA(
    input_shape: tuple | None = None,
    alpha: float = 1.0,
    include_top: bool = True,
    weights: str | os.PathLike | None = None,
    input_tensor: keras.KerasTensor | None = None,
    pooling: str | None = None,
    classes: int = 1000,
    classifier_activation: str | Callable | None = "softmax",
    name: str = "mobilenext_ca",
    *,
    attention: str | Callable | None = "coordinate",
    reduction: int = 24,
    output_stride: int = 32,
    include_preprocessing: bool = False,
    skip_mismatch: bool = False,
) -> keras.Model:
    """Instantiates MobileNeXt with coordinate attention.

    A sandglass block is an inverted residual turned inside out: the residual joins
    wide maps, and the narrow one is in the middle. The attention stands after its
    first depthwise convolution, where the channels are many, in every block that
    has one, except the network's first. Inputs are normalized by ImageNet's mean
    and standard deviation: call
    `keras_coordatt.applications.mobilenext_ca.preprocess_input` on them, or pass
    `include_preprocessing=True`.

    Args:
        input_shape: `(H, W, C)`, or `(C, H, W)` with `"channels_first"`. `H` and
            `W` are at least 32, or `None`; any number of channels. Defaults to
            `(224, 224, 3)` with the top, and to `(None, None, 3)` without.
        alpha: Positive number, the width multiplier. At most 1, the last block
            keeps its 1280 channels. Defaults to 1.0.
        include_top: Whether to include the classifier. Defaults to `True`.
        weights: `None` (random initialization), or the path of a file: `.keras`,
            `.weights.h5` or `.h5`. No ImageNet weights are published. Defaults to
            `None`.
        input_tensor: Keras tensor to use as the image input; it may be the
            output of other layers.
        pooling: Without the top, `None` (the output is the feature map),
            `"avg"` or `"max"` (it is pooled).
        classes: Number of classes. Defaults to 1000.
        classifier_activation: Activation of the classifier, `None` for logits.
            Defaults to `"softmax"`.
        name: Name of the model.
        attention: `"coordinate"`; `"height"` or `"width"`, the paper's
            ablations; `"se"` or `"cbam"`, its rivals, with its reduction of 24;
            `None`, plain MobileNeXt; or a callable that gives a layer, called
            with `name=` if it takes one, such as
            `functools.partial(SqueezeExcite, reduction=16)`.
        reduction: Reduction of coordinate attention's shared transform; no
            other attention takes it. Defaults to 24.
        output_stride: 32, 16 or 8: by how much the feature map is smaller than
            the image. Below 32, the last stages keep their resolution and
            their depthwise convolutions are dilated; the weights are the
            same. Defaults to 32.
        include_preprocessing: Whether the network begins with what
            `preprocess_input` does, and so takes RGB values in [0, 255]. The
            weights are the same. Defaults to `False`.
        skip_mismatch: Whether `weights` may be for another number of classes, or
            for RGB images where the network takes other channels: it then keeps its
            own classifier, and adapts the first kernel, with a warning. Defaults to
            `False`: a `ValueError`.

    Returns:
        A `keras.Model`.

    Raises:
        ValueError: if an argument is out of its range, or does not fit another.

    Example:

    >>> model = MobileNeXtCA(input_shape=(96, 96, 3), classes=10)
    >>> model(np.zeros((1, 96, 96, 3))).shape
    (1, 10)

    Reference:
        - [Coordinate Attention for Efficient Mobile Network Design](
          https://arxiv.org/abs/2103.02907) (CVPR 2021)
        - [Rethinking Bottleneck Structure for Efficient Mobile Network Design](
          https://arxiv.org/abs/2007.02269) (ECCV 2020)
    """
    check_number("alpha", alpha, 0)
    check_positive_int("reduction", reduction)
    blocks = _blocks(alpha, output_stride)
    make_attention = attention_factory(attention, reduction, 24)
    inputs, x = network_input(
        "MobileNeXtCA",
        input_shape=input_shape,
        input_tensor=input_tensor,
        include_top=include_top,
        weights=weights,
        pooling=pooling,
        classes=classes,
        classifier_activation=classifier_activation,
        include_preprocessing=include_preprocessing,
        skip_mismatch=skip_mismatch,
        default_size=224,
        received={},
    )

    x = conv_bn(x, make_divisible(32 * alpha), 3, "Conv1", "bn_Conv1", stride=2)
    x = relu6(x, "Conv1_relu")

    for i, block in enumerate(blocks):
        prefix = f"block_{i}_"
        shortcut = x
        x = sandglass(x, block, make_attention if i else None, prefix)
        if block.residual:
            x = layers.Add(name=f"{prefix}add")([shortcut, x])

    if include_top:
        initializer = keras.initializers.RandomNormal(stddev=0.01)
        x = classifier(x, classes, classifier_activation, 0.2, initializer)
    else:
        x = pool(x, pooling)

    model = keras.Model(inputs, x, name=name)
    load_weights(
        model, weights, "MobileNeXtCA", MobileNeXtCA, input_tensor, skip_mismatch
    )
    return model


class Block(NamedTuple):
    reduction: int
    channels: int
    stride: int
    dilation: int
    first_depthwise: bool
    last_depthwise: bool
    residual: bool


def _blocks(alpha, output_stride):
    """The blocks of all stages, at their width and with their dilation."""
    strides = [
        stride
        for _, _, repeats, first_stride in STAGES
        for stride in [first_stride] + [1] * (repeats - 1)
    ]
    _, *dilated = dilate([2, *strides], output_stride)
    blocks, in_channels = [], make_divisible(32 * alpha)
    for reduction, channels, repeats, _ in STAGES:
        is_last = len(blocks) + repeats == len(strides)
        channels = make_divisible(channels * (max(1.0, alpha) if is_last else alpha))
        for _ in range(repeats):
            stride = strides[len(blocks)]
            # Where the width changes, the first depthwise convolution is left out, and
            # the last one too unless it has the stride. The network's first block and
            # a single-block stage at stride 1 keep both.
            single_block = repeats == stride == 1
            keeps_both = in_channels == channels or single_block or not blocks
            blocks.append(
                Block(
                    reduction,
                    channels,
                    *dilated[len(blocks)],
                    first_depthwise=keeps_both,
                    last_depthwise=keeps_both or stride == 2,
                    residual=stride == 1
                    and in_channels == channels
                    and not single_block,
                )
            )
            in_channels = channels
    return blocks


def sandglass(x, block, make_attention, prefix):
    """Depthwise convolution, attention, linear reduction, expansion, depthwise."""
    reduced = x.shape[channel_axis()] // block.reduction
    if reduced < block.channels / 6:
        reduced = make_divisible(math.ceil(block.channels / 6), 16)

    if block.first_depthwise:
        x = depthwise_bn(x, 3, f"{prefix}depthwise", dilation=block.dilation)
        x = relu6(x, f"{prefix}depthwise_relu")
        if make_attention:
            x = make_attention(f"{prefix}attention")(x)

    x = conv_bn(x, reduced, 1, f"{prefix}reduce", f"{prefix}reduce_BN")
    x = conv_bn(x, block.channels, 1, f"{prefix}expand", f"{prefix}expand_BN")
    x = relu6(x, f"{prefix}expand_relu")

    if block.last_depthwise:
        x = depthwise_bn(
            x, 3, f"{prefix}depthwise_2", stride=block.stride, dilation=block.dilation
        )
    return x
