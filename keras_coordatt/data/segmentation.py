"""Images with a class for each pixel, in batches for `model.fit`."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import keras
import tensorflow as tf

from keras_coordatt.data.common import Batches, layers_of, prepare_builder, resize

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

# The class of pixels that don't count, as in the masks of Pascal VOC and Cityscapes.
IGNORED = 255

# What is between two classes is none.
_BLEND_MASKS = (keras.layers.AugMix, keras.layers.MixUp)


def load_segmentation(
    name: str | tfds.core.DatasetBuilder,
    split: str | tfds.core.ReadInstruction,
    image_size: int | tuple[int, int],
    batch_size: int = 32,
    *,
    augment: Callable | None = None,
    preprocess: Callable | None = None,
    shuffle: bool = False,
    seed: int | None = None,
    data_dir: str | os.PathLike | None = None,
) -> tf.data.Dataset:
    """Loads images with a class for each pixel, in batches.

    Images are resized, cached and shuffled as in `load_classification`. Masks are
    resized to the nearest pixel, so that no class appears between two others.

    Args:
        name: A TFDS name such as `"digits/scenes"`, which is downloaded and prepared
            where need be, or a builder whose data are ready, such as
            `MaskFolder(path)`. The data set must have the features `image` and
            `segmentation_mask`, an `Image` of one channel that holds classes from 0,
            and 255 where a pixel is not to count.
        split: A TFDS split, such as `"train"` or `"train[:90%]"`.
        image_size: The images' and masks' height and width, as a pair or as one
            integer.
        batch_size: Images a batch. The last batch may be smaller.
        augment: A Keras preprocessing layer, called with `training=True`, or any
            function, of a dict with a batch of `images`, float32 from 0 to 255, and of
            `segmentation_masks`, with an axis for channels. It gives such a dict.
            Several layers go into a `keras.layers.Pipeline`. On every backend,
            functions get TensorFlow tensors. A function gets masks int32 of one
            channel. A layer gets them float, with a second channel of 255 less the
            first: where that no longer holds, the layer filled in what was outside of
            the image, and the pixel becomes `IGNORED`.
        preprocess: A function of a batch of images, applied last, such as a network's
            `preprocess_input`.
        shuffle: Whether to put the images in a new order each time the data set is
            read.
        seed: An integer that makes the order repeatable, and `augment` if that is
            repeatable itself.
        data_dir: Where the data set is stored; `None` for TFDS's own choice. Not used
            if `name` is a builder.

    Returns:
        A `tf.data.Dataset` of `(images, masks)`, with images float32 of shape
        `(batch, height, width, channels)`, or `(batch, channels, height, width)` if
        `keras.config.image_data_format()` is `"channels_first"`, and masks int32 of
        shape `(batch, height, width)`. Pixels that do not count are `IGNORED`, 255.

    Raises:
        ValueError: If an argument is invalid, the data set has no such features, or a
            layer of `augment` blends masks, as `MixUp` and `AugMix` do.

    Example:

    ```python
    import keras
    from keras_coordatt.data import load_segmentation

    flip = keras.layers.RandomFlip("horizontal")
    train = load_segmentation("digits/scenes", "train", 128, augment=flip, shuffle=True)
    images, masks = next(iter(train))  # (32, 128, 128, 3) and (32, 128, 128)
    ```
    """
    batches = Batches(split, image_size, batch_size, augment, preprocess, shuffle, seed)
    for layer in layers_of(augment):
        if isinstance(layer, _BLEND_MASKS):
            raise ValueError(
                "`augment` must not blend masks, which "
                f"{type(layer).__name__} does. Received: {augment!r}"
            )
    builder = prepare_builder(
        name, data_dir, "a 'segmentation_mask' of one channel", _has_mask
    )
    channels = 1 if keras.config.image_data_format() == "channels_first" else -1

    def read(example):
        mask = resize(example["segmentation_mask"], batches.image_size, "nearest")
        return tf.squeeze(mask, -1)

    def finish(images, masks):
        masks = tf.cast(masks, "int32")
        if augment is None:
            return images, masks
        # Layers fill with a constant, which may well be some class. But no constant is
        # 255 less itself.
        marked = isinstance(augment, keras.Layer)
        masks = tf.stack([masks, IGNORED - masks] if marked else [masks], channels)
        data = batches.apply({"images": images, "segmentation_masks": masks})
        masks, *rest = tf.unstack(data["segmentation_masks"], axis=channels)
        if marked:
            masks = tf.where(masks == IGNORED - rest[0], masks, IGNORED)
        return data["images"], tf.cast(masks, "int32")

    return batches.load(builder, read, finish)


def _has_mask(features: dict) -> bool:
    import tensorflow_datasets as tfds

    mask = features.get("segmentation_mask")
    return isinstance(mask, tfds.features.Image) and mask.shape[-1] == 1
