"""Folders of images with boxes or masks, as TFDS builders.

They are to detection and segmentation what `tfds.ImageFolder` is to classification.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from keras_coordatt.data.segmentation import IGNORED

_IMAGES = (".jpg", ".jpeg", ".png")


class _Folder(tfds.core.DatasetBuilder, skip_registration=True):
    """Reads files where they are. A subclass lists them, and decodes an example."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(
        self,
        path: Path,
        features: dict,
        examples: dict[str, dict],
    ):
        self._path = path
        self._features = features
        self._examples = examples
        super().__init__(data_dir=path)
        self.info.set_splits(
            tfds.core.SplitDict(
                [
                    tfds.core.SplitInfo(
                        name=split, shard_lengths=[len(listed["image"])], num_bytes=0
                    )
                    for split, listed in examples.items()
                ]
            )
        )

    @property
    def data_path(self):
        return tfds.core.Path(self._path)

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{type(self).__name__} {self._path}",
            features=tfds.features.FeaturesDict(self._features),
        )

    def _download_and_prepare(self, **kwargs):
        raise NotImplementedError("The data are where they are.")

    def _as_dataset(self, split, shuffle_files=False, decoders=None, read_config=None):
        if decoders:
            raise NotImplementedError("`decoders` are not supported.")
        if isinstance(split, str):
            split = tfds.core.ReadInstruction.from_spec(split)
        parts = []
        for part in split.to_absolute(self.info.splits):
            examples = self._examples[part.splitname]
            places = range(len(examples["image"]))[part.from_ : part.to]
            parts.append(
                tf.data.Dataset.from_tensor_slices(examples)
                .skip(places.start)
                .take(len(places))
            )
        dataset = parts[0]
        for part in parts[1:]:
            dataset = dataset.concatenate(part)
        if shuffle_files:
            # Of names only: all of them fit.
            dataset = dataset.shuffle(
                max(1, len(dataset)), seed=read_config.shuffle_seed
            )
        return dataset.map(self._read, num_parallel_calls=tf.data.AUTOTUNE)


class VOCFolder(_Folder, skip_registration=True):
    def __init__(
        self, path: str | os.PathLike, *, classes: Sequence[str] | None = None
    ):
        path = Path(path).expanduser()
        images = _list_images(path / "JPEGImages")
        splits = _read_splits(path / "ImageSets" / "Main")
        annotations = {
            identifier: _read_annotation(path / "Annotations" / f"{identifier}.xml")
            for identifier in {i for split in splits.values() for i in split}
        }
        if classes is None:
            classes = sorted(
                {name for _, names, *_ in annotations.values() for name in names}
            )
        features = {
            "image": tfds.features.Image(),
            "image/filename": tfds.features.Text(),
            "objects": tfds.features.Sequence(
                {
                    "bbox": tfds.features.BBoxFeature(),
                    "label": tfds.features.ClassLabel(names=list(classes)),
                    "is_difficult": np.bool_,
                }
            ),
        }
        index = {name: i for i, name in enumerate(classes)}
        examples = {}
        for split, identifiers in splits.items():
            listed = [annotations[identifier] for identifier in identifiers]
            for identifier, annotation in zip(identifiers, listed, strict=True):
                file = path / "Annotations" / f"{identifier}.xml"
                if identifier not in images:
                    raise ValueError(f"{file} has no image in {path / 'JPEGImages'}")
                for name in annotation[1]:
                    if name not in index:
                        raise ValueError(
                            f"{file} has an object {name!r} that is not in `classes`. "
                            f"Received: {list(classes)}"
                        )
            lengths = [len(names) for _, names, *_ in listed]

            def ragged(values, shape, dtype, lengths=lengths):
                flat = np.array([v for vs in values for v in vs], dtype)
                return tf.RaggedTensor.from_row_lengths(flat.reshape(shape), lengths)

            examples[split] = {
                "image": [os.fspath(images[i]) for i in identifiers],
                "size": np.array([size for *_, size in listed], "int32"),
                "bbox": ragged((a[0] for a in listed), (-1, 4), "float32"),
                "label": ragged(
                    ([index[name] for name in a[1]] for a in listed), (-1,), "int64"
                ),
                "is_difficult": ragged((a[2] for a in listed), (-1,), "bool"),
            }
        super().__init__(path, features, examples)

    def _read(self, example):
        image = _decode(example["image"], 3)
        same = tf.reduce_all(tf.shape(image)[:2] == example["size"])
        image = _sure(
            image, same, "The annotation's <size> is not of", example["image"]
        )
        return {
            "image": image,
            "image/filename": example["image"],
            "objects": {key: example[key] for key in ("bbox", "label", "is_difficult")},
        }


