"""The attention of "Squeeze-and-Excitation Networks", a baseline."""

from collections.abc import Callable

import keras

from keras_coordatt.layers.channel_attention import ChannelAttention


@keras.saving.register_keras_serializable("keras_coordatt")
class SqueezeExcite(ChannelAttention):
    """Squeeze-and-excitation layer: one gate per channel, the same at every position.

    A perceptron with one narrow hidden layer computes the gates from the mean of each
    channel:

        s[n, c] = mean over h and w of x
        out[n, h, w, c] = x * gate_activation(expand(activation(reduce(s))))[n, c]

    Under a half-precision policy the gates are computed in float32 and then cast.
    PyTorch on a GPU averages the feature map in float32 as it reads it. Elsewhere,
    unless a compiler avoids it, all of it is converted to float32 first.

    Args:
        reduction: Positive integer. The hidden layer has
            `max(1, channels // reduction)` units. Defaults to 16, as in the SE
            paper. The networks of the coordinate attention paper use 24.
        activation: Activation of the hidden layer. Defaults to `"relu"`.
        gate_activation: Activation of the gates. Defaults to
            `"sigmoid"`.
        data_format: `"channels_last"` or `"channels_first"`. Defaults to
            `keras.config.image_data_format()`.
        kernel_initializer: Initializer of the kernels. Defaults to
            `"glorot_uniform"`.
        kernel_regularizer: Regularizer of the kernels, or `None`.
        sublayers: Arguments of sublayers that differ from this layer's own, as a dict
            from a sublayer's name to `trainable`, `dtype`, `lora_rank`,
            `lora_alpha` or `quantization_config`. `{"expand": {"trainable": False}}`
            freezes the second dense layer. Defaults to `None`.
        **kwargs: `name`, `dtype`, `trainable`.

    Input shape:
        `(N, H, W, C)`, or `(N, C, H, W)` with `"channels_first"`. `H` and `W`
        may be unknown.

    Output shape:
        Same as the input's.

    Raises:
        ValueError: If an argument is out of its range, or the input is not a
            floating-point tensor of rank 4 with a known number of channels.

    Example:

    >>> x = np.random.rand(2, 14, 14, 64)
    >>> SqueezeExcite(reduction=16)(x).shape
    (2, 14, 14, 64)

    Reference:
        [Squeeze-and-Excitation Networks](https://arxiv.org/abs/1709.01507)
        (CVPR 2018)
    """

    def __init__(
        self,
        reduction: int = 16,
        activation: str | Callable = "relu",
        gate_activation: str | Callable = "sigmoid",
        data_format: str | None = None,
        kernel_initializer: str | keras.initializers.Initializer = "glorot_uniform",
        kernel_regularizer: str | keras.regularizers.Regularizer | None = None,
        sublayers: dict | None = None,
        **kwargs,
    ):
        super().__init__(
            reduction=reduction,
            activation=activation,
            gate_activation=gate_activation,
            data_format=data_format,
            kernel_initializer=kernel_initializer,
            kernel_regularizer=kernel_regularizer,
            sublayers=sublayers,
            **kwargs,
        )

    def _squeeze(self, x):
        return [self._mean(x, self._spatial_axes)]

    def _pool_lowered(self, x, form):
        return [form.mean(x, self._spatial_axes)]
