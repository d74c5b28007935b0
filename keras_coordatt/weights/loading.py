"""Loads weights from a file of any supported format."""

import os
import pathlib
from typing import TypeGuard

import keras

from keras_coordatt.extras import install_hint
from keras_coordatt.weights.keras_file import load_keras_file
from keras_coordatt.weights.official import load_torch

OFFICIAL = (".pth", ".pth.tar", ".pt", ".safetensors")
KERAS = (".keras", ".h5")
FILE_TYPES = (*KERAS, *OFFICIAL)
HUB = "hf://"


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
            PyTorch names of `load_torch`, `.pth`, `.pth.tar`, `.pt` or `.safetensors`.
            `"hf://user/repository/file"` or `"hf://user/repository@revision/file"` is
            downloaded from the Hugging Face Hub.
        skip_mismatch: Whether the file may be for another number of classes, or for
            RGB images where the network takes other channels. The network then keeps
            its own classifier; the first kernel is summed over its channels for 1
            channel, or repeated and multiplied by 3 / channels for others. One
            warning says so. Defaults to `False`: a `ValueError`.

    Raises:
        TypeError: If `model` is not a model.
        ValueError: If `model` is not built, or the file is truncated, damaged, of
            another kind, or does not fit the network.
        OSError: If the file can't be opened or downloaded.
        ImportError: If the file is on the Hub and `huggingface_hub` isn't installed.

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
    path = local_path(path)
    if str(path).endswith(OFFICIAL):
        load_torch(model, path, skip_mismatch)
    elif str(path).endswith(KERAS):
        load_keras_file(model, path, skip_mismatch)
    else:
        raise ValueError(f"`path` must end in one of {FILE_TYPES}. Received: {path!r}")


def is_on_hub(path: str | os.PathLike) -> TypeGuard[str]:
    """Returns whether it is the name of a file on the Hugging Face Hub."""
    return isinstance(path, str) and path.startswith(HUB)


def local_path(path: str | os.PathLike) -> str | os.PathLike:
    """Returns the path of a file, which is downloaded first if it is on the Hub."""
    if not is_on_hub(path):
        return path
    user, _, remainder = path.removeprefix(HUB).partition("/")
    repository, _, filename = remainder.partition("/")
    repository, _, revision = repository.partition("@")
    if not (user and repository and filename):
        raise ValueError(
            f'`path` must be "hf://user/repository/file". Received: {path!r}'
        )
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError(
            f"{path} needs huggingface_hub: {install_hint('hf')}"
        ) from error
    try:
        return pathlib.Path(
            huggingface_hub.hf_hub_download(
                f"{user}/{repository}",
                filename,
                revision=revision or None,
                library_name="keras",
            )
        )
    except Exception as error:  # many classes, each with its own base
        raise OSError(f"{path} could not be downloaded: {error}") from error
