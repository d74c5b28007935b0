import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_coordatt.training import fine_tune
from keras_coordatt.training.fine_tuning import _Epochs
from keras_coordatt.training.phases import Phase, find_head
from keras_coordatt.training.recipes import recipe

CHANGES = {"epochs": 3, "head_epochs": 1, "learning_rate": 0.02}


@pytest.fixture
def batches():
    rng = np.random.default_rng(0)
    labels = np.tile([0, 1, 2], 4)
    images = rng.normal(size=(12, 32, 32, 3)) + labels[:, None, None, None]
    dataset = tf.data.Dataset.from_tensor_slices((images.astype("float32"), labels))
    return dataset.batch(4)


def test_the_head_first_and_then_all_but_statistics(eager, monkeypatch, build, batches):
    model = build((32, 32, 3))
    layers = {type(layer).__name__: layer for layer in model.layers}
    layers["Conv2D"].trainable = False
    weights = [[x.copy() for x in layer.get_weights()] for layer in layers.values()]
    before = dict(zip(layers, weights))
    set_trainable, rates = Phase.set_trainable, []

    def set_and_record(phase, *arguments):
        set_trainable(phase, *arguments)
        rates.append((phase.name, phase.learning_rate))
        if phase.name == "all":
            # After the head's epochs, the base is as it was.
            for name in ("Conv2D", "BatchNormalization"):
                for a, b in zip(layers[name].get_weights(), before[name]):
                    np.testing.assert_array_equal(a, b)
            assert (layers["Dense"].get_weights()[0] != before["Dense"][0]).any()

    monkeypatch.setattr(Phase, "set_trainable", set_and_record)
    fine_tune(model, batches, changes=CHANGES, verbose=0)
    assert rates == [("head", 3e-3), ("all", 0.02)]
    assert (layers["Conv2D"].get_weights()[0] != before["Conv2D"][0]).any()
    for a, b in zip(
        layers["BatchNormalization"].get_weights(), before["BatchNormalization"]
    ):
        np.testing.assert_array_equal(a, b)
    assert not layers["Conv2D"].trainable and layers["BatchNormalization"].trainable
    # With validation, the weights are those of the best epoch.
    monkeypatch.undo()
    history = fine_tune(model, batches, batches, changes=CHANGES, verbose=0)
    assert len(history["loss"]) == len(history["val_accuracy"]) == 3
    right = [
        model.predict_on_batch(x.numpy()).argmax(-1) == y.numpy() for x, y in batches
    ]
    assert np.mean(right) == pytest.approx(max(history["val_accuracy"]))


@pytest.mark.parametrize("stopped", [False, True])
def test_sgd_leaves_the_regularizers_of_the_user(eager, build, batches, stopped):
    model = build((32, 32, 3))
    own = keras.regularizers.L1(0.5)
    kernel = model.get_layer("predictions").kernel
    kernel.regularizer = own
    changes = {**CHANGES, "optimizer": "sgd", "weight_decay": 0.1}
    if stopped:

        def interrupted():
            yield from batches.take(2)
            raise KeyboardInterrupt

        spec = batches.element_spec
        broken = tf.data.Dataset.from_generator(interrupted, output_signature=spec)
        broken = broken.apply(tf.data.experimental.assert_cardinality(3))
        # TensorFlow reports the error of a generator as its own.
        with pytest.raises((KeyboardInterrupt, tf.errors.OpError)):
            fine_tune(model, broken, changes=changes, verbose=0)
    else:
        fine_tune(model, batches, batches, changes=changes, verbose=0)
    assert [x.regularizer for x in model.weights if x.regularizer] == [own]
    expected = 0.5 * np.abs(keras.ops.convert_to_numpy(kernel)).sum()
    for images, labels in batches:
        scores = model.predict_on_batch(images.numpy())[np.arange(4), labels.numpy()]
        expected += -np.log(scores).sum() / 12
    loss = model.evaluate(batches, verbose=0, return_dict=True)["loss"]
    assert loss == pytest.approx(expected, rel=1e-4)


def test_a_sequential_model_that_has_no_output_yet(eager, batches):
    model = keras.Sequential(
        [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3, "softmax")]
    )
    model.build((None, 32, 32, 3))
    changes = {**CHANGES, "epochs": 1, "head_epochs": 0}
    history = fine_tune(model, batches, batches, changes=changes, verbose=0)
    assert len(history["val_accuracy"]) == 1


