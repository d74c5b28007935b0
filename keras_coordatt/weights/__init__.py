"""Published weights, and weights from PyTorch."""

from keras_coordatt.weights.catalog import cached_weights
from keras_coordatt.weights.from_torch import load_torch

__all__ = ["cached_weights", "load_torch"]
