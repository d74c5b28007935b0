import keras
import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
from backends import once
from keras import layers
from networks import outputs, quick_initial_weights

from keras_coordatt import MobileNetV2CA, insert_attention
from keras_coordatt.applications import blocks
from keras_coordatt.preprocessing import (
    IMAGENET,
    RAW_PIXELS,
    Preprocessing,
    PreprocessingRecord,
    preprocess_input,
    preprocessing_of,
)

SHAPE = (32, 32, 3)


@pytest.fixture(scope="module")
def models():
    """A normalizing network and one that isn't, by the expected record."""
    return {
        record: MobileNetV2CA(
            SHAPE, 0.1, classes=3, weights=None, include_preprocessing=normalizes
        )
        for record, normalizes in ((RAW_PIXELS, True), (IMAGENET, False))
    }


def nested(model):
    image = keras.Input(SHAPE)
    return keras.Model(image, model(image))


def with_augmentation(model):
    image = keras.Input(SHAPE)
    return keras.Model(image, model(layers.RandomFlip()(image)))


def behind_resizing(model):
    image = keras.Input((48, 40, 3))
    return keras.Model(image, model(layers.Resizing(32, 32)(image)))


def in_sequential(model):
    return keras.Sequential([keras.Input(SHAPE), layers.RandomRotation(0.1), model])


def under_another_head(model):
    features = model.get_layer("avg_pool").output
    return keras.Model(model.input, layers.Dense(7)(features))


def quantized(model):
    copy = keras.models.clone_model(model)
    copy.get_layer("predictions").quantize("int8")
    return copy


@pytest.mark.parametrize("record", [RAW_PIXELS, IMAGENET], ids=["raw", "imagenet"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda model: model,
        nested,
        lambda model: nested(nested(model)),
        with_augmentation,
        behind_resizing,
        in_sequential,
        under_another_head,
        keras.models.clone_model,
        insert_attention,
        quantized,
    ],
)
def test_survives(wrap, record, models):
    assert preprocessing_of(wrap(models[record])) == record


@pytest.mark.parametrize("record", [RAW_PIXELS, IMAGENET], ids=["raw", "imagenet"])
def test_survives_saving(record, models, tmp_path):
    with_augmentation(models[record]).save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert preprocessing_of(loaded) == record


def rescaled(model):
    image = keras.Input(SHAPE)
    return keras.Model(image, model(layers.Rescaling(1 / 127.5, -1)(image)))


def of_two_opinions(model):
    image = keras.Input(SHAPE)
    other = PreprocessingRecord(Preprocessing(std=(1.0, 1.0, 1.0)))(image)
    other = layers.Dense(3)(layers.GlobalMaxPooling2D()(other))
    return keras.Model(image, layers.Add()([model(image), other]))


def with_a_bypass(model):
    image = keras.Input(SHAPE)
    other = layers.Dense(3)(layers.GlobalMaxPooling2D()(image))
    return keras.Model(image, layers.Add()([model(image), other]))


class Subclass(keras.Model):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def call(self, x):
        return self.model(x)


@pytest.mark.parametrize("wrap", [rescaled, of_two_opinions, with_a_bypass, Subclass])
def test_is_unknown_where_something_stands_between(wrap, models):
    assert preprocessing_of(wrap(models[RAW_PIXELS])) is None


@pytest.mark.parametrize(
    "make",
    [
        lambda: keras.applications.MobileNetV2(SHAPE, weights=None),
        lambda: keras.applications.EfficientNetB0(input_shape=SHAPE, weights=None),
        lambda: nested(
            keras.applications.EfficientNetB0(input_shape=SHAPE, weights=None)
        ),
        lambda: keras.Sequential([keras.Input(SHAPE), layers.Normalization()]),
        lambda: keras.Sequential([keras.Input(SHAPE), layers.Rescaling(1 / 255)]),
        lambda: MobileNetV2CA((32, 32, 4), 0.1, include_top=False, weights=None),
    ],
)
def test_is_unknown_for_models_of_other_packages(make):
    with quick_initial_weights():
        assert preprocessing_of(make()) is None


def test_raw_pixels_are_left_as_they_are():
    pixels = np.arange(768, dtype="float32").reshape(1, 16, 16, 3) % 256
    np.testing.assert_array_equal(RAW_PIXELS.normalize(pixels), pixels)


