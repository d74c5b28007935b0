"""Galleries: pictures with predictions, detections, masks and attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from keras_coordatt.detection.objects import check_objects
from keras_coordatt.record import IGNORED
from keras_coordatt.validation import (
    MAX_CLASSES,
    check_array,
    check_mapping,
    check_number,
    check_positive_int,
    check_sequence,
)
from keras_coordatt.visualize.canvas import SIDE, add_legend, picture_grid
from keras_coordatt.visualize.overlays import (
    check_pictures,
    check_range,
    class_color,
    draw_boxes,
    draw_masks,
    overlay,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike

# Least width or height of a picture that boxes are drawn on, in pixels
DRAWN_SIDE = 400
WHITE = (255, 255, 255)


def plot_gallery(
    pictures: ArrayLike,
    titles: Sequence | None = None,
    *,
    wrong: Sequence[bool] | None = None,
    columns: int = 8,
) -> Figure:
    """Plots pictures in rows.

    Args:
        pictures: Array `(N, H, W, 3)` with values in [0, 255].
        titles: One title per picture, such as a class name. Defaults to none.
        wrong: Whether each picture's title is red. Defaults to black titles.
        columns: Pictures per row. Defaults to 8.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ValueError: If `titles` or `wrong` are not one per picture.

    Example:

    >>> plot_gallery(pictures, predictions, wrong=predictions != labels)
    """
    pictures = check_pictures(pictures)
    check_positive_int("columns", columns)
    if titles is not None:
        titles = check_sequence("titles", titles, len(pictures))
    if wrong is not None:
        check_sequence("wrong", wrong, len(pictures))
        wrong = check_array("wrong", wrong, 1)
    figure, axes = picture_grid(pictures, columns)
    for i, (axis, picture) in enumerate(zip(axes, pictures)):
        axis.imshow(picture / 255)
        if titles is not None:
            color = "red" if wrong is not None and wrong[i] else "black"
            axis.set_title(str(titles[i]), color=color, fontsize=9)
    return figure


def plot_detections(
    pictures: ArrayLike,
    detections: Mapping,
    labels: Sequence[str] | None = None,
    *,
    truth: Mapping | None = None,
    score_threshold: float = 0.0,
    columns: int = 4,
) -> Figure:
    """Draws detected boxes with their classes and scores.

    Args:
        pictures: Array `(N, H, W, 3)` with values in [0, 255].
        detections: Outputs of a model from `SSDLite.detector`: a dict of `"boxes"`,
            `(N, K, 4)`, `"rel_xyxy"`, `"labels"`, `(N, K)`, -1 after the last, and,
            where known, `"scores"`, `(N, K)`.
        labels: Class names. Defaults to their numbers.
        truth: True boxes and labels in the same format, drawn in white under the
            detections. Defaults to none.
        score_threshold: Detections with a lower score aren't drawn. Defaults to 0.
        columns: Pictures per row. Defaults to 4.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ValueError: If the boxes don't have such shapes, or are not `"rel_xyxy"`.
        ImportError: If OpenCV, with which Keras draws boxes, isn't installed.

    Example:

    >>> found = model.detector(score_threshold=0.5).predict(images)
    >>> plot_detections(pictures, found, labels)
    """
    pictures = check_pictures(pictures)
    check_positive_int("columns", columns)
    check_number("score_threshold", score_threshold, 0, 1, closed=True)
    found = _objects("detections", detections, len(pictures))
    real = _objects("truth", truth, len(pictures)) if truth is not None else None
    if labels is not None:
        labels = check_sequence("labels", labels)
        top = found["labels"].astype(int).max(initial=-1)
        if top >= len(labels):
            raise ValueError(
                f"`labels` must have a name for each of the {top + 1} classes in "
                f"`detections`. Received: {labels!r}"
            )
    figure, axes = picture_grid(pictures, columns, SIDE * 1.5)
    # Lines are a pixel wide or more, so small pictures are enlarged.
    scale = -(-DRAWN_SIDE // max(pictures.shape[1:3]))
    pictures = pictures.astype("uint8").repeat(scale, 1).repeat(scale, 2)
    height, width = pictures.shape[1:3]
    size = width, height, width, height
    for i, (axis, picture) in enumerate(zip(axes, pictures)):
        if real is not None:
            boxes, classes, _ = _chosen(real, i)
            picture = draw_boxes(picture, boxes * size, classes, color=WHITE)
        boxes, classes, scores = _chosen(found, i, score_threshold)
        picture = draw_boxes(picture, boxes * size, classes)
        axis.imshow(picture)
        for (x, y, *_), label, score in zip(boxes * size, classes, scores):
            text = str(labels[label] if labels is not None else label)
            # Keras would write it in pixels, and only ASCII letters.
            axis.text(
                max(x, 0),
                y,
                text if np.isnan(score) else f"{text} {score:.2f}",
                fontsize=7,
                color="white",
                va="bottom" if y > height / 8 else "top",
                bbox={
                    "facecolor": np.divide(class_color(label), 255),
                    "edgecolor": "none",
                    "pad": 0.8,
                },
            )
    if real is not None:
        above = f" of score above {score_threshold:g}" if score_threshold else ""
        figure.supxlabel(f"colored: detections{above}; white: truth", fontsize=9)
    return figure


def plot_masks(
    pictures: ArrayLike,
    masks: ArrayLike,
    labels: Sequence[str] | int,
    *,
    background: int | None = None,
    columns: int = 4,
) -> Figure:
    """Lays segmentation masks over pictures, with a legend of their classes.

    Args:
        pictures: Array `(N, H, W, 3)` with values in [0, 255].
        masks: Integer array `(N, H, W)`. Negative values and
            `keras_coordatt.data.IGNORED` aren't drawn.
        labels: Class names, or the number of classes.
        background: Class that isn't drawn. Defaults to `None`: all are drawn.
        columns: Pictures per row. Defaults to 4.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ValueError: If `draw_masks` refuses the masks, or a class has no name.

    Example:

    >>> masks = model.predict(images).argmax(axis=-1)
    >>> plot_masks(pictures, masks, classes, background=0)
    """
    from matplotlib.patches import Patch

    if isinstance(labels, np.integer):
        labels = int(labels)
    if isinstance(labels, int):
        labels = range(check_positive_int("labels", labels, MAX_CLASSES))
    names = [str(x) for x in check_sequence("labels", labels)]
    if not names:
        raise ValueError(f"`labels` must have a class. Received: {labels!r}")
    drawn = draw_masks(pictures, masks, len(names), background=background)
    check_positive_int("columns", columns)
    masks = check_array("masks", masks)
    top = masks[masks != IGNORED].max(initial=0)
    if top >= len(names):
        raise ValueError(
            f"`labels` must have a name for each of the {top + 1} classes in `masks`. "
            f"Received: {labels!r}"
        )
    figure, axes = picture_grid(drawn, columns, SIDE * 1.5)
    for axis, picture in zip(axes, drawn):
        axis.imshow(picture)
    present = [i for i in range(len(names)) if i != background and np.any(masks == i)]
    if present:
        legend = add_legend(
            figure,
            [Patch(color=np.divide(class_color(i), 255)) for i in present],
            [names[i] for i in present],
            loc="outside right upper",
            fontsize=8,
        )
        # Widen the figure for the legend, which would otherwise shrink the pictures.
        width = legend.get_window_extent().width / figure.dpi
        figure.set_figwidth(figure.get_figwidth() + width)
    return figure


def plot_attention(
    pictures: ArrayLike, gates: Mapping, *, title: str = "", columns: int = 4
) -> Figure:
    """Draws the gates of an attention layer over each picture.

    The gates' product, averaged over the channels, is laid over the picture. Beside it
    stand the gates themselves, averaged over the channels: those of the rows on the
    right, those of the columns below. Squeeze-and-excitation and CBAM have neither.

    Args:
        pictures: Array `(N, H, W, 3)` with values in [0, 255].
        gates: One of the dicts that `attention_maps` returns.
        title: Title of the figure. Defaults to none.
        columns: Pictures per row. Defaults to 4.

    Returns:
        A `matplotlib.figure.Figure`. All pictures share the color bar.

    Raises:
        ValueError: If the gates are not those of as many pictures.

    Example:

    >>> maps = attention_maps(model, images)
    >>> plot_attention(pictures, maps["block_2_attention"])
    """
    import matplotlib

    pictures = check_pictures(pictures)
    check_positive_int("columns", columns)
    arrays = {
        key: check_array(f"gates[{key!r}]", x, axes)
        for key, axes in (("product", 4), ("height", 3), ("width", 3))
        if (x := check_mapping("gates", gates).get(key)) is not None
    }
    if "product" not in arrays or any(len(x) != len(pictures) for x in arrays.values()):
        raise ValueError(
            f"`gates` must be the 'product' and the gates of {len(pictures)} pictures, "
            f"such as from `attention_maps`. Received: {gates!r}"
        )
    for key, x in arrays.items():
        check_range(f"gates[{key!r}]", x)
    means = {key: x.mean(axis=-1) for key, x in arrays.items()}
    heat = means.pop("product")
    low, high = float(heat.min()), float(heat.max())
    # A gate that is the same everywhere is one color, not noise.
    if high - low < 1e-3:
        low, high = low - 5e-4, high + 5e-4
    drawn = overlay(pictures, heat, alpha=0.65, limits=(low, high))
    figure, axes = picture_grid(drawn, columns, SIDE * 1.8)
    height, width = drawn.shape[1:3]
    for i, (axis, picture) in enumerate(zip(axes, drawn)):
        axis.imshow(picture)
        if "height" in means:
            side = axis.inset_axes((1.04, 0, 0.25, 1))
            rows = means["height"]
            side.plot(rows[i], _centers(rows.shape[1], height), lw=1)
            side.set(ylim=(height - 0.5, -0.5), xlim=_limits(rows), yticks=[])
            side.set_xticks(*_ends(rows), rotation=90)
            side.tick_params(labelsize=6)
            side.set_title("rows", fontsize=7)
        if "width" in means:
            below = axis.inset_axes((0, -0.29, 1, 0.25))
            values = means["width"]
            below.plot(_centers(values.shape[1], width), values[i], lw=1)
            below.set(xlim=(-0.5, width - 0.5), ylim=_limits(values), xticks=[])
            below.set_yticks(*_ends(values))
            below.tick_params(labelsize=6)
            below.set_xlabel("columns", fontsize=7)
    figure.colorbar(
        matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(low, high), "viridis"),
        ax=axes,
        label="gate, mean over the channels",
    )
    figure.suptitle(title)
    return figure


def _objects(name, objects, count):
    arrays = {
        key: check_array(f"{name}[{key!r}]", x)
        for key, x in check_mapping(name, objects).items()
    }
    shapes = {key: x.shape for key, x in arrays.items()}
    boxes = shapes.get("boxes", ())
    good = len(boxes) == 3 and boxes[0] == count and boxes[2] == 4
    good = good and all(
        shapes.get(key, boxes[:2]) == boxes[:2] for key in ("labels", "scores")
    )
    if not good or "labels" not in arrays or arrays["labels"].dtype.kind not in "iu":
        raise ValueError(
            f"`{name}` must have boxes, ({count}, K, 4), and labels, ({count}, K), as "
            f"integers. Received: {shapes}"
        )
    check_objects(arrays, name=name)
    return arrays


def _chosen(objects, i, threshold=0):
    """Returns boxes, labels and scores of those to draw; unknown scores are NaN."""
    boxes, labels = objects["boxes"][i], objects["labels"][i]
    scores = (
        objects["scores"][i] if "scores" in objects else np.full(len(labels), np.nan)
    )
    chosen = (labels >= 0) & ~(scores < threshold)
    return boxes[chosen], labels[chosen], scores[chosen]


def _centers(count, size):
    """Returns where the centers of `count` rows or columns lie in `size` pixels."""
    return (np.arange(count) + 0.5) * size / count - 0.5


def _ends(values):
    """Returns the lowest and the highest value as ticks, and their labels."""
    ends = float(values.min()), float(values.max())
    return ends, [f"{x:.3f}" for x in ends]


def _limits(values):
    low, high = float(values.min()), float(values.max())
    margin = max(0.05 * (high - low), 5e-4)
    return low - margin, high + margin
