"""load_classification against TFDS read directly, and NumPy."""

import shutil
import socket

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from keras_coordatt.applications.mobilenet_v2_ca import preprocess_input
from keras_coordatt.data import digits, load_classification

NAME = "digits/classification"


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Folder of the prepared digits, without a download."""
    path = tmp_path_factory.mktemp("tfds")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(socket, "socket", None)
        load_classification(NAME, "train", 32, data_dir=path)
    return path


@pytest.fixture(scope="module")
def stored(data_dir):
    """The first 70 images and labels of the training split, read by TFDS."""
    dataset = tfds.load(
        NAME, split="train[:70]", data_dir=data_dir, as_supervised=True, batch_size=-1
    )
    return tfds.as_numpy(dataset)


@pytest.fixture
def load(data_dir):
    def load(image_size=32, batch_size=32, name=NAME, split="train[:70]", **arguments):
        return load_classification(
            name, split, image_size, batch_size, data_dir=data_dir, **arguments
        )

    return load


@pytest.fixture
def folder(tmp_path):
    """An `ImageFolder` with images of several sizes and file formats."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 3), ("test", 1)):
        for label in ("cat", "ant"):
            (tmp_path / split / label).mkdir(parents=True)
            for i in range(count):
                image = rng.integers(0, 256, (20 + i, 30 - i, 3), "uint8")
                png = tf.io.encode_png(image).numpy()
                (tmp_path / split / label / f"{i}.png").write_bytes(png)
            jpeg = tf.io.encode_jpeg(np.full((9, 9, 3), 100, "uint8")).numpy()
            (tmp_path / split / label / "gray.jpg").write_bytes(jpeg)
    return tmp_path


def read(dataset):
    """All images and labels of a data set, as two arrays."""
    images, labels = zip(*tfds.as_numpy(dataset))
    return np.concatenate(images), np.concatenate(labels)


def in_some_order(images):
    return images[np.lexsort(images.reshape(len(images), -1).T)]


def mirror(images):
    return images[:, :, ::-1]


# Layouts


def test_batches_equal_stored_data(load, stored):
    batches = list(load())
    assert [len(labels) for _, labels in batches] == [32, 32, 6]
    images, labels = read(batches)
    assert (images.dtype, labels.dtype) == (np.float32, np.int64)
    np.testing.assert_array_equal(images, stored[0])
    np.testing.assert_array_equal(labels, stored[1])


def test_static_shapes(load):
    images, labels = load((24, 40), one_hot=True).element_spec
    assert images.shape.as_list() == [None, 24, 40, 3]
    assert labels.shape.as_list() == [None, 10]


def test_one_hot(load, stored):
    _, labels = read(load(one_hot=True))
    assert labels.dtype == np.float32
    np.testing.assert_array_equal(labels, np.eye(10)[stored[1]])


# Down by a whole and by a broken factor, up, and each axis apart.
@pytest.mark.parametrize("size", [16, (20, 32), (11, 45)])
def test_resized_images_are_bilinear_and_antialiased(load, stored, size):
    height, width = np.broadcast_to(size, 2)
    rows, columns = resizer(32, height), resizer(32, width)
    expected = np.einsum("hi,nijc,wj->nhwc", rows, stored[0], columns)
    images, _ = read(load(size))
    # Rounded, as the data set is of integers.
    np.testing.assert_array_equal(images, images.round())
    assert np.abs(images - expected).max() < 0.51


def resizer(old, new):
    """The matrix that resizes one axis: triangles over the old pixels' centers."""
    scale = old / new
    centers = (np.arange(new)[:, None] + 0.5) * scale - 0.5
    weights = 1 - np.abs(np.arange(old) - centers) / max(scale, 1)
    weights = np.maximum(weights, 0)
    return weights / weights.sum(1, keepdims=True)


# Shuffling and caching

uncached = pytest.mark.parametrize("memory", [2**28, 10 * 32 * 32 * 3])


@uncached
def test_shuffled_anew_each_time_and_nothing_lost(load, stored, limit_memory, memory):
    limit_memory(memory)
    dataset = load(shuffle=True)
    first, second = read(dataset)[0], read(dataset)[0]
    assert not np.array_equal(first, stored[0])
    assert not np.array_equal(first, second)
    for images in (first, second):
        np.testing.assert_array_equal(
            in_some_order(images), in_some_order(stored[0].astype("float32"))
        )


@uncached
def test_a_seed_repeats_the_order(load, limit_memory, memory):
    limit_memory(memory)
    one, same, other = (load(shuffle=True, seed=seed) for seed in (1, 1, 2))
    for _ in range(2):
        images, labels = read(one)
        again, labels_again = read(same)
        np.testing.assert_array_equal(images, again)
        np.testing.assert_array_equal(labels, labels_again)
        assert not np.array_equal(images, read(other)[0])


