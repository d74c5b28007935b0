"""What the networks share: checks, input, convolutions, attention, weights."""

import functools
import inspect
import os
import pathlib

import keras
from keras import layers

from keras_coordatt import weights as weights_lib
from keras_coordatt.layers import CBAM, CoordinateAttention, SqueezeExcite
from keras_coordatt.preprocessing import IMAGENET, RAW_PIXELS, PreprocessingRecord
from keras_coordatt.validation import check_choice, check_positive_int

MIN_SIZE = 32
OUTPUT_STRIDES = (32, 16, 8)

# The paper's code trains with PyTorch's defaults.
BATCH_NORM = {"momentum": 0.9, "epsilon": 1e-5}

# The attentions that have a name: the axes of coordinate attention, and the paper's
# rivals, with the reduction that its parameter counts imply.
AXES = {"coordinate": "both", "height": "height", "width": "width"}
RIVALS = {
    "se": functools.partial(SqueezeExcite, reduction=24),
    "cbam": functools.partial(CBAM, reduction=24, **BATCH_NORM),
}


# Arguments


def check_arguments(
    network, include_top, weights, pooling, classes, classifier_activation, received
):
    """Checks what every builder takes.

    Args:
        network: The builder's name in the catalog of weights.
        received: The arguments of which some weights are published for certain values.
    """
    check_positive_int("classes", classes)
    check_choice("pooling", pooling, (None, "avg", "max"))
    if include_top:
        try:
            keras.activations.get(classifier_activation)
        except (TypeError, ValueError):
            raise ValueError(
                "`classifier_activation` must be an activation of Keras by name, a "
                f"function, or None. Received: {classifier_activation!r}"
            ) from None
    if weights is None:
        return
    published = weights_lib.published(network)
    if weights == "imagenet" and weights not in published:
        raise ValueError(
            "`weights` must be None or the path of a file, as no ImageNet weights of "
            "this network are published. Received: 'imagenet'"
        )
    record = _record(network, weights)
    if record is None:
        check_weights_path(weights, tuple(published))
        return
    argument = f'`weights="{weights}"`'
    if include_top and classes != record.classes:
        raise ValueError(
            f"{argument} with `include_top=True` needs `classes={record.classes}`. "
            f"Received: classes={classes!r}"
        )
    if include_top and classifier_activation not in (None, "softmax"):
        raise ValueError(
            f"{argument} with `include_top=True` needs "
            '`classifier_activation="softmax"` or `None`. '
            f"Received: classifier_activation={classifier_activation!r}"
        )
    if received != record.arguments:
        raise ValueError(
            f"{argument} is published for {record.arguments} only; "
            f"pass `weights=None` for another network. Received: {received}"
        )


def _record(network, weights):
    """The record of published weights, or None."""
    published = weights_lib.published(network)
    is_name = isinstance(weights, str) and weights in published
    return weights_lib.CATALOG[published[weights]] if is_name else None


def check_weights_path(weights, names=()):
    """Checks that `weights` is a file of a kind that can be loaded."""
    is_path = isinstance(weights, (str, os.PathLike))
    path = pathlib.Path(weights) if is_path else None
    if path is None or not path.is_file() or path.suffix not in weights_lib.FILE_TYPES:
        raise ValueError(
            f"`weights` must be None, {''.join(f'{name!r}, ' for name in names)}or the "
            "path of an existing file that ends in one of "
            f"{weights_lib.FILE_TYPES}. Received: {weights!r}"
        )


def make_divisible(channels: float, divisor: int = 8) -> int:
    """Rounds to a multiple of `divisor`, never down by more than a tenth."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


def dilate(strides, output_stride: int):
    """Turns the strides past `output_stride` into dilations.

    A convolution after a stride that was left out sees every `rate`-th position
    of the denser map, which are the positions it would have seen.

    Returns:
        An iterator over `(stride, dilation)`, one a convolution.
    """
    check_choice("output_stride", output_stride, OUTPUT_STRIDES)
    total, rate, places = 1, 1, []
    for stride in strides:
        if total * stride <= output_stride:
            total *= stride
            places.append((stride, rate))
        else:
            places.append((1, rate))
            rate *= stride
    return iter(places)


# Input


def channel_axis() -> int:
    """The channel axis of a batch of images."""
    return 1 if keras.config.image_data_format() == "channels_first" else 3


def image_input(input_shape, input_tensor, include_top, network, weights, default_size):
    """Checks the input arguments, and gives the model's inputs and the image.

    Args:
        default_size: Height and width where neither they nor published weights, which
            know the size they were trained at, say otherwise.

    Returns:
        `(inputs, image)`: they differ when `input_tensor` is the output of
        other layers.
    """
    if input_tensor is not None:
        if not keras.utils.is_keras_tensor(input_tensor):
            raise ValueError(
                "`input_tensor` must be a Keras tensor, such as `keras.Input` or a "
                f"layer gives. Received: {type(input_tensor)}"
            )
        shape = tuple(input_tensor.shape[1:])
        if input_shape is not None and tuple(input_shape) != shape:
            raise ValueError(
                f"`input_shape` must be that of `input_tensor`, {shape}. "
                f"Received: input_shape={input_shape}"
            )
        check_image_shape("input_tensor.shape[1:]", shape)
        inputs = keras.utils.get_source_inputs(input_tensor)
        return inputs[0] if len(inputs) == 1 else inputs, input_tensor

    if input_shape is None:
        record = _record(network, weights)
        size = record.input_size if record else default_size
        size = size if include_top else None
        input_shape = [size, size]
        input_shape.insert(channel_axis() - 1, 3)
    check_image_shape("input_shape", input_shape)
    image = keras.Input(shape=tuple(input_shape))
    return image, image


def check_image_shape(name, shape):
    """Checks an image's shape, without the batch axis."""
    try:
        sizes = list(shape)
        channels = sizes.pop(channel_axis() - 1)
        rank = len(sizes) + 1
    except (TypeError, IndexError):
        rank = None
    if rank != 3:
        raise ValueError(
            f"`{name}` must have three entries, "
            f"{'(C, H, W)' if channel_axis() == 1 else '(H, W, C)'}. Received: {shape}"
        )
    check_positive_int(f"{name}[{channel_axis() - 1}]", channels)
    for size in sizes:
        if size is not None and check_positive_int(name, size) < MIN_SIZE:
            raise ValueError(
                f"`{name}` must have a height and a width of at least {MIN_SIZE}, "
                f"or None. Received: {shape}"
            )


