"""Types and checks shared by several commands."""

import pathlib
from typing import TYPE_CHECKING, Literal

from keras_coordatt.applications import BUILDERS
from keras_coordatt.applications.blocks import ATTENTIONS
from keras_coordatt.export._litert import PRECISIONS
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


def network_arguments(
    alpha: float | None,
    classes: int | None,
    attention: Attention | None,
    reduction: int | None,
    top: bool,
) -> dict:
    """Returns the builder's arguments for the options that were given."""
    arguments: dict = {
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
    """Reads a UTF-8 file with one class name per line."""
    text = path.read_text(encoding="utf-8-sig").strip()
    return [line.strip() for line in text.splitlines()]
