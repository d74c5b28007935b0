"""Calls Keras's augmentation layers with only the inputs that each of them takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import keras

# These change colors only, so boxes, masks and labels stay valid.
_COLOR_ONLY = (
    keras.layers.AutoContrast,
    keras.layers.ContrastLimitedAdaptiveHistogramEqualization,
    keras.layers.Equalization,
    keras.layers.RandomBrightness,
    keras.layers.RandomColorDegeneration,
    keras.layers.RandomColorJitter,
    keras.layers.RandomContrast,
    keras.layers.RandomErasing,
    keras.layers.RandomGaussianBlur,
    keras.layers.RandomGrayscale,
    keras.layers.RandomHue,
    keras.layers.RandomInvert,
    keras.layers.RandomPosterization,
    keras.layers.RandomSaturation,
    keras.layers.RandomSharpness,
    keras.layers.Solarization,
)
# They mix images, and so their labels.
_MIXING = (keras.layers.CutMix, keras.layers.MixUp)
# In Keras 3.15, they put boxes where the objects are not: see the tests.
_MISPLACE_BOXES = (
    keras.layers.AugMix,  # like RandAugment, shears, shifts and rotates
    keras.layers.CutMix,
    keras.layers.MixUp,
    keras.layers.RandAugment,
    keras.layers.RandomCrop,
    keras.layers.RandomElasticTransform,
    keras.layers.RandomPerspective,
    keras.layers.RandomRotation,
    keras.layers.RandomShear,
)
# Blending the numbers of two classes gives the number of a third one.
_BLEND_MASKS = (keras.layers.AugMix, keras.layers.CutMix, keras.layers.MixUp)
# Draws one distortion for images, and another one for masks.
_MISPLACE_MASKS = (keras.layers.RandomElasticTransform,)


def augment_images(augment: Callable | None, images, labels=None):
    """Augments images, and mixes their labels where the images are mixed.

    Args:
        augment: Same as in `load_classification`.
        images: A batch of images.
        labels: Their one-hot labels; `None` if no layer mixes images.

    Returns:
        The images and labels.
    """
    for step in _steps(augment):
        if isinstance(step, _MIXING):
            data = step({"images": images, "labels": labels}, training=True)
            images, labels = data["images"], data["labels"]
        else:
            images = _call(step, images)
    return images, labels


def augment_with_targets(augment: Callable | None, data: dict) -> dict:
    """Augments images along with their boxes or masks.

    Args:
        augment: Same as in `load_detection`.
        data: The dict that Keras's layers take, with a batch of `images`.

    Returns:
        The same, augmented.
    """
    for step in _steps(augment):
        if isinstance(step, _COLOR_ONLY):
            data = {**data, "images": _call(step, data["images"])}
        else:
            data = _call(step, data)
    return data


def check_mixing(augment: Callable | None, one_hot: bool) -> None:
    """Checks that labels can be mixed where images are.

    Args:
        augment: Same as in `load_classification`.
        one_hot: Whether labels are one-hot vectors.

    Raises:
        ValueError: If not.
    """
    for layer in _layers(augment):
        if isinstance(layer, _MIXING):
            name = type(layer).__name__
            if not one_hot:
                raise ValueError(
                    f"`augment` mixes labels, as {name} does, which needs "
                    f"`one_hot=True`. Received: one_hot={one_hot}"
                )
            # Keras 3.15 fails to mix labels otherwise, or rounds them.
            if layer.compute_dtype != "float32":
                raise ValueError(
                    f"`augment` must have {name} made with dtype='float32', so that it "
                    f"can mix labels. Received: {name} with {layer.dtype_policy}"
                )
            if all(layer is not step for step in _steps(augment)):
                raise ValueError(
                    f"`augment` must have {name} in a keras.layers.Pipeline, so that "
                    f"it gets the labels. Received: {augment!r}"
                )


def check_boxes_follow(augment: Callable | None) -> None:
    """Checks that boxes stay around their objects.

    Args:
        augment: Same as in `load_detection`.

    Raises:
        ValueError: If a layer misplaces them or takes another format.
    """
    for layer in _layers(augment):
        if isinstance(layer, _MISPLACE_BOXES):
            raise ValueError(
                "`augment` must keep boxes around their objects, which "
                f"{type(layer).__name__} does not. Received: {augment!r}"
            )
        # Custom layers may lack the attribute.
        box_format = getattr(layer, "bounding_box_format", "rel_xyxy")
        if box_format != "rel_xyxy" and not isinstance(layer, _COLOR_ONLY):
            raise ValueError(
                "`augment` must be made with bounding_box_format='rel_xyxy'. "
                f"Received: {type(layer).__name__} with {box_format!r}"
            )


def check_masks_follow(augment: Callable | None) -> None:
    """Checks that masks stay on their objects and are not blended.

    Args:
        augment: Same as in `load_segmentation`.

    Raises:
        ValueError: If a layer misplaces or blends them.
    """
    for layer in _layers(augment):
        if isinstance(layer, _BLEND_MASKS):
            raise ValueError(
                "`augment` must not blend masks, which "
                f"{type(layer).__name__} does. Received: {augment!r}"
            )
        if isinstance(layer, _MISPLACE_MASKS):
            raise ValueError(
                "`augment` must keep masks on their objects, which "
                f"{type(layer).__name__} does not. Received: {augment!r}"
            )


def _call(step: Callable, data):
    return step(data, training=True) if isinstance(step, keras.Layer) else step(data)


def _steps(augment: Callable | None) -> Iterator[Callable]:
    """Yields the layers in the order of their calls."""
    if isinstance(augment, keras.layers.Pipeline | keras.Sequential):
        for layer in augment.layers:
            yield from _steps(layer)
    elif augment is not None:
        yield augment


def _layers(augment: Callable | None) -> Iterator[keras.Layer]:
    """Yields all layers, also those inside other layers."""
    for layer in getattr(augment, "layers", [augment]):
        if layer is not augment and hasattr(layer, "layers"):
            yield from _layers(layer)
        elif isinstance(layer, keras.Layer):
            yield layer
