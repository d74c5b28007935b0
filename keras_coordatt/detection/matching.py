"""What each default box is to find, while training."""

from keras import ops

from keras_coordatt.detection.default_boxes import encode, iou


def training_targets(default_boxes, boxes, labels):
    """Gives what an SSD should have put out.

    Args:
        default_boxes: `(A, 4)`.
        boxes: `(N, M, 4)`, the objects.
        labels: `(N, M)`, their classes, and -1 where there is none.

    Returns:
        Offsets `(N, A, 4)`, and classes `(N, A)`: 1 is the class 0, and 0 is the
        background, whose offsets mean nothing.
    """
    # There is something to choose from, even in a batch without any object.
    boxes = ops.pad(ops.cast(boxes, "float32"), [[0, 0], [0, 1], [0, 0]])
    labels = ops.pad(ops.cast(labels, "int32"), [[0, 0], [0, 1]], constant_values=-1)
    index = match(default_boxes, boxes, labels)
    found, index = index >= 0, ops.maximum(index, 0)
    offsets = encode(ops.take_along_axis(boxes, index[..., None], 1), default_boxes)
    classes = ops.where(found, ops.take_along_axis(labels, index, 1) + 1, 0)
    return offsets, classes


def match(default_boxes, boxes, labels, threshold=0.5):
    """Finds the object that each default box is to find.

    First each object gets the default box that overlaps it most: of all pairs, that of
    the highest IoU is made, then that of the highest among the rest, and so on, so
    that no object takes another's. Then every other default box gets the object that
    it overlaps most, if the IoU is at least the threshold.

    Args:
        default_boxes: `(A, 4)`.
        boxes: `(N, M, 4)`, the objects.
        labels: `(N, M)`, -1 where there is none.
        threshold: Defaults to 0.5, SSD's.

    Returns:
        Index of the object, `(N, A)`, or -1.
    """
    overlap = iou(default_boxes, boxes)
    # What overlaps with nothing matches nothing: padding, or a box without an area.
    overlap = ops.where(ops.expand_dims(labels >= 0, 1), overlap, 0.0)
    nearest = _argmax(overlap, axis=2)
    near = ops.where(ops.max(overlap, axis=2) >= threshold, nearest, -1)

    box_numbers = ops.arange(len(default_boxes), dtype="int32")[:, None]
    object_numbers = ops.arange(ops.shape(boxes)[1], dtype="int32")

    def unfinished(rest, _):
        return ops.any(rest > 0)

    def match_mutual(rest, owner):
        """Makes the pairs who are each other's best; that of the highest IoU is one."""
        best_object, best_box = _argmax(rest, axis=2), _argmax(rest, axis=1)
        pairs = ops.logical_and(
            best_object[:, :, None] == object_numbers,
            best_box[:, None, :] == box_numbers,
        )
        pairs = ops.logical_and(pairs, rest > 0)
        taken, settled = ops.any(pairs, axis=2), ops.any(pairs, axis=1)
        done = ops.logical_or(taken[:, :, None], settled[:, None, :])
        return ops.where(done, 0.0, rest), ops.where(taken, best_object, owner)

    nobody = ops.full_like(near, -1)
    _, owner = ops.while_loop(unfinished, match_mutual, (overlap, nobody))
    return ops.where(owner >= 0, owner, near)


def _argmax(x, axis):
    return ops.cast(ops.argmax(x, axis=axis), "int32")
