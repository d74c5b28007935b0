"""MobileNetV2CA's names in PyTorch, and its arguments by the shapes under them.

With attention they are those of the official code, houqb/CoordAttention; without, those
of the code that it is built on, d-li14/mobilenetv2.pytorch.
"""

import re
from collections.abc import Iterable, Mapping

import keras

from keras_coordatt.weights.official import IN_LAYER, IN_NETWORK, numbered

PARTS = (
    *("expand", "expand_BN", "expand_relu"),
    *("depthwise", "depthwise_BN", "depthwise_relu"),
    *("attention", "project", "project_BN"),
)


def prefixes(layers: Iterable[str]) -> dict[str, str]:
    """Returns the prefixes of the layers' names in PyTorch.

    Args:
        layers: The names of all layers of a network.
    """
    layers = set(layers)
    has_attention = any(name.endswith("_attention") for name in layers)
    found = {
        "Conv1": "features.0.0",
        "bn_Conv1": "features.0.1",
        "Conv_1": "conv.0",
        "Conv_1_bn": "conv.1",
        "predictions": "classifier.1" if has_attention else "classifier",
        **numbered(layers, "expanded_conv_", PARTS, "features.1.conv"),
    }
    blocks = {match[1] for name in layers if (match := re.match(r"block_(\d+)_", name))}
    for i in blocks:
        prefix = f"features.{int(i) + 1}.conv"
        found |= numbered(layers, f"block_{i}_", PARTS, prefix)
    return found


def arguments_of(arrays: Mapping, source: str) -> dict:
    """Returns the arguments of the `MobileNetV2CA` that a state dict belongs to.

    Args:
        arrays: The official names and arrays.
        source: What the arrays are, for messages.

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

    # The narrow and the wide end of the last convolution both tell the multiplier, each
    # rounded to a multiple of 8. Up to 1.0, the wide end keeps its channels.
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
        for axis in IN_NETWORK
        if parts & {f"{IN_NETWORK[axis]}.weight", f"{IN_LAYER[axis]}.weight"}
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
