"""Checks and batches of all loaders, on every backend."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from data_scenes import annotation, encode, scene, write
from PIL import Image

from keras_coordatt.data import (
    ClassFolder,
    MaskFolder,
    VOCFolder,
    load_classification,
    load_detection,
    load_segmentation,
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Five pictures, as a folder for each task."""
    path = tmp_path_factory.mktemp("tasks")
    for i in range(5):
        image, box, mask = scene(i)
        content = encode(image, "PNG")
        write(path / f"classes/train/{'ab'[i % 2]}/{i}.png", content)
        write(path / f"boxes/JPEGImages/{i}.png", content)
        write(path / f"boxes/Annotations/{i}.xml", annotation(image.size, box))
        write(path / f"masks/train/images/{i}.png", content)
        mask = encode(Image.fromarray(mask), "PNG")
        write(path / f"masks/train/masks/{i}.png", mask)
    write(path / "boxes/ImageSets/Main/train.txt", "0\n1\n2\n3\n4")
    write(path / "masks/labels.txt", "background\nthing")
    return path


TASKS = {
    "classes": load_classification,
    "boxes": load_detection,
    "masks": load_segmentation,
}
tasks = pytest.mark.parametrize("task", TASKS)


@tasks
def test_a_last_batch_of_one_is_left_out(folders, task):
    def sizes(**arguments):
        dataset = TASKS[task](folders / task, "train", 16, 2, **arguments)
        return [len(images) for images, _ in tfds.as_numpy(dataset)]

    assert sizes() == [2, 2, 1]
    assert sizes(drop_remainder=True) == [2, 2]


@tasks
def test_size_of_complete_batches_is_static(folders, task):
    dataset = TASKS[task](folders / task, "train", 16, 2, drop_remainder=True)
    for spec in tf.nest.flatten(dataset.element_spec):
        assert spec.shape[0] == 2


@tasks
def test_no_batch_is_left(folders, task):
    with pytest.raises(ValueError, match="`drop_remainder` leaves no batch.*5 images"):
        TASKS[task](folders / task, "train", 16, 6, drop_remainder=True)


@tasks
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"drop_remainder": 1}, "`drop_remainder` must be.*1"),
        ({"on_error": "ignore"}, "`on_error` must be.*'ignore'"),
    ],
)
def test_bad_arguments(folders, task, arguments, message):
    with pytest.raises(ValueError, match=message):
        TASKS[task](folders / task, "train", 16, **arguments)


# Invalid examples of builders


class Classes(ClassFolder):
    change = 0

    def _read(self, example):
        example = super()._read(example)
        return {**example, "label": example["label"] + self.change}


class Boxes(VOCFolder):
    change = 0
    scale = 1.0

    def _read(self, example):
        example = super()._read(example)
        objects = example["objects"]
        label, bbox = objects["label"] + self.change, objects["bbox"] * self.scale
        return {**example, "objects": {**objects, "label": label, "bbox": bbox}}


class Masks(MaskFolder):
    change = 0

    def _read(self, example):
        example = super()._read(example)
        mask = example["segmentation_mask"] + tf.cast(self.change, "uint8")
        return {**example, "segmentation_mask": mask}


@pytest.mark.parametrize("change", [1, -1])
@pytest.mark.parametrize("one_hot", [False, True])
def test_labels_out_of_range(folders, change, one_hot):
    builder = Classes(folders / "classes")
    assert len(list(load_classification(builder, "train", 16, one_hot=one_hot))) == 1
    builder.change = change
    dataset = load_classification(builder, "train", 16, one_hot=one_hot)
    with pytest.raises(
        tf.errors.InvalidArgumentError, match="Labels must.*from 0 to 1"
    ):
        list(dataset)


@pytest.mark.parametrize("change", [1, -1])
def test_labels_of_boxes_out_of_range(folders, change):
    builder = Boxes(folders / "boxes")
    assert len(list(load_detection(builder, "train", 16))) == 1
    builder.change = change
    with pytest.raises(
        tf.errors.InvalidArgumentError, match="Labels must.*from 0 to 0"
    ):
        list(load_detection(builder, "train", 16))


@pytest.mark.parametrize("scale", [48, np.nan])
def test_boxes_in_pixels(folders, scale):
    builder = Boxes(folders / "boxes")
    builder.scale = scale
    with pytest.raises(tf.errors.InvalidArgumentError, match="Boxes must be relative"):
        list(load_detection(builder, "train", 16))


def test_values_of_masks_out_of_range(folders):
    builder = Masks(folders / "masks")
    assert len(list(load_segmentation(builder, "train", 16))) == 1
    builder.change = 1
    with pytest.raises(
        tf.errors.InvalidArgumentError, match="Labels must.*from 0 to 1"
    ):
        list(load_segmentation(builder, "train", 16))


def test_groups_and_boxes_without_an_area_are_left_out(tmp_path):
    boxes = [[0.1, 0.2, 0.5, 0.9], [0.0, 0.0, 1.0, 1.0], [0.3, 0.3, 0.3, 0.6]]
    builder = tfds.dataset_builders.store_as_tfds_dataset(
        "crowd",
        version="1.0.0",
        features=tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(8, 8, 3)),
                "objects": tfds.features.Sequence(
                    {
                        "bbox": tfds.features.BBoxFeature(),
                        "label": tfds.features.ClassLabel(num_classes=5),
                        "is_crowd": np.bool_,
                    }
                ),
            }
        ),
        split_datasets={
            "train": tf.data.Dataset.from_tensors(
                {
                    "image": np.zeros((8, 8, 3), "uint8"),
                    "objects": {
                        "bbox": np.array(boxes, "float32"),
                        "label": [4, 3, 2],
                        "is_crowd": [False, True, False],
                    },
                }
            )
        },
        data_dir=tmp_path,
    )
    dataset = load_detection(builder, "train", 8, max_boxes=3)
    ((_, objects),) = tfds.as_numpy(dataset)
    boxes, labels = objects["boxes"], objects["labels"]
    assert list(labels[0]) == [4, -1, -1]
    np.testing.assert_allclose(boxes[0, 0], [0.2, 0.1, 0.9, 0.5], atol=1e-6)
    assert (boxes[0, 1:] == 0).all()
