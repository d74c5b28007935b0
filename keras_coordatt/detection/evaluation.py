"""COCO's average precision, computed by pycocotools."""

import contextlib
import io
import math
import weakref
from collections.abc import Iterable, Sequence

import keras
import numpy as np

from keras_coordatt.detection.objects import check_objects
from keras_coordatt.detection.ssdlite import SSDLite
from keras_coordatt.distribution import alone, gather_examples, local_copy
from keras_coordatt.extras import install_hint
from keras_coordatt.graph import input_and_output
from keras_coordatt.validation import check_sequence, check_type

# One detector per evaluated model, because building and tracing it takes seconds
_DETECTORS = weakref.WeakKeyDictionary()

NAMES = ("boxes", "labels", "scores")
ALL_SIZES = {"areaRng": [[0, 1e10]], "areaRngLbl": ["all"], "maxDets": [100]}


def evaluate_detections(
    model: keras.Model,
    batches: Iterable,
    *,
    class_names: Sequence[str] | None = None,
) -> dict:
    """Computes the average precision of a detector, as COCO defines it.

    Args:
        model: An `SSDLite`, whose detections with a score above 0.01 count, or a model
            from `SSDLite.detector`. The detector of an `SSDLite` is built once, so
            that it can be evaluated after every epoch.
        batches: List or dataset of batches `(images, {"boxes": ..., "labels": ...})`,
            as for training, such as from `keras_coordatt.data.load_detection`. Images
            with a weight of 0, a third element, don't count. If several processes are
            distributed, each passes its own shard.
        class_names: Names of the classes, in order. Defaults to their numbers.

    Returns:
        A dict of numbers in [0, 1], or NaN where there are no objects:

        - `"AP"`: mean over IoU thresholds 0.5, 0.55, ..., 0.95 and over the classes
          that occur, COCO's main metric;
        - `"AP50"`, `"AP75"`: at IoU thresholds of 0.5 and 0.75;
        - `"AP_by_class"`: a dict from each class to its AP.

    Raises:
        ImportError: If pycocotools is not installed.
        ValueError: If `model` isn't a detector, `batches` is empty, a label is out of
            range, or boxes are not `"rel_xyxy"`.

    Example:

    >>> evaluate_detections(model, val)["AP50"]
    """
    _coco_classes()  # An ImportError comes before the predictions.
    try:
        batches = iter(batches)
    except TypeError as error:
        raise TypeError(
            f"`batches` must be a list or dataset. Received: {batches!r}"
        ) from error
    if class_names is not None:
        class_names = check_sequence("class_names", class_names)
        for name in class_names:
            check_type("class_names", name, str, "strings")
    classes = None
    model = local_copy(model)
    if isinstance(model, SSDLite):
        classes, model = model.classes, _detector(model)
    outputs = input_and_output(model)[1] if isinstance(model, keras.Model) else None
    if not isinstance(outputs, dict) or set(outputs) != set(NAMES):
        raise ValueError(
            "`model` must be an `SSDLite`, or a model from its `detector`. "
            f"Received: {model}"
        )

    examples = gather_examples(_examples(model, batches, classes))
    images = len(examples)
    objects, detections = (
        [x for i, example in enumerate(examples) for x in _annotations(i, *example[j])]
        for j in range(2)
    )
    if not images:
        raise ValueError("`batches` must have at least one batch. Received none")
    names = class_names
    if names is None:
        labels = [x["category_id"] for x in objects + detections]
        names = range(max(labels, default=-1) + 1)
    if any(x["category_id"] >= len(names) for x in objects):
        raise ValueError(
            "`class_names` must have a name for every label. Received: "
            f"{list(names)}, and a label of {max(x['category_id'] for x in objects)}"
        )

    precision = precisions(coco_evaluation(objects, detections, images, len(names)))
    return {
        **average_precision(precision),
        "AP_by_class": {
            name: mean_precision(precision[:, :, i]) for i, name in enumerate(names)
        },
    }


def _examples(model, batches, classes):
    """Yields the objects and the detections of each image that counts, as arrays."""
    for batch in batches:
        if not isinstance(batch, list | tuple) or len(batch) not in (2, 3):
            raise ValueError(
                "`batches` must be pairs of images and their objects, or with weights. "
                f"Received: {batch!r}"
            )
        x, y, *weights = batch
        check_objects(y, classes)
        with alone():
            found = model.predict_on_batch(np.asarray(x))
        for i in range(len(x)):
            if not weights or weights[0][i] > 0:
                truth = y["boxes"][i], y["labels"][i]
                detected = [found[name][i] for name in NAMES]
                yield [[np.asarray(x) for x in part] for part in (truth, detected)]


