import keras
from keras import ops

from keras_coordatt.validation import check_choice, check_positive_int


class ChannelAttention(keras.layers.Layer):
    """What squeeze-and-excitation and CBAM share: a gate a channel.

    The map is squeezed to one or more descriptions, `(N, C)`; one perceptron with
    a narrow hidden layer takes each of them, and its answers are summed and made
    the gates. A subclass says what the descriptions are: its `_squeeze(x)` gives a list
    of `(N, C)` in the gates' dtype.
    """

    def __init__(
        self,
        reduction: int = 16,
        activation="relu",
        gate_activation="sigmoid",
        data_format: str | None = None,
        kernel_initializer="glorot_uniform",
        kernel_regularizer=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.reduction = check_positive_int("reduction", reduction)
        self.activation = keras.activations.get(activation)
        self.gate_activation = keras.activations.get(gate_activation)
        self.data_format = check_choice(
            "data_format",
            data_format or keras.config.image_data_format(),
            ("channels_last", "channels_first"),
        )
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        self.input_spec = keras.layers.InputSpec(ndim=4)

        first = self.data_format == "channels_first"
        self._channel_axis = 1 if first else 3
        self._spatial_axes = (2, 3) if first else (1, 2)

    def build(self, input_shape):
        axis = self._channel_axis
        channels = input_shape[axis] if len(input_shape) == 4 else None
        if channels is None:
            raise ValueError(
                f"{type(self).__name__} needs an input of rank 4 whose channels (axis "
                f"{axis}, {self.data_format}) are known. "
                f"Received: input_shape={tuple(input_shape)}"
            )
        self.input_spec = keras.layers.InputSpec(ndim=4, axes={axis: channels})

        half = self.compute_dtype in ("float16", "bfloat16")
        self._gate_dtype = "float32" if half else self.compute_dtype
        # A float32 layer casts its input, where the policy's own would not.
        self._gate_policy = "float32" if half else self.dtype_policy

        units = max(1, channels // self.reduction)
        self.reduce = self._dense(units, "reduce")
        self.reduce.build((None, channels))
        self.expand = self._dense(channels, "expand")
        self.expand.build((None, units))

    def call(self, inputs):
        if "float" not in keras.backend.standardize_dtype(inputs.dtype):
            raise ValueError(
                f"{type(self).__name__} needs a floating-point input. "
                f"Received: dtype={inputs.dtype}"
            )
        gate = self.gate_activation(
            sum(
                self.expand(self.activation(self.reduce(x)))
                for x in self._squeeze(inputs)
            )
        )
        gate = ops.expand_dims(gate, self._spatial_axes)
        return inputs * ops.cast(gate, inputs.dtype)

    def _mean(self, x, axis):
        return ops.mean(ops.cast(x, self._gate_dtype), axis)

    def _max(self, x, axis):
        return ops.cast(ops.max(x, axis), self._gate_dtype)

    def _dense(self, units, name):
        return keras.layers.Dense(
            units,
            kernel_initializer=self._fresh_initializer(),
            kernel_regularizer=self.kernel_regularizer,
            dtype=self._gate_policy,
            trainable=self.trainable,
            name=name,
        )

    def _fresh_initializer(self):
        # One without a seed of its own gives the same numbers each time.
        initializer = self.kernel_initializer
        is_keras = isinstance(initializer, keras.initializers.Initializer)
        return initializer.clone() if is_keras else initializer

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        config = {
            "reduction": self.reduction,
            "activation": keras.activations.serialize(self.activation),
            "gate_activation": keras.activations.serialize(self.gate_activation),
            "data_format": self.data_format,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "kernel_regularizer": keras.regularizers.serialize(self.kernel_regularizer),
        }
        return {**super().get_config(), **config}
