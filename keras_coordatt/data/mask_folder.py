"""Folders of images with masks, as TFDS builders for segmentation."""

from __future__ import annotations

import hashlib
import numbers
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from keras_coordatt.data.folder import Folder, check_classes, decode_image
from keras_coordatt.data.mask_pairs import find_mask_folders, find_pairs
from keras_coordatt.data.reading import (
    find_faults,
    image_size,
    read_mask,
    report_faults,
)
from keras_coordatt.data.split_names import split_off_validation
from keras_coordatt.files import read_text
from keras_coordatt.record import IGNORED
from keras_coordatt.validation import check_on_error, check_path, with_hint

# A line of a labels.txt with a value.
_VALUE = re.compile(r"(\d{1,3})\s*[:,;\t]\s*(.+)")
# Name of a class in labels.txt whose pixels are ignored.
_IGNORED_NAME = "(ignored)"
# More gray values without names are not classes.
_MOST_UNNAMED = 64


class MaskFolder(Folder):
    """Images with one mask each, which has the class of each pixel.

    ```
    path/
      labels.txt         # the name of class 0, of class 1, ..., one per line
      train/images/      # 0001.jpg, or another format
      train/masks/       # 0001.png
      test/images/
      ...
    ```

    The folders may also be `images/train` and `masks/train`, or, if there are no
    splits, `images` and `masks`; and a mask may be called `0001_mask.png`, also in the
    folder of its image. The layout of Pascal VOC is read too: `JPEGImages`,
    `SegmentationClass` and, for several splits, `ImageSets/Segmentation`.

    Masks are PNGs of one channel, gray or with a palette as those of Pascal VOC. Their
    values are classes, or 255 where a pixel is ignored. The lines of `labels.txt` may
    say otherwise: `255: thing` gives the value of a class in the masks, and the pixels
    of a class called `(ignored)` are ignored. Without a `labels.txt`, classes are
    called class_0, class_1, ...

    Like a TFDS data set, it has the features `image` and `segmentation_mask`, a
    `LabeledImage`, and splits that can be sliced. Masks lie on the images as a viewer
    shows them: both are turned as their EXIF orientation says. Images and masks are
    checked when their split is opened, before training starts.

    Args:
        path: The folder.
        ignored: The name or index of a class to ignore, such as "void" or
            "unlabelled": it becomes 255, and the classes after it one less. Defaults to
            none.
        classes: The names of the classes, instead of a `labels.txt`.
        values: The value in the masks of each class, in their order, such as `(0, 255)`
            for black and white masks; a 255 in it is a class, and not ignored. Defaults
            to those of `labels.txt`, or else to 0, 1, 2, ...
        validation_split: The part of `train` to use as `validation`, in (0, 1), if
            there is none. It is another part once an image is added or removed.
            Defaults to none.
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

    >>> builder = MaskFolder("camvid", ignored="unlabelled")
    >>> builder.info.features["segmentation_mask"].names
    ['sky', 'building']
    >>> train = load_segmentation(builder, "train", (180, 240), shuffle=True)
    """

    LAYOUT = "images and masks (images/1.jpg, masks/1.png)"

    @classmethod
    def recognizes(cls, path):
        return path.is_dir() and bool(find_mask_folders(path))

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
        path = Path(check_path("path", path)).expanduser()
        pairs, faults = find_pairs(path)
        is_written = False
        if classes is None:
            classes, written = _read_labels(path)
            is_written = classes is not None
            values = written if values is None else values
        if classes is None:
            classes = _number_classes([mask for p in pairs.values() for _, mask in p])
        try:
            self._set_classes(classes, values, ignored)
        except ValueError as error:
            if not is_written:
                raise
            raise ValueError(
                f"{path / 'labels.txt'} cannot be used: {error}"
            ) from error
        report_faults(faults, on_error, "files cannot be used", "left out")
        if not pairs:
            raise ValueError(f"There is no image that can be used in {path}")
        columns = {
            split: {
                "image": [os.fspath(image) for image, _ in examples],
                "mask": [os.fspath(mask) for _, mask in examples],
            }
            for split, examples in split_off_validation(
                pairs, validation_split, split_seed
            ).items()
        }
        feature = tfds.features.LabeledImage(labels=self._labels)
        super().__init__(path, {"segmentation_mask": feature}, columns, on_error)

    def _set_classes(self, classes, values, ignored):
        if isinstance(classes, list):
            # Several lines of a labels.txt may have this name.
            names = [name for name in classes if name != _IGNORED_NAME]
        else:
            names = classes
        names = check_classes(names)
        classes = list(classes)
        if len(classes) > IGNORED:
            raise ValueError(f"At most {IGNORED} classes. Received: {len(classes)}")
        if isinstance(ignored, str) and ignored in classes:
            ignored = classes.index(ignored)
        is_index = isinstance(ignored, numbers.Integral) and 0 <= ignored < len(classes)
        if ignored is not None and not is_index:
            raise ValueError(
                f"`ignored` must be one of {classes}, or its index. "
                f"Received: {ignored!r}"
            )
        self._classes = classes
        self._values = _check_values(values, len(classes))
        kept = [
            i
            for i, name in enumerate(classes)
            if i != ignored and name != _IGNORED_NAME
        ]
        self._labels = [classes[i] for i in kept]
        # The class of each value of a mask. -1 is an unknown one.
        self._class_of_value = np.full(256, -1, "int32")
        self._class_of_value[[IGNORED, *self._values]] = IGNORED
        self._class_of_value[[self._values[i] for i in kept]] = range(len(kept))

    def fingerprint(self):
        # The values in the masks may get another meaning by labels.txt.
        text = f"{super().fingerprint()} {self._class_of_value.tolist()}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _check(self, example):
        height, width = image_size(example["image"])
        mask = read_mask(example["mask"])
        if mask.shape != (height, width):
            raise ValueError(
                f"{example['mask']} is {mask.shape[1]} x {mask.shape[0]} pixels, and "
                f"its image is {width} x {height} (width x height, as shown)"
            )
        counts = np.bincount(mask.ravel(), minlength=256)
        unknown = [
            int(value)
            for value in np.flatnonzero(counts)
            if self._class_of_value[value] < 0
        ]
        if unknown:
            raise ValueError(
                f"{example['mask']} has values of unknown classes: {unknown}. The "
                f"classes have {self._values}, and {IGNORED} is ignored"
            )
        classes = self._class_of_value[mask].ravel()
        pixels = np.bincount(classes, minlength=256)[: len(self._labels)]
        return {"size": (height, width), "values": counts > 0, "pixels": pixels}

    def _check_split(self, split, found):
        values = np.any([facts["values"] for facts in found], axis=0)
        found = set(np.flatnonzero(values).tolist())
        is_named = IGNORED in self._values
        occurring = [value for value in self._values if value in found]
        if IGNORED not in found or is_named or len(occurring) > 1:
            return
        missing = [
            name
            for name, value in zip(self._classes, self._values, strict=True)
            if value not in found
        ]
        if not missing and len(self._classes) > 1:
            return
        # Masks without names may hold one class.
        classes = [*self._classes, "thing"][: max(2, len(self._classes))]
        values = (*self._values[: len(classes) - 1], IGNORED)
        lines = " and ".join(
            f"'{value}: {name}'" for name, value in zip(classes, values, strict=True)
        )
        error = ValueError(
            f"The masks of '{split}' in {self._path} hold only the values "
            f"{sorted(found)}. {IGNORED} is the value of pixels that are "
            f"ignored, so {', '.join(map(repr, missing)) or 'another class'} occurs "
            f"nowhere. If {IGNORED} is a class, say so by the lines {lines} of a "
            "labels.txt"
        )
        raise with_hint(
            error, f"Or by MaskFolder(path, classes={classes}, values={values})."
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


def _read_labels(path: Path) -> tuple[list[str] | None, list[int] | None]:
    """Returns the names in a labels.txt and, if it has them, their values."""
    file = path / "labels.txt"
    if not file.is_file():
        return None, None
    lines = [line.strip() for line in read_text(file).strip().splitlines()]
    matches = [match for line in lines if (match := _VALUE.fullmatch(line))]
    if len(matches) < len(lines):
        return lines, None
    return [match[2] for match in matches], [int(match[1]) for match in matches]


def _number_classes(masks: list[Path]) -> list[str]:
    """Names the classes that occur in masks: class_0, class_1, ..."""
    found, _ = find_faults(lambda mask: np.unique(read_mask(mask)), masks)
    values = {int(x) for values in found if values is not None for x in values}
    values.discard(IGNORED)
    if len(values) > _MOST_UNNAMED:
        raise ValueError(
            f"The masks, such as {masks[0]}, hold {len(values)} different values, which "
            "are not classes unless a labels.txt names them, one per line"
        )
    return [f"class_{i}" for i in range(max(values, default=0) + 1)]


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
