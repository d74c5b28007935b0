"""Compares the arrays of a file with the weights of a network, and adapts them."""

import inspect
import itertools
import os
import pathlib
import traceback
import warnings
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

# Problems of one kind that an error message lists before it only counts.
LISTED = 5


class ExpectedWeight(NamedTuple):
    """One weight of a network, as a file must hold it.

    Attributes:
        name: The weight's name in the file.
        shape: Its shape in the file, whose layout may not be Keras's.
        part: `"stem"` for the kernel of the first convolution, `"head"` for a weight
            of the classifier, `""` for any other.
        axis: The axis of `shape` with the image's channels (stem) or the classes
            (head).
        dtype: The dtype in which the network keeps the weight.
    """

    name: str
    shape: tuple
    part: str = ""
    axis: int = 0
    dtype: str = "float32"


def match_arrays(
    expected: Iterable[ExpectedWeight],
    arrays: Mapping,
    *,
    head: Iterable[str],
    source: str,
    target: str,
    skip_mismatch: bool = False,
) -> dict[str, np.ndarray]:
    """Checks that arrays fit a network, and returns those to assign.

    No array is read before all shapes are known to fit, so a malicious file cannot
    claim more memory than the network has. The classifier of a file is ignored if
    the network has none.

    Args:
        expected: The weights of the network.
        arrays: Name to array, or to anything with a `shape`, a `dtype` and a
            conversion to an array.
        head: The names in `arrays` that belong to a classifier.
        source: Description of the arrays, for messages.
        target: Description of the network, for messages.
        skip_mismatch: Whether to skip a classifier with another number of outputs,
            and to adapt an RGB stem to another number of channels, with a warning.

    Returns:
        Name to array, for every expected weight except those of a skipped classifier.

    Raises:
        ValueError: If an array is missing, unexpected, of another shape or kind of
            number, or not finite in the network's dtype.
    """
    expected, arrays = {weight.name: weight for weight in expected}, dict(arrays)
    classifier = [weight for weight in expected.values() if weight.part == "head"]
    if not classifier:
        for name in head:
            arrays.pop(name, None)

    outputs = _differing_outputs(classifier, arrays)
    stem = _rgb_stem(expected.values(), arrays)
    differences, skipped = [], []
    if outputs:
        differences.append(
            f"its classifier has {outputs[0]} outputs, the network's {outputs[1]}"
        )
        skipped += [weight.name for weight in classifier]
    if stem:
        differences.append(
            "its first convolution is for 3 channels, the network's for "
            f"{stem.shape[stem.axis]}"
        )

    allowed = [*skipped, *([stem.name] if stem else [])]
    others = _problems(expected, arrays, allowed)
    if any(others.values()) or (differences and not skip_mismatch):
        cause = _cause(others, expected, arrays)
        if not any(others.values()):
            cause = f"{'; '.join(differences)} (pass `skip_mismatch=True` to "
            cause += f"{_remedy(outputs, stem)})"
        raise ValueError(
            f"{source} does not fit {target}: {cause}; no weight was changed:\n  "
            + _listed(_problems(expected, arrays))
        )

    for name in skipped:
        del expected[name], arrays[name]
    # Convert from the file's byte order to the machine's.
    arrays = {n: np.asarray(a, a.dtype.newbyteorder("=")) for n, a in arrays.items()}
    _check_numbers(expected, arrays, source)
    if stem:
        arrays[stem.name] = _adapted_stem(arrays[stem.name], stem)
    if differences:
        warnings.warn(
            f"{target}, from {source}: {'; '.join(differences)}. "
            f"`skip_mismatch=True`: {_remedy(outputs, stem)}.",
            stacklevel=_stacklevel(),
        )
    return arrays


def _remedy(outputs, stem):
    """Describes how `skip_mismatch=True` deals with the differences."""
    remedies = []
    if outputs:
        remedies.append("keep the network's own classifier")
    if stem and stem.shape[stem.axis] == 1:
        remedies.append("sum the first kernel over its 3 channels")
    elif stem:
        channels = stem.shape[stem.axis]
        remedies.append(
            f"repeat the first kernel over the channels and multiply it by 3/{channels}"
        )
    return " and ".join(remedies)


def _stacklevel():
    """Returns the stack level at which `match_arrays` warns the package's caller."""
    package = str(pathlib.Path(__file__).parents[1]) + os.sep
    frames = traceback.walk_stack(inspect.currentframe().f_back)
    ours = itertools.takewhile(
        lambda frame: frame[0].f_code.co_filename.startswith(package), frames
    )
    return 1 + sum(1 for _ in ours)


# Differences that `skip_mismatch` allows


