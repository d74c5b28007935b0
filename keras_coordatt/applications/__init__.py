"""The paper's networks, one module a family."""

from keras_coordatt.applications import mobilenet_v2_ca, mobilenext_ca
from keras_coordatt.applications.mobilenet_v2_ca import MobileNetV2CA
from keras_coordatt.applications.mobilenext_ca import MobileNeXtCA

__all__ = [
    "MobileNeXtCA",
    "MobileNetV2CA",
    "mobilenet_v2_ca",
    "mobilenext_ca",
]
