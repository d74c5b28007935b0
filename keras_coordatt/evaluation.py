"""Evaluation of any model or exported file, for three tasks.

    report = evaluate("cats.tflite", "photos", split="validation")
    report.metrics["top1"], report.intervals["top1"]

The command is `keras-coordatt evaluate`.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import keras
import numpy as np

from keras_coordatt.distribution import alone, current, gather_examples, local_copy
from keras_coordatt.metrics import (
    ClassificationMetrics,
    DetectionMetrics,
    Metrics,
    SegmentationMetrics,
)
from keras_coordatt.preprocessing import Preprocessing
from keras_coordatt.record import IGNORED, check_recorded_labels
from keras_coordatt.runnable import Runnable, open_model, outputs_by_picture
from keras_coordatt.validation import check_number, check_positive_int

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

__all__ = [
    "Evaluation",
    "evaluate",
]

METRICS: dict[str | None, type[Metrics]] = {
    "classification": ClassificationMetrics,
    "detection": DetectionMetrics,
    "segmentation": SegmentationMetrics,
}
# Low, because average precision also needs the recall that uncertain detections add.
SCORE_THRESHOLD = 0.01
# More take hours, and make the intervals no better.
MAX_RESAMPLES = 10**6


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Result of an evaluation.

    Attributes:
        model: Name of the model or of its file.
        task: `"classification"`, `"detection"` or `"segmentation"`.
        split: The split of the data.
        images: Number of images.
        labels: Names of the classes.
        metrics: Dict from the name of a metric to its value, the most important first.
            NaN where there is nothing to measure.
        intervals: Dict from the name of each main metric to its bootstrap interval.
        confidence: Probability of the intervals.
        by_class: One dict per class.
        confusion: For classification, the number of images by true class (row) and
            predicted class (column).
        precision_recall: For detection, a dict from each class with objects to its
            precision at an IoU of 0.5 and recalls of 0, 0.01, ..., 1.
    """

    model: str
    task: str
    split: str
    images: int
    labels: tuple[str, ...]
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    confidence: float
    by_class: list[dict]
    confusion: list[list[int]] | None = None
    precision_recall: dict[str, list[float]] | None = None

    @property
    def main(self) -> str:
        """Name of the most important metric."""
        return next(iter(self.metrics))

    def as_dict(self) -> dict:
        """Returns the report as JSON can hold it, with `None` for NaN."""
        return _without_nan(dataclasses.asdict(self))

    def __str__(self):
        lines = [f"{self.model}: {self.task} on {self.images} images of {self.split!r}"]
        for name, value in self.metrics.items():
            line = f"  {name:<15}{_percent(value)}"
            if name in self.intervals:
                low, high = map(_percent, self.intervals[name])
                line += f"  ({self.confidence:.0%} interval {low.strip()} to {high.strip()})"
            lines.append(line)
        if self.by_class:
            columns = list(self.by_class[0])[1:]
            width = max(5, *(len(row["label"]) for row in self.by_class))
            lines.append(f"  {'class':<{width}}" + "".join(f"{x:>11}" for x in columns))
            for row in self.by_class:
                cells = [
                    f"{x:>11,}" if isinstance(x, int) else f"{_percent(x):>11}"
                    for x in (row[name] for name in columns)
                ]
                lines.append(f"  {row['label']:<{width}}" + "".join(cells))
        return "\n".join(lines)


