"""Networks as files for other runtimes: SavedModel, LiteRT and ONNX.

    saved_model(model, "flowers")                   TensorFlow Serving
    litert(model, "flowers.tflite", labels=names)   phones; float32, float16 or int8
    onnx(model, "flowers.onnx")                     ONNX Runtime
    read_metadata("flowers.tflite")                 labels and preprocessing, from each

A file is written beside its place, compared there with the Keras model, and renamed:
it is right, or not there.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import tempfile
import warnings
import zipfile
from collections.abc import Iterable, Sequence

import keras
import numpy as np
from keras import ops

from keras_coordatt.applications.blocks import channel_axis
from keras_coordatt.files import atomic_file, atomic_folder
from keras_coordatt.litert_metadata import add_metadata
from keras_coordatt.preprocessing import RAW_PIXELS, Preprocessing, preprocessing_of
from keras_coordatt.validation import check_choice, check_positive_int

PRECISIONS = ("float32", "float16", "dynamic", "int8")
INFERENCE_TYPES = ("float32", "int8", "uint8")

# By how much outputs may differ. In float32, of the range that they have over the
# images, and of their size, as there is rounding where they don't vary at all. Where
# weights or activations are rounded, the root mean square, of that of the outputs: what
# is past it is no rounding.
FLOAT_TOLERANCE = 1e-4
ROUNDING = 1e-5
SCORE_STEP = 1 / 256  # int8's, after a softmax or a sigmoid
TOLERANCES = {"float16": 0.02, "dynamic": 0.2, "int8": 0.5}

# Below this share of equal top-1 classes, the errors are listed by layer.
AGREEMENT = 0.99

# The first in which tf2onnx writes dense layers of maps, for any batch size, in a way
# that ONNX Runtime takes.
OPSET = 18

BATCH = 32
RANDOM_IMAGES = 4
# Each of their activations is kept.
LAYER_IMAGES = 16


@dataclasses.dataclass(frozen=True)
class LayerError:
    """How far one of an int8 network's tensors is from float32.

    Attributes:
        layer: The layer that gives it, and the operation in the layer.
        rms: Root mean square of the difference, which is that of the layers before too.
        share: The same, of the root mean square of what differs between images: at 1,
            nothing is left of that.
    """

    layer: str
    rms: float
    share: float


@dataclasses.dataclass(frozen=True)
class Report:
    """What an exported file was found to be.

    Attributes:
        path: Where it is.
        size: Its size in bytes.
        images: How many images it was compared with the Keras model on.
        difference: By output, the largest absolute difference.
        agreement: The share of these images, or of their pixels, with the same top-1
            class; or `None`, for random images, and for an output that is neither
            scores of classes nor maps of them of the images' size.
        float_tensors: Tensors of an int8 network that are not integers, apart from its
            inputs and outputs: none, if it is wholly int8.
        layers: If the agreement is below 99 %, the errors by layer, in their order.
    """

    path: pathlib.Path
    size: int
    images: int
    difference: dict[str, float]
    agreement: float | None = None
    float_tensors: tuple[str, ...] = ()
    layers: tuple[LayerError, ...] = ()

    def __str__(self):
        lines = [f"{self.path}: {self.size:,} bytes, compared on {self.images} images"]
        lines += [
            f"  {name}: largest difference {value:.1e}"
            for name, value in self.difference.items()
        ]
        if self.agreement is not None:
            lines.append(f"  same top-1 class as the Keras model: {self.agreement:.2%}")
        if self.float_tensors:
            lines.append(f"  not in int8: {', '.join(self.float_tensors)}")
        if self.layers:
            lines.append("  largest errors by layer, of what differs between images:")
            largest = sorted(self.layers, key=lambda error: -error.share)[:20]
            lines += [
                f"    {error.share:7.1%}  {error.layer}"
                for error in self.layers
                if error in largest
            ]
        return "\n".join(lines)


# The three formats


def saved_model(
    model: keras.Model,
    path: str | os.PathLike,
    *,
    labels: Sequence[str] | None = None,
    preprocessing: Preprocessing | None = None,
) -> Report:
    """Exports a model as a TensorFlow SavedModel.

    It has two signatures, `serve` (also `serving_default`, as with `model.export`),
    which takes what the model takes, and `serve_images`, which takes a batch of uint8
    RGB images of any height and width, `(N, H, W, 3)`. Both give what the model gives.
    The images are resized, to whole values as in `keras_coordatt.data`, and normalized;
    a model that takes any size gets them in theirs.

    Works on the TensorFlow and the JAX backend.

    Args:
        model: A `keras.Model` of one image input.
        path: The folder to write. A SavedModel that is there is replaced.
        labels: The names of the classes, in order. Defaults to none.
        preprocessing: A `Preprocessing`. Defaults to `preprocessing_of(model)`, for
            3 channels. Without any, as for other numbers of channels, there is no
            `serve_images`.

    Returns:
        A `Report`.

    Raises:
        ValueError: if an argument is invalid, the backend can't write SavedModels, or
            the file does not give what the model gives. Nothing is written then.

    Example:

    >>> saved_model(model, "flowers", labels=["daisy", "rose"])
    >>> served = tf.saved_model.load("flowers")
    >>> served.serve_images(np.zeros((1, 480, 640, 3), "uint8")).shape
    (1, 2)
    """
    _needs_backend("A SavedModel", ("tensorflow", "jax"))
    import tensorflow as tf

    path = _check_folder(pathlib.Path(path))
    image = _Image(model, preprocessing)
    metadata = _metadata("saved_model", model, image, labels)
    _check_replaceable(path)
    with atomic_folder(path) as fresh:
        archive = keras.export.ExportArchive()
        spec = keras.InputSpec(shape=(None, *model.input_shape[1:]), dtype="float32")
        serve = archive.track_and_add_endpoint("serve", model, [spec])
        if image.preprocessing:

            @tf.function(
                input_signature=[
                    tf.TensorSpec((None, None, None, image.channels), "uint8")
                ]
            )
            def serve_images(images):
                return serve(image.preprocess(images))

            archive.add_endpoint("serve_images", serve_images)
        # Nobody trains what is served, and JAX has no gradients for images of any size.
        options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
        archive.write_out(str(fresh), options, verbose=False)
        # TensorFlow Serving leaves this folder to the users.
        extra = fresh / "assets.extra"
        extra.mkdir()
        (extra / "metadata.json").write_text(json.dumps(metadata, indent=1))

        try:
            loaded = tf.saved_model.load(str(fresh))
            difference = _check_served(model, image, loaded)
        except tf.errors.OpError as error:
            raise ValueError(
                f"TensorFlow cannot run {model.name!r} as Keras's "
                f"{keras.config.backend()} backend writes it: {error}"
            ) from error
        size = sum(file.stat().st_size for file in fresh.rglob("*") if file.is_file())
    return Report(path, size, RANDOM_IMAGES, difference)


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
    _needs_backend("A LiteRT file", ("tensorflow",))
    path = _check_ending(path, ".tflite")
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
    image = _Image(model, preprocessing, image_size, fixed=True)
    metadata = _metadata("litert", model, image, labels) | {"precision": precision}
    tested = images is not None
    if representative is not None:
        representative = image.read("representative", representative)
    if tested:
        images = image.read("images", images)
    elif representative is not None:
        images, tested = representative[:100], True
    else:
        images = image.random()

    model = _in_float32(model)
    names, reference = _reference(model, images)
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
                given, float_tensors = _run_litert(fresh, images, batch_size, names)
            except RuntimeError as error:
                raise ValueError(
                    f"LiteRT cannot run {model.name!r} in {precision}. In int8 this is "
                    "so if an activation is 0 for all images of `representative`: "
                    f"{error}"
                ) from error
            difference = _check(names, given, reference, path.name, precision)
            agreement = _agreement(given, reference, image) if tested else None
            agrees = agreement is None or agreement >= AGREEMENT
            layers = ()
            if precision == "int8" and not agrees:
                exact = make("float32").convert()
                layers = _layer_errors(content, exact, images, batch_size)
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
    _needs_backend("An ONNX file", ("tensorflow", "torch"))
    path = _check_ending(path, ".onnx")
    fixed = keras.config.backend() == "torch"
    image = _Image(model, preprocessing, image_size, fixed)
    metadata = _metadata("onnx", model, image, labels)
    model = _in_float32(model)
    x = image.random()
    names, reference = _reference(model, x)
    with _packages_for_onnx(), atomic_file(path) as fresh:
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
        difference = _check(names, given, reference, path.name)
        size = fresh.stat().st_size
    return Report(path, size, len(x), difference)


def read_metadata(path: str | os.PathLike) -> dict:
    """Reads what an exported file says about itself.

    Args:
        path: A file or folder that this module wrote.

    Returns:
        A dictionary: `"name"` of the model, `"format"`, `"labels"` (a list, or `None`),
        `"preprocessing"` (`None`, or `"input_size"`, `"color"`, `"data_format"`,
        `"interpolation"`, `"antialias"`, `"scale"`, `"mean"` and `"std"`: the input is
        `(image / scale - mean) / std`), `"versions"`, and for LiteRT `"precision"`.

    Raises:
        ValueError: if the file has no such metadata.
        OSError: if it can't be opened.

    Example:

    >>> read_metadata("flowers.tflite")["labels"]
    ['daisy', 'rose']
    """
    path = pathlib.Path(path)
    try:
        if path.is_dir():
            text = (path / "assets.extra" / "metadata.json").read_text()
        elif path.suffix == ".onnx":
            return _read_onnx_metadata(path)
        else:
            with zipfile.ZipFile(path) as archive:
                text = archive.read("metadata.json")
        return json.loads(text)
    except (FileNotFoundError, KeyError, ValueError, zipfile.BadZipFile) as error:
        if not path.exists():
            raise
        raise ValueError(
            f"{os.fspath(path)!r} has no metadata of keras_coordatt."
        ) from error


# What a model takes and gives


class _Image:
    """The image input of a model, and what is to be done with images for it."""

    def __init__(self, model, preprocessing, image_size=None, fixed=False):
        if not isinstance(model, keras.Model):
            raise ValueError(f"`model` must be a keras.Model. Received: {model!r}")
        inputs = keras.tree.flatten(model.inputs)
        if len(inputs) != 1 or len(inputs[0].shape) != 4:
            raise ValueError(
                "`model` must have one input, a batch of images. "
                f"Received: inputs={inputs}"
            )
        axis = channel_axis()
        sizes = list(inputs[0].shape[1:])
        self.channels = sizes.pop(axis - 1)
        if image_size is not None:
            given = image_size if isinstance(image_size, tuple) else (image_size,) * 2
            given = tuple(check_positive_int("image_size", side) for side in given)
            if any(own not in (None, new) for own, new in zip(sizes, given)):
                raise ValueError(
                    f"`image_size` must be the model's, {tuple(sizes)}. "
                    f"Received: {image_size!r}"
                )
            sizes = given
        self.size = None if None in sizes else tuple(sizes)
        if fixed and self.size is None:
            raise ValueError(
                "`image_size` must be given, as the model takes images of any size and "
                f"the file can't. Received: {image_size!r}"
            )
        self.shape = (*sizes[: axis - 1], self.channels, *sizes[axis - 1 :])

        if preprocessing is None and self.channels == 3:
            preprocessing = preprocessing_of(model)
        if preprocessing and len(preprocessing.mean) != self.channels:
            raise ValueError(
                f"`preprocessing` must be for the {self.channels} channels of the "
                f"model. Received: {preprocessing}"
            )
        self.preprocessing = preprocessing

    def preprocess(self, images):
        """Makes the input of uint8 images `(N, H, W, C)`, by TensorFlow."""
        import tensorflow as tf

        how = self.preprocessing
        x = tf.cast(images, "float32")
        if self.size is not None:
            x = tf.image.resize(
                x, self.size, how.interpolation, antialias=how.antialias
            )
            # Bicubic interpolation and Lanczos's overshoot.
            x = tf.clip_by_value(tf.round(x), 0, 255)
        return how.normalize(
            tf.transpose(x, (0, 3, 1, 2)) if channel_axis() == 1 else x
        )

    def random(self):
        """Random inputs, of the size that they would have."""
        rng = np.random.default_rng(0)
        shape = [64 if side is None else side for side in self.shape]
        if self.preprocessing == RAW_PIXELS:
            return rng.uniform(0, 255, (RANDOM_IMAGES, *shape)).astype("float32")
        return rng.normal(size=(RANDOM_IMAGES, *shape)).astype("float32")

    def read(self, name, data):
        """Reads images from an array or from batches, and checks their shape."""
        if hasattr(data, "ndim") or not isinstance(data, Iterable):
            batches = [data]
        else:
            batches = [x[0] if isinstance(x, (tuple, list)) else x for x in data]
        batches = [np.asarray(x, "float32") for x in batches]
        wrong = [x.shape for x in batches if x.shape[1:] != self.shape]
        if wrong or not sum(map(len, batches)):
            raise ValueError(
                f"`{name}` must be images (N, {str(self.shape)[1:]}, or batches of "
                f"them. Received: {wrong[0] if wrong else 'none'}"
            )
        return np.concatenate(batches)


def _metadata(format, model, image, labels):
    import keras_coordatt

    if labels is not None:
        labels = list(labels)
        outputs = keras.tree.flatten(model.outputs)
        classes = outputs[0].shape[-1]
        one = len(outputs) == 1 and len(outputs[0].shape) == 2
        if not all(isinstance(x, str) for x in labels) or one * (classes - len(labels)):
            raise ValueError(
                "`labels` must be strings, one a class"
                f"{f', {classes} of them' if one else ''}. Received: {labels}"
            )
    how = image.preprocessing
    return {
        "name": model.name,
        "format": format,
        "labels": labels,
        "preprocessing": how
        and {
            "input_size": image.size and list(image.size),
            "color": "RGB",
            "data_format": keras.config.image_data_format(),
            "interpolation": how.interpolation,
            "antialias": how.antialias,
            "scale": 255,
            "mean": list(how.mean),
            "std": list(how.std),
        },
        "versions": {
            "keras_coordatt": keras_coordatt.__version__,
            "keras": keras.__version__,
        },
    }


def _in_float32(model):
    """The model, or if some of it computes in half precision, a copy that doesn't."""
    if not _is_mixed(model):
        return model

    def clone(layer):
        return type(layer).from_config({**layer.get_config(), "dtype": "float32"})

    copy = keras.models.clone_model(model, clone_function=clone, recursive=True)
    copy.set_weights(model.get_weights())
    return copy


