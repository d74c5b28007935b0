"""Published weights, and weights from Keras, PyTorch and safetensors files."""

from keras_coordatt.weights.by_name import list_weights
from keras_coordatt.weights.cache import cached_weights
from keras_coordatt.weights.catalog import CATALOG
from keras_coordatt.weights.loading import FILE_TYPES, load_weights
from keras_coordatt.weights.official import (
    load_torch,
    load_without_attention,
    save_safetensors,
)

__all__ = [
    "CATALOG",
    "FILE_TYPES",
    "cached_weights",
    "list_weights",
    "load_torch",
    "load_weights",
    "load_without_attention",
    "save_safetensors",
]
