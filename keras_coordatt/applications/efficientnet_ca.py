"""EfficientNet B0 to B7 with coordinate attention in the place of SE.

With `attention="se"` the network is that of `keras.applications`, whose layer names
the stem and the top have too. Block `i`, counted through all stages, has layers
`block_{i}_expand`, `block_{i}_depthwise`, `block_{i}_attention`, `block_{i}_project`.
"""

import functools
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
    dilate,
    make_divisible,
    pool,
)
from keras_coordatt.layers import SqueezeExcite
from keras_coordatt.preprocessing import decode_predictions, preprocess_input
from keras_coordatt.validation import check_choice, check_positive_int

__all__ = ["EfficientNetCA", "decode_predictions", "preprocess_input"]

VARIANTS = {
    # width, depth, resolution, dropout
    "b0": (1.0, 1.0, 224, 0.2),
    "b1": (1.0, 1.1, 240, 0.2),
    "b2": (1.1, 1.2, 260, 0.3),
    "b3": (1.2, 1.4, 300, 0.3),
    "b4": (1.4, 1.8, 380, 0.4),
    "b5": (1.6, 2.2, 456, 0.4),
    "b6": (1.8, 2.6, 528, 0.5),
    "b7": (2.0, 3.1, 600, 0.5),
}

STAGES = (
    # expansion, channels, kernel size, blocks, stride
    (1, 16, 3, 1, 1),
    (6, 24, 3, 2, 2),
    (6, 40, 5, 2, 2),
    (6, 80, 3, 3, 2),
    (6, 112, 5, 3, 1),
    (6, 192, 5, 4, 2),
    (6, 320, 3, 1, 1),
)

# How often the last block's branch is dropped while training (stochastic depth);
# the blocks before it in proportion to their place.
DROP_RATE = 0.2


def EfficientNetCA(
    variant: str = "b0",
    input_shape: tuple | None = None,
    include_top: bool = True,
    weights: str | os.PathLike | None = None,
    input_tensor: keras.KerasTensor | None = None,
    pooling: str | None = None,
    classes: int = 1000,
    classifier_activation: str | Callable | None = "softmax",
    name: str = "efficientnet_ca",
    *,
    attention: str | Callable | None = "coordinate",
    reduction: int = 32,
    output_stride: int = 32,
    include_preprocessing: bool = False,
    skip_mismatch: bool = False,
) -> keras.Model:
    """Instantiates EfficientNet with coordinate attention.

    In every block the attention stands where EfficientNet has its
    squeeze-and-excitation: after the depthwise convolution, where the channels
    are expanded. Inputs are normalized by ImageNet's mean and standard deviation:
    call `keras_coordatt.applications.efficientnet_ca.preprocess_input` on them, or
    pass `include_preprocessing=True`.

    Args:
        variant: `"b0"` to `"b7"`: the width, the depth, the default resolution
            (224, 240, 260, 300, 380, 456, 528, 600) and the dropout before the
            classifier (0.2, 0.2, 0.3, 0.3, 0.4, 0.4, 0.5, 0.5). Defaults to
            `"b0"`.
        input_shape: `(H, W, C)`, or `(C, H, W)` with `"channels_first"`. `H` and
            `W` are at least 32, or `None`; any number of channels. Defaults to the
            variant's resolution and 3 channels with the top, and to
            `(None, None, 3)` without.
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
            ablations; `"se"`, EfficientNet's own, whose hidden layer has a quarter
            of the block's input channels; `"cbam"`, with a reduction of 24; `None`
            for none; or a callable that gives a layer, called with `name=` if it
            takes one, such as `functools.partial(SqueezeExcite, reduction=16)`.
        reduction: Reduction of coordinate attention's shared transform; no
            other attention takes it. Defaults to 32.
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

    >>> model = EfficientNetCA("b0", input_shape=(64, 64, 3), classes=10)
    >>> model(np.zeros((1, 64, 64, 3))).shape
    (1, 10)

    Reference:
        - [EfficientNet: Rethinking Model Scaling for Convolutional Neural
          Networks](https://arxiv.org/abs/1905.11946) (ICML 2019)
        - [Coordinate Attention for Efficient Mobile Network Design](
          https://arxiv.org/abs/2103.02907) (CVPR 2021)
    """
    check_choice("variant", variant, VARIANTS)
    check_positive_int("reduction", reduction)
    width, depth, resolution, dropout = VARIANTS[variant]
    blocks = _blocks(width, depth, output_stride)
    make_attention = attention_factory(attention, reduction, 32)
    inputs, x = network_input(
        "EfficientNetCA",
        input_shape=input_shape,
        input_tensor=input_tensor,
        include_top=include_top,
        weights=weights,
        pooling=pooling,
        classes=classes,
        classifier_activation=classifier_activation,
        include_preprocessing=include_preprocessing,
        skip_mismatch=skip_mismatch,
        default_size=resolution,
        received={},
    )

    x = conv_bn(x, make_divisible(32 * width), 3, "stem_conv", "stem_bn", stride=2)
    x = layers.Activation("swish", name="stem_activation")(x)

    for i, block in enumerate(blocks):
        prefix = f"block_{i}_"
        shortcut = x
        if attention == "se":
            make_attention = functools.partial(own_squeeze_excite, block.expansion)
        x = inverted_residual(x, block, make_attention, prefix)
        if block.residual:
            x = layers.Dropout(
                DROP_RATE * i / len(blocks),
                noise_shape=(None, 1, 1, 1),
                name=f"{prefix}drop",
            )(x)
            x = layers.Add(name=f"{prefix}add")([x, shortcut])

    x = conv_bn(x, make_divisible(1280 * width), 1, "top_conv", "top_bn")
    x = layers.Activation("swish", name="top_activation")(x)

    if include_top:
        initializer = keras.initializers.VarianceScaling(1 / 3, "fan_out", "uniform")
        x = classifier(x, classes, classifier_activation, dropout, initializer)
    else:
        x = pool(x, pooling)

    model = keras.Model(inputs, x, name=name)
    load_weights(
        model, weights, "EfficientNetCA", EfficientNetCA, input_tensor, skip_mismatch
    )
    return model