def _differing_outputs(classifier, arrays):
    """Returns the numbers of outputs, `(file's, network's)`, if nothing else differs.

    A detector's classifier has several predictors, each with the same number of
    outputs for each of its boxes: then the numbers of the first are returned.
    """
    pairs, same = [], set()
    for weight in classifier:
        if weight.name not in arrays:
            return None
        shape = list(arrays[weight.name].shape)
        if tuple(shape) == weight.shape:  # such as those of quantization
            same |= {weight.shape[weight.axis]} if weight.shape else set()
            continue
        if len(shape) != len(weight.shape):
            return None
        pairs.append((shape[weight.axis], weight.shape[weight.axis]))
        shape[weight.axis] = weight.shape[weight.axis]
        if tuple(shape) != weight.shape:
            return None
    if not pairs or same & {ours for _, ours in pairs}:
        return None
    theirs, ours = pairs[0]
    in_proportion = all(a * ours == b * theirs for a, b in pairs)
    return (theirs, ours) if in_proportion else None


def _rgb_stem(expected, arrays):
    """Returns the network's stem, if it isn't for RGB as the file's is."""
    for weight in expected:
        if weight.part == "stem" and weight.name in arrays:
            shape = list(arrays[weight.name].shape)
            if len(shape) == len(weight.shape) and shape[weight.axis] == 3:
                shape[weight.axis] = weight.shape[weight.axis]
                if tuple(shape) == weight.shape and weight.shape[weight.axis] != 3:
                    return weight
    return None


def _adapted_stem(kernel, stem):
    """Returns an RGB kernel for another number of channels, computed as timm does."""
    channels = stem.shape[stem.axis]
    if channels == 1:
        # Same output as for the gray image repeated three times.
        return kernel.sum(stem.axis, keepdims=True)
    repeated = np.take(kernel, np.arange(channels) % 3, stem.axis)
    return repeated * kernel.dtype.type(3 / channels)


# Differences that are errors


def _problems(expected, arrays, allowed=()):
    """Lists what doesn't fit, by kind; shapes may differ where it is allowed."""
    problems = {"missing": [], "unexpected": [], "misshapen": [], "dtype": []}
    for name, array in arrays.items():
        if name not in expected:
            problems["unexpected"].append(
                f"unexpected: {name}, shape {tuple(array.shape)}"
            )
    for name, weight in expected.items():
        if name not in arrays:
            problems["missing"].append(f"missing: {name}, shape {weight.shape}")
            continue
        shape, dtype = tuple(arrays[name].shape), arrays[name].dtype
        if shape != weight.shape and name not in allowed:
            problems["misshapen"].append(
                f"misshapen: {name}, shape {shape}, expected {weight.shape}"
            )
        if _kind(dtype) != _kind(weight.dtype):
            problems["dtype"].append(
                f"not {_kind(weight.dtype)}: {name}, dtype {dtype}"
            )
    return problems


def _kind(dtype):
    name = getattr(dtype, "name", dtype)  # NumPy has no bfloat16
    if "float" in name:
        return "floating-point"
    kinds = {"i": "integer", "u": "integer", "b": "boolean"}
    return kinds.get(np.dtype(name).kind, "number")


def _cause(problems, expected, arrays):
    """Returns the likely cause of the mismatches, in a few words."""
    missing, unexpected = problems["missing"], problems["unexpected"]
    heads = [name for name, weight in expected.items() if weight.part == "head"]
    if not arrays:
        return "it holds no weights"
    if not expected.keys() & arrays.keys():
        return "it is of another architecture"
    if any(name.endswith("gate_scale") for name in expected.keys() ^ arrays.keys()):
        return (
            "only one of them has attention with `identity_init=True`, whose gates have "
            "a factor (`keras_coordatt.surgery.fuse_attention` removes it)"
        )
    if (
        heads
        and not unexpected
        and len(missing) == len(heads)
        and not any(name in arrays for name in heads)
    ):
        return "it has no classifier, as with `include_top=False`"
    if problems["dtype"]:
        return "the numbers are of another kind, as if one of them is quantized"
    if missing and unexpected:
        return "the layers differ, as with another architecture or `attention`"
    if missing:
        return "it lacks layers of the network"
    if unexpected:
        return "it has layers that the network lacks"
    return "the layers are the same, of other sizes"


def _listed(problems):
    lines = []
    for kind in problems.values():
        lines += kind[:LISTED]
        if len(kind) > LISTED:
            lines.append(f"{kind[0].split(':')[0]}: {len(kind) - LISTED} more")
    return "\n  ".join(lines)


def _check_numbers(expected, arrays, source):
    problems = []
    for name, array in arrays.items():
        dtype = expected[name].dtype
        if array.dtype.kind in "iu":
            limits = np.iinfo(dtype)
            outside = (array < limits.min) | (array > limits.max)
            if count := np.count_nonzero(outside):
                problems.append(
                    f"out of range: {name}, {count} of {array.size} values for {dtype}"
                )
        elif array.dtype.kind == "f":
            # A larger number would become infinite in the network.
            dtype = "float16" if dtype == "float16" else "float32"
            largest = np.float64(np.finfo(dtype).max)
            if count := array.size - np.count_nonzero(np.abs(array) <= largest):
                problems.append(
                    f"not finite: {name}, {count} of {array.size} values are NaN or "
                    f"infinite in {dtype}"
                )
    if problems:
        raise ValueError(
            f"{source} holds numbers that no trained network has; no weight was "
            f"changed:\n  {_listed({'numbers': problems})}"
        )
