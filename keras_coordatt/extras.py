"""Optional packages, by the extras that install them."""

import importlib.util


def install_hint(extra: str) -> str:
    """Returns how to install an extra. The package is not on PyPI, but in a clone."""
    return f"pip install '.[{extra}]', in a clone of keras_coordatt"


def has_matplotlib() -> bool:
    """Returns whether matplotlib is installed, without importing it."""
    return importlib.util.find_spec("matplotlib") is not None


def check_matplotlib() -> None:
    """Raises an ImportError that says how to install matplotlib, if it is missing."""
    if not has_matplotlib():
        raise ImportError(f"Figures need matplotlib: {install_hint('figures')}")
