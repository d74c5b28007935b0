"""The names and layouts of the official PyTorch code, from and to ours."""

import os
import re
from collections.abc import Mapping
from typing import NamedTuple

import keras
import numpy as np

from keras_coordatt.files import atomic_file
from keras_coordatt.layers import CoordinateAttention
from keras_coordatt.weights.matching import ExpectedWeight, match_arrays
from keras_coordatt.weights.safetensors_file import read_safetensors, write_safetensors
from keras_coordatt.weights.torch_checkpoint import read_checkpoint, unwrap

# The official network calls the gates' convolutions conv2 and conv3, the
# official layer conv_h and conv_w.
IN_NETWORK = {"height": "conv2", "width": "conv3"}
IN_LAYER = {"height": "conv_h", "width": "conv_w"}


def load_torch(target, source, skip_mismatch: bool = False) -> None:
    """Loads weights of the official PyTorch code into a network or a layer.

    Nothing in a file is executed, and PyTorch need not be installed. If anything
    is missing, unexpected, misshapen, or not a finite number, no weight of
    `target` changes.

    Args:
        target: A model of `MobileNetV2CA`, or a built `CoordinateAttention`.
        source: The path of a `.pth`, `.pt` or `.safetensors` file, or a mapping
            from the official names to arrays. Both may be wrapped in a
            `"state_dict"` entry, and all names may begin with `"module."`,
            `"_orig_mod."`, `"model."`, `"net."` or `"backbone."`.
        skip_mismatch: Same as in `load_weights`. Defaults to `False`.

    Raises:
        TypeError: if `target` or `source` is of another kind.
        ValueError: if the file can't be read, or the weights don't fit: every
            entry that is missing, unexpected or misshapen is named.

    Example:

    >>> model = MobileNetV2CA(weights=None)
    >>> load_torch(model, "mbv2_ca.pth")

    Reference:
        https://github.com/houqb/CoordAttention
    """
    if isinstance(source, (str, os.PathLike)):
        arrays, where = read_official(source), f"{os.fspath(source)!r}"
    elif isinstance(source, Mapping):
        arrays, where = unwrap(source), "the mapping"
    else:
        raise TypeError(
            "`source` must be a path or a mapping from names to arrays. "
            f"Received: {type(source)}"
        )
    # PyTorch counts batches, Keras doesn't need to.
    arrays = {
        name: _to_numpy(array)
        for name, array in arrays.items()
        if not name.endswith("num_batches_tracked")
    }
    words = {word for name in arrays for word in name.split(".")}
    gates = IN_LAYER if words & {"conv_h", "conv_w"} else IN_NETWORK
    entries = _entries(target, gates)
    arrays = match_arrays(
        [entry.slot for entry in entries],
        arrays,
        head=[name for name in arrays if name.startswith("classifier.")],
        source=where,
        target=target.name,
        skip_mismatch=skip_mismatch,
    )
    for entry in entries:
        if entry.slot.name in arrays:
            array = arrays[entry.slot.name].transpose(entry.axes)
            # A copy: JAX would keep the caller's own memory.
            entry.variable.assign(array.reshape(entry.variable.shape).copy())


def save_safetensors(target, path: str | os.PathLike) -> None:
    """Saves weights in a `.safetensors` file with the official PyTorch names.

    The official code loads it: `model.load_state_dict(safetensors.torch.load_file(
    path))`. The numbers are float32, whatever the precision of `target`. A network with
    the attention `"height"`, `"width"` or `None` is saved under the same names, though
    the official code has no class for it: that file is for `load_torch`.

    Args:
        target: A model of `MobileNetV2CA`, or a built `CoordinateAttention`.
        path: Where the file goes. What is there is replaced once the new file is
            whole.

    Raises:
        TypeError: if `target` is of another kind.
        ValueError: if `path` does not end in `.safetensors`, or the official code
            has no network or layer like `target`; its layer has the default
            `activation`, `gate_activation` and `epsilon`, which are no weights.

    Example:

    >>> model = MobileNetV2CA(weights=None)
    >>> save_safetensors(model, "mbv2_ca.safetensors")
    """
    if not str(path).endswith(".safetensors"):
        raise ValueError(f"`path` must end in `.safetensors`. Received: {path!r}")
    arrays = official_state(target)
    with atomic_file(path) as fresh:
        write_safetensors(arrays, fresh)


