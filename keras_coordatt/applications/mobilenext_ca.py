"""MobileNeXt with coordinate attention, as in the paper.

The layers of block `i`, counted through all stages, are `block_{i}_depthwise`,
`block_{i}_attention`, `block_{i}_reduce`, `block_{i}_expand`, `block_{i}_depthwise_2`
and `block_{i}_add`; the suffixes `_BN` and `_relu` name what follows a convolution.
"""

import math
import os
from collections.abc import Callable
from typing import NamedTuple

import keras
from keras import layers

from keras_coordatt.applications.arguments import load_named_weights, network_input
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
from keras_coordatt.applications.docstring import shared_docstring
from keras_coordatt.checked_model import Functional
from keras_coordatt.preprocessing import decode_predictions, preprocess_input
from keras_coordatt.validation import MAX_ALPHA, check_number, check_positive_int
from keras_coordatt.weights.by_name import is_plain

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


@shared_docstring(
    default_size="224",
    last_layer="block",
    published="""`"imagenet"` (for `alpha=1.0` and `attention=None`);
        `"imagenet-plain"` (the same weights for `attention="coordinate"`, `"height"` or
        `"width"`: the attention is not trained and starts as the identity, so that the
        outputs are the plain network's until it is)""",
    default_weights="`None`",
    baselines=" with the paper's reduction of 24",
    default_reduction="24",
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

    A sandglass block is an inverted residual turned inside out: the residual connects
    wide feature maps, and the bottleneck is in the middle. Every block that has a first
    depthwise convolution, except the network's first block, has the attention after
    it, where the channels are many. Inputs are normalized by ImageNet's mean
    and standard deviation: call
    `keras_coordatt.applications.mobilenext_ca.preprocess_input` on them, or pass
    `include_preprocessing=True`.

    Args:
        {arguments}

    Returns:
        A `keras.Model`.

    Raises:
        ValueError: If an argument is out of its range or contradicts another, or the
            file of `weights` doesn't fit.
        OSError: If published weights can't be downloaded; it says where to put them.

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
    check_number("alpha", alpha, 0, MAX_ALPHA)
    check_positive_int("reduction", reduction)
    blocks = _blocks(alpha, output_stride)
    make_attention = attention_factory(
        attention, reduction, 24, identity_init=is_plain(weights)
    )
    arguments = {"alpha": alpha, "attention": attention, "reduction": reduction}
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
        arguments=arguments,
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

    model = Functional(inputs, x, name=name)
    load_named_weights(
        model, "MobileNeXtCA", weights, arguments, input_tensor, skip_mismatch
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
    """Returns the blocks of all stages, at their width and with their dilation."""
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
            table_stride = strides[len(blocks)]
            stride, dilation = dilated[len(blocks)]
            # Where the width changes, the first depthwise convolution is left out, and
            # the last one too unless it has the stride. The network's first block and
            # a single-block stage at stride 1 keep both.
            single_block = repeats == table_stride == 1
            keeps_both = in_channels == channels or single_block or not blocks
            blocks.append(
                Block(
                    reduction=reduction,
                    channels=channels,
                    stride=stride,
                    dilation=dilation,
                    first_depthwise=keeps_both,
                    last_depthwise=keeps_both or table_stride == 2,
                    residual=table_stride == 1
                    and in_channels == channels
                    and not single_block,
                )
            )
            in_channels = channels
    return blocks


def sandglass(x, block, make_attention, prefix):
    """Applies depthwise convolution, attention, reduction, expansion and depthwise."""
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
