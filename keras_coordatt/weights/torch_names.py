"""PyTorch names of the variables of networks and layers."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import keras
import numpy as np

from keras_coordatt.layers import CBAM, CoordinateAttention, SqueezeExcite
from keras_coordatt.layers.batch_normalization import BatchNormalization
from keras_coordatt.weights.matching import ExpectedWeight

# Per attention, the names of its sublayers. The official network of coordinate
# attention calls the gates' convolutions conv2 and conv3, the official layer conv_h and
# conv_w. Squeeze-and-excitation is called as in d-li14's networks, on whose code the
# official network is built, and CBAM as in its authors' code.
CA_IN_NETWORK = {
    "shared": "conv1",
    "norm": "bn1",
    "height_gate": "conv2",
    "width_gate": "conv3",
}
CA_IN_LAYER = {**CA_IN_NETWORK, "height_gate": "conv_h", "width_gate": "conv_w"}
IN_NETWORK = {
    CoordinateAttention: CA_IN_NETWORK,
    SqueezeExcite: {"reduce": "fc.0", "expand": "fc.2"},
    CBAM: {
        "reduce": "ChannelGate.mlp.1",
        "expand": "ChannelGate.mlp.3",
        "conv": "SpatialGate.spatial.conv",
        "norm": "SpatialGate.spatial.bn",
    },
}
IN_LAYER = {**IN_NETWORK, CoordinateAttention: CA_IN_LAYER}
IN_TIMM = {
    **IN_NETWORK,
    SqueezeExcite: {"reduce": "conv_reduce", "expand": "conv_expand"},
}
# Dense layers under these names are linear in PyTorch, the others 1x1 convolutions.
LINEAR = ("classifier", "fc.", "mlp.")


class Naming(NamedTuple):
    """One way to name the weights of a network.

    Attributes:
        prefixes: Prefixes of the names of a layer's weights, by the layer's name.
        attention: The names of the sublayers, by the class of the attention layer.
    """

    prefixes: dict[str, str]
    attention: dict[type, dict[str, str]] = IN_NETWORK


class Entry(NamedTuple):
    """A Keras variable and its entry in a state dict.

    Attributes:
        expected: Its name and shape in PyTorch.
        variable: The variable.
        axes: Transpose PyTorch's array to Keras's layout.
    """

    expected: ExpectedWeight
    variable: keras.Variable
    axes: tuple


def namings(target, with_attention: bool = True) -> list[list[Entry]]:
    """Returns the weights of a network or a layer under every naming that is known.

    Args:
        target: A network, or a built attention layer.
        with_attention: Whether the weights of a network's attention are included.

    Returns:
        One list of entries per naming. The first is that in which weights are saved.

    Raises:
        TypeError: If `target` is of another kind.
        ValueError: If no names are known for one of its layers.
    """
    if isinstance(target, tuple(IN_LAYER)):
        return [
            _attention(target, "", names[type(target)])
            for names in (IN_LAYER, IN_NETWORK, IN_TIMM)
        ]
    if not isinstance(target, keras.Model):
        raise TypeError(
            "`target` must be a model or an attention layer of this package. "
            f"Received: {type(target)}"
        )
    layers = [
        layer
        for layer in target.layers
        if with_attention or not isinstance(layer, tuple(IN_NETWORK))
    ]
    stem = next((la for la in layers if type(la) is keras.layers.Conv2D), None)
    return [
        [
            _with_part(entry, layer, stem)
            for layer in layers
            if layer.weights
            for entry in _entries(layer, naming)
        ]
        for naming in _namings_of_network(target, layers)
    ]


def _namings_of_network(model, layers):
    """Returns the namings that know every layer with weights."""
    # Imported here, as the networks import this package.
    from keras_coordatt.applications import NAMES

    weighted = [layer for layer in layers if layer.weights]
    unknown = [layer.name for layer in weighted]
    for names in NAMES.values():
        found = []
        for naming in names.namings([layer.name for layer in layers]):
            strange = [
                layer.name
                for layer in weighted
                if layer.name not in naming.prefixes
                or type(layer) not in (*PORTS, *naming.attention)
            ]
            unknown = min(unknown, strange, key=len)
            found += [] if strange else [naming]
        if found and weighted:
            return found
    raise ValueError(
        "PyTorch names are known for MobileNetV2CA, MobileNeXtCA and EfficientNetCA: "
        f"`target` must be a model of one of them. Received: {model.name}, with "
        f"{', '.join(unknown) or 'no weights'}"
    )


def numbered(
    layers: Iterable[str], block: str, parts: Iterable[str], prefix: str
) -> dict[str, str]:
    """Numbers the layers of a block as `torch.nn.Sequential` does.

    Args:
        layers: The names of all layers of a network.
        block: Prefix of the names of the block's layers.
        parts: Their suffixes, in order; those that `layers` lacks don't count.
        prefix: The name of the sequence.

    Returns:
        A dict from the layers' names to the names in PyTorch.
    """
    present = [block + part for part in parts if block + part in layers]
    return {name: f"{prefix}.{i}" for i, name in enumerate(present)}


def timm_prefixes(
    layers: Iterable[str], ends: dict[str, str], blocks: Iterable[str], repeats
) -> dict[str, str]:
    """Returns the prefixes of the layers' names in timm, for inverted residuals.

    Args:
        layers: The names of all layers of a network.
        ends: The stem and the top: their layers by the names in timm.
        blocks: The prefix of the names of each block's layers.
        repeats: The number of blocks of each stage.

    Returns:
        A dict from our names of layers to timm's.
    """
    positions = [(i, j) for i, repeat in enumerate(repeats) for j in range(repeat)]
    found = {ours: theirs for theirs, ours in ends.items()}
    for block, (stage, i) in zip(blocks, positions):
        expands = f"{block}expand" in layers
        parts = ("conv_pw", "bn1") if expands else ()
        parts += ("conv_dw", f"bn{1 + expands}", "se")
        parts += ("conv_pwl" if expands else "conv_pw", f"bn{2 + expands}")
        ours = ("expand", "expand_BN") if expands else ()
        ours += ("depthwise", "depthwise_BN", "attention", "project", "project_BN")
        for part, name in zip(parts, ours, strict=True):
            found[block + name] = f"blocks.{stage}.{i}.{part}"
    return found


def check_shape(shapes: Mapping, name: str, rank: int) -> tuple:
    """Returns the shape of a weight, or raises a ValueError if it is of another rank."""
    shape = shapes.get(name, ())
    if len(shape) != rank or 0 in shape:
        raise ValueError(
            f"{name} must have {rank} axes, none of them empty. Received: "
            + (f"shape {shape}" if name in shapes else "none of that name")
        )
    return shape


# The weights of one layer


def _entries(layer, naming):
    prefix = naming.prefixes[layer.name]
    if type(layer) in naming.attention:
        return _attention(layer, f"{prefix}.", naming.attention[type(layer)])
    return PORTS[type(layer)](layer, prefix)


def _with_part(entry, layer, stem):
    if layer is stem and len(entry.expected.shape) == 4:
        return entry._replace(expected=entry.expected._replace(part="stem", axis=1))
    if layer.name == "predictions":
        return entry._replace(expected=entry.expected._replace(part="head", axis=0))
    return entry


def _kernel(name, variable, shape, axes):
    """Returns the entry of a kernel. `axes` transpose its `shape` to PyTorch's."""
    if not isinstance(variable, keras.Variable) or "float" not in str(variable.dtype):
        raise ValueError(
            f"`target` must not be quantized or have LoRA enabled: {name} is not one "
            "floating-point variable. Convert the weights first."
        )
    inverse = tuple(int(i) for i in np.argsort(axes))
    shape = tuple(shape[i] for i in axes)
    return Entry(
        ExpectedWeight(name, shape, dtype=str(variable.dtype)), variable, inverse
    )


