"""`keras-coordatt export`."""

import keras
import known_models
import numpy as np
import pytest
from backends import needs_tensorflow
from exports import LABELS, each_format

from keras_coordatt.cli import main
from keras_coordatt.export import accuracy, read_metadata


def command(*arguments):
    return main(["export", *map(str, arguments)])


@pytest.fixture
def saved(model, tmp_path):
    model.save(tmp_path / "it.keras")
    return tmp_path / "it.keras"


@each_format
def test_exports_on_the_command_line(saved, path, write, name, capsys):
    (path.parent / "labels.txt").write_text("\n".join(LABELS))
    out = path.parent / "new" / name
    assert command(saved, out, "--labels", path.parent / "labels.txt") == 0
    assert capsys.readouterr().out.startswith(f"{out}: ")
    assert read_metadata(out)["labels"] == LABELS
    assert read_metadata(out)["format"] == write.__name__


@each_format
def test_labels_that_contradict_the_record(path, write, name, capsys):
    known_models.classifier().save(path.parent / "it.keras")
    out, labels = path.parent / "new" / name, path.parent / "labels.txt"
    labels.write_text("\n".join(reversed(known_models.COLORS)))
    assert command(path.parent / "it.keras", out, "--labels", labels) == 1
    assert "--labels must be left out, or those" in capsys.readouterr().err
    assert not out.exists()


@needs_tensorflow
def test_exports_int8_on_the_command_line(saved, tmp_path, capsys):
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for label in LABELS:
            folder = tmp_path / "data" / split / label
            folder.mkdir(parents=True)
            for i in range(3):
                image = rng.integers(0, 256, (40, 30, 3), "uint8")
                image = image // 4 + rng.integers(0, 190, (3,), "uint8")
                keras.utils.save_img(folder / f"{i}.png", image, scale=False)
    out = tmp_path / "it.tflite"
    data = ("--data", tmp_path / "data", "--labels", "data")
    assert command(saved, out, "--precision", "int8", *data) == 0
    assert "compared on 15 images\n" in capsys.readouterr().out
    found = read_metadata(out)
    assert found["labels"] == LABELS
    assert found["precision"] == "int8"


@pytest.mark.parametrize(
    "out, options, message",
    [
        ("it.tflite", ["--precision", "int8"], "--precision int8 needs --data"),
        ("it.onnx", ["--precision", "int8"], "--precision is for OUT"),
        ("it.h5", [], "OUT must end in .tflite or .onnx"),
    ],
)
def test_a_wrong_command_is_told(saved, tmp_path, capsys, out, options, message):
    assert command(saved, tmp_path / out, *options) == 1
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [saved]


def test_a_task_for_data_of_several(tmp_path, capsys):
    # A model of keras.applications records nothing.
    image = keras.Input((32, 32, 3))
    x = keras.layers.GlobalAveragePooling2D()(image)
    keras.Model(image, keras.layers.Dense(2)(x)).save(tmp_path / "it.keras")
    arguments = [tmp_path / "it.keras", tmp_path / "out", "--data", "digits/scenes"]
    assert command(*arguments) == 1
    assert "--task must be given" in capsys.readouterr().err
    assert command(*arguments, "--task", "detection") == 1
    assert "--preprocessing must be given" in capsys.readouterr().err


@needs_tensorflow
@pytest.mark.parametrize("name", ["it.tflite", "it", "it.onnx"])
def test_accuracy_is_told_and_must_not_drop(name, tmp_path, capsys, monkeypatch):
    known_models.classifier().save(tmp_path / "it.keras")
    for split in ("train", "test"):
        for i, label in enumerate(known_models.COLORS):
            folder = tmp_path / "data" / split / label
            folder.mkdir(parents=True)
            for j in range(3):
                color = known_models.COLORS[(i + (j == 2)) % 3]
                pixels = known_models.picture(color, [("red", 0, j)])
                keras.utils.save_img(folder / f"{j}.png", pixels, scale=False)
    (tmp_path / "out").mkdir()
    arguments = [tmp_path / "it.keras", tmp_path / "out" / name]
    arguments += ["--data", tmp_path / "data", "--max-drop", 0.3]
    if name.endswith("tflite"):
        arguments += ["--precision", "int8"]
    assert command(*arguments) == 0
    out = capsys.readouterr().out
    assert "top-1 66.7 % -> 66.7 %, on 9 images of 'test'" in out
    assert str(tmp_path / "out" / name) in out
    before = (tmp_path / "out" / name).stat()

    evaluate, files = accuracy.evaluate, []

    def worse(model, data, **arguments):
        report = evaluate(model, data, **arguments)
        files.append(model)
        if len(files) == 2:
            report.metrics["top1"] -= 0.4
        return report

    monkeypatch.setattr(accuracy, "evaluate", worse)
    assert command(*arguments) == 1
    error = capsys.readouterr().err
    assert "--max-drop 0.3 is exceeded" in error
    assert "top-1 66.7 % -> 26.7 %" in error
    # The file from before is still there, and nothing else.
    assert (tmp_path / "out" / name).stat() == before
    assert [x.name for x in (tmp_path / "out").iterdir()] == [name]
