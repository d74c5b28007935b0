"""The layer of "Coordinate Attention for Efficient Mobile Network Design"."""

from collections.abc import Callable

import keras
import numpy as np
from keras import ops

from keras_coordatt.layers.batch_normalization import BatchNormalization
from keras_coordatt.layers.gated_attention import GatedAttention
from keras_coordatt.layers.lowering import fold, lowering
from keras_coordatt.layers.strip_pooling import mean, strip_mean, strip_scale
from keras_coordatt.validation import (
    MAX_CHANNELS,
    check_choice,
    check_number,
    check_positive_int,
)

AXES = {"both": ("height", "width"), "height": ("height",), "width": ("width",)}

# Values at zero of the gate activations that `identity_init` supports.
GATE_AT_ZERO = {"sigmoid": 0.5, "hard_sigmoid": 0.5}


@keras.saving.register_keras_serializable("keras_coordatt")
class CoordinateAttention(GatedAttention):
    """Coordinate attention layer: gates every channel per row and per column.

    The feature map is averaged along each axis separately, so that each of the two
    descriptors keeps the position along the other axis. Both pass through a shared 1x1
    convolution with batch normalization, and one more convolution each computes the
    gates:

        x_h[n, h, c] = mean over w of x            x_w[n, w, c] = mean over h of x
        y_h, y_w = activation(BN(shared(x_h))), activation(BN(shared(x_w)))
        out[n, h, w, c] = x * gate_h(y_h)[n, h, c] * gate_w(y_w)[n, w, c]

    During training, the batch statistics are those of all `H + W` positions together,
    as in the official code. The moving variance follows Keras, which stores the biased
    variance of a batch; PyTorch stores `n / (n - 1)` times that, `n = N * (H + W)`.

    Under a half-precision policy the gates are computed in float32, where sums don't
    overflow, and then cast. PyTorch on a GPU averages the feature map in float32 as it
    reads it. Elsewhere, unless a compiler avoids it, all of it is converted to float32
    first, which costs time and memory.

    Args:
        reduction: Positive integer. The shared convolution has
            `max(min_channels, channels // reduction)` channels. Defaults to
            32, the paper's choice for MobileNetV2.
        min_channels: Positive integer, the least number of channels of the
            shared convolution. Defaults to 8, as in the official code.
        axes: `"both"`, or one of the paper's ablations: `"height"` (one gate
            per row) and `"width"` (one gate per column). Defaults to `"both"`.
        activation: Activation after the shared convolution. Defaults to
            `"hard_swish"`.
        gate_activation: Activation of the gates. Defaults to
            `"sigmoid"`.
        identity_init: If `True`, the gates start at exactly 1, so that the
            output equals the input bit for bit until the layer is trained. For
            that, the last convolutions start at zero and the gates are divided by
            `gate_activation(0)`, so that they range from 0 to 2 for a sigmoid. This
            makes it safe to insert the layer into a trained network. Weights of the
            official layer, whose gates are not divided, do not fit such a layer.
            Defaults to `False`.
        momentum: Momentum of the moving averages, in [0, 1). Defaults to 0.9,
            which PyTorch calls 0.1.
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
        may be unknown, and may be 1.

    Output shape:
        Same as the input's.

    Raises:
        ValueError: If an argument is out of its range, or the input is not a
            floating-point tensor of rank 4 with a known number of channels.

    Example:

    >>> x = np.random.rand(2, 14, 14, 64)
    >>> CoordinateAttention(reduction=32)(x).shape
    (2, 14, 14, 64)

    Reference:
        [Coordinate Attention for Efficient Mobile Network Design](
        https://arxiv.org/abs/2103.02907) (CVPR 2021)
    """

    SUBLAYERS = ("shared", "norm", "height_gate", "width_gate")

    def __init__(
        self,
        reduction: int = 32,
        min_channels: int = 8,
        axes: str = "both",
        activation: str | Callable = "hard_swish",
        gate_activation: str | Callable = "sigmoid",
        identity_init: bool = False,
        momentum: float = 0.9,
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
        self.min_channels = check_positive_int(
            "min_channels", min_channels, MAX_CHANNELS
        )
        self.axes = check_choice("axes", axes, AXES)
        self.identity_init = check_choice("identity_init", identity_init, (True, False))
        self.momentum = check_number("momentum", momentum, 0, 1, closed=True)
        self.epsilon = check_number("epsilon", epsilon, 0)

        gate_name = getattr(self.gate_activation, "__name__", "")
        if self.identity_init and gate_name not in GATE_AT_ZERO:
            raise ValueError(
                "`identity_init=True` needs a `gate_activation` of "
                f"{tuple(GATE_AT_ZERO)}. Received: {gate_activation!r}"
            )
        self._gate_scale = 1 / GATE_AT_ZERO[gate_name] if self.identity_init else None

    def build(self, input_shape):
        super().build(input_shape)
        channels = input_shape[self._channel_axis]
        # On rows of channels, one per position, a 1x1 convolution is a dense layer,
        # whatever the data format.
        units = max(self.min_channels, channels // self.reduction)
        self.shared = self._dense(units, "shared")
        self.shared.build((None, channels))
        self.norm = self._make(
            BatchNormalization,
            "norm",
            momentum=self.momentum,
            epsilon=self.epsilon,
        )
        self.norm.build((None, units))
        initializer = "zeros" if self.identity_init else None
        self.gates = {
            axis: self._dense(channels, f"{axis}_gate", initializer)
            for axis in AXES[self.axes]
        }
        for gate in self.gates.values():
            gate.build((None, units))

    def sublayers(self):
        return [self.shared, self.norm, *self.gates.values()]

    def call(self, inputs, training=None):
        if (form := lowering(self, inputs, training)) is not None:
            return self._call_lowered(inputs, form)
        gates = [
            self._spread(gate, axis, inputs.dtype)
            for axis, gate in self.compute_gates(inputs, training).items()
        ]
        if training and len(gates) == 2:
            return strip_scale(inputs, *gates, *self._spatial_axes)
        outputs = inputs
        for gate in gates:
            outputs = outputs * gate
        return outputs

    def _call_lowered(self, x, form):
        """Computes the output at inference, each axis apart, for ONNX files.

        Batch normalization is folded into the shared convolution.
        """
        outputs = x
        for axis, gate in self.gates.items():
            outputs = outputs * self._scale(
                form.perceptron(
                    form.mean(x, (self._other(axis),)),
                    fold(self.shared, self.norm),
                    self.activation,
                    (gate.kernel, gate.bias),
                )
            )
        return outputs

    def compute_gates(self, inputs, training=None) -> dict:
        """Returns the gates by which an input is multiplied, for inspection.

        Args:
            inputs: Same as in `call`.
            training: Same as in `call`.

        Returns:
            A dict of `"height"`, `(N, H, C)`, and `"width"`, `(N, W, C)`, or only the
            one in `axes`; float32 under a half-precision policy.

        Raises:
            ValueError: If the layer is not built, or the input is not floating-point.

        Example:

        >>> layer = model.get_layer("block_3_attention")
        >>> rows = layer.compute_gates(feature_map)["height"]
        """
        if not self.built:
            raise ValueError("CoordinateAttention has no gates before it is built.")
        self._check_floating(inputs)
        pooled = self._pool(inputs, training)
        sides = [inputs.shape[axis] for axis in self._spatial_axes]
        # The two means of a single position are equal: it counts once in the statistics.
        single = training and sides == [1, 1]
        pooled = pooled[:, :1] if single else pooled
        _, positions, channels = ops.shape(pooled)
        # One matmul for both axes, whose positions share the batch statistics.
        x = self.shared(ops.reshape(pooled, (-1, channels)))
        x = self.activation(self.norm(x, training=training))
        x = ops.reshape(x, (-1, positions, x.shape[-1]))
        gates, start = {}, 0
        for axis, gate in self.gates.items():
            start = 0 if single else start
            length = ops.shape(inputs)[self._index(axis)]
            rows = ops.reshape(x[:, start : start + length], (-1, x.shape[-1]))
            rows = self._scale(gate(rows))
            gates[axis] = ops.reshape(rows, (-1, length, channels))
            start += length
        return gates

    def _pool(self, x, training):
        """Averages the feature map to `(N, positions, C)`, rows before columns."""
        dtype = self._gate_dtype
        if training and len(self.gates) == 2:
            x = strip_mean(x, *self._spatial_axes, dtype)
        else:
            means = [mean(x, self._other(axis), dtype) for axis in self.gates]
            x = ops.concatenate(means, axis=self._spatial_axes[0])
        return ops.transpose(x, (0, 2, 1)) if self._channels_first else x

    def _scale(self, x):
        x = self.gate_activation(x)
        return x if self._gate_scale is None else x * self._gate_scale

    def _spread(self, gate, axis, dtype):
        """Reshapes a gate `(N, positions, C)` so that it broadcasts over the input."""
        gate = ops.transpose(gate, (0, 2, 1)) if self._channels_first else gate
        return ops.cast(ops.expand_dims(gate, self._other(axis)), dtype)

    def _index(self, axis):
        return self._spatial_axes[axis == "width"]

    def _other(self, axis):
        return self._spatial_axes[axis == "height"]

    def save_own_variables(self, store):
        super().save_own_variables(store)
        if self.identity_init:
            # Marks the weights: a layer without the factor would compute other outputs.
            store["gate_scale"] = np.float32(self._gate_scale)

    def load_own_variables(self, store):
        keys = [*store.keys()]
        if ("gate_scale" in keys) != self.identity_init:
            raise ValueError(
                f"The weights were saved with identity_init={not self.identity_init}, "
                f"but {self.name!r} has identity_init={self.identity_init} and would "
                "give other outputs with them."
            )
        super().load_own_variables(
            {key: store[key] for key in keys if key != "gate_scale"}
        )

    def get_config(self):
        config = {
            "min_channels": self.min_channels,
            "axes": self.axes,
            "identity_init": self.identity_init,
            "momentum": self.momentum,
            "epsilon": self.epsilon,
        }
        return {**super().get_config(), **config}