def test_imagenet_is_preprocess_input(channels_first):
    x = np.random.default_rng(0).uniform(0, 255, (2, 3, 5, 7)).astype("float32")
    np.testing.assert_allclose(IMAGENET.normalize(x), preprocess_input(x), atol=1e-6)
    last = IMAGENET.normalize(x.transpose(0, 2, 3, 1), "channels_last")
    np.testing.assert_allclose(
        last.transpose(0, 3, 1, 2), preprocess_input(x), atol=1e-6
    )


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_preprocessing_is_preprocess_input(data_format, channels_first):
    keras.config.set_image_data_format(data_format)
    shape = (5, 7, 3) if data_format == "channels_last" else (3, 5, 7)
    inputs = keras.Input(shape)
    model = keras.Model(inputs, blocks.image_entrance(inputs, True))
    model = keras.Model.from_config(model.get_config())
    x = np.random.default_rng(0).uniform(0, 255, (2, *shape)).astype("float32")
    np.testing.assert_allclose(outputs(model, x), preprocess_input(x), atol=1e-5)


@pytest.mark.parametrize(
    "x, data_format, received",
    [
        ([[[1, 2, 3]]], None, r"\[\[\[1, 2, 3\]\]\]"),
        (np.zeros((2, 8, 8)), None, r"shape \(2, 8, 8\)"),
        (np.zeros((2, 3, 8, 8)), "channels_last", r"shape \(2, 3, 8, 8\)"),
        (np.zeros((2, 8, 8, 3)), "channels_first", r"shape \(2, 8, 8, 3\)"),
        (np.zeros(3), None, r"shape \(3,\)"),
    ],
)
def test_what_is_no_rgb_image_is_not_normalized(x, data_format, received):
    with pytest.raises(ValueError, match=f"`x` must be.*RGB.*Received: {received}"):
        preprocess_input(x, data_format)
    with pytest.raises(ValueError, match="`data_format` must be one of"):
        preprocess_input(np.zeros((8, 8, 3)), "last")


@pytest.mark.parametrize("shape", [(None, None, None), (None, None, 3)])
def test_images_of_unknown_shape_are_normalized(shape):
    x = np.random.default_rng(0).uniform(0, 255, (5, 7, 3)).astype("float32")
    spec = tf.TensorSpec(shape, "float32")
    images = tf.data.Dataset.from_generator(lambda: [x], output_signature=spec)
    (found,) = images.map(preprocess_input)
    np.testing.assert_allclose(found, preprocess_input(x), atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "mixed_float16"])
def test_record_is_the_identity(dtype):
    x = np.random.default_rng(0).uniform(0, 255, (1, 4, 4, 3)).astype("float32")
    layer = PreprocessingRecord(IMAGENET, dtype=dtype)
    np.testing.assert_array_equal(outputs(layer, x), x)


@pytest.mark.parametrize(
    "arguments",
    [
        {"mean": (0.5,)},
        {"std": (1.0, 0.0, 1.0)},
        {"std": (1.0, np.nan, 1.0)},
        {"mean": ("a", "b", "c")},
        {"mean": 0.5},
        {"interpolation": "cubic"},
        {"antialias": 1},
    ],
)
def test_bad_arguments(arguments):
    (name,) = arguments
    with pytest.raises(ValueError, match=f"`{name}`.*Received"):
        Preprocessing(**arguments)


def test_no_model():
    with pytest.raises(TypeError, match="`model`.*Received: None"):
        preprocessing_of(None)


@once
@pytest.mark.parametrize(
    "interpolation", ["nearest", "bilinear", "bicubic", "lanczos3"]
)
@pytest.mark.parametrize("size", [(24, 7), (24, 90), (9, 36)])
def test_resize_is_pillows(interpolation, size):
    # Stripes, at whose edges the kernels overshoot
    image = np.zeros((24, 36, 3), "uint8")
    image[:, 5:17] = 255
    image[3:9] = [255, 40, 0]
    kind = PIL.Image.Resampling[interpolation.rstrip("3").upper()]
    expected = np.asarray(PIL.Image.fromarray(image).resize(size[::-1], kind))
    how = Preprocessing(interpolation=interpolation)
    found = np.asarray(how.resize(image, size))
    assert found.min() >= 0 and found.max() <= 255
    assert (found == found.round()).all()
    # Along one axis alone, as Pillow rounds and clips after each
    assert np.abs(found - expected.astype("float32")).max() <= 1
