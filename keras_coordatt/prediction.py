"""Predictions of any model or exported file, for ordinary image files.

    for prediction in predict("cats.tflite", "photos/*.jpg"):
        print(prediction)

The command is `keras-coordatt predict`.
"""

import dataclasses
import glob
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

import keras
import numpy as np

from keras_coordatt.distribution import alone, current, gather, local_copy
from keras_coordatt.preprocessing import Preprocessing
from keras_coordatt.record import check_labels
from keras_coordatt.runnable import (
    Runnable,
    open_model,
    outputs_by_picture,
    score_format,
)
from keras_coordatt.validation import (
    check_array,
    check_choice,
    check_positive_int,
    check_sequence,
    check_type,
)
from keras_coordatt.visualize.overlays import draw_boxes, draw_masks

__all__ = [
    "DetectedObject",
    "Prediction",
    "draw",
    "predict",
    "predictions",
]

# There is no "repair" for a picture.
ON_ERROR = ("raise", "skip")


@dataclasses.dataclass(frozen=True)
class DetectedObject:
    """An object that a detector found.

    Attributes:
        label: Name of its class, or its number if the names are unknown.
        score: Its score, in [0, 1].
        box: `(x1, y1, x2, y2)` in pixels of the picture.
    """

    label: str
    score: float
    box: tuple[float, float, float, float]


@dataclasses.dataclass(frozen=True, eq=False)
class Prediction:
    """Prediction for one picture.

    Attributes:
        file: Path of the picture, or `None` for an array.
        size: `(height, width)` of the picture.
        classes: Pairs of a label and its score, the highest first. The scores are the
            model's outputs: probabilities if it ends in a softmax.
        objects: Tuple of `DetectedObject`, the highest score first.
        mask: Class of each pixel of the picture, int32, `(height, width)`, or `None`.
        shares: Dict from the labels in the mask to their share of the picture.
        score_threshold: Minimum score of the objects, or `None` if they have none.
        score_format: How `str` formats the scores of the classes: `".1%"`, or `".2f"`
            if they are no probabilities.
    """

    file: str | None
    size: tuple[int, int]
    classes: tuple[tuple[str, float], ...] = ()
    objects: tuple[DetectedObject, ...] = ()
    mask: np.ndarray | None = None
    shares: dict[str, float] = dataclasses.field(default_factory=dict)
    score_threshold: float | None = None
    score_format: str = ".1%"

    def as_dict(self) -> dict:
        """Returns everything but the mask, as JSON can hold it."""
        result: dict = {"file": self.file, "size": list(self.size)}
        if self.classes:
            result["classes"] = [{"label": x, "score": y} for x, y in self.classes]
        elif self.mask is not None:
            result["shares"] = self.shares
        else:
            result["objects"] = [dataclasses.asdict(x) for x in self.objects]
        return result

    def rows(self) -> list[dict]:
        """Returns one row for a table per class, object or share."""
        rows: list[dict] = [{"label": x, "score": y} for x, y in self.classes]
        for found in self.objects:
            box = dict(zip(("x1", "y1", "x2", "y2"), found.box))
            rows.append({"label": found.label, "score": found.score, **box})
        rows += [{"label": x, "share": y} for x, y in self.shares.items()]
        return [{"file": self.file, **row} for row in rows]

    def __str__(self):
        lines = [self.file or "array"]
        for label, score in self.classes:
            lines.append(f"  {score:7{self.score_format}}  {label}")
        for found in self.objects:
            box = ", ".join(f"{x:.0f}" for x in found.box)
            lines.append(f"  {found.score:7.1%}  {found.label} at ({box})")
        lines += [f"  {share:7.1%}  {label}" for label, share in self.shares.items()]
        if len(lines) == 1:
            threshold = self.score_threshold
            above = "" if threshold is None else f" with a score above {threshold:g}"
            lines.append(f"  nothing found{above}")
        return "\n".join(lines)