@alone()
def evaluate(
    model: keras.Model | str | os.PathLike,
    data: str | os.PathLike | tfds.core.DatasetBuilder,
    *,
    split: str = "test",
    task: str | None = None,
    labels: Sequence[str] | str | None = None,
    preprocessing: Preprocessing | None = None,
    image_size: int | tuple[int, int] | None = None,
    validation_split: float | None = None,
    on_error: str = "raise",
    batch_size: int = 32,
    resamples: int = 500,
    confidence: float = 0.95,
    seed: int = 0,
) -> Evaluation:
    """Evaluates a model on labeled data.

    | task | main metrics | others |
    |---|---|---|
    | classification | `top1`, `top5` (from six classes on) | precision, recall and F1 per class, confusion |
    | detection | `AP`, `AP50`, `AP75` | `AP_small`, `AP_medium`, `AP_large`, `VOC_mAP`, AP and AP50 per class |
    | segmentation | `mean_iou` | `pixel_accuracy`, IoU per class |

    Average precision is COCO's, by pycocotools. `VOC_mAP` is Pascal VOC 2007's with 11
    points, of COCO's matches. Boxes and masks are compared in the size of the original
    pictures. Objects that are difficult or a crowd don't count, nor pixels of the value
    255. The mean IoU is over the classes that occur in the masks or the predictions.

    Each main metric has a bootstrap interval: images are drawn from the split with
    replacement, as many as there are, `resamples` times, and the interval holds the
    middle `confidence` of the values, such as 95 %. It shows how much the metric depends
    on the choice of the images in the split.

    In several processes (`keras_coordatt.training.distribute`), each evaluates its part
    of the images, and all return the same.

    Args:
        model: A Keras model, or the path of a `.keras`, `.tflite` or `.onnx` file or of
            a SavedModel. See `open_model`.
        data: A folder or file that `keras_coordatt.data` reads, a TFDS name or a
            builder.
        split: `"train"`, `"validation"`, `"test"`, or another split of the data.
            Defaults to `"test"`.
        task, preprocessing, image_size: Used where the model has no record. See
            `open_model`.
        labels: Names of the model's classes, in order, if they are not recorded on it;
            `"data"` if they are the data's, in the same order. The data's classes are
            found among them by name.
        validation_split, on_error: Same as in `keras_coordatt.data.load_classification`.
        batch_size: Images per call of the model. Defaults to 32.
        resamples: Number of bootstrap samples. 0 for no intervals. Defaults to 500.
        confidence: Probability of the intervals, in (0, 1). Defaults to 0.95.
        seed: Seed of the bootstrap. Defaults to 0.

    Returns:
        An `Evaluation`.

    Raises:
        TypeError: If `data` is something else.
        ValueError: If an argument is invalid, something about the model is neither
            recorded nor given, or the data doesn't fit the model.
        OSError: If the model isn't there.
        ImportError: If detection is evaluated without pycocotools.

    Example:

    >>> found = evaluate("cats.keras", "photos", split="validation", validation_split=0.5)
    >>> found.metrics["top1"]
    1.0
    """
    check_positive_int("batch_size", batch_size)
    check_positive_int("resamples", resamples, MAX_RESAMPLES, zero=True)
    check_number("confidence", confidence, 0, 1)
    check_positive_int("seed", seed, zero=True)
    from keras_coordatt.data import open_data
    from keras_coordatt.data.opening import check_data

    check_data("data", data)
    runnable = open_model(
        local_copy(model),
        task=task,
        labels=None if isinstance(labels, str) else labels,
        preprocessing=preprocessing,
        image_size=image_size,
        score_threshold=SCORE_THRESHOLD,
    )
    builder = open_data(
        data, runnable.task, on_error=on_error, validation_split=validation_split
    )
    check_split(split, builder)
    runnable, order = match_labels(runnable, builder, labels)

    metrics = METRICS[runnable.task](runnable.labels)
    found = (
        metrics.measure(outputs, target)
        for outputs, target in _outputs_and_targets(
            runnable, builder, split, order, batch_size
        )
    )
    images = 0
    for measured in gather_examples(found):
        metrics.keep(measured)
        images += 1
    if not images:
        raise ValueError(f"`split` must have images. Received: {split!r}")
    main = metrics.main(np.arange(images))
    return Evaluation(
        model=runnable.name,
        task=runnable.task,
        split=split,
        images=images,
        labels=runnable.labels,
        metrics={**main, **metrics.others()},
        intervals=_intervals(metrics, images, resamples, confidence, seed),
        confidence=confidence,
        by_class=metrics.by_class(),
        confusion=metrics.confusion(),
        precision_recall=metrics.precision_recall(),
    )


def check_split(split, builder):
    """Raises a ValueError if the data have no such split."""
    from keras_coordatt.data import splits

    known = list(splits(builder))
    name = split.split("[")[0] if isinstance(split, str) else None
    if not name or ("+" not in split and name not in known):
        raise ValueError(
            f"`split` must be one of the data's splits, {known}; `validation_split=0.2` "
            "sets aside the images as 'validation' that training did with that value. "
            f"Received: {split!r}"
        )


