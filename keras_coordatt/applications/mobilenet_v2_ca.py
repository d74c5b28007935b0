"""MobileNetV2 with coordinate attention, as in the paper's official code.

Layers are named as in `keras.applications.MobileNetV2`; the attention of block `i` is
called `block_{i}_attention`.
"""

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

__all__ = ["MobileNetV2CA", "decode_predictions", "preprocess_input"]

STAGES = (
    # expansion, channels, blocks, stride
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


@shared_docstring(
    default_size="224",
    last_layer="convolution",
    published="""`"imagenet"` (the official checkpoint, for `alpha=1.0`,
        `attention="coordinate"` and `reduction=32`; or with `attention=None` the plain
        network, for `alpha` 0.25, 0.35, 0.5, 0.75 or 1.0); `"imagenet-plain"` (the
        plain network's weights for `attention="coordinate"`, `"height"` or `"width"`:
        the attention is not trained and starts as the identity, so that the outputs
        are the plain network's until it is); `"cifar10"` (ours, in the package, for
        `alpha=0.5`, `classes=10` and images of 64 x 64)""",
    default_weights='`"imagenet"`',
    baselines=" with the paper's reduction of 24",
    default_reduction="32",
)
def MobileNetV2CA(
    input_shape: tuple | None = None,
    alpha: float = 1.0,
    include_top: bool = True,
    weights: str | os.PathLike | None = "imagenet",
    input_tensor: keras.KerasTensor | None = None,
    pooling: str | None = None,
    classes: int = 1000,
    classifier_activation: str | Callable | None = "softmax",
    name: str = "mobilenetv2_ca",
    *,
    attention: str | Callable | None = "coordinate",
    reduction: int = 32,
    output_stride: int = 32,
    include_preprocessing: bool = False,
    skip_mismatch: bool = False,
) -> keras.Model:
    """Instantiates MobileNetV2 with coordinate attention.

    Every block with an expansion has the attention after its depthwise convolution,
    where the channels are expanded. Inputs are normalized by ImageNet's mean and
    standard deviation: call
    `keras_coordatt.applications.mobilenet_v2_ca.preprocess_input` on them, or pass
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

    >>> model = MobileNetV2CA(input_shape=(96, 96, 3), weights=None, classes=10)
    >>> model(np.zeros((1, 96, 96, 3))).shape
    (1, 10)

    Reference:
        - [Coordinate Attention for Efficient Mobile Network Design](
          https://arxiv.org/abs/2103.02907) (CVPR 2021)
        - [MobileNetV2: Inverted Residuals and Linear Bottlenecks](
          https://arxiv.org/abs/1801.04381) (CVPR 2018)
    """
    check_number("alpha", alpha, 0, MAX_ALPHA)
    check_positive_int("reduction", reduction)
    blocks = _blocks(alpha, output_stride)
    make_attention = attention_factory(
        attention, reduction, 32, identity_init=is_plain(weights)
    )
    arguments = {"alpha": alpha, "attention": attention, "reduction": reduction}
    inputs, x = network_input(
        "MobileNetV2CA",
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
        prefix = f"block_{i}_" if i else "expanded_conv_"
        shortcut = x
        x = inverted_residual(x, block, make_attention, prefix)
        if block.residual:
            x = layers.Add(name=f"{prefix}add")([shortcut, x])

    last = make_divisible(1280 * max(1.0, alpha))
    x = conv_bn(x, last, 1, "Conv_1", "Conv_1_bn")
    x = relu6(x, "out_relu")

    if include_top:
        initializer = keras.initializers.RandomNormal(stddev=0.01)
        x = classifier(x, classes, classifier_activation, 0.1, initializer)
    else:
        x = pool(x, pooling)

    model = Functional(inputs, x, name=name)
    load_named_weights(
        model, "MobileNetV2CA", weights, arguments, input_tensor, skip_mismatch
    )
    return model


class Block(NamedTuple):
    expansion: int
    channels: int
    stride: int
    dilation: int
    residual: bool


def _blocks(alpha, output_stride):
    """Returns the blocks of all stages, at their width and with their dilation."""
    rows, in_channels = [], make_divisible(32 * alpha)
    for expansion, channels, repeats, first_stride in STAGES:
        channels = make_divisible(channels * alpha)
        for stride in [first_stride] + [1] * (repeats - 1):
            residual = stride == 1 and in_channels == channels
            rows.append((expansion, channels, stride, residual))
            in_channels = channels
    _, *dilated = dilate([2] + [stride for *_, stride, _ in rows], output_stride)
    return [
        Block(expansion, channels, stride, dilation, residual)
        for (expansion, channels, _, residual), (stride, dilation) in zip(rows, dilated)
    ]


def inverted_residual(x, block, make_attention, prefix):
    """Applies expansion, depthwise convolution, attention and linear projection."""
    if block.expansion > 1:
        expanded = x.shape[channel_axis()] * block.expansion
        x = conv_bn(x, expanded, 1, f"{prefix}expand", f"{prefix}expand_BN")
        x = relu6(x, f"{prefix}expand_relu")

    x = depthwise_bn(
        x, 3, f"{prefix}depthwise", stride=block.stride, dilation=block.dilation
    )
    x = relu6(x, f"{prefix}depthwise_relu")
    if block.expansion > 1 and make_attention:
        x = make_attention(f"{prefix}attention")(x)

    return conv_bn(x, block.channels, 1, f"{prefix}project", f"{prefix}project_BN")
