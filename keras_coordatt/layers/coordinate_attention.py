import keras
import numpy as np
from keras import ops

from keras_coordatt.layers import passes
from keras_coordatt.validation import check_choice, check_number, check_positive_int

AXES = {"both": ("height", "width"), "height": ("height",), "width": ("width",)}

# What the gate activations are at zero, where `identity_init` starts.
GATE_AT_ZERO = {"sigmoid": 0.5, "hard_sigmoid": 0.5}


@keras.saving.register_keras_serializable("keras_coordatt")
class CoordinateAttention(keras.layers.Layer):
    """Coordinate attention: a gate a row and a gate a column, for every channel.

    The feature map is averaged along each axis apart, so that each of the two
    descriptions still knows a position. Both pass through one shared 1x1
    transform with batch normalization, and then become two gates:

        x_h[n, h, c] = mean over w of x            x_w[n, w, c] = mean over h of x
        y_h, y_w = activation(BN(shared(x_h))), activation(BN(shared(x_w)))
        out[n, h, w, c] = x * gate_h(y_h)[n, h, c] * gate_w(y_w)[n, w, c]

    While training, the batch statistics are those of all `H + W` positions
    together, as in the official code. Under a half-precision policy the gates
    are computed in float32 and then cast: they are `H + W` positions of the
    map's `H * W`, so this costs next to nothing, and nothing overflows.

    The moving variance follows Keras, which stores the biased variance of a
    batch; PyTorch stores `n / (n - 1)` times that, `n = N * (H + W)`.

    Args:
        reduction: Positive integer. The shared transform has
            `max(min_channels, channels // reduction)` channels. Defaults to
            32, the paper's choice for MobileNetV2.
        min_channels: Positive integer, the least number of channels of the
            shared transform. Defaults to 8, as in the official code.
        axes: `"both"`, or one of the paper's ablations: `"height"` (one gate a
            row) and `"width"` (one gate a column). Defaults to `"both"`.
        activation: Activation after the shared transform. Defaults to
            `"hard_swish"`.
        gate_activation: Activation that makes the gates. Defaults to
            `"sigmoid"`.
        identity_init: If `True`, the gates start at exactly 1, so that the
            output equals the input bit for bit until the layer is trained:
            the gates' last transform starts at zero and the gate is divided by
            `gate_activation(0)`, which gives it the range (0, 2) for a
            sigmoid. This is what makes it safe to put the layer into a
            trained network. Weights of the official layer, whose gates are
            not divided, do not fit such a layer. Defaults to `False`.
        momentum: Momentum of the moving averages, in [0, 1). Defaults to 0.9,
            which PyTorch calls 0.1.
        epsilon: Small positive number added to the variance. Defaults to 1e-5.
        data_format: `"channels_last"` or `"channels_first"`. Defaults to
            `keras.config.image_data_format()`.
        kernel_initializer: Initializer of the kernels. Defaults to
            `"glorot_uniform"`.
        kernel_regularizer: Regularizer of the kernels, or `None`.
        **kwargs: `name`, `dtype`, `trainable`.

    Input shape:
        `(N, H, W, C)`, or `(N, C, H, W)` with `"channels_first"`. `H` and `W`
        may be unknown, and may be 1.

    Output shape:
        The input's.

    Raises:
        ValueError: if an argument is out of its range, or the input is not a
            floating-point tensor of rank 4 with a known number of channels.

    Example:

    >>> x = np.random.rand(2, 14, 14, 64)
    >>> CoordinateAttention(reduction=32)(x).shape
    (2, 14, 14, 64)

    Reference:
        [Coordinate Attention for Efficient Mobile Network Design](
        https://arxiv.org/abs/2103.02907) (CVPR 2021)
    """

    def __init__(
        self,
        reduction: int = 32,
        min_channels: int = 8,
        axes: str = "both",
        activation="hard_swish",
        gate_activation="sigmoid",
        identity_init: bool = False,
        momentum: float = 0.9,
        epsilon: float = 1e-5,
        data_format: str | None = None,
        kernel_initializer="glorot_uniform",
        kernel_regularizer=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.reduction = check_positive_int("reduction", reduction)
        self.min_channels = check_positive_int("min_channels", min_channels)
        self.axes = check_choice("axes", axes, AXES)
        self.activation = keras.activations.get(activation)
        self.gate_activation = keras.activations.get(gate_activation)
        self.identity_init = check_choice("identity_init", identity_init, (True, False))
        self.momentum = check_number("momentum", momentum, 0, 1, closed=True)
        self.epsilon = check_number("epsilon", epsilon, 0)
        self.data_format = check_choice(
            "data_format",
            data_format or keras.config.image_data_format(),
            ("channels_last", "channels_first"),
        )
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        self.input_spec = keras.layers.InputSpec(ndim=4)

        gate_name = getattr(self.gate_activation, "__name__", None)
        if self.identity_init and gate_name not in GATE_AT_ZERO:
            raise ValueError(
                "`identity_init=True` needs a `gate_activation` of "
                f"{tuple(GATE_AT_ZERO)}. Received: {gate_activation!r}"
            )
        self._gate_scale = 1 / GATE_AT_ZERO[gate_name] if self.identity_init else None

    def build(self, input_shape):
        channel_axis = 1 if self.data_format == "channels_first" else 3
        channels = input_shape[channel_axis] if len(input_shape) == 4 else None
        if channels is None:
            raise ValueError(
                "CoordinateAttention needs an input of rank 4 whose channels (axis "
                f"{channel_axis}, {self.data_format}) are known. "
                f"Received: input_shape={tuple(input_shape)}"
            )
        self.input_spec = keras.layers.InputSpec(ndim=4, axes={channel_axis: channels})

        half = self.compute_dtype in ("float16", "bfloat16")
        self._gate_dtype = "float32" if half else self.compute_dtype
        dtype = self._gate_dtype if half else self.dtype_policy

        def dense(units, name, initializer=self.kernel_initializer):
            if isinstance(initializer, keras.initializers.Initializer):
                # One without a seed of its own gives the same numbers each time.
                initializer = initializer.clone()
            return keras.layers.Dense(
                units,
                kernel_initializer=initializer,
                kernel_regularizer=self.kernel_regularizer,
                dtype=dtype,
                trainable=self.trainable,
                name=name,
            )

        # On rows of channels, one a position, a 1x1 convolution is a dense layer,
        # whatever the data format.
        units = max(self.min_channels, channels // self.reduction)
        self.shared = dense(units, "shared")
        self.shared.build((None, channels))
        self.norm = keras.layers.BatchNormalization(
            momentum=self.momentum,
            epsilon=self.epsilon,
            dtype=dtype,
            trainable=self.trainable,
            name="norm",
        )
        self.norm.build((None, units))
        gate_initializer = "zeros" if self.identity_init else self.kernel_initializer
        self.gates = {
            axis: dense(channels, f"{axis}_gate", gate_initializer)
            for axis in AXES[self.axes]
        }
        for gate in self.gates.values():
            gate.build((None, units))

    def call(self, inputs, training=None):
        gates = [
            self._spread(gate, axis, inputs.dtype)
            for axis, gate in self.compute_gates(inputs, training).items()
        ]
        if training and len(gates) == 2:
            return passes.multiply(inputs, *gates, *self._indices)
        for gate in gates:
            inputs = inputs * gate
        return inputs

    def compute_gates(self, inputs, training=None) -> dict:
        """Gives the gates with which an input is multiplied, to look at them.

        Args:
            inputs: As of a call of the layer.
            training: As of a call of the layer.

        Returns:
            A dictionary of `"height"`, `(N, H, C)`, and `"width"`, `(N, W, C)`, or of
            the one in `axes`; float32 under a half-precision policy.

        Raises:
            ValueError: if the layer is not built, or the input is not floating-point.

        Example:

        >>> layer = model.get_layer("block_3_attention")
        >>> rows = layer.compute_gates(feature_map)["height"]
        """
        if not self.built:
            raise ValueError("CoordinateAttention has no gates before it is built.")
        if "float" not in keras.backend.standardize_dtype(inputs.dtype):
            raise ValueError(
                "CoordinateAttention needs a floating-point input. "
                f"Received: dtype={inputs.dtype}"
            )
        pooled = self._pool(inputs, training)
        _, positions, channels = ops.shape(pooled)
        # On rows of channels, a 1x1 convolution is one matmul. The batch statistics are
        # those of the rows of both axes.
        x = self.shared(ops.reshape(pooled, (-1, channels)))
        x = self.activation(self.norm(x, training=training))
        x = ops.reshape(x, (-1, positions, x.shape[-1]))
        gates, start = {}, 0
        for axis, gate in self.gates.items():
            length = ops.shape(inputs)[self._index(axis)]
            rows = ops.reshape(x[:, start : start + length], (-1, x.shape[-1]))
            rows = self._scale(gate(rows))
            gates[axis] = ops.reshape(rows, (-1, length, channels))
            start += length
        return gates

    def _pool(self, x, training):
        """Averages the map to `(N, positions, C)`: those of the height come first."""
        x = ops.cast(x, self._gate_dtype)
        if training and len(self.gates) == 2:
            x = passes.mean(x, *self._indices)
        else:
            means = [ops.mean(x, axis=self._other(axis)) for axis in self.gates]
            x = ops.concatenate(means, axis=self._indices[0])
        return ops.transpose(x, (0, 2, 1)) if self._channels_first else x

    def _scale(self, x):
        x = self.gate_activation(x)
        return x if self._gate_scale is None else x * self._gate_scale

    def _spread(self, gate, axis, dtype):
        """Makes a gate `(N, positions, C)` broadcast over the map."""
        gate = ops.transpose(gate, (0, 2, 1)) if self._channels_first else gate
        return ops.cast(ops.expand_dims(gate, self._other(axis)), dtype)

    @property
    def _channels_first(self):
        return self.data_format == "channels_first"

    @property
    def _indices(self):
        """Those of the height and of the width in the map's shape."""
        return (2, 3) if self._channels_first else (1, 2)

    def _index(self, axis):
        return self._indices[axis == "width"]

    def _other(self, axis):
        return self._indices[axis == "height"]

    def save_own_variables(self, store):
        super().save_own_variables(store)
        if self.identity_init:
            # What tells the numbers of such gates from those of the official ones.
            store["gate_scale"] = np.float32(self._gate_scale)

    def load_own_variables(self, store):
        keys = [*store.keys()]
        if ("gate_scale" in keys) != self.identity_init:
            raise ValueError(
                f"The weights are of gates with identity_init={not self.identity_init}"
                f", those of {self.name!r} have identity_init={self.identity_init}: "
                "they would give other outputs."
            )
        super().load_own_variables(
            {key: store[key] for key in keys if key != "gate_scale"}
        )

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        config = {
            "reduction": self.reduction,
            "min_channels": self.min_channels,
            "axes": self.axes,
            "activation": keras.activations.serialize(self.activation),
            "gate_activation": keras.activations.serialize(self.gate_activation),
            "identity_init": self.identity_init,
            "momentum": self.momentum,
            "epsilon": self.epsilon,
            "data_format": self.data_format,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "kernel_regularizer": keras.regularizers.serialize(self.kernel_regularizer),
        }
        return {**super().get_config(), **config}
