"""Loads weights from a file of any supported format."""

import os

import keras

from keras_coordatt.weights.keras_file import load_keras_file
from keras_coordatt.weights.official import load_torch

OFFICIAL = (".pth", ".pt", ".safetensors")
KERAS = (".keras", ".h5")
FILE_TYPES = (*KERAS, *OFFICIAL)


def load_weights(
    model: keras.Model, path: str | os.PathLike, skip_mismatch: bool = False
) -> None:
    """Loads a file of weights into a network, or changes nothing.

    Nothing in a file is executed. Unlike `model.load_weights`, this compares the whole
    file with the whole network before a single weight changes, and reads weights
    only: an optimizer keeps its state. The classifier in a file is ignored if the
    network has none, and the file of a model that contains the network, nested once,
    fits too.

    Args:
        model: A built model.
        path: The path of a file: `.keras`, `.weights.h5`, legacy `.h5`; or with the
            official PyTorch names, `.pth`, `.pt` or `.safetensors`.
        skip_mismatch: Whether the file may be for another number of classes, or for
            RGB images where the network takes other channels. The network then keeps
            its own classifier; the first kernel is summed over its channels for 1
            channel, or repeated and multiplied by 3 / channels for others. One
            warning says so. Defaults to `False`: a `ValueError`.

    Raises:
        TypeError: If `model` is not a model.
        ValueError: If `model` is not built, or the file is truncated, damaged, of
            another kind, or does not fit the network.
        OSError: If the file can't be opened.

    Example:

    >>> model = MobileNetV2CA((96, 96, 1), classes=5, weights=None)
    >>> load_weights(model, "mbv2_ca.safetensors", skip_mismatch=True)
    """
    if not isinstance(model, keras.Model):
        raise TypeError(f"`model` must be a Keras model. Received: {type(model)}")
    if not model.built:
        raise ValueError(
            "`model` must be built before its weights have a shape: start it with an "
            f"`Input`, or call it once. Received: {model.name}"
        )
    if str(path).endswith(OFFICIAL):
        load_torch(model, path, skip_mismatch)
    elif str(path).endswith(KERAS):
        load_keras_file(model, path, skip_mismatch)
    else:
        raise ValueError(f"`path` must end in one of {FILE_TYPES}. Received: {path!r}")
