"""Building blocks shared by the networks and the dense heads.

Every function takes `data_format` and `dtype` as arguments, and `None` for Keras's
global settings, so that a head can be built in its backbone's.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import keras
from keras import layers

from keras_coordatt.layers import CBAM, CoordinateAttention, SqueezeExcite, atrous
from keras_coordatt.layers.batch_normalization import BatchNormalization
from keras_coordatt.preprocessing import IMAGENET, RAW_PIXELS, PreprocessingRecord
from keras_coordatt.validation import call_factory, check_choice, with_hint

OUTPUT_STRIDES = (32, 16, 8)

# The paper's code trains with PyTorch's defaults.
BATCH_NORM: dict[str, Any] = {"momentum": 0.9, "epsilon": 1e-5}

# The one list of attentions by name: the axes of coordinate attention, and the paper's
# baselines with the reduction that its parameter counts imply.
COORDINATE_AXES = {"coordinate": "both", "height": "height", "width": "width"}
BASELINES = {
    "se": functools.partial(SqueezeExcite, reduction=24),
    "cbam": functools.partial(CBAM, reduction=24, **BATCH_NORM),
}
ATTENTIONS = (*COORDINATE_AXES, *BASELINES)


def channel_axis(data_format: str | None = None) -> int:
    """Returns the channel axis of a batch of images."""
    data_format = data_format or keras.config.image_data_format()
    return 1 if data_format == "channels_first" else 3


def spatial_size(x, data_format: str | None = None) -> tuple:
    """Returns the height and width of a batch of images or of feature maps."""
    return tuple(x.shape[2:4] if channel_axis(data_format) == 1 else x.shape[1:3])


def make_divisible(channels: float, divisor: int = 8) -> int:
    """Rounds to a multiple of `divisor`, never down by more than a tenth."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


def dilate(strides: Iterable[int], output_stride: int) -> list[tuple[int, int]]:
    """Turns the strides beyond `output_stride` into dilations.

    A convolution after a removed stride visits every `dilation`-th position of the
    denser feature map: the positions it would have visited with the stride.

    Args:
        strides: Strides of the convolutions, in order.
        output_stride: 32, 16 or 8.

    Returns:
        One pair `(stride, dilation)` per convolution.
    """
    check_choice("output_stride", output_stride, OUTPUT_STRIDES)
    total, dilation, pairs = 1, 1, []
    for stride in strides:
        if total * stride <= output_stride:
            total *= stride
            pairs.append((stride, dilation))
        else:
            pairs.append((1, dilation))
            dilation *= stride
    return pairs


def image_entrance(image, include_preprocessing):
    """Records the preprocessing of images, and normalizes them if the network does.

    Args:
        image: Symbolic image.
        include_preprocessing: Whether the network takes values in [0, 255].

    Returns:
        The normalized image.

    Raises:
        ValueError: If `include_preprocessing` is `True` and the image does not have 3
            channels.
    """
    if image.shape[channel_axis()] != 3:
        if include_preprocessing:
            raise ValueError(
                "`include_preprocessing=True` needs an image of 3 channels. "
                f"Received: shape={tuple(image.shape[1:])}"
            )
        return image  # preprocessing is known for RGB only
    record = RAW_PIXELS if include_preprocessing else IMAGENET
    x = PreprocessingRecord(record, name="preprocessing_record")(image)
    if include_preprocessing:
        scale, offset = (array.tolist() for array in IMAGENET.scale_and_offset())
        x = layers.Rescaling(scale, offset, name="preprocessing")(x)
    return x


def conv_bn(
    x,
    filters,
    kernel_size,
    name,
    bn_name,
    *,
    stride=1,
    dilation=1,
    data_format=None,
    dtype=None,
):
    """Applies convolution and batch normalization, padded symmetrically."""
    x, padding = _pad(x, kernel_size, stride, f"{name}_pad", data_format, dtype)
    convolution = layers.Conv2D if dilation == 1 else atrous.Conv2D
    x = convolution(
        filters,
        kernel_size,
        strides=stride,
        padding=padding,
        dilation_rate=dilation,
        use_bias=False,
        kernel_initializer=kernel_initializer(),
        data_format=data_format,
        dtype=dtype,
        name=name,
    )(x)
    return batch_norm(x, bn_name, data_format=data_format, dtype=dtype)