def match_labels(model: Runnable, builder, labels):
    """Adds labels to a model, and finds the data's classes among them by name.

    Args:
        model: From `open_model`, with the labels that were given as a list.
        builder: The data.
        labels: `"data"`, or a list or `None` to keep the model's labels.

    Returns:
        The model with labels, and an array of the model's class by the data's class.

    Raises:
        ValueError: If the labels are unknown, not those of the data, or `"data"` where
            the model records the same names in another order.
    """
    from keras_coordatt.data import class_names

    names = class_names(builder, model.task)
    if isinstance(labels, str):
        if labels != "data" or names is None:
            raise ValueError(
                '`labels` must be names, or "data" if the data has names. '
                f"Received: {labels!r}, and data with {names}"
            )
        moved = [x for x, y in zip(names, model.labels or ()) if x != y]
        if set(moved) & set(model.labels or ()):
            # Other names are possible, such as in another language.
            check_recorded_labels(names, model.labels, model.name)
        model = dataclasses.replace(model, labels=tuple(names))
    if model.labels is None:
        raise ValueError(
            f"`labels` must be given: they are not recorded on {model.name!r}, and "
            'their order is not guessed. Pass "data" if the model was trained on these '
            f"classes in this order: {names}. Received: None"
        )
    if names is None:
        return model, np.arange(len(model.labels))
    unknown = [name for name in names if name not in model.labels]
    if unknown:
        other_names = ""
        if len(names) == len(model.labels):
            other_names = (
                '. If they are the same classes in the same order, pass `labels="data"`'
            )
        raise ValueError(
            f"`data` has classes that the model doesn't know: {unknown}. The model's "
            f"are {list(model.labels)}{other_names}"
        )
    return model, np.array([model.labels.index(name) for name in names])


def _outputs_and_targets(model, builder, split, order, batch_size):
    """Yields the outputs and the target of each image."""
    shard = current().process, current().processes
    examples = read_examples(model, builder, split, shard).as_numpy_iterator()
    while batch := list(itertools.islice(examples, batch_size)):
        pictures = [example["image"] for example in batch]
        outputs = outputs_by_picture(model, pictures, batch_size)
        for example, found in zip(batch, outputs):
            yield found, _target(model.task, example, order)


def read_examples(model, builder, split, shard=(0, 1)):
    """Reads a split in its order, or a shard, with pictures resized for the model."""
    import tensorflow as tf

    # AutoGraph would warn that it can't convert it, and isn't needed here.
    @tf.autograph.experimental.do_not_convert
    def resize(example):
        image = example["image"]
        if image.shape[-1] == 1:
            image = tf.image.grayscale_to_rgb(image)
        kept = {
            name: example[name]
            for name in ("label", "objects", "segmentation_mask")
            if name in example
        }
        return {"image": model.resize(image), "size": tf.shape(image)[:2], **kept}

    from keras_coordatt.data.batches import open_shard

    dataset, _ = open_shard(builder, split, shard, shuffle_files=False)
    return dataset.map(resize, num_parallel_calls=tf.data.AUTOTUNE).prefetch(4)


def _target(task, example, order):
    """Returns what `measure` of the metrics needs, in the model's classes."""
    if task == "classification":
        return {"label": order[example["label"]]}
    if task == "segmentation":
        mask = example["segmentation_mask"][..., 0].astype("int64")
        classes = np.full(256, -1)
        classes[: len(order)] = order
        classes[IGNORED] = IGNORED
        if mask.max() >= len(classes) or (classes[mask] < 0).any():
            raise ValueError(
                f"`data` must have masks of {len(order)} classes, or {IGNORED} where pixels "
                f"are ignored. Received: a mask with {np.unique(mask).tolist()}"
            )
        return {"mask": classes[mask]}
    objects = example["objects"]
    boxes = objects["bbox"][:, [1, 0, 3, 2]]  # from (y1, x1, y2, x2)
    unmarked = np.zeros(len(boxes), bool)
    return {
        "size": example["size"],
        "boxes": np.clip(boxes, 0, 1),
        "labels": order[objects["label"]],
        "crowd": objects.get("is_crowd", unmarked),
        "difficult": objects.get("is_difficult", unmarked),
    }


def _intervals(metrics, images, resamples, confidence, seed):
    if not resamples:
        return {}
    rng = np.random.default_rng(seed)
    drawn = [metrics.main(rng.integers(0, images, images)) for _ in range(resamples)]
    tails = (1 - confidence) / 2, (1 + confidence) / 2
    return {
        name: tuple(np.nanquantile([x[name] for x in drawn], tails).tolist())
        for name in drawn[0]
        if not all(math.isnan(x[name]) for x in drawn)
    }


def _without_nan(value):
    if isinstance(value, dict):
        return {key: _without_nan(x) for key, x in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(x) for x in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _percent(value):
    return f"{'-':>8}" if math.isnan(value) else f"{100 * value:6.1f} %"
