"""Export for LiteRT (TensorFlow Lite)."""

import functools
import json
import os
import tempfile
import warnings
import zipfile
from collections.abc import Iterable, Sequence

import keras
import numpy as np

from keras_coordatt.export.inference import (
    constant_function,
    in_float32,
    split_suppression,
)
from keras_coordatt.export.litert_metadata import add_metadata
from keras_coordatt.export.litert_mixed import MixedConverter, smallest_stretch
from keras_coordatt.export.litert_runtime import (
    fixed_batches,
    layer_errors,
    run_litert,
)
from keras_coordatt.export.litert_suppression import suppress
from keras_coordatt.export.metadata import describe
from keras_coordatt.export.model_input import ImageInput, check_backend, check_suffix
from keras_coordatt.export.verify import AGREEMENT, Reference, Report, top1_agreement
from keras_coordatt.files import atomic_file
from keras_coordatt.preprocessing import Preprocessing
from keras_coordatt.validation import check_choice, check_positive_int

PRECISIONS = ("float32", "float16", "dynamic", "int8", "mixed")
CALIBRATED = ("int8", "mixed")
# Images on which mixed precision is searched, as each try runs all of them.
SEARCH_IMAGES = 128
NEXT_STEP = (
    "More and more typical images in `representative` may help. "
    '`precision="mixed"` keeps only the layers that int8 harms in float32.'
)
INFERENCE_TYPES = ("float32", "int8", "uint8")


