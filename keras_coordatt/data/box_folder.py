"""Base class of the folders of images with boxes, as TFDS builders for detection."""

from __future__ import annotations

import collections
import dataclasses
import math
import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from keras_coordatt.data.folder import Folder, check_classes, decode_image
from keras_coordatt.data.reading import find_faults, image_size, report_faults

Example = TypeVar("Example", bound=Hashable)


@dataclasses.dataclass(slots=True)
class Box:
    """An object and its box.

    Attributes:
        name: The class.
        corners: (x1, y1, x2, y2), distances from the upper left corner.
        size: Height and width of the image, in the unit of the corners.
        tolerance: How far outside of the image a box may end without being wrong.
        text: The box as in the file, for messages.
        mark: Whether the object is marked, such as `is_difficult`.
        is_sorted: Whether the corners are in order in the file.
        is_inside: Whether the box is in the image in the file.
        has_pixels: Whether something is left of the box in the image.
    """

    name: str
    corners: tuple[float, float, float, float]
    size: tuple[float, float]
    tolerance: float
    text: str
    mark: bool = False
    is_sorted: bool = True
    is_inside: bool = dataclasses.field(init=False)
    has_pixels: bool = dataclasses.field(init=False)

    def __post_init__(self):
        x1, y1, x2, y2 = self.corners
        height, width = self.size
        self.is_inside = (
            min(x1, y1) >= -self.tolerance
            and x2 <= width + self.tolerance
            and y2 <= height + self.tolerance
        )
        self.corners = x1, y1, x2, y2 = (
            max(x1, 0),
            max(y1, 0),
            min(x2, width),
            min(y2, height),
        )
        # False if one of them is NaN.
        self.has_pixels = x1 < x2 and y1 < y2 and math.isfinite(x1 + y1 + x2 + y2)

    @property
    def relative(self) -> tuple[float, float, float, float]:
        """The box as TFDS has it: (y1, x1, y2, x2), from 0 to 1."""
        x1, y1, x2, y2 = self.corners
        height, width = self.size
        return y1 / height, x1 / width, y2 / height, x2 / width

    @property
    def fault(self) -> str | None:
        """What is wrong with the box, or `None`."""
        if not self.has_pixels:
            reason = "has no pixel in the image"
        elif not self.is_sorted:
            reason = "has xmin > xmax or ymin > ymax"
        elif not self.is_inside:
            reason = "is partly outside of the image"
        else:
            return None
        return f"the box {self.text} of {self.name!r} {reason}"


@dataclasses.dataclass
class Annotation:
    """The boxes of an image.

    Attributes:
        image: The image's file.
        file: The file with the boxes, for messages.
        boxes: The boxes.
        size: Height and width of the image that the file states, if it does.
    """

    image: Path
    file: Path
    boxes: list[Box]
    size: tuple[int, int] | None = None


