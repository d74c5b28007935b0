"""Networks as files for other runtimes: SavedModel, LiteRT and ONNX.

    saved_model(model, "flowers")                   TensorFlow Serving
    litert(model, "flowers.tflite", labels=names)   phones; float32, float16 or int8
    onnx(model, "flowers.onnx")                     ONNX Runtime
    read_metadata("flowers.tflite")                 labels and preprocessing, from each

A file is written to a temporary path, compared there with the Keras model, and renamed.
"""

from collections.abc import Callable

from keras_coordatt.export._litert import litert
from keras_coordatt.export._onnx import onnx
from keras_coordatt.export._saved_model import saved_model
from keras_coordatt.export.metadata import read_metadata
from keras_coordatt.export.verify import LayerError, Report
from keras_coordatt.preprocessing import Preprocessing, preprocessing_of

__all__ = [
    "LayerError",
    "Preprocessing",
    "Report",
    "litert",
    "onnx",
    "preprocessing_of",
    "read_metadata",
    "saved_model",
]

# The writers of files, by suffix. A SavedModel is a folder of any other name.
WRITERS: dict[str, Callable[..., Report]] = {".tflite": litert, ".onnx": onnx}