class MaskFolder(_Folder, skip_registration=True):
    def __init__(
        self,
        path: str | os.PathLike,
        *,
        classes: Sequence[str] | None = None,
        ignored: int | str | None = None,
    ):
        path = Path(path).expanduser()
        if classes is None:
            labels = path / "labels.txt"
            if not labels.is_file():
                raise ValueError(f"`path` must have a labels.txt. Received: {path}")
            classes = [c.strip() for c in labels.read_text().splitlines() if c.strip()]
        classes = list(classes)
        # What becomes of each value in a mask: -1 is an error.
        self._classes = np.full(256, -1, "int32")
        self._classes[IGNORED] = IGNORED
        kept = []
        for value, name in enumerate(classes):
            if ignored is not None and ignored in (value, name):
                self._classes[value] = IGNORED
            else:
                self._classes[value] = len(kept)
                kept.append(name)
        if ignored is not None and len(kept) == len(classes):
            raise ValueError(
                f"`ignored` must be one of {classes}, or its index. "
                f"Received: {ignored!r}"
            )
        examples = {}
        for masks in sorted(path.glob("*/masks")):
            split = masks.parent
            images, masks = _list_images(split / "images"), _list_images(masks)
            odd = images.keys() ^ masks.keys()
            if odd:
                file = images.get(min(odd)) or masks.get(min(odd))
                raise ValueError(f"{file} has no mask or no image beside it")
            for mask in masks.values():
                _check_grey(mask)
            examples[split.name] = {
                "image": [os.fspath(file) for file in images.values()],
                "mask": [os.fspath(masks[stem]) for stem in images],
            }
        if not examples:
            raise ValueError(
                f"`path` must have <split>/images and <split>/masks. Received: {path}"
            )
        features = {
            "image": tfds.features.Image(),
            "image/filename": tfds.features.Text(),
            "segmentation_mask": tfds.features.LabeledImage(labels=kept),
        }
        super().__init__(path, features, examples)

    def _read(self, example):
        image, mask = _decode(example["image"], 3), _decode(example["mask"], 1)
        mask = tf.gather(self._classes, tf.cast(mask, "int32"))
        same = tf.reduce_all(tf.shape(image)[:2] == tf.shape(mask)[:2])
        mask = _sure(
            mask, same, "The mask is not of its image's size:", example["mask"]
        )
        known = tf.reduce_all(mask >= 0)
        mask = _sure(mask, known, "The mask has values of no class:", example["mask"])
        mask = tf.cast(mask, "uint8")
        return {
            "image": image,
            "image/filename": example["image"],
            "segmentation_mask": mask,
        }


def _decode(file, channels):
    image = tf.io.decode_image(tf.io.read_file(file), channels, expand_animations=False)
    return tf.ensure_shape(image, (None, None, channels))


def _sure(tensor, condition, *message):
    with tf.control_dependencies([tf.debugging.Assert(condition, message)]):
        return tf.identity(tensor)


def _list_images(folder: Path) -> dict[str, Path]:
    """Images by their names without the suffix, in alphabetical order."""
    if not folder.is_dir():
        raise ValueError(f"There must be a folder {folder}")
    return {
        file.stem: file
        for file in sorted(folder.iterdir())
        if file.suffix.lower() in _IMAGES
    }


def _read_splits(folder: Path) -> dict[str, list[str]]:
    splits = {}
    for file in sorted(folder.glob("*.txt")):
        lines = [line.strip() for line in file.read_text().splitlines()]
        lines = [line for line in lines if line]
        # <class>_<split>.txt says of each image whether it shows the class.
        if lines and not all(re.fullmatch(r"\S+\s+(-1|0|1)", line) for line in lines):
            splits[file.stem] = lines
    if not splits:
        raise ValueError(f"There must be a <split>.txt with images in {folder}")
    return splits


def _read_annotation(file: Path) -> tuple:
    """Gives boxes as BBoxFeature has them, names, difficulties, and the image's size."""
    try:
        # No external entity is read, and expat bounds what others expand to.
        root = ElementTree.parse(file).getroot()
        height, width = (float(root.findtext(f"size/{x}")) for x in ("height", "width"))
        boxes, names, difficult = [], [], []
        for thing in root.findall("object"):
            x1, y1, x2, y2 = (
                float(thing.findtext(f"bndbox/{side}"))
                for side in ("xmin", "ymin", "xmax", "ymax")
            )
            # Pixels are counted from 1, and the last one is inside.
            x1, x2 = (min(max(x, 0), width) for x in (x1 - 1, x2))
            y1, y2 = (min(max(y, 0), height) for y in (y1 - 1, y2))
            if not (x1 < x2 and y1 < y2):
                raise ValueError("a box is empty, or outside of the image")
            boxes.append((y1 / height, x1 / width, y2 / height, x2 / width))
            names.append(thing.findtext("name").strip())
            difficult.append(thing.findtext("difficult", "0").strip() == "1")
    except (
        OSError,
        ElementTree.ParseError,
        TypeError,
        AttributeError,
        ValueError,
    ) as e:
        raise ValueError(f"{file} is no annotation: {e}") from e
    return boxes, names, difficult, (height, width)


def _check_grey(file: Path) -> None:
    with open(file, "rb") as png:
        header = png.read(26)
    if header[:8] != b"\x89PNG\r\n\x1a\n" or header[24:26] != b"\x08\x00":
        raise ValueError(f"{file} must be a grey PNG of 8 bits, with class indices")
