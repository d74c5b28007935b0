"""Files of safetensors, as PyTorch writes and reads them."""

import json
import struct

import keras
import numpy as np
import pytest

from keras_coordatt import CoordinateAttention
from keras_coordatt.weights import load_torch, save_safetensors
from keras_coordatt.weights.official import official_state
from keras_coordatt.weights.safetensors_file import read_safetensors
from keras_coordatt.weights.torch_checkpoint import read_checkpoint


def write(path, entries, data, length=None):
    """A file of safetensors, byte by byte."""
    header = json.dumps(entries).encode()
    length = len(header) if length is None else length
    path.write_bytes(struct.pack("<Q", length) + header + data)
    return path


def test_reads_files_of_pytorch(tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    base = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)) * 40
    tensors = {
        str(dtype): base.to(dtype)
        for dtype in (
            *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
            *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8),
            torch.bool,
        )
    }
    tensors |= {
        "special": torch.tensor([float("nan"), float("inf"), -0.0]).bfloat16(),
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 3),
    }
    path = tmp_path / "file.safetensors"
    save_file(tensors, path)
    arrays = read_safetensors(path)
    assert arrays.keys() == tensors.keys()
    for name, tensor in tensors.items():
        expected = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
        assert arrays[name].dtype == expected.numpy().dtype, name
        assert arrays[name].shape == tuple(expected.shape), name
        assert arrays[name].tobytes() == expected.numpy().tobytes(), name


# There and back


def test_official_checkpoint_there_and_back(golden, tmp_path):
    """PyTorch's checkpoint, our network, safetensors, PyTorch: bit for bit."""
    from keras_coordatt import MobileNetV2CA

    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    source = golden("mbv2_ca_w025_c10.pth")
    model = MobileNetV2CA((32, 32, 3), 0.25, weights=source, classes=10)
    path = tmp_path / "ours.safetensors"
    save_safetensors(model, path)

    state = torch.load(source, weights_only=True)
    ours = load_file(path)
    assert ours.keys() == state.keys()
    for name, tensor in state.items():
        assert ours[name].shape == tensor.shape, name
        assert ours[name].dtype == tensor.dtype, name
        if not name.endswith("num_batches_tracked"):  # Keras does not count
            assert torch.equal(ours[name], tensor), name
    # The order is that of a state dict, too.
    assert list(official_state(model)) == list(state)


def test_the_layer_there_and_back(golden, tmp_path):
    arrays = np.load(golden("coordatt_c16_7x11_r4.npz"))
    state = {
        k.removeprefix("state/"): arrays[k] for k in arrays if k.startswith("state/")
    }
    layer = CoordinateAttention(4)
    layer.build(
        (None, None, None, 16)
        if layer.data_format[-4:] == "last"
        else (None, 16, None, None)
    )
    load_torch(layer, state)
    path = tmp_path / "layer.safetensors"
    save_safetensors(layer, path)
    given = read_safetensors(path)
    assert given.pop("bn1.num_batches_tracked") == 0
    assert given.keys() == state.keys() - {"bn1.num_batches_tracked"}
    for name, array in given.items():
        np.testing.assert_array_equal(array, state[name])


def test_network_loads_its_own_files(short, short_state, tmp_path):
    model, path = short(), tmp_path / "ours.safetensors"
    load_torch(model, short_state())
    save_safetensors(model, path)
    for other in (short(weights=path), short(weights=str(path))):
        for a, b in zip(other.get_weights(), model.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_precisions_of_pytorch(short, short_state, tmp_path, dtype):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    path, model = tmp_path / "half.safetensors", short()
    state = {
        k: torch.tensor(v).to(getattr(torch, dtype)) for k, v in short_state().items()
    }
    save_file(state, path)
    load_torch(model, path)
    expected = state["classifier.1.weight"].float().numpy().T
    np.testing.assert_array_equal(
        model.get_layer("predictions").get_weights()[0], expected
    )


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "bfloat16", "float16"])
def test_saves_float32_whatever_the_policy(tmp_path, policy):
    layer = CoordinateAttention(4, data_format="channels_last", dtype=policy)
    layer.build((None, None, None, 16))
    path = tmp_path / "layer.safetensors"
    save_safetensors(layer, path)
    arrays = read_safetensors(path)
    assert arrays["conv1.weight"].dtype == "float32"
    expected = np.asarray(layer.shared.get_weights()[0], "float32").T[:, :, None, None]
    np.testing.assert_array_equal(arrays["conv1.weight"], expected)


# What can't be saved


