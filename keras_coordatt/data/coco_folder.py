"""Images with boxes in COCO's JSON, as a TFDS builder for detection."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path

from keras_coordatt.data.box_folder import Annotation, Box, BoxFolder
from keras_coordatt.data.image_index import ImageIndex
from keras_coordatt.data.split_names import (
    SPLITS,
    name_splits,
    split_folders,
    split_name,
    split_off_validation,
)
from keras_coordatt.extras import install_hint
from keras_coordatt.files import read_text
from keras_coordatt.validation import check_on_error, check_path

# Files of the COCO data set that are not for detection.
_OTHER_TASKS = ("captions", "image_info", "panoptic", "person_keypoints", "stuff")
# Where COCO's keys are looked for in a file.
_HEAD = 4096
_KEYS = re.compile(rb'"(images|annotations|categories|licenses)"\s*:')


class COCOFolder(BoxFolder):
    """Images with boxes around their objects, in one or more JSON files of COCO's form.

    ```
    path/                                or    path/
      annotations/                               train/
        instances_train2017.json                   _annotations.coco.json
        instances_val2017.json                     0001.jpg
      train2017/                                 valid/
      val2017/                                   ...
    ```

    JSON files may be in the folder itself, in `annotations`, or in one folder per
    split. The name of a file, or else of its folder, says which split it is; a single
    file is train, unless its name says otherwise. Images are found by their
    `file_name`, wherever they are in the folder.

    Classes are all `categories`, in the order of their ids, whether they occur or not.
    An image without annotations has no objects. Boxes are where a viewer shows them.

    Like a TFDS data set, it has the features `image` and `objects`, with `bbox`,
    `label` and `is_crowd`, and splits that can be sliced. The files are read by
    pycocotools, and images are checked when their split is opened.

    Args:
        path: The folder, or one JSON file.
        classes: The names of the classes, in their order, which must be those of all
            objects. Defaults to the names of the categories.
        validation_split, split_seed, on_error: Same as in `VOCFolder`.

    Raises:
        ValueError: If a file is missing or cannot be used, or a box is not in its
            image, and `on_error` is `"raise"`; or no image is left.
        ImportError: If pycocotools is not installed.

    Example:

    >>> builder = COCOFolder("coco2017")
    >>> train = load_detection(builder, "train[:90%]", 320, shuffle=True)

    Reference:
        [COCO's data format](https://cocodataset.org/#format-data)
    """

    LAYOUT = "COCO (annotations.json)"
    MARK = "is_crowd"

    @classmethod
    def recognizes(cls, path):
        return bool(_find_files(path))

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
        files = _find_files(path)
        if not files:
            raise ValueError(f"There are no annotations, *.json, in {path}")
        if path.is_file():
            path = path.parent
            if path.name == "annotations":
                path = path.parent
        found = {}
        for file in files:
            name = _split_of(file, path)
            if name in found:
                raise ValueError(f"{found[name]} and {file} are both of {name!r}")
            found[name] = file
        sets = {
            split: _COCOFile(file, split_name(_split_of(file, path)))
            for split, file in name_splits(found).items()
        }
        if classes is None:
            ids = {
                id: name for coco in sets.values() for id, name in coco.names.items()
            }
            classes = list(dict.fromkeys(ids[id] for id in sorted(ids)))
        index = ImageIndex(path)
        splits = {
            split: [(split, id) for id in coco.ids] for split, coco in sets.items()
        }
        # Images set aside for validation are still in the JSON file of train.
        splits = split_off_validation(splits, validation_split, split_seed)

        def read(example):
            split, id = example
            return sets[split].read(id, index)

        super().__init__(path, splits, read, classes, on_error)


class _COCOFile:
    """One JSON file.

    Args:
        file: The file.
        split: The split that its name says, or any other name.

    Attributes:
        ids: The ids of its images.
        names: The names of its categories, by their ids.
    """

    def __init__(self, file: Path, split: str):
        try:
            from pycocotools import mask
            from pycocotools.coco import COCO
        except ImportError as error:
            raise ImportError(
                f"COCO's files need pycocotools: {install_hint('detection')}"
            ) from error

        self._file = file
        self._split = split
        self._mask = mask
        self._coco = COCO()
        try:
            # COCO(file) would read it in the machine's default encoding.
            self._coco.dataset = content = json.loads(read_text(file))
            for key in ("images", "annotations", "categories"):
                # pycocotools doesn't check these keys.
                list(content[key])
            with contextlib.redirect_stdout(io.StringIO()):
                self._coco.createIndex()
            self.ids = self._coco.getImgIds()
            self.names = {id: str(c["name"]) for id, c in self._coco.cats.items()}
            if lost := self._coco.imgToAnns.keys() - self._coco.imgs.keys():
                warnings.warn(
                    f"{file} has annotations of {len(lost)} images that it does not "
                    f"have, such as {min(lost)}",
                    stacklevel=2,
                )
        except (
            LookupError,
            TypeError,
            ValueError,
            AttributeError,
            RecursionError,
        ) as error:
            raise ValueError(
                f"{file} is not a COCO file: {type(error).__name__}: {error}"
            ) from error

    def read(self, id: int, index: ImageIndex) -> Annotation:
        """Returns the annotation of an image."""
        image = self._coco.imgs[id]
        try:
            name = image["file_name"]
            if not isinstance(name, str):
                raise ValueError(f"its file_name must be a string, not {name!r}")
            file = index.find(name, near=self._file.parent, split=self._split)
            size = int(image["height"]), int(image["width"])
            if min(size) < 1:
                raise ValueError("height and width must be positive")
            found = self._coco.imgToAnns.get(id, [])
            boxes = [self._read_box(annotation, size) for annotation in found]
        except (LookupError, TypeError, ValueError, ArithmeticError) as error:
            what = f"no {error}" if isinstance(error, KeyError) else error
            raise ValueError(
                f"{self._file}: image {id} cannot be used: {what}"
            ) from error
        return Annotation(file, self._file, boxes, size)

    def _read_box(self, annotation: dict, size: tuple[int, int]) -> Box:
        numbers = annotation.get("bbox")
        if not numbers:
            try:
                rle = self._coco.annToRLE(annotation)
            except Exception as error:  # pycocotools has no type of its own
                raise ValueError(
                    f"annotation {annotation.get('id')} has no box, and its "
                    f"segmentation cannot be read: {error}"
                ) from error
            numbers = self._mask.toBbox(rle).tolist()
        x, y, width, height = map(float, numbers)
        return Box(
            name=self.names[annotation["category_id"]],
            corners=(
                min(x, x + width),
                min(y, y + height),
                max(x, x + width),
                max(y, y + height),
            ),
            size=size,
            tolerance=1,
            text=f"[{x:g}, {y:g}, {width:g}, {height:g}] (annotation "
            f"{annotation.get('id')})",
            mark=bool(annotation.get("iscrowd", 0)),
            is_sorted=width >= 0 and height >= 0,
        )


def _find_files(path: Path) -> list[Path]:
    """Returns the JSON files for detection of a folder, or the file itself."""
    if path.is_file():
        return [path] if path.suffix.lower() == ".json" else []
    folders = [path, path / "annotations", *split_folders(path).values()]
    files = [file for folder in folders for file in sorted(folder.glob("[!.]*.json"))]
    files = [file for file in files if not file.name.startswith(_OTHER_TASKS)]
    files = [file for file in files if _KEYS.search(_head(file))]
    instances = [file for file in files if file.name.startswith("instances")]
    return instances or files


def _head(file: Path) -> bytes:
    with open(file, "rb") as stream:
        return stream.read(_HEAD)


def _split_of(file: Path, path: Path) -> str:
    """Returns the name of a file's split, as the file or its folder has it."""
    for word in re.split(r"[\W_]+", file.stem):
        if split_name(word) in SPLITS:
            return split_name(word)
    if file.parent != path and split_name(file.parent.name) in SPLITS:
        return file.parent.name
    return file.stem
