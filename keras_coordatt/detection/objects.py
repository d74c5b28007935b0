"""Checks of the boxes and labels that a detector is trained on."""

import keras
import numpy as np


def check_objects(y, classes: int | None = None, name: str = "y") -> None:
    """Checks the boxes and labels of a batch.

    Args:
        y: A dict of `"boxes"`, `(N, M, 4)`, and `"labels"`, `(N, M)`.
        classes: Number of classes, without the background; `None` if unknown.
        name: Name of the argument, for the error.

    Raises:
        ValueError: If `y` isn't such a dict, a label is not an integer from -1 to
            `classes - 1`, or the box of an object is not `"rel_xyxy"`.
    """
    check_keys(y)
    boxes = np.asarray(keras.ops.convert_to_numpy(y["boxes"]), "float64")
    labels = np.asarray(keras.ops.convert_to_numpy(y["labels"]))
    if boxes.shape != (*labels.shape, 4) or labels.ndim != 2:
        raise ValueError(
            "`y` must have 'boxes' of shape (N, M, 4) and 'labels' of shape (N, M). "
            f"Received: {boxes.shape} and {labels.shape}"
        )
    wrong = (labels < -1) | (labels != np.floor(labels))
    upper = ""
    if classes is not None:
        wrong |= labels >= classes
        upper = f" to {classes - 1}, as the model has {classes} classes"
    if wrong.any():
        found = np.unique(labels[wrong])
        raise ValueError(
            f"`{name}['labels']` must be integers from 0{upper}, or -1 where there is no "
            f"object. Received: {', '.join(map(str, found[:5].tolist()))}"
        )
    boxes = boxes[labels >= 0]
    # Boxes may reach out of the image, by less than its size.
    inside = (boxes > -1).all(-1) & (boxes < 2).all(-1)
    wrong = ~inside | (boxes[:, :2] > boxes[:, 2:]).any(-1)
    if wrong.any():
        raise ValueError(
            f"`{name}['boxes']` must be (x1, y1, x2, y2) as fractions of the image's width "
            "and height ('rel_xyxy'), with x1 <= x2 and y1 <= y2; "
            "`keras.utils.bounding_boxes.convert_format` converts other formats. "
            f"Received: {boxes[wrong][0].tolist()}"
        )


def check_keys(y) -> None:
    """Checks that the targets are a dict of boxes and labels."""
    if not isinstance(y, dict) or not {"boxes", "labels"} <= set(y):
        raise ValueError(
            "`y` must be a dict of 'boxes', (N, M, 4), and 'labels', (N, M). "
            f"Received: {type(y) if not isinstance(y, dict) else list(y)}"
        )


def check_ranks(y) -> None:
    """Checks the ranks of boxes and labels, as far as a graph knows them."""
    ranks = [keras.ops.ndim(y[name]) for name in ("boxes", "labels")]
    if None not in ranks and ranks != [3, 2]:
        raise ValueError(
            "`y` must have 'boxes' of shape (N, M, 4) and 'labels' of shape (N, M). "
            f"Received: {ranks[0]} and {ranks[1]} axes"
        )
