"""EfficientNetCA's names in PyTorch and in `keras.applications`.

In PyTorch they are timm's, whose `tf_efficientnet_b0` to `b7` are the same networks.
"""

import math
import re
from collections.abc import Collection, Mapping

import numpy as np

from keras_coordatt.applications import efficientnet_ca
from keras_coordatt.applications.blocks import make_divisible
from keras_coordatt.preprocessing import IMAGENET
from keras_coordatt.weights.torch_names import (
    IN_TIMM,
    Naming,
    check_shape,
    timm_prefixes,
)

# Names of the first kernel, and of one that the other networks don't have
STEM, MARK = "conv_stem.weight", "conv_head.weight"
TIMM = {
    "conv_stem": "stem_conv",
    "bn1": "stem_bn",
    "conv_head": "top_conv",
    "bn2": "top_bn",
    "classifier": "predictions",
}
# Endings of the names of a block's layers in keras.applications
KERAS = {
    "expand_conv": "expand",
    "expand_bn": "expand_BN",
    "dwconv": "depthwise",
    "bn": "depthwise_BN",
    "se_reduce": "attention/reduce",
    "se_expand": "attention/expand",
    "project_conv": "project",
    "project_bn": "project_BN",
}
KERAS_BLOCK = re.compile(r"(block\d[a-z])_")


def namings(layers: list[str]) -> list[Naming]:
    """Returns the ways to name the weights of a network in PyTorch.

    Args:
        layers: The names of all layers of the network.

    Returns:
        A list of `Naming`, empty if the number of blocks matches no variant.
    """
    count = sum(bool(re.fullmatch(r"block_\d+_depthwise", name)) for name in layers)
    for _, depth, *_ in efficientnet_ca.VARIANTS.values():
        # The depth follows from the number of blocks.
        repeats = _repeats(depth)
        if sum(repeats) == count:
            blocks = [f"block_{i}_" for i in range(count)]
            prefixes = timm_prefixes(layers, TIMM, blocks, repeats)
            return [Naming(prefixes, IN_TIMM)]
    return []


def size_of(shapes: Mapping) -> tuple[dict, int]:
    """Returns the variant of the network that a state dict is of.

    Args:
        shapes: The shapes by timm's names.

    Returns:
        The builder's arguments for it, and the number of features before the classifier.

    Raises:
        ValueError: If no variant has such shapes.
    """
    features, widest = check_shape(shapes, MARK, 4)[:2]
    matches = (re.match(r"blocks\.\d+\.\d+\.", name) for name in shapes)
    count = len({match[0] for match in matches if match})
    for variant, (width, depth, *_) in efficientnet_ca.VARIANTS.items():
        channels = make_divisible(1280 * width), make_divisible(320 * width)
        if (features, widest) == channels and count == sum(_repeats(depth)):
            return {"variant": variant}, features
    raise ValueError(
        f"no `variant` has {count} blocks and gives {MARK} {widest} channels in and "
        f"{features} out."
    )


def _repeats(depth):
    return [math.ceil(depth * repeats) for *_, repeats, _ in efficientnet_ca.STAGES]


def from_keras_applications(
    arrays: Mapping, names: Collection[str], source: str
) -> dict:
    """Renames the weights of an EfficientNet of `keras.applications`.

    Its normalization layer is left out: `preprocess_input` does the same.

    Args:
        arrays: The arrays by `layer/weight`; 1x1 kernels get the shape of dense ones.
        names: The names of the weights of the network that they are loaded into.
        source: Description of the arrays, for messages.

    Returns:
        The arrays under the names of an `EfficientNetCA`; those of another network as
        they are.

    Raises:
        ValueError: If the network normalizes images in another way.
    """
    blocks = sorted({match[1] for name in arrays if (match := KERAS_BLOCK.match(name))})
    # Only EfficientNetCA has a layer of this name.
    if not blocks or "block_0_depthwise/kernel" not in names:
        return dict(arrays)
    renamed = {}
    for name, array in arrays.items():
        layer, _, weight = name.partition("/")
        block, _, part = layer.partition("_")
        if re.fullmatch(r"normalization(_\d+)?", layer):
            if (
                weight == "mean"
                and np.abs(array - np.array(IMAGENET.mean)).max() > 0.01
            ):
                raise ValueError(
                    f"{source} is of a network that doesn't normalize images by "
                    f"ImageNet's mean, {IMAGENET.mean}, as `preprocess_input` does. "
                    f"Received: {np.asarray(array)}"
                )
            continue
        if layer == "probs":  # until TensorFlow 2.2
            layer = "predictions"
        if block in blocks and part in KERAS:
            layer = f"block_{blocks.index(block)}_{KERAS[part]}"
            if part.startswith("se_") and weight == "kernel":
                array = array.without_axes(2)
        renamed[f"{layer}/{weight}"] = array
    return renamed
