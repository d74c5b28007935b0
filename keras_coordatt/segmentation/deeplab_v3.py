"""DeepLabV3: semantic segmentation with atrous spatial pyramid pooling.

The layers of the head are `aspp_0` (1x1), `aspp_1`, `aspp_2`, `aspp_3` (3x3, dilated)
and `aspp_pool`, each with its `_BN` and `_relu`; `aspp_project`, which joins them;
`predictions`, the classifier; and `logits`, which resizes its scores to the image.
"""

import os
from collections.abc import Sequence

import keras
from keras import layers

from keras_coordatt.applications.arguments import check_weights_path
from keras_coordatt.applications.blocks import channel_axis, conv_bn
from keras_coordatt.applications.pyramid import convolutions, pyramid_outputs
from keras_coordatt.checked_model import Functional
from keras_coordatt.segmentation.resize_like import ResizeLike
from keras_coordatt.validation import (
    MAX_CHANNELS,
    MAX_SIZE,
    check_choice,
    check_number,
    check_positive_int,
)
from keras_coordatt.weights import load_weights

# By the output stride of the backbone: doubled at 8, for the same receptive field
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

    Atrous spatial pyramid pooling (ASPP) joins a 1x1 convolution, dilated 3x3
    convolutions and global average pooling of the backbone's last feature map. On
    `MobileNetV2CA` with `alpha=1.0` this is the paper's network, with 5.0M parameters
    for 21 classes, and 4.5M without attention.

    The logits are computed at the backbone's output stride and resized bilinearly, with
    half-pixel centers, to the size of the image. The model takes images of any size if
    the backbone does. It has the backbone's data format and precision; the logits are
    float32.

    Global average pooling leaves one value per channel and image. Of a batch of one
    image, its batch normalization uses the moving statistics, and does not update
    them; batches of more images train better.

    Args:
        backbone: A network of `MobileNetV2CA`, `MobileNeXtCA` or `EfficientNetCA`
            with `output_stride=16` or `8`. The model shares its layers up to the last
            block, with their weights, and ignores its classifier.
        classes: Number of classes, without the label of ignored pixels.
        filters: Number of channels of each branch and of the projection that joins
            them. Defaults to 256.
        atrous_rates: Dilation of each 3x3 convolution. Defaults to `(6, 12, 18)` for an
            output stride of 16, and `(12, 24, 36)` for 8; required for 32.
        dropout: Rate of the dropout before the classifier, in [0, 1). Defaults to
            0.1.
        weights: Path of a `.keras`, `.weights.h5` or `.h5` file of such a model, or
            `None` for a random head on the backbone as it is. Defaults to `None`.
        skip_mismatch: Whether `weights` may be those of a model with another number of
            classes: its classifier is skipped, with a warning. Defaults to `False`.
        name: Name of the model.

    Returns:
        A `keras.Model` from images to logits, `(N, H, W, classes)`, or
        `(N, classes, H, W)` with `"channels_first"`.

    Raises:
        ValueError: If an argument is out of its range, or does not fit another.

    Example:

    Masks are integers `(N, H, W)`, from 0 to `classes - 1` or 255 for ignored pixels,
    as from `keras_coordatt.data.load_segmentation`. `fit` checks them. The loss is the
    mean over the other pixels. (The metric `"accuracy"` would count ignored pixels as
    errors.)

    >>> backbone = MobileNetV2CA((64, 64, 3), include_top=False, output_stride=16,
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

    With `"channels_first"`, Keras's loss and metric don't support the axis of the
    classes on every backend. Train a model that shares the weights and has it last:

    >>> keras.Model(model.input, keras.layers.Permute((2, 3, 1))(model.output))

    Reference:
        - [Rethinking Atrous Convolution for Semantic Image Segmentation](
          https://arxiv.org/abs/1706.05587)
        - [Coordinate Attention for Efficient Mobile Network Design](
          https://arxiv.org/abs/2103.02907) (CVPR 2021)
    """
    classes = check_positive_int("classes", classes, MAX_CHANNELS)
    filters = check_positive_int("filters", filters, MAX_CHANNELS)
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
    x = conv_bn_relu(x, filters, 1, "aspp_pool", **settings)
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

    model = Functional(image, x, name=name)
    if weights is not None:
        load_weights(model, weights, skip_mismatch=skip_mismatch)
    return model


def conv_bn_relu(x, filters, kernel_size, name, *, dtype, **settings):
    """Applies convolution, batch normalization and ReLU."""
    x = conv_bn(x, filters, kernel_size, name, f"{name}_BN", dtype=dtype, **settings)
    return layers.ReLU(dtype=dtype, name=f"{name}_relu")(x)


def _image_and_features(backbone):
    """Returns the backbone's image, its last feature map, and the output stride."""
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
    return [check_positive_int("atrous_rates", rate, MAX_SIZE) for rate in rates]
