"""`keras-coordatt export`."""

import keras
import numpy as np
import pytest
from backends import needs_tensorflow
from exports import LABELS, each_format

from keras_coordatt.cli import main
from keras_coordatt.export import read_metadata


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
    data = ("--data", tmp_path / "data")
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
