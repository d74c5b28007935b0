"""Task, labels, image size and metrics of a model, recorded on the model itself.

    set_record(model, task="classification", labels=["daisy", "rose"])
    record_of(model).labels

They are in the configuration of the `PreprocessingRecord` at the image's entrance, so
they are saved, cloned, nested and copied with the network. Each record belongs to one
head, which is identified by the names and widths of its last layers with weights, as
files and clones keep nothing else of it. Another head on the same network has no record
until it gets its own; but one with the same name and width has that of the old head. Name
it differently, or replace the record:

    set_record(model, labels=["oak", "elm"], metrics={})
"""

import dataclasses
import math
import numbers
from collections.abc import Mapping, Sequence

import keras

from keras_coordatt.applications.blocks import channel_axis, spatial_size
from keras_coordatt.detection import NonMaxSuppression
from keras_coordatt.graph import input_and_output, last_layers
from keras_coordatt.layers.freezing import nested_layers
from keras_coordatt.preprocessing import record_layers
from keras_coordatt.validation import check_choice, check_positive_int

__all__ = [
    "TASKS",
    "Record",
    "record_of",
    "set_record",
]

# The metrics of training by task, the most important first
METRICS = {
    "classification": ("accuracy",),
    "detection": ("AP", "AP50"),
    "segmentation": ("mean_iou",),
}
TASKS = tuple(METRICS)
# Names of the tasks on the command line; here, because a training records its command
VERBS = {"classify": "classification", "detect": "detection", "segment": "segmentation"}
# The value of pixels that are ignored, as in the masks of Pascal VOC and Cityscapes
IGNORED = 255


@dataclasses.dataclass(frozen=True)
class Record:
    """Task, labels, image size and metrics of a model.

    Attributes:
        task: `"classification"`, `"detection"`, `"segmentation"`, or `None` if unknown.
        labels: Names of the classes, in the order of the outputs, or `None`.
        image_size: `(height, width)` of the images that it was trained on, or `None`.
        metrics: Dict from the name of a metric to its value. Empty if unknown.

    Example:

    >>> Record(task="classification", labels=("daisy", "rose")).image_size is None
    True
    """

    task: str | None = None
    labels: tuple[str, ...] | None = None
    image_size: tuple[int, int] | None = None
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)


def record_of(model: keras.Model) -> Record:
    """Returns the record of a model's outputs.

    Args:
        model: A `keras.Model`.

    Returns:
        A `Record`. Its attributes are `None` where nothing is recorded, and also where
        a record belongs to another head than the model's: one whose layers have other
        names or widths.

    Raises:
        TypeError: If `model` isn't a Keras model.

    Example:

    >>> model = MobileNetV2CA((64, 64, 3), weights=None, classes=2)
    >>> set_record(model, labels=["daisy", "rose"])
    >>> record_of(model).labels
    ('daisy', 'rose')
    """
    if not isinstance(model, keras.Model):
        raise TypeError(f"`model` must be a keras.Model. Received: {model!r}")
    layers = record_layers(model)
    if not layers or None in layers:
        return Record()
    head = _head(model)
    first, *others = (layer.records.get(head) for layer in layers)
    if first is None or any(other != first for other in others):
        return Record()
    lists = {
        name: first[name] and tuple(first[name]) for name in ("labels", "image_size")
    }
    return Record(**{**first, **lists})


def set_record(
    model: keras.Model,
    *,
    task: str | None = None,
    labels: Sequence[str] | None = None,
    image_size: tuple[int, int] | None = None,
    metrics: Mapping[str, float] | None = None,
) -> None:
    """Records task, labels, image size and metrics on a model.

    They survive `.keras` files, cloning, nesting, `insert_attention`, `fuse_attention`
    and export. Arguments that are left out keep their recorded values: those of the old
    head, if a new one has the same name and width.

    Args:
        model: A functional or Sequential model on a network of this package.
        task: `"classification"`, `"detection"` or `"segmentation"`.
        labels: Names of the classes, in the order of the outputs.
        image_size: `(height, width)`.
        metrics: Dict from the name of a metric to its value.

    Raises:
        ValueError: If an argument is none of the above, if the number of labels isn't
            the number of classes, or if the model has no `PreprocessingRecord` where
            the images enter it.
        TypeError: If `model` isn't a Keras model.

    Example:

    >>> model = MobileNetV2CA((64, 64, 3), weights=None, classes=2)
    >>> set_record(model, task="classification", metrics={"accuracy": 0.83})
    """
    record = dataclasses.asdict(record_of(model))
    layers = record_layers(model)
    if not layers or None in layers:
        raise ValueError(
            "`model` can't hold a record: its images must enter a network of "
            "`keras_coordatt.applications` for RGB images. "
            f"Received: {model.name}"
        )
    if task is not None:
        record["task"] = check_choice("task", task, TASKS)
    if labels is not None:
        record["labels"] = check_labels(labels, classes_of(model))
    if image_size is not None:
        record["image_size"] = _check_image_size(image_size, model)
    if metrics is not None:
        record["metrics"] = _check_metrics(metrics)
    head = _head(model)
    for layer in layers:
        layer.records = {**layer.records, head: record}


