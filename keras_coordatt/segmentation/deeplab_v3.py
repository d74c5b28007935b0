"""DeepLabV3: a class for each pixel, from what is around it near and far.

The head's layers are `aspp_0` (1x1), `aspp_1`, `aspp_2`, `aspp_3` (3x3, dilated) and
`aspp_pool`, each with its `_BN` and `_relu`; `aspp_project` joins them, `predictions`
is the classifier, and `logits` brings its scores to the image's size.
"""

import os
from collections.abc import Sequence

import keras
from keras import layers

from keras_coordatt.applications.arguments import check_weights_path
from keras_coordatt.applications.blocks import channel_axis, conv_bn
from keras_coordatt.applications.pyramid import convolutions, pyramid_outputs
from keras_coordatt.layers.batch_normalization import BatchNormalization
from keras_coordatt.segmentation.resize_like import ResizeLike
from keras_coordatt.validation import check_choice, check_number, check_positive_int
from keras_coordatt.weights import load_weights

# By the backbone's output stride: at 8 they are doubled, so that they see as far.
ATROUS_RATES = {16: (6, 12, 18), 8: (12, 24, 36)}


def DeepLabV3(
    backbone: keras.Model,
    classes: int,
    *,
    filters: int = 256,
    atrous_rates: Sequence[int] | None = None,
    dropout: float = 0.1,
    weights: str | os.PathLike | None = None,
    skip_mismatch: bool = False,
    name: str = "deeplab_v3",
) -> keras.Model:
    """Instantiates DeepLabV3 on a backbone with coordinate attention.

    Atrous spatial pyramid pooling (ASPP) looks at the backbone's last map through a 1x1
    convolution, 3x3 convolutions of several dilations, and the mean of the whole map.
    On `MobileNetV2CA` of `alpha=1.0`, this is the paper's network: for 21 classes 5.0M
    parameters, and 4.5M without attention.

    The logits are made on the backbone's map, and then resized bilinearly, with
    half-pixel centers, to the size of the image. The model takes images of any size if
    the backbone does.

    Args:
        backbone: A network of `MobileNetV2CA`, `MobileNeXtCA` or `EfficientNetCA`
            that is built with `output_stride=16` or `8`. Its layers up to the last
            block are used, whatever its top is; the model shares them, and so their
            weights, with it.
        classes: Number of classes, without pixels that don't count.
        filters: Channels of each branch and of what they are joined to. Defaults to
            256.
        atrous_rates: Dilations of the 3x3 convolutions, one each. Defaults to
            `(6, 12, 18)` for an output stride of 16, and `(12, 24, 36)` for 8; for 32
            they must be given.
        dropout: Rate of the dropout before the classifier, in [0, 1). Defaults to
            0.1.
        weights: `None` (the head is random, and the backbone as it is), or the path of
            a file of a model that this function made: `.keras`, `.weights.h5` or `.h5`.
            Defaults to `None`.
        skip_mismatch: Whether the file may be that of a model with other classes:
            then the classifier stays random, with a warning, and all other weights
            are loaded. Defaults to `False`.
        name: Name of the model.

    Returns:
        A `keras.Model` from images to logits, `(N, H, W, classes)`, or
        `(N, classes, H, W)` with `"channels_first"`.

    Raises:
        ValueError: if an argument is out of its range, or does not fit another.

    Example:

    Masks are integers `(N, H, W)`, with 255 for pixels that don't count, as in
    `keras_coordatt.data.load_segmentation`; the loss is the mean over those that do.
    (The metric `"accuracy"` would count the others as wrong.)

    >>> backbone = MobileNetV2CA((96, 96, 3), include_top=False, output_stride=16,
    ...                          weights=None)
    >>> model = DeepLabV3(backbone, classes=21)
    >>> model.compile(
    ...     "adam",
    ...     keras.losses.SparseCategoricalCrossentropy(
    ...         from_logits=True, ignore_class=255
    ...     ),
    ...     metrics=[keras.metrics.MeanIoU(21, ignore_class=255, sparse_y_pred=False)],
    ... )
    >>> model.fit(images, masks)
    >>> model.predict(images).argmax(-1)  # a class for each pixel

    With `"channels_first"`, Keras's loss and metric don't know the axis of the classes
    on every backend. Train what shares its weights and has them last:

    >>> keras.Model(model.input, keras.layers.Permute((2, 3, 1))(model.output))

    Reference:
        - [Rethinking Atrous Convolution for Semantic Image Segmentation](
          https://arxiv.org/abs/1706.05587)
        - [Coordinate Attention for Efficient Mobile Network Design](
          https://arxiv.org/abs/2103.02907) (CVPR 2021)
    """
    check_positive_int("classes", classes)
    check_positive_int("filters", filters)
    check_number("dropout", dropout, 0, 1, closed=True)
    check_choice("skip_mismatch", skip_mismatch, (True, False))
    if weights is not None:
        check_weights_path(weights)
    image, features, output_stride = _image_and_features(backbone)
    rates = _check_rates(atrous_rates, output_stride)

    # The backbone's data format and precision, whatever Keras's global ones are
    last = convolutions(backbone.layers)[-1]
    data_format, dtype = last.data_format, last.dtype_policy
    settings = {"data_format": data_format, "dtype": dtype}

    branches = [conv_bn_relu(features, filters, 1, "aspp_0", **settings)]
    for i, rate in enumerate(rates, start=1):
        x = conv_bn_relu(features, filters, 3, f"aspp_{i}", dilation=rate, **settings)
        branches.append(x)
    x = layers.GlobalAveragePooling2D(keepdims=True, name="aspp_mean", **settings)(
        features
    )
    # Its batch normalization has one value per image.
    x = conv_bn_relu(x, filters, 1, "aspp_pool", norm=BatchNormalization, **settings)
    branches.append(ResizeLike(name="aspp_pool_resize", **settings)([x, features]))

    axis = channel_axis(data_format)
    x = layers.Concatenate(axis, dtype=dtype, name="aspp_concat")(branches)
    x = conv_bn_relu(x, filters, 1, "aspp_project", **settings)
    x = layers.Dropout(dropout, dtype=dtype, name="aspp_dropout")(x)

    x = layers.Conv2D(
        classes,
        1,
        kernel_initializer=keras.initializers.RandomNormal(stddev=0.01),
        name="predictions",
        **settings,
    )(x)
    x = ResizeLike(data_format, dtype="float32", name="logits")([x, image])

    model = keras.Model(image, x, name=name)
    if weights is not None:
        load_weights(model, weights, skip_mismatch=skip_mismatch)
    return model


