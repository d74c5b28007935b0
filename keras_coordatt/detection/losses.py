"""SSD's loss: where the matched boxes are, and what all boxes hold."""

import keras
from keras import ops

# Boxes of the background that count, those that look least like it: as many for each
# match, and a few in an image without any.
NEGATIVES_PER_MATCH = 3
MIN_NEGATIVES = 3


def multibox_loss(offsets, logits, target_offsets, target_classes):
    """SSD's loss of the boxes and of the classes.

    The first is the smooth L1 loss of the offsets of matched boxes; the second is the
    cross-entropy of these, and of the background boxes with the highest: three times
    as many in each image, and at least three, as in SSDLite. Both are sums over the
    batch, over its number of matches.

    Args:
        offsets: `(N, A, 4)`.
        logits: `(N, A, classes + 1)`, the background first.
        target_offsets: `(N, A, 4)`. Those of the background don't count.
        target_classes: `(N, A)`, 0 for the background.

    Returns:
        `(box_loss, class_loss)`, scalars.

    Reference:
        [SSD: Single Shot MultiBox Detector](https://arxiv.org/abs/1512.02325)
        (ECCV 2016), section 2.2
    """
    offsets, logits = ops.cast(offsets, "float32"), ops.cast(logits, "float32")
    matched = target_classes > 0
    matches = ops.sum(ops.cast(matched, "int32"), axis=1, keepdims=True)

    # Keras's mean over the coordinates is a quarter of the sum.
    box_losses = 4 * keras.losses.huber(target_offsets, offsets)
    class_losses = ops.sparse_categorical_crossentropy(
        target_classes, logits, from_logits=True
    )
    hardness = ops.where(matched, -1.0, ops.stop_gradient(class_losses))
    rank = ops.argsort(ops.argsort(-hardness, axis=1), axis=1)
    count = ops.maximum(NEGATIVES_PER_MATCH * matches, MIN_NEGATIVES)
    counts = ops.logical_or(matched, ops.cast(rank, "int32") < count)

    total = ops.cast(ops.maximum(ops.sum(matches), 1), "float32")
    box_loss = ops.sum(ops.where(matched, box_losses, 0.0)) / total
    class_loss = ops.sum(ops.where(counts, class_losses, 0.0)) / total
    return box_loss, class_loss


def total_loss(*losses):
    """Adds up losses, each a scalar over the batch, for Keras's optimizers.

    On each replica of a distribution strategy, Keras divides a loss by the number of
    replicas, as their gradients are added up; only its own reduction knows how many.
    """
    return MeanLoss()(0.0, ops.reshape(sum(losses), (1,)))


class MeanLoss(keras.losses.Loss):
    def call(self, y_true, y_pred):
        return y_pred
