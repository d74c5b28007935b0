"""Argument checks that more than one module needs."""

import inspect
import math
import numbers
import os
from collections.abc import Callable, Mapping, Sequence

import keras
import numpy as np

# Larger values are mistakes, and would end in a failed allocation.
MAX_ALPHA = 10
MAX_CHANNELS = 2**13
MAX_CLASSES = 2**20
MAX_SIZE = 2**15
# What to do with data that can't be used
ON_ERROR = ("raise", "skip", "repair")


def first_line(error: Exception) -> str:
    """Returns the first line of an error's message, or else its kind."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def with_hint(error: Exception, hint: str) -> Exception:
    """Adds a hint for Python users: tracebacks show it, the command line does not."""
    error.add_note(hint)
    return error


def check_type(name: str, value, types, what: str):
    """Returns `value` if it is of one of `types`, which `what` describes."""
    if not isinstance(value, types):
        raise TypeError(f"`{name}` must be {what}. Received: {value!r}")
    return value


def check_positive_int(
    name: str, value: int, most: int | None = None, zero: bool = False
) -> int:
    """Returns `value` if it is a positive integer, or 0 with `zero`, up to `most`."""
    is_int = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not is_int or value < (0 if zero else 1):
        kind = "non-negative" if zero else "positive"
        raise ValueError(f"`{name}` must be a {kind} integer. Received: {value!r}")
    if most is not None and value > most:
        raise ValueError(f"`{name}` must be at most {most:,}. Received: {value!r}")
    return int(value)


def height_and_width(image_size: int | tuple[int, int]) -> tuple[int, int]:
    """Returns `image_size` as a pair, if it is a positive integer or two of them."""
    size = image_size if isinstance(image_size, tuple | list) else (image_size,) * 2
    if len(size) != 2:
        raise ValueError(
            "`image_size` must be an integer or a pair (height, width). "
            f"Received: {image_size!r}"
        )
    height, width = (check_positive_int("image_size", side, MAX_SIZE) for side in size)
    return height, width


def check_image_size(
    image_size: int | tuple[int, int], own: Sequence[int | None]
) -> tuple[int, int]:
    """Returns `image_size` as a pair, if it is the model's where that is known."""
    size = height_and_width(image_size)
    if any(known not in (None, side) for known, side in zip(own, size)):
        raise ValueError(
            f"`image_size` must be the model's, {tuple(own)}. Received: {image_size!r}"
        )
    return size


def check_number(
    name: str, value: float, low: float, high: float = math.inf, closed: bool = False
) -> float:
    """Returns `value` if `low < value < high` (`low <= value` if closed)."""
    if not _is_real(value) or not (low < value < high or (closed and value == low)):
        raise ValueError(
            f"`{name}` must be a number in {'[' if closed else '('}{low}, {high}). "
            f"Received: {value!r}"
        )
    return float(value)


def check_fraction(name: str, value: float) -> float:
    """Returns `value` if `0 <= value <= 1`."""
    if not _is_real(value) or not 0 <= value <= 1:
        raise ValueError(f"`{name}` must be a number in [0, 1]. Received: {value!r}")
    return float(value)


def _is_real(value) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def check_choice(name: str, value, choices):
    """Returns `value` if it is one of `choices`, or names them."""
    # Only equal types are compared, because == of tensors and arrays is not a bool.
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        raise ValueError(
            f"`{name}` must be one of {tuple(choices)}. Received: {value!r}"
        )
    return value


def check_on_error(on_error: str) -> str:
    """Returns `on_error` if it is one of its values, or raises a ValueError."""
    return check_choice("on_error", on_error, ON_ERROR)


def check_path(name: str, value: str | os.PathLike) -> str:
    """Returns `value` as a string if it is a path, or raises a ValueError."""
    path = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not path or not isinstance(path, str):
        raise ValueError(f"`{name}` must be a path. Received: {value!r}")
    return path


def check_mapping(name: str, value: Mapping) -> Mapping:
    """Returns `value` if it is a dict with names as keys, or raises a ValueError."""
    if not isinstance(value, Mapping) or not all(isinstance(x, str) for x in value):
        raise ValueError(
            f"`{name}` must be a dict whose keys are strings. Received: {value!r}"
        )
    return value


def check_sequence(name: str, value, count: int | None = None) -> list:
    """Returns the entries of a sequence other than a string, `count` of them."""
    try:
        entries = None if isinstance(value, str | bytes | Mapping) else list(value)
    except TypeError:  # an array may have a length and yet no axis
        entries = None
    if entries is None or count not in (None, len(entries)):
        number = "" if count is None else f" with {count} entries"
        raise ValueError(f"`{name}` must be a sequence{number}. Received: {value!r}")
    return entries


def check_array(name: str, value, ndim: int | None = None) -> np.ndarray:
    """Returns numbers or truth values as a NumPy array with `ndim` axes."""
    try:
        array = np.asarray(keras.ops.convert_to_numpy(value))
        # NumPy has no kind of its own for bfloat16.
        if array.dtype.kind not in "biufV":
            raise TypeError(f"dtype={array.dtype}")
    # Backends raise errors of different kinds.
    except Exception as error:
        raise ValueError(
            f"`{name}` must be an array of numbers. Received: {value!r}"
        ) from error
    if ndim not in (None, array.ndim):
        raise ValueError(
            f"`{name}` must be an array with {ndim} axes. Received: shape={array.shape}"
        )
    return array


def from_keras(name: str, get: Callable, identifier):
    """Returns what a `get` of Keras, such as `keras.activations.get`, makes of a value."""
    try:
        return get(identifier)
    except (TypeError, ValueError) as error:
        raise ValueError(f"Keras cannot interpret `{name}`: {error}") from error


def call_factory(argument: str, factory: Callable, name: str) -> keras.layers.Layer:
    """Returns the layer that a user's function makes, named if it takes a name.

    Args:
        argument: Name of the argument that the function was passed as.
        factory: Function that returns a layer, such as the layer's class.
        name: Name of the layer, passed if `factory` takes `name=`.

    Returns:
        The layer.

    Raises:
        TypeError: If `factory` returns something else.
    """
    parameters = inspect.signature(factory).parameters
    named = "name" in parameters or any(
        p.kind is p.VAR_KEYWORD for p in parameters.values()
    )
    layer = factory(name=name) if named else factory()
    if not isinstance(layer, keras.layers.Layer):
        raise TypeError(f"`{argument}` must return a Keras layer. Received: {layer!r}")
    return layer