class Block(NamedTuple):
    expansion: int
    channels: int
    kernel_size: int
    stride: int
    dilation: int
    residual: bool


def _blocks(width, depth, output_stride):
    """The blocks of all stages, at their width and with their dilation."""
    rows, in_channels = [], make_divisible(32 * width)
    for expansion, channels, kernel_size, repeats, first_stride in STAGES:
        channels = make_divisible(channels * width)
        for stride in [first_stride] + [1] * (math.ceil(depth * repeats) - 1):
            residual = stride == 1 and in_channels == channels
            rows.append((expansion, channels, kernel_size, stride, residual))
            in_channels = channels
    _, *dilated = dilate([2] + [stride for *_, stride, _ in rows], output_stride)
    return [
        Block(expansion, channels, kernel_size, stride, dilation, residual)
        for (expansion, channels, kernel_size, _, residual), (stride, dilation) in zip(
            rows, dilated
        )
    ]


def inverted_residual(x, block, make_attention, prefix):
    """Expansion, depthwise convolution, attention, linear projection."""
    if block.expansion > 1:
        expanded = x.shape[channel_axis()] * block.expansion
        x = conv_bn(x, expanded, 1, f"{prefix}expand", f"{prefix}expand_BN")
        x = layers.Activation("swish", name=f"{prefix}expand_activation")(x)

    x = layers.DepthwiseConv2D(
        block.kernel_size,
        strides=block.stride,
        padding="same",
        dilation_rate=block.dilation,
        use_bias=False,
        depthwise_initializer=kernel_initializer(),
        name=f"{prefix}depthwise",
    )(x)
    x = batch_norm(x, f"{prefix}depthwise_BN")
    x = layers.Activation("swish", name=f"{prefix}depthwise_activation")(x)
    if make_attention:
        x = make_attention(f"{prefix}attention")(x)

    return conv_bn(x, block.channels, 1, f"{prefix}project", f"{prefix}project_BN")


def own_squeeze_excite(expansion, name):
    """EfficientNet's own: its width is a quarter of the block's input channels."""
    return SqueezeExcite(
        reduction=4 * expansion,
        activation="swish",
        kernel_initializer=kernel_initializer(),
        name=name,
    )


def conv_bn(x, filters, kernel_size, name, bn_name, stride=1):
    """Convolution and batch normalization."""
    x = layers.Conv2D(
        filters,
        kernel_size,
        strides=stride,
        padding="same",
        use_bias=False,
        kernel_initializer=kernel_initializer(),
        name=name,
    )(x)
    return batch_norm(x, bn_name)


def batch_norm(x, name):
    """Batch normalization with EfficientNet's constants, which are Keras's."""
    axis = channel_axis()
    return layers.BatchNormalization(axis, momentum=0.99, epsilon=1e-3, name=name)(x)


def kernel_initializer():
    """The official code's: truncated normal, variance 2 / fan-out."""
    return keras.initializers.VarianceScaling(2.0, "fan_out", "truncated_normal")
