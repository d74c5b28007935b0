"""Summary of a data set, and of how SSD's default boxes fit its objects."""

import dataclasses
import os
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from keras_coordatt.data.box_shapes import Shapes, find_matched, fit_box_shapes
from keras_coordatt.data.folder import Folder
from keras_coordatt.data.opening import class_names, find_task, open_data, splits
from keras_coordatt.record import IGNORED
from keras_coordatt.validation import height_and_width

# Number of smallest boxes to list, and percentiles of sides to show.
_SMALLEST = 3
_PERCENTILES = (1, 10, 50)
# Below this share, also try twice the image size.
_ENOUGH = 0.9


@dataclasses.dataclass(frozen=True)
class SplitReport:
    """One split.

    Attributes:
        images: Number of images that can be used.
        unreadable: Number of images that cannot be read, or are not of the size that
            their annotation or mask has.
        sizes: Width and height of the smallest, median and largest image by area.
        class_images: For each class, the number of images that have it.
        class_objects: For each class, the number of objects; of masks, the share of
            pixels; of labeled images, that of images again.
    """

    images: int
    unreadable: int
    sizes: list[tuple[int, int]]
    class_images: dict[str, int]
    class_objects: dict[str, float]


@dataclasses.dataclass(frozen=True)
class BoxReport:
    """The boxes that a detector is trained on.

    Attributes:
        image_size: Height and width to which images are resized.
        smallest: Width and height of the smallest boxes after resizing, in pixels, and
            the files of their images.
        sides: Percentiles of the square roots of areas after resizing, in pixels.
        most: The largest number of boxes in an image.
        left_out: Number of boxes that are crowds or difficult, and so not trained on.
        matched: The share of boxes that have a default box of an IoU above 0.5.
        class_matched: The same for each class.
        box_shapes: Shapes of default boxes that fit these boxes: an argument of
            `SSDLite`.
        fitted: The share of boxes that have one of these.
        larger: The share at twice the image size, with shapes that fit there; `None`
            if the first one is enough.
    """

    image_size: tuple[int, int]
    smallest: list[tuple[float, float, str]]
    sides: dict[int, float]
    most: int
    left_out: int
    matched: float
    class_matched: dict[str, float]
    box_shapes: Shapes
    fitted: float
    larger: float | None


@dataclasses.dataclass(frozen=True)
class DataReport:
    """Summary of a data set: `str` makes it a text, `dataclasses.asdict` plain data.

    Attributes:
        name: What was opened.
        task: `"classification"`, `"detection"` or `"segmentation"`.
        layout: How it is stored.
        classes: The names of the classes.
        splits: The splits by their names.
        boxes: For detection, the boxes of `train`, or else of the first split.
        remarks: Faults, and files that were left out.
    """

    name: str
    task: str
    layout: str
    classes: list[str]
    splits: dict[str, SplitReport]
    boxes: BoxReport | None
    remarks: list[str]

    def __str__(self):
        lines = [f"{self.name}: {self.task}, {self.layout}", ""]
        lines += _table(
            [
                "split",
                "images",
                "unreadable",
                "width x height: smallest, median, largest",
            ],
            [
                [
                    name,
                    f"{split.images:,}",
                    f"{split.unreadable:,}",
                    ", ".join(f"{width} x {height}" for width, height in split.sizes),
                ]
                for name, split in self.splits.items()
            ],
        )
        head = {
            "classification": "images",
            "detection": "images (objects)",
            "segmentation": "images (pixels)",
        }[self.task]
        lines += ["", f"Classes: {head}"]
        lines += _table(
            ["", *self.splits],
            [
                [name, *(self._count(split, name) for split in self.splits.values())]
                for name in self.classes
            ],
        )
        if self.boxes:
            lines += ["", *_box_lines(self.boxes)]
        lines += ["", *self.remarks] if self.remarks else []
        return "\n".join(lines)

    def _count(self, split, name):
        images, objects = split.class_images[name], split.class_objects[name]
        if self.task == "classification":
            return f"{images:,}"
        if self.task == "detection":
            return f"{images:,} ({objects:,})"
        return f"{images:,} ({objects:.1%})"