def _is_mixed(model):
    return any(layer.compute_dtype != "float32" for layer in _layers(model))


def _layers(model):
    """The layers, with those of nested models."""
    for layer in model.layers:
        yield from _layers(layer) if isinstance(layer, keras.Model) else [layer]


# Checks


def _needs_backend(what, backends):
    if keras.config.backend() not in backends:
        raise ValueError(
            f"{what} is written from Keras's {' or '.join(backends)} backend. Save the "
            "model as .keras, and export that with KERAS_BACKEND=tensorflow: "
            "`keras-coordatt export model.keras OUT`. "
            f"Received: {keras.config.backend()}"
        )


def _check_ending(path, ending):
    path = pathlib.Path(path)
    if path.suffix != ending:
        raise ValueError(f"`path` must end in {ending}. Received: {os.fspath(path)!r}")
    return _check_folder(path)


def _check_folder(path):
    if not path.parent.is_dir():
        raise ValueError(
            f"`path` must be in a folder that is there. Received: {os.fspath(path)!r}"
        )
    return path


def _numpy(outputs):
    return [ops.convert_to_numpy(x) for x in keras.tree.flatten(outputs)]


def _reference(model, images):
    """Names of the model's outputs, and what it gives for the images."""
    batches = []
    # A GPU may multiply in lower precision.
    with keras.device("cpu:0"):
        for start in range(0, len(images), BATCH):
            outputs = model(images[start : start + BATCH], training=False)
            batches.append(_numpy(outputs))
    if isinstance(outputs, dict):
        names = [str(name) for name in keras.tree.flatten({k: k for k in outputs})]
    else:
        names = list(getattr(model, "output_names", []))
    if len(set(names)) != len(batches[0]):
        names = [f"output_{i}" for i in range(len(batches[0]))]
    return names, [np.concatenate(x).astype("float32") for x in zip(*batches)]


