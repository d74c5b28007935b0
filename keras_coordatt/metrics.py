"""Metrics for three tasks, added up image by image."""

from collections.abc import Sequence

import numpy as np

from keras_coordatt.detection.evaluation import (
    average_precision,
    coco_annotation,
    coco_evaluation,
    mean_precision,
    precisions,
)
from keras_coordatt.prediction import resize_mask
from keras_coordatt.record import IGNORED

# COCO's sizes of objects by their areas: small below 32 x 32 pixels, large from 96 x 96.
AREAS = {"small": [0, 32**2], "medium": [32**2, 96**2], "large": [96**2, 1e10]}


class Metrics:
    """Metrics of a model.

    Args:
        labels: Names of the model's classes.
    """

    def __init__(self, labels: Sequence[str]):
        self.labels = labels

    def measure(self, outputs: dict, target: dict):
        """Returns the measurements of an image, from its outputs of `Runnable.run`."""
        raise NotImplementedError

    def keep(self, measured) -> None:
        """Adds an image that was measured, maybe in another process."""
        raise NotImplementedError

    def main(self, images) -> dict[str, float]:
        """Returns the main metrics over the images with these indices.

        An image may occur several times, for the bootstrap.
        """
        raise NotImplementedError

    def others(self) -> dict[str, float]:
        """Returns further metrics over all images."""
        return {}

    def by_class(self) -> list[dict]:
        """Returns one dict per class, over all images."""
        raise NotImplementedError

    def confusion(self) -> list[list[int]] | None:
        """Returns the number of images by true class (row) and predicted class."""
        return None

    def precision_recall(self) -> dict[str, list[float]] | None:
        """Returns the precision of each class at recalls of 0, 0.01, ..., 1."""
        return None


class ClassificationMetrics(Metrics):
    """Top-1 and top-5 accuracy, precision, recall and F1 per class, confusion."""

    def __init__(self, labels):
        super().__init__(labels)
        self.truth, self.ranks, self.predicted = [], [], []

    def measure(self, outputs, target):
        scores, truth = outputs["scores"], int(target["label"])
        order = np.argsort(-scores, kind="stable")
        return truth, order[0], int(np.flatnonzero(order == truth)[0])

    def keep(self, measured):
        for values, value in zip((self.truth, self.predicted, self.ranks), measured):
            values.append(value)

    def main(self, images):
        ranks = np.asarray(self.ranks)[images]
        metrics = {"top1": float((ranks < 1).mean())}
        if len(self.labels) > 5:
            metrics["top5"] = float((ranks < 5).mean())
        return metrics

    def confusion(self):
        table = np.zeros((len(self.labels),) * 2, "int64")
        np.add.at(table, (self.truth, self.predicted), 1)
        return table.tolist()

    def by_class(self):
        table = np.asarray(self.confusion())
        hits, truth, predicted = table.diagonal(), table.sum(1), table.sum(0)
        return [
            {
                "label": label,
                "images": int(truth[i]),
                "precision": _ratio(hits[i], predicted[i]),
                "recall": _ratio(hits[i], truth[i]),
                "f1": _ratio(2 * hits[i], truth[i] + predicted[i]),
            }
            for i, label in enumerate(self.labels)
        ]


