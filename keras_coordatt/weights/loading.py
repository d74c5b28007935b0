"""Weights from a file of any of the formats that are read."""

import os

import keras

from keras_coordatt.weights.keras_file import load_keras_file
from keras_coordatt.weights.official import load_torch

OFFICIAL = (".pth", ".pt", ".safetensors")
KERAS = (".keras", ".h5")
FILE_TYPES = (*KERAS, *OFFICIAL)


def load_weights(
    model: keras.Model, path: str | os.PathLike, adapt: bool = True
) -> None:
    """Loads a file of weights into a network, or changes nothing.

    Nothing in a file is executed. Unlike `model.load_weights`, this names all that is
    missing, unexpected or misshapen before a single weight changes, and reads
    weights only: an optimizer keeps its state.

    Args:
        model: A functional model, such as `MobileNetV2CA` gives.
        path: The path of a file: `.keras`, `.weights.h5`, legacy `.h5`; or with the
            official PyTorch names, `.pth`, `.pt` or `.safetensors`.
        adapt: Whether the file may be for another number of classes, or for RGB
            images where the network takes others. A classifier that does not fit
            is then skipped; the first kernel is summed over its channels for 1
            channel, and for others repeated and scaled by 3 / channels. Each is
            told by a warning. Defaults to `True`.

    Raises:
        TypeError: if `model` is no model.
        ValueError: if `model` is not built, or the file is truncated, damaged, of
            another kind, or does not fit the network.
        OSError: if the file can't be opened.

    Example:

    >>> model = MobileNetV2CA((96, 96, 1), classes=5, weights=None)
    >>> load_weights(model, "mbv2_ca.safetensors")
    """
    if not isinstance(model, keras.Model):
        raise TypeError(f"`model` must be a Keras model. Received: {type(model)}")
    if not model.built:
        raise ValueError(
            "`model` must be built before its weights have a shape: give it an "
            f"`Input`, or call it once. Received: {model.name}"
        )
    if str(path).endswith(OFFICIAL):
        load_torch(model, path, adapt)
    elif str(path).endswith(KERAS):
        load_keras_file(model, path, adapt)
    else:
        raise ValueError(f"`path` must end in one of {FILE_TYPES}. Received: {path!r}")
