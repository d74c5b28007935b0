"""Folders with a subfolder of images for each class, as a TFDS builder."""

from __future__ import annotations

import collections
import os
import random
import warnings
from pathlib import Path

import tensorflow as tf
import tensorflow_datasets as tfds

from keras_coordatt.data.folder import (
    Folder,
    decode_image,
)
from keras_coordatt.data.reading import image_size, list_folder
from keras_coordatt.data.split_names import (
    SPLITS,
    name_splits,
    split_name,
    split_off_validation,
)
from keras_coordatt.validation import check_path

# Endings of tables, which may have the classes of the images.
TABLES = (".csv", ".tsv")


class LabeledImages(Folder):
    """Base class of the builders of images with one label each.

    Args:
        path: The folder.
        splits: The examples of each split: images and the names of their classes.
        classes: The names of the classes, in the order of the labels.
        validation_split, split_seed, on_error: Same as in `ClassFolder`.
    """

    def __init__(
        self,
        path: Path,
        splits: dict[str, list[tuple[Path, str]]],
        classes: list[str],
        validation_split: float | None,
        split_seed: int,
        on_error: str,
    ):
        labels = {name: label for label, name in enumerate(classes)}
        for split, examples in splits.items():
            # Shuffled, so that slices have all classes; same order as tfds.ImageFolder.
            random.Random(split).shuffle(examples)
        splits = split_off_validation(splits, validation_split, split_seed)
        learned = {name for _, name in splits.get("train", ())}
        if validation_split and (rare := sorted(labels.keys() - learned)):
            warnings.warn(
                f"{path}: no image in 'train' is left of {', '.join(rare)}",
                stacklevel=2,
            )
        columns = {
            split: {
                "image": [os.fspath(image) for image, _ in examples],
                "label": [labels[name] for _, name in examples],
            }
            for split, examples in splits.items()
        }
        label = tfds.features.ClassLabel(names=classes)
        super().__init__(path, {"label": label}, columns, on_error)

    def _check(self, example):
        return {"size": image_size(example["image"])}

    def _read(self, example):
        return {
            "image": decode_image(example["image"]),
            "image/filename": example["image"],
            "label": tf.cast(example["label"], "int64"),
        }


