"""Images with a label each, in batches for `model.fit`."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import tensorflow as tf

from keras_coordatt.data.common import Batches, prepare_builder
from keras_coordatt.validation import check_choice

if TYPE_CHECKING:
    import tensorflow_datasets as tfds


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
    batches = Batches(split, image_size, batch_size, augment, preprocess, shuffle, seed)
    check_choice("one_hot", one_hot, (True, False))
    builder = _prepare(name, data_dir)
    num_classes = builder.info.features["label"].num_classes

    def finish(images, labels):
        if one_hot:
            labels = tf.one_hot(labels, num_classes)
        return batches.apply(images), labels

    return batches.load(builder, lambda example: example["label"], finish)


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
    return _prepare(tfds.ImageFolder(data) if os.path.isdir(data) else data)


def _prepare(
    name: str | tfds.core.DatasetBuilder, data_dir: str | os.PathLike | None = None
) -> tfds.core.DatasetBuilder:
    import tensorflow_datasets as tfds

    return prepare_builder(
        name,
        data_dir,
        "a 'label' that is a ClassLabel",
        lambda features: isinstance(features.get("label"), tfds.features.ClassLabel),
    )
