"""MobileNetV2 with coordinate attention, as in the paper's official code.

Layer names are those of `keras.applications.MobileNetV2`, with the attention of
block `i` at `block_{i}_attention`.
"""

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

    In every block with an expansion, the attention stands after the depthwise
    convolution, where the channels are expanded. Inputs are normalized by
    ImageNet's mean and standard deviation: call
    `keras_coordatt.applications.mobilenet_v2_ca.preprocess_input` on them, or pass
    `include_preprocessing=True`.

    Args:
        input_shape: `(H, W, C)`, or `(C, H, W)` with `"channels_first"`. `H` and
            `W` are at least 32, or `None`; any number of channels: the first
            kernel of pretrained weights is summed over its channels for one, and
            repeated for others. Defaults with the top to the size of the images
            that the weights were trained on, without weights 224, and to
            `(None, None, 3)` without the top.
        alpha: Positive number, the width multiplier. At most 1, the last
            convolution keeps its 1280 channels. Defaults to 1.0.
        include_top: Whether to include the classifier. Defaults to `True`.
        weights: `None` (random initialization); `"imagenet"` (the official
            checkpoint, for `alpha=1.0`, `attention="coordinate"` and
            `reduction=32`); `"cifar10"` (ours, in the package, for `alpha=0.5`,
            `classes=10` and images of 64 x 64); or the path of a file: `.keras`,
            `.weights.h5`, `.h5`, or with the official PyTorch names, `.pth`,
            `.pt` or `.safetensors`. Defaults to `"imagenet"`.
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
            `None`, plain MobileNetV2; or a callable that gives a layer, called
            with `name=` if it takes one, such as
            `functools.partial(SqueezeExcite, reduction=16)`.
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

    >>> model = MobileNetV2CA(input_shape=(96, 96, 3), weights=None, classes=10)
    >>> model(np.zeros((1, 96, 96, 3))).shape
    (1, 10)

    Reference:
        - [Coordinate Attention for Efficient Mobile Network Design](
          https://arxiv.org/abs/2103.02907) (CVPR 2021)
        - [MobileNetV2: Inverted Residuals and Linear Bottlenecks](
          https://arxiv.org/abs/1801.04381) (CVPR 2018)
    """
    check_number("alpha", alpha, 0)
    check_positive_int("reduction", reduction)
    blocks = _blocks(alpha, output_stride)
    make_attention = attention_factory(attention, reduction, 32)
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
        received={"alpha": alpha, "attention": attention, "reduction": reduction},
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

    model = keras.Model(inputs, x, name=name)
    load_weights(
        model, weights, "MobileNetV2CA", MobileNetV2CA, input_tensor, skip_mismatch
    )
    return model


class Block(NamedTuple):
    expansion: int
    channels: int
    stride: int
    dilation: int
    residual: bool


def _blocks(alpha, output_stride):
    """The blocks of all stages, at their width and with their dilation."""
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
    """Expansion, depthwise convolution, attention, linear projection."""
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
