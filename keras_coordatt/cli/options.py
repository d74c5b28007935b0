"""Types and checks shared by several commands."""

import pathlib
from typing import Literal

Attention = Literal["coordinate", "height", "width", "se", "cbam", "none"]


def network_arguments(
    alpha: float | None,
    classes: int | None,
    attention: Attention | None,
    reduction: int | None,
    top: bool,
) -> dict:
    """Returns the builder's arguments for the options that were given."""
    arguments = {
        "alpha": alpha,
        "classes": classes,
        "attention": attention,
        "reduction": reduction,
    }
    arguments = {name: x for name, x in arguments.items() if x is not None}
    if attention == "none":
        arguments["attention"] = None
    return arguments if top else {**arguments, "include_top": False}


def check_not_a_folder(output: pathlib.Path) -> None:
    """Raises a ValueError if OUT, which must be a file, is a folder."""
    if output.is_dir():
        raise ValueError(f"OUT must be a file. Received a folder: {output}")
