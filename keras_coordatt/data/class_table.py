"""Images whose labels are in a CSV file, as a TFDS builder."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from keras_coordatt.data.class_folder import TABLES, LabeledImages, has_class_folders
from keras_coordatt.data.folder import check_classes
from keras_coordatt.data.image_index import ImageIndex, is_image
from keras_coordatt.data.reading import list_folder, report_faults
from keras_coordatt.data.split_names import (
    SPLITS,
    name_splits,
    split_name,
    warn_of_shared_images,
)
from keras_coordatt.files import read_text
from keras_coordatt.validation import check_on_error, check_path, check_type

# Headings in lower case, those to prefer first.
_IMAGE = [
    "file_name",
    "filename",
    "image_path",
    "filepath",
    "filepaths",
    "path",
    "file",
    "image",
    "image_name",
    "image_id",
    "img",
    "id",
    "name",
]
_LABEL = ["class_name", "label_name", "label", "labels", "class", "category", "target"]
_SPLIT = ["split", "subset", "set", "data_set", "dataset", "partition"]
_BOXES = frozenset(("xmin", "x_min", "xmax", "x_max", "bbox", "x1"))


class ClassTable(LabeledImages):
    """Images with one label each, listed in a CSV file.

    ```
    path/                or    path/
      labels.csv                 train.csv
      images/0001.jpg            test.csv
      ...                        images/...
    ```

    A line has an image, its class, and if need be its split: `train`, `val` or `test`.
    The columns are found by their headings, such as `filename,label`; without a heading
    there must be two, one of them with names of images. Images are found by their name
    or path, with or without an ending, in the folder of the CSV file. Fields may be
    separated by commas, semicolons or tabs.

    Several files, such as `train.csv` and `test.csv`, are one split each; otherwise,
    and without a column of splits, all images are train. A line that repeats another
    one counts once.

    Args:
        path: The CSV file, or its folder.
        image_column: The heading of the column of images. Defaults to a usual one.
        label_column: The heading of the column of classes. Defaults to a usual one, or
            to the only other column.
        classes: The names of the classes, in their order. Defaults to those in the
            file, in alphabetical order, or in numerical order if all are numbers.
        validation_split, split_seed, on_error: Same as in `ClassFolder`. What cannot be
            used includes lines that name no image, or no class, and images with several
            classes.

    Raises:
        TypeError: If a column is not a string.
        ValueError: If a file or line cannot be used, or an argument is invalid.

    Example:

    >>> builder = ClassTable("pets/labels.csv", validation_split=0.25)
    >>> splits(builder)
    {'train': 3, 'validation': 1}
    >>> train = load_classification(builder, "train", 224, shuffle=True)
    """

    LAYOUT = "CSV of labels (labels.csv)"

    @classmethod
    def recognizes(cls, path):
        if path.is_file():
            return path.suffix.lower() in TABLES
        # A single CSV file is always accepted: reading it raises a more precise error.
        if has_class_folders(path):
            return _compare_with_folders(path).adds
        return len(_find_files(path)) == 1 or bool(_find_tables(path, None, None))

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        image_column: str | None = None,
        label_column: str | None = None,
        classes: Sequence[str] | None = None,
        validation_split: float | None = None,
        split_seed: int = 0,
        on_error: str = "raise",
    ):
        check_on_error(on_error)
        check_type("image_column", image_column, str | None, "a heading")
        check_type("label_column", label_column, str | None, "a heading")
        path = Path(check_path("path", path)).expanduser()
        if path.is_file():
            table = _read_table(path, image_column, label_column)
            tables = name_splits({path.stem: table})
            path = path.parent
        else:
            tables = _find_tables(path, image_column, label_column)
        if not tables:
            raise ValueError(f"There is no CSV file of images and classes in {path}")
        index = ImageIndex(path)
        listed, faults = {}, []
        for split, table in tables.items():
            for line in table.lines:
                place = f"{table.file}, line {line.number}"
                try:
                    stated = split_name(line.split or table.file.stem)
                    image = index.find(line.image, near=path / split, split=stated)
                    if not line.label:
                        raise ValueError(f"{line.image!r} has no class")
                except ValueError as error:
                    faults.append(f"{place}: {error}")
                else:
                    name = split_name(line.split or split)
                    listed.setdefault(image, []).append((line.label, name, place))
        found = {}
        for image, lines in listed.items():
            if len({label for label, _, _ in lines}) == 1:
                for label, name in dict.fromkeys(line[:2] for line in lines):
                    found.setdefault(name, []).append((image, label))
            else:
                said = "; ".join(f"{label!r} ({place})" for label, _, place in lines)
                faults.append(f"{image} must have one class, and has {said}")
        report_faults(faults, on_error, "lines cannot be used", "left out")
        if not found:
            raise ValueError(f"There is no image that can be used in {path}")
        names = {label for examples in found.values() for _, label in examples}
        if classes is None:
            are_numbers = all(n.isdecimal() and len(n) < 20 for n in names)
            classes = sorted(names, key=int if are_numbers else None)
        classes = check_classes(classes)
        if unknown := sorted(names.difference(classes)):
            raise ValueError(
                f"`classes` must have all classes of {path}. Received: {classes}, "
                f"without {unknown}"
            )
        named = name_splits(found)
        warn_of_shared_images(named, path)
        super().__init__(path, named, classes, validation_split, split_seed, on_error)


def contradicts_folders(path: Path) -> bool:
    """Returns whether the tables and the class folders of a folder may both be meant.

    Args:
        path: The folder, which has both.

    Returns:
        True if folders are called like classes of the tables, and some lines say
        otherwise; or if the images of each class are in one of several folders.
    """
    return _compare_with_folders(path).contradicts


class _Comparison(NamedTuple):
    """What the tables of a folder say about the images in its class folders.

    Attributes:
        adds: Whether they say something that the names of the folders don't.
        contradicts: Whether the names of the folders may be classes all the same.
    """

    adds: bool
    contradicts: bool


def _compare_with_folders(path: Path) -> _Comparison:
    try:
        tables = _find_tables(path, None, None)
    except ValueError:
        return _Comparison(False, False)
    index = ImageIndex(path)
    folders_of, splits, differs = {}, set(), False
    for split, table in tables.items():
        for line in table.lines:
            found = index.candidates(line.image, near=path / split)
            folders = {image.parent.name for image in found if image.parent != path}
            if folders:
                folders_of.setdefault(line.label, set()).update(folders)
                differs = differs or line.label not in folders
                if any(image.parent.parent == path for image in found):
                    # Otherwise, the folders may say the split as well.
                    splits.add(split_name(line.split or split))
    names = {name for folders in folders_of.values() for name in folders}
    are_apart = len(names) > 1 and all(len(f) == 1 for f in folders_of.values())
    return _Comparison(
        adds=differs or len(splits) > 1,
        contradicts=differs and (are_apart or not names.isdisjoint(folders_of)),
    )


class _Line(NamedTuple):
    number: int
    image: str
    label: str
    split: str


class _Table(NamedTuple):
    file: Path
    lines: list[_Line]


def _find_files(path: Path) -> list[Path]:
    return [file for file in list_folder(path)[1] if file.suffix.lower() in TABLES]


def _find_tables(
    path: Path, image_column: str | None, label_column: str | None
) -> dict[str, _Table]:
    """Returns the tables of images and classes in a folder, by their splits."""
    tables = {}
    files = _find_files(path)
    for file in files:
        try:
            tables[file.stem] = _read_table(file, image_column, label_column)
        except ValueError:
            # Skip other CSV files, such as a test set without labels.
            if len(files) == 1:
                raise
    named = {name: t for name, t in tables.items() if split_name(name) in SPLITS}
    return name_splits(tables if len(tables) == 1 else named)


def _read_table(
    file: Path, image_column: str | None, label_column: str | None
) -> _Table:
    lines = read_text(file).splitlines()
    first = next(iter(lines), "")
    separator = max(",;\t", key=first.count)
    try:
        rows = list(csv.reader(lines, delimiter=separator))
    except csv.Error as error:
        raise ValueError(f"{file} cannot be used: {error}") from error
    rows = [[field.strip() for field in row] for row in rows]
    head = [x.lower().replace(" ", "_") for x in rows[0]] if rows else []
    if any(map(is_image, head)):
        images = [i for i, field in enumerate(head) if is_image(field)]
        others = [i for i, field in enumerate(head) if i not in images]
        columns, start = (*images, *others, None), 0
        if len(columns) != 3:
            raise ValueError(f"{file} must have headings, such as filename,label")
    else:
        columns, start = _find_columns(file, head, image_column, label_column), 1

    def field(row, column):
        return row[column] if column is not None and column < len(row) else ""

    found = [
        _Line(number, *(field(row, column) for column in columns))
        for number, row in enumerate(rows[start:], start + 1)
        if any(row)
    ]
    return _Table(file, found)


def _find_columns(
    file: Path, head: list[str], image_column: str | None, label_column: str | None
) -> tuple[int, int, int | None]:
    """Returns the columns of images, of classes and of splits."""
    if boxes := _BOXES.intersection(head):
        raise ValueError(
            f"{file} has boxes ({', '.join(sorted(boxes))}), which are read from COCO, "
            "YOLO and Pascal VOC only"
        )

    def find(given, usual):
        wanted = usual if given is None else [given.lower().replace(" ", "_")]
        return next((head.index(name) for name in wanted if name in head), None)

    split = find(None, _SPLIT)
    image = find(image_column, _IMAGE)
    label = find(label_column, _LABEL)
    others = [i for i in range(len(head)) if i not in (image, split)]
    if label is None and label_column is None and len(others) == 1:
        label = others[0]
    if image is None or label is None:
        what = "images" if image is None else "classes"
        raise ValueError(
            f"{file} has no column of {what}. ClassTable takes the names of the "
            f"columns as `image_column` and `label_column`. Received: {', '.join(head)}"
        )
    return image, label, split
