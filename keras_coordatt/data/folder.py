"""Base class of the folders of images, as TFDS builders."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from keras_coordatt.data.reading import (
    find_faults,
    list_folder,
    read_image,
    report_faults,
)
from keras_coordatt.data.split_names import split_name
from keras_coordatt.validation import check_on_error


class Folder(tfds.core.DatasetBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Base class of the builders that read files where they are.

    A subclass recognizes its layout, lists the files, checks one example (`_check`)
    and reads one (`_read`).

    Args:
        path: The folder.
        features: TFDS features beside `image` and `image/filename`.
        splits: For each split, its columns: sequences with one entry per example.
            `image` has the files.
        on_error: What to do with images that cannot be used: `"raise"`; `"skip"` or
            `"repair"`, to leave them out.
    """

    VERSION = tfds.core.Version("1.0.0")
    # Name of the layout, for messages.
    LAYOUT = ""

    def __init_subclass__(cls, skip_registration=True):
        # TFDS opens no folder by the name of its class.
        super().__init_subclass__(skip_registration=skip_registration)

    def __init__(
        self, path: Path, features: dict, splits: dict[str, dict], on_error: str
    ):
        self._path = path
        self._features = features
        self._splits = splits
        self._on_error = check_on_error(on_error)
        self._usable = {}
        self._found = {}
        super().__init__(data_dir=path)
        self.info.set_splits(
            tfds.core.SplitDict(
                tfds.core.SplitInfo(
                    name=name, shard_lengths=[len(columns["image"])], num_bytes=0
                )
                for name, columns in splits.items()
            )
        )

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        """Returns whether a path has this layout, without reading the files."""
        raise NotImplementedError

    @property
    def data_path(self):
        return tfds.core.Path(self._path)

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"The images in {self._path}",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(),
                    "image/filename": tfds.features.Text(),
                    **self._features,
                }
            ),
        )

    def _download_and_prepare(self, **kwargs):
        raise NotImplementedError("The files are read where they are.")

    def _as_dataset(self, split, shuffle_files=False, decoders=None, read_config=None):
        if decoders:
            raise NotImplementedError(
                f"`decoders` is not supported. Received: {decoders}"
            )
        if isinstance(split, str):
            # Also accept the usual other names, such as "val".
            split = re.sub(
                r"[^\W\d][\w-]*",
                lambda name: (
                    name[0] if name[0] in self._splits else split_name(name[0])
                ),
                split,
            )
            names = re.findall(r"(?:^|\+)\s*([\w-]+)", split)
            if unknown := [n for n in names if n not in (*self._splits, "all")]:
                raise ValueError(
                    f"`split` must be of {list(self._splits)}, which {self._path} has; "
                    "`validation_split` makes a 'validation' of a part of 'train'. "
                    f"Received: {unknown[0]!r}"
                )
            split = tfds.core.ReadInstruction.from_spec(split)
        dataset = None
        for part in split.to_absolute(self.info.splits):
            columns = self._splits[part.splitname]
            usable = self._find_usable(part.splitname)
            chosen = np.flatnonzero(usable[part.from_ : part.to]) + (part.from_ or 0)
            examples = tf.data.Dataset.from_tensor_slices(
                {name: tf.gather(column, chosen) for name, column in columns.items()}
            )
            dataset = dataset.concatenate(examples) if dataset else examples
        context = read_config.input_context if read_config else None
        if context is not None:
            dataset = dataset.shard(
                context.num_input_pipelines, context.input_pipeline_id
            )
        if shuffle_files and dataset.cardinality() > 0:
            # The buffer holds all examples, which are only file names so far.
            seed = read_config.shuffle_seed if read_config else None
            dataset = dataset.shuffle(dataset.cardinality(), seed=seed)
        return dataset.map(self._read, num_parallel_calls=tf.data.AUTOTUNE)

    def _find_usable(self, split: str) -> np.ndarray:
        """Finds the usable images of a split, checking all of them once."""
        if split not in self._usable:
            columns = self._splits[split]
            # Ragged columns are slow to take apart, and were checked before.
            flat = {
                name: column
                for name, column in columns.items()
                if not isinstance(column, tf.RaggedTensor)
            }
            examples = [
                dict(zip(flat, values, strict=True))
                for values in zip(*flat.values(), strict=True)
            ]
            found, faults = find_faults(self._check, examples)
            what = f"images of '{split}' cannot be used"
            if self._on_error == "raise":
                what += " (`on_error='skip'` leaves them out)"
            report_faults(faults, self._on_error, what, "left out")
            usable = np.array([not fault for fault in faults])
            if not usable.any():
                raise ValueError(
                    f"No image of '{split}' in {self._path} can be used. "
                    f"The first fault: {faults[0]}"
                )
            self._check_split(split, [facts for facts in found if facts])
            self._usable[split] = usable
            self._found[split] = found
        return self._usable[split]

    def facts(self, split: str) -> list[dict[str, Any]]:
        """Returns the records of the usable images of a split.

        Args:
            split: The name of the split.

        Returns:
            One dict per image: its columns, and what `_check` returned.
        """
        usable = self._find_usable(split)
        columns = {}
        for name, column in self._splits[split].items():
            if isinstance(column, tf.RaggedTensor):
                rows = column.row_splits.numpy()[1:-1]
                column = np.split(column.flat_values.numpy(), rows)
            columns[name] = column
        return [
            {**dict(zip(columns, values, strict=True)), **found}
            for *values, found, ok in zip(
                *columns.values(), self._found[split], usable, strict=True
            )
            if ok
        ]

    def fingerprint(self) -> str:
        """Returns a hash that tells data sets apart.

        It covers the images of each split in their order, as names and sizes of their
        files in bytes, and everything read from the annotations: classes, boxes and
        names of masks. Masks count as images do. The contents of pictures, dates, and
        files that are not read don't count.

        Returns:
            A string of 16 characters.
        """
        digest = hashlib.sha256()
        for split, columns in self._splits.items():
            for name, column in columns.items():
                digest.update(f"\n{split} {name}\n".encode())
                if isinstance(column, tf.RaggedTensor):
                    digest.update(column.row_splits.numpy().tobytes())
                    column = column.flat_values.numpy()
                if name in ("image", "mask"):
                    lines = "\n".join(map(self._name_and_size, column))
                    digest.update(lines.encode("utf-8", "surrogateescape"))
                else:
                    digest.update(np.ascontiguousarray(column).tobytes())
        return digest.hexdigest()[:16]

    def _name_and_size(self, file):
        try:
            size = os.path.getsize(file)
        except OSError:
            size = None  # `on_error` decides what becomes of it
        return f"{os.path.relpath(file, self._path)} {size}"

    def _check(self, example: dict) -> dict[str, Any]:
        """Checks an example.

        Args:
            example: Its columns that are not ragged.

        Returns:
            The `size` of the image, height and width, and further facts about it.

        Raises:
            ValueError: If it cannot be used. The message names the file.
        """
        raise NotImplementedError

    def _check_split(self, split: str, found: list[dict[str, Any]]) -> None:
        """Raises a ValueError if the results of `_check` don't make a valid split."""

    def _read(self, example: dict) -> dict:
        """Reads one example, of tensors."""
        raise NotImplementedError


