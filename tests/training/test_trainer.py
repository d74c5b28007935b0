"""The training function: its files, its errors, and resuming."""

import csv
import functools
import json
import shutil

import keras
import numpy as np
import pytest
from backends import needs_tensorflow, once
from PIL import Image

from keras_coordatt import MobileNetV2CA
from keras_coordatt.data import load_classification
from keras_coordatt.preprocessing import preprocess_input
from keras_coordatt.record import record_of
from keras_coordatt.training import Recipe, train
from keras_coordatt.training.output import Output


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_has_all_that_is_known(eager, image_folder, tmp_path, build, quick):
    out = tmp_path / "there" / "out"
    done = train(None, image_folder, out, build=build, changes=quick)
    assert {
        "best.keras",
        "last.keras",
        "config.json",
        "history.csv",
        "curves.png",
        "confusion.png",
        "predictions.png",
        "report.json",
        "logs",
    } <= (set(files(out)))
    assert not (out / ".training").exists()
    report = json.loads((out / "report.json").read_text())
    assert report == done.report
    assert report["split"] == "test"
    with open(out / "history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    accuracies = [float(row["val_accuracy"]) for row in rows]
    assert report["best_epoch"] == 1 + int(np.argmax(accuracies))
    assert [row["val_accuracy"] for row in report["history"]] == accuracies

    # The metric is that of the saved model on these images.
    test = load_classification(image_folder, "test", 32, preprocess=preprocess_input)
    images, labels = (np.concatenate(x) for x in zip(*test))
    model = keras.saving.load_model(out / "best.keras")
    last = keras.saving.load_model(out / "last.keras")
    assert record_of(last).labels == record_of(model).labels == ("cat", "dog", "fox")
    scores = model.predict(images, verbose=0)
    expected = (scores.argmax(-1) == labels).mean()
    assert report["metrics"]["accuracy"] == pytest.approx(expected)

    # Metrics on the pictures in the folder, by other code
    evaluation = report["evaluation"]
    table = np.zeros((3, 3), int)
    np.add.at(table, (np.asarray(labels), scores.argmax(-1)), 1)
    assert evaluation["confusion"] == table.tolist()
    assert evaluation["metrics"]["top1"] == pytest.approx(expected)
    for name in ("curves", "confusion", "predictions"):
        picture = keras.utils.img_to_array(keras.utils.load_img(out / f"{name}.png"))
        assert min(picture.shape[:2]) > 200 and picture.std() > 10

    # The same command again has nothing to do; another one would lose the results.
    again = train(None, image_folder, out, build=build, changes=quick)
    assert again.report == report
    with pytest.raises(ValueError, match="another training.*seed: 0 there, 1 now"):
        train(None, image_folder, out, build=build, changes=quick, seed=1)
    with pytest.raises(ValueError, match=r"Different: recipe.epochs: 2 there, 3 now$"):
        train(None, image_folder, out, build=build, changes={**quick, "epochs": 3})
    keras.utils.save_img(image_folder / "train" / "cat" / "0.png", np.zeros((9, 9, 3)))
    message = r"Different: files_and_labels: '\w+' there, '\w+' now$"
    with pytest.raises(ValueError, match=message):
        train(None, image_folder, out, build=build, changes=quick)
    # A report of an earlier version has a hash of names and sizes alone.
    del report["settings"]["files_and_labels"]
    report["settings"]["files"] = "0123456789abcdef"
    (out / "report.json").write_text(json.dumps(report))
    assert train(None, image_folder, out, build=build, changes=quick).report == report


def test_networks_with_and_without_their_own_preprocessing_train_alike(
    eager, image_folder, tmp_path, build, quick
):
    """The optimizer's steps are too small here to magnify differences of rounding."""
    reports, outputs = [], []
    images = np.random.default_rng(1).uniform(0, 255, (4, 32, 32, 3)).astype("float32")
    for own in (False, True):
        done = train(
            None,
            image_folder,
            tmp_path / f"out-{own}",
            build=functools.partial(build, include_preprocessing=own),
            changes={**quick, "optimizer": "sgd", "augmentation": "strong"},
        )
        reports.append(done.report)
        given = images if own else preprocess_input(images)
        outputs.append(done.model.predict(given, verbose=0))
    np.testing.assert_allclose(*outputs, atol=1e-4)
    expected, found = (report["history"] for report in reports)
    assert found == [pytest.approx(row, abs=1e-4) for row in expected]
    expected, found = (report["metrics"] for report in reports)
    assert found == pytest.approx(expected, abs=1e-4)
    # On the pictures in the folder, by `evaluate`
    expected, found = (report["evaluation"]["metrics"] for report in reports)
    assert found == pytest.approx(expected, abs=1e-4)


def ending(build, activation):
    """Returns the builder of classifiers that end in another activation."""

    def built(*arguments, **options):
        model = build(*arguments, **options)
        model.get_layer("predictions").activation = keras.activations.get(activation)
        return model

    return built


def test_a_classifier_of_logits_trains_as_one_with_a_softmax(
    eager, image_folder, build, quick
):
    losses = []
    for activation in ("softmax", None):
        builder = ending(build, activation)
        done = train(None, image_folder, None, build=builder, changes=quick)
        losses.append([row["loss"] for row in done.report["history"]])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_builders_that_the_recipe_is_not_for(image_folder, build, quick):
    with pytest.raises(ValueError, match="`build`.*ends in a softmax or in logits"):
        sigmoid = ending(build, "sigmoid")
        train(None, image_folder, None, build=sigmoid, changes=quick)
    with pytest.raises(ValueError, match="`zero_init`.*must have residual blocks"):
        train(None, image_folder, None, build=build, changes={"image_size": 32})


def test_arguments_of_numpy_are_written_as_numbers(
    eager, image_folder, tmp_path, build, quick
):
    build = functools.partial(build, skip_mismatch=np.bool_(False))
    changes = {**quick, "epochs": np.int64(1)}
    train(None, image_folder, tmp_path / "out", build=build, changes=changes)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["skip_mismatch"] is False and config["epochs"] == 1


def test_a_split_of_tfds_data_that_leaves_nothing():
    with pytest.raises(ValueError, match="`validation_split`.*Received: 0.001$"):
        train(None, "digits/classification", None, validation_split=0.001)


def test_preprocessing_that_is_not_recorded_is_said(
    eager, image_folder, capsys, build, quick
):
    def other(input_shape, classes, weights=None):
        image = keras.Input(input_shape)
        x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3)(image))
        return keras.Model(image, keras.layers.Dense(classes, "softmax")(x))

    for network, times in ((build, 0), (other, 1)):
        train(None, image_folder, None, build=network, changes=quick)
        assert capsys.readouterr().out.count("records no preprocessing") == times


