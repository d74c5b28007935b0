"""Export as ONNX."""

import json
import os
from collections.abc import Sequence

import keras
import numpy as np

from keras_coordatt.export.metadata import describe, packages_for_onnx
from keras_coordatt.export.model_input import (
    ImageInput,
    check_backend,
    check_suffix,
    in_float32,
)
from keras_coordatt.export.verify import Report, check_outputs, reference_outputs
from keras_coordatt.files import atomic_file
from keras_coordatt.preprocessing import Preprocessing

# The first in which tf2onnx writes dense layers of maps, for any batch size, in a way
# that ONNX Runtime takes.
OPSET = 18


def onnx(
    model: keras.Model,
    path: str | os.PathLike,
    *,
    image_size: int | tuple[int, int] | None = None,
    labels: Sequence[str] | None = None,
    preprocessing: Preprocessing | None = None,
) -> Report:
    """Exports a model as ONNX, for ONNX Runtime and what else reads it.

    The input is called `image`, and is of any batch size and of the model's height,
    width and data format; the outputs are called as the model's. Labels and
    preprocessing are in `metadata_props`, each value as JSON. The file is compared with
    the Keras model in ONNX Runtime, with two batch sizes.

    Works on the TensorFlow and the PyTorch backend, with the packages of
    `pip install 'keras_coordatt[export]'`.

    Args:
        model: A `keras.Model` of one image input. Of one in mixed precision, a copy in
            float32 is exported.
        path: The file to write, which ends in `.onnx`.
        image_size: Height and width, for a model that takes any. Defaults to `None`:
            any in the file too, which the PyTorch backend can't write.
        labels: The names of the classes, in order. Defaults to none.
        preprocessing: As of `saved_model`, for the metadata.

    Returns:
        A `Report`.

    Raises:
        ValueError: if an argument is invalid, the backend can't write ONNX, or the file
            does not give what the model gives. Nothing is written then.
        ImportError: if a package is missing.

    Example:

    >>> onnx(model, "flowers.onnx", labels=["daisy", "rose"])
    >>> session = onnxruntime.InferenceSession("flowers.onnx")
    >>> (scores,) = session.run(["predictions"], {"image": images})
    """
    check_backend("An ONNX file", ("tensorflow", "torch"))
    path = check_suffix(path, ".onnx")
    fixed = keras.config.backend() == "torch"
    image = ImageInput(model, preprocessing, image_size, fixed)
    metadata = describe("onnx", model, image, labels)
    model = in_float32(model)
    x = image.random()
    names, reference = reference_outputs(model, x)
    with packages_for_onnx(), atomic_file(path) as fresh:
        spec = keras.InputSpec(
            shape=(None, *image.shape), dtype="float32", name="image"
        )
        model.export(
            str(fresh),
            format="onnx",
            verbose=False,
            input_signature=[spec],
            opset_version=OPSET,
        )
        _finish_onnx(fresh, names, metadata)
        given = _run_onnx(fresh, x, names)
        difference = check_outputs(names, given, reference, path.name)
        size = fresh.stat().st_size
    return Report(path, size, len(x), difference)


def _finish_onnx(path, names, metadata):
    """Gives outputs and batch their names, and adds the metadata."""
    import onnx

    proto = onnx.load(path)
    graph = proto.graph
    new = dict(zip((x.name for x in graph.output), names, strict=True))
    for node in graph.node:
        for side in (node.input, node.output):
            side[:] = [new.get(name, name) for name in side]
    for value in graph.output:
        value.name = new[value.name]
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.helper.set_model_props(
        proto, {key: json.dumps(value) for key, value in metadata.items()}
    )
    onnx.checker.check_model(proto)
    onnx.save(proto, path)


def _run_onnx(path, images, names):
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    batches = [
        session.run(names, {"image": x}) for x in (images[:1], images[1:]) if len(x)
    ]
    return [np.concatenate(x) for x in zip(*batches)]
