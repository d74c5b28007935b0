"""The digits against scikit-learn's copy of them, enlarged again with SciPy."""

import hashlib

import keras
import numpy as np
import pytest
import tensorflow_datasets as tfds
from backends import once
from scipy.ndimage import map_coordinates
from sklearn.datasets import load_digits

from keras_coordatt.data import digits

pytestmark = once

SOURCE = load_digits()
SPLITS = {"train": range(1287), "test": range(1287, 1797)}
# Scenes do not depend on their number, so a few per split are enough.
SCENES = 60


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("tfds")


def prepare(data_dir, name, **config):
    builder = tfds.builder(name, data_dir=data_dir)
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(**config))
    return {split: list(tfds.as_numpy(builder.as_dataset(split))) for split in SPLITS}


@pytest.fixture(scope="module")
def classification(data_dir):
    return prepare(data_dir, "digits/classification")


@pytest.fixture(scope="module")
def scenes(data_dir):
    return prepare(data_dir, "digits/scenes", max_examples_per_split=SCENES)


def enlarge(index, side):
    """The digit's pixels, enlarged to (side, side), from 0 to 1."""
    places = (np.indices((side, side)) + 0.5) * 8 / side - 0.5
    return map_coordinates(
        SOURCE.images[index] / 16, places, order=1, mode="grid-constant"
    )


def crop(mask):
    """Cuts away the empty rows and columns around the ink."""
    ys, xs = np.nonzero(mask)
    return mask[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]


def digest(examples):
    """A hash of examples, whatever their order."""
    hashes = (
        hashlib.sha256(b"".join(part.tobytes() for part in keras.tree.flatten(example)))
        for example in examples
    )
    return hashlib.sha256(b"".join(sorted(h.digest() for h in hashes))).hexdigest()


def test_the_source_is_the_published_one():
    images, labels = digits.load_arrays()
    assert images.dtype == labels.dtype == np.uint8
    np.testing.assert_array_equal(images, SOURCE.images)
    np.testing.assert_array_equal(labels, SOURCE.target)


# The forms that begin the documented validation split, and the test split.
@pytest.mark.parametrize("start", [1157, 1287])
def test_a_split_begins_where_a_form_does(start):
    form = SOURCE.target[:130]
    np.testing.assert_array_equal(SOURCE.target[start - 20 : start], form[-20:])
    np.testing.assert_array_equal(SOURCE.target[start : start + 60], form[:60])


def test_no_digit_is_there_twice():
    # Or a copy could be on both sides of a split.
    assert len(np.unique(SOURCE.images, axis=0)) == 1797


def test_the_first_config_is_the_default(data_dir):
    builder = tfds.builder("digits", data_dir=data_dir)
    assert builder.info.full_name == "digits/classification/1.0.0"
    assert builder.info.features["label"].num_classes == 10
    assert builder.info.supervised_keys == ("image", "label")


def test_classification_has_every_digit_once_in_order(classification):
    for split, examples in classification.items():
        index = [example["index"] for example in examples]
        assert index == list(SPLITS[split])
        label = [example["label"] for example in examples]
        np.testing.assert_array_equal(label, SOURCE.target[index])


def test_documented_validation_split(data_dir, classification):
    builder = tfds.builder("digits", data_dir=data_dir)
    validation = builder.as_dataset("train[1157:]")
    assert [int(example["index"]) for example in validation] == list(range(1157, 1287))


@pytest.mark.parametrize("split", SPLITS)
def test_an_image_shows_its_digit(classification, split):
    """Somewhere in the image, all but the noise is the enlarged digit."""
    for example in classification[split][::100]:
        image = example["image"]
        assert image.shape == (32, 32, 3)
        assert image.dtype == np.uint8
        ink = drawings(example["index"])
        # One background and one ink in each channel, by least squares.
        pixels = image.reshape(-1, 3) - image.mean((0, 1))
        ink -= ink.mean(1, keepdims=True)
        explained = (ink @ pixels) ** 2 / (ink**2).sum(1, keepdims=True)
        left = ((pixels**2).sum(0) - explained) / len(pixels)
        # The noise's standard deviation is 8.
        assert np.sqrt(left.mean(1).min()) < 8.5


def drawings(index):
    """All the ways to place a digit into an image of (32, 32), flattened."""
    ways = []
    for side in range(18, 29):
        ink = np.clip(2 * enlarge(index, side) - 0.4, 0, 1)
        for top in range(33 - side):
            for left in range(33 - side):
                way = np.zeros((32, 32))
                way[top : top + side, left : left + side] = ink
                ways.append(way.ravel())
    return np.array(ways)


def test_scenes_are_of_digits_of_their_split(scenes):
    for split, examples in scenes.items():
        assert len(examples) == SCENES
        for example in examples:
            indices = example["indices"]
            assert 2 <= len(set(indices)) == len(indices) <= 6
            assert set(indices) <= set(SPLITS[split])
            labels = example["objects"]["label"]
            np.testing.assert_array_equal(labels, SOURCE.target[indices])


@pytest.mark.parametrize("split", SPLITS)
def test_boxes_are_tight_and_apart(scenes, split):
    for example in scenes[split]:
        mask = example["segmentation_mask"]
        assert mask.shape == (128, 128, 1)
        assert mask.dtype == np.uint8
        boxes = example["objects"]["bbox"] * 128
        np.testing.assert_array_equal(boxes, np.round(boxes))
        found = np.zeros_like(mask)
        for box, label in zip(boxes.astype(int), example["objects"]["label"]):
            assert 0 <= box.min() <= box.max() <= 128
            window = np.s_[box[0] : box[2], box[1] : box[3]]
            assert set(np.unique(mask[window])) <= {0, 1 + label}
            assert mask[window].shape == crop(mask[window][..., 0]).shape + (1,)
            assert not found[window].any(), "boxes overlap"
            found[window] = 1
        assert not mask[found == 0].any(), "ink outside of all boxes"


def test_a_mask_is_an_enlarged_digit(scenes):
    examples = scenes["train"][:15] + scenes["test"][:15]
    for example in examples:
        mask = example["segmentation_mask"][..., 0] > 0
        boxes = (example["objects"]["bbox"] * 128).astype(int)
        for index, (top, left, bottom, right) in zip(example["indices"], boxes):
            shape = mask[top:bottom, left:right]
            # A pixel that is exactly half covered isn't ink.
            assert any(
                np.array_equal(shape, crop(enlarge(index, side) > 0.45 + 1e-9))
                for side in range(16, 57)
            )


@pytest.mark.parametrize("split", SPLITS)
def test_ink_is_lighter_than_clutter(scenes, split):
    for example in scenes[split]:
        image = example["image"]
        assert image.shape == (128, 128, 3)
        assert image.dtype == np.uint8
        ink = example["segmentation_mask"][..., 0] > 0
        assert (image[ink].mean(0) > image[~ink].mean(0) + 50).all()


def test_every_build_is_the_same(classification, scenes):
    """In any process, on any machine: else the data set needs a new version."""
    assert {
        f"{config}/{split}": digest(examples)[:16]
        for config, splits in (("classification", classification), ("scenes", scenes))
        for split, examples in splits.items()
    } == {
        "classification/train": "3965d4aaf3e8dc91",
        "classification/test": "9e180c491bbdaf61",
        "scenes/train": "6eae6d1276d40337",
        "scenes/test": "ace07d43a2791be4",
    }