def _coco_classes():
    """Returns pycocotools' `COCO` and `COCOeval`, or says how to install them."""
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise ImportError(
            f"Average precision needs pycocotools: {install_hint('detection')} ({error})"
        ) from error
    return COCO, COCOeval


def _detector(model):
    """Returns the detector of a model, built once."""
    weights, detector = _DETECTORS.get(model, ((), None))
    # Rebuild it after quantization or LoRA, which replace variables: a traced function
    # keeps the old ones.
    if list(map(id, weights)) != list(map(id, model.weights)):
        weights, detector = model.weights, model.detector(score_threshold=0.01)
        _DETECTORS[model] = weights, detector
    return detector


def coco_annotation(
    box: np.ndarray, label: int, crowd: bool = False, difficult: bool = False
) -> dict:
    """Returns a box, `"xyxy"`, in COCO's form.

    `COCOeval` ignores objects with `iscrowd=1`, so Pascal VOC's difficult objects have
    it, too.
    """
    left, top, right, bottom = box.tolist()
    return {
        "category_id": int(label),
        "bbox": [left, top, right - left, bottom - top],
        "area": (right - left) * (bottom - top),
        "iscrowd": int(crowd or difficult),
        "difficult": bool(difficult),
    }


def _annotations(image, boxes, labels, scores=None):
    """Yields the objects in padded arrays, as COCO's annotations."""
    boxes, labels = np.asarray(boxes, "float64"), np.asarray(labels)
    scores = np.ones(len(labels)) if scores is None else scores
    for box, label, score in zip(boxes, labels, scores):
        if label >= 0:
            found = coco_annotation(box, label)
            yield {**found, "image_id": image, "score": float(score)}


def coco_evaluation(
    objects: Sequence[dict],
    detections: Sequence[dict],
    images: int,
    classes: int,
    **params,
):
    """Returns a `COCOeval` that has matched detections with objects, in COCO's form.

    `params` become attributes of its `params`.
    """
    COCO, COCOeval = _coco_classes()

    class Evaluation(COCOeval):  # type: ignore[valid-type, misc]
        def computeIoU(self, imgId, catId):
            # Any detection inside a crowd overlaps with it; a difficult object overlaps
            # as other objects do.
            objects = self._gts[imgId, catId]
            self._gts[imgId, catId] = [
                {**x, "iscrowd": int(x["iscrowd"] and not x["difficult"])}
                for x in objects
            ]
            ious = super().computeIoU(imgId, catId)
            self._gts[imgId, catId] = objects
            return ious

    with contextlib.redirect_stdout(io.StringIO()):
        truth, found = (
            _dataset(COCO(), x, images, classes) for x in (objects, detections)
        )
        evaluation = Evaluation(truth, found, "bbox")
        for key, value in {**ALL_SIZES, **params}.items():
            setattr(evaluation.params, key, value)
        evaluation.evaluate()
    return evaluation


def precisions(evaluation) -> np.ndarray:
    """Returns precisions by IoU threshold, recall, class and size of the objects."""
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.accumulate()
    return evaluation.eval["precision"][..., -1]


def average_precision(precision: np.ndarray) -> dict[str, float]:
    """Returns COCO's main metrics, from the precisions at its ten IoU thresholds."""
    rows = {"AP": precision, "AP50": precision[0], "AP75": precision[5]}
    return {name: mean_precision(row) for name, row in rows.items()}


def mean_precision(precision: np.ndarray) -> float:
    """Averages as COCO does: classes without objects, of precision -1, don't count."""
    known = precision[precision > -1]
    return float(known.mean()) if known.size else math.nan


def _dataset(coco, annotations, images, classes):
    """Fills a new `COCO`; its own `loadRes` fails without any detection."""
    coco.dataset = {
        "images": [{"id": i} for i in range(images)],
        "categories": [{"id": i} for i in range(classes)],
        # From 1, because COCOeval takes an id of 0 as "not matched".
        "annotations": [{**x, "id": i} for i, x in enumerate(annotations, 1)],
    }
    coco.createIndex()
    return coco
