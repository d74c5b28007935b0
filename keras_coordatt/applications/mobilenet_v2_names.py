"""MobileNetV2CA's names in PyTorch, and its arguments by the shapes under them.

With attention they are those of the official code, houqb/CoordAttention; without, those
of the code that it is built on, d-li14/mobilenetv2.pytorch. Those of torchvision's
`mobilenet_v2` and of timm's `mobilenetv2_*` are read too.
"""

import re
from collections.abc import Mapping

import keras

from keras_coordatt.applications import mobilenet_v2_ca
from keras_coordatt.weights.torch_names import (
    CA_IN_LAYER,
    CA_IN_NETWORK,
    IN_LAYER,
    IN_TIMM,
    Naming,
    numbered,
    timm_prefixes,
)

PARTS = (
    *("expand", "expand_BN", "expand_relu"),
    *("depthwise", "depthwise_BN", "depthwise_relu"),
    *("attention", "project", "project_BN"),
)
TIMM = {
    "conv_stem": "Conv1",
    "bn1": "bn_Conv1",
    "conv_head": "Conv_1",
    "bn2": "Conv_1_bn",
    "classifier": "predictions",
}


def namings(layers: list[str]) -> list[Naming]:
    """Returns the ways to name the weights of a network, the official one first.

    Args:
        layers: The names of all layers of the network.

    Returns:
        A list of `Naming`.
    """
    indices = {int(m[1]) for name in layers if (m := re.match(r"block_(\d+)_", name))}
    blocks = ["expanded_conv_", *(f"block_{i}_" for i in sorted(indices))]
    official = _official(layers, blocks)
    repeats = [repeats for _, _, repeats, _ in mobilenet_v2_ca.STAGES]
    return [
        Naming(official),
        Naming(official, IN_LAYER),
        Naming(_torchvision(layers, blocks)),
        Naming(timm_prefixes(layers, TIMM, blocks, repeats), IN_TIMM),
    ]


def _official(layers, blocks):
    has_attention = any(name.endswith("_attention") for name in layers)
    found = {
        "Conv1": "features.0.0",
        "bn_Conv1": "features.0.1",
        "Conv_1": "conv.0",
        "Conv_1_bn": "conv.1",
        "predictions": "classifier.1" if has_attention else "classifier",
    }
    for i, block in enumerate(blocks, 1):
        found |= numbered(layers, block, PARTS, f"features.{i}.conv")
    return found


def _torchvision(layers, blocks):
    """Returns the names of a network without attention, with nested convolutions."""
    last = f"features.{len(blocks) + 1}"
    found = {
        "Conv1": "features.0.0",
        "bn_Conv1": "features.0.1",
        "Conv_1": f"{last}.0",
        "Conv_1_bn": f"{last}.1",
        "predictions": "classifier.1",
    }
    for i, block in enumerate(blocks, 1):
        prefix = f"features.{i}.conv"
        parts = [part for part in ("expand", "depthwise") if block + part in layers]
        for j, part in enumerate(parts):
            found[f"{block}{part}"] = f"{prefix}.{j}.0"
            found[f"{block}{part}_BN"] = f"{prefix}.{j}.1"
        found[f"{block}project"] = f"{prefix}.{len(parts)}"
        found[f"{block}project_BN"] = f"{prefix}.{len(parts) + 1}"
    return found


def arguments_of(arrays: Mapping, source: str) -> dict:
    """Returns the arguments of the `MobileNetV2CA` that a state dict belongs to.

    Args:
        arrays: The official names and arrays.
        source: Description of the arrays, for messages.

    Returns:
        A dict of arguments by name.

    Raises:
        ValueError: If they are not of a `MobileNetV2CA`. The shapes are checked
            against each other, so that a small file can't ask for a large network.
    """
    try:
        return _arguments({name: array.shape for name, array in arrays.items()})
    except ValueError as error:
        raise ValueError(
            f"{source} is not of a MobileNetV2CA under the official names: {error}"
        ) from error


def _arguments(shapes):
    channels = _shape(shapes, "features.0.0.weight", 4)[1]
    found = {"input_shape": (None, None, channels), "include_top": False}
    if keras.config.image_data_format() == "channels_first":
        found["input_shape"] = (channels, None, None)

    # Input and output channels of the last convolution both follow from the multiplier,
    # rounded to a multiple of 8. Up to 1.0, the output keeps its channels.
    last, widest = _shape(shapes, "conv.0.weight", 4)[:2]
    if abs(last - max(1280, 4 * widest)) > 20:
        raise ValueError(
            f"no `alpha` gives conv.0.weight {widest} channels in and {last} out."
        )
    found["alpha"] = last / 1280 if last > 1280 else widest / 320

    if any(name.startswith("classifier.") for name in shapes):
        plain = "classifier.weight" in shapes or "classifier.bias" in shapes
        head = "classifier" if plain else "classifier.1"
        (classes,) = _shape(shapes, f"{head}.bias", 1)
        if _shape(shapes, f"{head}.weight", 2) != (classes, last):
            raise ValueError(
                f"for {classes} classes, the shape of {head}.weight must be "
                f"{(classes, last)}. Received: {shapes[f'{head}.weight']}"
            )
        found |= {"include_top": True, "classes": classes}
    return found | _attention_arguments(shapes)


def _attention_arguments(shapes):
    parts = {name.split(".conv.6.")[-1] for name in shapes}
    axes = [
        axis
        for axis in ("height", "width")
        if parts
        & {f"{ca[f'{axis}_gate']}.weight" for ca in (CA_IN_NETWORK, CA_IN_LAYER)}
    ]
    if not axes:
        return {"attention": None}
    found = {"attention": axes[0] if len(axes) == 1 else "coordinate"}
    widths = [  # of the shared transform, and of the feature map
        _shape(shapes, name, 4)[:2]
        for name in shapes
        if name.endswith(".conv.6.conv1.weight")
    ]
    # Several reductions may give the same shapes: try the default first, then the
    # smallest one that makes no layer too wide.
    least = max((wide // (narrow + 1) + 1 for narrow, wide in widths), default=32)
    for reduction in (32, least):
        if all(narrow == max(8, wide // reduction) for narrow, wide in widths):
            return {**found, "reduction": reduction}
    raise ValueError(f"no `reduction` gives the widths of its attentions, {widths}.")


def _shape(shapes, name, rank):
    shape = shapes.get(name, ())
    if len(shape) != rank or 0 in shape:
        raise ValueError(
            f"{name} must have {rank} axes, none of them empty. Received: "
            + (f"shape {shape}" if name in shapes else "none of that name")
        )
    return shape
