"""Folders of images with boxes or masks, as TFDS builders.

They are to detection and segmentation what `tfds.ImageFolder` is to classification.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from keras_coordatt.data.segmentation import IGNORED


class _Folder(tfds.core.DatasetBuilder, skip_registration=True):
    """Reads files where they lie. A subclass lists them, and reads an example."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, path: Path, features: dict, splits: dict[str, dict]):
        self._path = path
        self._features = features
        # What `_read` gets slices of.
        self._splits = splits
        super().__init__(data_dir=path)
        self.info.set_splits(
            tfds.core.SplitDict(
                tfds.core.SplitInfo(
                    name=name, shard_lengths=[len(files["image"])], num_bytes=0
                )
                for name, files in splits.items()
            )
        )

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
        raise NotImplementedError("The files are where they should be.")

    def _as_dataset(self, split, shuffle_files=False, decoders=None, read_config=None):
        if decoders:
            raise NotImplementedError(f"No `decoders`, please. Received: {decoders}")
        if isinstance(split, str):
            split = tfds.core.ReadInstruction.from_spec(split)
        dataset = None
        for part in split.to_absolute(self.info.splits):
            files = self._splits[part.splitname]
            places = range(len(files["image"]))[part.from_ : part.to]
            examples = tf.data.Dataset.from_tensor_slices(files)
            examples = examples.skip(places.start).take(len(places))
            dataset = dataset.concatenate(examples) if dataset else examples
        if shuffle_files and dataset.cardinality() > 0:
            # All at once, as they are only names yet.
            seed = read_config.shuffle_seed if read_config else None
            dataset = dataset.shuffle(dataset.cardinality(), seed=seed)
        return dataset.map(self._read, num_parallel_calls=tf.data.AUTOTUNE)