def litert(
    model: keras.Model,
    path: str | os.PathLike,
    *,
    precision: str = "float32",
    representative: np.ndarray | Iterable | None = None,
    images: np.ndarray | Iterable | None = None,
    inference_type: str = "float32",
    batch_size: int = 1,
    image_size: int | tuple[int, int] | None = None,
    labels: Sequence[str] | None = None,
    preprocessing: Preprocessing | None = None,
) -> Report:
    """Exports a model for LiteRT (TensorFlow Lite), which runs on phones.

    Batch normalization is folded into the convolutions. The signature is called
    `serving_default`, its input `image`, and its outputs have the model's names. Labels
    and preprocessing are in the file twice: as TensorFlow Lite metadata, and as
    `metadata.json` and `labels.txt`, which `unzip` extracts. MediaPipe Tasks uses a
    classifier with labels as it is, if the network normalizes: build it with
    `include_preprocessing=True`. It then takes bytes, even with
    `inference_type="uint8"`, if `representative` has values from 0 to 255.

    A detector with suppression, `model.detector()`, becomes a file as MediaPipe's
    ObjectDetector takes it, for images one by one. Its outputs are float32: `"boxes"`,
    `"labels"` and `"scores"`, of zeros and labels of -1 after the last detection, and
    `"count"`, the number of detections per image. In int8, suppression itself stays in
    float32.

    The file is compared with the model as it was given. In float32, outputs may differ
    by 1e-4 of their range over the images. With rounded numbers, the root mean square
    of the difference may be 2 % (`"float16"`), 20 % (`"dynamic"`) or 50 % (`"int8"`,
    plus 1/256 for scores) of that of the outputs: more means that the export is broken.
    Models in mixed precision are rounded themselves, and get the tolerance of
    `"float16"` (10 % for bfloat16). To see how good a quantized network is, pass
    `images` and look at the report's `agreement`.

    Works on the TensorFlow backend.

    Args:
        model: A functional or Sequential model of one image input. A model in mixed
            precision is exported in float32.
        path: The file to write, which ends in `.tflite`.
        precision: `"float32"`; `"float16"`, of half the size, computed in float32 where
            the hardware has no float16; `"dynamic"`, with int8 weights and float32
            activations; `"int8"`, with both in int8, for integer hardware; or
            `"mixed"`, int8 except for a short stretch of consecutive layers, which stay
            in float32 so that 99 % of the top-1 classes or of the detections agree.
            Defaults to `"float32"`.
        representative: For `"int8"` and `"mixed"`, images from which the ranges of the
            activations are measured: a few hundred typical ones, preprocessed for the
            model. An array `(N, H, W, C)` or batches, such as a `tf.data.Dataset` of
            images or of `(images, labels)`.
        images: Images to compare on, in the same form: test images. Defaults to up to
            100 of `representative`, or else to drawn pictures.
        inference_type: For `"int8"`, the type of inputs and outputs: `"float32"`, so
            that the file can replace one of another precision, or `"int8"` or
            `"uint8"`, with the scale and zero point that the file gives. Detections
            are always float32. Defaults to `"float32"`.
        batch_size: Images per call, a fixed number, which is faster. Defaults to 1.
        image_size: Height and width, for a model that takes any.
        labels: Names of the classes, in order. Defaults to those recorded on the model.
        preprocessing: Same as in `saved_model`, for the metadata.

    Returns:
        A `Report`. If the top-1 classes of less than 99 % of the images, or of a
        segmentation's pixels, agree, it lists the errors by layer, and there is a
        warning.

    Raises:
        ValueError: If an argument is invalid, the backend isn't TensorFlow, an
            operation does not exist in this precision, or the outputs of the file
            differ from the model's. Nothing is written then.
        ImportError: If the LiteRT runtime, which checks the file, is missing.

    Example:

    >>> shared = {"image_size": 64, "preprocess": preprocess_input}
    >>> train = load_classification("digits/classification", "train", **shared)
    >>> test = load_classification("digits/classification", "test", **shared)
    >>> report = litert(
    ...     model,
    ...     "digits.tflite",
    ...     precision="int8",
    ...     representative=train.take(10),
    ...     images=test,
    ... )
    >>> print(report)
    """
    check_backend("A LiteRT file", ("tensorflow",))
    path = check_suffix(path, ".tflite")
    check_positive_int("batch_size", batch_size)
    _check_precision(precision, representative, inference_type)
    image = ImageInput(model, preprocessing, image_size, fixed=True)
    metadata = describe("litert", model, image, labels) | {"precision": precision}
    calibration = None
    if representative is not None:
        calibration = image.read("representative", representative)
    tested = images is not None or calibration is not None
    if images is not None:
        images = image.read("images", images)
    elif calibration is not None:
        images = calibration[:100]
    reference = Reference(model, image, images)
    names, inputs = reference.names, reference.inputs

    # Calibration and the scales of int8 inputs start from float32.
    dtype = "float32" if precision in CALIBRATED else image.dtype
    # The batch size is fixed, so that dense layers on feature maps need no dynamic shapes.
    shape = (batch_size, *image.shape)
    network, suppression = split_suppression(model)
    finish = suppression and functools.partial(suppress, suppression)
    function = constant_function(in_float32(network), shape, dtype, names, finish)
    if precision in CALIBRATED:
        _check_no_loop(function, model)
    with tempfile.TemporaryDirectory() as folder, atomic_file(path) as temporary:
        _save(function, folder)
        make = _converter(folder, inference_type, batch_size, calibration, suppression)

        def write_and_run(content, images):
            temporary.write_bytes(add_metadata(content, metadata))
            _append_metadata(temporary, metadata)
            return run_litert(temporary, images, batch_size, names)

        try:
            if precision == "mixed":
                content = _mixed(make("int8"), reference, batch_size, write_and_run)
            else:
                content = make(precision).convert()
        except Exception as error:  # the converter has no class of its own for it
            raise ValueError(
                f"LiteRT cannot express {model.name!r} in {precision}: {error}"
            ) from error
        try:
            given, float_tensors = write_and_run(content, inputs)
        except RuntimeError as error:
            raise ValueError(
                f"LiteRT cannot run {model.name!r} in {precision}. In int8 this happens "
                "if an activation is 0 for all images of `representative`: pass images "
                f"of more kinds. {error}"
            ) from error
        tolerance = "int8" if precision == "mixed" else precision
        try:
            difference = reference.compare(given, path.name, tolerance)
        except ValueError as error:
            if precision == "int8":
                raise ValueError(f"{error} {NEXT_STEP}") from error
            raise
        agreement = None
        if tested:
            agreement = top1_agreement(given, reference.outputs, image)
        agrees = agreement is None or agreement >= AGREEMENT
        layers = ()
        if precision == "int8" and not agrees:
            exact = make("float32").convert()
            layers = layer_errors(content, exact, inputs, batch_size)
        size = temporary.stat().st_size
    if not agrees:
        hint = f" The report's `layers` say where int8 differs. {NEXT_STEP}"
        warnings.warn(
            f"{path.name}: the top-1 class is the Keras model's on {agreement:.1%} of the "
            f"images or pixels, less than {AGREEMENT:.0%}.{hint if layers else ''}",
            stacklevel=2,
        )
    return Report(
        path,
        size,
        len(inputs),
        difference,
        preprocessing=image.preprocessing,
        agreement=agreement,
        detections=reference.detections,
        float_tensors=float_tensors if precision in CALIBRATED else (),
        layers=layers,
    )


