"""Errors for arguments and models that cannot be exported."""

import keras
import numpy as np
import pytest
from backends import BACKEND, needs_tensorflow
from exports import SIZE, each_format
from keras import layers

from keras_coordatt import export
from keras_coordatt.export import Preprocessing, read_metadata


def test_error_on_other_backends_names_the_remedy(model, tmp_path):
    can = {
        "tensorflow": {"saved_model", "litert", "onnx"},
        "jax": {"saved_model"},
        "torch": {"onnx"},
    }[BACKEND]
    for name in {"saved_model", "litert", "onnx"} - can:
        with pytest.raises(ValueError, match="KERAS_BACKEND=tensorflow"):
            getattr(export, name)(model, tmp_path / "it")
    assert list(tmp_path.iterdir()) == []


@needs_tensorflow
@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"path": "it.lite"}, "`path` must end in .tflite"),
        ({"precision": "int4"}, "`precision` must be one of.*'int4'"),
        ({"precision": "int8"}, "`representative` is needed"),
        ({"representative": np.zeros((1, *SIZE, 3))}, "`representative` is needed"),
        ({"inference_type": "int8"}, "`inference_type` is float32 unless"),
        ({"inference_type": "int4"}, "`inference_type` must be one of.*'int4'"),
        ({"batch_size": 0}, "`batch_size` must be a positive integer"),
        ({"images": np.zeros((1, 9, 9, 3))}, r"`images` must be images \(N, 32, 24, 3"),
        ({"images": np.zeros((0, *SIZE, 3))}, "`images` must be images"),
        ({"images": []}, "`images` must .*Received: none"),
        ({"image_size": 64}, "`image_size` must be the model's"),
        ({"labels": ["one"]}, "`labels` must be strings, one per class, 5 of them"),
        ({"labels": [1, 2, 3, 4, 5]}, "`labels` must be strings"),
        (
            {"preprocessing": Preprocessing((0.5,), (0.5,))},
            r"`preprocessing` must be for the 3 channels.*mean=\(0\.5,\)",
        ),
        ({"model": "it.keras"}, "`model` must be a keras.Model"),
    ],
)
def test_arguments_are_checked(model, tmp_path, arguments, message):
    arguments = {"model": model, "path": "it.tflite", **arguments}
    arguments["path"] = tmp_path / arguments["path"]
    with pytest.raises(ValueError, match=message):
        export.litert(**arguments)
    assert list(tmp_path.iterdir()) == []


@each_format
def test_a_folder_that_is_not_there(model, path, write):
    missing = path.parent / "missing" / path.name
    with pytest.raises(
        ValueError, match="`path` must be in an existing folder.*missing"
    ):
        write(model, missing)
    assert not missing.parent.exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"std": (1, 1, 0)}, "`std` must.*Received: .*0"),
        ({"mean": (1,)}, r"`mean` and `std` must.*mean=\(1,\)"),
        ({"interpolation": "best"}, "`interpolation` must be one of.*'best'"),
        ({"antialias": 1}, "`antialias` must be one of.*Received: 1$"),
    ],
)
def test_preprocessing_is_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        Preprocessing(**arguments)


def test_a_model_without_an_image_is_refused(tmp_path):
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2)])
    with pytest.raises(ValueError, match="one input, a batch of images"):
        {"tensorflow": export.litert, "jax": export.saved_model, "torch": export.onnx}[
            BACKEND
        ](
            model,
            tmp_path
            / {"tensorflow": "a.tflite", "jax": "a", "torch": "a.onnx"}[BACKEND],
        )


def test_a_file_without_metadata(tmp_path):
    for name in ("a.tflite", "a.onnx", "a"):
        with pytest.raises(FileNotFoundError):
            read_metadata(tmp_path / name)
    (tmp_path / "a.tflite").write_bytes(b"TFL3")
    (tmp_path / "a").mkdir()
    for name in ("a.tflite", "a"):
        with pytest.raises(ValueError, match="no metadata of keras_coordatt"):
            read_metadata(tmp_path / name)