def depthwise_bn(
    x,
    kernel_size,
    name,
    *,
    stride=1,
    dilation=1,
    data_format=None,
    dtype=None,
):
    """Applies depthwise convolution and batch normalization, padded symmetrically."""
    pad_name = name.replace("depthwise", "pad")
    x, padding = _pad(x, kernel_size, stride, pad_name, data_format, dtype)
    # PyTorch counts the fan-out of all groups together, which Keras calls the fan-in
    # of a depthwise kernel.
    initializer = keras.initializers.VarianceScaling(
        2.0, "fan_in", "untruncated_normal"
    )
    x = layers.DepthwiseConv2D(
        kernel_size,
        strides=stride,
        padding=padding,
        dilation_rate=dilation,
        use_bias=False,
        depthwise_initializer=initializer,
        data_format=data_format,
        dtype=dtype,
        name=name,
    )(x)
    return batch_norm(x, f"{name}_BN", data_format=data_format, dtype=dtype)


def batch_norm(x, name, *, data_format=None, dtype=None):
    """Applies batch normalization with the constants of the paper's code."""
    axis = channel_axis(data_format)
    return BatchNormalization(axis, **BATCH_NORM, dtype=dtype, name=name)(x)


def relu6(x, name, *, dtype=None):
    """Applies ReLU6, which MobileNets use throughout."""
    return layers.ReLU(6.0, dtype=dtype, name=name)(x)


def _pad(x, kernel_size, stride, name, data_format, dtype):
    # At stride 2, "same" pads an even size on one side only.
    if stride == 1 or kernel_size == 1:
        return x, "same"
    x = layers.ZeroPadding2D(
        kernel_size // 2, data_format=data_format, dtype=dtype, name=name
    )(x)
    return x, "valid"


def kernel_initializer():
    """Returns the initializer of the paper's code: normal, variance 2 / fan-out."""
    return keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal")


def attention_factory(
    attention: str | Callable | None,
    reduction: int,
    default_reduction: int,
    identity_init: bool = False,
) -> Callable | None:
    """Returns a function from a layer's name to an attention layer.

    Args:
        attention: Same as in `MobileNetV2CA`.
        reduction: Reduction of coordinate attention; no other attention takes it.
        default_reduction: The builder's default; any other value counts as set by the
            user.
        identity_init: Whether coordinate attention starts as the identity.

    Returns:
        The function, or `None` for a network without attention.

    Raises:
        ValueError: If `attention` is unknown, or `reduction` is set for an attention
            that doesn't take it.
    """
    named = isinstance(attention, str)
    make: Callable | None
    if named and attention in COORDINATE_AXES:
        make = functools.partial(
            CoordinateAttention,
            reduction,
            axes=COORDINATE_AXES[attention],
            identity_init=identity_init,
            **BATCH_NORM,
        )
    elif named and attention in BASELINES:
        make = BASELINES[attention]
    elif attention is None or (
        callable(attention) and not isinstance(attention, layers.Layer)
    ):
        make = None
    else:
        raise ValueError(
            f"`attention` must be one of {ATTENTIONS}, None, or a callable that returns a "
            f"layer. Received: {attention!r}"
        )

    if reduction != default_reduction and not (named and attention in COORDINATE_AXES):
        error = ValueError(
            "`reduction` is an argument of coordinate attention: leave it out. "
            f"Received: attention={attention!r}, reduction={reduction}"
        )
        raise with_hint(
            error,
            "For another reduction of another attention pass a callable, such as "
            f"`attention=functools.partial(SqueezeExcite, reduction={reduction})`.",
        )
    if make is not None:
        return lambda name: make(kernel_initializer=kernel_initializer(), name=name)
    if callable(attention):
        return functools.partial(call_factory, "attention", attention)
    return None


def classifier(
    x,
    classes: int,
    activation: str | Callable | None,
    dropout: float,
    initializer: keras.initializers.Initializer,
):
    """Applies average pooling, dropout and a dense layer, whose outputs are float32."""
    x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
    x = layers.Dropout(dropout, name="top_dropout")(x)
    # Softmax in half precision is too coarse for scores and losses.
    half = keras.config.dtype_policy().compute_dtype in ("float16", "bfloat16")
    dtype = "float32" if half else None
    return layers.Dense(
        int(classes),
        activation=activation,
        kernel_initializer=initializer,
        dtype=dtype,
        name="predictions",
    )(x)


def pool(x, pooling: str | None):
    """Pools the output of a network without classifier: `"avg"`, `"max"` or `None`."""
    if pooling == "avg":
        return layers.GlobalAveragePooling2D(name="avg_pool")(x)
    if pooling == "max":
        return layers.GlobalMaxPooling2D(name="max_pool")(x)
    return x
