"""Batch normalization for the attention layers: descriptors may have one position."""

import math

import keras
from keras import ops


@keras.saving.register_keras_serializable("keras_coordatt")
class BatchNormalization(keras.layers.BatchNormalization):
    """Batch normalization that a batch of one value per channel doesn't ruin.

    A feature map of one position has one value per channel if the batch is one image.
    Its variance is 0, its normalized value too, and moving statistics that follow it
    make the network useless at inference: PyTorch refuses such a batch. Here it is
    normalized by the moving statistics, which stay as they are. Any other batch is
    normalized exactly as by `keras.layers.BatchNormalization`.

    The name is that of Keras's class, because Keras names the weights in a file by it:
    weights of a network with either class fit the other.

    Args:
        **kwargs: Same as in `keras.layers.BatchNormalization`.

    Call arguments:
        inputs: Tensor of any rank.
        training: Whether to normalize by the statistics of the batch.
        mask: Same as in `keras.layers.BatchNormalization`.

    Example:

    >>> layer = BatchNormalization()
    >>> x = np.full((1, 1, 1, 8), 5.0)
    >>> round(float(layer(x, training=True)[0, 0, 0, 0]), 2)
    5.0
    """

    def call(self, inputs, training=None, mask=None):
        if not training or not self.trainable:
            return super().call(inputs, training=training, mask=mask)
        shape = list(ops.shape(inputs))
        del shape[self.axis]
        known = math.prod(size for size in shape if isinstance(size, int))
        if known > 1 or all(isinstance(size, int) for size in shape):
            return super().call(inputs, training=known > 1, mask=mask)

        # In a TensorFlow graph for batches of any size, compute both and select. Not by
        # `ops.cond`: a distribution strategy can't assign statistics inside it.
        enough = math.prod(shape) > 1
        by_moving = super().call(inputs, training=False, mask=mask)
        # Copies, because TensorFlow reads a variable only when its value is used
        before = [ops.copy(v) for v in self.non_trainable_variables]
        by_batch = super().call(inputs, training=True, mask=mask)
        for variable, value in zip(self.non_trainable_variables, before):
            variable.assign(ops.where(enough, variable, value))
        return ops.where(enough, by_batch, by_moving)
