"""MobileNeXtCA's names in PyTorch.

They are those of the authors' code, houqb/ssdlite-pytorch-mobilenext, where the
attention, of which they published no code, would be the next module.
"""

import re

from keras_coordatt.weights.torch_names import IN_LAYER, Naming, numbered

PARTS = (
    *("depthwise", "depthwise_BN", "depthwise_relu", "attention"),
    *("reduce", "reduce_BN", "expand", "expand_BN", "expand_relu"),
    *("depthwise_2", "depthwise_2_BN"),
)


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
