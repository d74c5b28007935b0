"""Files that an earlier version saved load, and compute the same."""

import pathlib

import keras
import numpy as np
import pytest

import keras_coordatt  # noqa: F401, whose layers are in the files

SAVED = pathlib.Path(__file__).parent / "data" / "saved"


@pytest.mark.parametrize("name", ["layers", "classifier", "detector", "segmenter"])
def test_files_of_earlier_versions_load(name):
    model = keras.models.load_model(SAVED / f"{name}.keras")
    shape = model.input_shape[1:]
    x = np.sin(np.arange(np.prod(shape))).reshape(1, *shape).astype("float32")
    outputs = keras.tree.flatten(model(x, training=False))
    with np.load(SAVED / "outputs.npz") as file:
        expected = [file[key] for key in file if key.startswith(name)]
    assert len(outputs) == len(expected)
    for given, value in zip(outputs, expected):
        given = keras.ops.convert_to_numpy(given)
        np.testing.assert_allclose(given, value, atol=1e-5 * np.abs(value).max())
