"""Opens data sets: folders and files in any layout, TFDS names, and builders."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import tensorflow_datasets as tfds

from keras_coordatt.data.class_folder import ClassFolder
from keras_coordatt.data.class_table import ClassTable, contradicts_folders
from keras_coordatt.data.coco_folder import COCOFolder
from keras_coordatt.data.folder import Folder
from keras_coordatt.data.mask_folder import MaskFolder
from keras_coordatt.data.reading import list_folder
from keras_coordatt.data.voc_folder import VOCFolder
from keras_coordatt.data.yolo_folder import YOLOFolder
from keras_coordatt.record import TASKS
from keras_coordatt.validation import (
    check_choice,
    check_on_error,
    check_type,
    first_line,
    with_hint,
)


class _Task(NamedTuple):
    """Requirements of a task."""

    layouts: tuple[type[Folder], ...]
    labels: Callable[[dict], tfds.features.FeatureConnector | None]
    needs: str


def _class_feature(features):
    label = features.get("label")
    return label if isinstance(label, tfds.features.ClassLabel) else None


def _object_feature(features):
    objects = getattr(features.get("objects"), "feature", None)
    if not isinstance(objects, tfds.features.FeaturesDict):
        return None
    objects = dict(objects.items())
    has_boxes = isinstance(objects.get("bbox"), tfds.features.BBoxFeature)
    return _class_feature(objects) if has_boxes else None


def _mask_feature(features):
    mask = features.get("segmentation_mask")
    is_mask = isinstance(mask, tfds.features.Image) and mask.shape[-1] == 1
    return mask if is_mask else None


_TASKS = {
    "classification": _Task(
        (ClassFolder, ClassTable), _class_feature, "a 'label' that is a ClassLabel"
    ),
    "detection": _Task(
        (VOCFolder, COCOFolder, YOLOFolder),
        _object_feature,
        "'objects' with a 'bbox' and a 'label' that is a ClassLabel",
    ),
    "segmentation": _Task(
        (MaskFolder,), _mask_feature, "a 'segmentation_mask' of one channel"
    ),
}
# Maximum number of single-folder levels to descend.
_MOST_NESTED = 4


def open_data(
    name: str | os.PathLike | tfds.core.DatasetBuilder,
    task: str | None = None,
    *,
    data_dir: str | os.PathLike | None = None,
    on_error: str = "raise",
    validation_split: float | None = None,
    split_seed: int = 0,
) -> tfds.core.DatasetBuilder:
    """Opens a data set for a task.

    Args:
        name: A folder or file in one of the layouts that this package reads, a TFDS
            name, or a builder, which is returned if it fits.
        task: `"classification"`, `"detection"` or `"segmentation"`; `None` for the one
            that `find_task` returns.
        data_dir, on_error, validation_split, split_seed: Same as in
            `load_classification`.

    Returns:
        The TFDS builder, with its data ready.

    Raises:
        ValueError: If there is no such data set, it doesn't fit the task, or an
            argument is invalid.

    Example:

    >>> builder = open_data("photos", validation_split=0.25)
    >>> splits(builder)
    {'train': 6, 'validation': 2}
    >>> class_names(builder)
    ['cat', 'dog']
    """
    if task is not None:
        check_choice("task", task, TASKS)
    check_on_error(on_error)
    path = _as_path(name)
    if path is not None:
        task = task or find_task(path)
        layout, path = _find_layout(path, task)
        return layout(
            path,
            validation_split=validation_split,
            split_seed=split_seed,
            on_error=on_error,
        )
    if on_error != "raise" or validation_split is not None:
        raise ValueError(
            "`on_error` and `validation_split` are for a folder, and are given to the "
            "builder if there is one; a part of TFDS data is a split such as "
            f"'train[:90%]'. Received: {on_error!r} and {validation_split!r}, with "
            f"{name!r}"
        )
    builder = _as_builder(name, data_dir)
    task = task or find_task(builder)
    # Checked before the download, which may be long.
    features = dict(builder.info.features.items())
    if "image" not in features or _TASKS[task].labels(features) is None:
        raise ValueError(
            f"`name` must be a data set with an 'image' and {_TASKS[task].needs}. "
            f"Received: {builder.info.full_name} with {features}"
        )
    if isinstance(builder, tfds.ImageFolder):
        return _as_class_folder(builder)
    if isinstance(name, str):
        try:
            builder.download_and_prepare()
        except OSError:
            # Another process may have prepared the same data in the meantime. TFDS
            # renames the finished folder, which fails if the target exists.
            builder = tfds.builder(name, data_dir=data_dir)
            if not builder.is_prepared():
                raise
    return builder


def find_task(
    name: str | os.PathLike | tfds.core.DatasetBuilder,
    data_dir: str | os.PathLike | None = None,
) -> str:
    """Finds the task that a data set is for.

    Args:
        name: Same as in `open_data`.
        data_dir: Same as in `open_data`.

    Returns:
        `"classification"`, `"detection"` or `"segmentation"`.

    Raises:
        ValueError: If there is no such data set, or it is for none or for several of
            the tasks.

    Example:

    >>> find_task("cifar10")
    'classification'
    """
    path = _as_path(name)
    if path is None:
        features = dict(_as_builder(name, data_dir).info.features.items())
        found = {task: task for task in TASKS if _TASKS[task].labels(features)}
    else:
        found = {task: layout.LAYOUT for layout, (task, _) in _layouts(path).items()}
        # Any folder of images looks like a class: annotations and masks take precedence.
        if len(found) > 1:
            found.pop("classification", None)
    if len(found) == 1:
        return next(iter(found))
    if found:
        layouts = ", ".join(f"{layout} ({task})" for task, layout in found.items())
        raise ValueError(
            f"`task` must be given, as {name} has data for several: {layouts}"
        )
    layouts = "; ".join(
        f"{task}: {', '.join(layout.LAYOUT for layout in _TASKS[task].layouts)}"
        for task in TASKS
    )
    raise ValueError(f"{name} has none of the layouts that can be read: {layouts}")


def splits(builder: tfds.core.DatasetBuilder) -> dict[str, int]:
    """Returns the splits of a data set, and the number of images in each.

    Args:
        builder: A builder, such as from `open_data`.

    Returns:
        Numbers of images by the names of the splits, such as `"train"`, `"validation"`
        and `"test"`, in this order.

    Raises:
        TypeError: If `builder` is something else.
    """
    check_type("builder", builder, tfds.core.DatasetBuilder, "a TFDS builder")
    found = {name: info.num_examples for name, info in builder.info.splits.items()}
    first = [name for name in ("train", "validation", "test") if name in found]
    return {name: found[name] for name in dict.fromkeys([*first, *found])}


def class_names(
    builder: tfds.core.DatasetBuilder, task: str | None = None
) -> list[str] | None:
    """Returns the names of the classes of a data set, in the order of its labels.

    Args:
        builder: A builder, such as from `open_data`.
        task: The task, if the data set has data for several. Defaults to `None`.

    Returns:
        The names, or `None` if the data set has none, such as masks that are plain
        images.

    Raises:
        TypeError: If `builder` is something else.
        ValueError: If `task` is unknown, or must be given.
    """
    check_type("builder", builder, tfds.core.DatasetBuilder, "a TFDS builder")
    if task is not None:
        check_choice("task", task, TASKS)
    labels = _TASKS[task or find_task(builder)].labels
    feature = labels(dict(builder.info.features.items()))
    return list(getattr(feature, "names", ())) or None


def check_data(name: str, data) -> None:
    """Raises a ValueError that names the argument if `open_data` can't open its value."""
    if not isinstance(data, str | os.PathLike | tfds.core.DatasetBuilder):
        raise ValueError(
            f"`{name}` must be a folder, a file, a TFDS name or a builder. "
            f"Received: {data!r}"
        )


