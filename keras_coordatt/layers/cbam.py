"""The attention of "CBAM: Convolutional Block Attention Module", a baseline."""

from collections.abc import Callable

import keras
from keras import ops

from keras_coordatt.layers.batch_normalization import BatchNormalization
from keras_coordatt.layers.channel_attention import ChannelAttention
from keras_coordatt.validation import MAX_CHANNELS, check_number, check_positive_int


@keras.saving.register_keras_serializable("keras_coordatt")
class CBAM(ChannelAttention):
    """Convolutional block attention: one gate per channel, then one per position.

    A perceptron computes the channel gates from the mean and the maximum of each
    channel. A convolution with batch normalization computes the spatial gates from the
    maximum and the mean over the channels:

        g[n, c]    = gate_activation(mlp(mean over h and w of x) + mlp(max of x))
        y          = x * g
        s[n, h, w] = gate_activation(BN(conv([max over c of y, mean over c of y])))
        out        = y * s

    Under a half-precision policy the gates are computed in float32 and then cast.
    PyTorch on a GPU averages the feature map in float32 as it reads it. Elsewhere,
    unless a compiler avoids it, all of it is converted to float32 first.

    Args:
        reduction: Positive integer. The perceptron's hidden layer has
            `max(1, channels // reduction)` units. Defaults to 16, as in the
            CBAM paper. The networks of the coordinate attention paper use 24.
        kernel_size: Positive odd integer, the size of the spatial convolution.
            Defaults to 7.
        activation: Activation of the hidden layer. Defaults to `"relu"`.
        gate_activation: Activation of the gates. Defaults to
            `"sigmoid"`.
        momentum: Momentum of the moving averages, in [0, 1). Defaults to 0.99, as
            in the official code (which PyTorch calls 0.01).
        epsilon: Small positive number added to the variance. Defaults to 1e-5.
        data_format: `"channels_last"` or `"channels_first"`. Defaults to
            `keras.config.image_data_format()`.
        kernel_initializer: Initializer of the kernels. Defaults to
            `"glorot_uniform"`.
        kernel_regularizer: Regularizer of the kernels, or `None`.
        sublayers: Arguments of sublayers that differ from this layer's own, as a dict
            from a sublayer's name to `trainable`, `dtype`, `lora_rank`,
            `lora_alpha` or `quantization_config`. `{"norm": {"trainable": False}}`
            keeps batch normalization frozen. Defaults to `None`.
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
    >>> CBAM(reduction=16)(x).shape
    (2, 14, 14, 64)

    Reference:
        [CBAM: Convolutional Block Attention Module](
        https://arxiv.org/abs/1807.06521) (ECCV 2018)
    """

    SUBLAYERS = (*ChannelAttention.SUBLAYERS, "conv", "norm")

    def __init__(
        self,
        reduction: int = 16,
        kernel_size: int = 7,
        activation: str | Callable = "relu",
        gate_activation: str | Callable = "sigmoid",
        momentum: float = 0.99,
        epsilon: float = 1e-5,
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
        self.kernel_size = check_positive_int("kernel_size", kernel_size, MAX_CHANNELS)
        if self.kernel_size % 2 == 0:
            raise ValueError(f"`kernel_size` must be odd. Received: {kernel_size}")
        self.momentum = check_number("momentum", momentum, 0, 1, closed=True)
        self.epsilon = check_number("epsilon", epsilon, 0)

    def build(self, input_shape):
        super().build(input_shape)
        # Its two input channels are stacked on the last axis in either data format.
        self.conv = self._make(
            keras.layers.Conv2D,
            "conv",
            1,
            self.kernel_size,
            padding="same",
            use_bias=False,
            data_format="channels_last",
            kernel_initializer=self._new_initializer(),
            kernel_regularizer=self.kernel_regularizer,
        )
        self.conv.build((None, None, None, 2))
        self.norm = self._make(
            BatchNormalization,
            "norm",
            momentum=self.momentum,
            epsilon=self.epsilon,
        )
        self.norm.build((None, None, None, 1))

    def sublayers(self):
        return [*super().sublayers(), self.conv, self.norm]

    def call(self, inputs, training=None):
        x = super().call(inputs)
        gate = ops.expand_dims(self._position_gate(x, training), self._channel_axis)
        return x * ops.cast(gate, x.dtype)

    def compute_gates(self, inputs, training=None) -> dict:
        """Returns the gates by which an input is multiplied, for inspection.

        Args:
            inputs: Same as in `call`.
            training: Same as in `call`.

        Returns:
            A dict of `"channel"`, `(N, C)`, and `"position"`, `(N, H, W)`, in float32
            under a half-precision policy.
        """
        gates = super().compute_gates(inputs)
        gates["position"] = self._position_gate(super().call(inputs), training)
        return gates

    def _position_gate(self, x, training):
        axis = self._channel_axis
        pooled = ops.stack([self._max(x, axis), self._mean(x, axis)], axis=-1)
        gate = self.gate_activation(self.norm(self.conv(pooled), training=training))
        return ops.squeeze(gate, -1)

    def _squeeze(self, x):
        axes = self._spatial_axes
        return [self._mean(x, axes), self._max(x, axes)]

    def _pool_lowered(self, x, form):
        return [form.mean(x, self._spatial_axes), form.max(x)]

    def get_config(self):
        config = {
            "kernel_size": self.kernel_size,
            "momentum": self.momentum,
            "epsilon": self.epsilon,
        }
        return {**super().get_config(), **config}
