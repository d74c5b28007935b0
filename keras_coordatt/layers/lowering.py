"""The form of the attention layers in ONNX files.

The formula is the same, in operations that ONNX Runtime is fast at, for which weights
must be constants and image sizes known. `docs/speed.md` has the measurements.
"""

import contextlib
import contextvars

import keras
from keras import ops

# ONNX Runtime computes convolutions on blocks of channels, 16 at most. With hidden
# channels in whole blocks it needs no reordering between operations.
BLOCK = 16

_for_onnx: contextvars.ContextVar[bool] = contextvars.ContextVar("onnx", default=False)


@contextlib.contextmanager
def lowered_for_onnx():
    """Lets attention layers called inside compute in their form for ONNX Runtime.

    Example:

    >>> import numpy as np
    >>> from keras_coordatt import CoordinateAttention
    >>> layer, x = CoordinateAttention(), np.zeros((1, 8, 8, 16))
    >>> with lowered_for_onnx():
    ...     y = layer(x)
    """
    token = _for_onnx.set(True)
    try:
        yield
    finally:
        _for_onnx.reset(token)


def lowering(layer, inputs, training) -> "Lowering | None":
    """Returns the `Lowering` for a call of a `GatedAttention` layer, or `None`."""
    if training or not _for_onnx.get():
        return None
    sizes = [inputs.shape[axis] for axis in layer._spatial_axes]
    # A lowered form can't use quantized kernels, only the layers that hold them can.
    quantized = any(
        getattr(part, "quantization_mode", None) for part in layer.sublayers()
    )
    if None in sizes or quantized:
        return None
    return Lowering(layer.data_format, layer._spatial_axes)


class Lowering:
    """Parts of an attention layer, on feature maps of any height and width.

    Args:
        data_format: Same as in the layer.
        axes: Indices of the height and the width.
    """

    def __init__(self, data_format, axes):
        self.data_format = data_format
        self.axes = axes

    def mean(self, x, axes):
        """Averages along some of the spatial axes, which get length 1."""
        window = tuple(x.shape[a] if a in axes else 1 for a in self.axes)
        return ops.average_pool(x, window, window, data_format=self.data_format)

    def max(self, x):
        """Takes the maximum along both spatial axes, which get length 1."""
        window = tuple(x.shape[a] for a in self.axes)
        return ops.max_pool(x, window, window, data_format=self.data_format)

    def perceptron(self, x, hidden, activation, output):
        """Applies two 1x1 convolutions with an activation between.

        Args:
            x: The feature maps.
            hidden, output: Pairs of kernel, `(inputs, outputs)`, and bias.
            activation: Activation of the hidden layer.

        Returns:
            The feature maps after the second convolution.
        """
        (kernel, bias), (next_kernel, next_bias) = hidden, output
        units = kernel.shape[1]
        more = -units % BLOCK
        kernel, bias = ops.pad(kernel, [[0, 0], [0, more]]), ops.pad(bias, [[0, more]])
        next_kernel = ops.pad(next_kernel, [[0, more], [0, 0]])
        x = self._conv(x, kernel, bias)
        if activation is keras.activations.hard_swish:
            x = self._six_hard_swish(x, units + more)
            next_kernel = next_kernel / 6
        else:
            x = activation(x)
        return self._conv(x, next_kernel, next_bias)

    def _six_hard_swish(self, x, channels):
        # ONNX Runtime fuses the sum and ReLU6 into the convolution by 1.
        ones = ops.ones((1, 1, channels, 1), x.dtype)
        same = ops.depthwise_conv(x, ones, data_format=self.data_format)
        three = ops.full((channels,), 3.0, x.dtype)
        return x * ops.relu6(self._add(same, three))

    def _conv(self, x, kernel, bias):
        y = ops.conv(x, kernel[None, None], data_format=self.data_format)
        return self._add(y, bias)

    def _add(self, x, bias):
        first = self.data_format == "channels_first"
        return x + (ops.reshape(bias, (1, -1, 1, 1)) if first else bias)


def fold(dense, norm):
    """Returns kernel and bias of a dense layer with batch normalization after it."""
    scale = norm.gamma / ops.sqrt(norm.moving_variance + norm.epsilon)
    bias = (dense.bias - norm.moving_mean) * scale + norm.beta
    return dense.kernel * scale, bias
