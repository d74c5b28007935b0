"""Folders of images with masks, as TFDS builders for segmentation."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from keras_coordatt.data.folder import (
    Folder,
    check_classes,
    decode_image,
    images_by_name,
)
from keras_coordatt.data.reading import (
    IGNORED,
    check_mask,
    check_on_error,
    find_faults,
    image_size,
    read_mask,
    read_text,
    report_faults,
)
from keras_coordatt.data.split_names import (
    name_splits,
    read_lists,
    split_off_validation,
)


class MaskFolder(Folder, skip_registration=True):
    """Images with one mask each, which has the class of each pixel.

    ```
    path/
      labels.txt         # the name of class 0, of class 1, ..., one per line
      train/images/      # 0001.jpg, or another format
      train/masks/       # 0001.png
      test/images/
      ...
    ```

    The layout of Pascal VOC is read too: `JPEGImages`, `SegmentationClass` and, for
    several splits, `ImageSets/Segmentation`. Without a `labels.txt`, its classes are
    called class_0, class_1, ...

    Like a TFDS data set, it has the features `image` and `segmentation_mask`, a
    `LabeledImage`, and splits that can be sliced. Masks are PNGs of one channel, grey
    or with a palette as those of Pascal VOC. Their values are classes, or 255 where a
    pixel is ignored. Masks lie on the images as a viewer shows them: both are turned as
    their EXIF orientation says. Images and masks are checked when their split is
    opened, before training starts.

    Args:
        path: The folder.
        ignored: The name or index of a class to ignore, such as "void" or
            "unlabelled": it becomes 255, and the classes after it one less. Defaults to
            none.
        classes: The names of the classes, instead of a `labels.txt`.
        values: The value in the masks of each class, in their order, such as `(0, 255)`
            for black and white masks; a 255 in it is a class, and not ignored. Defaults
            to 0, 1, 2, ...
        validation_split: The part of `train` to use as `validation`, in (0, 1), if
            there is none. Defaults to none.
        split_seed: An integer that determines this part. Defaults to 0.
        on_error: What to do with images and masks that cannot be used: `"raise"` one
            error that names all of them, or `"skip"` (or `"repair"`, which is the same
            here) to leave them out, with one warning that names them. Defaults to
            `"raise"`.

    Raises:
        ValueError: If a file is missing or cannot be used, and `on_error` is `"raise"`;
            or an argument is invalid. When a split is opened: if its masks hold 255 and
            no more than one class, as black and white masks do without `values`.

    Example:

    ```python
    builder = MaskFolder("camvid", ignored="unlabelled")
    builder.info.features["segmentation_mask"].names  # ["sky", "building", ...]
    train = load_segmentation(builder, "train", (180, 240), shuffle=True)
    ```
    """

    LAYOUT = "images and masks (images/1.jpg, masks/1.png)"

    @classmethod
    def recognizes(cls, path):
        is_voc = (path / "SegmentationClass").is_dir()
        return is_voc or any(path.glob("[!.]*/masks"))

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        ignored: int | str | None = None,
        classes: Sequence[str] | None = None,
        values: Sequence[int] | None = None,
        validation_split: float | None = None,
        split_seed: int = 0,
        on_error: str = "raise",
    ):
        check_on_error(on_error)
        path = Path(path).expanduser()
        is_voc = (path / "SegmentationClass").is_dir()
        if classes is None:
            try:
                lines = read_text(path / "labels.txt").strip().splitlines()
                classes = [line.strip() for line in lines]
            except OSError as error:
                if not is_voc:
                    message = f"`path` must have a labels.txt: {error}"
                    raise ValueError(message) from error
                classes = _number_classes(path / "SegmentationClass")
        self._classes = classes = check_classes(classes)
        if len(classes) > IGNORED:
            raise ValueError(f"At most {IGNORED} classes. Received: {len(classes)}")
        if isinstance(ignored, str) and ignored in classes:
            ignored = classes.index(ignored)
        if ignored not in (None, *range(len(classes))):
            raise ValueError(
                f"`ignored` must be one of {classes}, or its index. "
                f"Received: {ignored!r}"
            )
        self._values = _check_values(values, len(classes))
        kept = [i for i in range(len(classes)) if i != ignored]
        # What becomes of each value of a mask. -1 is an unknown one.
        self._class_of_value = np.full(256, -1, "int32")
        self._class_of_value[IGNORED] = IGNORED
        self._class_of_value[[self._values[i] for i in kept]] = range(len(kept))
        if ignored is not None:
            self._class_of_value[self._values[ignored]] = IGNORED

        splits = {}
        faults = []
        listed = _list_voc(path) if is_voc else _list_splits(path)
        for split, (names, images, masks) in listed.items():
            for name in names:
                if name not in images or name not in masks:
                    found = images.get(name, masks.get(name, name))
                    other = "an image" if name not in images else "a mask"
                    faults.append(f"{found} must have {other} of the same name")
            names = [name for name in names if name in images and name in masks]
            _, wrong = find_faults(check_mask, [masks[name] for name in names])
            faults += filter(None, wrong)
            names = [n for n, fault in zip(names, wrong, strict=True) if not fault]
            splits[split] = [
                (os.fspath(images[name]), os.fspath(masks[name])) for name in names
            ]
        if not splits:
            raise ValueError(f"`path` must have <split>/masks. Received: {path}")
        report_faults(faults, on_error, "files cannot be used", "left out")
        splits = {split: pairs for split, pairs in splits.items() if pairs}
        if not splits:
            raise ValueError(f"There is no image that can be used in {path}")
        splits = {
            split: dict(zip(("image", "mask"), zip(*pairs, strict=True), strict=True))
            for split, pairs in split_off_validation(
                splits, validation_split, split_seed
            ).items()
        }
        labels = [classes[i] for i in kept]
        features = {"segmentation_mask": tfds.features.LabeledImage(labels=labels)}
        super().__init__(path, features, splits, on_error)

    def _check(self, example):
        height, width = image_size(example["image"])
        mask = read_mask(example["mask"])
        if mask.shape != (height, width):
            raise ValueError(
                f"{example['mask']} is {mask.shape[1]} x {mask.shape[0]} pixels, and "
                f"its image is {width} x {height} (width x height, as shown)"
            )
        found = np.flatnonzero(np.bincount(mask.ravel(), minlength=256))
        unknown = [int(value) for value in found if self._class_of_value[value] < 0]
        if unknown:
            raise ValueError(
                f"{example['mask']} has values that are no class: {unknown}. The "
                f"classes have {self._values}, and {IGNORED} is ignored"
            )
        return set(found)

    def _check_split(self, split, found):
        found = set().union(*found)
        occurring = [value for value in self._values if value in found]
        missing = [
            name
            for name, value in zip(self._classes, self._values, strict=True)
            if value not in found
        ]
        if IGNORED in found - set(self._values) and missing and len(occurring) < 2:
            values = (*self._values[: len(self._classes) - 1], IGNORED)
            raise ValueError(
                f"The masks of '{split}' in {self._path} hold only the values "
                f"{sorted(map(int, found))}. {IGNORED} is the value of pixels that are "
                f"ignored, so {', '.join(map(repr, missing))} occurs nowhere. If "
                f"{IGNORED} is a class, say so: "
                f"MaskFolder(path, classes={self._classes}, values={values})"
            )

    def _read(self, example):
        def read(path):
            return self._class_of_value[read_mask(path.decode())].astype("uint8")

        mask = tf.numpy_function(read, [example["mask"]], "uint8", stateful=False)
        return {
            "image": decode_image(example["image"]),
            "image/filename": example["image"],
            "segmentation_mask": tf.ensure_shape(mask, (None, None))[..., None],
        }


def _list_splits(path: Path) -> dict[str, tuple[list, dict, dict]]:
    """Returns the names, images and masks of each split."""
    listed = {}
    for folder in sorted(path.glob("[!.]*/masks")):
        images = images_by_name(folder.parent / "images")
        masks = images_by_name(folder)
        names = sorted(images.keys() | masks.keys())
        listed[folder.parent.name] = names, images, masks
    return name_splits(listed)


def _list_voc(path: Path) -> dict[str, tuple[list, dict, dict]]:
    """Does the same for the layout of Pascal VOC."""
    images = images_by_name(path / "JPEGImages")
    masks = images_by_name(path / "SegmentationClass")
    lists = path / "ImageSets" / "Segmentation"
    # Most images of VOC have no mask.
    splits = read_lists(lists, images) if lists.is_dir() else {"train": list(masks)}
    return {split: (names, images, masks) for split, names in splits.items()}


def _number_classes(folder: Path) -> list[str]:
    """Names the classes that occur in masks: class_0, class_1, ..."""
    masks = images_by_name(folder).values()
    found, _ = find_faults(lambda mask: np.unique(read_mask(mask)), masks)
    values = {int(x) for values in found if values is not None for x in values}
    return [f"class_{i}" for i in range(max(values - {IGNORED}, default=0) + 1)]


def _check_values(values: Sequence[int] | None, count: int) -> list[int]:
    given = range(count) if values is None else values
    try:
        checked = [int(value) for value in given]
        fits = checked == list(given) and set(checked) <= set(range(256))
    except (TypeError, ValueError):
        fits = False
    if not fits or len(set(checked)) < len(checked) or len(checked) != count:
        raise ValueError(
            f"`values` must be {count} different integers from 0 to 255, one per "
            f"class. Received: {values!r}"
        )
    return checked
