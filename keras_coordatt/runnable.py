"""Models of any format, opened to be run: Keras, SavedModel, LiteRT, ONNX.

    model = open_model("cats.tflite")
    model.task, model.labels                    as recorded in the file
    model.run(model.prepare([picture]))         the same outputs in every format

Evaluation, prediction and the checks of exported files run models in this form.
"""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import keras
import numpy as np

from keras_coordatt.applications.network_file import read_network
from keras_coordatt.detection import SSDLite
from keras_coordatt.detection.suppression import suppress
from keras_coordatt.export.detections import DETECTIONS
from keras_coordatt.export.litert_runtime import LiteRTFile, fixed_batches
from keras_coordatt.export.metadata import packages_for_onnx, read_metadata
from keras_coordatt.graph import check_network, input_and_output
from keras_coordatt.preprocessing import Preprocessing, preprocessing_of
from keras_coordatt.record import TASKS, check_labels, check_recorded_labels, record_of
from keras_coordatt.validation import (
    check_choice,
    check_image_size,
    check_number,
)
from keras_coordatt.weights import FILE_TYPES

__all__ = ["Runnable", "open_model"]


@dataclasses.dataclass(frozen=True, eq=False)
class Runnable:
    """A model of any format, with its record.

    Attributes:
        name: Name of the model, or of its file.
        call: Function from a batch of inputs to a dict of outputs by their names.
        shape: Shape of the input, with the batch axis; `None` for any size.
        dtype: Type of the input.
        data_format: `"channels_last"` or `"channels_first"`.
        task: `"classification"`, `"detection"` or `"segmentation"`.
        labels: Names of the classes, or `None` if they are unknown.
        preprocessing: A `Preprocessing`.
        image_size: `(height, width)` of the input.
        score_threshold: Minimum score of a detection, if the outputs are the boxes of
            all positions.
    """

    name: str
    call: Callable[[np.ndarray], dict[str, np.ndarray]]
    shape: tuple[int | None, ...]
    dtype: str = "float32"
    data_format: str = "channels_last"
    task: str | None = None
    labels: tuple[str, ...] | None = None
    preprocessing: Preprocessing | None = None
    image_size: tuple[int, int] | None = None
    score_threshold: float = 0.05

    def resize(self, picture):
        """Resizes a uint8 picture `(H, W, 3)` as recorded, as a TensorFlow tensor."""
        import tensorflow as tf

        if tuple(picture.shape[:2]) != self.image_size:
            picture = self.preprocessing.resize(picture, self.image_size)
        return tf.cast(picture, "uint8")

    def prepare(self, pictures: Iterable) -> np.ndarray:
        """Turns uint8 pictures `(H, W, 3)` of any size into a batch of inputs."""
        x = np.stack([np.asarray(self.resize(x)) for x in pictures])
        if self.data_format == "channels_first":
            x = x.transpose(0, 3, 1, 2)
        assert self.preprocessing is not None  # checked by `open_model`
        x = self.preprocessing.normalize(x.astype("float32"), self.data_format)
        return (np.rint(x) if "int" in self.dtype else x).astype(self.dtype)

    def run(self, batch: np.ndarray) -> dict[str, np.ndarray]:
        """Runs the model on a batch of inputs.

        Returns:
            A dict of `"scores"`, `(N, classes)`, for classification; of `"boxes"`,
            `"labels"` and `"scores"`, same as in `SSDLite.detector`, for detection; and
            of `"mask"`, `(N, H, W)`, for segmentation.

        Raises:
            ValueError: If the outputs aren't those of the task, or not of as many
                classes as there are labels.
        """
        outputs = self.call(batch)
        if any(np.isnan(x).any() for x in outputs.values()):
            raise ValueError(
                f"{self.name!r} outputs NaN: its weights are damaged, or its numbers are "
                "too large for its precision. Train or export it again"
            )
        if self.task == "classification":
            return self._scores(outputs)
        if self.task == "detection":
            return self._detections(outputs)
        return self._mask(outputs)

    def _scores(self, outputs):
        scores = self._single(outputs, 2)
        self._check_classes(scores.shape[1])
        return {"scores": scores}

    def _mask(self, outputs):
        (first, *_) = outputs.values()
        if first.ndim == 3:  # the model ends in an argmax
            return {"mask": self._single(outputs, 3).astype("int32")}
        axis = 1 if self.data_format == "channels_first" else -1
        logits = self._single(outputs, 4)
        self._check_classes(logits.shape[axis])
        return {"mask": logits.argmax(axis).astype("int32")}

    def _detections(self, outputs):
        if set(outputs) == {"boxes", "scores"}:
            self._check_classes(outputs["scores"].shape[-1])
            outputs = suppress(outputs, self.score_threshold)
        # LiteRT's detectors also return their number; unused slots have the label -1.
        outputs = {name: x for name, x in outputs.items() if name != "count"}
        if set(outputs) != DETECTIONS:
            raise ValueError(
                "A detector's outputs must be boxes, scores and labels, or boxes and "
                "scores. Export `model.detector()`, as `keras-coordatt export` does. "
                f"Received: {self.name} with {sorted(outputs)}"
            )
        self._check_classes(int(outputs["labels"].max(initial=-1)) + 1, most=True)
        return {**outputs, "labels": outputs["labels"].astype("int32")}

    def _single(self, outputs, rank):
        (x, *others) = outputs.values()
        if others or x.ndim != rank:
            raise ValueError(
                f"A model for {self.task} must have one output of rank {rank}. "
                f"Received: {self.name} with "
                f"{ {name: x.shape for name, x in outputs.items()} }"
            )
        return x

    def _check_classes(self, classes, most=False):
        known = self.labels and len(self.labels)
        if known and (classes > known if most else classes != known):
            raise ValueError(
                "`labels` must have a name for each of the model's "
                f"{classes} classes. Received: {list(self.labels)}"
            )