def describe_data(
    name: str | os.PathLike | tfds.core.DatasetBuilder,
    task: str | None = None,
    *,
    image_size: int | tuple[int, int] = 320,
    validation_split: float | None = None,
    split_seed: int = 0,
    data_dir: str | os.PathLike | None = None,
) -> DataReport:
    """Reads a complete data set, and summarizes its contents and faults.

    Args:
        name: Same as in `open_data`. Files of a folder that cannot be used are left out
            and reported.
        task, validation_split, split_seed, data_dir: Same as in `open_data`.
        image_size: The height and width of images in a detector, as a pair or as one
            integer, for which default boxes are compared with the objects.

    Returns:
        The report.

    Raises:
        ValueError: If there is no such data set, nothing in it can be used, or an
            argument is invalid.

    Example:

    >>> report = describe_data("VOCdevkit/VOC2007", image_size=320)
    >>> print(report)
    >>> report.classes
    ['thing']
    >>> detector = SSDLite(
    ...     backbone, len(report.classes), box_shapes=report.boxes.box_shapes
    ... )
    """
    size = height_and_width(image_size)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        builder: tfds.core.DatasetBuilder = name
        if isinstance(name, str | os.PathLike):
            on_error = "skip" if os.path.exists(os.path.expanduser(name)) else "raise"
            builder = open_data(
                name,
                task,
                data_dir=data_dir,
                on_error=on_error,
                validation_split=validation_split,
                split_seed=split_seed,
            )
        task = task or find_task(builder)
        examples = {
            split: list(_examples(builder, split, task)) for split in splits(builder)
        }
    remarks = [str(w.message) for w in caught if issubclass(w.category, UserWarning)]
    classes = class_names(builder, task)
    if classes is None:
        labels = np.concatenate([x["label"] for s in examples.values() for x in s])
        classes = [f"class_{i}" for i in range(int(labels.max(initial=-1)) + 1)]
    if len(classes) < 2 and task != "detection":
        remarks.append(f"One class is not enough to train for {task}")
    first = "train" if "train" in examples else next(iter(examples))
    is_path = isinstance(name, str | os.PathLike)
    detects = task == "detection"
    return DataReport(
        name=str(name) if is_path else builder.info.full_name,
        task=task,
        layout=getattr(builder, "LAYOUT", None) or "TFDS",
        classes=classes,
        splits={
            split: _describe_split(found, splits(builder)[split], classes, task)
            for split, found in examples.items()
        },
        boxes=_describe_boxes(examples[first], size, classes) if detects else None,
        remarks=remarks,
    )


def _examples(builder, split: str, task: str) -> Iterator[dict[str, Any]]:
    """Yields the file, size, labels and amounts, and for detection boxes."""
    if isinstance(builder, Folder):
        read, examples = _of_folder, builder.facts(split)
    else:
        read, examples = _of_tfds, builder.as_dataset(split=split).as_numpy_iterator()
    for example in examples:
        yield read(example, task)


def _of_folder(example, task):
    found = {"file": example["image"], "size": example["size"]}
    if task == "segmentation":
        labels = np.flatnonzero(example["pixels"])
        return {**found, "label": labels, "amount": example["pixels"][labels]}
    return {**found, **_labels(example, task)}


def _of_tfds(example, task):
    file = example.get("image/filename", example.get("file_name", b""))
    file = file.decode() if isinstance(file, bytes) else str(file)
    found = {"file": file, "size": example["image"].shape[:2]}
    if task == "segmentation":
        mask = example["segmentation_mask"]
        labels, amount = np.unique(mask[mask != IGNORED], return_counts=True)
        return {**found, "label": labels, "amount": amount}
    return {**found, **_labels(example.get("objects", example), task)}


