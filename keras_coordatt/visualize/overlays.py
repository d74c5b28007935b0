"""Pictures with something laid over them, as NumPy arrays of bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import keras
import numpy as np
from keras import ops

from keras_coordatt.validation import (
    MAX_CLASSES,
    check_array,
    check_fraction,
    check_number,
    check_positive_int,
    check_sequence,
)

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

# matplotlib's tab20, which prediction does without: the saturated colors first, then the
# pale ones.
COLORS = bytes.fromhex(
    "1f77b4 ff7f0e 2ca02c d62728 9467bd 8c564b e377c2 7f7f7f bcbd22 17becf "
    "aec7e8 ffbb78 98df8a ff9896 c5b0d5 c49c94 f7b6d2 c7c7c7 dbdb8d 9edae5"
)


def overlay(
    pictures: ArrayLike,
    heat: ArrayLike,
    *,
    alpha: float = 0.5,
    colormap: str = "viridis",
    limits: tuple[float, float] | None = None,
) -> np.ndarray:
    """Lays heat maps over pictures.

    Args:
        pictures: Array `(N, H, W, 3)` with values in [0, 255].
        heat: Array `(N, h, w)`, such as from `grad_cam`; resized to the pictures.
        alpha: Opacity of the heat maps, in [0, 1]. Defaults to 0.5.
        colormap: Name of a matplotlib colormap. Defaults to `"viridis"`, from dark blue
            for the lowest value to yellow for the highest.
        limits: Lowest and highest value of the colormap. Defaults to those of each heat
            map, so that colors can't be compared from picture to picture.

    Returns:
        NumPy array of bytes, `(N, H, W, 3)`.

    Raises:
        ValueError: If an argument has another shape or is out of its range.

    Example:

    >>> heat = grad_cam(model, preprocess_input(pictures))
    >>> keras.utils.save_img("heat.png", overlay(pictures, heat)[0])
    """
    import matplotlib

    pictures = check_pictures(pictures)
    alpha = check_fraction("alpha", alpha)
    if not isinstance(colormap, str) or colormap not in matplotlib.colormaps:
        raise ValueError(
            "`colormap` must be the name of a matplotlib colormap. "
            f"Received: {colormap!r}"
        )
    heat = check_array("heat", heat).astype("float64")
    if heat.ndim != 3 or len(heat) != len(pictures) or not heat.size:
        raise ValueError(
            f"`heat` must be of shape ({len(pictures)}, h, w), one heat map per "
            f"picture. Received: shape={heat.shape}"
        )
    check_range("heat", heat)
    if limits is None:
        low, high = (f(heat, axis=(1, 2), keepdims=True) for f in (np.min, np.max))
    else:
        low, high = (
            check_number("limits", x, -math.inf)
            for x in check_sequence("limits", limits, 2)
        )
        if low >= high:
            raise ValueError(
                "`limits` must be two numbers, the lower one first. "
                f"Received: {limits!r}"
            )
    spread = high - low
    # A heat map that is the same everywhere has the lowest color.
    heat = (heat - low) / np.where(spread > 0, spread, 1)
    heat = ops.image.resize(
        heat[..., None].astype("float32"),
        pictures.shape[1:3],
        data_format="channels_last",
    )
    heat = ops.convert_to_numpy(heat)[..., 0]
    colors = 255 * matplotlib.colormaps[colormap](np.clip(heat, 0, 1))[..., :3]
    return _bytes((1 - alpha) * pictures + alpha * colors)


def draw_masks(
    pictures: ArrayLike,
    masks: ArrayLike,
    classes: int,
    *,
    background: int | None = None,
    alpha: float = 0.6,
) -> np.ndarray:
    """Lays segmentation masks over pictures, with one color per class.

    Args:
        pictures: Array `(N, H, W, 3)` with values in [0, 255].
        masks: Integer array `(N, H, W)` or `(N, H, W, 1)`. Values that aren't a class,
            such as `keras_coordatt.data.IGNORED`, are left as they are.
        classes: Number of classes.
        background: Class that is left as it is too. Defaults to `None`: all are drawn.
        alpha: Opacity of the masks, in [0, 1]. Defaults to 0.6.

    Returns:
        NumPy array of bytes, `(N, H, W, 3)`.

    Raises:
        ValueError: If an argument has another shape or is out of its range.

    Example:

    >>> masks = model.predict(images).argmax(axis=-1)
    >>> draw_masks(pictures, masks, classes=11, background=0)
    """
    pictures = check_pictures(pictures)
    alpha = check_fraction("alpha", alpha)
    check_positive_int("classes", classes, MAX_CLASSES)
    if background is not None:
        check_positive_int("background", background, zero=True)
    masks = check_array("masks", masks)
    if masks.ndim == 4 and masks.shape[-1] == 1:
        masks = masks[..., 0]
    if masks.dtype.kind not in "iu" or masks.shape != pictures.shape[:3]:
        raise ValueError(
            f"`masks` must be integers of shape {pictures.shape[:3]}, as the pictures. "
            f"Received: dtype={masks.dtype}, shape={masks.shape}"
        )
    drawn = (masks >= 0) & (masks < classes)
    if background is not None:
        drawn &= masks != background
    colored = keras.visualization.draw_segmentation_masks(
        pictures,
        np.where(drawn, masks, 0).astype("int32")[..., None],
        num_classes=classes,
        color_mapping={i: class_color(i) for i in range(classes)},
        alpha=alpha,
        data_format="channels_last",
    )
    return np.where(drawn[..., None], colored, _bytes(pictures))


def draw_boxes(
    picture: np.ndarray,
    boxes: ArrayLike,
    labels: Sequence[int],
    names: Mapping[int, str] | None = None,
    scores: ArrayLike | None = None,
    color: tuple[int, int, int] | None = None,
) -> np.ndarray:
    """Draws boxes, `"xyxy"` in pixels, on a picture of bytes, in the classes' colors.

    `names` and `scores` are written at the boxes. `color` is for all classes.
    """
    side = min(picture.shape[:2])
    # Clip boxes to the last pixels, so that edges on the border are visible.
    edge = [picture.shape[1] - 1, picture.shape[0] - 1] * 2
    boxes, labels = np.minimum(np.reshape(boxes, (-1, 4)), edge), np.asarray(labels)
    drawn = picture[None].copy()
    # Keras draws the boxes of a call in one color.
    for label in np.unique(labels):
        same = labels == label
        objects = {"boxes": boxes[None, same], "labels": labels[None, same]}
        if scores is not None:
            objects["confidences"] = np.asarray(scores)[None, same]
        drawn = keras.visualization.draw_bounding_boxes(
            drawn,
            objects,
            bounding_box_format="xyxy",
            class_mapping=names,
            color=color or class_color(label),
            line_thickness=max(1, round(side / 160)),
            font_scale=max(0.4, side / 800),
            data_format="channels_last",
        )
    return drawn[0]


def class_color(label: int) -> tuple[int, int, int]:
    """Returns the color of a class, as bytes: one of twenty."""
    start = 3 * label % len(COLORS)
    red, green, blue = COLORS[start : start + 3]
    return red, green, blue


def check_pictures(pictures) -> np.ndarray:
    """Returns pictures as a float32 array, or raises an error about their shape."""
    pictures = check_array("pictures", pictures)
    dtype = pictures.dtype
    pictures = pictures.astype("float32")
    if pictures.ndim != 4 or pictures.shape[-1] not in (1, 3) or not len(pictures):
        raise ValueError(
            "`pictures` must be of shape (N, H, W, 3), values in [0, 255]. "
            f"Received: shape={pictures.shape}"
        )
    # Normalized inputs of a network, and truth values, would show as black.
    low, high = pictures.min(), pictures.max()
    if not 0 <= low <= high <= 255 or (dtype.kind not in "iu" and 0 < high <= 1):
        raise ValueError(
            "`pictures` must have values in [0, 255], as they were before they were "
            f"normalized. Received: dtype={dtype}, values in [{low}, {high}]"
        )
    return np.broadcast_to(pictures, (*pictures.shape[:3], 3))


def check_range(name, values, low=-math.inf, high=math.inf):
    """Checks that the values of an array are finite and in `[low, high]`."""
    wrong = values[~(np.isfinite(values) & (low <= values) & (values <= high))]
    if wrong.size:
        bounds = f" in [{low:g}, {high:g}]" if low > -math.inf else ""
        raise ValueError(
            f"`{name}` must have finite values{bounds}. "
            f"Received: {wrong[0]:g} among them"
        )


def _bytes(pictures):
    return np.clip(np.round(pictures), 0, 255).astype("uint8")