def _check(names, given, reference, what, precision="float32"):
    """The largest differences by output, if none is too large."""
    difference = {}
    for name, ours, theirs in zip(names, given, reference, strict=True):
        if ours.shape != theirs.shape:
            raise ValueError(
                f"{what} gives {name!r} in shape {ours.shape}, and the Keras model in "
                f"{theirs.shape}."
            )
        difference[name] = float(np.abs(ours - theirs).max())
        if precision == "float32":
            kind, size = "largest difference", difference[name]
            limit = FLOAT_TOLERANCE * np.ptp(theirs, axis=0).max()
            limit += ROUNDING * np.abs(theirs).max()
        else:
            kind, size = "root mean square difference", _rms(ours - theirs)
            limit = TOLERANCES[precision] * _rms(theirs)
            if precision == "int8" and 0 <= theirs.min() and theirs.max() <= 1:
                limit += SCORE_STEP
        if not size <= limit:  # nor if it is NaN
            raise ValueError(
                f"{what} does not give what the Keras model gives. The largest "
                f"difference of {name!r} is {difference[name]:.3g}. Its {kind} may be "
                f"{limit:.3g}, and is {size:.3g}."
            )
    return difference


def _rms(x):
    return float(np.sqrt(np.mean(np.square(x))))


def _agreement(given, reference, image):
    """The share of images or pixels with the same top-1 class, if there are classes."""
    if len(reference) != 1:
        return None
    axis = channel_axis() if reference[0].ndim == 4 else 1
    *_, classes = shape = np.moveaxis(reference[0], axis, -1).shape
    if shape[1:-1] not in ((), image.size) or classes < 2:
        return None
    return float((given[0].argmax(axis) == reference[0].argmax(axis)).mean())


