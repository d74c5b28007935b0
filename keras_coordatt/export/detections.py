"""Comparison of detections without regard to their order."""

import numpy as np

DETECTIONS = {"boxes", "labels", "scores"}

# Tolerance of a box (image side = 1) and its score, and the minimum share of detections
# with a counterpart. Rounding may lift an overlap over the threshold of the suppression,
# so that another box is kept.
LIMITS = {
    "float32": (1e-4, 1.0),
    "float16": (0.02, 0.9),
    "bfloat16": (0.1, 0.7),
    "dynamic": (0.2, 0.5),
    "int8": (0.2, 0.5),
}

# Tolerance of the agreement between a quantized file and the model.
AGREEING = 0.05


def count_detections(outputs: dict) -> int:
    return int((outputs["labels"] >= 0).sum())


def compare_detections(given, reference, what, precision, score_threshold):
    """Compares the detections of a file with those of the Keras model, image by image.

    Detections of equal score may come in any order, so each of the model's is paired
    with the nearest one of the file that has the same label.

    Args:
        given, reference: Dicts of `"boxes"`, `"labels"` and `"scores"`.
        what: The file, for messages.
        precision: Precision by which they may differ.
        score_threshold: Detections just above it may be missing, and so may the
            lowest score of an image with as many detections as there can be.

    Returns:
        The largest difference of paired `"boxes"` and `"scores"`.

    Raises:
        ValueError: If too few detections have a counterpart.
    """
    limit, share = LIMITS[precision]
    boxes, scores, missing, total = _compare(given, reference, limit, score_threshold)
    if missing > (1 - share) * total:
        raise ValueError(
            f"The outputs of {what} differ from the Keras model's. Of {total} detections "
            f"on {len(reference['labels'])} images, {missing} have no counterpart of "
            f"the same label with a box and a score within {limit}."
        )
    return {"boxes": float(max(boxes)), "scores": float(max(scores))}


def detection_agreement(given, reference, score_threshold) -> float:
    """Returns the share of detections that a file has in common with the Keras model.

    Args:
        given, reference, score_threshold: Same as in `compare_detections`. Boxes and
            scores may differ by 0.05.

    Returns:
        A number from 0 to 1; 1 if nothing was detected.
    """
    *_, missing, total = _compare(given, reference, AGREEING, score_threshold)
    return 1 - missing / total if total else 1.0


def _compare(given, reference, limit, score_threshold):
    """Returns differences of boxes and of scores, and the numbers of missing and of all
    detections."""
    boxes, scores, missing, total = [0.0], [0.0], 0, 0
    for i in range(len(reference["labels"])):
        theirs, ours = _found(reference, i), _found(given, i)
        pairs, alone = _pair(theirs, ours, limit)
        boxes += [np.abs(theirs[j][1] - ours[k][1]).max() for j, k in pairs]
        scores += [abs(theirs[j][2] - ours[k][2]) for j, k in pairs]
        full = len(theirs) == len(ours) == reference["labels"].shape[1]
        least = min([x[2] for x in theirs + ours], default=0.0)
        cut = max(score_threshold, least if full else 0.0)
        missing += sum(score > cut + limit for score in alone)
        total += max(len(theirs), len(ours))
    return boxes, scores, missing, total


def _found(outputs, i):
    """Returns the detections of one image: label, box, score."""
    rows = zip(outputs["labels"][i], outputs["boxes"][i], outputs["scores"][i])
    return [(int(label), box, float(score)) for label, box, score in rows if label >= 0]


def _pair(theirs, ours, limit):
    """Returns index pairs of equal detections, and the scores of the others."""
    pairs, left = [], set(range(len(ours)))
    for j, (label, box, score) in enumerate(theirs):
        distance = {
            k: max(np.abs(ours[k][1] - box).max(), abs(ours[k][2] - score))
            for k in left
            if ours[k][0] == label
        }
        best = min(distance, key=distance.get, default=None)
        if best is not None and distance[best] <= limit:
            pairs.append((j, best))
            left.discard(best)
    matched = {j for j, _ in pairs}
    alone = [x[2] for j, x in enumerate(theirs) if j not in matched]
    return pairs, alone + [ours[k][2] for k in left]
