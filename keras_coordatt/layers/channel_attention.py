from keras import ops

from keras_coordatt.layers.gated_attention import GatedAttention


class ChannelAttention(GatedAttention):
    """Base class of squeeze-and-excitation and CBAM: one gate per channel.

    The feature map is squeezed to one or more descriptors, `(N, C)`. A perceptron with
    one narrow hidden layer maps each of them to `(N, C)`, and the activated sum is the
    gate. A subclass defines the descriptors: its `_squeeze(x)` returns them as a list,
    in the gates' dtype.
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
        self._check_floating(inputs)
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