# SavedModel


def _check_served(model, image, loaded):
    """The largest differences of a loaded SavedModel by output."""
    # Half precision is rounded in other places when it is compiled.
    precision = "float16" if _is_mixed(model) else "float32"
    x = image.random()
    names, reference = _reference(model, x)
    difference = _check(names, _numpy(loaded.serve(x)), reference, "serve", precision)
    if image.preprocessing:
        x = _pictures(image)
        names, reference = _reference(model, np.asarray(image.preprocess(x)))
        given = _numpy(loaded.serve_images(x))
        _check(names, given, reference, "serve_images", precision)
    return difference


def _pictures(image):
    rng = np.random.default_rng(0)
    size = (50, 75) if image.size else (64, 64)
    return rng.integers(0, 256, (2, *size, image.channels), "uint8")


def _check_replaceable(path):
    if path.exists() and not (path / "saved_model.pb").exists():
        raise ValueError(
            f"`path` is there, and is no SavedModel. Received: {os.fspath(path)!r}"
        )


# ONNX


@contextlib.contextmanager
def _packages_for_onnx():
    try:
        yield
    except ImportError as error:
        raise ImportError(
            "An ONNX file needs more packages: pip install 'keras_coordatt[export]' "
            f"({error})"
        ) from error


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


def _read_onnx_metadata(path):
    with _packages_for_onnx():
        import onnx
        from google.protobuf.message import DecodeError

        try:
            proto = onnx.load(path, load_external_data=False)
        except DecodeError as error:
            raise ValueError(str(error)) from error
    metadata = {x.key: x.value for x in proto.metadata_props}
    if "preprocessing" not in metadata:
        raise KeyError("preprocessing")
    return {key: json.loads(value) for key, value in metadata.items()}


