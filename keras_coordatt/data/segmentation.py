"""Images with a class for each pixel, in batches for `model.fit`."""

import os
from collections.abc import Callable

import keras
import tensorflow as tf
import tensorflow_datasets as tfds

from keras_coordatt.data.augmentation import augment_with_targets, check_masks_follow
from keras_coordatt.data.batches import (
    Batches,
    check_labels,
    resize,
)
from keras_coordatt.data.opening import open_data
from keras_coordatt.record import IGNORED


def load_segmentation(
    name: str | os.PathLike | tfds.core.DatasetBuilder,
    split: str | tfds.core.ReadInstruction,
    image_size: int | tuple[int, int],
    batch_size: int = 32,
    *,
    augment: Callable | None = None,
    preprocess: Callable | None = None,
    shuffle: bool = False,
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
    """Loads images with a class for each pixel, in batches.

    Images are resized, cached and shuffled as in `load_classification`. Masks are
    resized to the nearest pixel, so that no class appears between two others.

    Args:
        name: A folder, as for `MaskFolder`; a TFDS name such as `"digits/scenes"`; or
            a builder, such as `MaskFolder(path)`. The data set must have the features
            `image` and `segmentation_mask`, an `Image` of one channel that holds
            classes from 0, and 255 where a pixel is ignored.
        split, image_size, batch_size: Same as in `load_classification`. Masks have the
            size of images.
        augment: A Keras preprocessing layer, called with `training=True`, or any
            function, of a dict with a batch of `images`, float32 from 0 to 255, and of
            `segmentation_masks`, with an axis for channels. It returns such a dict.
            Several layers go into a `keras.layers.Pipeline`. On every backend,
            functions get TensorFlow tensors. A function gets masks int32 of one
            channel. A layer gets them float, with a second channel of 255 less the
            first: where that no longer holds, the layer has filled in a pixel from
            outside of the image, and it becomes `IGNORED`.
        preprocess, shuffle, drop_remainder, seed, data_dir, on_error, validation_split,
            split_seed, shard, steps, pad_remainder: Same as in
            `load_classification`.

    Returns:
        A `tf.data.Dataset` of `(images, masks)`, with images float32 of shape
        `(batch, height, width, channels)`, or `(batch, channels, height, width)` if
        `keras.config.image_data_format()` is `"channels_first"`, and masks int32 of
        shape `(batch, height, width)`. Ignored pixels are `IGNORED`, 255.

    Raises:
        ValueError: If an argument is invalid, files of a folder cannot be used, the
            data set has no such features, or a layer of `augment` blends or misplaces
            masks, as in Keras 3.15 do `AugMix`, `CutMix`, `MixUp` and
            `RandomElasticTransform`.
        tf.errors.InvalidArgumentError: When it is read, if a mask of a builder has
            values that are neither classes nor 255.

    Example:

    >>> flip = keras.layers.RandomFlip("horizontal")
    >>> train = load_segmentation("digits/scenes", "train", 128, augment=flip, shuffle=True)
    >>> images, masks = next(iter(train))
    >>> images.shape, masks.shape
    ((32, 128, 128, 3), (32, 128, 128))
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
    check_masks_follow(augment)
    builder = open_data(
        name,
        "segmentation",
        data_dir=data_dir,
        on_error=on_error,
        validation_split=validation_split,
        split_seed=split_seed,
    )
    # An `Image` has no number of classes.
    feature = builder.info.features["segmentation_mask"]
    num_classes = getattr(feature, "num_classes", None)
    channels = 1 if keras.config.image_data_format() == "channels_first" else -1

    def read(example):
        mask = resize(example["segmentation_mask"], batches.image_size, "nearest")
        if num_classes:
            classes = tf.boolean_mask(mask, mask != IGNORED)
            check = check_labels(tf.reduce_max(classes), num_classes)
            with tf.control_dependencies([check]):
                mask = tf.identity(mask)
        return tf.squeeze(mask, -1)

    def finish(images, masks):
        masks = tf.cast(masks, "int32")
        if augment is None:
            return images, masks
        # Layers fill with a constant, which may well be a class. But no constant is 255
        # less itself.
        marked = isinstance(augment, keras.Layer)
        masks = tf.stack([masks, IGNORED - masks] if marked else [masks], channels)
        data = {"images": images, "segmentation_masks": masks}
        data = augment_with_targets(augment, data)
        masks, *inverted = tf.unstack(data["segmentation_masks"], axis=channels)
        if marked:
            masks = tf.where(masks == IGNORED - inverted[0], masks, IGNORED)
        return data["images"], tf.cast(masks, "int32")

    return batches.load(builder, read, finish, padding=IGNORED, dense=True)
