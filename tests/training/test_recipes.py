import dataclasses
import functools
import json
import types

import keras
import numpy as np
import pytest
from backends import needs_tensorflow, once
from keras import ops
from networks import images, quick_initial_weights

from keras_coordatt import EfficientNetCA, MobileNetV2CA, MobileNeXtCA
from keras_coordatt.cli import main
from keras_coordatt.cli import train as command
from keras_coordatt.training import recipes, warmup_cosine, zero_init_residuals
from keras_coordatt.training.optimizers import make_optimizer
from keras_coordatt.training.phases import phases
from keras_coordatt.training.recipes import recipe
from keras_coordatt.training.setup import config_of


@once
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


@pytest.mark.parametrize(
    "changes, head_epochs",
    [({}, 4), ({"epochs": 10}, 2), ({"epochs": 2}, 0), ({"head_epochs": 1}, 1)],
)
def test_the_head_has_its_share_of_the_epochs(changes, head_epochs):
    fine_tune = recipe("fine-tune", "classification", changes)
    assert fine_tune.head_epochs == head_epochs


def test_learning_rates_are_scaled_on_request():
    changes = {"batch_size": 96}
    rates = [
        [phase.learning_rate for phase in phases(recipe("fine-tune", "detection", x))]
        for x in (changes, {**changes, "base_batch_size": 32})
    ]
    assert rates == [pytest.approx([3e-3, 5e-4]), pytest.approx([9e-3, 1.5e-3])]


def test_rates_fit_the_optimizer():
    scratch = recipe("scratch", "classification", {"optimizer": "adamw"})
    assert scratch.learning_rate == recipe("scratch", "detection").learning_rate
    fine_tune = recipe("fine-tune", "classification", {"optimizer": "sgd"})
    assert fine_tune.learning_rate == 0.0125
    assert fine_tune.weight_decay == recipe("paper", "classification").weight_decay
    given = {"optimizer": "lamb", "learning_rate": 0.1, "weight_decay": 0.2}
    fine_tune = recipe("fine-tune", "classification", given)
    assert (fine_tune.learning_rate, fine_tune.weight_decay) == (0.1, 0.2)
    assert fine_tune.head_learning_rate == pytest.approx(7.5e-3)


@once
@pytest.mark.parametrize(
    "name, task, changes",
    [
        ("scratch", "classification", {}),
        ("fine-tune", "detection", {"epochs": 50, "image_size": (96, 64)}),
        ("paper", "segmentation", {"optimizer": "lamb", "patience": 3}),
        ("scratch", "classification", {"learning_rate": 0.2, "mixup": 0.1}),
    ],
)
def test_a_configuration_repeats_the_recipe(name, task, changes, tmp_path, monkeypatch):
    first = recipe(name, task, changes)
    settings = {"task": task, "data": "photos", "weights": None, "on_error": "raise"}
    settings |= {"network": {"name": "MobileNetV2CA"}, "validation_split": 0.2}
    settings |= {"seed": 0, "deterministic": False}
    settings["recipe"] = dataclasses.asdict(first)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config_of(settings, "out")))
    found = []
    report = {"metrics": {}, "best_epoch": 1, "split": "test"}
    report |= {"parameters": 1, "seconds": 1}

    def record(task, data, output, *, recipe, changes, **_):
        found.append(recipes.recipe(recipe, task, changes))
        return types.SimpleNamespace(report=report)

    monkeypatch.setattr(command, "train_model", record)
    assert main(["train", "--config", str(file)]) == 0
    # The same as if it had been given from the start
    assert main(["train", "--config", str(file), "--optimizer", "adamw"]) == 0
    expected = recipe(name, task, {**changes, "optimizer": "adamw"})
    assert found == [first, expected]


def test_numbers_of_numpy():
    changes = {"image_size": (48, 32), "epochs": 5, "batch_size": 8, "mixup": 0.25}
    given = {key: np.asarray(value)[()] for key, value in changes.items()}
    given["image_size"] = tuple(given["image_size"])
    found = recipe("fine-tune", "classification", given)
    assert found == recipe("fine-tune", "classification", changes)
    as_json = json.loads(json.dumps(dataclasses.asdict(found)))
    assert recipes.Recipe(**as_json) == found


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


@needs_tensorflow
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_the_step_is_traced_once(weight_decay, monkeypatch):
    # An optimizer that `fit` builds has it traced twice, and AdamW traces the schedule
    # for each variable.
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    chosen = recipe("scratch", "detection", {"weight_decay": weight_decay})
    model.compile(make_optimizer(chosen, 0.1, 10, model.trainable_variables), "mse")
    train_step, schedule = model.train_step, warmup_cosine(10, 0.1)
    steps, rates, call = [], [], type(schedule).__call__
    model.train_step = lambda data: steps.append(data) or train_step(data)
    monkeypatch.setattr(
        type(schedule), "__call__", lambda *x: rates.append(x) or call(*x)
    )
    model.fit(np.ones((4, 2)), np.ones((4, 2)), batch_size=2, verbose=0)
    assert len(steps) == 1
    assert len(rates) == (2 if weight_decay else 1)
