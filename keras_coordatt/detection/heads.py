"""The layers that SSDLite adds to a backbone: extra feature maps and predictors."""

import functools

import keras
from keras import layers

from keras_coordatt.applications.blocks import (
    conv_bn,
    depthwise_bn,
    relu6,
    spatial_size,
)
from keras_coordatt.applications.pyramid import pyramid_outputs

# Channels of the feature maps beyond the backbone.
EXTRA_CHANNELS = (512, 256, 256, 128)


def feature_maps(backbone):
    """Finds the feature maps of a backbone that SSDLite predicts from.

    Args:
        backbone: Same as in `SSDLite`.

    Returns:
        `(middle, last, strided)`: the feature map before the stride to 32, the last
        one, and the layer with that stride.

    Raises:
        ValueError: If the backbone has no such feature maps, or their size is unknown.
    """
    received = f"Received: {getattr(backbone, 'name', repr(backbone))}"
    try:
        coarsest = list(pyramid_outputs(backbone))[-1]
    except ValueError:
        coarsest = None
    if coarsest != "P5":
        raise ValueError(
            "`backbone` must be a network of `keras_coordatt.applications` with "
            f"`output_stride=32`. {received}"
        )
    strided = [
        layer
        for layer in backbone.layers
        if isinstance(layer, layers.DepthwiseConv2D) and layer.strides[0] > 1
    ][-1]
    middle = strided.input
    for layer in backbone.layers:
        # The networks pad in a separate layer before a strided convolution.
        if isinstance(layer, layers.ZeroPadding2D) and layer.output is middle:
            middle = layer.input
    pools = [
        layer
        for layer in backbone.layers
        if isinstance(layer, (layers.GlobalAveragePooling2D, layers.GlobalMaxPooling2D))
    ]
    last = pools[-1].input if pools else backbone.outputs[-1]
    if len(last.shape) != 4:
        raise ValueError(f"`backbone` must end in a feature map. {received}")
    if None in (*middle.shape[1:], *last.shape[1:]):
        raise ValueError(
            "`backbone` must be built for images of a known size, for example with "
            f"`input_shape=(320, 320, 3)`. {received}, "
            f"{tuple(backbone.inputs[0].shape[1:])}"
        )
    return middle, last, strided


def add_heads(maps, box_shapes, classes, data_format, dtype):
    """Adds the extra feature maps, and predictors to every feature map.

    Args:
        maps: The two feature maps of the backbone.
        box_shapes: Shapes of the default boxes, for each feature map.
        classes: Number of classes, without the background.
        data_format, dtype: Those of the backbone's layers.

    Returns:
        `(outputs, sizes)`: the outputs of `SSDLite`, in float32, and height and width
        of each feature map.
    """
    settings = {"data_format": data_format, "dtype": dtype}
    maps = list(maps)
    for i, channels in enumerate(EXTRA_CHANNELS[: len(box_shapes) - len(maps)], 1):
        maps.append(extra_map(maps[-1], channels, f"extra_{i}_", **settings))
    offsets, logits = [], []
    for i, (x, shapes) in enumerate(zip(maps, box_shapes), 1):
        predict = functools.partial(predictor, x, len(shapes), **settings)
        offsets.append(predict(4, f"map_{i}_boxes"))
        logits.append(predict(classes + 1, f"map_{i}_classes"))
    outputs = {
        "boxes": layers.Concatenate(1, name="boxes", dtype="float32")(offsets),
        "classes": layers.Concatenate(1, name="classes", dtype="float32")(logits),
    }
    return outputs, tuple(spatial_size(x, data_format) for x in maps)


def extra_map(x, channels, prefix, *, data_format, dtype):
    """Halves a feature map by reduction, depthwise convolution and expansion."""
    settings = {"data_format": data_format, "dtype": dtype}
    name = f"{prefix}reduce"
    x = conv_bn(x, channels // 2, 1, name, f"{name}_BN", **settings)
    x = relu6(x, f"{name}_relu", dtype=dtype)
    name = f"{prefix}depthwise"
    x = depthwise_bn(x, 3, name, stride=2, **settings)
    x = relu6(x, f"{name}_relu", dtype=dtype)
    name = f"{prefix}expand"
    x = conv_bn(x, channels, 1, name, f"{name}_BN", **settings)
    return relu6(x, f"{name}_relu", dtype=dtype)


def predictor(x, boxes, numbers, name, *, data_format, dtype):
    """Predicts some numbers per box at each position: `(N, H * W * boxes, numbers)`."""
    settings = {"data_format": data_format, "dtype": dtype}
    x = depthwise_bn(x, 3, f"{name}_depthwise", **settings)
    x = relu6(x, f"{name}_depthwise_relu", dtype=dtype)
    x = layers.Conv2D(
        boxes * numbers,
        1,
        kernel_initializer=keras.initializers.RandomNormal(stddev=0.01),
        name=name,
        **settings,
    )(x)
    if data_format == "channels_first":
        x = layers.Permute((2, 3, 1), dtype=dtype, name=f"{name}_permute")(x)
    return layers.Reshape((-1, numbers), dtype=dtype, name=f"{name}_reshape")(x)
