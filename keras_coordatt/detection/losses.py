"""SSD's loss: of the offsets of matched boxes, and of the classes of all boxes."""

import keras
from keras import ops

from keras_coordatt.distribution import sum_over_replicas

# Hard negative mining: negatives kept per positive, and the minimum per image
NEGATIVES_PER_MATCH = 3
MIN_NEGATIVES = 3


def multibox_loss(offsets, logits, target_offsets, target_classes, image_weights=None):
    """Computes SSD's losses of boxes and classes.

    The box loss is the smooth L1 loss of the offsets of matched boxes. The class loss
    is the cross-entropy of the matched boxes and of the hardest negatives: per image,
    three times as many as matched boxes, and at least three, as in SSDLite. Both are
    summed over the batch and divided by its number of matched boxes, on all replicas.

    Args:
        offsets: `(N, A, 4)`.
        logits: `(N, A, classes + 1)`, the background first.
        target_offsets: `(N, A, 4)`, unused for the background.
        target_classes: `(N, A)`, 0 for the background.
        image_weights: `(N,)`, by which the losses of each image are multiplied.
            Defaults to 1.

    Returns:
        `(box_loss, class_loss)`, scalars.

    Reference:
        [SSD: Single Shot MultiBox Detector](https://arxiv.org/abs/1512.02325)
        (ECCV 2016), section 2.2
    """
    offsets, logits = ops.cast(offsets, "float32"), ops.cast(logits, "float32")
    matched = target_classes > 0
    matches = ops.sum(ops.cast(matched, "int32"), axis=1, keepdims=True)

    # Keras averages over the four coordinates, SSD sums.
    box_losses = 4 * keras.losses.huber(target_offsets, offsets)
    class_losses = ops.sparse_categorical_crossentropy(
        target_classes, logits, from_logits=True
    )
    hardness = ops.where(matched, -1.0, ops.stop_gradient(class_losses))
    rank = ops.argsort(ops.argsort(-hardness, axis=1), axis=1)
    count = ops.maximum(NEGATIVES_PER_MATCH * matches, MIN_NEGATIVES)
    counts = ops.logical_or(matched, ops.cast(rank, "int32") < count)

    if image_weights is not None:
        weights = ops.cast(ops.reshape(image_weights, (-1, 1)), "float32")
        box_losses, class_losses = box_losses * weights, class_losses * weights
    # Per replica, as `total_loss` divides by their number.
    total = sum_over_replicas(ops.cast(ops.sum(matches), "float32"))
    total = ops.maximum(total, 1.0) / sum_over_replicas(ops.ones(()))
    box_loss = ops.sum(ops.where(matched, box_losses, 0.0)) / total
    class_loss = ops.sum(ops.where(counts, class_losses, 0.0)) / total
    return box_loss, class_loss


def total_loss(*losses):
    """Adds up scalar losses, through Keras's own reduction.

    The reduction divides by the number of replicas of a distribution strategy, which
    adds up their gradients.
    """
    return MeanLoss()(0.0, ops.reshape(sum(losses), (1,)))


class MeanLoss(keras.losses.Loss):
    """Loss whose values are the predictions, for Keras to reduce."""

    def call(self, y_true, y_pred):
        return y_pred
