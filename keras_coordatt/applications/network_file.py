"""Reads networks from files, and saves them."""

import inspect
import os
import pathlib
import textwrap
import zipfile

import keras

from keras_coordatt.applications import MobileNetV2CA
from keras_coordatt.applications.recognition import any_size, network_of
from keras_coordatt.files import atomic_file
from keras_coordatt.weights.loading import FILE_TYPES, OFFICIAL, load_weights
from keras_coordatt.weights.matching import ExpectedWeight, match_arrays
from keras_coordatt.weights.official import read_official, save_safetensors

OUTPUTS = (".keras", ".weights.h5", ".safetensors")


def read_network(source: str | os.PathLike, **arguments) -> keras.Model:
    """Builds the network that a file belongs to, and loads the file.

    Args:
        source: A file of `FILE_TYPES`. A `.keras` or legacy `.h5` file may hold any
            built model. A `.pth`, `.pt` or `.safetensors` file holds weights of a
            network of this package by the names that `save_safetensors` writes; a
            `.weights.h5` file those of a `MobileNetV2CA`.
        **arguments: Arguments of the builder that a file of weights doesn't record.

    Returns:
        The network, with its weights. It takes images of any size if its file doesn't
        record the size.

    Raises:
        ValueError: If the file is of another kind, damaged, or doesn't fit the
            arguments, or has a configuration and arguments are given, or the builder
            of its network takes no such argument.
        OSError: If the file can't be opened.

    Example:

    >>> model = read_network("mbv2_ca.pth")
    """
    source = pathlib.Path(source)
    if not source.name.endswith(FILE_TYPES):
        raise ValueError(
            f"`source` must end in one of {FILE_TYPES}. Received: {source}"
        )
    if not source.name.endswith((*OFFICIAL, ".weights.h5")):
        if arguments:
            raise ValueError(
                f"{source.name} describes its network; leave out "
                f"{', '.join(f'`{name}`' for name in arguments)}. Received: {arguments}"
            )
        return _read_keras_network(source)
    build, found = MobileNetV2CA, {"input_shape": any_size(3)}
    if source.name.endswith(OFFICIAL):
        build, found = network_of(read_official(source), repr(str(source)))
    unknown = [x for x in arguments if x not in inspect.signature(build).parameters]
    if unknown:
        raise ValueError(
            f"{source.name} is of {build.__name__}, which has no `{unknown[0]}`: leave "
            f"it out. Received: {arguments[unknown[0]]!r}"
        )
    # The file doesn't hold the image size, and the builder's default would be a guess.
    model = build(weights=None, **found | arguments)
    load_weights(model, source)
    return model


def _read_keras_network(source):
    """Loads a network that Keras saved with its configuration."""
    with open(source, "rb") as file:
        if source.suffix == ".keras" and not zipfile.is_zipfile(file):
            raise ValueError(
                f"Cannot read {str(source)!r}: it is truncated, damaged, or not a "
                ".keras archive."
            )
    try:
        model = keras.saving.load_model(source, compile=False)
    except Exception as error:  # Keras checks little, so anything may be raised
        problem = textwrap.shorten(f"{type(error).__name__}: {error}", 500)
        raise ValueError(
            f"Cannot read {str(source)!r}: its configuration or its weights are "
            f"damaged, or not known here ({problem})."
        ) from error
    if not isinstance(model, keras.Model) or not model.built:
        raise ValueError(f"{str(source)!r} must hold a built model. Received: {model}")
    # Keras has compared the shapes, but it accepts NaN and infinity.
    arrays = {
        f"{weight.path} ({i})": keras.ops.convert_to_numpy(
            keras.ops.cast(weight, "float32")
        )
        for i, weight in enumerate(model.weights)
    }
    expected = [ExpectedWeight(name, array.shape) for name, array in arrays.items()]
    match_arrays(expected, arrays, head=(), source=repr(str(source)), target=model.name)
    return model


def save_network(model: keras.Model, path: str | os.PathLike) -> None:
    """Saves a network atomically; the folder is made if need be.

    Args:
        model: A built model; for `.safetensors`, a network of this package.
        path: A file that ends in one of `OUTPUTS`.

    Raises:
        ValueError: If `path` has another ending, or the network no PyTorch names.

    Example:

    >>> save_network(model, "runs/network.keras")
    """
    path = pathlib.Path(path)
    if not path.name.endswith(OUTPUTS):
        raise ValueError(f"`path` must end in one of {OUTPUTS}. Received: {path}")
    if path.suffix == ".safetensors":
        save_safetensors(model, path)
        return
    with atomic_file(path) as temporary:
        save = model.save if path.suffix == ".keras" else model.save_weights
        save(temporary)
