"""Input pipelines for classification, detection and segmentation.

The embedded digits are in `keras_coordatt.data.digits`, which is not imported here:
importing it registers them with TFDS.
"""

from keras_coordatt.data.class_folder import ClassFolder
from keras_coordatt.data.class_table import ClassTable
from keras_coordatt.data.classification import load_classification
from keras_coordatt.data.coco_folder import COCOFolder
from keras_coordatt.data.detection import load_detection
from keras_coordatt.data.mask_folder import MaskFolder
from keras_coordatt.data.opening import class_names, find_task, open_data, splits
from keras_coordatt.data.report import DataReport, describe_data
from keras_coordatt.data.segmentation import load_segmentation
from keras_coordatt.data.voc_folder import VOCFolder
from keras_coordatt.data.yolo_folder import YOLOFolder
from keras_coordatt.record import IGNORED

__all__ = [
    "IGNORED",
    "COCOFolder",
    "ClassFolder",
    "ClassTable",
    "DataReport",
    "MaskFolder",
    "VOCFolder",
    "YOLOFolder",
    "class_names",
    "describe_data",
    "find_task",
    "load_classification",
    "load_detection",
    "load_segmentation",
    "open_data",
    "splits",
]
