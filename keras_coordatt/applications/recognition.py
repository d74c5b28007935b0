"""Recognizes the network that a PyTorch state dict is of, by names and shapes."""

import inspect
from collections.abc import Callable, Mapping

import keras

from keras_coordatt.applications import BUILDERS, NAMES
from keras_coordatt.layers import CBAM, SqueezeExcite
from keras_coordatt.weights.torch_names import (
    CA_IN_LAYER,
    CA_IN_NETWORK,
    IN_NETWORK,
    IN_TIMM,
    check_shape,
)


def network_of(arrays: Mapping, source: str) -> tuple[Callable, dict]:
    """Returns the builder of the network that a state dict is of, and its arguments.

    Args:
        arrays: The arrays by the names that `save_safetensors` writes.
        source: Description of the arrays, for messages.

    Returns:
        The builder, and a dict of its arguments.

    Raises:
        ValueError: If they are of no network of this package. The shapes are checked
            against each other, so that a small file can't ask for a large network.
    """
    shapes = {name: array.shape for name, array in arrays.items()}
    network = next((n for n, names in NAMES.items() if names.MARK in shapes), None)
    if network is None:
        raise ValueError(
            f"{source} has the official names of none of {tuple(NAMES)}. To load it "
            "under other names, such as torchvision's, build the network in Python, "
            "with the file as its `weights`."
        )
    names, build = NAMES[network], BUILDERS[network]
    try:
        size, features = names.size_of(shapes)
        return build, {
            **size,
            **_input_arguments(shapes, names.STEM),
            **_head_arguments(shapes, features),
            **_attention_arguments(shapes, build),
        }
    except ValueError as error:
        raise ValueError(
            f"{source} is not of {network} under the official names: {error}"
        ) from error


def _input_arguments(shapes, stem):
    return {"input_shape": any_size(check_shape(shapes, stem, 4)[1])}


def any_size(channels: int) -> tuple:
    """Returns the shape of images of any size, without the batch axis."""
    if keras.config.image_data_format() == "channels_first":
        return (channels, None, None)
    return (None, None, channels)


def _head_arguments(shapes, features):
    if not any(name.startswith("classifier.") for name in shapes):
        return {"include_top": False}
    plain = "classifier.weight" in shapes or "classifier.bias" in shapes
    head = "classifier" if plain else "classifier.1"
    (classes,) = check_shape(shapes, f"{head}.bias", 1)
    if check_shape(shapes, f"{head}.weight", 2) != (classes, features):
        raise ValueError(
            f"for {classes} classes, the shape of {head}.weight must be "
            f"{(classes, features)}. Received: {shapes[f'{head}.weight']}"
        )
    return {"include_top": True, "classes": classes}


def _attention_arguments(shapes, build):
    def has(layer):
        return any(name.endswith(f".{layer}.weight") for name in shapes)

    for attention, layer in (("se", SqueezeExcite), ("cbam", CBAM)):
        if any(has(names[layer]["reduce"]) for names in (IN_NETWORK, IN_TIMM)):
            return {"attention": attention}
    axes = [
        axis
        for axis in ("height", "width")
        if any(has(names[f"{axis}_gate"]) for names in (CA_IN_NETWORK, CA_IN_LAYER))
    ]
    if not axes:
        return {"attention": None}
    found = {"attention": axes[0] if len(axes) == 1 else "coordinate"}
    widths = [  # of the shared transform, and of the feature map
        check_shape(shapes, name, 4)[:2]
        for name in shapes
        if name.endswith(f".{CA_IN_NETWORK['shared']}.weight")
    ]
    # Several reductions may give the same shapes: try the default first, then the
    # smallest one that makes no layer too wide.
    default = inspect.signature(build).parameters["reduction"].default
    least = max((wide // (narrow + 1) + 1 for narrow, wide in widths), default=default)
    for reduction in (default, least):
        if all(narrow == max(8, wide // reduction) for narrow, wide in widths):
            return {**found, "reduction": reduction}
    raise ValueError(f"no `reduction` gives the widths of its attentions, {widths}.")
