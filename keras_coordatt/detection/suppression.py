"""Suppression of overlapping detections, inside models and on arrays of any runtime."""

import functools

import keras
from keras import ops

from keras_coordatt.detection.default_boxes import iou
from keras_coordatt.validation import check_number, check_positive_int

MAX_DETECTIONS = 10_000

# Number of the highest scores per image that are considered
CANDIDATES = 1000


@keras.saving.register_keras_serializable("keras_coordatt")
class NonMaxSuppression(keras.layers.Layer):
    """Non-maximum suppression, for each class separately.

    The box with the highest score is kept, and boxes of the same class that overlap
    with it are dropped; this repeats with the remaining boxes. Only the 1000 highest
    scores per image are considered, or `max_detections` if that is more.

    Args:
        score_threshold: Minimum score, exclusive, in [0, 1). Defaults to 0.05.
        iou_threshold: Boxes overlap if their intersection over union is higher than
            this. In [0, 1). Defaults to 0.5.
        max_detections: Positive integer, maximum number of boxes per image. Defaults
            to 100.
        **kwargs: `name`, `dtype`.

    Call arguments:
        inputs: A dict of `"boxes"`, `(N, A, 4)`, `"rel_xyxy"`, and `"scores"`,
            `(N, A, classes)`, not negative.

    Returns:
        A dict of `"boxes"`, `(N, max_detections, 4)`, `"labels"`,
        `(N, max_detections)`, int32, and `"scores"`, `(N, max_detections)`, in
        descending order of the scores. After the last detection, boxes and scores are 0
        and labels -1. Boxes and scores are float32 under any policy.

    Raises:
        ValueError: If an argument is out of its range.

    Example:

    >>> layer = NonMaxSuppression(0.5, 0.5, max_detections=2)
    >>> boxes = np.array([[[0, 0, 1, 1], [0, 0, 1, 0.9]]])
    >>> found = layer({"boxes": boxes, "scores": np.array([[[0.7], [0.8]]])})
    >>> keras.ops.convert_to_numpy(found["labels"]).tolist()
    [[0, -1]]
    """

    def __init__(
        self,
        score_threshold: float = 0.05,
        iou_threshold: float = 0.5,
        max_detections: int = 100,
        **kwargs,
    ):
        # In half precision, boxes would be off by up to half a pixel.
        super().__init__(autocast=False, **kwargs)
        self.score_threshold = check_number(
            "score_threshold", score_threshold, 0, 1, closed=True
        )
        self.iou_threshold = check_number(
            "iou_threshold", iou_threshold, 0, 1, closed=True
        )
        self.max_detections = check_positive_int(
            "max_detections", max_detections, MAX_DETECTIONS
        )

    def compute_output_spec(self, inputs):
        batch = inputs["boxes"].shape[0]
        shape = (batch, self.max_detections)
        return {
            "boxes": keras.KerasTensor((*shape, 4), "float32"),
            "labels": keras.KerasTensor(shape, "int32"),
            "scores": keras.KerasTensor(shape, "float32"),
        }

    def call(self, inputs):
        boxes, scores = (
            ops.cast(inputs[name], "float32") for name in ("boxes", "scores")
        )
        _, count, classes = scores.shape
        scores, index = ops.top_k(
            ops.reshape(scores, (-1, count * classes)),
            min(count * classes, max(CANDIDATES, self.max_detections)),
        )
        index = ops.cast(index, "int32")
        labels = index % classes
        boxes = ops.take_along_axis(boxes, index[..., None] // classes, 1)
        positions = ops.arange(scores.shape[1], dtype="int32")
        ranks = ops.arange(self.max_detections, dtype="int32")

        def unfinished(step, candidates, _):
            return ops.logical_and(step < self.max_detections, ops.any(candidates))

        def keep_best(step, candidates, kept):
            # Sorted by score, so the best candidate is the first.
            best = ops.where(candidates, positions, scores.shape[1] - 1)
            best = ops.min(best, axis=1, keepdims=True)
            found = ops.any(candidates, axis=1, keepdims=True)
            overlap = iou(ops.take_along_axis(boxes, best[..., None], 1), boxes)[:, 0]
            dropped = ops.logical_and(
                overlap > self.iou_threshold,
                labels == ops.take_along_axis(labels, best, 1),
            )
            # A box without an area does not overlap with itself.
            dropped = ops.logical_or(dropped, positions == best)
            kept = ops.where(ops.logical_and(found, ranks == step), best, kept)
            return step + 1, ops.logical_and(candidates, ops.logical_not(dropped)), kept

        kept = ops.full_like(labels[:, :1], -1) * ops.ones_like(ranks)
        _, _, kept = ops.while_loop(
            unfinished, keep_best, (0, scores > self.score_threshold, kept)
        )

        found, kept = kept >= 0, ops.maximum(kept, 0)
        return {
            "boxes": ops.where(
                found[..., None], ops.take_along_axis(boxes, kept[..., None], 1), 0.0
            ),
            "labels": ops.where(found, ops.take_along_axis(labels, kept, 1), -1),
            "scores": ops.where(found, ops.take_along_axis(scores, kept, 1), 0.0),
        }

    def get_config(self):
        return {
            **super().get_config(),
            "score_threshold": self.score_threshold,
            "iou_threshold": self.iou_threshold,
            "max_detections": self.max_detections,
        }


def suppress(outputs: dict, score_threshold: float) -> dict:
    """Applies non-maximum suppression to the outputs of a detector.

    Args:
        outputs: Arrays `boxes`, `(N, A, 4)`, and `scores`, `(N, A, classes)`.
        score_threshold: Minimum score of a detection.

    Returns:
        The outputs of `NonMaxSuppression`, as arrays.
    """
    inputs = {name: outputs[name] for name in ("boxes", "scores")}
    model = _model(*inputs["scores"].shape[1:], score_threshold)
    found = model.predict_on_batch(inputs)
    return {name: ops.convert_to_numpy(x) for name, x in found.items()}


@functools.lru_cache(maxsize=4)
def _model(boxes, classes, score_threshold):
    # Wrapped in a model, which Keras compiles.
    inputs = {
        "boxes": keras.Input((boxes, 4), name="boxes"),
        "scores": keras.Input((boxes, classes), name="scores"),
    }
    return keras.Model(inputs, NonMaxSuppression(score_threshold)(inputs))