def official_state(target) -> dict[str, np.ndarray]:
    """The state dict that the official code has for a network or a layer.

    Args:
        target: A model of `MobileNetV2CA`, or a built `CoordinateAttention`.

    Returns:
        The official names, in the official order, with float32 arrays in PyTorch's
        layout; the count of batches of a normalization, which Keras does not
        keep, is 0.
    """
    is_layer = isinstance(target, CoordinateAttention)
    entries = _entries(target, IN_LAYER if is_layer else IN_NETWORK)
    for layer in [target] if is_layer else target.layers:
        if isinstance(layer, CoordinateAttention):
            _check_official(layer)
    arrays = {}
    for entry in entries:
        shape = tuple(entry.slot.shape[axis] for axis in entry.axes)
        array = keras.ops.convert_to_numpy(keras.ops.cast(entry.variable, "float32"))
        array = array.reshape(shape).transpose(np.argsort(entry.axes))
        arrays[entry.slot.name] = np.ascontiguousarray(array).reshape(entry.slot.shape)
        if entry.slot.name.endswith(".running_var"):
            counter = entry.slot.name.replace("running_var", "num_batches_tracked")
            arrays[counter] = np.zeros((), "int64")
    return arrays


def _check_official(layer):
    """Raises if a layer computes something else than the official one."""
    official = CoordinateAttention()
    for name in ("activation", "gate_activation", "epsilon"):
        ours, theirs = getattr(layer, name), getattr(official, name)
        if ours != theirs:
            ours, theirs = (getattr(x, "__name__", x) for x in (ours, theirs))
            raise ValueError(
                f"`target` must have the official layer's `{name}`, {theirs}: a file "
                f"of weights does not tell it. Received: {layer.name} with {ours}"
            )


