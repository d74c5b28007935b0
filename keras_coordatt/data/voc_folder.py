"""Folders in the layout of Pascal VOC, as TFDS builders for detection."""

from __future__ import annotations

import collections
import dataclasses
import math
import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from keras_coordatt.data.folder import (
    Folder,
    check_classes,
    decode_image,
    images_by_name,
    split_name,
    split_off_validation,
)
from keras_coordatt.data.reading import (
    IMAGE_SUFFIXES,
    check_on_error,
    find_faults,
    image_size,
    read_text,
    report_faults,
)

_ANNOTATIONS = ("Annotations", "annotations")


class VOCFolder(Folder, skip_registration=True):
    """Images with boxes around their objects, in the layout of Pascal VOC.

    ```
    path/
      JPEGImages/        # 000005.jpg, or another format
      Annotations/       # 000005.xml
      ImageSets/Main/    # train.txt, test.txt, ...: one image per line, like 000005
    ```

    The folders may be called `images` and `annotations` too, or all files may be in one
    folder. Without lists, all images with an annotation are train. The lists `val` and
    `valid` are called validation.

    Like a TFDS data set, it has the features `image` and `objects`, with `bbox`,
    `label` and `is_difficult`, and splits that can be sliced. Annotations are checked
    at once, and images when their split is opened, before training starts.

    The corners of boxes are pixels that belong to the box, counted from 1, as in Pascal
    VOC; TFDS's own `"voc"` takes them for distances from 0, up to a pixel less. As many
    tools count from 0, one pixel outside the image is cut off without a word. Boxes are
    where a viewer shows them: images are turned as their EXIF orientation says.

    Args:
        path: The folder.
        classes: The names of the classes, in their order. Defaults to those of all
            objects, in alphabetical order.
        validation_split: The part of `train` to use as `validation`, in (0, 1), if
            there is none. Defaults to none.
        split_seed: An integer that determines this part. Defaults to 0.
        on_error: What to do with what cannot be used. `"raise"`: one error that lists
            all boxes, or files, that are wrong. `"skip"`: leave out the images with
            such boxes or files. `"repair"`: sort the corners of boxes that are swapped,
            cut boxes to the image, leave out boxes without a pixel in it, and leave out
            images whose files cannot be used. For the latter two, one warning counts
            and names what was done. Defaults to `"raise"`.

    Raises:
        ValueError: If a file is missing or cannot be used, or a box is not in its
            image, and `on_error` is `"raise"`; or no image is left.

    Example:

    ```python
    builder = VOCFolder("VOCdevkit/VOC2007")
    builder.info.features["objects"]["label"].names  # ["aeroplane", "bicycle", ...]
    train = load_detection(builder, "train[:90%]", 320, shuffle=True)
    ```

    Reference:
        [The PASCAL Visual Object Classes Challenge 2007](
        http://host.robots.ox.ac.uk/pascal/VOC/voc2007/)
    """

    LAYOUT = "Pascal VOC"

    @classmethod
    def recognizes(cls, path):
        return any(_find_folder(path, _ANNOTATIONS).glob("[!.]*.xml"))

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        classes: Sequence[str] | None = None,
        validation_split: float | None = None,
        split_seed: int = 0,
        on_error: str = "raise",
    ):
        check_on_error(on_error)
        path = Path(path).expanduser()
        images_folder = _find_folder(path, ("JPEGImages", "images", "Images"))
        images = images_by_name(images_folder)
        folder = _find_folder(path, _ANNOTATIONS)
        lists = path / "ImageSets" / "Main"
        if lists.is_dir():
            splits = read_lists(lists, images)
        else:
            names = [file.stem for file in sorted(folder.glob("[!.]*.xml"))]
            splits = {"train": names}
            if unlisted := sorted(images.keys() - set(names)):
                warnings.warn(
                    f"{len(unlisted)} images in {images_folder} have no annotation and "
                    f"are left out, such as {unlisted[0]!r}",
                    stacklevel=2,
                )
        if not any(splits.values()):
            raise ValueError(f"There are no annotations, *.xml, in {folder}")
        splits = split_off_validation(splits, validation_split, split_seed)
        listed = dict.fromkeys(name for names in splits.values() for name in names)
        files = {name: folder / f"{name}.xml" for name in listed}

        def read(name):
            if name not in images:
                raise ValueError(f"{files[name]} has no image in {images_folder}")
            return _read_annotation(files[name])

        found, faults = find_faults(read, listed)
        annotations = {
            name: annotation
            for name, annotation in zip(listed, found, strict=True)
            if annotation
        }
        report_faults(
            [fault for fault in faults if fault],
            on_error,
            "annotations cannot be used",
            "their images left out",
        )
        _check_boxes(files, annotations, on_error)
        if not annotations:
            raise ValueError(f"There is no image that can be used in {path}")
        if classes is None:
            classes = sorted({o.name for a in annotations.values() for o in a.objects})
        classes = check_classes(classes)
        labels = {name: label for label, name in enumerate(classes)}
        for name, annotation in annotations.items():
            for thing in annotation.objects:
                if thing.name not in labels:
                    raise ValueError(
                        f"{files[name]} has an object that is none of {classes}: "
                        f"{thing.name!r}"
                    )

        def column(chosen, value, dtype, shape=()):
            values = [value(thing) for a in chosen for thing in a.objects]
            return tf.RaggedTensor.from_row_lengths(
                np.array(values, dtype).reshape(-1, *shape),
                [len(a.objects) for a in chosen],
            )

        columns = {}
        for split, names in splits.items():
            names = [name for name in names if name in annotations]
            chosen = [annotations[name] for name in names]
            columns[split] = {
                "image": [os.fspath(images[name]) for name in names],
                "size": [a.size for a in chosen],
                "bbox": column(chosen, lambda o: o.relative_box, "float32", (4,)),
                "label": column(chosen, lambda o: labels[o.name], "int64"),
                "is_difficult": column(chosen, lambda o: o.is_difficult, "bool"),
            }
        objects = {
            "bbox": tfds.features.BBoxFeature(),
            "label": tfds.features.ClassLabel(names=classes),
            "is_difficult": np.bool_,
        }
        features = {"objects": tfds.features.Sequence(objects)}
        super().__init__(path, features, columns, on_error)

    def _check(self, example):
        height, width = image_size(example["image"])
        if (height, width) != tuple(example["size"]):
            expected = " x ".join(str(side) for side in example["size"][::-1])
            raise ValueError(
                f"{example['image']} is {width} x {height} pixels (width x height, as "
                f"shown), and the <size> of its annotation says {expected}"
            )

    def _read(self, example):
        return {
            "image": decode_image(example["image"]),
            "image/filename": example["image"],
            "objects": {key: example[key] for key in ("bbox", "label", "is_difficult")},
        }


