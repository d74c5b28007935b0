"""Semantic segmentation with DeepLabV3."""

from keras_coordatt.segmentation.deeplab_v3 import DeepLabV3
from keras_coordatt.segmentation.resize_like import ResizeLike

__all__ = ["DeepLabV3", "ResizeLike"]
