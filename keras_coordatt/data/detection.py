"""Images with bounding boxes, in batches for `model.fit`."""

import os
from collections.abc import Callable

import tensorflow as tf
import tensorflow_datasets as tfds

from keras_coordatt.data.augmentation import augment_with_targets, check_boxes_follow
from keras_coordatt.data.batches import Batches, check_labels
from keras_coordatt.data.opening import open_data
from keras_coordatt.validation import check_choice, check_positive_int

# A longer side means boxes in pixels: no zoom enlarges an object that much.
_LONGEST_SIDE = 10


def load_detection(
    name: str | os.PathLike | tfds.core.DatasetBuilder,
    split: str | tfds.core.ReadInstruction,
    image_size: int | tuple[int, int],
    batch_size: int = 32,
    *,
    max_boxes: int = 100,
    keep_difficult: bool = False,
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
    """Loads images with boxes around their objects, in batches.

    Images are resized, cached and shuffled as in `load_classification`. Boxes are
    relative to the image's size, so they hold at every size.

    Groups of objects in one box (`is_crowd`, as in COCO) are left out, and so are
    objects that are hard to recognize (`is_difficult`, as in Pascal VOC), so that a
    network does not learn from them. The score of VOC counts the latter neither as
    found nor as missed: to compute it, set `keep_difficult` and use the marks.

    Args:
        name: A folder, as for `VOCFolder`; a TFDS name such as `"digits/scenes"`,
            `"voc/2007"` or `"coco/2017"`; or a builder, such as `VOCFolder(path)`. The
            data set must have the features `image` and `objects`, with a `bbox` and a
            `label`, a `ClassLabel`.
        split, image_size, batch_size: Same as in `load_classification`.
        max_boxes: Boxes per image. Of an image with more, the first are kept.
        keep_difficult: Whether to keep the objects that are `is_difficult`.
        augment: A Keras preprocessing layer, called with `training=True`, or any
            function, of a dict with a batch of `images`, float32 from 0 to 255, and
            with `bounding_boxes`, a dict of `boxes` and `labels`. It returns such a
            dict. Layers that move objects need `bounding_box_format="rel_xyxy"`; those
            that only change colors get the images alone. Several layers go into a
            `keras.layers.Pipeline`. On every backend, functions get TensorFlow tensors.
            Boxes that leave the image are dropped.
        preprocess, shuffle, drop_remainder, seed, data_dir, on_error, validation_split,
            split_seed, shard, steps, pad_remainder: Same as in
            `load_classification`.

    Returns:
        A `tf.data.Dataset` of `(images, objects)`, with images float32 of shape
        `(batch, height, width, channels)`, or `(batch, channels, height, width)` if
        `keras.config.image_data_format()` is `"channels_first"`. The objects are a dict
        of `boxes`, float32 of shape `(batch, max_boxes, 4)`, each (x1, y1, x2, y2) from
        0 to 1, and of `labels`, int32 of shape `(batch, max_boxes)`. Where there is no
        object, the box is 0 and the label -1.

    Raises:
        ValueError: If an argument is invalid, files of a folder cannot be used, the
            data set has no such features, or a layer of `augment` takes boxes of
            another format or returns boxes that are not where the objects are, as in
            Keras 3.15 do `AugMix`, `CutMix`, `MixUp`, `RandAugment`, `RandomCrop`,
            `RandomElasticTransform`, `RandomPerspective`, `RandomRotation` and
            `RandomShear`.
        tf.errors.InvalidArgumentError: When it is read, if a builder or `augment` gives
            labels that are not classes, or boxes that are not relative to the image's
            size, such as boxes in pixels.

    Example:

    >>> flip = keras.layers.RandomFlip("horizontal", bounding_box_format="rel_xyxy")
    >>> train = load_detection("digits/scenes", "train", 128, augment=flip, shuffle=True)
    >>> images, objects = next(iter(train))
    >>> objects["boxes"].shape
    (32, 100, 4)
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
    max_boxes = check_positive_int("max_boxes", max_boxes)
    check_choice("keep_difficult", keep_difficult, (True, False))
    check_boxes_follow(augment)
    builder = open_data(
        name,
        "detection",
        data_dir=data_dir,
        on_error=on_error,
        validation_split=validation_split,
        split_seed=split_seed,
    )
    num_classes = builder.info.features["objects"]["label"].num_classes
    left_out = {"is_crowd"} if keep_difficult else {"is_crowd", "is_difficult"}

    def read(example):
        objects = example["objects"]
        kept = tf.ones_like(objects["label"], "bool")
        for mark in left_out & objects.keys():
            kept &= ~objects[mark]
        labels = check_labels(objects["label"], num_classes)
        labels = tf.boolean_mask(labels, kept)[:max_boxes]
        boxes = _check_boxes(objects["bbox"], -0.01, 1.01)
        boxes = tf.boolean_mask(boxes, kept)[:max_boxes]
        # From (y1, x1, y2, x2).
        boxes = tf.gather(boxes, (1, 0, 3, 2), axis=1)
        padding = (0, max_boxes - tf.size(labels))
        labels = tf.pad(tf.cast(labels, "int32"), [padding], constant_values=-1)
        boxes = tf.pad(boxes, [padding, (0, 0)])
        return {
            "boxes": tf.ensure_shape(boxes, (max_boxes, 4)),
            "labels": tf.ensure_shape(labels, (max_boxes,)),
        }

    def finish(images, objects):
        data = {"images": images, "bounding_boxes": objects}
        data = augment_with_targets(augment, data)
        # Keras's layers return labels as floats, and move the padding's boxes too.
        objects = data["bounding_boxes"]
        labels = check_labels(tf.cast(objects["labels"], "int32"), num_classes, low=-1)
        boxes = tf.cast(objects["boxes"], "float32")
        if augment is not None:
            boxes = _check_sides(boxes, labels)
        boxes = tf.clip_by_value(boxes, 0, 1)
        visible = tf.reduce_all(boxes[..., :2] < boxes[..., 2:], axis=-1)
        visible &= labels >= 0
        return data["images"], {
            "boxes": tf.where(visible[..., None], boxes, 0),
            "labels": tf.where(visible, labels, -1),
        }

    return batches.load(
        builder, read, finish, padding={"boxes": 0, "labels": -1}, dense=True
    )


def _check_boxes(boxes, low, high):
    # False if one is NaN.
    fits = tf.reduce_all((boxes >= low) & (boxes <= high))
    message = "Boxes must be relative to the image's size, from 0 to 1. Received:"
    with tf.control_dependencies([tf.debugging.Assert(fits, [message, boxes])]):
        return tf.identity(boxes)


def _check_sides(boxes, labels):
    sides = boxes[..., 2:] - boxes[..., :2]
    sides = tf.where((labels >= 0)[..., None], sides, 0)
    fits = tf.reduce_all(sides <= _LONGEST_SIDE)
    message = (
        "`augment` must return boxes relative to the image's size, from 0 to 1. "
        "The longest side of a box is"
    )
    check = tf.debugging.Assert(fits, [message, tf.reduce_max(sides)])
    with tf.control_dependencies([check]):
        return tf.identity(boxes)
