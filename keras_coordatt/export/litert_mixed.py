"""int8 with a stretch of layers in float32, by TensorFlow's quantization debugger."""

import contextlib
import csv
import io
import warnings
from collections.abc import Callable

from keras_coordatt.export.litert_runtime import fixed_batches


class MixedConverter:
    """Converts to int8, with some layers in float32.

    Args:
        converter: A `tf.lite.TFLiteConverter` for int8.
        image: One image, in a batch.
        batch_size: Images per call.

    Attributes:
        layers: Names of the layers that int8 rounds, in execution order.
    """

    def __init__(self, converter, image, batch_size: int):
        import tensorflow as tf

        self._options = tf.lite.experimental.QuantizationDebugOptions
        with _without_interpreter_warning():
            self._debugger = tf.lite.experimental.QuantizationDebugger(
                converter=converter,
                debug_dataset=lambda: ([x] for x in fixed_batches(image, batch_size)),
                debug_options=self._options(),
            )
            self._debugger.run()
        file = io.StringIO()
        self._debugger.layer_statistics_dump(file)
        file.seek(0)
        names = (row["tensor_name"] for row in csv.DictReader(file))
        self.layers = list(dict.fromkeys(names))

    def convert(self, start: int, end: int) -> bytes:
        """Returns a file with `layers[start:end]` in float32."""
        with _without_interpreter_warning():
            self._debugger.options = self._options(
                denylisted_nodes=self.layers[start:end]
            )
        return self._debugger.get_nondebug_quantized_model()


def smallest_stretch(count: int, agrees: Callable[[int, int], bool]) -> tuple[int, int]:
    """Finds a short stretch of layers that must stay in float32.

    By bisection, because each try converts and runs the network: first for its end,
    then for its start.

    Args:
        count: Number of layers. With all of them in float32, a file agrees.
        agrees: Whether the file with the layers from start to end in float32 agrees
            with the Keras model.

    Returns:
        `(start, end)`; `(0, 0)` if no layer must.
    """
    if agrees(0, 0):
        return 0, 0
    low, end = 0, count  # the end is in (low, end]
    while end - low > 1:
        middle = (low + end) // 2
        low, end = (low, middle) if agrees(0, middle) else (middle, end)
    start, high = 0, end  # the start is in [start, high)
    while high - start > 1:
        middle = (start + high) // 2
        start, high = (middle, high) if agrees(middle, end) else (start, middle)
    return start, end


@contextlib.contextmanager
def _without_interpreter_warning():
    """Hides the warning that TensorFlow's interpreter is deprecated.

    TensorFlow's debugger creates it, and takes no other, such as that of ai-edge-litert.
    That package has no debugger of its own, and only through the debugger does the
    converter take a list of layers to leave in float32.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"\s*Warning: tf\.lite\.Interpreter")
        yield