@dataclasses.dataclass
class _Object:
    """An object, and its box in pixels: (x1, y1, x2, y2), from 0."""

    name: str
    is_difficult: bool
    corners: tuple[float, float, float, float]  # as in the file, for messages
    size: tuple[int, int]

    def __post_init__(self):
        x1, y1, x2, y2 = self.corners
        self.is_sorted = x1 <= x2 and y1 <= y2
        if not self.is_sorted:
            x1, x2, y1, y2 = *sorted((x1, x2)), *sorted((y1, y2))
        # The first pixel ends where the second one begins, at 1.
        x1, y1 = x1 - 1, y1 - 1
        height, width = self.size
        self.is_inside = min(x1, y1) >= -1 and x2 <= width + 1 and y2 <= height + 1
        self.box = max(x1, 0), max(y1, 0), min(x2, width), min(y2, height)
        x1, y1, x2, y2 = self.box
        # Not so if one of them is NaN.
        self.has_pixels = x1 < x2 and y1 < y2 and math.isfinite(sum(self.corners))

    @property
    def relative_box(self) -> tuple[float, float, float, float]:
        """The box as TFDS has it: (y1, x1, y2, x2), from 0 to 1."""
        x1, y1, x2, y2 = self.box
        height, width = self.size
        return y1 / height, x1 / width, y2 / height, x2 / width

    @property
    def fault(self) -> str | None:
        """What is wrong with the box, if something is."""
        if not self.has_pixels:
            return "has no pixel in the image"
        if not self.is_sorted:
            return "has xmin > xmax or ymin > ymax"
        if not self.is_inside:
            return "is partly outside of the image"
        return None

    def __str__(self):
        corners = ", ".join(f"{x:g}" for x in self.corners)
        height, width = self.size
        return f"the box ({corners}) of {self.name!r} in {width} x {height} pixels"


