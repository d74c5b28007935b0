"""Splits of a folder: train, validation and test, whatever the folder calls them."""

from __future__ import annotations

import numbers
import os
import random
import re
import warnings
from pathlib import Path
from typing import TypeVar

from keras_coordatt.data.reading import IMAGE_SUFFIXES, list_folder
from keras_coordatt.files import read_text
from keras_coordatt.validation import check_number

Files = TypeVar("Files")

SPLITS = ("train", "validation", "test")
_OTHER_NAMES = {
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "testing": "test",
}


def split_name(name: str) -> str:
    """Returns the name of a split, whatever a folder or a list calls it.

    Args:
        name: Such as `"val"`, `"Test"` or `"train2017"`.

    Returns:
        One of `SPLITS`; or `name`, if it is none of them.
    """
    # Strip a year, as in COCO's folders, but not the numbers of "train1" and "train2".
    plain = re.sub(r"[\W_]*((19|20)\d\d)?$", "", name).lower()
    plain = _OTHER_NAMES.get(plain, plain)
    return plain if plain in SPLITS else name


def name_splits(found: dict[str, Files]) -> dict[str, Files]:
    """Names splits.

    Args:
        found: The files of each split, by the name that the data set gives it.

    Returns:
        The same by their names. A single split is `train`, unless its name says
        otherwise, and so is `trainval` if there is no other `train`.

    Raises:
        ValueError: If two splits have the same name.
    """
    names = {}
    for name in found:
        named = split_name(name)
        if named in names:
            raise ValueError(f"{names[named]!r} and {name!r} are both called {named!r}")
        names[named] = name
    if "train" not in names:
        unknown = [name for name in names if name not in SPLITS]
        if "trainval" in names or (len(names) == 1 and unknown):
            names["train"] = names.pop("trainval" if len(names) > 1 else unknown[0])
    return {named: found[name] for named, name in names.items()}


def split_folders(path: Path) -> dict[str, Path]:
    """Finds the subfolders that are called like splits.

    Args:
        path: The folder.

    Returns:
        The subfolders by the names of their splits.

    Raises:
        ValueError: If two have the same name.
    """
    folders = {folder.name: folder for folder in list_folder(path)[2]}
    return name_splits({n: f for n, f in folders.items() if split_name(n) in SPLITS})


def read_lists(folder: Path, images: dict[str, Path]) -> dict[str, list[str]]:
    """Reads lists such as train.txt and val.txt.

    Args:
        folder: The folder of the lists.
        images: The images by their names, which lists may give with an ending.

    Returns:
        The names of the images of each split.

    Raises:
        ValueError: If there are no lists, or one is not in UTF-8.
    """
    splits = {}
    for file in sorted(folder.glob("[!.]*.txt")):
        lines = [line.strip() for line in read_text(file).splitlines()]
        lines = [line for line in lines if line]
        # Lists like train_cat.txt say of each image whether there is a cat. But a
        # name may end in a number too, as in "IMG 1".
        names = [_image_name(line, images) for line in lines]
        if any(name in images for name in names) or not all(
            re.fullmatch(r".+\s(-1|0|1)", line) for line in lines
        ):
            splits[file.stem] = list(dict.fromkeys(names))
    splits = {split: names for split, names in splits.items() if names}
    if not splits:
        raise ValueError(f"There are no lists of images, like train.txt, in {folder}")
    return name_splits(splits)


def _image_name(line: str, images: dict[str, Path]) -> str:
    """Returns a line of a list without the ending that it may have."""
    stem, ending = os.path.splitext(line)
    return stem if line not in images and ending.lower() in IMAGE_SUFFIXES else line


def warn_of_shared_images(splits: dict[str, list], path: Path) -> None:
    """Warns if images of `validation` or `test` are in `train` too.

    Args:
        splits: The examples of each split.
        path: The folder, for the message.
    """
    for split in ("validation", "test"):
        if not set(splits.get("train", ())).isdisjoint(splits.get(split, ())):
            warnings.warn(
                f"{path}: some images of {split!r} are in 'train' too, so that results "
                "on them say nothing about other images",
                stacklevel=2,
            )


def split_off_validation(
    splits: dict[str, list], validation_split: float | None, seed: int
) -> dict[str, list]:
    """Splits a random part of `train` off as `validation`.

    Args:
        splits: The examples of each split, without a `validation` yet.
        validation_split: The part, in (0, 1); `None` for none. It depends on the order
            and the number of the examples: one more, and others are set aside.
        seed: An integer that determines the part.

    Returns:
        The examples of each split.

    Raises:
        ValueError: If the part is out of range, there is a `validation` already, no
            image would be left in one of both, or the seed is not an integer.
    """
    if not isinstance(seed, numbers.Integral):
        raise ValueError(f"`split_seed` must be an integer. Received: {seed!r}")
    if validation_split is None:
        return splits
    check_number("validation_split", validation_split, 0, 1)
    if "validation" in splits or "train" not in splits:
        raise ValueError(
            "`validation_split` is for data without a validation split. "
            f"Received: {validation_split}, and there are {list(splits)}"
        )
    examples = list(splits["train"])
    random.Random(int(seed)).shuffle(examples)
    count = round(len(examples) * validation_split)
    if not 0 < count < len(examples):
        raise ValueError(
            f"`validation_split` leaves no images on one side. "
            f"Received: {validation_split}, of {len(examples)} images"
        )
    return {**splits, "train": examples[count:], "validation": examples[:count]}
