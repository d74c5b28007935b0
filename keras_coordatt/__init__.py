"""Coordinate attention for Keras: the layer and the networks of the paper."""

from keras_coordatt import applications, detection, layers, segmentation, weights
from keras_coordatt.applications import EfficientNetCA, MobileNetV2CA, MobileNeXtCA
from keras_coordatt.layers import CBAM, CoordinateAttention, SqueezeExcite
from keras_coordatt.surgery import fuse_attention, insert_attention

__version__ = "0.1.0"

__all__ = [
    "CBAM",
    "CoordinateAttention",
    "EfficientNetCA",
    "MobileNeXtCA",
    "MobileNetV2CA",
    "SqueezeExcite",
    "applications",
    "detection",
    "fuse_attention",
    "insert_attention",
    "layers",
    "segmentation",
    "weights",
]