def test_a_file_is_the_model_alone(eager, image_folder, tmp_path, build, quick):
    out = tmp_path / "model.keras"
    done = train("classification", image_folder, out, build=build, changes=quick)
    assert files(tmp_path) == ["images", "model.keras"]
    for a, b in zip(
        keras.saving.load_model(out).get_weights(), done.model.get_weights()
    ):
        np.testing.assert_array_equal(a, b)
    content = out.read_bytes()
    with pytest.raises(ValueError, match="`output` exists already.*model.keras"):
        train("classification", image_folder, out, build=build, changes=quick)
    assert out.read_bytes() == content


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"task": "classify"}, "`task`.*classify"),
        ({"data": "no_such_data"}, "neither a file or folder 'no_such_data' nor"),
        ({"changes": {"epochs": 0}}, "`epochs`.*0"),
        ({"changes": {"batch_size": 1}}, "`batch_size` must be at least 2"),
        ({"changes": {"lr": 1}}, "`lr` is not a value.*learning_rate"),
        ({"changes": {"head_epochs": 16}}, "`head_epochs` must be fewer"),
        ({"recipe": "paper2"}, "`recipe`.*paper2"),
        ({"output": "model.pth"}, "`output` must be a folder, or.*model.pth"),
        (
            {"output": "images/out"},
            "`output` must not be inside `data`.*images.out, in",
        ),
        ({"seed": -1}, "`seed`.*-1"),
        ({"validation_split": 1}, "`validation_split`.*1"),
    ],
)
def test_wrong_arguments_leave_nothing_behind(
    image_folder, tmp_path, monkeypatch, build, arguments, message
):
    monkeypatch.chdir(tmp_path)
    given = {"task": None, "data": image_folder, "output": "out", **arguments}
    with pytest.raises(ValueError, match=message):
        train(build=build, **given)
    assert files(tmp_path) == ["images"]


def test_safetensors_need_pytorch_names_before_the_training(
    image_folder, tmp_path, monkeypatch, quick
):
    own = functools.partial(
        MobileNetV2CA, alpha=0.1, attention=keras.layers.LayerNormalization
    )
    monkeypatch.setattr(keras.Model, "fit", None)
    with pytest.raises(ValueError, match="`output` must be.*no PyTorch names.*pets"):
        train(
            None, image_folder, tmp_path / "pets.safetensors", build=own, changes=quick
        )
    assert files(tmp_path) == ["images"]


@pytest.mark.parametrize("recipe", ["scratch", Recipe("own", 32, 1, 4, "sgd", 0.1)])
def test_unknown_changes(image_folder, build, recipe):
    with pytest.raises(ValueError, match="is not a value.*Received: .changes="):
        train(None, image_folder, None, build=build, recipe=recipe, changes={"lr": 1})


