"""Runs LiteRT files, and measures the errors of int8 layer by layer."""

import contextlib
import warnings

import numpy as np

from keras_coordatt.export.verify import LayerError, rms

# All activations of these images are in memory at once.
LAYER_IMAGES = 16


def fixed_batches(images, batch_size):
    """Yields batches of exactly this size; the last one wraps to the first image."""
    for start in range(0, len(images), batch_size):
        yield np.take(images, range(start, start + batch_size), axis=0, mode="wrap")


class LiteRTFile:
    """A LiteRT file with a signature of one input.

    Args:
        path: The file.

    Attributes:
        shape: Shape of the input, with the batch axis.
        dtype: Type of the images to pass: float32 where the file quantizes them.

    Raises:
        ValueError: If the file is damaged, or has no such signature.
    """

    def __init__(self, path):
        self.interpreter = _interpreter(model_path=str(path))
        self.runner = self.interpreter.get_signature_runner()
        inputs = self.runner.get_input_details()
        if len(inputs) != 1:
            raise ValueError(f"{path} must have one input. Received: {list(inputs)}")
        ((self.name, self.image),) = inputs.items()
        self.outputs = self.runner.get_output_details()
        shape = self.image["shape_signature"].tolist()
        self.shape = tuple(None if side < 0 else side for side in shape)
        quantized = self.image["quantization"][0] != 0
        self.dtype = "float32" if quantized else np.dtype(self.image["dtype"]).name

    def run(self, batch) -> dict[str, np.ndarray]:
        """Returns the outputs by name, in float32, for a batch of the file's size."""
        outputs = self.runner(**{self.name: _quantized(batch, self.image)})
        return {
            name: _dequantized(outputs[name], tensor)
            for name, tensor in self.outputs.items()
        }

    def float_tensors(self) -> tuple[str, ...]:
        """Returns the names of inner tensors that aren't integers."""
        ends = {self.image["index"], *(x["index"] for x in self.outputs.values())}
        return tuple(
            tensor["name"]
            for tensor in self.interpreter.get_tensor_details()
            if tensor["index"] not in ends
            and np.issubdtype(tensor["dtype"], np.floating)
        )


def run_litert(path, images, batch_size, names):
    """Returns a file's outputs for the images, and the names of its float tensors."""
    file = LiteRTFile(path)
    batches = [file.run(x) for x in fixed_batches(images, batch_size)]
    outputs = [np.concatenate([x[name] for x in batches]) for name in names]
    return [x[: len(images)] for x in outputs], file.float_tensors()


def _interpreter(**options):
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise ImportError(
            "To check a LiteRT file, its runtime is needed: "
            f"pip install ai-edge-litert ({error})"
        ) from error
    with warnings.catch_warnings():
        # The warning is that the option, which keeps all tensors, is slow.
        warnings.filterwarnings("ignore", r".*`experimental_preserve_all_tensors`")
        return Interpreter(**options)


def _quantized(x, tensor):
    scale, zero_point = tensor["quantization"]
    if scale == 0:  # not quantized
        return x.astype(tensor["dtype"])
    limits = np.iinfo(tensor["dtype"])
    x = np.clip(np.round(x / scale) + zero_point, limits.min, limits.max)
    return x.astype(tensor["dtype"])


def _dequantized(x, tensor):
    scale, zero_point = tensor["quantization"]
    if scale == 0:  # not quantized: floats, and plain integers
        return x.astype("float32")
    return ((x.astype("float32") - zero_point) * scale).astype("float32")


def layer_errors(rounded, exact, images, batch_size):
    """Returns the errors of an int8 file relative to a float32 one, layer by layer."""
    images = images[:LAYER_IMAGES]
    rounded, exact = (_tensors(x, images, batch_size) for x in (rounded, exact))
    errors = []
    for name, ours in rounded.items():
        theirs = exact.get(name)
        if theirs is None or theirs.shape != ours.shape:
            continue
        if (theirs != theirs[:1]).any():  # constants are the same for all images
            error, varies = rms(ours - theirs), rms(theirs - theirs.mean(0))
            errors.append(LayerError(name.split(";")[0], error, error / varies))
    return tuple(errors)


def _tensors(content, images, batch_size):
    """Returns the values of each tensor of a file for the images, as floats."""
    interpreter = _interpreter(
        model_content=content, experimental_preserve_all_tensors=True
    )
    runner = interpreter.get_signature_runner("serving_default")
    (given,) = runner.get_input_details().values()
    found = {}
    for x in fixed_batches(images, batch_size):
        runner(image=_quantized(x, given))
        for tensor in interpreter.get_tensor_details():
            # Other weights have no batch axis, and some tensors are never written.
            if [*tensor["shape"][:1]] != [batch_size]:
                continue
            with contextlib.suppress(ValueError):
                value = _dequantized(interpreter.get_tensor(tensor["index"]), tensor)
                found.setdefault(tensor["name"], []).append(value)
    return {name: np.concatenate(values) for name, values in found.items()}
