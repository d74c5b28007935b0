"""Export as ONNX."""

import json
import logging
import os
from collections.abc import Iterable, Sequence

import keras
import numpy as np

from keras_coordatt.export.inference import (
    check_suppression,
    constant_function,
    for_inference,
    in_float32,
    split_suppression,
)
from keras_coordatt.export.metadata import describe, packages_for_onnx
from keras_coordatt.export.model_input import ImageInput, check_backend, check_suffix
from keras_coordatt.export.onnx_graph import BATCH, repeat_gates
from keras_coordatt.export.onnx_suppression import with_suppression
from keras_coordatt.export.verify import Reference, Report
from keras_coordatt.files import atomic_file
from keras_coordatt.layers.lowering import lowered_for_onnx
from keras_coordatt.preprocessing import Preprocessing
from keras_coordatt.validation import first_line

# The first opset in which tf2onnx writes dense layers on feature maps, for any batch
# size, in a way that ONNX Runtime takes.
OPSET = 18


def onnx(
    model: keras.Model,
    path: str | os.PathLike,
    *,
    image_size: int | tuple[int, int] | None = None,
    images: np.ndarray | Iterable | None = None,
    labels: Sequence[str] | None = None,
    preprocessing: Preprocessing | None = None,
) -> Report:
    """Exports a model as ONNX, for ONNX Runtime and other readers of ONNX.

    The input is called `image` and takes any batch size, in the model's height, width
    and data format. The outputs have the model's names, except that one called `image`
    becomes `image_output`. Labels and preprocessing are in `metadata_props`, each value
    as JSON. The file is compared with the Keras model in ONNX Runtime, with two batch
    sizes. The suppression at the end of a detector is ONNX's `NonMaxSuppression`.

    Works on the TensorFlow and the PyTorch backend, with the packages of
    `pip install '.[export]'`.

    Args:
        model: A functional or Sequential model of one image input. A model in mixed
            precision is exported in float32.
        path: The file to write, which ends in `.onnx`.
        image_size: Height and width, for a model that takes any. Defaults to `None`:
            the file takes any size too, which the PyTorch backend can't write.
        images: Inputs to compare on, same as in `saved_model`.
        labels: Names of the classes, in order. Defaults to those recorded on the model.
        preprocessing: Same as in `saved_model`, for the metadata.

    Returns:
        A `Report`.

    Raises:
        TypeError: If `preprocessing` is something else.
        ValueError: If an argument is invalid, ONNX can't express the model, or the
            outputs of the file differ from the model's. Nothing is written then.
        ImportError: If a package is missing.

    Example:

    >>> onnx(model, "flowers.onnx", labels=["daisy", "rose"])
    >>> import onnxruntime
    >>> session = onnxruntime.InferenceSession("flowers.onnx")
    >>> (scores,) = session.run(["predictions"], {"image": images})
    """
    check_backend("An ONNX file", ("tensorflow", "torch"))
    path = check_suffix(path, ".onnx")
    on_torch = keras.config.backend() == "torch"
    image = ImageInput(model, preprocessing, image_size, fixed=on_torch)
    metadata = describe("onnx", model, image, labels)
    network, suppression = split_suppression(model)
    if on_torch:
        check_suppression(network, "PyTorch cannot write its loop as ONNX")
    if images is not None:
        images = image.read("images", images)
    reference = Reference(model, image, images)
    names = ["image_output" if x == "image" else x for x in reference.names]
    with packages_for_onnx(), atomic_file(path) as temporary:
        write = _write_from_torch if on_torch else _write_from_tensorflow
        try:
            ends = names if suppression is None else ["all_boxes", "all_scores"]
            write(in_float32(network), image, ends, temporary)
            _finish(temporary, ends, suppression, metadata, nchw=not on_torch)
            given = _run(temporary, reference.inputs, names)
        except ImportError:
            raise
        except Exception as error:  # each converter has kinds of its own
            raise ValueError(
                f"ONNX cannot express {model.name!r} as the {keras.config.backend()} "
                f"backend writes it: {first_line(error)[:300]}. If this is about the last "
                "operation, such as an argmax, export the model without it."
            ) from error
        difference = reference.compare(given, path.name)
        size = temporary.stat().st_size
    return Report(
        path,
        size,
        len(reference.inputs),
        difference,
        preprocessing=image.preprocessing,
        detections=reference.detections,
    )


def _write_from_tensorflow(model, image, names, path):
    import onnx
    import tf2onnx

    shape = (None, *image.shape)
    with lowered_for_onnx():
        function = constant_function(model, shape, image.dtype, names)
    graph = _with_inlined_functions(function.graph.as_graph_def())
    outputs = function.structured_outputs
    # Its optimizer logs a traceback for each pass that it skips.
    logging.getLogger("tf2onnx").setLevel(logging.CRITICAL)
    proto, _ = tf2onnx.convert.from_graph_def(
        graph,
        input_names=["image:0"],
        output_names=[outputs[name].name for name in names],
        opset=OPSET,
    )
    onnx.save(proto, path)


def _with_inlined_functions(graph):
    """Lets tf2onnx inline functions that are marked for XLA: grouped convolutions."""
    functions = graph.library.function
    nodes = [*graph.node, *(node for x in functions for node in x.node_def)]
    for item in (*functions, *nodes):
        for mark in ("_noinline", "_XlaMustCompile"):
            if mark in item.attr:
                del item.attr[mark]
    return graph


def _write_from_torch(model, image, names, path):
    spec = keras.InputSpec(shape=(None, *image.shape), dtype=image.dtype, name="image")
    for_inference(model).export(
        str(path),
        format="onnx",
        verbose=False,
        input_signature=[spec],
        opset_version=OPSET,
    )


def _finish(path, names, suppression, metadata, nchw):
    """Names input, outputs and batch axis, and adds what the converter didn't write.

    Args:
        path: The file, which is written again.
        names: Names of its outputs.
        suppression: A `NonMaxSuppression` to add at the end, or `None`.
        metadata: Dict of what to add as `metadata_props`.
        nchw: Whether feature maps are channels first inside, as tf2onnx makes them.
    """
    import onnx

    proto = onnx.load(path)
    graph = proto.graph
    new = dict(zip((x.name for x in graph.output), names, strict=True))
    new[graph.input[0].name] = "image"
    for node in graph.node:
        for side in (node.input, node.output):
            side[:] = [new.get(name, name) for name in side]
    for value in (*graph.input, *graph.output):
        value.name = new[value.name]
        value.type.tensor_type.shape.dim[0].dim_param = BATCH
    if nchw:
        repeat_gates(proto)
    if suppression is not None:
        proto = with_suppression(proto, suppression)
    onnx.helper.set_model_props(
        proto, {key: json.dumps(value) for key, value in metadata.items()}
    )
    onnx.checker.check_model(proto)
    onnx.save(proto, path)


def _run(path, images, names):
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    batches = [
        session.run(names, {"image": x}) for x in (images[:1], images[1:]) if len(x)
    ]
    return [np.concatenate(x) for x in zip(*batches)]
