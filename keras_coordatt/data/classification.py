"""Images with one label each, in batches for `model.fit`."""

import os
from collections.abc import Callable

import tensorflow as tf
import tensorflow_datasets as tfds

from keras_coordatt.data.augmentation import augment_images, check_mixing
from keras_coordatt.data.batches import Batches, check_labels
from keras_coordatt.data.opening import open_data
from keras_coordatt.validation import check_choice


def load_classification(
    name: str | os.PathLike | tfds.core.DatasetBuilder,
    split: str | tfds.core.ReadInstruction,
    image_size: int | tuple[int, int],
    batch_size: int = 32,
    *,
    augment: Callable | None = None,
    preprocess: Callable | None = None,
    shuffle: bool = False,
    one_hot: bool = False,
    drop_remainder: bool = False,
    seed: int | None = None,
    data_dir: str | os.PathLike | None = None,
    on_error: str = "raise",
    validation_split: float | None = None,
    split_seed: int = 0,
    shard: tuple[int, int] = (0, 1),
    steps: int | None = None,
    pad_remainder: bool = False,
) -> tf.data.Dataset:
    """Loads labeled images from a folder or from TFDS, in batches.

    Images are resized by antialiased bilinear interpolation, without keeping the aspect
    ratio, and keep the data set's dtype until they are batched. If all of them fit in
    1 GiB, they are decoded only once.

    Args:
        name: A folder, as for `ClassFolder`; a TFDS name such as
            `"digits/classification"`, `"cifar10"` or `"imagenet2012"`, which is
            downloaded and prepared if need be; or a builder whose data are ready, such
            as `ClassFolder(path)`. The data set must have the features `image` and
            `label`, a `ClassLabel`.
        split: A TFDS split, such as `"train"` or `"train[:90%]"`.
        image_size: The images' height and width, as a pair or as one integer.
        batch_size: Images per batch.
        augment: A Keras preprocessing layer, called with `training=True`, or any
            function of a batch of images, float32 from 0 to 255. Several layers go
            into a `keras.layers.Pipeline`. `MixUp` and `CutMix` mix the labels too:
            they need `one_hot=True`, and under a mixed precision policy
            `dtype="float32"`. On every backend, functions get TensorFlow tensors.
        preprocess: A function of a batch of images, applied last, such as a network's
            `preprocess_input`.
        shuffle: Whether to put the images in a new order each time the data set is
            read. Those of a data set too large to be cached are shuffled within a
            buffer of 256 MiB, after its files, if they need not stay in order.
        one_hot: Whether labels are float32 one-hot vectors, rather than integers.
        drop_remainder: Whether to leave out the last batch if it is smaller. Set it
            to train a network with batch normalization over few positions: the
            statistics of a last batch of one image would ruin it. With `shuffle`, other
            images are left out each time.
        seed: An integer that makes the order repeatable, and `augment` if that is
            repeatable itself.
        data_dir: Where the data set is stored; `None` for TFDS's own choice. Only used
            with a TFDS name.
        on_error: What to do with files of a folder that cannot be used: `"raise"`,
            `"skip"` or `"repair"`, same as in `ClassFolder`, `VOCFolder` and
            `MaskFolder`. A builder has its own.
        validation_split: The part of a folder's `train` to use as `validation`, in
            (0, 1), if it has none. It is another part once an image is added or
            removed. A builder has its own.
        split_seed: An integer that determines this part. Pass the same one to load
            `train` and `validation`.
        shard: `(i, n)` to load only the i-th of n equal parts of the split, counted
            from 0: one process of n reads no other images. `batch_size` is that of one
            part.
        steps: Number of batches, all of the same size: images are repeated, or left
            out, as needed. Defaults to reading every image once.
        pad_remainder: Whether to fill up the last batch with images that don't count,
            so that all batches, and all shards, have the same size. The batches are
            then `(images, targets, weights)`, for `evaluate` and `validation_data`, and
            a mean over them is that over the images. Compile with `weighted_metrics`.

    Returns:
        A `tf.data.Dataset` of `(images, labels)`, with images float32 of shape
        `(batch, height, width, channels)`, or `(batch, channels, height, width)` if
        `keras.config.image_data_format()` is `"channels_first"`, and labels int64 of
        shape `(batch,)`, or float32 of shape `(batch, classes)`.

    Raises:
        ValueError: If an argument is invalid, files of a folder cannot be used, or the
            data set has no `image` and `label`.
        tf.errors.InvalidArgumentError: When it is read, if a label of a builder is not
            one of its classes.

    Example:

    >>> train = load_classification(
    ...     "digits/classification", "train", 32, shuffle=True, seed=0
    ... )
    >>> images, labels = next(iter(train))
    >>> images.shape
    (32, 32, 32, 3)
    """
    batches = Batches(
        split,
        image_size,
        batch_size,
        augment,
        preprocess,
        shuffle,
        drop_remainder,
        seed,
        shard,
        steps,
        pad_remainder,
    )
    check_choice("one_hot", one_hot, (True, False))
    check_mixing(augment, one_hot)
    builder = open_data(
        name,
        "classification",
        data_dir=data_dir,
        on_error=on_error,
        validation_split=validation_split,
        split_seed=split_seed,
    )
    num_classes = builder.info.features["label"].num_classes

    def read(example):
        return check_labels(example["label"], num_classes)

    def finish(images, labels):
        if one_hot:
            labels = tf.one_hot(labels, num_classes)
        images, labels = augment_images(augment, images, labels)
        return images, tf.cast(labels, "float32") if one_hot else labels

    return batches.load(builder, read, finish, padding=0)
