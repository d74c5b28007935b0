"""Atrous convolution for dense heads: small feature maps lie between its positions."""

import keras
from keras import ops


@keras.saving.register_keras_serializable("keras_coordatt")
class Conv2D(keras.layers.Conv2D):
    """Dilated convolution that skips positions that can only fall on padding.

    If the dilation is at least as large as the feature map, only the middle row, or
    column, of the kernel ever meets a value. `keras.layers.Conv2D` multiplies the rest
    by zeros: 8 of 9 products of a 3x3 kernel, and TensorFlow, which makes the feature
    map larger for a dilation, many more. The output and the gradients are the same.

    The name is that of Keras's class, because Keras names the weights in a file by it:
    weights of a network with either class fit the other.

    Args:
        filters, kernel_size, **kwargs: Same as in `keras.layers.Conv2D`.

    Call arguments:
        inputs: `(N, H, W, C)`, or `(N, C, H, W)` with `"channels_first"`.

    Example:

    >>> layer = Conv2D(8, 3, padding="same", dilation_rate=18)
    >>> layer(np.random.rand(1, 14, 14, 4)).shape  # computed as a 1x1 convolution
    (1, 14, 14, 8)
    """

    def convolution_op(self, inputs, kernel):
        first = 2 if self.data_format == "channels_first" else 1
        middle, dilation = [slice(None), slice(None)], list(self.dilation_rate)
        for i, (length, stride) in enumerate(zip(self.kernel_size, self.strides)):
            side = inputs.shape[first + i]
            centered = self.padding == "same" and stride == 1 and length % 2 == 1
            if centered and side is not None and dilation[i] >= side:
                middle[i] = slice(length // 2, length // 2 + 1)
                dilation[i] = 1
        return ops.conv(
            inputs,
            kernel[tuple(middle)],
            self.strides,
            self.padding,
            self.data_format,
            tuple(dilation),
        )
