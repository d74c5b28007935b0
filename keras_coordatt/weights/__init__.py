"""Published weights, and weights from Keras, PyTorch and safetensors files."""

from keras_coordatt.weights.by_name import (
    find_published,
    is_plain,
    list_weights,
    names_of,
    only_arguments,
)
from keras_coordatt.weights.cache import cached_weights
from keras_coordatt.weights.catalog import CATALOG
from keras_coordatt.weights.loading import FILE_TYPES, is_on_hub, load_weights
from keras_coordatt.weights.official import (
    load_torch,
    load_without_attention,
    save_safetensors,
)

__all__ = [
    "CATALOG",
    "FILE_TYPES",
    "cached_weights",
    "find_published",
    "is_on_hub",
    "is_plain",
    "list_weights",
    "load_torch",
    "load_weights",
    "load_without_attention",
    "names_of",
    "only_arguments",
    "save_safetensors",
]