@dataclasses.dataclass
class _Annotation:
    size: tuple[int, int]
    objects: list[_Object]


def _check_boxes(files: dict, annotations: dict, on_error: str) -> None:
    """Reports the boxes that are wrong, and skips or repairs them in place."""
    wrong = {
        name: [thing for thing in annotation.objects if thing.fault]
        for name, annotation in annotations.items()
    }
    wrong = {name: things for name, things in wrong.items() if things}
    faults = [
        f"{files[name]}: {thing} {thing.fault}"
        for name, things in wrong.items()
        for thing in things
    ]
    what = "boxes are wrong"
    if on_error == "raise":
        what += " (on_error='repair' sorts, cuts or leaves them out)"
        outcome = ""
    elif on_error == "skip":
        outcome = f"{len(wrong)} images left out"
        for name in wrong:
            del annotations[name]
    else:
        things = [thing for things in wrong.values() for thing in things]
        kept = [thing for thing in things if thing.has_pixels]
        counts = collections.Counter(
            {
                "sorted": sum(not thing.is_sorted for thing in kept),
                "cut to the image": sum(not thing.is_inside for thing in kept),
                "left out": len(things) - len(kept),
            }
        )
        outcome = "repaired (" + ", ".join(f"{n} {k}" for k, n in counts.items()) + ")"
        for name in wrong:
            objects = annotations[name].objects
            objects[:] = [thing for thing in objects if thing.has_pixels]
    report_faults(faults, on_error, what, outcome)


def _find_folder(path: Path, names: Sequence[str]) -> Path:
    """Returns the first folder of one of these names, or the path itself."""
    return next((path / name for name in names if (path / name).is_dir()), path)


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
            splits[split_name(file.stem)] = names
    if not any(splits.values()):
        raise ValueError(f"There are no lists of images, like train.txt, in {folder}")
    return {split: names for split, names in splits.items() if names}


def _image_name(line: str, images: dict[str, Path]) -> str:
    """Returns a line of a list without the ending that it may have."""
    stem, ending = os.path.splitext(line)
    return stem if line not in images and ending.lower() in IMAGE_SUFFIXES else line


def _read_annotation(file: Path) -> _Annotation:
    def text(element, path):
        found = element.findtext(path, "").strip()
        if not found:
            raise ValueError(f"there is no <{path}>")
        return found

    def number(element, path):
        return float(text(element, path))

    try:
        # What a file refers to is not read, and expat limits how far it unfolds.
        root = ElementTree.parse(file).getroot()
        size = int(number(root, "size/height")), int(number(root, "size/width"))
        if min(size) < 1:
            raise ValueError("its <size> must be positive")
        objects = [
            _Object(
                name=text(element, "name"),
                is_difficult=element.findtext("difficult", "").strip() == "1",
                corners=tuple(
                    number(element, f"bndbox/{key}")
                    for key in ("xmin", "ymin", "xmax", "ymax")
                ),
                size=size,
            )
            for element in root.findall("object")
        ]
    except (OSError, ElementTree.ParseError, ValueError, ArithmeticError) as error:
        raise ValueError(f"{file} cannot be used: {error}") from error
    return _Annotation(size, objects)
