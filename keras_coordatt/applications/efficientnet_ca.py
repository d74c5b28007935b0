"""EfficientNet B0 to B7 with coordinate attention in place of squeeze-and-excitation.

With `attention="se"` this is the network of `keras.applications`, from which the stem
and the top have their layer names. The layers of block `i`, counted through all stages,
are `block_{i}_expand`, `_depthwise`, `_attention` and `_project`.
"""

import functools
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
    dilate,
    make_divisible,
    pool,
)
from keras_coordatt.applications.docstring import shared_docstring
from keras_coordatt.checked_model import Functional
from keras_coordatt.layers import SqueezeExcite
from keras_coordatt.layers.batch_normalization import BatchNormalization
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

# Stochastic depth: the rate at which the last block's branch is dropped in training.
# Earlier blocks have a rate in proportion to their position.
DROP_RATE = 0.2


@shared_docstring(
    variant="""`"b0"` to `"b7"`: the width, the depth, the default image size (224, 240,
        260, 300, 380, 456, 528, 600) and the dropout before the classifier (0.2, 0.2,
        0.3, 0.3, 0.4, 0.4, 0.5, 0.5). Defaults to `"b0"`.""",
    default_size="the variant's image size",
    published="""`"imagenet"` (Keras's, for `attention="se"`)""",
    default_weights="`None`",
    baselines=""", where `"se"` is EfficientNet's own, with a quarter of the block's
        input channels in its hidden layer, and `"cbam"` has a reduction of 24""",
    default_reduction="32",
)
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

    The attention replaces EfficientNet's squeeze-and-excitation in every block: it
    follows the depthwise convolution, where the channels are expanded. Inputs are
    normalized by ImageNet's mean and standard deviation: call
    `keras_coordatt.applications.efficientnet_ca.preprocess_input` on them, or pass
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
    arguments = {"variant": variant, "attention": attention}
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
        arguments=arguments,
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

    model = Functional(inputs, x, name=name)
    load_named_weights(
        model, "EfficientNetCA", weights, arguments, input_tensor, skip_mismatch
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
    """Returns the blocks of all stages, at their width and with their dilation."""
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
    """Applies expansion, depthwise convolution, attention and linear projection."""
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
    """Builds EfficientNet's own squeeze-and-excitation.

    Its hidden layer has a quarter of the block's input channels.
    """
    return SqueezeExcite(
        reduction=4 * expansion,
        activation="swish",
        kernel_initializer=kernel_initializer(),
        name=name,
    )


def conv_bn(x, filters, kernel_size, name, bn_name, stride=1):
    """Applies convolution and batch normalization."""
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
    """Applies batch normalization with EfficientNet's constants, Keras's defaults."""
    axis = channel_axis()
    return BatchNormalization(axis, momentum=0.99, epsilon=1e-3, name=name)(x)


def kernel_initializer():
    """Returns the official initializer: truncated normal, variance 2 / fan-out."""
    return keras.initializers.VarianceScaling(2.0, "fan_out", "truncated_normal")
