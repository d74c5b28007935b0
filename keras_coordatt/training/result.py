"""Result of a training: evaluation of its best model, and figures as PNG files."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

import keras
import numpy as np

from keras_coordatt import visualize
from keras_coordatt.data import IGNORED
from keras_coordatt.distribution import current
from keras_coordatt.evaluation import (
    SCORE_THRESHOLD,
    Evaluation,
    evaluate,
    read_examples,
)
from keras_coordatt.extras import has_matplotlib
from keras_coordatt.preprocessing import preprocessing_of
from keras_coordatt.runnable import Runnable, open_model, score_format
from keras_coordatt.validation import height_and_width

if TYPE_CHECKING:
    from keras_coordatt.training.tasks import Task

_SAMPLES = 12
_RESAMPLES = 200
# Detections with lower scores are not drawn in the samples.
_DRAWN_SCORE = 0.3


def evaluate_result(model: keras.Model, task: Task, split: str):
    """Evaluates a trained model as `keras_coordatt.evaluation.evaluate` does.

    Args:
        model: The model.
        task: Its task.
        split: `"train"`, `"validation"` or `"test"`.

    Returns:
        The `Evaluation`, and a dict from file names to figures.
    """
    labels = task.labels or [str(i) for i in range(task.classes)]
    runnable = open_model(
        model,
        task=task.name,
        labels=labels,
        # Models from builders of other packages can't hold a record.
        preprocessing=None if preprocessing_of(model) else task.preprocessing,
        image_size=height_and_width(task.recipe.image_size),
        score_threshold=SCORE_THRESHOLD,
    )
    evaluation = evaluate(
        runnable, task.builder, split=task.splits[split], resamples=_RESAMPLES
    )
    if not has_matplotlib() or not current().first:
        return evaluation, {}
    return evaluation, {**_chart(evaluation), **_samples(runnable, task, split)}


def curves(rows: list[dict]):
    """Returns a figure of a history, one dict per epoch."""
    names = dict.fromkeys(name for row in rows for name in row)
    # The loss first, and the learning rate last.
    names = sorted(names, key=lambda x: ("loss" not in x) + (x == "learning_rate"))
    history = {
        name: [np.nan if row.get(name) is None else row[name] for row in rows]
        for name in names
        if name not in ("epoch", "phase")
    }
    return visualize.plot_history(history)


def _chart(evaluation: Evaluation) -> dict:
    """Draws the metrics by class, unless no class was measured."""
    labels = evaluation.labels
    if evaluation.confusion is not None:
        figure = visualize.plot_confusion_matrix(evaluation.confusion, labels)
        return {"confusion.png": figure}
    if evaluation.precision_recall is not None:
        if not evaluation.precision_recall:
            return {}
        figure = visualize.plot_precision_recall(evaluation.precision_recall, "AP50")
        return {"precision_recall.png": figure}
    ious = [row["iou"] for row in evaluation.by_class]
    if not np.isfinite(ious).any():
        return {}
    return {"iou.png": visualize.plot_class_scores(ious, labels, "IoU")}


def _samples(model: Runnable, task: Task, split: str) -> dict:
    """Draws predictions for pictures from all over the split."""
    name = task.splits[split]
    count = task.builder.info.splits[name].num_examples
    step = max(1, count // _SAMPLES)
    examples = read_examples(model, task.builder, name).shard(step, 0).take(_SAMPLES)
    examples = list(examples.as_numpy_iterator())
    pictures = np.stack([example["image"] for example in examples])
    outputs = model.run(model.prepare(pictures))
    labels = model.labels
    if task.name == "classification":
        figure = _draw_classes(pictures, examples, outputs["scores"], labels)
    elif task.name == "detection":
        if importlib.util.find_spec("cv2") is None:  # Keras draws boxes with it.
            return {}
        figure = _draw_detections(pictures, examples, outputs, labels)
    else:
        figure = _draw_masks(pictures, examples, outputs["mask"], labels)
    return {"predictions.png": figure}


def _draw_classes(pictures, examples, scores, labels):
    truth = np.array([example["label"] for example in examples])
    predicted = scores.argmax(-1)
    form = score_format(scores)
    titles = [
        f"{labels[p]} {s:{form}}" + (f"\n(is {labels[t]})" if p != t else "")
        for p, t, s in zip(predicted, truth, scores.max(-1))
    ]
    return visualize.plot_gallery(pictures, titles, wrong=predicted != truth, columns=6)


def _draw_detections(pictures, examples, detections, labels):
    most = max(1, *(len(x["objects"]["label"]) for x in examples))
    truth = {
        "boxes": np.zeros((len(examples), most, 4), "float32"),
        "labels": np.full((len(examples), most), -1, "int32"),
    }
    for i, example in enumerate(examples):
        objects = example["objects"]
        found = len(objects["label"])
        truth["boxes"][i, :found] = objects["bbox"][:, [1, 0, 3, 2]]
        truth["labels"][i, :found] = objects["label"]
    return visualize.plot_detections(
        pictures, detections, labels, truth=truth, score_threshold=_DRAWN_SCORE
    )


def _draw_masks(pictures, examples, masks, labels):
    from keras_coordatt.prediction import resize_mask

    truth = [
        resize_mask(example["segmentation_mask"][..., 0], masks.shape[1:])
        for example in examples
    ]
    # A white line between the two
    line = np.full_like(pictures[:, : 1 + pictures.shape[1] // 40], 255)
    twice = np.concatenate([pictures, line, pictures], axis=1)
    ignored = np.full(line.shape[:3], IGNORED)
    both = np.concatenate([masks, ignored, np.stack(truth)], axis=1).astype("int32")
    figure = visualize.plot_masks(twice, both, labels, columns=4)
    figure.supxlabel("above: predicted, below: truth", fontsize=9)
    return figure
