"""Export for LiteRT (TensorFlow Lite)."""

import json
import os
import tempfile
import warnings
import zipfile
from collections.abc import Sequence

import keras

from keras_coordatt.export.litert_metadata import add_metadata
from keras_coordatt.export.litert_runtime import (
    fixed_batches,
    layer_errors,
    run_litert,
)
from keras_coordatt.export.metadata import describe
from keras_coordatt.export.model_input import (
    ImageInput,
    check_backend,
    check_suffix,
    in_float32,
)
from keras_coordatt.export.verify import (
    AGREEMENT,
    Report,
    check_outputs,
    reference_outputs,
    top1_agreement,
)
from keras_coordatt.files import atomic_file
from keras_coordatt.preprocessing import Preprocessing
from keras_coordatt.validation import check_choice, check_positive_int

PRECISIONS = ("float32", "float16", "dynamic", "int8")
INFERENCE_TYPES = ("float32", "int8", "uint8")


def litert(
    model: keras.Model,
    path: str | os.PathLike,
    *,
    precision: str = "float32",
    representative=None,
    images=None,
    inference_type: str = "float32",
    batch_size: int = 1,
    image_size: int | tuple[int, int] | None = None,
    labels: Sequence[str] | None = None,
    preprocessing: Preprocessing | None = None,
) -> Report:
    """Exports a model for LiteRT (TensorFlow Lite), which runs on phones.

    Batch normalization is folded into the convolutions. The signature is called
    `serving_default`, its input `image`, and its outputs as the model's. Labels and
    preprocessing are in the file, as TensorFlow Lite's metadata and as `metadata.json`
    and `labels.txt`, which `unzip` finds. MediaPipe Tasks uses a classifier with labels
    as it is, if the network normalizes: build it with `include_preprocessing=True`. It
    then takes bytes, even as `inference_type="uint8"`, if `representative` has values
    from 0 to 255.

    The file is compared with the Keras model, in float32: outputs may differ by 1e-4 of
    their range over the images. Where numbers are rounded, the root mean square of the
    difference may be 2 % (`"float16"`), 20 % (`"dynamic"`) or 50 % (`"int8"`, and 1/256
    for scores) of that of the outputs, which is to find what is broken. How good a
    rounded network is, its agreement tells: pass `images`.

    Works on the TensorFlow backend.

    Args:
        model: A `keras.Model` of one image input. Of one in mixed precision, a copy in
            float32 is exported.
        path: The file to write, which ends in `.tflite`.
        precision: `"float32"`; `"float16"`, of half the size, computed in float32 where
            there are no halves; `"dynamic"`, int8 weights, and activations in float32;
            or `"int8"`, both in int8, for which there are integer units. Defaults to
            `"float32"`.
        representative: For `"int8"`, images by which the ranges of the activations are
            measured: a few hundred that are like those to come, and preprocessed as for
            the model. An array `(N, H, W, C)` or batches, such as a `tf.data.Dataset`
            of images or of `(images, labels)`.
        images: Images to compare on, as `representative`: test images. Defaults to up
            to 100 of `representative`, or else to random ones.
        inference_type: For `"int8"`, the type of inputs and outputs: `"float32"`, so
            that the file takes the place of one of another precision, or `"int8"` or
            `"uint8"`, by the scale and the zero point that the file gives. Defaults to
            `"float32"`.
        batch_size: Images a call. A fixed number, for the sake of speed. Defaults to 1.
        image_size: Height and width, for a model that takes any.
        labels: The names of the classes, in order. Defaults to none.
        preprocessing: As of `saved_model`, for the metadata.

    Returns:
        A `Report`. It lists the errors by layer if the top-1 classes of less than 99 %
        of the images, or of a segmentation's pixels, agree, of which there is a warning
        too.

    Raises:
        ValueError: if an argument is invalid, the backend isn't TensorFlow, an
            operation does not exist in this precision, or the file does not give what
            the model gives. Nothing is written then.

    Example:

    >>> train = load_classification("cifar10", "train", 64, preprocess=preprocess_input)
    >>> test = load_classification("cifar10", "test", 64, preprocess=preprocess_input)
    >>> report = litert(
    ...     model,
    ...     "cifar10.tflite",
    ...     precision="int8",
    ...     representative=train.take(10),
    ...     images=test,
    ... )
    >>> print(report)
    """
    check_backend("A LiteRT file", ("tensorflow",))
    path = check_suffix(path, ".tflite")
    check_choice("precision", precision, PRECISIONS)
    check_choice("inference_type", inference_type, INFERENCE_TYPES)
    check_positive_int("batch_size", batch_size)
    if (precision == "int8") != (representative is not None):
        raise ValueError(
            '`representative` is needed for `precision="int8"`, and for no other. '
            f"Received: precision={precision!r}, representative={representative!r}"
        )
    if inference_type != "float32" and precision != "int8":
        raise ValueError(
            f"`inference_type` is float32 unless `precision` is int8. Received: "
            f"precision={precision!r}, inference_type={inference_type!r}"
        )
    image = ImageInput(model, preprocessing, image_size, fixed=True)
    metadata = describe("litert", model, image, labels) | {"precision": precision}
    tested = images is not None
    if representative is not None:
        representative = image.read("representative", representative)
    if tested:
        images = image.read("images", images)
    elif representative is not None:
        images, tested = representative[:100], True
    else:
        images = image.random()

    model = in_float32(model)
    names, reference = reference_outputs(model, images)
    with tempfile.TemporaryDirectory() as folder:
        _save_constant(model, (batch_size, *image.shape), names, folder)
        make = _converter(folder, inference_type, batch_size, representative)
        try:
            content = make(precision).convert()
        except Exception as error:  # the converter has no class of its own for it
            raise ValueError(
                f"LiteRT cannot express {model.name!r} in {precision}: {error}"
            ) from error

        with atomic_file(path) as fresh:
            fresh.write_bytes(add_metadata(content, metadata))
            _append_metadata(fresh, metadata)
            try:
                given, float_tensors = run_litert(fresh, images, batch_size, names)
            except RuntimeError as error:
                raise ValueError(
                    f"LiteRT cannot run {model.name!r} in {precision}. In int8 this is "
                    "so if an activation is 0 for all images of `representative`: "
                    f"{error}"
                ) from error
            difference = check_outputs(names, given, reference, path.name, precision)
            agreement = top1_agreement(given, reference, image) if tested else None
            agrees = agreement is None or agreement >= AGREEMENT
            layers = ()
            if precision == "int8" and not agrees:
                exact = make("float32").convert()
                layers = layer_errors(content, exact, images, batch_size)
            size = fresh.stat().st_size
    report = Report(
        path,
        size,
        len(images),
        difference,
        agreement,
        float_tensors if precision == "int8" else (),
        layers,
    )
    if not agrees:
        warnings.warn(
            f"{path}: the top-1 class is the Keras model's on {agreement:.1%} of the "
            f"images or pixels, less than {AGREEMENT:.0%}."
            + (" The report's `layers` say where int8 differs." if layers else ""),
            stacklevel=2,
        )
    return report


