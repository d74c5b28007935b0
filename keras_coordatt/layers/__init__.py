"""The attention layers."""

from keras_coordatt.layers.cbam import CBAM
from keras_coordatt.layers.coordinate_attention import CoordinateAttention
from keras_coordatt.layers.freezing import freeze_batch_norm
from keras_coordatt.layers.squeeze_excite import SqueezeExcite

__all__ = ["CBAM", "CoordinateAttention", "SqueezeExcite", "freeze_batch_norm"]
