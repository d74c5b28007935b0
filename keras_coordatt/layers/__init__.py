"""The attention layers."""

from keras_coordatt.layers.coordinate_attention import CoordinateAttention

__all__ = ["CoordinateAttention"]