class VOCFolder(_Folder, skip_registration=True):
    """Images with boxes around their objects, in the layout of Pascal VOC.

    ```
    path/
      JPEGImages/        # 000005.jpg, .jpeg or .png
      Annotations/       # 000005.xml
      ImageSets/Main/    # train.txt, test.txt, ...: a line for each image, like 000005
    ```

    Like a data set of TFDS, it has the features `image` and `objects`, with `bbox`,
    `label` and `is_difficult`, and splits that can be sliced. Annotations are read at
    once, images when they are needed; it is then that an image whose size is not the
    `<size>` of its annotation raises a `tf.errors.InvalidArgumentError`.

    The corners of boxes are pixels that belong to them, counted from 1, as in Pascal
    VOC; TFDS's own `"voc"` takes them for distances from 0, up to a pixel less. What is
    outside of the image is cut off.

    Args:
        path: The folder.
        classes: The names of the classes, in their order. Defaults to those of all
            objects, in alphabetical order.

    Raises:
        ValueError: If a file is missing or is not what it should be, or a box has no
            pixel in the image.

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

    def __init__(
        self, path: str | os.PathLike, *, classes: Sequence[str] | None = None
    ):
        path = Path(path).expanduser()
        images = _list_images(path / "JPEGImages")
        splits = _read_splits(path / "ImageSets" / "Main")
        annotations = {}
        for name in dict.fromkeys(name for names in splits.values() for name in names):
            file = path / "Annotations" / f"{name}.xml"
            annotations[name] = _read_annotation(file)
            if name not in images:
                raise ValueError(f"{file} has no image in {path / 'JPEGImages'}")
        if classes is None:
            found = {o["name"] for a in annotations.values() for o in a["objects"]}
            classes = sorted(found)
        classes = _check_classes(classes)
        labels = {name: label for label, name in enumerate(classes)}
        for name, annotation in annotations.items():
            for thing in annotation["objects"]:
                if thing["name"] not in labels:
                    raise ValueError(
                        f"{path / 'Annotations' / name}.xml has an object that is none "
                        f"of {classes}: {thing['name']!r}"
                    )
                thing["label"] = labels[thing["name"]]

        def column(names, key, dtype, shape=()):
            objects = [annotations[name]["objects"] for name in names]
            values = np.array([thing[key] for each in objects for thing in each], dtype)
            return tf.RaggedTensor.from_row_lengths(
                values.reshape(-1, *shape), [len(each) for each in objects]
            )

        super().__init__(
            path,
            {
                "objects": tfds.features.Sequence(
                    {
                        "bbox": tfds.features.BBoxFeature(),
                        "label": tfds.features.ClassLabel(names=classes),
                        "is_difficult": np.bool_,
                    }
                )
            },
            {
                split: {
                    "image": [os.fspath(images[name]) for name in names],
                    "size": [annotations[name]["size"] for name in names],
                    "bbox": column(names, "bbox", "float32", (4,)),
                    "label": column(names, "label", "int64"),
                    "is_difficult": column(names, "is_difficult", "bool"),
                }
                for split, names in splits.items()
            },
        )

    def _read(self, example):
        image = _decode(example["image"], 3)
        same = tf.reduce_all(tf.shape(image)[:2] == example["size"])
        image = _sure(image, same, "Not the <size> of its annotation:", example)
        return {
            "image": image,
            "image/filename": example["image"],
            "objects": {key: example[key] for key in ("bbox", "label", "is_difficult")},
        }


class MaskFolder(_Folder, skip_registration=True):
    """Images with a mask each, which tells the class of each pixel.

    ```
    path/
      labels.txt         # the name of class 0, of class 1, ..., one a line
      train/images/      # 0001.jpg, .jpeg or .png
      train/masks/       # 0001.png
      test/images/
      ...
    ```

    Like a data set of TFDS, it has the features `image` and `segmentation_mask`, a
    `LabeledImage`, and splits that can be sliced. Masks are PNGs of one channel, grey
    or with a palette as those of Pascal VOC, whose values are classes, or 255 where a
    pixel is not to count. Images and masks are read when they are needed; it is then
    that a mask with another value, or not of its image's size, raises a
    `tf.errors.InvalidArgumentError`.

    Args:
        path: The folder.
        ignored: The name or index of a class that is not to count, such as "void" or
            "unlabelled": it becomes 255, and the classes after it one less. Defaults to
            none.
        classes: The names of the classes, in place of a `labels.txt`.

    Raises:
        ValueError: If a file is missing or is not what it should be, or no class is
            `ignored`.

    Example:

    ```python
    builder = MaskFolder("camvid", ignored="unlabelled")
    builder.info.features["segmentation_mask"].names  # ["sky", "building", ...]
    train = load_segmentation(builder, "train", (180, 240), shuffle=True)
    ```
    """

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        ignored: int | str | None = None,
        classes: Sequence[str] | None = None,
    ):
        path = Path(path).expanduser()
        if classes is None:
            try:
                lines = (path / "labels.txt").read_text().strip().splitlines()
            except OSError as error:
                raise ValueError(f"`path` must have a labels.txt: {error}") from error
            classes = [line.strip() for line in lines]
        classes = _check_classes(classes)
        if len(classes) > IGNORED:
            raise ValueError(f"At most {IGNORED} classes. Received: {len(classes)}")
        if isinstance(ignored, str) and ignored in classes:
            ignored = classes.index(ignored)
        if ignored not in (None, *range(len(classes))):
            raise ValueError(
                f"`ignored` must be one of {classes}, or its index. "
                f"Received: {ignored!r}"
            )
        kept = [i for i in range(len(classes)) if i != ignored]
        # What becomes of the values of a mask. -1 is none.
        self._values = np.full(256, -1, "int32")
        self._values[kept] = range(len(kept))
        self._values[[IGNORED] if ignored is None else [IGNORED, ignored]] = IGNORED

        splits = {}
        for folder in sorted(path.glob("*/masks")):
            images = _list_images(folder.parent / "images")
            masks = _list_images(folder)
            for name in sorted(images.keys() ^ masks.keys()):
                raise ValueError(
                    f"{images.get(name, masks.get(name))} must have a file of the same "
                    f"name in {folder if name in images else folder.parent / 'images'}"
                )
            headers = [_grey_header(masks[name]) for name in images]
            splits[folder.parent.name] = {
                "image": [os.fspath(file) for file in images.values()],
                "mask": [os.fspath(masks[name]) for name in images],
                "header": [header for header, _ in headers],
                "step": [step for _, step in headers],
            }
        if not splits:
            raise ValueError(f"`path` must have <split>/masks. Received: {path}")
        labels = [classes[i] for i in kept]
        features = {"segmentation_mask": tfds.features.LabeledImage(labels=labels)}
        super().__init__(path, features, splits)

    def _read(self, example):
        image = _decode(example["image"], 3)
        mask = _decode(example["mask"], 1, example["header"])
        mask = tf.gather(self._values, tf.cast(mask, "int32") // example["step"])
        same = tf.reduce_all(tf.shape(image)[:2] == tf.shape(mask)[:2])
        mask = _sure(mask, same, "Its mask is not of its size:", example)
        known = tf.reduce_all(mask >= 0)
        mask = _sure(mask, known, "Its mask has values that are no class:", example)
        return {
            "image": image,
            "image/filename": example["image"],
            "segmentation_mask": tf.cast(mask, "uint8"),
        }


def _decode(file: tf.Tensor, channels: int, header: tf.Tensor | None = None):
    data = tf.io.read_file(file)
    if header is not None:
        length = tf.strings.length(header)
        data = header + tf.strings.substr(data, length, tf.strings.length(data))
    image = tf.io.decode_image(data, channels, expand_animations=False)
    return tf.ensure_shape(image, (None, None, channels))


def _sure(tensor: tf.Tensor, condition: tf.Tensor, message: str, example: dict):
    check = tf.debugging.Assert(condition, [message, example["image"]])
    with tf.control_dependencies([check]):
        return tf.identity(tensor)


def _check_classes(classes: Sequence[str]) -> list[str]:
    names = list(classes)
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


def _list_images(folder: Path) -> dict[str, Path]:
    """Gives the images by their names without a suffix, in alphabetical order."""
    images = {}
    for file in sorted(folder.glob("[!.]*")):
        if file.suffix.lower() in (".jpg", ".jpeg", ".png"):
            if file.stem in images:
                raise ValueError(f"{file} and {images[file.stem]} have one name")
            images[file.stem] = file
    if not images:
        raise ValueError(f"There are no images in {folder}")
    return images


def _read_splits(folder: Path) -> dict[str, list[str]]:
    """Gives the names of the images of each split."""
    splits = {}
    for file in sorted(folder.glob("*.txt")):
        lines = [line.strip() for line in file.read_text().splitlines()]
        names = [line for line in lines if line]
        # Lists like train_cat.txt say of each image whether there is a cat.
        if not all(re.fullmatch(r"\S+\s+(-1|0|1)", name) for name in names):
            splits[file.stem] = names
    if not splits:
        raise ValueError(f"There are no lists of images, like train.txt, in {folder}")
    return splits


def _read_annotation(file: Path) -> dict:
    """Gives an image's size, and its objects with boxes as `BBoxFeature` has them."""

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
        height, width = number(root, "size/height"), number(root, "size/width")
        objects = []
        for element in root.findall("object"):
            # Cut to the image. The first pixel ends where the second one begins, at 1.
            x1 = max(number(element, "bndbox/xmin") - 1, 0) / width
            y1 = max(number(element, "bndbox/ymin") - 1, 0) / height
            x2 = min(number(element, "bndbox/xmax") / width, 1)
            y2 = min(number(element, "bndbox/ymax") / height, 1)
            if not (0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1):
                raise ValueError("there is a box without a pixel in the image")
            objects.append(
                {
                    "bbox": (y1, x1, y2, x2),
                    "name": text(element, "name"),
                    "is_difficult": element.findtext("difficult", "").strip() == "1",
                }
            )
        return {"size": (int(height), int(width)), "objects": objects}
    except (OSError, ElementTree.ParseError, ValueError, ArithmeticError) as error:
        raise ValueError(
            f"{file} is no annotation that can be used: {error}"
        ) from error


def _grey_header(file: Path) -> tuple[bytes, int]:
    """Gives the first bytes of a PNG as if it were grey, and the step between classes.

    A palette only says how to show the classes, but TensorFlow would decode it; and it
    spreads what has fewer than 8 bits from 0 to 255.
    """
    with file.open("rb") as png:
        header = png.read(33)
    # The signature, and the chunk that comes first: its length and name, width, height,
    # bits, kind, three bytes more, and a checksum.
    bits, kind = header[24:26] if header[12:16] == b"IHDR" else (0, 0)
    if bits not in (1, 2, 4, 8) or kind not in (0, 3):
        raise ValueError(
            f"{file} must be a PNG, grey or with a palette, of up to 8 bits"
        )
    chunk = header[12:25] + b"\0" + header[26:29]
    return header[:12] + chunk + zlib.crc32(chunk).to_bytes(4, "big"), 255 // (
        2**bits - 1
    )