def test_images_and_labels_are_shuffled_together(load, stored):
    label_of = {i.tobytes(): label for i, label in zip(*stored)}
    images, labels = read(load(shuffle=True))
    assert [label_of[i.astype("uint8").tobytes()] for i in images] == list(labels)


# Functions of images


def test_functions_get_batches_of_0_to_255_and_preprocess_comes_last(load, stored):
    # 255 - 254 is 1, and 254 - 255 would have been -1.
    dataset = load(augment=lambda x: 255 - x, preprocess=lambda x: x / 255)
    np.testing.assert_allclose(read(dataset)[0], 1 - stored[0] / 255, atol=1e-6)


def test_preprocess_input_of_a_network(load, stored):
    images, _ = read(load(preprocess=preprocess_input))
    expected = preprocess_input(stored[0].astype("float32"))
    np.testing.assert_allclose(images, expected, atol=1e-5)


def test_a_layer_trains(load, stored):
    layer = keras.layers.RandomFlip("horizontal", seed=0)
    images = read(load(augment=layer))[0]
    flipped = (images == mirror(stored[0])).all((1, 2, 3))
    kept = (images == stored[0]).all((1, 2, 3))
    assert (flipped | kept).all()
    assert flipped.any()
    assert kept.any()


def test_a_seed_repeats_augmentation(load):
    def dataset():
        layers = [
            keras.layers.RandomFlip("horizontal", seed=0),
            keras.layers.RandomTranslation(0.2, 0.2, seed=1),
        ]
        pipeline = keras.layers.Pipeline(layers)
        return load(batch_size=8, augment=pipeline, shuffle=True, seed=2)

    one, same = dataset(), dataset()
    for _ in range(2):
        np.testing.assert_array_equal(read(one)[0], read(same)[0])


def test_cached_images_are_augmented_anew(load):
    dataset = load(augment=keras.layers.RandomTranslation(0.2, 0.2))
    assert not np.array_equal(read(dataset)[0], read(dataset)[0])


def test_images_are_float32_under_mixed_precision(load, stored):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        layer = keras.layers.RandomFlip("horizontal", seed=0)
        images = read(load(augment=layer, preprocess=lambda x: x + 1e4))[0]
    finally:
        keras.config.set_dtype_policy("float32")
    assert images.dtype == np.float32
    # Half precision would lose the odd numbers above 2048.
    np.testing.assert_array_equal(
        np.sort(images - 1e4, axis=2), np.sort(stored[0], axis=2)
    )


def test_channels_first(load, stored):
    keras.config.set_image_data_format("channels_first")
    try:
        layer = keras.layers.RandomFlip("horizontal", seed=0)
        images = read(load(augment=layer, preprocess=preprocess_input))[0]
        expected = preprocess_input(stored[0].astype("float32").transpose(0, 3, 1, 2))
    finally:
        keras.config.set_image_data_format("channels_last")
    assert images.shape == (70, 3, 32, 32)
    flipped = np.isclose(images, expected[..., ::-1], atol=1e-5).all((1, 2, 3))
    kept = np.isclose(images, expected, atol=1e-5).all((1, 2, 3))
    assert (flipped | kept).all()
    assert flipped.any()


# Data sets


def test_a_model_fits(load):
    model = keras.Sequential(
        [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(10)]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss)
    train = load(preprocess=preprocess_input)
    history = model.fit(train, epochs=2, verbose=0).history["loss"]
    assert history[1] < history[0]


def test_a_builder(data_dir, stored):
    builder = tfds.builder_from_directory(data_dir / "digits/classification/1.0.0")
    images, labels = read(load_classification(builder, "train[:70]", 32))
    np.testing.assert_array_equal(images, stored[0])
    np.testing.assert_array_equal(labels, stored[1])


def test_files_are_shuffled_too_and_a_seed_repeats_that(limit_memory, tmp_path):
    images = np.zeros((12, 8, 8, 1), "uint8")
    builder = tfds.dataset_builders.store_as_tfds_dataset(
        "sharded",
        version="1.0.0",
        features=tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(8, 8, 1)),
                "label": tfds.features.ClassLabel(num_classes=12),
            }
        ),
        split_datasets={
            "train": tf.data.Dataset.from_tensor_slices(
                {"image": images, "label": np.arange(12)}
            )
        },
        data_dir=tmp_path,
        download_config=tfds.download.DownloadConfig(num_shards=12),
    )
    # Leaves room to shuffle one image among itself.
    limit_memory(1)

    def order(**arguments):
        return list(read(load_classification(builder, "train", 8, **arguments))[1])

    stored = order()
    assert sorted(stored) == list(range(12))
    shuffled = order(shuffle=True, seed=0)
    assert shuffled == order(shuffle=True, seed=0)
    assert shuffled != stored


