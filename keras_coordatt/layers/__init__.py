"""The attention layers."""

from keras_coordatt.layers.cbam import CBAM
from keras_coordatt.layers.coordinate_attention import CoordinateAttention
from keras_coordatt.layers.squeeze_excite import SqueezeExcite

__all__ = ["CBAM", "CoordinateAttention", "SqueezeExcite"]
