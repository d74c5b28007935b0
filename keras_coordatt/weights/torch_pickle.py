"""Interprets the pickle in a PyTorch checkpoint without executing it.

`pickletools.genops` splits the pickle into opcodes without acting on them, and
`interpret` acts on the few opcodes that a state dict needs. It imports nothing, calls
nothing that the file names, and sets no attribute: a global stays a name, and a tensor
is a description of numbers, checked before any array is made of them.
"""

import math
import pickletools
import reprlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

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
_MAX_DIMS = 32
_HINT = "In PyTorch, save plain weights: torch.save(model.state_dict(), path)."


@dataclass(frozen=True)
class _Global:
    """The name of a Python object, never the object."""

    name: str


@dataclass(frozen=True)
class Storage:
    """A run of numbers in the file, of which tensors are views."""

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
class Tensor:
    """A view of a storage, known to lie within it; counted in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _opcodes(file: BinaryIO) -> Iterator[tuple[str, Any]]:
    """Splits the next pickle in the file into opcodes and arguments."""
    try:
        for opcode, argument, _ in pickletools.genops(file):
            yield opcode.name, argument
    except Exception as error:
        raise ValueError(f"its pickle is truncated or damaged ({error}).") from error


def interpret(file: BinaryIO) -> tuple[object, dict[str, Storage]]:
    """Returns what the next pickle in the file describes, and its storages by key.

    Only this function acts on the opcodes. Every value that it creates is a
    number, a string, None, a list, a tuple, a dict with plain keys, or one of the
    frozen classes above.
    """
    stack: list = []
    set_aside: list[list] = []  # the stacks below each MARK
    memo: dict[int, object] = {}
    storages: dict[str, Storage] = {}
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
                    raise ValueError(
                        "its pickle appends to something other than a list."
                    )
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
                # Sets `_metadata` on a state dict, which is not needed here.
                stack.pop()
                if not isinstance(stack[-1], dict):
                    raise ValueError(
                        "its pickle sets attributes of something other than a dict."
                    )
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
    """Returns `mapping` with the keys and values that alternate in `items`."""
    if not isinstance(mapping, dict) or len(items) % 2:
        raise ValueError("its pickle sets items of something other than a dict.")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, str | int):
            raise ValueError(f"its pickle has the key {reprlib.repr(key)}.")
        mapping[key] = value
    return mapping


def _checked_global(module: object, attribute: object) -> _Global:
    # Only strings are formatted: the text of a list that contains itself many times
    # would fill the memory.
    if not isinstance(module, str) or not isinstance(attribute, str):
        raise ValueError("its pickle names an object by something other than a string.")
    name = f"{module}.{attribute}"
    if name not in _STORAGES and name not in _CONSTRUCTORS:
        raise ValueError(
            f"it holds a {reprlib.repr(name)}, and only tensors, dicts, lists and plain "
            f"data are read. Nothing was executed. {_HINT}"
        )
    return _Global(name)


def _reduced(function: object, arguments: object) -> object:
    """Returns what calling one of `_CONSTRUCTORS` would build.

    No list is copied twice, or a small file could fill the memory.
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
        case _Global("torch._utils._rebuild_parameter"), (Tensor() as tensor, *_):
            return tensor
        case (
            _Global("torch._utils._rebuild_tensor_v2"),
            (Storage() as storage, offset, shape, strides, *_),
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


def _checked_tensor(storage: Storage, offset: Any, shape: Any, strides: Any) -> Tensor:
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
    # A tensor of `expand` repeats its numbers: a few bytes could claim any size.
    if math.prod(shape) > storage.size - offset:
        raise ValueError(
            f"a tensor of offset {offset}, shape {shape} and strides {strides} repeats "
            f"the numbers of its storage of {storage.size}. In PyTorch, save "
            "`tensor.contiguous()`."
        )
    return Tensor(storage, offset, shape, strides)


def _checked_storage(identity: object) -> Storage:
    match identity:
        case ("storage", _Global(kind), str(key), str(), int(size)) | (
            "storage",
            _Global(kind),
            str(key),
            str(),
            int(size),
            None,
        ) if kind in _STORAGES and size >= 0:
            return Storage(kind, key, size)
    raise ValueError(f"a storage is described as {reprlib.repr(identity)}.")


def _are_counts(values: object) -> bool:
    return isinstance(values, tuple) and all(
        type(value) is int and 0 <= value < 2**48 for value in values
    )