def test_an_epoch_without_a_metric_is_not_the_best(build):
    model = build((32, 32, 3))
    model.compile()
    epochs = _Epochs("detection", None, recipe("fine-tune", "detection"))
    epochs.set_model(model)
    # NaN where there are no objects: nothing is greater than it.
    for epoch, value in enumerate([np.nan, 0.5, 0.25]):
        model.set_weights([np.full(x.shape, epoch) for x in model.get_weights()])
        epochs.on_epoch_end(epoch, {"val_AP": value})
    epochs.load_best(model)
    assert all((x == 1).all() for x in model.get_weights())


def nested(end):
    inner = keras.Sequential([keras.Input((4,)), *end])
    return [keras.layers.ReLU(), inner]


Dense = keras.layers.Dense
ENDS = {
    "logits": lambda: [Dense(3)],
    "softmax": lambda: [Dense(3, activation="softmax")],
    "softmax, flat": lambda: [Dense(3, "softmax"), keras.layers.Flatten()],
    "softmax layer": lambda: [Dense(3), keras.layers.Softmax()],
    "softmax operation": lambda: [Dense(3), keras.ops.softmax],
    "softmax, mean of two": lambda: [
        lambda x: keras.layers.average([Dense(3, "softmax")(x) for _ in range(2)])
    ],
    "logits, at a temperature": lambda: [Dense(3), lambda x: x / 2],
    "nested logits": lambda: nested([Dense(3)]),
    "nested softmax layer": lambda: nested([Dense(3), keras.layers.Softmax()]),
}


@pytest.mark.parametrize("end", ENDS)
def test_the_loss_is_of_what_the_model_ends_in(eager, batches, end):
    x = image = keras.Input((32, 32, 3))
    x = keras.layers.GlobalAveragePooling2D()(
        keras.layers.Conv2D(4, 3, 4, activation="relu")(x)
    )
    for layer in ENDS[end]():
        x = layer(x)
    model = keras.Model(image, x)
    changes = {**CHANGES, "epochs": 1, "head_epochs": 0}
    fine_tune(model, batches, changes=changes, verbose=0)
    total = 0
    for images, labels in batches:
        scores = model.predict_on_batch(images.numpy())
        scores = scores if "softmax" in end else np.exp(scores)
        scores = scores / scores.sum(-1, keepdims=True)
        total -= np.log(scores[np.arange(4), labels.numpy()]).sum() / 12
    loss = model.evaluate(batches, verbose=0, return_dict=True)["loss"]
    assert loss == pytest.approx(total, rel=1e-4)


def test_the_head_of_a_nested_classifier(build):
    inner = build((32, 32, 3))
    model = keras.Sequential([keras.Input((32, 32, 3)), inner])
    assert find_head(model, "classification") == [inner.get_layer("predictions")]


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.pool = keras.layers.GlobalAveragePooling2D()
        self.classify = Dense(3, "softmax")

    def call(self, images):
        return self.classify(self.pool(images))


def by_hand(x):
    x = keras.ops.exp(Dense(3)(x))
    return x / keras.ops.sum(x, -1, keepdims=True)


def log_softmax(x):
    return keras.ops.log(Dense(3, "softmax")(x))


@pytest.mark.parametrize(
    "end",
    [
        *(Dense(3, "sigmoid"), Dense(1), Dense(3, "relu"), Subclassed()),
        *(by_hand, log_softmax, lambda x: 2 * Dense(3, "softmax")(x)),
    ],
)
def test_a_loss_is_needed(batches, end):
    image = keras.Input((32, 32, 3))
    x = (
        image
        if isinstance(end, Subclassed)
        else keras.layers.GlobalMaxPooling2D()(image)
    )
    with pytest.raises(ValueError, match="`loss` must be given"):
        fine_tune(keras.Model(image, end(x)), batches)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"changes": {"batch_size": 4}}, "`changes` can't have 'batch_size'"),
        ({"changes": {"label_smoothing": 0.2}}, "`label_smoothing` is for one-hot"),
        ({"head": [keras.layers.Dense(2)]}, "`head` must be layers of the model"),
        ({"model": Subclassed()}, "`model` must be functional.*Received: <Subclassed"),
    ],
)
def test_wrong_arguments(build, batches, arguments, message):
    with pytest.raises(ValueError, match=message):
        fine_tune(**{"model": build((32, 32, 3)), "train": batches, **arguments})