def _conv(layer, prefix):
    kernel = layer.kernel
    return [_kernel(f"{prefix}.weight", kernel, kernel.shape, (3, 2, 0, 1))]


def _depthwise(layer, prefix):
    kernel = layer.kernel
    return [_kernel(f"{prefix}.weight", kernel, kernel.shape, (2, 3, 0, 1))]


def _dense(layer, prefix):
    kernel, name = layer.kernel, f"{prefix}.weight"
    if any(word in name for word in LINEAR):
        weight = _kernel(name, kernel, kernel.shape, (1, 0))
    else:
        weight = _kernel(name, kernel, (1, 1, *kernel.shape), (3, 2, 0, 1))
    return [weight, _vector(f"{prefix}.bias", layer.bias)]


def _norm(layer, prefix):
    return [
        _vector(f"{prefix}.weight", layer.gamma),
        _vector(f"{prefix}.bias", layer.beta),
        _vector(f"{prefix}.running_mean", layer.moving_mean),
        _vector(f"{prefix}.running_var", layer.moving_variance),
    ]


def _vector(name, variable):
    return _kernel(name, variable, variable.shape, (0,))


def _attention(layer, prefix, names):
    if not layer.built:
        raise ValueError(
            "`target` must be built, or its weights have no shape. Received: "
            f"{layer.name}"
        )
    if getattr(layer, "identity_init", False):
        raise ValueError(
            f"{layer.name} scales its gates (`identity_init=True`) and the official "
            "layer does not, so the same weights would give other outputs. To save it, "
            "pass the model through `keras_coordatt.surgery.fuse_attention` first."
        )
    return [
        entry
        for sublayer in layer.sublayers()
        for entry in PORTS[type(sublayer)](sublayer, prefix + names[sublayer.name])
    ]


PORTS = {
    keras.layers.Conv2D: _conv,
    keras.layers.DepthwiseConv2D: _depthwise,
    keras.layers.Dense: _dense,
    keras.layers.BatchNormalization: _norm,
    BatchNormalization: _norm,
}
