"""Checks an installation: `make package` runs this in an environment of its own."""

import importlib.metadata
import pathlib
import subprocess
import sys

import numpy as np

import keras_coordatt
from keras_coordatt import MobileNetV2CA, weights

package = pathlib.Path(keras_coordatt.__file__).parent
assert "site-packages" in package.parts, f"this tests {package}, not an installation"
version = importlib.metadata.version("keras_coordatt")
assert keras_coordatt.__version__ == version
for file in ("py.typed", "data/digits.npz"):
    assert (package / file).is_file(), f"{file} is not in the wheel"

# The weights are part of the wheel.
model = MobileNetV2CA((64, 64, 3), alpha=0.5, weights="cifar10", classes=10)
assert model(np.zeros((1, 64, 64, 3))).shape == (1, 10)
weights.save_safetensors(model, "network.safetensors")
weights.load_weights(model, "network.safetensors")

command = pathlib.Path(sys.executable).with_name("keras-coordatt")
shown = subprocess.run([command, "--version"], capture_output=True, check=True)
assert version in shown.stdout.decode()
subprocess.run([command, "weights"], check=True)
subprocess.run([command, "convert", "network.safetensors", "network.keras"], check=True)
print(f"keras_coordatt {version} works as installed in {package}")