def open_model(
    model: keras.Model | str | os.PathLike | Runnable,
    *,
    task: str | None = None,
    labels: Sequence[str] | None = None,
    preprocessing: Preprocessing | None = None,
    image_size: int | tuple[int, int] | None = None,
    score_threshold: float = 0.05,
) -> Runnable:
    """Opens a model of any format.

    Values that no argument sets are read from the model or the file, never guessed.

    Args:
        model: A Keras model; the path of a `.keras`, `.h5`, `.tflite` or `.onnx` file,
            of a file of weights that `keras-coordatt convert` reads, or of a SavedModel.
        task: `"classification"`, `"detection"` or `"segmentation"`.
        labels: Names of the classes, in the order of the outputs, if they are not
            recorded.
        preprocessing: A `Preprocessing`.
        image_size: Height and width, for a model that takes any.
        score_threshold: Minimum score of a detection of an `SSDLite`, or of a file
            without suppression. Others have their own.

    Returns:
        A `Runnable`.

    Raises:
        ValueError: If an argument is invalid or doesn't fit the model, if `labels`
            differ from the recorded ones, if the file is none of the above, or if the
            task, the preprocessing or the image size is neither recorded nor given.
        OSError: If the file can't be opened.
        ImportError: If the file needs a package that isn't installed.

    Example:

    >>> open_model("cats.keras").labels
    ('cat', 'dog')
    """
    if isinstance(model, Runnable):
        return model
    check_number("score_threshold", score_threshold, 0, 1, closed=True)
    if isinstance(model, (str, os.PathLike)):
        source = _from_file(pathlib.Path(model), score_threshold)
    elif isinstance(model, keras.Model):
        source = _from_keras(model, score_threshold)
    else:
        raise ValueError(
            f"`model` must be a Keras model or a path. Received: {model!r}"
        )
    changes = {}
    if task is not None:
        changes["task"] = check_choice("task", task, TASKS)
    if labels is not None:
        changes["labels"] = tuple(check_labels(labels, None))
        check_recorded_labels(labels, source.labels, source.name)
    if preprocessing is not None:
        if not isinstance(preprocessing, Preprocessing):
            raise ValueError(
                f"`preprocessing` must be a Preprocessing. Received: {preprocessing!r}"
            )
        changes["preprocessing"] = preprocessing
    changes["image_size"] = _image_size(source, image_size)
    source = dataclasses.replace(source, **changes)
    for name in ("task", "preprocessing"):
        if getattr(source, name) is None:
            choices = f", one of {TASKS}" if name == "task" else ""
            raise ValueError(
                f"`{name}` must be given{choices}: it is not recorded on "
                f"{source.name!r}, and is not guessed. Received: None"
            )
    if len(source.preprocessing.mean) != 3:
        raise ValueError(
            f"`preprocessing` must be for RGB images. Received: {source.preprocessing}"
        )
    return source


def score_format(scores: np.ndarray) -> str:
    """Returns how to print a classifier's scores, which may be logits.

    Args:
        scores: All its scores for some pictures.

    Returns:
        `".1%"` for probabilities, all in [0, 1], otherwise `".2f"`.
    """
    rounding = 1e-5
    inside = (scores >= -rounding) & (scores <= 1 + rounding)
    return ".1%" if inside.all() else ".2f"


def outputs_by_picture(
    model: Runnable, pictures: Sequence, batch_size: int
) -> Iterator[dict[str, np.ndarray]]:
    """Yields the outputs of `model.run` for each of at most `batch_size` pictures."""
    batch = model.prepare(pictures)
    # Padded to one size, so that backends compile one program.
    padding = [(0, batch_size - len(batch))] + [(0, 0)] * (batch.ndim - 1)
    outputs = model.run(np.pad(batch, padding))
    for i in range(len(pictures)):
        yield {name: x[i] for name, x in outputs.items()}


def _image_size(source, given):
    first = source.data_format == "channels_first"
    own = source.shape[2:4] if first else source.shape[1:3]
    if given is not None:
        return check_image_size(given, own)
    if None not in own:
        return own
    if source.image_size is None:
        raise ValueError(
            f"`image_size` must be given: {source.name!r} takes images of any size, "
            "and the one that it was trained on is not recorded. Received: None"
        )
    return source.image_size


