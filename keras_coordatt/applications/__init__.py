"""The paper's networks, one module a family."""

from keras_coordatt.applications import mobilenet_v2_ca
from keras_coordatt.applications.mobilenet_v2_ca import MobileNetV2CA

__all__ = ["MobileNetV2CA", "mobilenet_v2_ca"]
