"""Folders in the layout of Pascal VOC, as TFDS builders for detection."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from keras_coordatt.data.box_folder import Annotation, Box, BoxFolder
from keras_coordatt.data.folder import images_by_name
from keras_coordatt.data.reading import list_folder
from keras_coordatt.data.split_names import (
    read_lists,
    split_folders,
    split_off_validation,
)
from keras_coordatt.validation import check_on_error, check_path

_IMAGES = ("JPEGImages", "images", "Images")
_ANNOTATIONS = ("Annotations", "annotations")


class VOCFolder(BoxFolder):
    """Images with boxes around their objects, in the layout of Pascal VOC.

    ```
    path/
      JPEGImages/        # 000005.jpg, or another format
      Annotations/       # 000005.xml
      ImageSets/Main/    # train.txt, test.txt, ...: one image per line, like 000005
    ```

    The folders may be called `images` and `annotations` too, or all files may be in one
    folder. Without lists, the folders may be in `train`, `val` and `test`; otherwise all
    images with an annotation are train. The lists `val` and `valid` are called
    validation.

    Like a TFDS data set, it has the features `image` and `objects`, with `bbox`,
    `label` and `is_difficult`, and splits that can be sliced. Annotations are checked
    at once, and images when their split is opened, before training starts.

    The corners of boxes are pixels that belong to the box, counted from 1, as in Pascal
    VOC; TFDS's own `"voc"` takes them for distances from 0, up to a pixel less. As many
    tools count from 0, one pixel outside the image is cut off silently. Boxes are
    where a viewer shows them: images are turned as their EXIF orientation says.

    Args:
        path: The folder.
        classes: The names of the classes, in their order. Defaults to those of all
            objects, in alphabetical order.
        validation_split: The part of `train` to use as `validation`, in (0, 1), if
            there is none. It is another part once an image is added or removed.
            Defaults to none.
        split_seed: An integer that determines this part. Defaults to 0.
        on_error: How to treat unusable boxes and files. `"raise"`: one error that lists
            all boxes, or files, that are wrong. `"skip"`: leave out the images with
            such boxes or files. `"repair"`: sort the corners of boxes that are swapped,
            cut boxes to the image, leave out boxes without a pixel in it, and leave out
            images whose files cannot be used. For the latter two, one warning counts
            and names the changes. Defaults to `"raise"`.

    Raises:
        ValueError: If a file is missing or cannot be used, or a box is not in its
            image, and `on_error` is `"raise"`; or no image is left.

    Example:

    >>> builder = VOCFolder("VOCdevkit/VOC2007")
    >>> builder.info.features["objects"]["label"].names
    ['thing']
    >>> train = load_detection(builder, "train[:90%]", 320, shuffle=True)

    Reference:
        [The PASCAL Visual Object Classes Challenge 2007](
        http://host.robots.ox.ac.uk/pascal/VOC/voc2007/)
    """

    LAYOUT = "Pascal VOC (Annotations/1.xml)"
    MARK = "is_difficult"

    @classmethod
    def recognizes(cls, path):
        folders = [path, *split_folders(path).values()] if path.is_dir() else []
        return any(_annotations(folder) for folder in folders)

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
        path = Path(check_path("path", path)).expanduser()
        splits = _find_examples(path)
        splits = split_off_validation(splits, validation_split, split_seed)
        super().__init__(path, splits, _read_annotation, classes, on_error)


# An image, if there is one, and its annotation.
_Example = tuple[Path | None, Path]


def _find_examples(path: Path) -> dict[str, list[_Example]]:
    """Returns the examples of each split."""
    images_folder = _find_folder(path, _IMAGES)
    lists = path / "ImageSets" / "Main"
    if lists.is_dir():
        images = images_by_name(images_folder)
        folder = _find_folder(path, _ANNOTATIONS)
        return {
            split: [(images.get(name), folder / f"{name}.xml") for name in names]
            for split, names in read_lists(lists, images).items()
        }
    folders = {s: f for s, f in split_folders(path).items() if _annotations(f)}
    if _annotations(path) or not folders:
        folders = {"train": path}
    return {split: _pair(folder) for split, folder in folders.items()}


def _pair(path: Path) -> list[_Example]:
    """Returns the examples of a folder without lists."""
    folder = _find_folder(path, _IMAGES)
    images = images_by_name(folder)
    annotations = _annotations(path)
    if not annotations:
        raise ValueError(
            f"There are no annotations, *.xml, in {_find_folder(path, _ANNOTATIONS)}"
        )
    if unlisted := sorted(images.keys() - {file.stem for file in annotations}):
        warnings.warn(
            f"{len(unlisted)} images in {folder} have no annotation and are left out, "
            f"such as {unlisted[0]!r}",
            stacklevel=2,
        )
    return [(images.get(file.stem), file) for file in annotations]


def _annotations(path: Path) -> list[Path]:
    files = list_folder(_find_folder(path, _ANNOTATIONS))[1]
    return [file for file in files if file.suffix.lower() == ".xml"]


def _find_folder(path: Path, names: Sequence[str]) -> Path:
    """Returns the first folder of one of these names, or the path itself."""
    return next((path / name for name in names if (path / name).is_dir()), path)


def _read_annotation(example: _Example) -> Annotation:
    image, file = example
    if image is None:
        raise ValueError(f"{file} has no image of the same name")
    try:
        # Expat reads no external entities, and limits the expansion of internal ones.
        root = ElementTree.parse(file).getroot()
        size = int(_number(root, "size/height")), int(_number(root, "size/width"))
        if min(size) < 1:
            raise ValueError("its <size> must be positive")
        boxes = [_read_box(element, size) for element in root.findall("object")]
    except (
        OSError,
        ElementTree.ParseError,
        ValueError,
        ArithmeticError,
        LookupError,  # an unknown encoding
    ) as error:
        raise ValueError(f"{file} cannot be used: {error}") from error
    return Annotation(image, file, boxes, size)


def _read_box(element: ElementTree.Element, size: tuple[int, int]) -> Box:
    corners = [
        _number(element, f"bndbox/{key}") for key in ("xmin", "ymin", "xmax", "ymax")
    ]
    x1, y1, x2, y2 = corners
    is_sorted = x1 <= x2 and y1 <= y2
    if not is_sorted:
        x1, x2, y1, y2 = *sorted((x1, x2)), *sorted((y1, y2))
    return Box(
        name=_text(element, "name"),
        # The first pixel ends where the second one begins, at 1.
        corners=(x1 - 1, y1 - 1, x2, y2),
        size=size,
        tolerance=1,
        text=f"({', '.join(f'{x:g}' for x in corners)})",
        mark=element.findtext("difficult", "").strip() == "1",
        is_sorted=is_sorted,
    )


def _text(element: ElementTree.Element, path: str) -> str:
    found = element.findtext(path, "").strip()
    if not found:
        raise ValueError(f"there is no <{path}>")
    return found


def _number(element: ElementTree.Element, path: str) -> float:
    return float(_text(element, path))