# LiteRT


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
                [x] for x in _batches(representative, batch_size)
            )
        return converter

    return make


def _batches(images, batch_size):
    """Batches of exactly this size; the last one begins again at the first image."""
    for start in range(0, len(images), batch_size):
        yield np.take(images, range(start, start + batch_size), axis=0, mode="wrap")


def _append_metadata(path, metadata):
    # A flatbuffer knows where it ends; LiteRT's own tools append files in this way.
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("metadata.json", json.dumps(metadata, indent=1))
        if metadata["labels"] is not None:
            archive.writestr("labels.txt", "\n".join(metadata["labels"]))


def _run_litert(path, images, batch_size, names):
    """What a file gives for the images, and its float tensors inside."""
    import tensorflow as tf

    with _quiet():
        interpreter = tf.lite.Interpreter(str(path))
    runner = interpreter.get_signature_runner("serving_default")
    (given,) = runner.get_input_details().values()
    taken = runner.get_output_details()
    batches = []
    for x in _batches(images, batch_size):
        outputs = runner(image=_quantized(x, given))
        batches.append([_dequantized(outputs[name], taken[name]) for name in names])
    ends = {given["index"], *(x["index"] for x in taken.values())}
    float_tensors = tuple(
        tensor["name"]
        for tensor in interpreter.get_tensor_details()
        if tensor["index"] not in ends and np.issubdtype(tensor["dtype"], np.floating)
    )
    return [np.concatenate(x)[: len(images)] for x in zip(*batches)], float_tensors


