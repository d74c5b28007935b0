import functools
import os

import keras
import numpy as np
import pytest
from backends import needs_tensorflow
from keras import ops
from networks import images, quick_initial_weights

from keras_coordatt import EfficientNetCA, MobileNetV2CA, MobileNeXtCA
from keras_coordatt.training import (
    Backup,
    train_classifier,
    warmup_cosine,
    zero_init_residuals,
)


@pytest.mark.parametrize(
    "build, residuals",
    [
        (functools.partial(MobileNetV2CA, alpha=0.25), 11),
        (functools.partial(MobileNeXtCA, alpha=0.25), 12),
        (EfficientNetCA, 9),
    ],
)
def test_residual_blocks_start_as_the_identity(build, residuals):
    with quick_initial_weights():
        model = build(input_shape=(64, 64, 3), weights=None, classes=3)
    zero_init_residuals(model)
    sums = [layer for layer in model.layers if isinstance(layer, keras.layers.Add)]
    assert len(sums) == residuals
    ends = keras.Model(model.input, [[*layer.input, layer.output] for layer in sums])
    for tensors in ends(images(1, 64, 64, 3), training=True):
        *terms, total = map(ops.convert_to_numpy, tensors)
        assert any(np.array_equal(term, total) for term in terms)


def test_other_networks_have_no_residual_blocks():
    inputs = keras.Input((8, 8, 3))
    plain = keras.Model(inputs, keras.layers.Conv2D(4, 3)(inputs), name="plain")
    with pytest.raises(ValueError, match=r"`model`.*Received: plain"):
        zero_init_residuals(plain)


def test_warmup_cosine():
    rate = warmup_cosine(100, 0.5, warmup=0.2)
    rates = np.array([float(rate(step)) for step in range(101)])
    assert rates.argmax() == 20
    assert rates[20] == pytest.approx(0.5)
    assert rates[60] == pytest.approx(0.25)  # half way down the cosine
    assert rates[100] == pytest.approx(0, abs=1e-7)
    assert (np.diff(rates[:21]) > 0).all() and (np.diff(rates[20:]) < 0).all()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"steps": 0}, "`steps`.*0"),
        ({"learning_rate": -1.0}, "`learning_rate`.*-1.0"),
        ({"warmup": 1}, "`warmup`.*1"),
    ],
)
def test_wrong_argument(arguments, message):
    with pytest.raises(ValueError, match=message):
        warmup_cosine(**{"steps": 10, "learning_rate": 1e-3, **arguments})


SMALL = functools.partial(MobileNetV2CA, alpha=0.25)


@needs_tensorflow
def test_a_seed_makes_the_training(eager, image_folder):
    arguments = {"image_size": 32, "epochs": 2, "batch_size": 12, "verbose": 0}
    model, report = train_classifier(SMALL, image_folder, seed=1, **arguments)
    assert report["parameters"] == model.count_params()
    assert report["accuracy"] in [pytest.approx(n / 6) for n in range(7)]
    # The end of the schedule: 2 steps of the 12 images.
    assert int(model.optimizer.iterations) == 2
    assert float(model.optimizer.learning_rate) == pytest.approx(0, abs=1e-7)
    again, _ = train_classifier(SMALL, image_folder, seed=1, **arguments)
    other, _ = train_classifier(SMALL, image_folder, seed=2, **arguments)
    kernels = [m.get_layer("Conv1").get_weights()[0] for m in (model, again, other)]
    np.testing.assert_allclose(kernels[1], kernels[0], atol=1e-5)
    assert np.abs(kernels[2] - kernels[0]).max() > 1e-2


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"batch_size": 1}, "`batch_size` must be at least 2"),
        ({"epochs": 0}, "`epochs`.*0"),
        ({"image_size": "64"}, "`image_size`.*'64'"),
        ({"learning_rate": 0}, "`learning_rate`.*0"),
    ],
)
def test_wrong_argument_of_training(arguments, message):
    with pytest.raises(ValueError, match=message):
        train_classifier(SMALL, "no_such_data", **arguments)


class Tiny:
    """A training of three epochs, and a process that dies in the middle of saving."""

    def __init__(self, folder, **settings):
        self.folder, self.settings = folder, {"rate": 1, **settings}

    def train(self, epochs=3):
        """Returns the model and the epochs that were trained."""
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        model.compile(keras.optimizers.Adam(0.1), "mse")
        backup, trained = Backup(self.folder, self.settings), []
        first = backup.restore(model, steps_per_epoch=2)
        note = keras.callbacks.LambdaCallback(
            on_epoch_begin=lambda epoch, logs: trained.append(epoch)
        )
        x, y = np.ones((4, 2)), np.ones((4, 1))
        options = {"epochs": epochs, "initial_epoch": first, "verbose": 0}
        model.fit(x, y, batch_size=2, callbacks=[backup, note], **options)
        return model, trained

    def die_while_saving(self, monkeypatch, epoch):
        """Leaves the folder as SIGKILL does, with half of a file written."""
        save, saved = keras.Model.save_weights, []

        def killed(model, path):
            save(model, path)
            saved.append(path)
            if len(saved) > epoch:
                os.truncate(path, os.path.getsize(path) // 2)
                # Nothing is cleaned up by a process that is killed.
                half = self.folder / "half"
                half.mkdir()
                os.rename(path, half / "latest.weights.h5")
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(keras.Model, "save_weights", killed)
            with pytest.raises(KeyboardInterrupt):
                self.train()


@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_a_training_killed_while_saving_continues(monkeypatch, tmp_path, epoch):
    tiny = Tiny(tmp_path / "backup")
    tiny.die_while_saving(monkeypatch, epoch)
    model, trained = tiny.train()
    assert trained == list(range(epoch, 3))
    assert int(model.optimizer.iterations) == 6
    # What was trained last is what is in the backup.
    again, trained = tiny.train()
    assert trained == []
    for a, b in zip(again.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_backup_of_another_training(tmp_path):
    Tiny(tmp_path).train(epochs=1)
    with pytest.raises(ValueError, match='another training.*"rate": 1.*"rate": 2'):
        Tiny(tmp_path, rate=2).train()
    # No epoch was completed, so there is nothing to lose.
    (tmp_path / "latest.weights.h5").unlink()
    assert Tiny(tmp_path, rate=2).train()[1] == [0, 1, 2]


def test_a_damaged_backup_is_named(tmp_path):
    Tiny(tmp_path).train(epochs=1)
    os.truncate(tmp_path / "latest.weights.h5", 1000)
    with pytest.raises(ValueError, match="Cannot read .*latest.weights.h5.*Delete"):
        Tiny(tmp_path).train()


@needs_tensorflow
def test_a_last_batch_of_one_image_is_left_out(eager, image_folder, monkeypatch):
    sizes = []
    train_step = keras.Model.train_step

    def note(model, data):
        sizes.append(len(data[0]))
        return train_step(model, data)

    monkeypatch.setattr(keras.Model, "train_step", note)
    options = {"image_size": 32, "epochs": 2, "batch_size": 11, "verbose": 0}
    train_classifier(SMALL, image_folder, **options)  # of 12 images
    assert sizes == [11, 11]