def _as_path(name) -> Path | None:
    """Returns `name` as a path, or `None` if it is not one."""
    # Path("") is the working directory.
    if isinstance(name, str | os.PathLike) and name != "":
        path = Path(name).expanduser()
        if path.exists():
            return path
        if isinstance(name, os.PathLike):
            raise ValueError(f"There is no such file or folder: {name}")
    return None


def _as_builder(name, data_dir) -> tfds.core.DatasetBuilder:
    # Registers "digits" with TFDS.
    from keras_coordatt.data import digits  # noqa: F401

    if isinstance(name, tfds.core.DatasetBuilder):
        return name
    check_data("name", name)
    try:
        if name.split("/")[0].split(":")[0] in tfds.list_builders(
            with_community_datasets=False
        ):
            return tfds.builder(name, data_dir=data_dir)
    except (ValueError, AssertionError) as error:
        # TFDS appends the names of all its data sets.
        reason = first_line(error)
        raise ValueError(f"TFDS cannot open {name!r}: {reason}") from error
    raise ValueError(
        f"There is neither a file or folder {name!r} nor a TFDS data set of this name"
    )


def _find_layout(path: Path, task: str) -> tuple[Callable[..., Folder], Path]:
    """Returns the layout of a path for a task, and the folder that has it."""
    layouts = _layouts(path)
    found = [(layout, where) for layout, (of, where) in layouts.items() if of == task]
    elsewhere = {layout: of for layout, (of, _) in layouts.items() if of != task}
    if len(elsewhere) > 1:
        # Any folder of images looks like a class: other layouts take precedence.
        elsewhere.pop(ClassFolder, None)
    others = ", ".join(f"{layout.LAYOUT}, for {of}" for layout, of in elsewhere.items())
    if others and [layout for layout, _ in found] == [ClassFolder]:
        # Folders such as JPEGImages or train2017 are not classes.
        error = ValueError(
            f"{path} is not for classification. It has {others}. If its folders are "
            "classes all the same, list the files and their classes in a CSV file"
        )
        raise with_hint(error, f"Or pass ClassFolder({str(found[0][1])!r}).")
    table = dict(found).get(ClassTable)
    if len(found) > 1 and table and not contradicts_folders(table):
        # Otherwise, the folders are not classes, such as train_images.
        found = [(layout, w) for layout, w in found if layout is not ClassFolder]
    if len(found) > 1:
        names = " and ".join(layout.LAYOUT for layout, _ in found)
        calls = " or ".join(f"{lay.__name__}({str(where)!r})" for lay, where in found)
        error = ValueError(
            f"{path} holds {names}. Name the CSV, JSON or YAML file of the one to read, "
            "or a folder that has only that one"
        )
        raise with_hint(error, f"Or pass one of them: {calls}.")
    if not found:
        names = "; ".join(layout.LAYOUT for layout in _TASKS[task].layouts)
        raise ValueError(
            f"{path} has none of the layouts for {task}: {names}"
            + (f". It has {others}" if others else "")
        )
    return found[0]


