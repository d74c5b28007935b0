"""Coordinate attention for Keras: the layer and the networks of the paper."""

from keras_coordatt import applications, layers, weights
from keras_coordatt.applications import MobileNetV2CA, MobileNeXtCA
from keras_coordatt.layers import CBAM, CoordinateAttention, SqueezeExcite

__version__ = "0.1.0"

__all__ = [
    "CBAM",
    "CoordinateAttention",
    "MobileNeXtCA",
    "MobileNetV2CA",
    "SqueezeExcite",
    "applications",
    "layers",
    "weights",
]
