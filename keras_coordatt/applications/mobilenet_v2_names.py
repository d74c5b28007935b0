"""MobileNetV2CA's names in PyTorch, and its width by the shapes under them.

With attention they are those of the official code, houqb/CoordAttention; without, those
of the code that it is built on, d-li14/mobilenetv2.pytorch. Those of torchvision's
`mobilenet_v2` and of timm's `mobilenetv2_*` are read too.
"""

import re
from collections.abc import Mapping

from keras_coordatt.applications import mobilenet_v2_ca
from keras_coordatt.weights.torch_names import (
    IN_LAYER,
    IN_TIMM,
    Naming,
    check_shape,
    numbered,
    timm_prefixes,
)

PARTS = (
    *("expand", "expand_BN", "expand_relu"),
    *("depthwise", "depthwise_BN", "depthwise_relu"),
    *("attention", "project", "project_BN"),
)
# Names of the first kernel, and of one that the other networks don't have
STEM, MARK = "features.0.0.weight", "conv.0.weight"
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


def size_of(shapes: Mapping) -> tuple[dict, int]:
    """Returns the width of the network that a state dict is of.

    Args:
        shapes: The shapes by the official names.

    Returns:
        The builder's arguments for it, and the number of features before the classifier.

    Raises:
        ValueError: If no network has such shapes.
    """
    # Input and output channels of the last convolution both follow from the multiplier,
    # rounded to a multiple of 8. Up to 1.0, the output keeps its channels.
    last, widest = check_shape(shapes, MARK, 4)[:2]
    if abs(last - max(1280, 4 * widest)) > 20:
        raise ValueError(
            f"no `alpha` gives {MARK} {widest} channels in and {last} out."
        )
    return {"alpha": last / 1280 if last > 1280 else widest / 320}, last
