"""Average precision as COCO measures it, by pycocotools."""

import contextlib
import io
import math
import weakref
from collections.abc import Iterable, Sequence

import keras
import numpy as np

from keras_coordatt.detection.ssdlite import SSDLite

# Detectors of the models that were evaluated: to build and to trace one takes seconds.
_DETECTORS = weakref.WeakKeyDictionary()

NAMES = ("boxes", "labels", "scores")
STATS = ("AP", "AP50", "AP75")


def evaluate_detections(
    model: keras.Model,
    batches: Iterable,
    *,
    class_names: Sequence[str] | None = None,
) -> dict:
    """Measures the average precision of a detector, as on COCO.

    Args:
        model: An `SSDLite`, of which all detections above a score of 0.01 count; or
            what its `detector` gave.
        batches: Batches `(images, {"boxes": ..., "labels": ...})`, as in training, such
            as `keras_coordatt.data.load_detection` gives; a list or a dataset.
        class_names: Names of the classes, in order. Defaults to their numbers.

    Returns:
        A dict of numbers from 0 to 1, NaN where there is nothing to find:

        - `"AP"`, the mean of the average precisions at IoU 0.5, 0.55, ..., 0.95 and
          of the classes that occur: COCO's main number;
        - `"AP50"` and `"AP75"`, at an IoU of 0.5 and of 0.75;
        - `"AP_by_class"`, a dict from each class to its own AP.

    Raises:
        ImportError: if pycocotools is missing.
        ValueError: if the model isn't a detector, or there are no batches.

    Example:

    >>> evaluate_detections(model, val)["AP50"]
    0.86
    """
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise ImportError(
            "Average precision needs pycocotools: "
            f"pip install 'keras_coordatt[detection]' ({error})"
        ) from error
    if isinstance(model, SSDLite):
        model = _detector(model)
    outputs = model.output if isinstance(model, keras.Model) else None
    if not isinstance(outputs, dict) or set(outputs) != set(NAMES):
        raise ValueError(
            "`model` must be an `SSDLite`, or what its `detector` gives. "
            f"Received: {model}"
        )

    objects, detections, images = [], [], 0
    for x, y in batches:
        found = model.predict_on_batch(np.asarray(x))
        for i in range(len(x)):
            image = images + i
            objects += _annotations(image, y["boxes"][i], y["labels"][i])
            detections += _annotations(image, *(found[name][i] for name in NAMES))
        images += len(x)
    if not images:
        raise ValueError("`batches` must have at least one batch. Received none")
    names = class_names
    if names is None:
        labels = [x["category_id"] for x in objects + detections]
        names = range(max(labels, default=-1) + 1)
    if any(x["category_id"] >= len(names) for x in objects):
        raise ValueError(
            "`class_names` must name each class that occurs. Received: "
            f"{list(names)}, and a label of {max(x['category_id'] for x in objects)}"
        )

    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(
            *(_coco(COCO(), x, images, len(names)) for x in (objects, detections)),
            "bbox",
        )
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    # IoU, recall, class, all areas, 100 detections an image
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    return {
        **{name: _or_nan(x) for name, x in zip(STATS, evaluation.stats)},
        "AP_by_class": {
            name: _or_nan(precision[:, :, i].mean()) for i, name in enumerate(names)
        },
    }


def _detector(model):
    """Returns the detector of a model, the same one as long as its weights are."""
    weights, detector = _DETECTORS.get(model, ((), None))
    # Quantization and LoRA replace variables, which the traced function doesn't know.
    if list(map(id, weights)) != list(map(id, model.weights)):
        weights, detector = model.weights, model.detector(score_threshold=0.01)
        _DETECTORS[model] = weights, detector
    return detector


def _annotations(image, boxes, labels, scores=None):
    """The rows of padded arrays that are there, as COCO describes them."""
    boxes, labels = np.asarray(boxes, "float64"), np.asarray(labels)
    scores = np.ones(len(labels)) if scores is None else scores
    for box, label, score in zip(boxes, labels, scores):
        if label >= 0:
            left, top, right, bottom = box.tolist()
            yield {
                "image_id": image,
                "category_id": int(label),
                "bbox": [left, top, right - left, bottom - top],
                "area": (right - left) * (bottom - top),
                "iscrowd": 0,
                "score": float(score),
            }


def _coco(coco, annotations, images, classes):
    """Fills a data set of COCO. Its own reader of detections wants at least one."""
    coco.dataset = {
        "images": [{"id": i} for i in range(images)],
        "categories": [{"id": i} for i in range(classes)],
        # The number 0 would mean: not matched.
        "annotations": [{**x, "id": i} for i, x in enumerate(annotations, 1)],
    }
    coco.createIndex()
    return coco


def _or_nan(x):
    return float(x) if x >= 0 else math.nan