def test_image_folder(folder):
    builder = tfds.ImageFolder(folder)
    images, labels = read(load_classification(builder, "train", 24, shuffle=True))
    assert images.shape == (8, 24, 24, 3)
    assert sorted(labels) == [0] * 4 + [1] * 4
    gray = np.abs(images - 100).max((1, 2, 3)) <= 1
    assert sorted(labels[gray]) == [0, 1]
    assert len(read(load_classification(builder, "test", 24))[1]) == 4


def test_image_folder_repeats_its_order(folder):
    def labels(seed):
        dataset = load_classification(
            tfds.ImageFolder(folder), "train", 8, shuffle=True, seed=seed
        )
        return [list(read(dataset)[1]) for _ in range(3)]

    assert labels(0) == labels(0)
    assert labels(0) != labels(1)


def test_images_that_fit_are_decoded_once(folder):
    dataset = load_classification(tfds.ImageFolder(folder), "train", 24, shuffle=True)
    images = read(dataset)[0]
    shutil.rmtree(folder / "train")
    np.testing.assert_array_equal(
        in_some_order(images), in_some_order(read(dataset)[0])
    )


def test_images_that_do_not_fit_are_decoded_each_time(folder, limit_memory):
    limit_memory(7 * 24 * 24 * 3)
    dataset = load_classification(tfds.ImageFolder(folder), "train", 24, shuffle=True)
    assert len(read(dataset)[0]) == 8
    shutil.rmtree(folder / "train")
    with pytest.raises(tf.errors.OpError, match="cannot be read"):
        read(dataset)


# Known to TFDS, of one size and of many.
@pytest.mark.parametrize(
    ("name", "classes"), [("cifar10", 10), ("mnist", 10), ("imagenet2012", 1000)]
)
def test_data_sets_of_tfds(tmp_path, name, classes):
    with tfds.testing.mock_data(num_examples=5):
        dataset = load_classification(
            name, "train", 32, 2, shuffle=True, one_hot=True, data_dir=tmp_path
        )
        images, labels = read(dataset)
    assert images.shape == (5, 32, 32, 1 if name == "mnist" else 3)
    assert labels.shape == (5, classes)
    assert 0 <= images.min() < images.max() <= 255
    np.testing.assert_array_equal(labels.sum(1), 1)


# Preparation


def test_another_process_is_faster(monkeypatch, tmp_path):
    generators = digits.Digits._split_generators
    monkeypatch.setattr(digits, "_DIGITS", {"test": range(3)})

    with monkeypatch.context() as slower:

        def overtaken(self, dl_manager):
            slower.undo()
            load_classification(NAME, "test", 32, data_dir=tmp_path)
            return generators(self, dl_manager)

        slower.setattr(digits.Digits, "_split_generators", overtaken)
        _, labels = read(load_classification(NAME, "test", 32, data_dir=tmp_path))
    np.testing.assert_array_equal(labels, [0, 1, 2])
    # The slower one's work is gone.
    assert [path.name for path in (tmp_path / NAME).iterdir()] == ["1.0.0"]


def test_a_data_dir_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="Not a directory: .*file/"):
        load_classification(NAME, "test", 32, data_dir=tmp_path / "file")


# Arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": 3}, "`name` must be.*Received: 3"),
        ({"name": "digits/scenes"}, "'image' and a 'label'.*digits/scenes"),
        ({"name": "no_such_data"}, "neither a file or folder 'no_such_data' nor"),
        ({"split": "validation"}, r"split 'validation'.*\['train', 'test'\]"),
        ({"split": ["train", "test"]}, r"`split` must be.*\['train', 'test'\]"),
        ({"split": None}, "`split` must be.*None"),
        ({"image_size": 0}, "`image_size` must be.*0"),
        ({"image_size": 32.0}, "`image_size` must be.*32.0"),
        ({"image_size": "32"}, "`image_size` must be.*'32'"),
        ({"image_size": (32, 32, 3)}, r"`image_size` must be.*\(32, 32, 3\)"),
        ({"image_size": (32, None)}, "`image_size` must be.*None"),
        ({"batch_size": 0}, "`batch_size` must be.*0"),
        ({"augment": "flip"}, "`augment` must be callable.*'flip'"),
        ({"preprocess": 255}, "`preprocess` must be callable.*255"),
        ({"shuffle": 1000}, "`shuffle` must be.*1000"),
        ({"one_hot": "yes"}, "`one_hot` must be.*'yes'"),
        ({"seed": 0.5}, "`seed` must be.*0.5"),
    ],
)
def test_bad_arguments(load, arguments, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        load(**arguments)
