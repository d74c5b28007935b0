"""Object detection: SSDLite on the networks of this package, and its evaluation."""

from keras_coordatt.detection.default_boxes import default_boxes, ssd_box_shapes
from keras_coordatt.detection.evaluation import evaluate_detections
from keras_coordatt.detection.ssdlite import SSDLite
from keras_coordatt.detection.suppression import NonMaxSuppression

__all__ = [
    "NonMaxSuppression",
    "SSDLite",
    "default_boxes",
    "evaluate_detections",
    "ssd_box_shapes",
]
