"""Converts weights between Keras and the official PyTorch code."""

import os
from collections.abc import Iterable, Mapping
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

    Nothing in a file is executed, and PyTorch need not be installed. If anything is
    missing, unexpected, of another shape, or not a finite number, no weight of `target`
    changes.

    Args:
        target: A `MobileNetV2CA` or `MobileNeXtCA` with coordinate attention or none,
            or a built `CoordinateAttention`.
        source: The path of a `.pth`, `.pt` or `.safetensors` file, or a mapping
            from the official names to arrays. Both may be wrapped in a
            `"state_dict"` entry, and all names may begin with `"module."`,
            `"_orig_mod."`, `"model."`, `"net."` or `"backbone."`.
        skip_mismatch: Same as in `load_weights`. Defaults to `False`.

    Raises:
        TypeError: If `target` or `source` is of another kind.
        ValueError: If the file can't be read or the weights don't fit. The message
            names the likely cause and the first entries that don't fit.

    Example:

    >>> model = MobileNetV2CA(weights=None)
    >>> load_torch(model, "mbv2_ca.pth")

    Reference:
        - https://github.com/houqb/CoordAttention (with attention)
        - https://github.com/d-li14/mobilenetv2.pytorch and
          https://github.com/houqb/ssdlite-pytorch-mobilenext (without)
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
    arrays = _with_classifier_of(entries, arrays)
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

    The official code loads it with
    `model.load_state_dict(safetensors.torch.load_file(path))`. The numbers are float32,
    whatever the precision of `target`. There is no official code for the attentions
    `"height"` and `"width"`, nor for a `MobileNeXtCA` with attention: their files are
    for `load_torch`.

    Args:
        target: A `MobileNetV2CA` or `MobileNeXtCA` with coordinate attention or none,
            or a built `CoordinateAttention`.
        path: The path of the file. An existing file is replaced atomically.

    Raises:
        TypeError: If `target` is of another kind.
        ValueError: If `path` does not end in `.safetensors`, or the official code
            can't represent `target`: its layer has the default `activation`,
            `gate_activation` and `epsilon`, which a file of weights does not hold.

    Example:

    >>> model = MobileNetV2CA(weights=None)
    >>> save_safetensors(model, "mbv2_ca.safetensors")
    """
    if not str(path).endswith(".safetensors"):
        raise ValueError(f"`path` must end in `.safetensors`. Received: {path!r}")
    arrays = official_state(target)
    with atomic_file(path) as temporary:
        write_safetensors(arrays, temporary)


def official_state(target) -> dict[str, np.ndarray]:
    """Returns the official code's state dict of a network or a layer.

    Args:
        target: Same as in `save_safetensors`.

    Returns:
        The official names, in the official order, with float32 arrays in PyTorch's
        layout. `num_batches_tracked`, which Keras does not count, is 0.
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
    """Raises if a layer does not compute what the official one does."""
    official = CoordinateAttention()
    for name in ("activation", "gate_activation", "epsilon"):
        ours, theirs = getattr(layer, name), getattr(official, name)
        if ours != theirs:
            ours, theirs = (getattr(x, "__name__", x) for x in (ours, theirs))
            raise ValueError(
                f"`target` must have the official layer's `{name}`, {theirs}, as a file "
                f"of weights does not hold it. Received: {layer.name} with {ours}"
            )


def read_official(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads a file of official names by its suffix."""
    if str(path).endswith(".safetensors"):
        return unwrap(read_safetensors(path))
    return read_checkpoint(path)


def _with_classifier_of(entries, arrays):
    """Names the classifier as the network does: `classifier` or `classifier.1`."""
    ours = {e.slot.name.rpartition(".")[0] for e in entries if e.slot.part == "head"}
    theirs = {n.rpartition(".")[0] for n in arrays if n.startswith("classifier.")}
    if len(ours) != 1 or len(theirs) != 1:  # none, or more than one linear layer
        return arrays
    (ours,), (theirs,) = ours, theirs
    return {
        ours + name.removeprefix(theirs)
        if name.startswith(f"{theirs}.")
        else name: array
        for name, array in arrays.items()
    }


class Entry(NamedTuple):
    """A Keras variable and its place in a state dict.

    Attributes:
        slot: Its name and shape in PyTorch.
        variable: The variable.
        axes: Transpose PyTorch's array to Keras's layout.
    """

    slot: ExpectedWeight
    variable: keras.Variable
    axes: tuple


def _to_numpy(array):
    if hasattr(array, "detach"):  # a tensor of PyTorch, perhaps bfloat16 or on a GPU
        array = array.detach().cpu()
        array = array.float() if array.is_floating_point() else array
    array = np.asarray(array)
    # ml_dtypes' type, which is not a float to NumPy.
    return array.astype("float32") if array.dtype.name == "bfloat16" else array


# Which variable has which name


def _entries(target, gates):
    if isinstance(target, CoordinateAttention):
        return _attention(target, "", gates)
    if not isinstance(target, keras.Model):
        raise TypeError(
            "`target` must be a model or a CoordinateAttention layer. "
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
    """Every layer with weights, and the prefix of its names in the official code."""
    layers = [layer for layer in model.layers if layer.weights]
    unknown = [layer.name for layer in layers]
    for prefixes_of in _families().values():
        prefixes = prefixes_of([layer.name for layer in model.layers])
        strange = [
            layer.name
            for layer in layers
            if layer.name not in prefixes or type(layer) not in PORTS
        ]
        if layers and not strange:
            return [(layer, prefixes[layer.name]) for layer in layers]
        unknown = min(unknown, strange, key=len)
    raise ValueError(
        f"Official PyTorch names are known for {' and '.join(_families())}: `target` "
        f"must be a model of one of them. Received: {model.name}, with "
        f"{', '.join(unknown) or 'no weights'}"
    )


def _families():
    """Per builder, a function from a model to its layers' official prefixes."""
    # Imported here, as the networks import this package.
    from keras_coordatt.applications import mobilenet_v2_names, mobilenext_names

    return {
        "MobileNetV2CA": mobilenet_v2_names.prefixes,
        "MobileNeXtCA": mobilenext_names.prefixes,
    }


def numbered(
    layers: Iterable[str], block: str, parts: Iterable[str], prefix: str
) -> dict[str, str]:
    """Numbers the layers of a block as `torch.nn.Sequential` does.

    Args:
        layers: The names of all layers of a network.
        block: What the names of the block's layers begin with.
        parts: What they end with, in order; those that `layers` lacks don't count.
        prefix: The name of the sequence.
    """
    present = [block + part for part in parts if block + part in layers]
    return {name: f"{prefix}.{i}" for i, name in enumerate(present)}


def _with_part(entry):
    """Marks the stem and the head by their official names."""
    if entry.slot.name == "features.0.0.weight":
        return entry._replace(slot=entry.slot._replace(part="stem", axis=1))
    if entry.slot.name.startswith("classifier."):
        return entry._replace(slot=entry.slot._replace(part="head", axis=0))
    return entry


def _kernel(name, variable, shape, axes):
    """The entry of a kernel. `axes` transpose its `shape` to PyTorch's."""
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
    """The entries of a dense layer that is a 1x1 convolution in PyTorch."""
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
            "`target` must be built, or its weights have no shape. Received: "
            f"{layer.name}"
        )
    if layer.identity_init:
        raise ValueError(
            f"{layer.name} scales its gates (`identity_init=True`) and the official "
            "layer does not, so the same weights would give other outputs."
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
