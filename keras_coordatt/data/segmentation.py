"""Images with a class for each pixel, in batches for `model.fit`."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import keras
import tensorflow as tf

from keras_coordatt.data.common import Batches, prepare_builder, resize

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

# The class of pixels that don't count, as in the masks of Pascal VOC and Cityscapes.
IGNORED = 255


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
    batches = Batches(split, image_size, batch_size, augment, preprocess, shuffle, seed)
    builder = prepare_builder(
        name, data_dir, "a 'segmentation_mask' of one channel", _has_mask
    )
    axis = 1 if keras.config.image_data_format() == "channels_first" else -1

    def read(example):
        mask = resize(example["segmentation_mask"], batches.image_size, "nearest")
        return tf.squeeze(mask, -1)

    def finish(images, masks):
        masks = tf.cast(masks, "int32")
        if isinstance(augment, keras.Layer):
            # Keras's layers fill what they move in with a constant, which would be some
            # class. No constant has this relation between two channels.
            masks = tf.stack([masks, IGNORED - masks], axis)
            data = batches.apply({"images": images, "segmentation_masks": masks})
            masks, rest = tf.unstack(
                tf.cast(tf.round(data["segmentation_masks"]), "int32"), 2, axis
            )
            masks = tf.where(masks + rest == IGNORED, masks, IGNORED)
            return data["images"], masks
        if augment is not None:
            masks = tf.expand_dims(masks, axis)
            data = batches.apply({"images": images, "segmentation_masks": masks})
            masks = tf.cast(tf.squeeze(data["segmentation_masks"], axis), "int32")
            return data["images"], masks
        return images, masks

    return batches.load(builder, read, finish)


def _has_mask(features: dict) -> bool:
    import tensorflow_datasets as tfds

    mask = features.get("segmentation_mask")
    return isinstance(mask, tfds.features.Image) and mask.shape[-1] == 1
