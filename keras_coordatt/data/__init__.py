"""Input pipelines, and the embedded digits.

The data set's builder is in `keras_coordatt.data.digits`; it is not imported here, as
that registers it with TFDS.
"""

from keras_coordatt.data.classification import load_classification
from keras_coordatt.data.detection import load_detection
from keras_coordatt.data.folders import MaskFolder, VOCFolder
from keras_coordatt.data.segmentation import IGNORED, load_segmentation

__all__ = [
    "IGNORED",
    "MaskFolder",
    "VOCFolder",
    "load_classification",
    "load_detection",
    "load_segmentation",
]
