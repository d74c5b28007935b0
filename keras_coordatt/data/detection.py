"""Images with boxes around their objects, in batches for `model.fit`."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import keras
import tensorflow as tf

from keras_coordatt.data.common import Batches, layers_of, prepare_builder
from keras_coordatt.validation import check_choice, check_positive_int

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

# The boxes that they give are not where the objects are: in Keras 3.15, the tests say.
_MISPLACE_BOXES = (
    keras.layers.RandAugment,  # has the shear and the rotation
    keras.layers.RandomCrop,
    keras.layers.RandomPerspective,
    keras.layers.RandomRotation,
    keras.layers.RandomShear,
)


def load_detection(
    name: str | tfds.core.DatasetBuilder,
    split: str | tfds.core.ReadInstruction,
    image_size: int | tuple[int, int],
    batch_size: int = 32,
    *,
    max_boxes: int = 100,
    keep_difficult: bool = False,
    augment: Callable | None = None,
    preprocess: Callable | None = None,
    shuffle: bool = False,
    seed: int | None = None,
    data_dir: str | os.PathLike | None = None,
) -> tf.data.Dataset:
    """Loads images with boxes around their objects, in batches.

    Images are resized, cached and shuffled as in `load_classification`. Boxes are
    relative to the image's size, so they hold at every size.

    Groups of objects in one box (`is_crowd`, as in COCO) are left out, and so are
    objects that are hard to recognize (`is_difficult`, as in Pascal VOC): a network is
    not to learn from them. Nor does the VOC score count the latter, neither as found
    nor as missed, so whoever computes it needs `keep_difficult` and the marks.

    Args:
        name: A TFDS name such as `"digits/scenes"`, `"voc/2007"` or `"coco/2017"`,
            which is downloaded and prepared where need be, or a builder whose data are
            ready, such as `VOCFolder(path)`. The data set must have the features
            `image` and `objects`, with a `bbox` and a `label`, a `ClassLabel`.
        split: A TFDS split, such as `"train"` or `"train[:90%]"`.
        image_size: The images' height and width, as a pair or as one integer.
        batch_size: Images a batch. The last batch may be smaller.
        max_boxes: Boxes an image. Of an image with more, the first are kept.
        keep_difficult: Whether to keep the objects that are `is_difficult`.
        augment: A Keras preprocessing layer made with
            `bounding_box_format="rel_xyxy"`, called with `training=True`, or any
            function, of a dict with a batch of `images`, float32 from 0 to 255, and
            with `bounding_boxes`, a dict of `boxes` and `labels`. It gives such a dict.
            Several layers go into a `keras.layers.Pipeline`. On every backend,
            functions get TensorFlow tensors. Boxes that leave the image are dropped.
        preprocess: A function of a batch of images, applied last, such as a network's
            `preprocess_input`.
        shuffle: Whether to put the images in a new order each time the data set is
            read.
        seed: An integer that makes the order repeatable, and `augment` if that is
            repeatable itself.
        data_dir: Where the data set is stored; `None` for TFDS's own choice. Not used
            if `name` is a builder.

    Returns:
        A `tf.data.Dataset` of `(images, objects)`, with images float32 of shape
        `(batch, height, width, channels)`, or `(batch, channels, height, width)` if
        `keras.config.image_data_format()` is `"channels_first"`. The objects are a dict
        of `boxes`, float32 of shape `(batch, max_boxes, 4)`, each (x1, y1, x2, y2) from
        0 to 1, and of `labels`, int32 of shape `(batch, max_boxes)`. Where there is no
        object, the box is 0 and the label -1.

    Raises:
        ValueError: If an argument is invalid, the data set has no such features, or a
            layer of `augment` takes boxes of another format or, as `RandomCrop`,
            `RandomRotation`, `RandomShear`, `RandomPerspective` and `RandAugment` of
            Keras 3.15, gives boxes that are not where the objects are.

    Example:

    ```python
    import keras
    from keras_coordatt.data import load_detection

    flip = keras.layers.RandomFlip("horizontal", bounding_box_format="rel_xyxy")
    train = load_detection("digits/scenes", "train", 128, augment=flip, shuffle=True)
    images, objects = next(iter(train))
    objects["boxes"]  # (32, 100, 4)
    ```
    """
    batches = Batches(split, image_size, batch_size, augment, preprocess, shuffle, seed)
    max_boxes = check_positive_int("max_boxes", max_boxes)
    check_choice("keep_difficult", keep_difficult, (True, False))
    for layer in layers_of(augment):
        if isinstance(layer, _MISPLACE_BOXES):
            raise ValueError(
                "`augment` must keep boxes around their objects, which "
                f"{type(layer).__name__} does not. Received: {augment!r}"
            )
        # A layer that is not Keras's may do without.
        if getattr(layer, "bounding_box_format", "rel_xyxy") != "rel_xyxy":
            raise ValueError(
                "`augment` must be made with bounding_box_format='rel_xyxy'. "
                f"Received: {type(layer).__name__} with {layer.bounding_box_format!r}"
            )
    builder = prepare_builder(
        name,
        data_dir,
        "'objects' with a 'bbox' and a 'label' that is a ClassLabel",
        _has_boxes,
    )
    left_out = {"is_crowd"} if keep_difficult else {"is_crowd", "is_difficult"}

    def read(example):
        objects = example["objects"]
        kept = tf.ones_like(objects["label"], "bool")
        for mark in left_out & objects.keys():
            kept &= ~objects[mark]
        labels = tf.boolean_mask(objects["label"], kept)[:max_boxes]
        boxes = tf.boolean_mask(objects["bbox"], kept)[:max_boxes]
        # From (y1, x1, y2, x2).
        boxes = tf.gather(boxes, (1, 0, 3, 2), axis=1)
        rest = (0, max_boxes - tf.size(labels))
        labels = tf.pad(tf.cast(labels, "int32"), [rest], constant_values=-1)
        boxes = tf.pad(boxes, [rest, (0, 0)])
        return {
            "boxes": tf.ensure_shape(boxes, (max_boxes, 4)),
            "labels": tf.ensure_shape(labels, (max_boxes,)),
        }

    def finish(images, objects):
        data = batches.apply({"images": images, "bounding_boxes": objects})
        # Keras's layers give labels as floats, and move the padding's boxes too.
        objects = data["bounding_boxes"]
        labels = tf.cast(objects["labels"], "int32")
        boxes = tf.clip_by_value(tf.cast(objects["boxes"], "float32"), 0, 1)
        seen = tf.reduce_all(boxes[..., :2] < boxes[..., 2:], axis=-1) & (labels >= 0)
        return data["images"], {
            "boxes": tf.where(seen[..., None], boxes, 0),
            "labels": tf.where(seen, labels, -1),
        }

    return batches.load(builder, read, finish)


def _has_boxes(features: dict) -> bool:
    import tensorflow_datasets as tfds

    objects = getattr(features.get("objects"), "feature", None)
    if not isinstance(objects, tfds.features.FeaturesDict):
        return False
    objects = dict(objects.items())
    has_boxes = isinstance(objects.get("bbox"), tfds.features.BBoxFeature)
    return has_boxes and isinstance(objects.get("label"), tfds.features.ClassLabel)
