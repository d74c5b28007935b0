"""Images with boxes around their objects, in batches for `model.fit`."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import tensorflow as tf

from keras_coordatt.data.common import Batches, prepare_builder
from keras_coordatt.validation import check_choice, check_positive_int

if TYPE_CHECKING:
    import tensorflow_datasets as tfds


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
    batches = Batches(split, image_size, batch_size, augment, preprocess, shuffle, seed)
    max_boxes = check_positive_int("max_boxes", max_boxes)
    check_choice("keep_difficult", keep_difficult, (True, False))
    builder = prepare_builder(
        name,
        data_dir,
        "'objects' with a 'bbox' and a 'label' that is a ClassLabel",
        _has_boxes,
    )
    left_out = {"is_crowd"} if keep_difficult else {"is_crowd", "is_difficult"}

    def read(example):
        objects = example["objects"]
        keep = tf.ones_like(objects["label"], "bool")
        for mark in left_out & objects.keys():
            keep &= ~objects[mark]
        boxes = tf.boolean_mask(objects["bbox"], keep)[:max_boxes]
        labels = tf.boolean_mask(objects["label"], keep)[:max_boxes]
        padding = [[0, max_boxes - tf.size(labels)]]
        boxes = tf.pad(tf.gather(boxes, [1, 0, 3, 2], axis=1), [*padding, [0, 0]])
        labels = tf.pad(tf.cast(labels, "int32"), padding, constant_values=-1)
        return {
            "boxes": tf.ensure_shape(boxes, (max_boxes, 4)),
            "labels": tf.ensure_shape(labels, (max_boxes,)),
        }

    def finish(images, objects):
        data = batches.apply({"images": images, "bounding_boxes": objects})
        boxes = tf.cast(data["bounding_boxes"]["boxes"], "float32")
        labels = tf.cast(data["bounding_boxes"]["labels"], "int32")
        boxes = tf.clip_by_value(boxes, 0, 1)
        inside = (labels >= 0) & tf.reduce_all(boxes[..., :2] < boxes[..., 2:], -1)
        return data["images"], {
            "boxes": tf.where(inside[..., None], boxes, 0),
            "labels": tf.where(inside, labels, -1),
        }

    return batches.load(builder, read, finish)


def _has_boxes(features: dict) -> bool:
    import tensorflow_datasets as tfds

    objects = getattr(features.get("objects"), "feature", None)
    if not isinstance(objects, tfds.features.FeaturesDict):
        return False
    objects = dict(objects.items())
    return isinstance(objects.get("bbox"), tfds.features.BBoxFeature) and isinstance(
        objects.get("label"), tfds.features.ClassLabel
    )