def decode_image(file: tf.Tensor) -> tf.Tensor:
    """Reads a picture within a `tf.data` pipeline.

    Args:
        file: Its path.

    Returns:
        The RGB picture, uint8 of shape `(height, width, 3)`.
    """
    image = tf.numpy_function(
        lambda path: read_image(path.decode()), [file], "uint8", stateful=False
    )
    return tf.ensure_shape(image, (None, None, 3))


def check_classes(classes: Sequence[str]) -> list[str]:
    """Checks the names of classes, and returns them as a list.

    Args:
        classes: The names.

    Returns:
        The names.

    Raises:
        ValueError: If they are not different strings.
    """
    names = list(classes) if isinstance(classes, Iterable) else []
    if (
        isinstance(classes, str)
        or not names
        or not all(isinstance(name, str) and name for name in names)
        or len(set(names)) < len(names)
    ):
        raise ValueError(
            f"`classes` must be names that differ from each other. Received: {classes}"
        )
    return names


def images_by_name(folder: Path) -> dict[str, Path]:
    """Finds the images of a folder.

    Args:
        folder: The folder.

    Returns:
        The images by their names without an ending, in alphabetical order.

    Raises:
        ValueError: If there are none, or two have one name.
    """
    images = {}
    for file in list_folder(folder)[0]:
        if file.stem in images:
            raise ValueError(
                f"{os.fspath(file)} and {images[file.stem]} have the same name"
            )
        images[file.stem] = file
    if not images:
        raise ValueError(f"There are no images in {folder}")
    return images