@alone()
def predict(
    model: keras.Model | str | os.PathLike,
    images: str | os.PathLike | np.ndarray | Iterable,
    *,
    top: int = 5,
    score_threshold: float = 0.5,
    task: str | None = None,
    labels: Sequence[str] | None = None,
    preprocessing: Preprocessing | None = None,
    image_size: int | tuple[int, int] | None = None,
    batch_size: int = 32,
    on_error: str = "raise",
) -> list[Prediction]:
    """Predicts the classes, objects or masks of pictures.

    Pictures are read as a viewer shows them, EXIF orientation included, and resized and
    normalized as recorded on the model or in the file.

    Args:
        model: A Keras model, or the path of a `.keras`, `.tflite` or `.onnx` file or of
            a SavedModel. See `open_model`.
        images: Path of a picture, of a folder, whose pictures are found at any depth, or
            a glob pattern; a uint8 array `(H, W, 3)` or `(N, H, W, 3)`; or a list of
            these.
        top: Number of classes per picture, for classification. Defaults to 5.
        score_threshold: Minimum score of an object. Defaults to 0.5.
        task, labels, preprocessing, image_size: Used where the model has no record.
            See `open_model`. Without labels, classes are called by their numbers.
        batch_size: Pictures per call of the model. Defaults to 32.
        on_error: `"raise"`, or `"skip"` to leave out pictures that cannot be read, with
            a warning that names them. Defaults to `"raise"`.

    Returns:
        One `Prediction` per picture.

    Raises:
        ValueError: If an argument is invalid, something about the model is neither
            recorded nor given, there are no pictures, or one cannot be read.
        OSError: If the model or a picture isn't there.

    Example:

    >>> label, score = predict("cats.keras", "photo.jpg")[0].classes[0]
    >>> label
    'cat'
    """
    check_choice("on_error", on_error, ON_ERROR)
    pictures = find_pictures(images)
    runnable = open_model(
        local_copy(model),
        task=task,
        labels=labels,
        preprocessing=preprocessing,
        image_size=image_size,
        score_threshold=score_threshold,
    )
    # Each process predicts its part, and all return the same.
    devices = current()
    start, stop = (
        len(pictures) * i // devices.processes
        for i in (devices.process, devices.process + 1)
    )
    found = predictions(runnable, pictures[start:stop], top, batch_size, on_error)
    return [x for part in gather(list(found)) for x in part]


def find_pictures(images) -> list:
    """Returns the files and the arrays that the `images` of `predict` refer to.

    Raises:
        ValueError: If there are none, or arrays are not uint8 pictures.
        FileNotFoundError: If a path isn't there.
    """
    if isinstance(images, (str, os.PathLike)):
        found = _find_files(os.fspath(images))
    elif hasattr(images, "shape"):
        images = np.asarray(images)
        if (
            images.dtype != "uint8"
            or images.ndim not in (3, 4)
            or images.shape[-1] != 3
        ):
            raise ValueError(
                "`images` must be uint8 RGB pictures, (H, W, 3) or (N, H, W, 3). "
                f"Received: {images.dtype} of shape {images.shape}"
            )
        found = list(images) if images.ndim == 4 else [images]
    elif isinstance(images, Iterable) and not isinstance(images, Mapping):
        found = [x for image in images for x in find_pictures(image)]
    else:
        raise ValueError(
            f"`images` must be paths or uint8 arrays. Received: {type(images)}"
        )
    if not found:
        raise ValueError(f"`images` has no pictures. Received: {images!r}")
    return found


def _find_files(name):
    from keras_coordatt.data.reading import IMAGE_SUFFIXES

    path = pathlib.Path(name)
    if path.is_file():
        return [path]
    if path.is_dir():
        candidates = sorted(path.rglob("*"))
    else:
        candidates = sorted(map(pathlib.Path, glob.glob(name, recursive=True)))
        if not candidates:
            raise FileNotFoundError(f"There is no picture or folder {name!r}")
    return [
        x
        for x in candidates
        if x.suffix.lower() in IMAGE_SUFFIXES
        and not x.name.startswith(".")
        and x.is_file()
    ]