def _save_constant(model, shape, names, folder):
    """Saves a model for the converter, with constants instead of variables.

    Constants are folded, batch normalization into convolutions among them. The batch
    size is fixed, as otherwise each dense layer of a map asks for its shape.
    """
    import tensorflow as tf

    trainable, others = (
        [tf.constant(variable.numpy()) for variable in variables]
        for variables in (model.trainable_variables, model.non_trainable_variables)
    )

    @tf.function(input_signature=[tf.TensorSpec(shape, "float32", name="image")])
    def serve(image):
        outputs, _ = model.stateless_call(trainable, others, image, training=False)
        return dict(zip(names, keras.tree.flatten(outputs), strict=True))

    tf.saved_model.save(tf.Module(), folder, signatures=serve.get_concrete_function())


def _converter(folder, inference_type, batch_size, representative):
    """Gives a function from a precision to a converter, good for one conversion."""
    import tensorflow as tf

    def make(precision):
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        if precision != "float32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if precision == "float16":
            converter.target_spec.supported_types = [tf.float16]
        if precision == "int8":
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            converter.inference_input_type = tf.as_dtype(inference_type)
            converter.inference_output_type = tf.as_dtype(inference_type)
            converter.representative_dataset = lambda: (
                [x] for x in fixed_batches(representative, batch_size)
            )
        return converter

    return make


def _append_metadata(path, metadata):
    # A flatbuffer knows where it ends; LiteRT's own tools append files in this way.
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("metadata.json", json.dumps(metadata, indent=1))
        if metadata["labels"] is not None:
            archive.writestr("labels.txt", "\n".join(metadata["labels"]))
