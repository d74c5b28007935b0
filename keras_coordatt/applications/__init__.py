"""The paper's networks, one module per family."""

from collections.abc import Callable

import keras

from keras_coordatt.applications import (
    efficientnet_ca,
    efficientnet_names,
    mobilenet_v2_ca,
    mobilenet_v2_names,
    mobilenext_ca,
    mobilenext_names,
)
from keras_coordatt.applications.efficientnet_ca import EfficientNetCA
from keras_coordatt.applications.mobilenet_v2_ca import MobileNetV2CA
from keras_coordatt.applications.mobilenext_ca import MobileNeXtCA
from keras_coordatt.applications.pyramid import pyramid_outputs
from keras_coordatt.weights import list_weights

__all__ = [
    "EfficientNetCA",
    "MobileNeXtCA",
    "MobileNetV2CA",
    "efficientnet_ca",
    "list_models",
    "list_weights",
    "mobilenet_v2_ca",
    "mobilenext_ca",
    "pyramid_outputs",
]

# The one list of networks: the command line, comparisons and benchmarks offer these.
BUILDERS: dict[str, Callable[..., keras.Model]] = {
    builder.__name__: builder
    for builder in (MobileNetV2CA, MobileNeXtCA, EfficientNetCA)
}
# The modules of their names in PyTorch
NAMES = {
    "MobileNetV2CA": mobilenet_v2_names,
    "MobileNeXtCA": mobilenext_names,
    "EfficientNetCA": efficientnet_names,
}


def list_models() -> list[str]:
    """Lists the builders of this package.

    Returns:
        Their names.

    Example:

    >>> from keras_coordatt import applications
    >>> build = getattr(applications, applications.list_models()[0])
    >>> model = build(weights=None)
    """
    return list(BUILDERS)
