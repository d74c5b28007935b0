"""From a TFDS data set to batches for `model.fit`, on every Keras backend."""

from __future__ import annotations

import math
import numbers
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import keras
import tensorflow as tf

from keras_coordatt.validation import check_choice, check_positive_int

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

# Bytes of decoded images that one pipeline may keep, to cache or to shuffle.
_MEMORY = 256 * 2**20


def load_classification(
    name: str | tfds.core.DatasetBuilder,
    split: str | tfds.core.ReadInstruction,
    image_size: int | tuple[int, int],
    batch_size: int = 32,
    *,
    augment: Callable | None = None,
    preprocess: Callable | None = None,
    shuffle: bool = False,
    one_hot: bool = False,
    seed: int | None = None,
    data_dir: str | os.PathLike | None = None,
) -> tf.data.Dataset:
    """Loads labelled images from any TFDS data set, in batches.

    Images are resized by antialiased bilinear interpolation, without keeping the aspect
    ratio, and keep the data set's dtype until they are batched. If all of them fit in
    256 MiB, they are decoded only once.

    Args:
        name: A TFDS name such as `"digits/classification"`, `"cifar10"` or
            `"imagenet2012"`, which is downloaded and prepared where need be, or a
            builder whose data are ready, such as `tfds.ImageFolder(path)`. The data set
            must have the features `image` and `label`, a `ClassLabel`.
        split: A TFDS split, such as `"train"` or `"train[:90%]"`; an `ImageFolder` has
            whole ones only.
        image_size: The images' height and width, as a pair or as one integer.
        batch_size: Images a batch. The last batch may be smaller.
        augment: A Keras preprocessing layer, called with `training=True`, or any
            function of a batch of images, float32 from 0 to 255. Several layers go
            into a `keras.layers.Pipeline`. On every backend, functions get TensorFlow
            tensors.
        preprocess: A function of a batch of images, applied last, such as a network's
            `preprocess_input`.
        shuffle: Whether to put the images in a new order each time the data set is
            read. Those of a data set too large to be cached are shuffled within a
            buffer of 256 MiB, after its files, if they need not stay in order.
        one_hot: Whether labels are float32 one-hot vectors, rather than integers.
        seed: An integer that makes the order repeatable, and `augment` if that is
            repeatable itself.
        data_dir: Where the data set is stored; `None` for TFDS's own choice. Not used
            if `name` is a builder.

    Returns:
        A `tf.data.Dataset` of `(images, labels)`, with images float32 of shape
        `(batch, height, width, channels)`, or `(batch, channels, height, width)` if
        `keras.config.image_data_format()` is `"channels_first"`, and labels int64 of
        shape `(batch,)`, or float32 of shape `(batch, classes)`.

    Raises:
        ValueError: If an argument is invalid, or the data set has no `image` and
            `label`.

    Example:

    ```python
    from keras_coordatt.data import load_classification

    train = load_classification(
        "digits/classification", "train", 32, shuffle=True, seed=0
    )
    images, labels = next(iter(train))  # (32, 32, 32, 3) and (32,)
    ```
    """
    import tensorflow_datasets as tfds

    size = _height_and_width(image_size)
    batch_size = check_positive_int("batch_size", batch_size)
    if not isinstance(split, str | tfds.core.ReadInstruction):
        raise ValueError(f"`split` must be one TFDS split. Received: {split!r}")
    for argument, function in (("augment", augment), ("preprocess", preprocess)):
        if function is not None and not callable(function):
            raise ValueError(f"`{argument}` must be callable. Received: {function!r}")
    check_choice("shuffle", shuffle, (True, False))
    check_choice("one_hot", one_hot, (True, False))
    if not isinstance(seed, numbers.Integral | None):
        raise ValueError(f"`seed` must be None or an integer. Received: {seed!r}")
    builder = prepare_builder(name, data_dir)
    num_classes = builder.info.features["label"].num_classes
    # tfds refuses to reorder the files of an ordered data set, and ImageFolder, whose
    # files lie in a shuffled order already, would reorder them without our seed.
    ordered = builder.info.disable_shuffling or isinstance(builder, tfds.ImageFolder)
    dataset = builder.as_dataset(
        split=split,
        shuffle_files=shuffle and not ordered,
        # The images are cached below, once resized.
        read_config=tfds.ReadConfig(shuffle_seed=seed, try_autocache=False),
    )
    dataset = dataset.map(
        lambda example: (_resize(example["image"], size), example["label"]),
        num_parallel_calls=tf.data.AUTOTUNE,
    )
    image = dataset.element_spec[0]
    room = max(1, _MEMORY // (math.prod(image.shape) * image.dtype.size))
    if 0 < dataset.cardinality() <= room:
        dataset = dataset.cache()
    if shuffle:
        dataset = dataset.shuffle(room, seed=seed)

    # Keras's layers and `preprocess_input` expect it too.
    channels_first = keras.config.image_data_format() == "channels_first"

    def finish(images, labels):
        images = tf.cast(images, "float32")
        if channels_first:
            images = tf.transpose(images, (0, 3, 1, 2))
        if isinstance(augment, keras.Layer):
            images = augment(images, training=True)
        elif augment is not None:
            images = augment(images)
        # Under a mixed precision policy, a layer gives half precision.
        images = tf.cast(images, "float32")
        if preprocess is not None:
            images = preprocess(images)
        if one_hot:
            labels = tf.one_hot(labels, num_classes)
        return images, labels

    # In parallel, batches would draw an augmentation's random numbers in any order.
    in_turn = augment is not None and seed is not None
    dataset = dataset.batch(batch_size).map(
        finish, num_parallel_calls=None if in_turn else tf.data.AUTOTUNE
    )
    return dataset.prefetch(tf.data.AUTOTUNE)


def _height_and_width(image_size: int | tuple[int, int]) -> tuple[int, int]:
    size = image_size if isinstance(image_size, tuple | list) else (image_size,) * 2
    if len(size) != 2:
        raise ValueError(
            "`image_size` must be an integer or a pair (height, width). "
            f"Received: {image_size!r}"
        )
    return tuple(check_positive_int("image_size", side) for side in size)


def prepare_builder(
    name: str | tfds.core.DatasetBuilder, data_dir: str | os.PathLike | None = None
) -> tfds.core.DatasetBuilder:
    """Gives the TFDS builder of a classification data set, with its data ready.

    Args:
        name: As in `load_classification`.
        data_dir: As in `load_classification`.

    Returns:
        The builder.

    Raises:
        ValueError: If the data set has no `image` and `label`.
    """
    import tensorflow_datasets as tfds

    from keras_coordatt.data import digits  # noqa: F401, registers "digits"

    if isinstance(name, str):
        builder = tfds.builder(name, data_dir=data_dir)
    elif isinstance(name, tfds.core.DatasetBuilder):
        builder = name
    else:
        raise ValueError(f"`name` must be a TFDS name or a builder. Received: {name!r}")
    # Before a download, which may be long.
    features = dict(builder.info.features.items())
    is_class = isinstance(features.get("label"), tfds.features.ClassLabel)
    if "image" not in features or not is_class:
        raise ValueError(
            "`name` must be a data set with an 'image' and a 'label' that is a "
            f"ClassLabel. Received: {builder.info.full_name} with {features}"
        )
    if builder is not name:
        try:
            builder.download_and_prepare()
        except OSError:
            # Did another process prepare the same data meanwhile? TFDS renames a
            # finished folder to its place, which fails where there is one.
            builder = tfds.builder(name, data_dir=data_dir)
            if not builder.is_prepared():
                raise
    return builder


def open_images(data: str | os.PathLike) -> tfds.core.DatasetBuilder:
    """Gives the builder of a folder of images, or of a TFDS name.

    Args:
        data: A folder `<split>/<class>/*.jpg`, or a TFDS name.

    Returns:
        The builder, with its data ready.

    Raises:
        ValueError: If the data set has no `image` and `label`.
    """
    import tensorflow_datasets as tfds

    data = os.fspath(data)
    return prepare_builder(tfds.ImageFolder(data) if os.path.isdir(data) else data)


def _resize(image: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    if image.shape[:2] == size:
        return image
    resized = tf.image.resize(image, size, antialias=True)
    if image.dtype.is_integer:
        # A quarter of the memory of float32, to cache and to shuffle.
        resized = tf.cast(tf.round(resized), image.dtype)
    return resized
