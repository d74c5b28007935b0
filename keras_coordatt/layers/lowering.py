"""Forms of the attention layers for the runtimes of exported files.

The formula is the same everywhere. Its parts are written with the operations that the
runtime is fast at, for which weights must be constants and image sizes known.
`docs/speed.md` has the measurements.
"""

import contextlib
import contextvars
import math

import keras
from keras import ops

from keras_coordatt.validation import check_choice

RUNTIMES = ("onnx", "litert", "litert_int8")

# ONNX Runtime computes convolutions on blocks of channels, 16 at most. With hidden
# channels in whole blocks it needs no reordering between operations.
BLOCK = 16

# LiteRT's depthwise convolution takes windows up to this size in one pass. In int8 it
# then averages faster than its mean.
ONE_PASS = 25

_runtime: contextvars.ContextVar[str | None] = contextvars.ContextVar(
    "runtime", default=None
)


@contextlib.contextmanager
def lowered_for(runtime: str):
    """Lets attention layers called inside compute in the form for a runtime.

    Args:
        runtime: `"onnx"`, `"litert"` (float32) or `"litert_int8"`.

    Raises:
        ValueError: If `runtime` is another one.

    Example:

    >>> import numpy as np
    >>> from keras_coordatt import CoordinateAttention
    >>> layer, x = CoordinateAttention(), np.zeros((1, 8, 8, 16))
    >>> with lowered_for("onnx"):
    ...     y = layer(x)
    """
    check_choice("runtime", runtime, RUNTIMES)
    token = _runtime.set(runtime)
    try:
        yield
    finally:
        _runtime.reset(token)


def lowering(layer, inputs, training) -> "Lowering | None":
    """Returns the `Lowering` for a call of a `GatedAttention` layer, or `None`."""
    runtime = _runtime.get()
    if runtime is None or training:
        return None
    sizes = [inputs.shape[axis] for axis in layer._spatial_axes]
    # A lowered form can't use quantized kernels, only the layers that hold them can.
    quantized = any(
        getattr(part, "quantization_mode", None) for part in layer.sublayers()
    )
    if None in sizes or quantized:
        return None
    return Lowering(runtime, layer.data_format, layer._spatial_axes)


class Lowering:
    """Parts of an attention layer, on feature maps of any height and width.

    Args:
        runtime: One of `RUNTIMES`.
        data_format: Same as in the layer.
        axes: Indices of the height and the width.
    """

    def __init__(self, runtime, data_format, axes):
        self.runtime = runtime
        self.data_format = data_format
        self.axes = axes

    def mean(self, x, axes):
        """Averages along some of the spatial axes, which get length 1."""
        window = tuple(x.shape[a] if a in axes else 1 for a in self.axes)
        size = math.prod(window)
        if self.runtime == "onnx":
            return ops.average_pool(x, window, window, data_format=self.data_format)
        if self.runtime == "litert_int8" and len(axes) == 1 and size <= ONE_PASS:
            channels = x.shape[6 - sum(self.axes)]
            kernel = ops.full((*window, channels, 1), 1 / size, dtype=x.dtype)
            return ops.depthwise_conv(x, kernel, data_format=self.data_format)
        return ops.mean(x, axis=axes, keepdims=True)

    def max(self, x):
        """Takes the maximum along both spatial axes, which get length 1, for ONNX."""
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
        more = -units % BLOCK if self.runtime == "onnx" else 0
        kernel, bias = ops.pad(kernel, [[0, 0], [0, more]]), ops.pad(bias, [[0, more]])
        next_kernel = ops.pad(next_kernel, [[0, more], [0, 0]])
        x = self._conv(x, kernel, bias)
        if self.runtime == "onnx" and activation is keras.activations.hard_swish:
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