def test_one_class_is_not_enough(image_folder, tmp_path, build):
    for split in ("train", "test"):
        for name in ("dog", "fox"):
            shutil.rmtree(image_folder / split / name)
    with pytest.raises(ValueError, match=r"`data` must have at least two.*\['cat'\]"):
        train(None, image_folder, tmp_path / "out", build=build)
    assert files(tmp_path) == ["images"]


@pytest.mark.parametrize("name", ["out", "model.keras"])
def test_two_trainings_into_one_output(
    image_folder, tmp_path, monkeypatch, build, quick, name
):
    arguments = {"build": build, "changes": quick}

    def fit(*_, **__):
        with pytest.raises(ValueError, match=f"`output`.*another process.*{name}"):
            train(None, image_folder, tmp_path / name, **arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(keras.Model, "fit", fit)
    with pytest.raises(KeyboardInterrupt, match="No epoch was complete"):
        train(None, image_folder, tmp_path / name, **arguments)
    assert files(tmp_path) == ["images"]


@once
@pytest.mark.parametrize("content", ["", "[]", "3", '{"settings": '])
def test_a_damaged_report_is_named(tmp_path, content):
    (tmp_path / "report.json").write_text(content)
    with pytest.raises(ValueError, match="Cannot read .*report.json.*from the start"):
        Output(tmp_path).finished({})
    (tmp_path / ".training").mkdir()
    with pytest.raises(ValueError, match="report.json.*Delete it to continue"):
        Output(tmp_path).finished({})


@needs_tensorflow
def test_epochs_do_not_prepare_compiled_functions_anew(
    eager, image_folder, monkeypatch, build, quick
):
    import tensorflow as tf

    seeds = []
    # It empties TensorFlow's cache of kernels.
    monkeypatch.setattr(tf.random, "set_seed", seeds.append)
    train(None, image_folder, None, build=build, changes=quick)
    assert seeds == [0]


def test_masks_of_0_and_255_are_told_as_such(tmp_path, build):
    for name, values in (("images", (10, 200)), ("masks", (0, 255))):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(2):
            pixels = np.full((32, 32), values[0], "uint8")
            pixels[8:24, 8:24] = values[1]
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{i}.png")
    with pytest.raises(ValueError, match="255 is the value.*ignored"):
        train(
            None,
            tmp_path / "data",
            tmp_path / "out",
            build=build,
            validation_split=0.5,
        )
    assert files(tmp_path) == ["data"]


def test_arguments_that_the_builder_does_not_take(image_folder, build):
    wide = functools.partial(build, alpha=0.5)
    with pytest.raises(ValueError, match="`alpha` is not an argument of tiny.*0.5"):
        train(None, image_folder, None, build=wide)


def test_output_is_checked_first(image_folder, tmp_path, monkeypatch, build, quick):
    monkeypatch.setattr(keras.Model, "fit", lambda *_, **__: pytest.fail("trained"))
    arguments = {"build": build, "changes": quick}
    blocked = tmp_path / "file.txt"
    blocked.touch()
    with pytest.raises(OSError, match="`output` can't be written.*file.txt"):
        train(None, image_folder, blocked / "out", **arguments)
    full = type(shutil.disk_usage(tmp_path))(100, 99, 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    with pytest.raises(OSError, match="`output` needs about .* MB"):
        train(None, image_folder, tmp_path / "out", **arguments)
    assert files(tmp_path) == ["file.txt", "images"]


def test_a_loss_of_nan_keeps_the_best(
    eager, image_folder, tmp_path, monkeypatch, build, quick
):
    train_step, steps = keras.Model.train_step, []

    def breaks(model, *data):
        logs = train_step(model, *data)
        steps.append(logs)
        return {**logs, "loss": np.nan} if len(steps) == 4 else logs

    out, arguments = tmp_path / "out", {"build": build, "changes": quick}
    monkeypatch.setattr(keras.Model, "train_step", breaks)
    message = "loss is nan since step 2 of epoch 2.*of epoch 1, is .*best.keras"
    if keras.config.backend() == "jax":
        pytest.skip("JAX's step is another function")
    with pytest.raises(FloatingPointError, match=message):
        train(None, image_folder, out, **arguments)
    record = record_of(keras.saving.load_model(out / "best.keras"))
    assert record.labels == ("cat", "dog", "fox")
    assert record.image_size == (32, 32)
    # In the first epoch, there is nothing to keep.
    steps[:] = [None] * 3
    with pytest.raises(FloatingPointError, match="epoch 1.*nothing is left behind"):
        train(None, image_folder, tmp_path / "other", **arguments)
    assert files(tmp_path) == ["images", "out"]