def read_official(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads a file of official names by its suffix."""
    if str(path).endswith(".safetensors"):
        return unwrap(read_safetensors(path))
    return read_checkpoint(path)


def describe(arrays: Mapping, source: str) -> dict:
    """The arguments of `MobileNetV2CA` that a state dict is of.

    Args:
        arrays: The official names and arrays.
        source: What the arrays are, for messages.

    Raises:
        ValueError: if they are not of a `MobileNetV2CA`. The shapes that tell the
            arguments are checked against each other, so that a small file can't ask
            for a large network.
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

    # Both widths tell the multiplier; they are rounded to multiples of 8, the larger
    # the less. Up to 1.0, the last keeps its channels.
    last, widest = _shape(shapes, "conv.0.weight", 4)[:2]
    if abs(last - max(1280, 4 * widest)) > 20:
        raise ValueError(
            f"no `alpha` gives conv.0.weight {widest} channels in and {last} out."
        )
    found["alpha"] = last / 1280 if last > 1280 else widest / 320

    if any(name.startswith("classifier.") for name in shapes):
        (classes,) = _shape(shapes, "classifier.1.bias", 1)
        if _shape(shapes, "classifier.1.weight", 2) != (classes, last):
            raise ValueError(
                f"for {classes} classes, the shape of classifier.1.weight must be "
                f"{(classes, last)}. Received: {shapes['classifier.1.weight']}"
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
    widths = [  # between the gates, and of the map
        _shape(shapes, name, 4)[:2]
        for name in shapes
        if name.endswith(".conv.6.conv1.weight")
    ]
    # If any reduction does, the least does that makes no layer too wide; but all that
    # make the same shapes are as good, so the default goes first.
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


class Entry(NamedTuple):
    """A Keras variable and where it stands in a state dict."""

    slot: ExpectedWeight  # its name and shape there
    variable: keras.Variable
    axes: tuple  # that transpose the PyTorch array to ours


def _to_numpy(array):
    if hasattr(array, "detach"):  # a tensor of PyTorch, perhaps bfloat16 or on a GPU
        array = array.detach().cpu()
        array = array.float() if array.is_floating_point() else array
    array = np.asarray(array)
    # ml_dtypes' type, which NumPy takes for no float.
    return array.astype("float32") if array.dtype.name == "bfloat16" else array


# What stands where


def _entries(target, gates):
    if isinstance(target, CoordinateAttention):
        return _attention(target, "", gates)
    if not isinstance(target, keras.Model):
        raise TypeError(
            "`target` must be a model or a CoordinateAttention. "
            f"Received: {type(target)}"
        )
    entries = []
    for layer, prefix in _with_official_prefixes(target):
        if isinstance(layer, CoordinateAttention):
            entries += _attention(layer, f"{prefix}.", gates)
        else:
            entries += PORTS[type(layer)](layer, prefix)
    return [_with_part(entry) for entry in entries]


def _with_official_prefixes(model):
    """Every layer with weights, and what its names begin with in the official code."""
    layers = [layer for layer in model.layers if layer.weights]
    unknown = [layer.name for layer in layers]
    for prefix_of in FAMILIES.values():
        prefixes = [prefix_of(model, layer.name) for layer in layers]
        strange = [
            layer.name
            for layer, prefix in zip(layers, prefixes)
            if prefix is None or type(layer) not in PORTS
        ]
        if layers and not strange:
            return list(zip(layers, prefixes))
        unknown = min(unknown, strange, key=len)
    raise ValueError(
        f"There are official PyTorch names for {', '.join(FAMILIES)} alone: `target` "
        f"must be a model of it. Received: {model.name}, with "
        f"{', '.join(unknown) or 'no weights'}"
    )


def _mobilenet_v2(model, name):
    """The official prefix of a layer of MobileNetV2CA, None for another's."""
    ends = {
        "Conv1": "features.0.0",
        "bn_Conv1": "features.0.1",
        "Conv_1": "conv.0",
        "Conv_1_bn": "conv.1",
        "predictions": "classifier.1",
    }
    if name in ends:
        return ends[name]
    match = re.fullmatch(r"(?:block_(\d+)|expanded_conv)_(\w+)", name)
    if match is None:
        return None
    block, part = match.groups()
    if block is None:
        parts = ["depthwise", "depthwise_BN", "relu", "project", "project_BN"]
    else:
        parts = ["expand", "expand_BN", "relu", "depthwise", "depthwise_BN", "relu"]
        if any(layer.name == f"block_{block}_attention" for layer in model.layers):
            parts.append("attention")
        parts += ["project", "project_BN"]
    if part not in parts:
        return None
    return f"features.{int(block or 0) + 1}.conv.{parts.index(part)}"


# A family's function gives the official prefix of a layer of a model, by its name, or
# None. No other family's weights have been published.
FAMILIES = {"MobileNetV2CA": _mobilenet_v2}


def _with_part(entry):
    """Marks the stem and the head, by their names in the official code."""
    if entry.slot.name == "features.0.0.weight":
        return entry._replace(slot=entry.slot._replace(part="stem", axis=1))
    if entry.slot.name.startswith("classifier."):
        return entry._replace(slot=entry.slot._replace(part="head", axis=0))
    return entry


def _kernel(name, variable, shape, axes):
    """A kernel, seen here as `shape`, which `axes` transposes to PyTorch's."""
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
    kernel = layer.kernel
    return [
        _kernel(f"{prefix}.weight", kernel, kernel.shape, (1, 0)),
        _vector(f"{prefix}.bias", layer.bias),
    ]


def _pointwise(layer, prefix):
    """A dense layer that is a 1x1 convolution in PyTorch."""
    kernel = layer.kernel
    return [
        _kernel(f"{prefix}.weight", kernel, (1, 1, *kernel.shape), (3, 2, 0, 1)),
        _vector(f"{prefix}.bias", layer.bias),
    ]


def _norm(layer, prefix):
    return [
        _vector(f"{prefix}.weight", layer.gamma),
        _vector(f"{prefix}.bias", layer.beta),
        _vector(f"{prefix}.running_mean", layer.moving_mean),
        _vector(f"{prefix}.running_var", layer.moving_variance),
    ]


def _vector(name, variable):
    return _kernel(name, variable, variable.shape, (0,))


def _attention(layer, prefix, gates):
    if not layer.built:
        raise ValueError(
            f"`target` must be built before its weights have a shape. Received: "
            f"{layer.name}"
        )
    if layer.identity_init:
        raise ValueError(
            f"The gates of {layer.name} are scaled (`identity_init=True`), those of "
            "the official layer are not: its weights would give other outputs."
        )
    entries = _pointwise(layer.shared, f"{prefix}conv1")
    entries += _norm(layer.norm, f"{prefix}bn1")
    for axis, gate in layer.gates.items():
        entries += _pointwise(gate, prefix + gates[axis])
    return entries


PORTS = {
    keras.layers.Conv2D: _conv,
    keras.layers.DepthwiseConv2D: _depthwise,
    keras.layers.Dense: _dense,
    keras.layers.BatchNormalization: _norm,
    CoordinateAttention: _attention,
}
