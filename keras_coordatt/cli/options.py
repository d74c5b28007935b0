"""Types and checks shared by several commands."""

import os
import pathlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

from keras_coordatt.applications import BUILDERS
from keras_coordatt.applications.blocks import ATTENTIONS
from keras_coordatt.export._litert import PRECISIONS
from keras_coordatt.files import check_writable, read_text
from keras_coordatt.prediction import ON_ERROR as PICTURE_ON_ERROR
from keras_coordatt.preprocessing import IMAGENET, RAW_PIXELS, Preprocessing
from keras_coordatt.record import TASKS, VERBS
from keras_coordatt.training.recipes import OPTIMIZERS, RECIPES
from keras_coordatt.validation import ON_ERROR

PREPROCESSINGS = {
    "imagenet": IMAGENET,
    "raw": RAW_PIXELS,
    "tf": Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
}
# The choices are the library's own tuples, which type checkers can't read.
if TYPE_CHECKING:
    Attention = str
    Network = str
    OnError = str
    Optimizer = str
    PictureOnError = str
    Precision = str
    PreprocessingName = str
    RecipeName = str
    Task = str
    Verb = str
    VerbOrAuto = str
else:
    Attention = Literal[(*ATTENTIONS, "none")]
    Network = Literal[tuple(BUILDERS)]
    OnError = Literal[ON_ERROR]
    Optimizer = Literal[OPTIMIZERS]
    PictureOnError = Literal[PICTURE_ON_ERROR]
    Precision = Literal[PRECISIONS]
    PreprocessingName = Literal[tuple(PREPROCESSINGS)]
    RecipeName = Literal[RECIPES]
    Task = Literal[TASKS]
    Verb = Literal[tuple(VERBS)]
    VerbOrAuto = Literal[("auto", *VERBS)]


def given(**options) -> dict:
    """Returns the options that the user gave: those that aren't `None`."""
    return {name: value for name, value in options.items() if value is not None}


def network_arguments(
    alpha: float | None,
    classes: int | None,
    attention: Attention | None,
    reduction: int | None,
    top: bool,
) -> dict:
    """Returns the builder's arguments for the options that were given."""
    arguments = given(
        alpha=alpha, classes=classes, attention=attention, reduction=reduction
    )
    if attention == "none":
        arguments["attention"] = None
    return arguments if top else {**arguments, "include_top": False}


def check_outputs(
    outputs: Iterable[tuple[str, pathlib.Path | None]],
    inputs: Iterable[str | pathlib.Path | None] = (),
) -> None:
    """Checks the files that a command will write, before it computes anything.

    Args:
        outputs: Pairs of an option's name and a file; `None` for options not given.
        inputs: Files and folders that the command reads. Names of other kinds, such as
            those of TFDS data sets, are ignored.

    Raises:
        ValueError: If a file to write is a folder, replaces an input, also through a
            link, or is another one to write.
        OSError: If it can't be written.
    """
    read = {_identity(x): x for x in inputs if x is not None}
    written: dict = {}
    checked = set()
    for name, path in outputs:
        if path is None:
            continue
        if path.is_dir():
            raise ValueError(f"{name} must be a file. Received a folder: {path}")
        # A file that exists may also be one of the folder DATA, or of a SavedModel.
        above = path.resolve().parents if path.exists() else ()
        replaced = [read[x] for x in map(_identity, (path, *above)) if x in read]
        if replaced:
            kind = "a file of " if os.path.isdir(replaced[0]) else ""
            raise ValueError(
                f"{name} would replace {kind}{replaced[0]}, which this command reads: "
                f"choose another place. Received: {path}"
            )
        other = written.setdefault(path.resolve(), name)
        if other != name:
            raise ValueError(
                f"{name} and {other} must be different files. Received: {path}"
            )
        if path.parent not in checked:
            check_writable(name, path.parent)
            checked.add(path.parent)


def _identity(path):
    """Identifies a file or folder independent of its name, such as that of a link."""
    path = pathlib.Path(path)
    if not path.exists():
        return path.resolve()
    found = path.stat()
    return found.st_dev, found.st_ino


def read_preprocessing(
    name: PreprocessingName | None, mean: list[float] | None, std: list[float] | None
) -> Preprocessing | None:
    """Returns the preprocessing given by the options, or `None`."""
    if (mean is None) != (std is None) or (mean and name):
        raise ValueError(
            "Give --mean and --std together, or --preprocessing alone. "
            f"Received: --preprocessing {name}, --mean {mean}, --std {std}"
        )
    if mean is not None and std is not None:
        return Preprocessing(tuple(mean), tuple(std))
    return None if name is None else PREPROCESSINGS[name]


def read_labels(path: pathlib.Path) -> list[str]:
    """Reads a file with one class name per line, in UTF-8 or UTF-16."""
    try:
        text = read_text(path).strip()
    except ValueError as error:
        raise ValueError(f"--labels: {error}") from error
    return [line.strip() for line in text.splitlines()]
