"""Reads the weights in a PyTorch checkpoint, without PyTorch and without trust.

A checkpoint is a pickle, and a pickle is a program: whoever unpickles it, as
`torch.load` long did by default, runs whatever the file's author wrote. So nothing
is unpickled here. `pickletools.genops` splits the pickle into opcodes without
acting on them, and `_interpret` acts on the few opcodes that a state dict needs.
It imports nothing, calls nothing that the file names and sets no attribute: a
global is never more than its name, and a tensor is numbers, which are checked
before any array is made of them.
"""

import io
import math
import os
import pickletools
import reprlib
import struct
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from keras_coordatt.weights import bfloat16

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_STORAGES = {
    "torch.DoubleStorage": "f8",
    "torch.FloatStorage": "f4",
    "torch.HalfStorage": "f2",
    "torch.BFloat16Storage": "u2",  # numpy has no bfloat16: see `bfloat16.widen`
    "torch.LongStorage": "i8",
    "torch.IntStorage": "i4",
    "torch.ShortStorage": "i2",
    "torch.CharStorage": "i1",
    "torch.ByteStorage": "u1",
    "torch.BoolStorage": "?",
}
_CONSTRUCTORS = {
    "collections.OrderedDict",
    "torch.Size",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_tensor_v2",
}
# What wrappers put before the names of a network: DataParallel, `torch.compile`,
# Lightning modules and detectors.
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "backbone.")
_MAX_DIMS = 32
_HINT = "In PyTorch, save plain weights: torch.save(model.state_dict(), path)."


@dataclass(frozen=True)
class _Global:
    """The name of a Python object, never the object."""

    name: str


@dataclass(frozen=True)
class _Storage:
    """One run of numbers in the file; tensors are windows on it."""

    type: str
    key: str
    size: int

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(_STORAGES[self.type])

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize


