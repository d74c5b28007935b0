import keras

from keras_coordatt.layers.channel_attention import ChannelAttention


@keras.saving.register_keras_serializable("keras_coordatt")
class SqueezeExcite(ChannelAttention):
    """Squeeze-and-excitation: a gate for every channel, blind to position.

    The map is squeezed to its mean, from which a perceptron with a narrow hidden
    layer makes the gates:

        s[n, c] = mean over h and w of x
        out[n, h, w, c] = x * gate_activation(expand(activation(reduce(s))))[n, c]

    Under a half-precision policy the gates are computed in float32 and then cast.

    Args:
        reduction: Positive integer. The hidden layer has
            `max(1, channels // reduction)` units. Defaults to 16, the SE paper's;
            the coordinate attention paper's networks have 24.
        activation: Activation of the hidden layer. Defaults to `"relu"`.
        gate_activation: Activation that makes the gates. Defaults to
            `"sigmoid"`.
        data_format: `"channels_last"` or `"channels_first"`. Defaults to
            `keras.config.image_data_format()`.
        kernel_initializer: Initializer of the kernels. Defaults to
            `"glorot_uniform"`.
        kernel_regularizer: Regularizer of the kernels, or `None`.
        **kwargs: `name`, `dtype`, `trainable`.

    Input shape:
        `(N, H, W, C)`, or `(N, C, H, W)` with `"channels_first"`. `H` and `W`
        may be unknown.

    Output shape:
        The input's.

    Raises:
        ValueError: if an argument is out of its range, or the input is not a
            floating-point tensor of rank 4 with a known number of channels.

    Example:

    >>> x = np.random.rand(2, 14, 14, 64)
    >>> SqueezeExcite(reduction=16)(x).shape
    (2, 14, 14, 64)

    Reference:
        [Squeeze-and-Excitation Networks](https://arxiv.org/abs/1709.01507)
        (CVPR 2018)
    """

    def _squeeze(self, x):
        return [self._mean(x, self._spatial_axes)]
