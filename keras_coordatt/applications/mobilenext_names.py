"""MobileNeXtCA's names in PyTorch.

They are those of the authors' code, houqb/ssdlite-pytorch-mobilenext, where the
attention, of which they published no code, would be the next module.
"""

import math
import re
from collections.abc import Mapping

from keras_coordatt.applications import mobilenext_ca
from keras_coordatt.applications.blocks import make_divisible
from keras_coordatt.weights.torch_names import (
    IN_LAYER,
    Naming,
    check_shape,
    numbered,
)

PARTS = (
    *("depthwise", "depthwise_BN", "depthwise_relu", "attention"),
    *("reduce", "reduce_BN", "expand", "expand_BN", "expand_relu"),
    *("depthwise_2", "depthwise_2_BN"),
)
# Names of the first kernel, and of one that the other networks don't have
STEM, MARK = "features.0.0.weight", "features.1.conv.0.weight"


def namings(layers: list[str]) -> list[Naming]:
    """Returns the ways to name the weights of a network, the authors' first.

    Args:
        layers: The names of all layers of the network.

    Returns:
        A list of `Naming`.
    """
    found = {
        "Conv1": "features.0.0",
        "bn_Conv1": "features.0.1",
        "predictions": "classifier",
    }
    matches = [re.match(r"block_(\d+)_", name) for name in layers]
    # Not a set, because all processes must assign weights in the same order.
    for i in dict.fromkeys(match[1] for match in matches if match):
        prefix = f"features.{int(i) + 1}.conv"
        found |= numbered(layers, f"block_{i}_", PARTS, prefix)
    return [Naming(found), Naming(found, IN_LAYER)]


def size_of(shapes: Mapping) -> tuple[dict, int]:
    """Returns the width of the network that a state dict is of.

    Args:
        shapes: The shapes by the authors' names.

    Returns:
        The builder's arguments for it, and the number of features before the classifier.

    Raises:
        ValueError: If no network has such shapes.
    """
    last = f"features.{sum(blocks for _, _, blocks, _ in mobilenext_ca.STAGES)}.conv"
    i = 3 if f"{last}.3.weight" in shapes else 4  # after the attention, if there is one
    narrow, wide = check_shape(shapes, f"{last}.{i}.weight", 4)[:2]
    features = check_shape(shapes, f"{last}.{i + 2}.weight", 4)[0]
    # Rounded to a multiple of 8; up to an `alpha` of 1.0, the output keeps its channels.
    fits = abs(features - max(1280, wide * 4 / 3)) <= 10
    if not fits or narrow != make_divisible(math.ceil(features / 6), 16):
        raise ValueError(
            f"no `alpha` gives {last} {wide} channels in, {narrow} in the middle and "
            f"{features} out."
        )
    return {"alpha": features / 1280 if features > 1280 else wide / 960}, features