@dataclass(frozen=True)
class _Tensor:
    """A window on a storage, known to lie within it; counted in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


_ReadStorage = Callable[[_Storage], bytes]


def read_checkpoint(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads a `.pth` or `.pt` file of weights, executing nothing in it.

    Both formats of `torch.save` are read: zip (PyTorch >= 1.6) and legacy. The state
    dict may be wrapped, as in `{"state_dict": ..., "epoch": ...}`, and its names may
    all begin with prefixes of wrappers, such as DataParallel's `"module."`, which
    are taken off.

    Args:
        path: Where the file is.

    Returns:
        The name and the array of every tensor, in the file's order. bfloat16 becomes
        float32; the other types stay as they are. As in PyTorch, tensors saved from
        one storage share memory.

    Raises:
        ValueError: If the file is damaged, is no checkpoint, or holds anything but
            tensors and plain data. The message says which.
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
        except Exception as error:  # what the standard library makes of garbage
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

        def read(storage: _Storage) -> bytes:
            name = f"{root}data/{storage.key}"
            if name not in entries:
                raise ValueError(f"the storage {reprlib.repr(name)} is missing.")
            _check_size(storage, entries[name].file_size)
            return archive.read(entries[name])

        tree, _ = _interpret(io.BytesIO(archive.read(entries[pickles[0]])))
        return _to_arrays(tree, read, byteorder.decode())


def _checked_entries(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """The entries by name, none of which can grow when it is read."""
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
    # Entries that overlap would be a bomb too, hence the sum; an entry that is
    # stored but claims to grow would have zipfile ask for more than there is.
    claimed = sum(max(i.file_size, i.compress_size) for i in entries.values())
    if claimed > size:
        raise ValueError(
            f"its zip entries claim {claimed} bytes, but the file has {size}."
        )
    return entries


def _read_legacy(file: BinaryIO) -> dict[str, np.ndarray]:
    # Four pickles: the magic number, the protocol, a description of the machine
    # that saved it, the object. Then a pickled list of storage keys, and each
    # storage's size and bytes. Those are little-endian on every machine, whatever
    # the description says; PyTorch disregards it too.
    magic, _ = _interpret(file)
    if magic != _LEGACY_MAGIC:
        raise ValueError("it is a pickle, but not a PyTorch checkpoint.")
    protocol, _ = _interpret(file)
    if protocol != _LEGACY_PROTOCOL:
        raise ValueError(
            f"its protocol must be {_LEGACY_PROTOCOL}. Received: "
            f"{reprlib.repr(protocol)}"
        )
    _interpret(file)
    tree, storages = _interpret(file)
    keys, _ = _interpret(file)
    if not isinstance(keys, list):
        raise ValueError(f"its storage keys are a {type(keys).__name__}, not a list.")

    starts: dict[str, int] = {}
    size = _size_of(file)
    for key in keys:
        if not isinstance(key, str) or key not in storages or key in starts:
            raise ValueError(
                f"the storage {reprlib.repr(key)} is listed twice, or is no tensor's."
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

    def read(storage: _Storage) -> bytes:
        if storage.key not in starts:
            raise ValueError(f"the storage {reprlib.repr(storage.key)} is missing.")
        file.seek(starts[storage.key])
        return file.read(storage.nbytes)

    return _to_arrays(tree, read, "little")


def _size_of(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size


def _check_size(storage: _Storage, nbytes: int) -> None:
    if nbytes != storage.nbytes:
        raise ValueError(
            f"the storage {reprlib.repr(storage.key)} must have {storage.nbytes} bytes "
            f"for its {storage.size} numbers. Received: {nbytes} bytes."
        )


def _opcodes(file: BinaryIO) -> Iterator[tuple[str, object]]:
    """Splits the next pickle in the file into opcodes and arguments."""
    try:
        for opcode, argument, _ in pickletools.genops(file):
            yield opcode.name, argument
    except Exception as error:
        raise ValueError(f"its pickle is truncated or damaged ({error}).") from error


def _interpret(file: BinaryIO) -> tuple[object, dict[str, _Storage]]:
    """What the next pickle in the file describes, and the storages it names.

    The one place that acts on what the file says. Every value it makes is a number,
    a string, None, a list, a tuple, a dict with plain keys, or one of the frozen
    classes above.
    """
    stack: list = []
    set_aside: list[list] = []  # the stacks below each MARK
    memo: dict[int, object] = {}
    storages: dict[str, _Storage] = {}
    for name, argument in _opcodes(file):
        items: list = []
        if name in ("TUPLE", "LIST", "DICT", "APPENDS", "SETITEMS"):
            items, stack = stack, set_aside.pop()
        match name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return stack.pop(), storages
            case "MARK":
                set_aside.append(stack)
                stack = []
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name])
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT":
                stack.append(argument)
            case "BINUNICODE" | "SHORT_BINUNICODE" | "BINSTRING" | "SHORT_BINSTRING":
                stack.append(argument)
            case "EMPTY_TUPLE":
                stack.append(())
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "TUPLE":
                stack.append(tuple(items))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(_popped(stack, int(name[-1]))))
            case "LIST":
                stack.append(items)
            case "DICT":
                stack.append(_extended({}, items))
            case "APPEND" | "APPENDS":
                items = _popped(stack, 1) if name == "APPEND" else items
                if not isinstance(stack[-1], list):
                    raise ValueError(f"its pickle has {name} to no list.")
                stack[-1].extend(items)
            case "SETITEM" | "SETITEMS":
                items = _popped(stack, 2) if name == "SETITEM" else items
                _extended(stack[-1], items)
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                stack.append(_checked_global(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                stack.append(_checked_global(*_popped(stack, 2)))
            case "REDUCE":
                stack.append(_reduced(*_popped(stack, 2)))
            case "BUILD":
                # Attributes on a state dict, `_metadata`: nothing here needs them.
                stack.pop()
                if not isinstance(stack[-1], dict):
                    raise ValueError("its pickle sets attributes on what is no dict.")
            case "BINPERSID":
                storage = _checked_storage(stack.pop())
                if storages.setdefault(storage.key, storage) != storage:
                    raise ValueError(
                        f"the storage {reprlib.repr(storage.key)} has two sizes or types."
                    )
                stack.append(storage)
            case _:
                raise ValueError(
                    f"its pickle uses {name} {reprlib.repr(argument)}, which no state "
                    f"dict needs. Nothing was executed. {_HINT}"
                )
    raise AssertionError("unreachable: genops ends with STOP or raises")


def _popped(stack: list, count: int) -> list:
    if len(stack) < count:
        raise ValueError("its pickle is damaged: its stack is too short.")
    popped = stack[-count:]
    del stack[-count:]
    return popped


def _extended(mapping: object, items: list) -> dict:
    """`mapping` with the keys and values that alternate in `items`."""
    if not isinstance(mapping, dict) or len(items) % 2:
        raise ValueError("its pickle sets items of what is no dict.")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, str | int):
            raise ValueError(f"its pickle has the key {reprlib.repr(key)}.")
        mapping[key] = value
    return mapping


def _checked_global(module: object, attribute: object) -> _Global:
    # Only strings are put together: the text of a list that holds itself many
    # times over would fill the memory.
    if not isinstance(module, str) or not isinstance(attribute, str):
        raise ValueError("its pickle has the name of an object that is no string.")
    name = f"{module}.{attribute}"
    if name not in _STORAGES and name not in _CONSTRUCTORS:
        raise ValueError(
            f"it holds a {reprlib.repr(name)}, and only tensors, dicts, lists and plain "
            f"data are read. Nothing was executed. {_HINT}"
        )
    return _Global(name)


def _reduced(function: object, arguments: object) -> object:
    """What the call of one of `_CONSTRUCTORS` stands for.

    A call copies no list twice, or a small file could fill the memory.
    """
    match function, arguments:
        case _Global("collections.OrderedDict"), ():
            return {}
        case _Global("collections.OrderedDict"), (list(pairs),):  # by Python 2
            items = [part for pair in pairs for part in _checked_pair(pair)]
            pairs.clear()
            return _extended({}, items)
        case _Global("torch.Size"), (tuple(sizes),):
            return sizes
        case _Global("torch._utils._rebuild_parameter"), (_Tensor() as tensor, *_):
            return tensor
        case (
            _Global("torch._utils._rebuild_tensor_v2"),
            (_Storage() as storage, offset, shape, strides, *_),
        ):
            return _checked_tensor(storage, offset, shape, strides)
    raise ValueError(
        f"its pickle calls {reprlib.repr(function)} with {reprlib.repr(arguments)}, "
        f"which no state dict needs. Nothing was executed. {_HINT}"
    )


def _checked_pair(pair: object) -> list:
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        raise ValueError(f"its pickle has {reprlib.repr(pair)} for a key and a value.")
    return list(pair)


def _checked_tensor(
    storage: _Storage, offset: object, shape: object, strides: object
) -> _Tensor:
    sane = _are_counts((offset,)) and _are_counts(shape) and _are_counts(strides)
    if not sane or len(shape) != len(strides) or len(shape) > _MAX_DIMS:
        raise ValueError(
            f"a tensor has offset {reprlib.repr(offset)}, shape {reprlib.repr(shape)} "
            f"and strides {reprlib.repr(strides)}."
        )
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides))
    if 0 not in shape and last >= storage.size:
        raise ValueError(
            f"a tensor of offset {offset}, shape {shape} and strides {strides} does "
            f"not lie within its storage of {storage.size} numbers."
        )
    # As `expand` makes them: a few bytes could claim a network of any size.
    if math.prod(shape) > storage.size - offset:
        raise ValueError(
            f"a tensor of offset {offset}, shape {shape} and strides {strides} repeats "
            f"the numbers of its storage of {storage.size}. In PyTorch, save "
            "`tensor.contiguous()`."
        )
    return _Tensor(storage, offset, shape, strides)


def _checked_storage(identity: object) -> _Storage:
    match identity:
        case ("storage", _Global(kind), str(key), str(), int(size)) | (
            "storage",
            _Global(kind),
            str(key),
            str(),
            int(size),
            None,
        ) if kind in _STORAGES and size >= 0:
            return _Storage(kind, key, size)
    raise ValueError(f"a storage is described as {reprlib.repr(identity)}.")


def _are_counts(values: object) -> bool:
    return isinstance(values, tuple) and all(
        type(value) is int and 0 <= value < 2**48 for value in values
    )


def unwrap(checkpoint: Mapping) -> dict:
    """The state dict in a checkpoint, under the names of the bare network.

    Args:
        checkpoint: A state dict, or a mapping that has one as its `"state_dict"`,
            `"model_state_dict"` or `"model"`. All names, but for those of a
            `classifier`, may begin with one or more of `PREFIXES`.

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
    """The tensors of a checkpoint's state dict, as arrays."""
    tensors = unwrap(tree) if isinstance(tree, dict) else {}
    others = [name for name, value in tensors.items() if type(value) is not _Tensor]
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


def _numbers(storage: _Storage, read: _ReadStorage, byteorder: str) -> np.ndarray:
    stored = storage.dtype.newbyteorder(byteorder)
    numbers = np.frombuffer(read(storage), stored).astype(storage.dtype)
    return (
        bfloat16.widen(numbers) if storage.type == "torch.BFloat16Storage" else numbers
    )
