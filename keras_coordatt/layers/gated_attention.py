"""Arguments, checks and configuration that all attention layers have in common."""

from collections.abc import Callable

import keras

from keras_coordatt.validation import check_choice, check_positive_int, from_keras

# Arguments that may differ from one sublayer to the next.
SUBLAYER_ARGUMENTS = (
    "trainable",
    "dtype",
    "lora_rank",
    "lora_alpha",
    "quantization_config",
)


class GatedAttention(keras.layers.Layer):
    """Base class of the attention layers, which multiply a feature map by gates.

    It keeps the arguments that all of them take, checks the input, and builds the
    sublayers. Later changes to a sublayer (`trainable`, quantization, LoRA) are part
    of the configuration, so that they survive saving and cloning. A subclass lists
    the names of its sublayers in `SUBLAYERS` and returns the layers themselves from
    `sublayers`.
    """

    SUBLAYERS: tuple[str, ...] = ()

    def __init__(
        self,
        reduction: int,
        activation: str | Callable,
        gate_activation: str | Callable,
        data_format: str | None,
        kernel_initializer: str | keras.initializers.Initializer,
        kernel_regularizer: str | keras.regularizers.Regularizer | None,
        sublayers: dict | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.reduction = check_positive_int("reduction", reduction)
        self.activation = from_keras("activation", keras.activations.get, activation)
        self.gate_activation = from_keras(
            "gate_activation", keras.activations.get, gate_activation
        )
        self.data_format = check_choice(
            "data_format",
            keras.config.image_data_format() if data_format is None else data_format,
            ("channels_last", "channels_first"),
        )
        self.kernel_initializer = from_keras(
            "kernel_initializer", keras.initializers.get, kernel_initializer
        )
        self.kernel_regularizer = from_keras(
            "kernel_regularizer", keras.regularizers.get, kernel_regularizer
        )
        self._check_sublayers(sublayers)
        self._sublayer_arguments = sublayers or {}
        self.input_spec = keras.layers.InputSpec(ndim=4)

        self._channels_first = self.data_format == "channels_first"
        self._channel_axis = 1 if self._channels_first else 3
        # Indices of the height and the width in the input's shape
        self._spatial_axes = (2, 3) if self._channels_first else (1, 2)

    def _check_sublayers(self, sublayers):
        is_dict = sublayers is None or isinstance(sublayers, dict)
        if not is_dict or not all(
            name in self.SUBLAYERS
            and isinstance(arguments, dict)
            and all(key in SUBLAYER_ARGUMENTS for key in arguments)
            for name, arguments in (sublayers or {}).items()
        ):
            raise ValueError(
                "`sublayers` must be None or a dict from names of sublayers, "
                f"{self.SUBLAYERS}, to dicts of arguments, {SUBLAYER_ARGUMENTS}. "
                f"Received: {sublayers!r}"
            )

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
        # Sublayers cast their input to float32 themselves. A policy such as
        # mixed_float16 would make them cast it to half precision.
        self._gate_policy = "float32" if half else self.dtype_policy

    def sublayers(self) -> list:
        """Returns the layers that this layer is made of, once it is built."""
        raise NotImplementedError

    def _make(self, layer_class, name, *args, **kwargs):
        """Builds a sublayer, with the arguments that were set for it alone."""
        own = dict(self._sublayer_arguments.get(name, {}))
        if isinstance(own.get("quantization_config"), dict):
            own["quantization_config"] = keras.saving.deserialize_keras_object(
                own["quantization_config"]
            )
        defaults = {"dtype": self._gate_policy, "trainable": self.trainable}
        return layer_class(*args, name=name, **{**kwargs, **defaults, **own})

    def _dense(self, units, name, initializer=None):
        return self._make(
            keras.layers.Dense,
            name,
            units,
            kernel_initializer=initializer or self._new_initializer(),
            kernel_regularizer=self.kernel_regularizer,
        )

    def _new_initializer(self):
        # An initializer without a seed returns the same numbers at every call.
        initializer = self.kernel_initializer
        is_keras = isinstance(initializer, keras.initializers.Initializer)
        return initializer.clone() if is_keras else initializer

    def _check_floating(self, inputs):
        if "float" not in keras.backend.standardize_dtype(inputs.dtype):
            raise ValueError(
                f"{type(self).__name__} needs a floating-point input. "
                f"Received: dtype={inputs.dtype}"
            )

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
        if sublayers := self._changed_sublayers():
            config["sublayers"] = sublayers
        return {**super().get_config(), **config}

    def _changed_sublayers(self):
        """Returns the `sublayers` argument that recreates these sublayers."""
        if not self.built:
            return {
                name: dict(arguments)
                for name, arguments in self._sublayer_arguments.items()
            }
        changed = {}
        for layer in self.sublayers():
            config = layer.get_config()
            own = {
                key: config[key]
                for key in ("lora_rank", "lora_alpha", "quantization_config")
                if config.get(key) is not None
            }
            if layer.trainable != self.trainable:
                own["trainable"] = layer.trainable
            if layer.dtype_policy != keras.dtype_policies.get(self._gate_policy):
                own["dtype"] = config["dtype"]
            if own:
                changed[layer.name] = own
        return changed