def test_layers_without_official_names(tmp_path):
    path = tmp_path / "it.safetensors"
    image, dense = keras.Input((8,)), keras.layers.Dense(2, name="no_such")
    with pytest.raises(ValueError, match="no_such"):
        save_safetensors(keras.Sequential([image, dense]), path)
    with pytest.raises(TypeError, match="`target` must be a model"):
        save_safetensors("a model", path)
    with pytest.raises(ValueError, match="identity_init"):
        layer = CoordinateAttention(4, identity_init=True)
        layer.build((None, 16, 16, 16))
        save_safetensors(layer, path)
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"activation": "relu6"}, "`activation`, .*my_attention with relu6"),
        ({"gate_activation": "relu"}, "`gate_activation`, .*my_attention with relu"),
        ({"epsilon": 1e-3}, "`epsilon`, 1e-05.*my_attention with 0.001"),
    ],
)
def test_settings_that_weight_files_do_not_hold(short, tmp_path, arguments, message):
    # The official code would load it, and compute something else.
    layer = CoordinateAttention(name="my_attention", **arguments)
    layer.build((None, 16, 16, 16))
    network = short(
        attention=lambda name: CoordinateAttention(name=name, **arguments), name="ours"
    )
    path = tmp_path / "it.safetensors"
    with pytest.raises(ValueError, match=message):
        save_safetensors(layer, path)
    with pytest.raises(ValueError, match=message.replace("my", "block_1")):
        save_safetensors(network, path)
    assert [*tmp_path.iterdir()] == []
    # They load the official weights all the same.
    save_safetensors(short(), path)
    load_torch(network, path)


@pytest.mark.parametrize("name", ["ours.pth", "ours", "ours.safetensors.bak"])
def test_wrong_suffix(short, tmp_path, name):
    with pytest.raises(ValueError, match=r"end in `\.safetensors`.*Received.*ours"):
        save_safetensors(short(), tmp_path / name)


def test_a_failure_leaves_the_old_file(short, tmp_path, monkeypatch):
    from keras_coordatt.weights import official

    path = tmp_path / "ours.safetensors"
    path.write_bytes(b"old")

    def half(arrays, path):
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(official, "write_safetensors", half)
    with pytest.raises(OSError, match="No space left"):
        save_safetensors(short(), path)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [
        (path.name, b"old")
    ]


# What can't be read


F4 = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


@pytest.mark.parametrize(
    "entries, data, length, message",
    [
        (F4, bytes(7), None, "truncated, damaged"),
        (F4, bytes(9), None, "truncated, damaged"),
        (F4, bytes(8), 2**40, "truncated, damaged"),
        (F4, bytes(8), 10, "truncated, damaged"),
        ({"a": F4["a"] | {"shape": [3]}}, bytes(8), None, "truncated, damaged"),
        ({"a": F4["a"] | {"shape": [2**62, 2]}}, bytes(8), None, "truncated, damaged"),
        ({"a": F4["a"] | {"shape": [-2]}}, bytes(8), None, "truncated, damaged"),
        ({"a": F4["a"] | {"data_offsets": [0, 2**60]}}, bytes(8), None, "truncated"),
        (F4 | {"b": F4["a"]}, bytes(8), None, "truncated, damaged"),
        ({"a": F4["a"] | {"dtype": "F33"}}, bytes(8), None, "truncated, damaged"),
        (
            {"a": {"dtype": "F8_E4M3", "shape": [8], "data_offsets": [0, 8]}},
            bytes(8),
            None,
            "a is of type F8_E4M3, and only F64",
        ),
        ([], b"", None, "not a safetensors file"),
    ],
)
def test_damaged_files(tmp_path, entries, data, length, message):
    path = write(tmp_path / "it.safetensors", entries, data, length)
    with pytest.raises(ValueError, match=f"Cannot read .*it.safetensors': .*{message}"):
        read_safetensors(path)


def test_every_truncation_is_a_value_error(tmp_path):
    path = write(tmp_path / "it.safetensors", F4, bytes(8))
    assert list(read_safetensors(path)) == ["a"]
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match="Cannot read"):
            read_safetensors(path)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_safetensors(tmp_path / "none.safetensors")


def test_a_checkpoint_under_a_wrong_suffix(golden, tmp_path):
    path = tmp_path / "it.safetensors"
    path.write_bytes(golden("mbv2_ca_w025_c10.pth").read_bytes())
    with pytest.raises(ValueError, match="not a safetensors file"):
        read_safetensors(path)
    path = write(tmp_path / "it.pth", F4, bytes(8))
    with pytest.raises(ValueError, match="not a PyTorch checkpoint"):
        read_checkpoint(path)