def _labels(example, task):
    labels = np.atleast_1d(example["label"])
    if task == "classification":
        return {"label": labels, "amount": np.ones(1, int)}
    kept = np.ones(len(labels), bool)
    for mark in ("is_crowd", "is_difficult"):
        if mark in example:
            kept &= ~example[mark]
    return {
        "label": labels[kept],
        "amount": np.ones(kept.sum(), int),
        "boxes": example["bbox"][kept][:, [1, 0, 3, 2]],
        "left_out": int((~kept).sum()),
    }


def _describe_split(examples, count, classes, task):
    order = sorted(range(len(examples)), key=lambda i: np.prod(examples[i]["size"]))
    sizes = [examples[order[i]]["size"] for i in (0, len(order) // 2, -1)]
    images, amounts = np.zeros(len(classes), int), np.zeros(len(classes), int)
    for example in examples:
        images[np.unique(example["label"])] += 1
        np.add.at(amounts, example["label"], example["amount"])
    if task == "segmentation":
        amounts = amounts / max(amounts.sum(), 1)
    return SplitReport(
        images=len(examples),
        unreadable=count - len(examples),
        sizes=[(int(width), int(height)) for height, width in sizes],
        class_images=dict(zip(classes, images.tolist(), strict=True)),
        class_objects=dict(zip(classes, amounts.tolist(), strict=True)),
    )


def _describe_boxes(examples, image_size, classes):
    boxes = np.concatenate([example["boxes"] for example in examples])
    if not len(boxes):
        return None
    labels = np.concatenate([example["label"] for example in examples])
    files = [example["file"] for example in examples for _ in example["boxes"]]
    sides = (boxes[:, 2:] - boxes[:, :2]) * image_size[::-1]
    lengths = np.sqrt(np.prod(sides, axis=1))
    matched = find_matched(boxes, image_size)
    shapes = fit_box_shapes(boxes, image_size)
    fitted = find_matched(boxes, image_size, shapes).mean()
    larger = None
    if fitted < _ENOUGH:
        twice = image_size[0] * 2, image_size[1] * 2
        larger = find_matched(boxes, twice, fit_box_shapes(boxes, twice)).mean()
    return BoxReport(
        image_size=image_size,
        smallest=[
            (*sides[i].round(1).tolist(), files[i])
            for i in lengths.argsort()[:_SMALLEST]
        ],
        sides={p: round(float(np.percentile(lengths, p)), 1) for p in _PERCENTILES},
        most=max(len(example["boxes"]) for example in examples),
        left_out=sum(example["left_out"] for example in examples),
        matched=float(matched.mean()),
        class_matched={
            name: float(matched[labels == label].mean())
            for label, name in enumerate(classes)
            if (labels == label).any()
        },
        box_shapes=shapes,
        fitted=float(fitted),
        larger=None if larger is None else float(larger),
    )


def _box_lines(boxes: BoxReport) -> list[str]:
    height, width = boxes.image_size
    smallest = (
        f"{w:g} x {h:g}{file and f' ({file})'}" for w, h, file in boxes.smallest
    )
    sides = (f"{side:g} ({p} %)" for p, side in boxes.sides.items())
    classes = (f"{name} {share:.1%}" for name, share in boxes.class_matched.items())
    lines = [
        f"Boxes at {width} x {height} pixels",
        f"  smallest   {', '.join(smallest)}",
        f"  side       {', '.join(sides)}: percentiles of the square root of the area",
        f"  per image  up to {boxes.most}",
        f"  matched    {boxes.matched:.1%} have a default box of IoU above 0.5",
        f"             {', '.join(classes)}",
        f"  fitted     {boxes.fitted:.1%} would have one with",
        "             box_shapes=[",
        *(f"                 {shapes}," for shapes in boxes.box_shapes),
        "             ]",
    ]
    if boxes.left_out:
        lines.append(f"  left out   {boxes.left_out} crowds or difficult objects")
    if boxes.larger is not None:
        lines.append(
            f"  larger     {boxes.larger:.1%} with such shapes at "
            f"{2 * width} x {2 * height} pixels"
        )
    return lines


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Formats a table, with all columns but the first to the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return [
        "  "
        + "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in [head, *rows]
    ]
