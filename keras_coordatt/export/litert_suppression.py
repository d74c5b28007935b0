"""Non-maximum suppression as a single LiteRT operation.

The loop of `NonMaxSuppression` would become several subgraphs, which MediaPipe does
not accept and the calibrator of int8 cannot run.
"""

import math

import numpy as np

from keras_coordatt.detection.suppression import CANDIDATES

# TensorFlow Lite's convention for detectors adds their number to Keras's outputs.
LITERT_DETECTIONS = ("boxes", "labels", "scores", "count")

# Side of a grid cell: boxes may extend beyond the image, whose side is 1.
CELL = 2.0


def suppress(layer, outputs):
    """Computes the outputs of a `NonMaxSuppression` layer with TensorFlow operations.

    Args:
        layer: The layer.
        outputs: The tensors that it is applied to, with a known batch size.

    Returns:
        A dict of the outputs in `LITERT_DETECTIONS`, all of them float32.
    """
    import tensorflow as tf

    images = [
        _suppress_one(layer, boxes, scores)
        for boxes, scores in zip(
            tf.unstack(outputs["boxes"]), tf.unstack(outputs["scores"])
        )
    ]
    found = {name: tf.stack([x[name] for x in images]) for name in LITERT_DETECTIONS}
    # Integers until the last operation, because int8 would round numbers before it
    return {name: tf.cast(value, "float32") for name, value in found.items()}


def _suppress_one(layer, boxes, scores):
    import tensorflow as tf

    count, classes = scores.shape
    scores, index = tf.math.top_k(
        tf.reshape(scores, (-1,)),
        min(count * classes, max(CANDIDATES, layer.max_detections)),
    )
    labels, boxes = index % classes, tf.gather(boxes, index // classes)
    # Boxes of different classes do not overlap on a grid with one cell per class. In a
    # row of cells, coordinates would be larger, and less exact.
    columns = math.ceil(math.sqrt(classes))
    cell = tf.stack([labels % columns, labels // columns] * 2, axis=-1)
    kept, found = tf.raw_ops.NonMaxSuppressionV4(
        boxes=boxes + CELL * tf.cast(cell, "float32"),
        scores=scores,
        max_output_size=layer.max_detections,
        # LiteRT compares with "at least", the layer with "more than".
        iou_threshold=_next(layer.iou_threshold),
        score_threshold=_next(layer.score_threshold),
        pad_to_max_output_size=True,
    )
    is_found = tf.range(layer.max_detections) < found
    return {
        "boxes": tf.where(is_found[:, None], tf.gather(boxes, kept), 0.0),
        "labels": tf.where(is_found, tf.gather(labels, kept), -1),
        "scores": tf.where(is_found, tf.gather(scores, kept), 0.0),
        "count": found,
    }


def _next(threshold):
    return np.nextafter(np.float32(threshold), np.float32(1))