@contextlib.contextmanager
def _quiet():
    """Without TensorFlow's advice on its interpreter, which is not for our users."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"\s*Warning: tf.lite.Interpreter is")
        warnings.filterwarnings("ignore", r".*`experimental_preserve_all_tensors`")
        yield


def _quantized(x, tensor):
    if np.issubdtype(tensor["dtype"], np.floating):
        return x.astype(tensor["dtype"])
    scale, zero_point = tensor["quantization"]
    limits = np.iinfo(tensor["dtype"])
    x = np.clip(np.round(x / scale) + zero_point, limits.min, limits.max)
    return x.astype(tensor["dtype"])


def _dequantized(x, tensor):
    if np.issubdtype(tensor["dtype"], np.floating):
        return x.astype("float32")
    scale, zero_point = tensor["quantization"]
    return ((x.astype("float32") - zero_point) * scale).astype("float32")


def _layer_errors(rounded, exact, images, batch_size):
    """The errors by layer, in their order, of one file's tensors to another's."""
    images = images[:LAYER_IMAGES]
    rounded, exact = (_tensors(x, images, batch_size) for x in (rounded, exact))
    errors = []
    for name, ours in rounded.items():
        theirs = exact.get(name)
        if theirs is None or theirs.shape != ours.shape:
            continue
        if (theirs != theirs[:1]).any():  # weights are alike for all images
            rms, varies = _rms(ours - theirs), _rms(theirs - theirs.mean(0))
            errors.append(LayerError(name.split(";")[0], rms, rms / varies))
    return tuple(errors)


def _tensors(content, images, batch_size):
    """What each tensor of a file is for the images, in floating point."""
    import tensorflow as tf

    with _quiet():
        interpreter = tf.lite.Interpreter(
            model_content=content, experimental_preserve_all_tensors=True
        )
    runner = interpreter.get_signature_runner("serving_default")
    (given,) = runner.get_input_details().values()
    found = {}
    for x in _batches(images, batch_size):
        runner(image=_quantized(x, given))
        for tensor in interpreter.get_tensor_details():
            # Other weights have no batch axis, and some tensors are never written.
            if [*tensor["shape"][:1]] != [batch_size]:
                continue
            with contextlib.suppress(ValueError):
                value = _dequantized(interpreter.get_tensor(tensor["index"]), tensor)
                found.setdefault(tensor["name"], []).append(value)
    return {name: np.concatenate(values) for name, values in found.items()}
