"""Images with boxes in YOLO's text files, as a TFDS builder for detection."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import yaml

from keras_coordatt.data.box_folder import Annotation, Box, BoxFolder
from keras_coordatt.data.folder import check_classes
from keras_coordatt.data.reading import IMAGE_SUFFIXES, list_folder
from keras_coordatt.data.split_names import (
    SPLITS,
    name_splits,
    split_folders,
    split_name,
    split_off_validation,
    warn_of_shared_images,
)
from keras_coordatt.files import read_text
from keras_coordatt.validation import check_on_error, check_path

# Files with class names, which lie beside the label files.
_NAMES = ("classes.txt", "obj.names", "labels/classes.txt")
# Boxes may reach this far out of the image, as their numbers are rounded.
_TOLERANCE = 0.01
# Larger numbers of classes are mistakes, and would fill the memory.
_MOST_CLASSES = 100_000


class YOLOFolder(BoxFolder):
    """Images with boxes around their objects, in YOLO's text files.

    ```
    path/                       or    path/
      data.yaml                         data.yaml
      images/train/0001.jpg             train/images/0001.jpg
      labels/train/0001.txt             train/labels/0001.txt
      images/val/...                    valid/...
    ```

    `data.yaml` says where the images of `train`, `val` and `test` are (folders, lists
    of folders, or text files with one image per line), and the `names` of the classes.
    Without it, the folders say which split they are, or all images are train, and
    `classes.txt` or `obj.names` has the names. Labels are in the folder `labels` beside
    `images`, or beside their images.

    A line of a label file is a class and a box: its center, width and height, from 0
    to 1. Of polygons (a class and three or more points), the box around them is taken.
    A line or an image that is repeated counts once. An image without a label file has
    no objects. Boxes are where a viewer shows them.

    Like a TFDS data set, it has the features `image` and `objects`, with `bbox` and
    `label`, and splits that can be sliced. Labels are checked at once, and images when
    their split is opened.

    Args:
        path: The folder, or its data.yaml.
        classes: The names of the classes, instead of those of the files.
        validation_split, split_seed, on_error: Same as in `VOCFolder`.

    Raises:
        ValueError: If a file is missing or cannot be used, or a box is not in its
            image, and `on_error` is `"raise"`; or no image is left.

    Example:

    >>> builder = YOLOFolder("coco128")
    >>> train = load_detection(builder, "train[:90%]", 320, shuffle=True)

    Reference:
        [YOLO's data format](https://docs.ultralytics.com/datasets/detect/)
    """

    LAYOUT = "YOLO (data.yaml or labels/1.txt)"

    @classmethod
    def recognizes(cls, path):
        if path.is_file():
            return path.suffix.lower() in (".yaml", ".yml")
        return bool(_find_configs(path)) or any(
            _looks_like_labels(folder) for folder, _ in _image_folders(path)
        )

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
        configs = [path] if path.is_file() else _find_configs(path)
        if len(configs) > 1:
            raise ValueError(
                f"{path} has several data sets: pass one of "
                f"{', '.join(map(str, configs))}"
            )
        if configs:
            path = configs[0].parent
            config = _read_config(configs[0])
            splits = _configured(config, configs[0])
        else:
            config = {}
            found = {}
            for folder, split in _image_folders(path):
                found.setdefault(split, []).extend(list_folder(folder)[0])
            splits = name_splits({s: images for s, images in found.items() if images})
        if not any(splits.values()):
            raise ValueError(f"There are no images with YOLO's labels in {path}")
        if classes is not None:
            classes = check_classes(classes)
        else:
            classes = _class_names(config, path)
            try:
                check_classes(classes)
            except ValueError as error:
                raise ValueError(
                    f"The class names of {path} cannot be used: {error}"
                ) from error
        warn_of_shared_images(splits, path)
        if splits.get("validation") == splits.get("train") and validation_split:
            del splits["validation"]
        images = {image for listed in splits.values() for image in listed}
        _check_label_files(images, path)
        splits = split_off_validation(splits, validation_split, split_seed)
        # With keypoints, lines continue after the box.
        has_keypoints = "kpt_shape" in config

        def read(image):
            return _read_labels(image, classes, has_keypoints)

        super().__init__(path, splits, read, classes, on_error)


def _read_config(file: Path) -> dict:
    try:
        config = yaml.safe_load(read_text(file))
    # PyYAML doesn't catch the errors of int() and datetime.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{file} cannot be used: {error}") from error
    return config if isinstance(config, dict) else {}


def _find_configs(path: Path) -> list[Path]:
    """Returns the files in a folder that are like a data.yaml."""
    files = [
        file for end in ("yaml", "yml") for file in sorted(path.glob(f"[!.]*.{end}"))
    ]
    return [f for f in files if {"train", "val", "test"} & _read_config(f).keys()]


def _configured(config: dict, file: Path) -> dict[str, list[Path]]:
    """Returns the images of each split of a data.yaml."""
    # `path` may be of another machine.
    root = file.parent / str(config.get("path") or "")
    root = root if root.is_dir() else file.parent
    splits = {}
    for split in ("train", "val", "test"):
        entries = config.get(split) or []
        images = []
        for entry in entries if isinstance(entries, list) else [entries]:
            images += _configured_images(str(entry), root, file)
        if images:
            # Lists may repeat an image.
            by_path = {os.path.abspath(image): image for image in images}
            splits[split] = list(by_path.values())
    return name_splits(splits)


def _configured_images(entry: str, root: Path, file: Path) -> list[Path]:
    # Some tools write "../train/images" for a folder beside the file.
    inside = Path(*[part for part in Path(entry).parts if part != ".."])
    for where in (root / entry, file.parent / entry, root / inside):
        if where.is_dir():
            return [
                Path(folder, name)
                for folder, _, names in sorted(os.walk(where))
                for name in sorted(names)
                if not name.startswith(".")
                and Path(name).suffix.lower() in IMAGE_SUFFIXES
            ]
        if where.is_file():
            lines = [line.strip() for line in read_text(where).splitlines()]
            return [_listed_image(line, where.parent, root) for line in lines if line]
    warnings.warn(f"{file} names {entry!r}, which does not exist", stacklevel=2)
    return []


def _listed_image(line: str, *folders: Path) -> Path:
    """Returns an image of a list, whose path may be relative to any of the folders."""
    found = [folder / line for folder in folders]
    return next((image for image in found if image.is_file()), found[0])


def _image_folders(path: Path) -> list[tuple[Path, str]]:
    """Returns the folders that may have images with labels, and their splits."""
    folders = [path, path / "images", path / "obj_train_data"]
    folders += list_folder(path / "images")[2]
    for folder in split_folders(path).values():
        folders += [folder, folder / "images"]
    found = []
    for folder in folders:
        if _label_files(folder):
            names = [
                n for n in folder.relative_to(path).parts if split_name(n) in SPLITS
            ]
            found.append((folder, names[0] if names else "train"))
    return found


def _label_folder(folder: Path) -> Path:
    """Returns the folder of the labels of a folder of images."""
    parts = list(folder.parts)
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
        if Path(*parts).is_dir():
            return Path(*parts)
    return folder


def _label_files(folder: Path) -> list[Path]:
    files = sorted(_label_folder(folder).glob("[!.]*.txt"))
    return [file for file in files if file.name != "classes.txt"]


def _looks_like_labels(folder: Path) -> bool:
    """Returns whether one of the first label files of a folder begins with a box."""
    for file in _label_files(folder)[:20]:
        try:
            words = read_text(file).split()[:5]
        except ValueError:
            continue
        if len(words) == 5 and all(map(_is_number, words)):
            return True
    return False


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _class_names(config: dict, path: Path) -> list[str]:
    names, count = config.get("names"), config.get("nc")
    if isinstance(names, dict):
        names = _numbered_names(names, path)
    numbers = names if isinstance(names, dict) else [count]
    if any(isinstance(i, int) and i > _MOST_CLASSES for i in numbers):
        raise ValueError(f"{path} cannot have more than {_MOST_CLASSES} classes")
    if isinstance(names, dict):
        return [
            str(names.get(i, f"class_{i}")) for i in range(max(names, default=-1) + 1)
        ]
    if isinstance(names, list):
        return [str(name) for name in names]
    for file in (path / name for name in (str(names), *_NAMES)):
        if file.is_file():
            lines = [line.strip() for line in read_text(file).splitlines()]
            return [line for line in lines if line]
    if isinstance(count, int) and names is None:
        return [f"class_{i}" for i in range(count)]
    raise ValueError(
        f"{path} must name the classes: `names` in data.yaml, or classes.txt"
        + (f". Received: names: {names!r}" if names is not None else "")
    )


def _numbered_names(names: dict, path: Path) -> dict[int, str]:
    """Returns the names of classes by their numbers, which may be strings."""
    numbered = {int(i): name for i, name in names.items() if str(i).isdecimal()}
    if len(numbered) < len(names):
        raise ValueError(
            f"The `names` of {path} must have the numbers of the classes, such as "
            f"'0: cat'. Received: {names}"
        )
    return numbered


def _check_label_files(images: set[Path], path: Path) -> None:
    """Warns of labels without an image, and of images without labels."""
    expected = {_label_file(image): image for image in images}
    found = {f for f in {i.parent for i in images} for f in _label_files(f)}
    missing = sorted(expected[file] for file in expected.keys() - found)
    if len(missing) == len(expected):
        raise ValueError(
            f"No image in {path} has a label file, such as {_label_file(missing[0])}"
        )
    remarks = []
    if missing:
        remarks.append(
            f"{len(missing)} images have no label file and count as without objects, "
            f"such as {missing[0]}"
        )
    if extra := sorted(found - expected.keys()):
        remarks.append(f"{len(extra)} label files have no image, such as {extra[0]}")
    if remarks:
        warnings.warn("\n  ".join([f"{path}:", *remarks]), stacklevel=2)


def _label_file(image: Path) -> Path:
    return _label_folder(image.parent) / f"{image.stem}.txt"


def _read_labels(
    image: Path, classes: Sequence[str], has_keypoints: bool
) -> Annotation:
    if not image.is_file():
        raise ValueError(f"There is no image {image}")
    file = _label_file(image)
    if not file.is_file():
        return Annotation(image, file, [])
    boxes = {}
    for number, line in enumerate(read_text(file).splitlines(), 1):
        try:
            if words := line.split():
                box = _read_box(words, classes, has_keypoints)
                # Some tools write an object twice.
                boxes[box.name, box.corners, box.fault] = box
        except ValueError as error:
            raise ValueError(
                f"{file}, line {number}, cannot be used: {error}"
            ) from error
    return Annotation(image, file, list(boxes.values()))


def _read_box(words: list[str], classes: Sequence[str], has_keypoints: bool) -> Box:
    label, numbers = float(words[0]), [float(word) for word in words[1:]]
    if label not in range(len(classes)):
        raise ValueError(
            f"its class must be 0 to {len(classes) - 1}, and is {words[0]}"
        )
    is_polygon = len(numbers) >= 6 and len(numbers) % 2 == 0
    if has_keypoints and len(numbers) > 4:
        numbers = numbers[:4]
    elif len(numbers) != 4 and not is_polygon:
        raise ValueError(
            "it must have a class and 4 numbers (a box), or 6 or more (a polygon), and "
            f"has {len(words)} numbers"
        )
    if len(numbers) == 4:
        x, y, width, height = numbers
        xs, ys = (x - width / 2, x + width / 2), (y - height / 2, y + height / 2)
    else:
        xs, ys = numbers[::2], numbers[1::2]
        width = height = 0.0
    return Box(
        name=classes[int(label)],
        corners=(min(xs), min(ys), max(xs), max(ys)),
        size=(1, 1),
        tolerance=_TOLERANCE,
        text=f"({' '.join(words[1:])})",
        is_sorted=width >= 0 and height >= 0,
    )
