"""From the official PyTorch names and layouts to ours."""

import os
import re
import warnings
from collections.abc import Mapping
from typing import NamedTuple

import keras
import numpy as np

from keras_coordatt.layers import CoordinateAttention
from keras_coordatt.weights.torch_checkpoint import read_checkpoint, unwrap

# The official network calls the gates' convolutions conv2 and conv3, the
# official layer conv_h and conv_w.
GATES = {"height": ("conv2", "conv_h"), "width": ("conv3", "conv_w")}


def load_torch(target, source) -> None:
    """Loads weights of the official PyTorch code into a network or a layer.

    Nothing in a file is executed, and PyTorch need not be installed. If anything
    is missing, unexpected or misshapen, no weight of `target` changes. A target
    without a classifier leaves the source's classifier unused, with a warning.

    Args:
        target: A model of `MobileNetV2CA`, or a built `CoordinateAttention`.
        source: The path of a `.pth` or `.pt` file, or a mapping from the official
            names to arrays. Both may be wrapped in a `"state_dict"` entry, and
            the names may begin with `"module."`.

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
        arrays, where = read_checkpoint(source), f"{os.fspath(source)!r}"
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
    entries = _entries(target, _gate_names(arrays))

    if isinstance(target, keras.Model) and not _has_layer(target, "predictions"):
        unused = [name for name in arrays if name.startswith("classifier.")]
        if unused:
            warnings.warn(
                f"{target.name} has no classifier: {', '.join(unused)} of {where} "
                "are not used.",
                stacklevel=2,
            )
            arrays = {k: v for k, v in arrays.items() if k not in unused}

    problems = _problems(entries, arrays)
    if problems:
        raise ValueError(
            f"{where} does not fit {target.name}; no weight was changed:\n  "
            + "\n  ".join(problems)
        )
    for entry in entries:
        array = arrays[entry.name].transpose(entry.axes)
        # A copy: JAX would keep the caller's own memory.
        entry.variable.assign(array.reshape(entry.variable.shape).copy())


class Entry(NamedTuple):
    """A Keras variable and where it stands in a state dict."""

    name: str
    variable: keras.Variable
    shape: tuple  # of the PyTorch array
    axes: tuple  # that transpose the PyTorch array to ours


def _problems(entries, arrays):
    expected = {entry.name: entry for entry in entries}
    problems = [
        f"missing: {name}, shape {entry.shape}"
        for name, entry in expected.items()
        if name not in arrays
    ]
    for name, array in arrays.items():
        if name not in expected:
            problems.append(f"unexpected: {name}, shape {array.shape}")
        elif array.shape != expected[name].shape:
            problems.append(
                f"misshapen: {name}, shape {array.shape}, "
                f"expected {expected[name].shape}"
            )
        elif array.dtype.kind != "f":
            problems.append(f"not floating-point: {name}, dtype {array.dtype}")
    return problems


def _to_numpy(array):
    if hasattr(array, "detach"):  # a tensor of PyTorch, perhaps bfloat16 or on a GPU
        array = array.detach().cpu()
        array = array.float() if array.is_floating_point() else array
    return np.asarray(array)


def _gate_names(arrays):
    """What the source calls the gates' convolutions."""
    words = {word for name in arrays for word in name.split(".")}
    return {axis: b if b in words else a for axis, (a, b) in GATES.items()}


def _has_layer(model, name):
    return any(layer.name == name for layer in model.layers)


# What stands where


def _entries(target, gates):
    if isinstance(target, CoordinateAttention):
        return _attention(target, "", gates)
    if not isinstance(target, keras.Model):
        raise TypeError(
            "`target` must be a model or a CoordinateAttention. "
            f"Received: {type(target)}"
        )
    entries, unknown = [], []
    for layer in target.layers:
        if not layer.weights:
            continue
        prefix = _mobilenet_v2_prefix(target, layer.name)
        if prefix is None or type(layer) not in PORTS:
            unknown.append(layer.name)
        elif isinstance(layer, CoordinateAttention):
            entries += _attention(layer, f"{prefix}.", gates)
        else:
            entries += PORTS[type(layer)](layer, prefix)
    if unknown or not entries:
        raise ValueError(
            "`target` must be a model of MobileNetV2CA, whose layers have names in "
            f"the official code. Received: {target.name}, with "
            f"{', '.join(unknown) or 'no weights'}"
        )
    return entries


def _mobilenet_v2_prefix(model, name):
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
        if _has_layer(model, f"block_{block}_attention"):
            parts.append("attention")
        parts += ["project", "project_BN"]
    if part not in parts:
        return None
    return f"features.{int(block or 0) + 1}.conv.{parts.index(part)}"


def _kernel(name, variable, shape, axes):
    """A kernel, seen here as `shape`, which `axes` transposes to PyTorch's."""
    inverse = tuple(int(i) for i in np.argsort(axes))
    return Entry(name, variable, tuple(shape[i] for i in axes), inverse)


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
    return Entry(name, variable, tuple(variable.shape), (0,))


def _attention(layer, prefix, gates):
    if not layer.built:
        raise ValueError(
            f"`target` must be built before weights are loaded. Received: {layer.name}"
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
