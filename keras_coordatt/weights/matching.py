"""Whether the arrays of a file fit a network, and what makes them fit."""

import inspect
import itertools
import os
import pathlib
import traceback
import warnings
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np


class ExpectedWeight(NamedTuple):
    """What a network expects of a file, for one of its weights.

    Attributes:
        name: Its name in the file.
        shape: Its shape in the file, whose layout may not be Keras's.
        part: `"stem"`, the kernel that the image meets; `"head"`, a weight of the
            classifier; `""`, another.
        axis: In `shape`, the image's channels (stem) or the classes (head).
        dtype: The type of number that the network keeps it in.
    """

    name: str
    shape: tuple
    part: str = ""
    axis: int = 0
    dtype: str = "float32"


def match_arrays(
    slots: Iterable[ExpectedWeight],
    arrays: Mapping,
    *,
    head: Iterable[str],
    source: str,
    target: str,
    adapt: bool = True,
) -> dict[str, np.ndarray]:
    """Checks that arrays fit a network, and adapts what may be adapted.

    Nothing is read of an array before its shape is known to fit, so that a file
    can't ask for more memory than the network has.

    Args:
        slots: What the network expects.
        arrays: Name to array, or to anything with a `shape`, a `dtype`, and a
            conversion to an array.
        head: The names in `arrays` that are a classifier's.
        source: What the arrays are, for messages.
        target: What the network is, for messages.
        adapt: Whether a classifier that does not fit is skipped, and a stem for
            three channels made to fit; each is told by a warning.

    Returns:
        Name to array, for every slot but those of a skipped classifier.

    Raises:
        ValueError: if anything is missing, unexpected, misshapen, of another kind
            of number, or not finite in the network's type of
            number. Everything that does not fit is named.
    """
    expected, arrays, messages = {s.name: s for s in slots}, dict(arrays), []
    channels = None
    if adapt:
        messages += _skip_head(expected, arrays, [n for n in head if n in arrays])
        channels = _stem_to_adapt(expected, arrays)

    problems = [
        f"missing: {name}, shape {slot.shape}"
        for name, slot in expected.items()
        if name not in arrays
    ]
    for name, array in arrays.items():
        shape = tuple(array.shape)
        if name not in expected:
            problems.append(f"unexpected: {name}, shape {shape}")
        elif shape != expected[name].shape and name != channels:
            problems.append(
                f"misshapen: {name}, shape {shape}, expected {expected[name].shape}"
            )
        elif array.dtype.kind != "f":
            problems.append(f"not floating-point: {name}, dtype {array.dtype}")
    if problems:
        other = bool(arrays) and not expected.keys() & arrays.keys()
        raise ValueError(
            f"{source} does not fit {target}"
            + (": it is of another architecture" if other else "")
            + "; no weight was changed:\n  "
            + "\n  ".join(problems)
        )

    # In the machine's byte order, whatever the file's is.
    arrays = {n: np.asarray(a, a.dtype.newbyteorder("=")) for n, a in arrays.items()}
    _check_numbers(expected, arrays, source)
    if channels is not None:
        arrays[channels], message = _adapted_stem(arrays[channels], expected[channels])
        messages.append(message)
    for message in messages:
        warnings.warn(f"{target}, from {source}: {message}", stacklevel=_stacklevel())
    return arrays


def _stacklevel():
    """The stack level of `fit`'s warnings that is outside the package."""
    package = str(pathlib.Path(__file__).parents[1]) + os.sep
    frames = traceback.walk_stack(inspect.currentframe().f_back)
    ours = itertools.takewhile(
        lambda frame: frame[0].f_code.co_filename.startswith(package), frames
    )
    return 1 + sum(1 for _ in ours)


def _skip_head(expected, arrays, names):
    """Takes out a classifier that has no use here, and says so."""
    slots = [slot for slot in expected.values() if slot.part == "head"]
    if not slots:
        unused = names
        message = "the network has no classifier, so this is not used: "
    elif _differ_in_classes(slots, arrays):
        unused = [slot.name for slot in slots]
        theirs = arrays[slots[0].name].shape[slots[0].axis]
        ours = slots[0].shape[slots[0].axis]
        message = (
            f"its classifier is for {theirs} classes, not for {ours}, so the network "
            "keeps its own. Not used: "
        )
    else:
        return []
    for name in unused:
        expected.pop(name, None)
        del arrays[name]
    return [message + ", ".join(unused)] if unused else []


def _differ_in_classes(slots, arrays):
    """Whether all weights of a classifier are there, for other classes."""
    counts = set()
    for slot in slots:
        if slot.name not in arrays:
            return False
        shape = list(arrays[slot.name].shape)
        if len(shape) != len(slot.shape):
            return False
        counts.add((shape[slot.axis], slot.shape[slot.axis]))
        shape[slot.axis] = slot.shape[slot.axis]
        if tuple(shape) != slot.shape:
            return False
    return len(counts) == 1 and len(set(counts.pop())) == 2


def _stem_to_adapt(expected, arrays):
    """The name of the stem, if it is for three channels where others are needed."""
    for name, slot in expected.items():
        if slot.part == "stem" and name in arrays:
            shape = list(arrays[name].shape)
            rgb = len(shape) == len(slot.shape) and shape[slot.axis] == 3
            if rgb and slot.shape[slot.axis] != 3:
                shape[slot.axis] = slot.shape[slot.axis]
                return name if tuple(shape) == slot.shape else None
    return None


def _adapted_stem(kernel, slot):
    """A kernel for another number of channels than RGB's three, as timm makes it."""
    channels = slot.shape[slot.axis]
    if channels == 1:
        # What a gray image gives that is repeated three times.
        return kernel.sum(slot.axis, keepdims=True), (
            "its first convolution is for 3 channels: for 1, its kernel was summed "
            "over them."
        )
    repeated = np.take(kernel, np.arange(channels) % 3, slot.axis)
    return repeated * kernel.dtype.type(3 / channels), (
        f"its first convolution is for 3 channels: for {channels}, its kernel was "
        f"repeated over them and multiplied by 3/{channels}."
    )


def _check_numbers(expected, arrays, source):
    problems = []
    for name, array in arrays.items():
        # A larger number becomes infinite there.
        dtype = "float16" if expected[name].dtype == "float16" else "float32"
        largest = np.float64(np.finfo(dtype).max)
        if count := array.size - np.count_nonzero(np.abs(array) <= largest):
            problems.append(
                f"not finite: {name}, {count} of {array.size} values are NaN or "
                f"infinite in {dtype}"
            )
    if problems:
        raise ValueError(
            f"{source} holds what is no number; no weight was changed:\n  "
            + "\n  ".join(problems)
        )
