"""Damaged files of weights: a ValueError that names the file, and nothing changes."""

import keras
import numpy as np
import pytest
from backends import once
from fuzzing.damage import damaged, within
from hypothesis import given
from hypothesis import strategies as st

from keras_coordatt.applications.network_file import read_network
from keras_coordatt.weights import load_weights
from keras_coordatt.weights.safetensors_file import read_safetensors, write_safetensors
from keras_coordatt.weights.torch_checkpoint import read_checkpoint

pytestmark = once


ARRAYS = {
    "features.0.weight": np.arange(24, dtype="float32").reshape(4, 3, 2),
    "features.1.num_batches_tracked": np.array(7),
}


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzzing")


@pytest.fixture(scope="session")
def model():
    layers = [
        keras.Input((3,)),
        keras.layers.Dense(2),
        keras.layers.BatchNormalization(),
    ]
    return keras.Sequential(layers)


@pytest.fixture(scope="session")
def contents(folder, model):
    """The contents of sound files, by name."""
    import torch

    tensors = {name: torch.from_numpy(array) for name, array in ARRAYS.items()}
    torch.save(tensors, folder / "zip.pth")
    torch.save(tensors, folder / "old.pth", _use_new_zipfile_serialization=False)
    write_safetensors(ARRAYS, folder / "sound.safetensors")
    model.save(folder / "sound.keras")
    model.save(folder / "legacy.h5")
    model.save_weights(folder / "sound.weights.h5")
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def outcome(read, file):
    """Returns a reader's result, or `None` if it raises the documented error."""
    try:
        with within(20):
            return read(file)
    except ValueError as error:
        assert file.name in str(error)
        return None


@pytest.mark.parametrize("name", ["zip.pth", "old.pth", "sound.safetensors"])
@given(data=st.data())
def test_reader(name, contents, folder, data):
    file = folder / f"damaged_{name}"
    file.write_bytes(data.draw(damaged(contents[name])))
    read = read_safetensors if name.endswith(".safetensors") else read_checkpoint
    arrays = outcome(read, file)
    if name == "zip.pth" and arrays is not None:
        # Its checksums are checked.
        np.testing.assert_equal(arrays, ARRAYS)


@pytest.mark.parametrize("name", ["sound.keras", "legacy.h5", "sound.weights.h5"])
@given(data=st.data())
def test_loading(name, contents, folder, model, data):
    file = folder / f"damaged_{name}"
    file.write_bytes(data.draw(damaged(contents[name])))
    before = model.get_weights()
    model.optimizer = None
    if (
        outcome(lambda path: [load_weights(model, path)], file) is None
        or name == "sound.keras"
    ):
        for old, new in zip(before, model.get_weights(), strict=True):
            np.testing.assert_array_equal(old, new)
    assert all(np.isfinite(weight).all() for weight in model.get_weights())
    model.set_weights(before)


@given(data=st.data())
def test_network(contents, folder, model, data):
    file = folder / "damaged_network.keras"
    file.write_bytes(data.draw(damaged(contents["sound.keras"])))
    network = outcome(read_network, file)
    if network is not None:
        for old, new in zip(model.get_weights(), network.get_weights(), strict=True):
            np.testing.assert_array_equal(old, new)
