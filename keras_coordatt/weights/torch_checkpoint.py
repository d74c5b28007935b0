"""Reads the weights in a PyTorch checkpoint without PyTorch, executing nothing.

A checkpoint is a pickle, and a pickle is a program: unpickling it, as `torch.load` long
did by default, runs whatever the file's author wrote. So nothing is unpickled here:
see `torch_pickle`.
"""

import io
import os
import reprlib
import struct
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping
from typing import BinaryIO

import numpy as np

from keras_coordatt.weights import bfloat16
from keras_coordatt.weights.torch_pickle import Storage, Tensor, interpret

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
# Prefixes that wrappers add to the names of a network: DataParallel, `torch.compile`,
# Lightning modules and detectors.
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "backbone.")
_ReadStorage = Callable[[Storage], bytes]


def read_checkpoint(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads a `.pth` or `.pt` file of weights, executing nothing in it.

    Both formats of `torch.save` are read: zip (PyTorch >= 1.6) and legacy. The state
    dict may be wrapped, as in `{"state_dict": ..., "epoch": ...}`, and its names may
    all begin with prefixes of wrappers, such as DataParallel's `"module."`, which
    are taken off.

    Args:
        path: The path of the file.

    Returns:
        The name and the array of every tensor, in the file's order. bfloat16 becomes
        float32; the other types stay as they are. As in PyTorch, tensors saved from
        one storage share memory.

    Raises:
        ValueError: If the file is damaged, is not a checkpoint, or holds anything
            but tensors and plain data.
        OSError: If the file cannot be opened.
    """
    with open(path, "rb") as file:
        try:
            start = file.read(16)
            file.seek(0)
            if start.startswith(b"PK\x03\x04"):
                return _read_zip(file)
            if start.startswith(b"\x80"):  # as every binary pickle
                return _read_legacy(file)
            found = f"It begins with {start!r}" if start else "It is empty"
            raise ValueError(f"it is not a PyTorch checkpoint. {found}.")
        except ValueError as error:
            raise ValueError(f"Cannot read {os.fspath(path)!r}: {error}") from error
        except Exception as error:  # zipfile and pickletools raise many types
            raise ValueError(
                f"Cannot read {os.fspath(path)!r}: it is damaged "
                f"({type(error).__name__}: {error})."
            ) from error


def _read_zip(file: BinaryIO) -> dict[str, np.ndarray]:
    try:
        archive = zipfile.ZipFile(file)
    except zipfile.BadZipFile as error:
        raise ValueError(
            f"the zip archive is truncated or damaged ({error}). Download it again."
        ) from error
    with archive:
        entries = _checked_entries(archive, _size_of(file))
        pickles = [n for n in entries if n.count("/") == 1 and n.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError(
                "the zip archive is not a PyTorch checkpoint: it must hold one "
                f"data.pkl in one folder. Received: {reprlib.repr(list(entries))}."
            )
        root = pickles[0].removesuffix("data.pkl")
        if any(n.startswith((f"{root}constants.pkl", f"{root}code/")) for n in entries):
            raise ValueError(
                "it is a TorchScript archive, which is code. In PyTorch, save its "
                "weights: torch.save(torch.jit.load(path).state_dict(), new_path)."
            )
        byteorder = b"little"
        if f"{root}byteorder" in entries:
            byteorder = archive.read(entries[f"{root}byteorder"])
        if byteorder not in (b"little", b"big"):
            raise ValueError(f"its byte order is unknown. Received: {byteorder[:16]!r}")

        def read(storage: Storage) -> bytes:
            name = f"{root}data/{storage.key}"
            if name not in entries:
                raise ValueError(f"the storage {reprlib.repr(name)} is missing.")
            _check_size(storage, entries[name].file_size)
            return archive.read(entries[name])

        tree, _ = interpret(io.BytesIO(archive.read(entries[pickles[0]])))
        return _to_arrays(tree, read, byteorder.decode())


def _checked_entries(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """Returns the entries by name, all of them stored uncompressed."""
    entries = {}
    for info in archive.infolist():
        if info.filename in entries:
            raise ValueError(f"the zip archive holds {info.filename!r} twice.")
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise ValueError(
                f"the zip entry {info.filename!r} is compressed or encrypted, which "
                "PyTorch never does. It was not unpacked."
            )
        entries[info.filename] = info
    # Overlapping entries would be a bomb too, hence the sum.
    claimed = sum(max(i.file_size, i.compress_size) for i in entries.values())
    if claimed > size:
        raise ValueError(
            f"its zip entries claim {claimed} bytes, but the file has {size}."
        )
    return entries


def _read_legacy(file: BinaryIO) -> dict[str, np.ndarray]:
    # Four pickles: the magic number, the protocol, a description of the machine that
    # saved it, and the object. Then a pickled list of storage keys, and the size and
    # the bytes of each storage. PyTorch writes those little-endian on every machine,
    # whatever the description says.
    magic, _ = interpret(file)
    if magic != _LEGACY_MAGIC:
        raise ValueError("it is a pickle, but not a PyTorch checkpoint.")
    protocol, _ = interpret(file)
    if protocol != _LEGACY_PROTOCOL:
        raise ValueError(
            f"its protocol must be {_LEGACY_PROTOCOL}. Received: "
            f"{reprlib.repr(protocol)}"
        )
    interpret(file)
    tree, storages = interpret(file)
    keys, _ = interpret(file)
    if not isinstance(keys, list):
        raise ValueError(f"its storage keys are a {type(keys).__name__}, not a list.")

    starts: dict[str, int] = {}
    size = _size_of(file)
    for key in keys:
        if not isinstance(key, str) or key not in storages or key in starts:
            raise ValueError(
                f"the storage {reprlib.repr(key)} is listed twice, or belongs to no tensor."
            )
        count = file.read(8)
        starts[key] = file.tell()
        end = starts[key] + storages[key].nbytes
        if len(count) < 8 or end > size:
            raise ValueError(
                f"it is truncated in storage {key!r}: it has {size} bytes and needs "
                f"{end} or more. Download it again."
            )
        (count,) = struct.unpack("<q", count)
        _check_size(storages[key], count * storages[key].dtype.itemsize)
        file.seek(end)

    def read(storage: Storage) -> bytes:
        if storage.key not in starts:
            raise ValueError(f"the storage {reprlib.repr(storage.key)} is missing.")
        file.seek(starts[storage.key])
        return file.read(storage.nbytes)

    return _to_arrays(tree, read, "little")


def _size_of(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size


def _check_size(storage: Storage, nbytes: int) -> None:
    if nbytes != storage.nbytes:
        raise ValueError(
            f"the storage {reprlib.repr(storage.key)} must have {storage.nbytes} bytes "
            f"for its {storage.size} numbers. Received: {nbytes} bytes."
        )


def unwrap(checkpoint: Mapping) -> dict:
    """Returns the state dict in a checkpoint, without wrappers' prefixes.

    Args:
        checkpoint: A state dict, or a mapping that has one as its `"state_dict"`,
            `"model_state_dict"` or `"model"`. All names, but for those of a
            `classifier`, may begin with one or more of `PREFIXES`.

    Returns:
        A dict from names without prefixes to values.

    Raises:
        ValueError: If two names differ by their types alone, as 1 and "1" do.
    """
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(checkpoint.get(key), Mapping):
            checkpoint = checkpoint[key]
            break
    names = [str(name) for name in checkpoint]
    while prefix := _common_prefix(names):
        names = [name.removeprefix(prefix) for name in names]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"a state dict has more than one {reprlib.repr(twice)}.")
    return dict(zip(names, checkpoint.values(), strict=True))


def _common_prefix(names: list[str]) -> str:
    body = [name for name in names if not name.startswith("classifier.")]
    for prefix in PREFIXES:
        if body and all(name.startswith(prefix) for name in body):
            return prefix
    return ""


def _to_arrays(
    tree: object, read: _ReadStorage, byteorder: str
) -> dict[str, np.ndarray]:
    """Returns the tensors of a checkpoint's state dict as arrays."""
    tensors = unwrap(tree) if isinstance(tree, dict) else {}
    others = [name for name, value in tensors.items() if type(value) is not Tensor]
    if others or not tensors:
        raise ValueError(
            "it must hold a state dict, of tensors by name. Received: "
            + (f"{reprlib.repr(others)} without a tensor." if others else "none.")
        )
    storages = {tensor.storage for tensor in tensors.values()}
    numbers = {storage: _numbers(storage, read, byteorder) for storage in storages}
    return {
        name: np.lib.stride_tricks.as_strided(
            numbers[tensor.storage][tensor.offset :],
            tensor.shape,
            [n * numbers[tensor.storage].itemsize for n in tensor.strides],
            writeable=False,
        )
        for name, tensor in tensors.items()
    }


def _numbers(storage: Storage, read: _ReadStorage, byteorder: str) -> np.ndarray:
    stored = storage.dtype.newbyteorder("<" if byteorder == "little" else ">")
    numbers = np.frombuffer(read(storage), stored).astype(storage.dtype)
    return (
        bfloat16.widen(numbers) if storage.type == "torch.BFloat16Storage" else numbers
    )