# Parts of a network


def conv_bn(x, filters, kernel_size, name, bn_name, stride=1, dilation=1):
    """Convolution and batch normalization, padded alike on all sides."""
    x, padding = _pad(x, kernel_size, stride, f"{name}_pad")
    x = layers.Conv2D(
        filters,
        kernel_size,
        strides=stride,
        padding=padding,
        dilation_rate=dilation,
        use_bias=False,
        kernel_initializer=kernel_initializer(),
        name=name,
    )(x)
    return layers.BatchNormalization(channel_axis(), **BATCH_NORM, name=bn_name)(x)


def depthwise_bn(x, kernel_size, name, stride=1, dilation=1):
    """Depthwise convolution and batch normalization."""
    x, padding = _pad(x, kernel_size, stride, name.replace("depthwise", "pad"))
    # PyTorch counts the fan-out of all groups together, which is what Keras
    # calls the fan-in of a depthwise kernel.
    x = layers.DepthwiseConv2D(
        kernel_size,
        strides=stride,
        padding=padding,
        dilation_rate=dilation,
        use_bias=False,
        depthwise_initializer=keras.initializers.VarianceScaling(
            2.0, "fan_in", "untruncated_normal"
        ),
        name=name,
    )(x)
    return layers.BatchNormalization(channel_axis(), **BATCH_NORM, name=f"{name}_BN")(x)


def _pad(x, kernel_size, stride, name):
    # "same" pads an even size on one side only when the stride is 2.
    if stride == 1 or kernel_size == 1:
        return x, "same"
    return layers.ZeroPadding2D(kernel_size // 2, name=name)(x), "valid"


def kernel_initializer():
    """The official code's: normal, variance 2 / fan-out."""
    return keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal")


def attention_factory(attention, reduction, default_reduction):
    """Gives a function from a layer's name to the layer, or None for none.

    Args:
        reduction: Coordinate attention's; no other attention takes it.
        default_reduction: The builder's, by which to know that none was asked for.
    """
    if isinstance(attention, str) and attention in AXES:
        make = functools.partial(
            CoordinateAttention, reduction, axes=AXES[attention], **BATCH_NORM
        )
    elif isinstance(attention, str) and attention in RIVALS:
        make = RIVALS[attention]
    elif attention is None or (
        callable(attention) and not isinstance(attention, keras.layers.Layer)
    ):
        make = None
    else:
        raise ValueError(
            f"`attention` must be one of {(*AXES, *RIVALS)}, None, or a callable that "
            f"gives a layer. Received: {attention!r}"
        )

    if reduction != default_reduction and not (
        isinstance(attention, str) and attention in AXES
    ):
        raise ValueError(
            "`reduction` is coordinate attention's. For another reduction of another "
            "attention pass a callable, such as `attention=functools.partial("
            f"SqueezeExcite, reduction={reduction})`. "
            f"Received: attention={attention!r}, reduction={reduction}"
        )
    if make is not None:
        return lambda name: make(kernel_initializer=kernel_initializer(), name=name)
    if attention is None:
        return None
    return functools.partial(_call_factory, "attention", attention)


def _call_factory(argument, factory, name):
    """The layer of a function that the argument called `argument` gave."""
    parameters = inspect.signature(factory).parameters
    named = "name" in parameters or any(
        p.kind is p.VAR_KEYWORD for p in parameters.values()
    )
    layer = factory(name=name) if named else factory()
    if not isinstance(layer, keras.layers.Layer):
        raise TypeError(f"`{argument}` must give a Keras layer. Received: {layer!r}")
    return layer


def pool(x, pooling):
    """The pooling of a network without its top."""
    if pooling == "avg":
        return layers.GlobalAveragePooling2D(name="avg_pool")(x)
    if pooling == "max":
        return layers.GlobalMaxPooling2D(name="max_pool")(x)
    return x


# Weights


def load_weights(model, weights, network, builder):
    """Loads what the `weights` argument names.

    Args:
        network: The builder's name in the catalog of weights.
        builder: The builder.
    """
    if weights is None:
        return
    if record := _record(network, weights):
        arguments = {**record.arguments, "classes": record.classes, "weights": None}
        name = weights_lib.published(network)[weights]
        weights = weights_lib.cached_weights(name, lambda: builder(**arguments))
    weights_lib.load_weights(model, weights)


# Images


def image_entrance(image, include_preprocessing):
    """Records how images are prepared, and normalizes them if the network does.

    Args:
        image: Symbolic image.
        include_preprocessing: Whether the network takes values in [0, 255].

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
        return image  # nothing is known of other images
    record = RAW_PIXELS if include_preprocessing else IMAGENET
    x = PreprocessingRecord(record, name="preprocessing_record")(image)
    if include_preprocessing:
        scale, offset = (array.tolist() for array in IMAGENET.scale_and_offset())
        x = layers.Rescaling(scale, offset, name="preprocessing")(x)
    return x
