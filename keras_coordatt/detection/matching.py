"""Training targets: assigns objects to default boxes."""

from keras import ops

from keras_coordatt.detection.default_boxes import encode, iou


def training_targets(default_boxes, boxes, labels):
    """Returns the SSD training targets.

    Args:
        default_boxes: `(A, 4)`.
        boxes: `(N, M, 4)`, the boxes of the objects.
        labels: `(N, M)`, their classes, or -1 for padding.

    Returns:
        `(offsets, classes)`: `(N, A, 4)` and `(N, A)`. Class 0 is the background, whose
        offsets are arbitrary, and class 1 the label 0.
    """
    # One more padding row, so that a batch with M = 0 has one to index.
    boxes = ops.pad(ops.cast(boxes, "float32"), [[0, 0], [0, 1], [0, 0]])
    labels = ops.pad(ops.cast(labels, "int32"), [[0, 0], [0, 1]], constant_values=-1)
    index = match(default_boxes, boxes, labels)
    found, index = index >= 0, ops.maximum(index, 0)
    offsets = encode(ops.take_along_axis(boxes, index[..., None], 1), default_boxes)
    classes = ops.where(found, ops.take_along_axis(labels, index, 1) + 1, 0)
    return offsets, classes


def match(default_boxes, boxes, labels, threshold=0.5):
    """Assigns an object to each default box, or none.

    First every object gets one default box: the pair with the highest IoU is matched,
    then the pair with the highest IoU among the remaining objects and default boxes,
    and so on. Then each remaining default box is matched to the object with the highest
    IoU, if that is at least the threshold.

    Args:
        default_boxes: `(A, 4)`.
        boxes: `(N, M, 4)`, the boxes of the objects.
        labels: `(N, M)`, their classes, or -1 for padding.
        threshold: Minimum IoU. Defaults to 0.5, as in SSD.

    Returns:
        Index of the object, `(N, A)`, or -1 for the background.
    """
    overlap = iou(default_boxes, boxes)
    # Padding matches nothing, like a box without an area.
    overlap = ops.where(ops.expand_dims(labels >= 0, 1), overlap, 0.0)
    best = _argmax(overlap, axis=2)
    matched = ops.where(ops.max(overlap, axis=2) >= threshold, best, -1)

    box_numbers = ops.arange(len(default_boxes), dtype="int32")[:, None]
    object_numbers = ops.arange(ops.shape(boxes)[1], dtype="int32")

    def unfinished(remaining, _):
        return ops.any(remaining > 0)

    def match_mutual(remaining, owner):
        """Matches all pairs that are each other's best, so at least the best pair."""
        best_object, best_box = _argmax(remaining, axis=2), _argmax(remaining, axis=1)
        pairs = ops.logical_and(
            best_object[:, :, None] == object_numbers,
            best_box[:, None, :] == box_numbers,
        )
        pairs = ops.logical_and(pairs, remaining > 0)
        taken, settled = ops.any(pairs, axis=2), ops.any(pairs, axis=1)
        done = ops.logical_or(taken[:, :, None], settled[:, None, :])
        return ops.where(done, 0.0, remaining), ops.where(taken, best_object, owner)

    nothing = ops.full_like(matched, -1)
    _, owner = ops.while_loop(unfinished, match_mutual, (overlap, nothing))
    return ops.where(owner >= 0, owner, matched)


def _argmax(x, axis):
    return ops.cast(ops.argmax(x, axis=axis), "int32")