def check_labels(labels, classes):
    """Returns the labels as a list if they are strings, `classes` of them.

    Args:
        labels: The labels.
        classes: Their number, or `None` for any.

    Returns:
        A list of strings.

    Raises:
        ValueError: If the labels are anything else.
    """
    names = list(labels) if isinstance(labels, (list, tuple)) else []
    wrong = not names or isinstance(labels, str) or classes not in (None, len(names))
    if wrong or not all(isinstance(name, str) for name in names):
        raise ValueError(
            "`labels` must be strings, one per class"
            f"{f', {classes} of them' if classes else ''}. Received: {labels!r}"
        )
    return names


def check_recorded_labels(labels, recorded, name):
    """Checks that labels are those recorded on a model, if there are any.

    Other names would be those of other classes, or the same in another order, which no
    later check could find.

    Args:
        labels: The labels.
        recorded: The recorded labels, or `None`.
        name: Name of the model, for the error.

    Raises:
        ValueError: If they differ.
    """
    if recorded is not None and list(labels) != list(recorded):
        raise ValueError(
            f"`labels` must be left out, or those recorded on {name!r}: "
            f"{list(recorded)}. `keras_coordatt.record.set_record` changes them. "
            f"Received: {list(labels)}"
        )


def _check_image_size(image_size, model):
    if not isinstance(image_size, Sequence) or len(image_size) != 2:
        raise ValueError(
            f"`image_size` must be (height, width). Received: {image_size!r}"
        )
    size = [check_positive_int("image_size", side) for side in image_size]
    own = spatial_size(model.inputs[0])
    if any(side not in (None, new) for side, new in zip(own, size)):
        raise ValueError(
            f"`image_size` must be the model's, {own}. Received: {image_size!r}"
        )
    return size


def _check_metrics(metrics):
    sound = isinstance(metrics, Mapping) and all(
        isinstance(name, str)
        and isinstance(value, numbers.Real)
        and math.isfinite(value)
        for name, value in metrics.items()
    )
    if not sound:
        raise ValueError(
            "`metrics` must be a dict from names to finite numbers. "
            f"Received: {metrics!r}"
        )
    return {name: float(value) for name, value in metrics.items()}


def classes_of(model: keras.Model) -> int | None:
    """Returns the number of classes of a classifier, detector or segmenter, or `None`."""
    images, outputs = input_and_output(model)
    if isinstance(outputs, dict):
        if set(outputs) == {"boxes", "classes"}:  # logits, the background's first
            return outputs["classes"].shape[-1] - 1
        if set(outputs) == {"boxes", "scores"}:
            return outputs["scores"].shape[-1]
        suppression = next(
            (x for x in nested_layers(model) if isinstance(x, NonMaxSuppression)), None
        )
        if set(outputs) == {"boxes", "labels", "scores"} and suppression is not None:
            _, scores = keras.tree.flatten(suppression.input)  # after the boxes
            return scores.shape[-1]
    output, *others = keras.tree.flatten(outputs)
    if others:
        return None
    if len(output.shape) == 2:
        return output.shape[-1]
    is_map = len(output.shape) == 4 and "float" in output.dtype
    if is_map and spatial_size(output) == spatial_size(images):
        return output.shape[channel_axis()]
    return None


def _head(model):
    """Identifies a model's head: the last layers with weights, and their widths.

    Layers without weights after them, such as a softmax or the suppression of a
    detector, don't change the meaning of the classes.
    """
    found = set()
    for layer in last_layers(model):
        width = getattr(layer, "units", None) or getattr(layer, "filters", "")
        found.add(f"{layer.name}:{width}")
    return " ".join(sorted(found))
