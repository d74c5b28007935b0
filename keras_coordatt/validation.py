"""The argument checks that more than one module needs."""

import math
import numbers


def check_positive_int(name: str, value: int) -> int:
    """Returns `value` if it is a positive integer, or says what it is."""
    is_int = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not is_int or value < 1:
        raise ValueError(f"`{name}` must be a positive integer. Received: {value!r}")
    return int(value)


def check_number(
    name: str, value: float, low: float, high: float = math.inf, closed: bool = False
) -> float:
    """Returns `value` if `low < value < high` (`low <= value` if closed)."""
    is_real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not is_real or not (low < value < high or (closed and value == low)):
        raise ValueError(
            f"`{name}` must be a number in {'[' if closed else '('}{low}, {high}). "
            f"Received: {value!r}"
        )
    return float(value)


def check_choice(name: str, value, choices):
    """Returns `value` if it is one of `choices`, or names them."""
    # A tensor's or an array's == is no answer, so only compare what can be equal.
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        raise ValueError(
            f"`{name}` must be one of {tuple(choices)}. Received: {value!r}"
        )
    return value
