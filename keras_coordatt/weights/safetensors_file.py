"""Reads and writes `.safetensors` files."""

import os
import pathlib

import numpy as np
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save_file

from keras_coordatt.weights import bfloat16

# The format is little-endian on every machine.
_DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",  # numpy has no bfloat16: see `bfloat16.widen`
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U8": "u1",
    "BOOL": "?",
}


def read_safetensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads a `.safetensors` file.

    Args:
        path: The path of the file.

    Returns:
        Name to array. bfloat16 becomes float32; the other types stay as they are.

    Raises:
        ValueError: If the file is damaged, of another kind, or holds numbers of an
            unsupported type.
        OSError: If the file cannot be opened.
    """
    data = pathlib.Path(path).read_bytes()
    try:
        tensors = deserialize(data)
    except SafetensorError as error:
        raise ValueError(
            f"Cannot read {os.fspath(path)!r}: it is truncated, damaged, or not a "
            f"safetensors file ({error})."
        ) from error
    arrays = {}
    for name, tensor in tensors:
        if tensor["dtype"] not in _DTYPES:
            raise ValueError(
                f"Cannot read {os.fspath(path)!r}: {name} is of type "
                f"{tensor['dtype']}, and only {', '.join(_DTYPES)} are read."
            )
        array = np.frombuffer(tensor["data"], _DTYPES[tensor["dtype"]])
        array = bfloat16.widen(array) if tensor["dtype"] == "BF16" else array
        arrays[name] = array.reshape(tensor["shape"])
    return arrays


def write_safetensors(arrays: dict[str, np.ndarray], path: str | os.PathLike) -> None:
    """Writes contiguous arrays, in the layout of PyTorch."""
    save_file(arrays, path, metadata={"format": "pt"})