def _layouts(path: Path) -> dict[type[Folder], tuple[str, Path]]:
    """Returns the layouts that a path has, each with its task and the folder that has it."""
    return {
        layout: (task, where)
        for task in TASKS
        for layout in _TASKS[task].layouts
        if (where := _locate(path, layout))
    }


def _locate(path: Path, layout: type[Folder]) -> Path | None:
    """Returns the path that has a layout, or the folder that has it below.

    Archives are often unpacked into folders with nothing but one folder inside, such as
    `archive/VOCdevkit/VOC2007`.
    """
    for _ in range(_MOST_NESTED):
        if layout.recognizes(path):
            return path
        images, _, folders = list_folder(path)
        if len(folders) != 1 or images:
            return None
        path = folders[0]
    return None


def _as_class_folder(builder: tfds.ImageFolder) -> tfds.core.DatasetBuilder:
    """Returns a builder that reads the same folder as a viewer shows its pictures."""
    features = builder.info.features
    if features["image"].shape[-1] != 3 or features["image"].dtype != "uint8":
        return builder
    folder = ClassFolder(builder.data_dir)
    names = folder.info.features["label"].names
    if names != features["label"].names:
        raise ValueError(
            "`name` must not count folders that are hidden or empty as classes. "
            f"Pass ClassFolder(path), which has {names}. "
            f"Received: a tfds.ImageFolder with {features['label'].names}"
        )
    return folder
