"""The perceptron that squeeze-and-excitation and CBAM have in common."""

from keras import ops

from keras_coordatt.layers.gated_attention import GatedAttention
from keras_coordatt.layers.lowering import lowering
from keras_coordatt.layers.strip_pooling import mean


class ChannelAttention(GatedAttention):
    """Base class of squeeze-and-excitation and CBAM: one gate per channel.

    The feature map is squeezed to one or more descriptors, `(N, C)`. A perceptron with
    one narrow hidden layer maps each of them to `(N, C)`, and the activated sum is the
    gate. A subclass defines the descriptors: its `_squeeze(x)` returns them as a list,
    in the gates' dtype, and `_pool_lowered(x, form)` as feature maps of one position.
    """

    SUBLAYERS: tuple[str, ...] = ("reduce", "expand")

    def build(self, input_shape):
        super().build(input_shape)
        channels = input_shape[self._channel_axis]
        units = max(1, channels // self.reduction)
        self.reduce = self._dense(units, "reduce")
        self.reduce.build((None, channels))
        self.expand = self._dense(channels, "expand")
        self.expand.build((None, units))

    def sublayers(self):
        return [self.reduce, self.expand]

    def call(self, inputs):
        if (form := lowering(self, inputs, training=False)) is not None:
            return self._call_lowered(inputs, form)
        gate = ops.expand_dims(self._channel_gate(inputs), self._spatial_axes)
        return inputs * ops.cast(gate, inputs.dtype)

    def _call_lowered(self, x, form):
        """Computes the output at inference with 1x1 convolutions, to be exported."""
        hidden = self.reduce.kernel, self.reduce.bias
        output = self.expand.kernel, self.expand.bias
        gate, *others = (
            form.perceptron(pooled, hidden, self.activation, output)
            for pooled in self._pool_lowered(x, form)
        )
        for other in others:
            gate = gate + other
        return x * self.gate_activation(gate)

    def compute_gates(self, inputs) -> dict:
        """Returns the gates by which an input is multiplied, for inspection.

        Args:
            inputs: Same as in `call`.

        Returns:
            A dict of `"channel"`, `(N, C)`, in float32 under a half-precision policy.

        Raises:
            ValueError: If the input is not floating-point.
        """
        return {"channel": self._channel_gate(inputs)}

    def _channel_gate(self, inputs):
        self._check_floating(inputs)
        return self.gate_activation(
            sum(
                self.expand(self.activation(self.reduce(x)))
                for x in self._squeeze(inputs)
            )
        )

    def _mean(self, x, axis):
        return mean(x, axis, self._gate_dtype)

    def _max(self, x, axis):
        return ops.cast(ops.max(x, axis), self._gate_dtype)
