"""Augmentation layers get all their inputs; labels and boxes follow their images."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from data_scenes import annotation, encode, is_red, scene, write
from PIL import Image

from keras_coordatt.data import load_classification, load_detection, load_segmentation
from keras_coordatt.data.augmentation import _COLOR_ONLY, _MISPLACE_BOXES

LEVELS = np.arange(8) * 30.0
MIXING = [keras.layers.MixUp, keras.layers.CutMix]
# Layers that move boxes correctly.
FOLLOWED = (
    keras.layers.CenterCrop,
    keras.layers.MaxNumBoundingBoxes,
    keras.layers.RandomFlip,
    keras.layers.RandomTranslation,
    keras.layers.RandomZoom,
    keras.layers.Resizing,
)


@pytest.fixture(scope="module")
def levels(tmp_path_factory):
    """Two gray pictures per class, with one gray level per class."""
    path = tmp_path_factory.mktemp("levels")
    for level in LEVELS:
        image = Image.new("RGB", (16, 16), (int(level),) * 3)
        for i in range(2):
            file = path / f"train/{int(level):03}/{i}.png"
            write(file, encode(image, "PNG"))
    return path


@pytest.fixture(scope="module")
def boxes(tmp_path_factory):
    path = tmp_path_factory.mktemp("boxes")
    for i in range(3):
        image, box, _ = scene(i)
        write(path / f"JPEGImages/{i}.png", encode(image, "PNG"))
        write(path / f"Annotations/{i}.xml", annotation(image.size, box))
    write(path / "ImageSets/Main/train.txt", "0\n1\n2\n")
    return path


def read(dataset):
    images, labels = zip(*tfds.as_numpy(dataset), strict=True)
    return np.concatenate(images), np.concatenate(labels)


# Labels


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("layer", MIXING)
def test_labels_are_mixed_as_their_images(levels, layer, nested):
    augment = layer(seed=0)
    if nested:
        flip = keras.layers.RandomFlip("horizontal", seed=0)
        augment = keras.layers.Pipeline([flip, keras.layers.Pipeline([augment])])
    dataset = load_classification(
        levels, "train", 64, 16, augment=augment, one_hot=True
    )
    images, labels = read(dataset)
    assert labels.dtype == np.float32
    assert labels.shape == (16, 8)
    np.testing.assert_allclose(labels.sum(-1), 1, atol=1e-5)
    # A picture's mean level is the mean of the mixed pictures, up to a row and a column.
    tolerance = 0.01 if layer is keras.layers.MixUp else 210 / 32
    error = np.abs(images.mean((1, 2, 3)) - labels @ LEVELS)
    assert error.max() < tolerance
    assert (labels.max(-1) < 0.99).any()


@pytest.mark.parametrize("layer", MIXING)
def test_labels_are_mixed_in_float32(levels, layer, mixed_float16):
    with pytest.raises(ValueError, match=f"{layer.__name__} made with dtype='float32'"):
        load_classification(levels, "train", 16, augment=layer(), one_hot=True)
    mix = layer(seed=0, dtype="float32")
    _, labels = read(
        load_classification(levels, "train", 16, 16, augment=mix, one_hot=True)
    )
    assert labels.dtype == np.float32
    np.testing.assert_allclose(labels.sum(-1), 1, atol=1e-6)


def test_labels_are_mixed_channels_first(levels, channels_first):
    mix = keras.layers.MixUp(seed=0)
    images, labels = read(
        load_classification(levels, "train", 16, 16, augment=mix, one_hot=True)
    )
    np.testing.assert_allclose(images.mean((1, 2, 3)), labels @ LEVELS, atol=0.01)


@pytest.mark.parametrize("layer", MIXING)
def test_integer_labels_cannot_be_mixed(levels, layer):
    for augment in (layer(), keras.layers.Pipeline([layer()])):
        with pytest.raises(ValueError, match=f"{layer.__name__}.*`one_hot=True`"):
            load_classification(levels, "train", 16, augment=augment)


def test_a_mixing_layer_inside_a_model_would_get_no_labels(levels):
    image = keras.Input((16, 16, 3))
    model = keras.Model(image, keras.layers.MixUp()(image))
    with pytest.raises(ValueError, match=r"MixUp in a keras\.layers\.Pipeline"):
        load_classification(levels, "train", 16, augment=model, one_hot=True)


# Boxes and masks


def make(layer, **arguments):
    """Builds a layer with the strength argument that it takes."""
    for strength in ((), (0.5,), (4,), (8, 8)):
        try:
            return layer(*strength, **arguments)
        except (TypeError, ValueError) as error:
            reason = error
    raise reason


@pytest.mark.parametrize("layer", _COLOR_ONLY)
def test_layers_that_move_nothing_need_no_format(boxes, layer):
    dataset = load_detection(boxes, "train", (32, 48), augment=make(layer))
    ((images, objects),) = tfds.as_numpy(dataset)
    ((plain, expected),) = tfds.as_numpy(load_detection(boxes, "train", (32, 48)))
    assert images.shape == plain.shape
    np.testing.assert_array_equal(objects["boxes"], expected["boxes"])
    np.testing.assert_array_equal(objects["labels"], expected["labels"])


def test_layers_that_move_nothing_beside_one_that_moves(boxes):
    layers = [
        keras.layers.RandomContrast(0.1, seed=0),
        keras.layers.RandomFlip("horizontal", bounding_box_format="rel_xyxy", seed=0),
        keras.layers.RandomGrayscale(0.0),
    ]
    augment = keras.layers.Pipeline(layers)
    dataset = load_detection(boxes, "train", (32, 48), augment=augment)
    ((images, objects),) = tfds.as_numpy(dataset)
    for image, (box, *_) in zip(images, objects["boxes"], strict=True):
        ys, xs = np.nonzero(is_red(image))
        expected = (
            xs.min() / 48,
            ys.min() / 32,
            (xs.max() + 1) / 48,
            (ys.max() + 1) / 32,
        )
        np.testing.assert_allclose(box, expected, atol=1.1 / 32)


def test_every_layer_of_keras_is_known():
    """A new layer of Keras must be added to one of the lists."""
    layers = {
        layer
        for name in dir(keras.layers)
        if hasattr(layer := getattr(keras.layers, name), "transform_bounding_boxes")
    }
    assert layers == {*_COLOR_ONLY, *_MISPLACE_BOXES, *FOLLOWED}


@pytest.mark.parametrize("layer", _MISPLACE_BOXES)
def test_layers_that_misplace_boxes_are_refused(boxes, layer):
    alone = make(layer)
    alone.bounding_box_format = "rel_xyxy"
    for augment in (alone, keras.layers.Pipeline([alone])):
        with pytest.raises(ValueError, match=f"`augment` must keep.*{layer.__name__}"):
            load_detection(boxes, "train", 32, augment=augment)


@pytest.fixture
def masks(tmp_path):
    image, _, mask = scene()
    write(tmp_path / "labels.txt", "background\nthing")
    write(tmp_path / "train/images/a.png", encode(image, "PNG"))
    write(tmp_path / "train/masks/a.png", encode(Image.fromarray(mask), "PNG"))
    return tmp_path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("AugMix", "must not blend"),
        ("CutMix", "must not blend"),
        ("MixUp", "must not blend"),
        ("RandomElasticTransform", "must keep masks"),
    ],
)
def test_layers_that_spoil_masks_are_refused(name, message, masks):
    layer = getattr(keras.layers, name)()
    for augment in (layer, keras.layers.Pipeline([layer])):
        with pytest.raises(ValueError, match=f"`augment` {message}.*{name}"):
            load_segmentation(masks, "train", 32, augment=augment)


def test_layers_that_are_refused_do_misplace_masks(masks, monkeypatch):
    """Fails once Keras has fixed the layer, which then needn't be refused."""
    monkeypatch.setattr("keras_coordatt.data.augmentation._MISPLACE_MASKS", ())
    layer = keras.layers.RandomElasticTransform(
        1.0, scale=1.0, interpolation="nearest", seed=0
    )
    augment = keras.layers.Pipeline([layer])
    dataset = load_segmentation(masks, "train", (32, 48), augment=augment)
    ((images, loaded),) = tfds.as_numpy(dataset.repeat(8).unbatch().batch(8))
    assert (is_red(images) != (loaded == 1)).any()


# Return values


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda boxes, labels: (boxes * 320, labels), "relative to the image"),
        (lambda boxes, labels: (boxes, labels + 1), "Labels must be.* from 0 to 0"),
        (lambda boxes, labels: (boxes, labels - 1), "Labels must be.* from 0 to 0"),
    ],
    ids=["pixels", "from 1", "below -1"],
)
def test_boxes_and_labels_that_augment_must_not_return(boxes, change, message):
    def augment(data):
        objects = data["bounding_boxes"]
        changed, labels = change(objects["boxes"], objects["labels"])
        return {**data, "bounding_boxes": {"boxes": changed, "labels": labels}}

    dataset = load_detection(boxes, "train", 32, augment=augment)
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"(?s){message}"):
        list(dataset)