class ClassFolder(LabeledImages):
    """Images in one folder per class, in one folder per split or in none.

    ```
    path/                    or    path/
      train/cat/                     cat/     # any names: IMG_0001.JPG, scan.png, ...
      train/dog/                     dog/
      val/cat/                       ...
      ...
    ```

    Splits are called train, validation and test, whatever their folders are called.
    Without folders of splits, all images are train.

    Like a TFDS data set, it has the features `image` and `label`, and splits that can
    be sliced. It differs from `tfds.ImageFolder`: pictures are read as a viewer shows
    them (EXIF orientation, CMYK, 16 bits, ...), in more formats; hidden folders, such
    as `.ipynb_checkpoints`, do not count; and images that cannot be read are found when
    a split is opened, before training starts.

    One warning lists classes without an image, or without one in `train`, and
    files and subfolders that are not read, such as a folder `test` of images without
    classes beside the folders of classes. A class without any image does not count.

    Args:
        path: The folder.
        validation_split: The part of `train` to use as `validation`, in (0, 1), if
            there is none. It is another part once an image is added or removed.
            Defaults to none.
        split_seed: An integer that determines this part. Defaults to 0.
        on_error: What to do with images that cannot be read: `"raise"` one error that
            names all of them, or `"skip"` (or `"repair"`, which is the same here) to
            leave them out, with one warning that names them. Defaults to `"raise"`.

    Raises:
        ValueError: If there is no image, or an argument is invalid.

    Example:

    >>> builder = ClassFolder("photos", on_error="skip")
    >>> builder.info.features["label"].names
    ['cat', 'dog']
    >>> train = load_classification(builder, "train[:90%]", 224, shuffle=True)
    """

    LAYOUT = "class folders (train/cat/1.jpg or cat/1.jpg)"

    @classmethod
    def recognizes(cls, path):
        return _has_classes(path) or any(map(_has_classes, list_folder(path)[2]))

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        validation_split: float | None = None,
        split_seed: int = 0,
        on_error: str = "raise",
    ):
        path = Path(check_path("path", path)).expanduser()
        found = {}
        remarks = []
        unread = collections.Counter()
        if tables := [
            f.name for f in list_folder(path)[1] if f.suffix.lower() in TABLES
        ]:
            remarks.append(
                f"{', '.join(tables)}: not read, as the folders are the classes"
            )
        for split, where in _find_splits(path).items():
            loose, _, folders = list_folder(where)
            if where == path:
                unlabeled = _unlabeled_splits(folders)
                folders = [folder for folder in folders if folder not in unlabeled]
                remarks += [
                    f"{len(list_folder(folder)[0])} images in {folder} are in no class "
                    "and are not read. If it is a class, rename it, as folders of this "
                    "name are splits"
                    for folder in unlabeled
                ]
            if loose:
                remarks.append(f"{len(loose)} images in {where} are in no class")
            for folder in folders:
                images, others, subfolders = list_folder(folder)
                found.setdefault(split, {})[folder.name] = images
                unread.update(file.suffix or "no ending" for file in others)
                remarks += [f"{subfolder} is not read" for subfolder in subfolders]
        names = {name for classes in found.values() for name in classes}
        classes = sorted(
            name for name in names if any(found[split].get(name) for split in found)
        )
        if not classes:
            raise ValueError(
                f"There are no images in {path}. They must be in folders like "
                f"{path / 'train' / 'cat'} or {path / 'cat'}"
            )
        remarks += [
            f"The class {name!r} has no images and does not count"
            for name in sorted(names.difference(classes))
        ]
        remarks += [
            f"The class {name!r} has no images in the split 'train'"
            for name in classes
            if "train" in found and not found["train"].get(name)
        ]
        if unread:
            counts = ", ".join(f"{n} x {end}" for end, n in sorted(unread.items()))
            remarks.append(f"Files that are not images are not read: {counts}")
        if remarks:
            warnings.warn("\n  ".join([f"{path}:", *remarks]), stacklevel=2)

        splits = {
            split: [
                (image, name) for name in classes for image in folders.get(name, ())
            ]
            for split, folders in found.items()
        }
        splits = {split: examples for split, examples in splits.items() if examples}
        super().__init__(path, splits, classes, validation_split, split_seed, on_error)


def _find_splits(path: Path) -> dict[str, Path]:
    """Returns the folder of each split."""
    folders = list_folder(path)[2]
    has_splits = any(
        split_name(folder.name) in SPLITS and _has_classes(folder) for folder in folders
    )
    classes = [f for f in folders if split_name(f.name) not in SPLITS]
    if not has_splits and any(list_folder(folder)[0] for folder in classes):
        return {"train": path}
    return name_splits({folder.name: folder for folder in folders})


def _unlabeled_splits(folders: list[Path]) -> list[Path]:
    """Returns those of the folders beside class folders that are called like splits."""
    splits = [folder for folder in folders if split_name(folder.name) in SPLITS]
    # A class may be called "train", beside others called "car" and "bus".
    return [] if [folder.name.lower() for folder in splits] == ["train"] else splits


def has_class_folders(path: Path) -> bool:
    """Returns whether a folder, or one of its splits, has several folders of images."""
    for folder in (path, *list_folder(path)[2]):
        inside = [f for f in list_folder(folder)[2] if split_name(f.name) not in SPLITS]
        classes = (f for f in inside if list_folder(f)[0])
        if next(classes, None) and next(classes, None):
            return True
    return False


def _has_classes(path: Path) -> bool:
    return any(list_folder(folder)[0] for folder in list_folder(path)[2])