class SegmentationMetrics(Metrics):
    """Mean intersection over union, and IoU per class, at the size of the masks."""

    def __init__(self, labels):
        super().__init__(labels)
        # Per image: pixels of both, of the truth, and predicted, by class.
        self.counts = []

    def measure(self, outputs, target):
        truth = np.asarray(target["mask"])
        counted = truth != IGNORED
        predicted = resize_mask(outputs["mask"], truth.shape)[counted]
        truth = truth[counted]
        classes = len(self.labels)
        return [
            np.bincount(x, minlength=classes)
            for x in (truth[truth == predicted], truth, predicted)
        ]

    def keep(self, measured):
        self.counts.append(measured)

    def main(self, images):
        ious = self._ious(images)
        known = ious[~np.isnan(ious)]
        return {"mean_iou": float(known.mean()) if len(known) else float("nan")}

    def others(self):
        hits, truth, _ = np.sum(self.counts, axis=0)
        return {"pixel_accuracy": _ratio(hits.sum(), truth.sum())}

    def by_class(self):
        _, pixels, _ = np.sum(self.counts, axis=0)
        ious = self._ious(slice(None))
        return [
            {"label": label, "pixels": int(pixels[i]), "iou": float(ious[i])}
            for i, label in enumerate(self.labels)
        ]

    def _ious(self, images):
        hits, truth, predicted = np.asarray(self.counts)[images].sum(0)
        union = truth + predicted - hits
        return np.where(union > 0, hits / np.maximum(union, 1), np.nan)


class DetectionMetrics(Metrics):
    """COCO's average precision and Pascal VOC's, computed by pycocotools.

    Boxes are compared in pixels of the original pictures. Objects that are difficult or
    a crowd count neither as found nor as missed, nor do detections that match them.
    """

    def __init__(self, labels):
        super().__init__(labels)
        self.images, self.objects, self.detections = 0, [], []
        self._evaluations = {}

    def measure(self, outputs, target):
        height, width = target["size"]
        scale = np.array([width, height, width, height], "float64")
        objects = [
            coco_annotation(box * scale, *marks)
            for box, *marks in zip(
                *(target[x] for x in ("boxes", "labels", "crowd", "difficult"))
            )
        ]
        detections = [
            {**coco_annotation(box * scale, label), "score": float(score)}
            for box, label, score in zip(
                outputs["boxes"], outputs["labels"], outputs["scores"]
            )
            if label >= 0
        ]
        return objects, detections

    def keep(self, measured):
        for known, annotations in zip((self.objects, self.detections), measured):
            known += [{"image_id": self.images, **x} for x in annotations]
        self.images += 1

    def main(self, images):
        evaluation, matches = self._evaluation("all")
        # One entry per class and image.
        table = np.asarray(matches, dtype=object).reshape(-1, self.images)
        evaluation.evalImgs = table[:, images].ravel().tolist()
        return average_precision(precisions(evaluation))

    def others(self):
        evaluation, _ = self._evaluation("sizes", areaRng=list(AREAS.values()))
        precision = precisions(evaluation)
        by_size = {
            f"AP_{name}": mean_precision(precision[..., i])
            for i, name in enumerate(AREAS)
        }
        voc, _ = self._evaluation(
            "voc", iouThrs=np.array([0.5]), recThrs=np.linspace(0, 1, 11)
        )
        return {**by_size, "VOC_mAP": mean_precision(precisions(voc))}

    def by_class(self):
        evaluation, evaluation.evalImgs = self._evaluation("all")
        precision = precisions(evaluation)
        counts = np.bincount(
            [x["category_id"] for x in self.objects if not x["iscrowd"]],
            minlength=len(self.labels),
        )
        return [
            {
                "label": label,
                "objects": int(counts[i]),
                "AP": mean_precision(precision[:, :, i]),
                "AP50": mean_precision(precision[0, :, i]),
            }
            for i, label in enumerate(self.labels)
        ]

    def precision_recall(self):
        evaluation, evaluation.evalImgs = self._evaluation("all")
        precision = precisions(evaluation)[0, :, :, 0]
        return {
            label: precision[:, i].tolist()
            for i, label in enumerate(self.labels)
            if precision[:, i].max() > -1
        }

    def _evaluation(self, name, **params):
        """Matches detections with objects once; returns a COCOeval and its matches."""
        if name not in self._evaluations:
            evaluation = coco_evaluation(
                self.objects, self.detections, self.images, len(self.labels), **params
            )
            self._evaluations[name] = evaluation, evaluation.evalImgs
        return self._evaluations[name]


def _ratio(part, total):
    return float(part / total) if total else float("nan")