def predictions(
    model: Runnable,
    pictures: Sequence,
    top: int = 5,
    batch_size: int = 32,
    on_error: str = "raise",
) -> Iterator[Prediction]:
    """Yields predictions one by one, so that they needn't all be in memory.

    Args:
        model: From `open_model`.
        pictures: From `find_pictures`.
        top, batch_size, on_error: Same as in `predict`.

    Yields:
        One `Prediction` per picture, in order.

    Raises:
        TypeError: If `model` isn't a `Runnable`.
        ValueError: If another argument is invalid, or a picture cannot be read.
    """
    from keras_coordatt.data.reading import find_faults, read_image, report_faults

    check_type("model", model, Runnable, "a Runnable, from `open_model`")
    check_choice("on_error", on_error, ON_ERROR)
    pictures = check_sequence("pictures", pictures)
    for picture in pictures:
        if not isinstance(picture, str | os.PathLike | np.ndarray):
            raise ValueError(
                f"`pictures` must be paths or arrays. Received: {picture!r}"
            )
    check_positive_int("top", top)
    batch_size = min(check_positive_int("batch_size", batch_size), len(pictures))

    def read(picture):
        return picture if isinstance(picture, np.ndarray) else read_image(picture)

    faults = []
    for start in range(0, len(pictures), max(1, batch_size)):
        files = pictures[start : start + batch_size]
        images, problems = find_faults(read, files)
        if on_error == "raise":
            report_faults(problems, on_error, "pictures that cannot be read", "")
        faults += problems
        pairs = [(x, y) for x, y in zip(files, images) if y is not None]
        if not pairs:
            continue
        outputs = outputs_by_picture(model, [image for _, image in pairs], batch_size)
        for (file, image), found in zip(pairs, outputs):
            file = None if isinstance(file, np.ndarray) else os.fspath(file)
            yield _prediction(model, file, image.shape[:2], found, top)
    report_faults(faults, on_error, "pictures that cannot be read", "left out")


def _prediction(model, file, size, outputs, top):
    def name(label):
        return model.labels[label] if model.labels else str(label)

    if model.task == "classification":
        scores = outputs["scores"]
        best = np.argsort(-scores, kind="stable")[:top]
        classes = tuple((name(i), float(scores[i])) for i in best)
        return Prediction(file, size, classes, score_format=score_format(scores))
    if model.task == "detection":
        height, width = size
        scale = np.array([width, height, width, height])
        found = [
            DetectedObject(name(label), float(score), tuple((box * scale).tolist()))
            for label, score, box in zip(
                outputs["labels"], outputs["scores"], outputs["boxes"].astype("float64")
            )
            if label >= 0 and score > model.score_threshold
        ]
        threshold = model.score_threshold
        return Prediction(file, size, objects=tuple(found), score_threshold=threshold)
    mask = resize_mask(outputs["mask"], size)
    values, counts = np.unique(mask, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    shares = {name(int(values[i])): float(counts[i] / mask.size) for i in order}
    return Prediction(file, size, mask=mask, shares=shares)


def resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes a mask to the nearest pixel, with pixel centers at half integers."""
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype("int64")
        for new, old in zip(size, mask.shape)
    )
    return mask[rows[:, None], columns]


def draw(
    prediction: Prediction, picture: np.ndarray, labels: Sequence[str] | None
) -> np.ndarray:
    """Draws boxes or a mask on a picture, by `keras.visualization`.

    Args:
        prediction: Of a detector or a segmenter; of a classifier, nothing is drawn.
        picture: uint8, `(H, W, 3)`.
        labels: Names of the model's classes, or `None`.

    Returns:
        The new picture, uint8.

    Raises:
        TypeError: If `prediction` isn't a `Prediction`.
        ValueError: If `picture` has another size than the prediction's, or `labels` isn't
            of the model that made it.
        ImportError: If OpenCV, with which Keras draws boxes, isn't installed.
    """
    check_type("prediction", prediction, Prediction, "a Prediction")
    picture = check_array("picture", picture, 3)
    if picture.dtype != "uint8" or picture.shape != (*prediction.size, 3):
        raise ValueError(
            f"`picture` must be the prediction's, uint8 of shape {(*prediction.size, 3)}. "
            f"Received: {picture.dtype} of shape {picture.shape}"
        )
    found = [x.label for x in prediction.objects]
    mask = prediction.mask
    classes = 0 if mask is None else int(mask.max()) + 1
    if labels is None:
        # Without labels, predictions call the classes by their numbers.
        names = dict.fromkeys(found)
        numbers = {x: int(x) if x.isdecimal() else i for i, x in enumerate(names)}
    else:
        labels = check_labels(labels, None)
        missing = [x for x in found if x not in labels]
        if missing or len(labels) < classes:
            raise ValueError(
                "`labels` must name the classes of the model that made `prediction`"
                f"{', such as ' + repr(missing[0]) if missing else ''}. "
                f"Received: {labels}"
            )
        numbers = {x: i for i, x in enumerate(labels)}
    if mask is not None:
        background = numbers.get("background")
        return draw_masks(picture[None], mask[None], classes, background=background)[0]
    return draw_boxes(
        picture,
        [x.box for x in prediction.objects],
        [numbers[x] for x in found],
        {i: x for x, i in numbers.items()},
        [x.score for x in prediction.objects],
    )