def conv_bn_relu(x, filters, kernel_size, name, *, dtype, **settings):
    """Convolution, batch normalization, ReLU."""
    x = conv_bn(x, filters, kernel_size, name, f"{name}_BN", dtype=dtype, **settings)
    return layers.ReLU(dtype=dtype, name=f"{name}_relu")(x)


def _image_and_features(backbone):
    """The backbone's image, its last map, and the map's stride."""
    try:
        *_, (level, features) = pyramid_outputs(backbone).items()
    except ValueError as error:
        raise ValueError(
            "`backbone` must be a network of `keras_coordatt.applications`. "
            f"Received: {backbone!r}"
        ) from error
    if len(backbone.inputs) != 1 or len(backbone.inputs[0].shape) != 4:
        raise ValueError(
            "`backbone` must have one input, a batch of images. "
            f"Received: inputs={backbone.inputs}"
        )
    return backbone.inputs[0], features, 2 ** int(level.removeprefix("P"))


def _check_rates(rates, output_stride):
    if rates is None:
        if output_stride not in ATROUS_RATES:
            raise ValueError(
                "`backbone` must be built with `output_stride=16` or `8`; or give "
                "`atrous_rates`, such as (3, 6, 9) for an output stride of 32. "
                f"Received: a backbone with an output stride of {output_stride}"
            )
        return ATROUS_RATES[output_stride]
    if not isinstance(rates, (list, tuple)) or not rates:
        raise ValueError(
            f"`atrous_rates` must be a tuple of positive integers. Received: {rates!r}"
        )
    return [check_positive_int("atrous_rates", rate) for rate in rates]
