import keras
import numpy as np
import pytest

from keras_coordatt import EfficientNetCA, MobileNetV2CA, MobileNeXtCA
from keras_coordatt.checked_model import Functional, check_batches
from keras_coordatt.segmentation import DeepLabV3

X = np.random.default_rng(0).normal(size=(8, 2)).astype("float32")
Y = np.arange(8) % 3


class Batches(keras.utils.PyDataset):
    def __init__(self, x, y):
        super().__init__()
        self.batches = list(batches(x, y))

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        return self.batches[index]


def batches(x, y):
    for i in range(0, len(x), 4):
        yield x[i : i + 4], y[i : i + 4]


def dataset(x, y):
    tf = pytest.importorskip("tensorflow")
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(4)


@pytest.fixture
def model():
    image = keras.Input((2,))
    model = Functional(image, keras.layers.Dense(3, "softmax")(image))
    model.compile("sgd", "sparse_categorical_crossentropy")
    # A second call of `fit` differs from the first one on JAX.
    model.fit(X, Y, batch_size=4, verbose=0)
    return model


@pytest.mark.parametrize("make", [lambda *xy: xy, dataset, Batches, batches])
@pytest.mark.parametrize(
    "wrong, found", [(Y + 1, "3"), (Y - 1, "-1"), (Y + 0.5, "0.5, 1.5, 2.5")]
)
def test_wrong_labels_are_refused_and_change_nothing(model, make, wrong, found):
    message = f"`y` must be integers from 0 to 2, .* 3 classes. Received: {found}$"
    before = model.get_weights()
    data = make(X, wrong)
    arguments = data if isinstance(data, tuple) else (data,)
    with pytest.raises(ValueError, match=message):
        model.fit(*arguments, verbose=0)
    assert all(map(np.array_equal, before, model.get_weights()))
    with pytest.raises(ValueError, match=message):
        model.fit(X, Y, validation_data=make(X, wrong), verbose=0)
    # On JAX, Keras would have lost the weights.
    assert np.isfinite(model.fit(X, Y, verbose=0).history["loss"]).all()


def test_late_batches_of_a_dataset_are_checked(model):
    with pytest.raises(ValueError, match="Received: 7"):
        model.fit(dataset(X, np.r_[Y[:7], 7]), verbose=0)
    assert np.isfinite(model.predict(X, verbose=0)).all()


def test_a_dataset_is_read_once_per_epoch(model):
    tf = pytest.importorskip("tensorflow")
    read = []

    def count(x, y):
        tf.numpy_function(lambda i: read.append(int(i)), [x[0, 0] * 0], [])
        return x, y

    model.fit(dataset(X, Y).map(count), epochs=2, verbose=0)
    assert len(read) == 4


def test_no_batch_of_a_generator_is_lost():
    checked = []
    found = check_batches(batches(np.arange(12), np.arange(12)), checked.append)
    assert [x.tolist() for x, _ in found] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9, 10, 11],
    ]
    assert len(checked) == 1


def test_ignored_labels_and_other_losses(model):
    ignored = np.where(Y == 1, 255, Y)
    loss = keras.losses.SparseCategoricalCrossentropy(ignore_class=255)
    model.compile("sgd", loss)
    model.fit(X, ignored, verbose=0)
    with pytest.raises(ValueError, match="or 255, which is ignored. Received: 4$"):
        model.fit(X, ignored + 4 * (Y == 0), verbose=0)
    model.compile("sgd", "mse")
    model.fit(X, np.full((8, 3), 7.0), verbose=0)


def test_networks_check_and_stay_so(tmp_path):
    arguments = {"include_top": False, "weights": None, "attention": None}
    networks = [
        MobileNetV2CA((32, 32, 3), 0.25, output_stride=16, **arguments),
        MobileNeXtCA((32, 32, 3), 0.25, **arguments),
        EfficientNetCA("b0", (32, 32, 3), **arguments),
    ]
    networks.append(DeepLabV3(networks[0], 2))
    assert {type(x) for x in networks} == {Functional}
    networks[-1].save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded) is type(keras.models.clone_model(loaded)) is Functional
    nested = keras.Sequential([keras.Input((32, 32, 3)), loaded])
    nested.save_weights(tmp_path / "nested.weights.h5")
    theirs = keras.Model(loaded.input, loaded.output)
    keras.Sequential([keras.Input((32, 32, 3)), theirs]).load_weights(
        tmp_path / "nested.weights.h5"
    )
    loaded.compile("sgd", "sparse_categorical_crossentropy")
    with pytest.raises(ValueError, match="from 0 to 1, .*Received: 2"):
        loaded.fit(np.zeros((1, 32, 32, 3)), np.full((1, 32, 32), 2))