class BoxFolder(Folder):
    """Base class of the builders of images with boxes around their objects.

    Args:
        path: The folder.
        splits: For each split, its examples: arguments of `read`.
        read: Returns the annotation of an example, or raises a ValueError that names
            the file.
        classes: The names of the classes; `None` for those of all objects, in
            alphabetical order.
        on_error: Same as in `VOCFolder`.

    Raises:
        ValueError: If files or boxes cannot be used, and `on_error` is `"raise"`; or no
            image is left.
    """

    # Name of the feature for `Box.mark`, if the layout has one.
    MARK: str | None = None

    def __init__(
        self,
        path: Path,
        splits: Mapping[str, Sequence[Example]],
        read: Callable[[Example], Annotation],
        classes: Sequence[str] | None,
        on_error: str,
    ):
        # Splits may share images.
        examples = list(dict.fromkeys(x for split in splits.values() for x in split))
        found, faults = find_faults(read, examples)
        report_faults(
            faults, on_error, "annotations cannot be used", "their images left out"
        )
        annotations = {
            example: annotation
            for example, annotation in zip(examples, found, strict=True)
            if annotation
        }
        _check_boxes(annotations, on_error)
        if not annotations:
            raise ValueError(f"There is no image that can be used in {path}")
        if classes is None:
            classes = sorted({b.name for a in annotations.values() for b in a.boxes})
            if not classes:
                raise ValueError(f"There is no object in any image of {path}")
        labels = {name: label for label, name in enumerate(check_classes(classes))}
        for annotation in annotations.values():
            for box in annotation.boxes:
                if box.name not in labels:
                    raise ValueError(
                        f"{annotation.file} has an object that is none of `classes`, "
                        f"{list(labels)}: {box.name!r}"
                    )

        columns = {}
        for split, listed in splits.items():
            chosen = [annotations[x] for x in listed if x in annotations]
            if chosen:
                columns[split] = self._columns(chosen, labels)
        objects = {
            "bbox": tfds.features.BBoxFeature(),
            "label": tfds.features.ClassLabel(names=list(labels)),
        }
        if self.MARK:
            objects[self.MARK] = np.bool_
        features = {"objects": tfds.features.Sequence(objects)}
        super().__init__(path, features, columns, on_error)

    def _columns(self, annotations: list[Annotation], labels: dict[str, int]) -> dict:
        def column(value, dtype, shape=()):
            values = [value(box) for a in annotations for box in a.boxes]
            return tf.RaggedTensor.from_row_lengths(
                np.array(values, dtype).reshape(-1, *shape),
                [len(a.boxes) for a in annotations],
            )

        columns = {
            "image": [os.fspath(a.image) for a in annotations],
            "size": [a.size or (0, 0) for a in annotations],
            "bbox": column(lambda box: box.relative, "float32", (4,)),
            "label": column(lambda box: labels[box.name], "int64"),
        }
        if self.MARK:
            columns[self.MARK] = column(lambda box: box.mark, "bool")
        return columns

    def _check(self, example):
        height, width = image_size(example["image"])
        stated = tuple(example["size"])
        if stated not in ((height, width), (0, 0)):
            raise ValueError(
                f"{example['image']} is {width} x {height} pixels (width x height, as "
                f"shown), and its annotation says {stated[1]} x {stated[0]}"
            )
        return {"size": (height, width)}

    def _read(self, example):
        objects = {
            name: example[name]
            for name in ("bbox", "label", self.MARK)
            if name in example
        }
        return {
            "image": decode_image(example["image"]),
            "image/filename": example["image"],
            "objects": objects,
        }


def _check_boxes(annotations: dict[Example, Annotation], on_error: str) -> None:
    """Reports the boxes that are wrong, and skips or repairs them in place."""
    wrong = {
        example: [box for box in annotation.boxes if box.fault]
        for example, annotation in annotations.items()
    }
    wrong = {example: boxes for example, boxes in wrong.items() if boxes}
    faults = [
        f"{annotations[example].file}: {box.fault}"
        for example, boxes in wrong.items()
        for box in boxes
    ]
    what = "boxes are wrong"
    if on_error == "raise":
        what += " (`on_error='repair'` sorts, cuts or leaves them out)"
        outcome = ""
    elif on_error == "skip":
        outcome = f"{len(wrong)} images left out"
        for example in wrong:
            del annotations[example]
    else:
        boxes = [box for boxes in wrong.values() for box in boxes]
        kept = [box for box in boxes if box.has_pixels]
        counts = collections.Counter(
            {
                "sorted": sum(not box.is_sorted for box in kept),
                "cut to the image": sum(not box.is_inside for box in kept),
                "left out": len(boxes) - len(kept),
            }
        )
        outcome = "repaired (" + ", ".join(f"{n} {k}" for k, n in counts.items()) + ")"
        for example in wrong:
            annotation = annotations[example]
            annotation.boxes = [box for box in annotation.boxes if box.has_pixels]
    report_faults(faults, on_error, what, outcome)