def _from_file(path, score_threshold):
    if not path.exists():
        raise FileNotFoundError(f"There is no file or folder {os.fspath(path)!r}")
    if path.name.endswith(FILE_TYPES):
        network = _from_keras(read_network(path), score_threshold)
        return dataclasses.replace(network, name=path.name)
    read = {".tflite": _from_litert, ".onnx": _from_onnx}.get(path.suffix)
    if (path / "saved_model.pb").exists():
        read = _from_saved_model
    if read is None:
        raise ValueError(
            "`model` must be a SavedModel, or end in .tflite, .onnx or one of "
            f"{FILE_TYPES}. Received: {os.fspath(path)!r}"
        )
    try:
        call, shape, dtype = read(path)
    except ImportError:
        raise
    except Exception as error:
        # Each runtime has exceptions of its own for a damaged file.
        raise ValueError(f"Cannot read {os.fspath(path)!r}: {error}") from error
    # Without metadata, the axis of length 3 is that of the channels.
    first = len(shape) == 4 and shape[1] == 3 and shape[3] != 3
    source = Runnable(
        path.name,
        call,
        tuple(shape),
        dtype=dtype,
        data_format="channels_first" if first else "channels_last",
        score_threshold=score_threshold,
    )
    return dataclasses.replace(source, **_recorded(path))


def _recorded(path):
    """Returns the attributes of a `Runnable` that the metadata of a file give."""
    try:
        metadata = read_metadata(path)
    except ValueError:
        return {}
    known = {"task": metadata.get("task")}
    if metadata["labels"]:
        known["labels"] = tuple(metadata["labels"])
    preprocessing = metadata["preprocessing"]
    if preprocessing:
        fields = {x.name for x in dataclasses.fields(Preprocessing)}
        known["preprocessing"] = Preprocessing(
            **{name: value for name, value in preprocessing.items() if name in fields}
        )
        known["data_format"] = preprocessing["data_format"]
        # Files of earlier versions lack the size of the training.
        size = preprocessing["input_size"] or metadata.get("image_size")
        known["image_size"] = size and tuple(size)
    return known


def _from_keras(model, score_threshold):
    check_network(model)
    image, *others = model.inputs
    if others or len(image.shape) != 4:
        raise ValueError(
            "`model` must have one input, a batch of images. "
            f"Received: inputs={model.inputs}"
        )
    record = record_of(model)
    network = model
    if isinstance(model, SSDLite):
        network = model.detector(score_threshold)
    _, output = input_and_output(network)
    detects = isinstance(output, dict) and set(output) == DETECTIONS

    def call(batch):
        outputs = network.predict_on_batch(batch)
        if not isinstance(outputs, dict):
            outputs = dict(enumerate(keras.tree.flatten(outputs)))
        return {str(name): np.asarray(x) for name, x in outputs.items()}

    return Runnable(
        model.name,
        call,
        image.shape,
        dtype=keras.backend.standardize_dtype(image.dtype),
        data_format=keras.config.image_data_format(),
        task="detection" if detects else record.task,
        labels=record.labels,
        preprocessing=preprocessing_of(model),
        image_size=record.image_size,
        score_threshold=score_threshold,
    )


def _from_litert(path):
    file = LiteRTFile(path)

    def call(batch):
        parts = [file.run(x) for x in fixed_batches(batch, file.shape[0] or 1)]
        return {
            name: np.concatenate([part[name] for part in parts])[: len(batch)]
            for name in parts[0]
        }

    return call, (None, *file.shape[1:]), file.dtype


def _from_onnx(path):
    with packages_for_onnx():
        import onnxruntime
    session = onnxruntime.InferenceSession(
        os.fspath(path), providers=["CPUExecutionProvider"]
    )
    image, *others = session.get_inputs()
    _check_one_input(path, others)
    names = [x.name for x in session.get_outputs()]
    shape = [x if isinstance(x, int) else None for x in image.shape]

    def call(batch):
        return dict(zip(names, session.run(names, {image.name: batch})))

    dtype = {"tensor(uint8)": "uint8"}.get(image.type, "float32")
    return call, shape, dtype


def _from_saved_model(path):
    import tensorflow as tf

    loaded = tf.saved_model.load(os.fspath(path))
    serve = loaded.signatures["serving_default"]
    (name, image), *others = serve.structured_input_signature[1].items()
    _check_one_input(path, others)

    # `loaded` is an argument because its variables are freed together with it.
    def call(batch, loaded=loaded):
        outputs = serve(**{name: tf.constant(batch)})
        return {key: value.numpy() for key, value in outputs.items()}

    return call, image.shape.as_list(), image.dtype.name


def _check_one_input(path, others):
    if others:
        raise ValueError(
            "`model` must have one input, a batch of images. "
            f"Received: {os.fspath(path)!r} with {1 + len(others)}"
        )
