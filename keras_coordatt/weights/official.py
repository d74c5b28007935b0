"""Converts weights between Keras and PyTorch code."""

import os
from collections.abc import Mapping

import keras
import numpy as np

from keras_coordatt.files import atomic_file
from keras_coordatt.layers import CoordinateAttention
from keras_coordatt.validation import check_type
from keras_coordatt.weights.matching import match_arrays
from keras_coordatt.weights.safetensors_file import read_safetensors, write_safetensors
from keras_coordatt.weights.torch_checkpoint import read_checkpoint, unwrap
from keras_coordatt.weights.torch_names import Entry, namings


def load_torch(
    target: keras.Layer,
    source: str | os.PathLike | Mapping,
    skip_mismatch: bool = False,
) -> None:
    """Loads weights of PyTorch code into a network or an attention layer.

    Nothing in a file is executed, and PyTorch need not be installed. If anything is
    missing, unexpected, of another shape, or not a finite number, no weight of `target`
    changes.

    The names of the code below are recognized, and those of `save_safetensors`, which
    has names for every attention. A file doesn't record the padding and the epsilon of
    its network: of timm's EfficientNets, `tf_efficientnet_b0` to `b7` have Keras's.

    Args:
        target: A `MobileNetV2CA`, `MobileNeXtCA` or `EfficientNetCA`, or a built
            `CoordinateAttention`, `SqueezeExcite` or `CBAM`.
        source: The path of a `.pth`, `.pt` or `.safetensors` file, or a mapping
            from names to arrays. Both may be wrapped in a `"state_dict"` entry, and
            all names may begin with `"module."`, `"_orig_mod."`, `"model."`, `"net."`
            or `"backbone."`.
        skip_mismatch: Same as in `load_weights`. Defaults to `False`.

    Raises:
        TypeError: If `target` or `source` is of another kind.
        ValueError: If the file can't be read or the weights don't fit. The message
            names the likely cause and the first entries that don't fit.

    Example:

    >>> model = MobileNetV2CA(weights=None)
    >>> load_torch(model, "mbv2_ca.pth")

    Reference:
        - https://github.com/houqb/CoordAttention (MobileNetV2 with attention)
        - https://github.com/d-li14/mobilenetv2.pytorch, torchvision's `mobilenet_v2`
          and timm's `mobilenetv2_*` (without)
        - https://github.com/houqb/ssdlite-pytorch-mobilenext (MobileNeXt)
        - timm's `tf_efficientnet_*` (EfficientNet with `attention="se"`)
    """
    load_state(target, source, namings(target), skip_mismatch)


def load_without_attention(
    model: keras.Model, source: str | os.PathLike | Mapping, skip_mismatch: bool = False
) -> None:
    """Loads weights of a plain network, same as `load_torch`, and keeps the attention.

    Args:
        model: A network whose attention the source lacks.
        source: Same as in `load_torch`.
        skip_mismatch: Same as in `load_torch`.
    """
    check_type("model", model, keras.Model, "a keras.Model")
    load_state(model, source, namings(model, with_attention=False), skip_mismatch)


def load_state(
    target: keras.Layer,
    source: str | os.PathLike | Mapping,
    choices: list[list[Entry]],
    skip_mismatch: bool,
) -> None:
    """Loads a source under the naming that matches most of its names.

    Args:
        target: Same as in `load_torch`.
        source: Same as in `load_torch`.
        choices: The weights to load, under every naming.
        skip_mismatch: Same as in `load_torch`.

    Raises:
        TypeError: If `source` is of another kind.
        ValueError: If the source can't be read or the weights don't fit.
    """
    if isinstance(source, (str, os.PathLike)):
        arrays, where = read_official(source), f"{os.fspath(source)!r}"
    elif isinstance(source, Mapping):
        arrays, where = unwrap(source), "the mapping `source`"
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
    entries = max(
        choices, key=lambda entries: sum(e.expected.name in arrays for e in entries)
    )
    arrays = _with_classifier_of(entries, arrays)
    arrays = match_arrays(
        [entry.expected for entry in entries],
        arrays,
        head=[name for name in arrays if name.startswith("classifier.")],
        source=where,
        target=target.name,
        skip_mismatch=skip_mismatch,
    )
    for entry in entries:
        if entry.expected.name in arrays:
            array = arrays[entry.expected.name].transpose(entry.axes)
            # A copy: JAX would keep the caller's own memory.
            entry.variable.assign(array.reshape(entry.variable.shape).copy())


def save_safetensors(target: keras.Layer, path: str | os.PathLike) -> None:
    """Saves weights in a `.safetensors` file with PyTorch's names.

    Where there is PyTorch code of the network (see `load_torch`), it loads the file
    with `model.load_state_dict(safetensors.torch.load_file(path))`: the official code
    for `MobileNetV2CA` and `MobileNeXtCA`, timm for an `EfficientNetCA` with
    `attention="se"`. Files of other attentions are for `load_torch`. The numbers are
    float32, whatever the precision of `target`.

    Args:
        target: Same as in `load_torch`.
        path: The path of the file. An existing file is replaced atomically.

    Raises:
        TypeError: If `target` is of another kind.
        ValueError: If `path` does not end in `.safetensors`, or the official code
            can't represent `target`: its coordinate attention has the default
            `activation`, `gate_activation` and `epsilon`, which a file of weights does
            not hold, and no `identity_init`.

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
    """Returns the PyTorch code's state dict of a network or a layer.

    Args:
        target: Same as in `save_safetensors`.

    Returns:
        The official names, in the official order, with float32 arrays in PyTorch's
        layout. `num_batches_tracked`, which Keras does not count, is 0.
    """
    entries, *_ = namings(target)
    for layer in getattr(target, "layers", [target]):
        if isinstance(layer, CoordinateAttention):
            _check_official(layer)
    arrays = {}
    for entry in entries:
        shape = tuple(entry.expected.shape[axis] for axis in entry.axes)
        array = keras.ops.convert_to_numpy(keras.ops.cast(entry.variable, "float32"))
        array = array.reshape(shape).transpose(np.argsort(entry.axes))
        arrays[entry.expected.name] = np.ascontiguousarray(array).reshape(
            entry.expected.shape
        )
        if entry.expected.name.endswith(".running_var"):
            counter = entry.expected.name.replace("running_var", "num_batches_tracked")
            arrays[counter] = np.zeros((), "int64")
    return arrays


def _check_official(layer):
    """Raises a ValueError if a layer computes other outputs than the official one."""
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
    ours = {
        e.expected.name.rpartition(".")[0] for e in entries if e.expected.part == "head"
    }
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


def _to_numpy(array):
    if hasattr(array, "detach"):  # a tensor of PyTorch, perhaps bfloat16 or on a GPU
        array = array.detach().cpu()
        array = array.float() if array.is_floating_point() else array
    array = np.asarray(array)
    # ml_dtypes' type, which is not a float to NumPy.
    return array.astype("float32") if array.dtype.name == "bfloat16" else array