def _check_precision(precision, representative, inference_type):
    """Checks that the precision is known, and that the other arguments fit it."""
    check_choice("precision", precision, PRECISIONS)
    check_choice("inference_type", inference_type, INFERENCE_TYPES)
    if (precision in CALIBRATED) != (representative is not None):
        raise ValueError(
            '`representative` is needed for `precision="int8"` or `"mixed"`, and for no '
            f"other. Received: precision={precision!r}, "
            f"representative={representative!r}"
        )
    if inference_type != "float32" and precision != "int8":
        raise ValueError(
            "`inference_type` is float32 unless `precision` is int8. Received: "
            f"precision={precision!r}, inference_type={inference_type!r}"
        )


def _mixed(converter, reference, batch_size, write_and_run):
    """Returns a file that agrees with the model, with few layers in float32."""
    images = reference.inputs[:SEARCH_IMAGES]
    converter = MixedConverter(converter, images[:1], batch_size)

    @functools.cache
    def convert(start, end):
        return converter.convert(start, end)

    def agrees(start, end):
        given, _ = write_and_run(convert(start, end), images)
        return reference.agreement(given) >= AGREEMENT

    start, end = smallest_stretch(len(converter.layers), agrees)
    if end - start == len(converter.layers):
        raise ValueError("no layer can be in int8; export in float32 or float16")
    return convert(start, end)


def _save(function, folder):
    import tensorflow as tf

    tf.saved_model.save(tf.Module(), folder, signatures=function)


def _check_no_loop(function, model):
    """Raises an error for loops, which crash Python in TensorFlow's calibrator."""
    graph = function.graph.as_graph_def()
    nodes = [*graph.node, *(n for f in graph.library.function for n in f.node_def)]
    loops = {"While", "StatelessWhile", "If", "StatelessIf"} & {x.op for x in nodes}
    if loops:
        raise ValueError(
            f"int8 calibration cannot run the loops or conditions in {model.name!r}. "
            "Export the part of the model before them, or another precision. "
            f"Received: operations {sorted(loops)}"
        )


def _converter(folder, inference_type, batch_size, representative, suppression):
    """Returns a function that makes a converter; each is good for one conversion."""
    import tensorflow as tf

    def make(precision):
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        if precision != "float32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if precision == "float16":
            converter.target_spec.supported_types = [tf.float16]
        if precision == "int8":
            kinds, ops = tf.as_dtype(inference_type), tf.lite.OpsSet
            converter.target_spec.supported_ops = [ops.TFLITE_BUILTINS_INT8]
            converter.inference_input_type = converter.inference_output_type = kinds
            if suppression is not None:  # which exists in float32 only
                converter.target_spec.supported_ops.append(ops.TFLITE_BUILTINS)
                converter.inference_output_type = tf.float32
            converter.representative_dataset = lambda: (
                [x] for x in fixed_batches(representative, batch_size)
            )
        return converter

    return make


def _append_metadata(path, metadata):
    # Readers ignore bytes after a flatbuffer; LiteRT's own tools append files this way.
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("metadata.json", json.dumps(metadata, indent=1))
        if metadata["labels"] is not None:
            archive.writestr("labels.txt", "\n".join(metadata["labels"]))
