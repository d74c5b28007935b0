"""Layers, networks, heads, surgery and weights need Keras, NumPy and one backend."""

import subprocess
import sys

import keras
import pytest

SCRIPT = """
import sys

import keras  # PyTorch asks whether packages are there, and would not take an error

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"tensorflow", "tensorflow_datasets",
                "matplotlib", "pycocotools", "cv2", "PIL", "flatbuffers", "onnx",
                "ai_edge_litert", "importlib_resources"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())

import numpy as np

import keras_coordatt
from keras_coordatt import MobileNetV2CA, fuse_attention, insert_attention, weights
from keras_coordatt.applications import mobilenet_v2_ca
from keras_coordatt.cli import main

# One block per stage: building time grows with their number
stages = mobilenet_v2_ca.STAGES
mobilenet_v2_ca.STAGES = [(a, b, 1, c) for a, b, _, c in stages]
shape = (32, 32, 3)
model = MobileNetV2CA(shape, 0.1, weights=None, classes=3, attention=None)
model = fuse_attention(insert_attention(model))
model.compile("sgd", "sparse_categorical_crossentropy")
model.fit(np.zeros((2, *shape)), np.zeros(2), verbose=0)
model.save("model.keras")
keras.saving.load_model("model.keras")

model = MobileNetV2CA(shape, 0.1, weights=None, classes=3)
from keras_coordatt import visualize
visualize.attention_maps(model, np.zeros((1, *shape)))
weights.save_safetensors(model, "model.safetensors")
weights.load_weights(model, "model.safetensors")
assert main(["convert", "model.safetensors", "model.weights.h5"]) == 0

arguments = {"alpha": 0.1, "include_top": False, "weights": None}
keras_coordatt.detection.SSDLite(MobileNetV2CA(shape, **arguments), 3).detector()
backbone = MobileNetV2CA(shape, output_stride=16, **arguments)
keras_coordatt.segmentation.DeepLabV3(backbone, 3, filters=8)
assert "tensorflow" not in sys.modules
"""


@pytest.mark.skipif(
    keras.config.backend() == "tensorflow", reason="the TensorFlow backend needs it"
)
def test_core_runs_without_tensorflow(tmp_path):
    subprocess.run([sys.executable, "-c", SCRIPT], cwd=tmp_path, check=True)
