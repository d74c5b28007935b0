"""Reading checkpoints: all that torch.load reads, without running hostile code."""

import io
import os
import pathlib
import pickle
import struct
import subprocess
import sys
import tracemalloc
import warnings
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
from backends import once

from keras_coordatt.weights.torch_checkpoint import read_checkpoint

pytestmark = once

ROOT = pathlib.Path(__file__).parents[2]
ZIP_AND_LEGACY = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


# A checkpoint, opcode by opcode


def text(string):
    data = string.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def integer(value):
    return b"J" + struct.pack("<i", value)


def integers(values):
    return b"(" + b"".join(map(integer, values)) + b"t"


def named(module, attribute):
    return f"c{module}\n{attribute}\n".encode()


def storage(key, size, kind="FloatStorage"):
    identity = text("storage") + named("torch", kind) + text(key) + text("cpu")
    return b"(" + identity + integer(size) + b"tQ"


REBUILD = named("torch._utils", "_rebuild_tensor_v2")
ORDERED_DICT = named("collections", "OrderedDict")


def tensor(
    shape=(2, 3), strides=(3, 1), offset=0, key="0", size=6, kind="FloatStorage"
):
    arguments = storage(key, size, kind) + integer(offset) + integers(shape)
    hooks = ORDERED_DICT + b")R"
    return REBUILD + b"(" + arguments + integers(strides) + b"\x89" + hooks + b"tR"


def state_dict(**values):
    items = b"".join(text(name) + value for name, value in values.items())
    return b"\x80\x02}(" + items + b"u."


NUMBERS = np.arange(6, dtype="<f4")


def zip_checkpoint(tree, storages=None, compression=zipfile.ZIP_STORED, **others):
    storages = {"0": NUMBERS.tobytes()} if storages is None else storages
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", compression) as archive:
        archive.writestr("archive/data.pkl", tree)
        for name, content in others.items():
            archive.writestr(f"archive/{name}", content)
        for key, content in storages.items():
            archive.writestr(f"archive/data/{key}", content)
    return data.getvalue()


LEGACY_START = b"".join(
    pickle.dumps(value, 2)
    for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
)


def legacy_checkpoint(tree, storages=None):
    if storages is None:  # a key without a tensor would be refused first
        storages = {"0": NUMBERS.tobytes()} if b"storage" in tree else {}
    parts = [struct.pack("<q", len(data) // 4) + data for data in storages.values()]
    return LEGACY_START + tree + pickle.dumps(list(storages), 2) + b"".join(parts)


def checkpoint(tree, zipped):
    return zip_checkpoint(tree) if zipped else legacy_checkpoint(tree)


@pytest.fixture
def read(tmp_path):
    """Reads a checkpoint from its bytes."""

    def read(data):
        path = tmp_path / "checkpoint.pth"
        path.write_bytes(data)
        return read_checkpoint(path)

    return read


# What torch.save writes


def tensors(torch):
    """A state dict with every kind of tensor."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(4, 6, generator=generator)
    state = OrderedDict(
        {
            f"dtype.{dtype}".replace("torch.", ""): (base * 40).to(dtype)
            for dtype in (
                *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
                *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8),
                torch.bool,
            )
        }
    )
    special = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 1e-40])
    return state | {
        "special": special,
        "special.bfloat16": special.bfloat16(),
        "transposed": base.t(),
        "shared": base,
        "window": base[1:3, ::2],
        "expanded": base[:, :1].expand(4, 3),
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0),
        "empty.matrix": torch.zeros(3, 0, 2),
        "one": torch.ones(1, 1, 1),
        "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "parameter": torch.nn.Parameter(base[0]),
        "frozen": torch.nn.Parameter(base[0], requires_grad=False),
    }


def assert_read_as_by_torch(path, torch, unwrapped=lambda tree: tree):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of pickle protocols above 2
        theirs = unwrapped(torch.load(path, weights_only=False))  # our own file
    ours = read_checkpoint(path)
    assert list(ours) == list(theirs)
    for name, tensor in theirs.items():
        tensor = tensor.detach()
        half = tensor.dtype == torch.bfloat16
        expected = (tensor.float() if half else tensor).numpy()
        assert ours[name].dtype == expected.dtype, name
        assert ours[name].shape == expected.shape, name
        assert ours[name].tobytes() == expected.tobytes(), name


@ZIP_AND_LEGACY
def test_reads_the_same_as_torch(tmp_path, zipped):
    torch = pytest.importorskip("torch")
    path = tmp_path / "checkpoint.pth"
    torch.save(tensors(torch), path, _use_new_zipfile_serialization=zipped)
    assert_read_as_by_torch(path, torch)
    shared = read_checkpoint(path)
    assert np.shares_memory(shared["shared"], shared["transposed"])


@ZIP_AND_LEGACY
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_pickle_protocol(tmp_path, zipped, protocol):
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    wrapped = {"epoch": 3, "best": 71.5, "note": None, "state_dict": model.state_dict()}
    path = tmp_path / "checkpoint.pth"
    torch.save(
        wrapped,
        path,
        pickle_protocol=protocol,
        _use_new_zipfile_serialization=zipped,
    )
    assert_read_as_by_torch(path, torch, lambda tree: tree["state_dict"])


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
def test_wrapped_and_prefixed(tmp_path, key):
    torch = pytest.importorskip("torch")
    network = torch.nn.DataParallel(torch.nn.Sequential(torch.nn.Linear(3, 2)))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    network(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    path = tmp_path / "checkpoint.pth"
    torch.save({key: network.state_dict(), "optimizer": optimizer.state_dict()}, path)
    arrays = read_checkpoint(path)
    assert list(arrays) == ["0.weight", "0.bias"]
    expected = network.module[0].weight.detach().numpy()
    np.testing.assert_array_equal(arrays["0.weight"], expected)


@pytest.mark.parametrize(
    "suffix", ["", "_legacy", "_wrapped"], ids=["zip", "legacy", "wrapped"]
)
def test_official_checkpoint_as_torch_reads_it(golden, suffix):
    torch = pytest.importorskip("torch")
    assert_read_as_by_torch(
        golden(f"mbv2_ca_w025_c10{suffix}.pth"),
        torch,
        lambda tree: {
            name.removeprefix("module."): value
            for name, value in tree.get("state_dict", tree).items()
        },
    )


@pytest.mark.parametrize("byteorder", ["little", "big"])
def test_either_byte_order(tmp_path, byteorder):
    torch = pytest.importorskip("torch")
    stored = NUMBERS.astype(NUMBERS.dtype.newbyteorder(byteorder)).tobytes()
    data = zip_checkpoint(
        state_dict(a=tensor()), {"0": stored}, byteorder=byteorder, version="3\n"
    )
    path = tmp_path / "checkpoint.pth"
    path.write_bytes(data)
    assert_read_as_by_torch(path, torch)
    np.testing.assert_array_equal(read_checkpoint(path)["a"], NUMBERS.reshape(2, 3))


def test_python_2_wrote_ordered_dicts_as_lists_of_pairs(read):
    pair = b"](" + text("a") + tensor() + b"e"
    tree = b"\x80\x02" + ORDERED_DICT + b"(](" + pair + b"etR."
    np.testing.assert_array_equal(
        read(legacy_checkpoint(tree))["a"], NUMBERS.reshape(2, 3)
    )


WITHOUT_TORCH = """
import pathlib, sys

class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torch":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, NotInstalled())
try:
    import torch
except ImportError:
    pass
else:
    raise AssertionError("torch is there")
import numpy as np
from keras_coordatt import CoordinateAttention
from keras_coordatt.weights import load_torch
from keras_coordatt.weights.torch_checkpoint import read_checkpoint

folder = pathlib.Path(sys.argv[1])
for path in sorted(folder.glob("*.pth")):
    arrays = read_checkpoint(path)
    expected = np.load(path.with_suffix(".npz"))
    assert list(arrays) == list(expected), path
    for name in arrays:
        assert arrays[name].tobytes() == expected[name].tobytes(), (path, name)
layer = CoordinateAttention(reduction=4)
layer.build((None, None, None, 16))
load_torch(layer, folder / "layer.pth")
print(sorted(path.name for path in folder.glob("*.pth")))
"""


def test_reads_without_torch_installed(tmp_path, golden):
    torch = pytest.importorskip("torch")
    states = {"kinds": tensors(torch)}
    layer = np.load(golden("coordatt_c16_7x11_r4.npz"))
    states["layer"] = {
        name.removeprefix("state/"): torch.tensor(layer[name])
        for name in layer.files
        if name.startswith("state/")
    }
    for name, state in states.items():
        for suffix, zipped in [("", True), ("_legacy", False)]:
            path = tmp_path / f"{name}{suffix}.pth"
            torch.save(state, path, _use_new_zipfile_serialization=zipped)
            arrays = {
                key: (value.float() if value.dtype == torch.bfloat16 else value).numpy(
                    force=True
                )
                for key, value in state.items()
            }
            np.savez(path.with_suffix(".npz"), **arrays)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, tmp_path],
        env={**os.environ, "KERAS_BACKEND": "numpy"},  # imported the soonest
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip().endswith(
        "['kinds.pth', 'kinds_legacy.pth', 'layer.pth', 'layer_legacy.pth']"
    )


# Nothing in it runs


class Reduces:
    """Is pickled as a call."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


def hostile_pickles(canary):
    """Pickles, each of which creates the file `canary` if it's unpickled."""
    touch = f"touch {canary}"
    system = b"cos\nsystem\n"
    command = text(touch)
    pickles = {
        "GLOBAL and REDUCE": b"\x80\x02" + system + b"(" + command + b"tR.",
        "inside a state dict": state_dict(
            a=tensor(), b=system + b"(" + command + b"tR"
        ),
        "as a tensor's hooks": b"\x80\x02}"
        + text("a")
        + tensor()[:-2]
        + system
        + b"("
        + command
        + b"tRtR"
        + b"s.",
        "STACK_GLOBAL": b"\x80\x04"
        + text("os")
        + text("system")
        + b"\x93("
        + command
        + b"tR.",
        "INST": b"(S'" + touch.encode() + b"'\nios\nsystem\n.",
        "INST after PROTO": b"\x80\x02(S'" + touch.encode() + b"'\nios\nsystem\n.",
        "OBJ": b"\x80\x02(" + system + command + b"o.",
        "NEWOBJ": b"\x80\x02" + b"csubprocess\nPopen\n((" + command + b"lt\x81.",
        "BUILD": b"\x80\x02c__main__\nsomething\n}"
        + text("__setstate__")
        + system
        + b"sb"
        + command
        + b"b.",
        "BUILD on a dict": b"\x80\x02}}" + text("__dict__") + system + b"sb.",
        "BUILD on a tensor": b"\x80\x02" + tensor() + command + b"b.",
        "getattr": b"\x80\x02c__builtin__\ngetattr\n(cos\n__dict__\n"
        + text("system")
        + b"tR.",
        "REDUCE of a string": b"\x80\x02" + text("os.system") + b"(" + command + b"tR.",
        "torch's own": b"\x80\x02ctorch.hub\nload\n(" + command + b"tR.",
        "a dotted name": b"\x80\x04"
        + text("torch")
        + text("_utils.os.system")
        + b"\x93("
        + command
        + b"tR.",
        "a storage's type": b"\x80\x02("
        + text("storage")
        + system
        + text("0") * 2
        # its type is called by PyTorch's reader
        + integer(1)
        + b"tQ.",
        "a persistent id in text": b"\x80\x02P" + touch.encode() + b"\n.",
        "a call in the metadata": b"\x80\x02}"
        + text("a")
        + tensor()
        + b"s}"
        + text("_metadata")
        + system
        + b"("
        + command
        + b"tRsb.",
    }
    for protocol in range(2, 6):
        for name, call in {
            "os.system": (os.system, (touch,)),
            "exec": (exec, (f"open({str(canary)!r}, 'w')",)),
            "state": (OrderedDict, (), {"x": Reduces(os.system, (touch,))}),
            "open": (open, (str(canary), "w")),
        }.items():
            data = pickle.dumps({"a": Reduces(*call)}, protocol)
            pickles[f"{name}, protocol {protocol}"] = data
    for name, opcode in [
        ("EXT1", b"\x82\1"),
        ("EXT2", b"\x83\1\0"),
        ("EXT4", b"\x84\1\0\0\0"),
    ]:
        pickles[name] = b"\x80\x02" + opcode + b"(" + command + b"tR."
    return pickles


HOSTILE = sorted(hostile_pickles("x"))


@pytest.fixture
def extension():
    """The extension registry of this process, with os.system as number 1."""
    import copyreg

    copyreg.add_extension("os", "system", 1)
    yield
    copyreg.remove_extension("os", "system", 1)


@ZIP_AND_LEGACY
@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_is_executed(tmp_path, read, extension, name, zipped):
    canary = tmp_path / "canary"
    tree = hostile_pickles(canary)[name]
    with pytest.raises(ValueError, match="Cannot read .*checkpoint.pth") as caught:
        read(checkpoint(tree, zipped))
    assert not canary.exists()
    assert "damaged" not in str(caught.value), "refused for another reason"


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in HOSTILE
        if name.startswith(("os.system", "EXT", "STACK", "INST"))
    ],
)
def test_the_hostile_pickles_are_hostile(tmp_path, extension, name):
    # Otherwise the test above would prove nothing.
    canary = tmp_path / "canary"
    pickle.loads(hostile_pickles(canary)[name])
    assert canary.exists()


@pytest.mark.parametrize("place", range(5))
def test_no_pickle_of_a_legacy_file_is_executed(tmp_path, read, place):
    canary = tmp_path / "canary"
    pickles = [
        *(pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001, {})),
        state_dict(a=tensor()),
        pickle.dumps(["0"], 2),
    ]
    end = struct.pack("<q", 6) + NUMBERS.tobytes()
    assert list(read(b"".join(pickles) + end)) == ["a"]
    pickles[place] = hostile_pickles(canary)["GLOBAL and REDUCE"]
    with pytest.raises(ValueError, match=r"'os\.system'.*Nothing was executed"):
        read(b"".join(pickles) + end)
    assert not canary.exists()


@ZIP_AND_LEGACY
def test_a_pickled_module_is_refused(tmp_path, zipped):
    torch = pytest.importorskip("torch")
    path = tmp_path / "checkpoint.pth"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(torch.nn.Linear(2, 2), path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"torch\.nn.*state_dict\(\), path"):
        read_checkpoint(path)


def test_torchscript_is_refused(read):
    data = zip_checkpoint(state_dict(a=tensor()), **{"constants.pkl": b"\x80\x02)."})
    with pytest.raises(ValueError, match="TorchScript"):
        read(data)


@ZIP_AND_LEGACY
@pytest.mark.parametrize(
    "value, message",
    [
        (named("numpy", "ndarray"), "'numpy.ndarray'.*only tensors"),
        (b"cdatetime\ndate\n(" + integer(1) * 3 + b"tR", "'datetime.date'"),
        (b"\x8f", "EMPTY_SET"),
        (b"C\x01a", "SHORT_BINBYTES"),
        (integer(3), r"\['a'\] without a tensor"),
        (text("x"), r"\['a'\] without a tensor"),
        (b"}", r"\['a'\] without a tensor"),
        (b"N", r"\['a'\] without a tensor"),
        (storage("0", 6), r"\['a'\] without a tensor"),
        (named("torch", "Size"), r"\['a'\] without a tensor"),
        (
            named("torch", "Size") + b"(" + text("x") + b"tR",
            r"calls .*torch\.Size.* with .*'x'",
        ),
        (ORDERED_DICT + b"(](" + integer(3) + b"etR", "key and a value"),
        (ORDERED_DICT + b"(](" + text("abc") + b"etR", "key and a value"),
        (b"](" + integer(3) + b"}eN}s", "damaged|than a dict"),
        (b"})}s", r"has the key \(\)"),
        (tensor(kind="ComplexFloatStorage"), "ComplexFloatStorage"),
        (tensor(shape=(3, 3)), "does not lie within its storage of 6 numbers"),
        (tensor(strides=(3, 2)), "does not lie within"),
        (tensor(offset=1), "does not lie within"),
        (tensor(offset=6, shape=(), strides=()), "does not lie within"),
        (tensor(shape=(7,), strides=(0,)), "repeats the numbers of its storage of 6"),
        (tensor(shape=(3, 3), strides=(1, 1)), "repeats the numbers"),
        (tensor(offset=4, shape=(3,), strides=(0,)), "repeats the numbers"),
        (tensor(shape=(-1, 3)), r"tensor has .*shape \(-1, 3\)"),
        (tensor(strides=(-3, 1)), r"tensor has .*strides \(-3, 1\)"),
        (tensor(offset=-1), "tensor has offset -1"),
        (tensor(shape=(2,)), r"shape \(2,\) and strides \(3, 1\)"),
        (tensor(shape=(1,) * 33, strides=(1,) * 33), r"has .*shape \(1, 1, .*\.\.\.\)"),
        (tensor(size=-6), "storage is described as .*-6"),
        (tensor(key="1"), "'1' is missing|'0' is listed twice|'archive/data/1'"),
        (tensor(size=7), "must have 28 bytes|truncated in storage"),
        (tensor((5,), (1,), size=5), "must have 20 bytes"),
        (tensor(kind="DoubleStorage"), "must have 48 bytes|truncated in storage"),
        (tensor() + b"0" + tensor(kind="IntStorage"), "POP"),
    ],
)
def test_anything_but_tensors_is_refused(read, value, message, zipped):
    with pytest.raises(ValueError, match=message):
        read(checkpoint(state_dict(a=value), zipped))


@ZIP_AND_LEGACY
@pytest.mark.parametrize("tree", [b"\x80\x02N.", b"\x80\x02}.", b"\x80\x02](K\x01e."])
def test_no_state_dict(read, tree, zipped):
    with pytest.raises(ValueError, match="must hold a state dict"):
        read(checkpoint(tree, zipped))


def test_names_that_become_one(read):
    data = b"\x80\x02}(" + integer(1) + tensor() + text("1") + tensor() + b"u."
    with pytest.raises(ValueError, match=r"Cannot read.*more than one \['1'\]"):
        read(zip_checkpoint(data))


def test_two_views_of_one_storage_must_agree_on_it(read):
    tree = state_dict(a=tensor(), b=tensor(kind="IntStorage"))
    with pytest.raises(ValueError, match="'0' has two sizes or types"):
        read(zip_checkpoint(tree))


# Small files that ask for much


BOMBS = {
    # Pairs of pairs of pairs: 2^60 of them, if the name were written out.
    "a name": b")q\x00" + b"h\x00h\x00\x86q\x00" * 60 + b"h\x00\x93",
    # The same 5,000 pairs for each of 5,000 dicts.
    "ordered dicts": ORDERED_DICT
    + b"q\x00]("
    + b"".join(integer(i) + b"N\x86" for i in range(5_000))
    + b"e\x85q\x01("
    + b"h\x00h\x01R" * 5_000
    + b"l",
    # The same 5,000 numbers for each of 5,000 sizes.
    "sizes": named("torch", "Size")
    + b"q\x00"
    + integers([1] * 5_000)
    + b"\x85q\x01("
    + b"h\x00h\x01R" * 5_000
    + b"l",
    # The same 5,000 letters for each of 5,000 pairs.
    "pairs": ORDERED_DICT
    + text("x" * 5_000)
    + b"q\x00]("
    + b"h\x00" * 5_000
    + b"e\x85R",
    "a call's arguments": b"]("
    + b"N" * 5_000
    + b"eq\x00("
    + b"h\x00" * 5_000
    + b"tq\x01h\x01R",
}


@pytest.mark.parametrize("name", BOMBS)
def test_small_files_that_ask_for_much(read, name):
    data = zip_checkpoint(b"\x80\x02" + BOMBS[name] + b".")
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="Cannot read"):
            read(data)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("shape", [(2**30, 2**20), (2**30,) * 4])
def test_tensor_cannot_exceed_its_storage(read, shape):
    # Stride 0 repeats a number, as expand() does. Who trusts the shape, and builds a
    # network of it, would fill the memory.
    tree = state_dict(a=tensor(shape=shape, strides=(0,) * len(shape)))
    with pytest.raises(ValueError, match=r"Cannot read.*repeats.*contiguous\(\)"):
        read(zip_checkpoint(tree))


def test_compressed_archives_are_not_unpacked(read):
    tree = state_dict(a=tensor(shape=(1,), strides=(1,), size=10**6))
    zeros = {"0": bytes(4 * 10**6)}
    assert read(zip_checkpoint(tree, zeros))["a"] == 0
    with pytest.raises(ValueError, match="compressed or encrypted.*not unpacked"):
        read(zip_checkpoint(tree, zeros, zipfile.ZIP_DEFLATED))


def test_entries_that_claim_more_than_the_file(read):
    data = bytearray(zip_checkpoint(state_dict(a=tensor())))
    directory = data.index(b"PK\x01\x02", data.index(b"archive/data/0"))
    at = data.index(b"archive/data/0", directory) - 46
    for start in (20, 24):  # its compressed and its true size
        data[at + start : at + start + 4] = struct.pack("<I", 2**30)
    with pytest.raises(ValueError, match="claim .* bytes, but the file has"):
        read(data)


def test_an_entry_twice(read):
    with pytest.warns(UserWarning, match="Duplicate"):
        data = zip_checkpoint(state_dict(a=tensor()), **{"data/0": NUMBERS.tobytes()})
    with pytest.raises(ValueError, match="'archive/data/0' twice"):
        read(data)


# Damage


@ZIP_AND_LEGACY
def test_every_truncation_is_a_value_error(tmp_path, read, zipped):
    torch = pytest.importorskip("torch")
    path = tmp_path / "whole.pth"
    state = {"a": torch.ones(3, 5), "b": torch.arange(4), "c": torch.zeros(0)}
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    data = path.read_bytes()
    assert set(read(data)) == {"a", "b", "c"}
    for length in [*range(0, len(data), 3), *range(len(data) - 30, len(data))]:
        with pytest.raises(ValueError, match="Cannot read"):
            read(data[:length])


@pytest.mark.parametrize("suffix", ["", "_legacy"], ids=["zip", "legacy"])
def test_truncations_of_the_official_checkpoint(golden, read, suffix):
    data = golden(f"mbv2_ca_w025_c10{suffix}.pth").read_bytes()
    lengths = np.random.default_rng(0).integers(0, len(data), 20)
    for length in [*lengths, len(data) - 1]:
        with pytest.raises(ValueError, match="Cannot read"):
            read(data[:length])


@ZIP_AND_LEGACY
def test_any_changed_byte_is_read_or_a_value_error(read, zipped):
    # No other error, no hang, and in a zip no wrong number either.
    data = checkpoint(state_dict(a=tensor(), b=tensor((6,), (1,))), zipped)
    rng = np.random.default_rng(0)
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= int(rng.integers(1, 256))
        try:
            arrays = read(changed)
        except ValueError as error:
            assert "Cannot read" in str(error)
            continue
        for array in arrays.values() if zipped else ():
            assert set(array.ravel()) <= set(NUMBERS)


@pytest.mark.parametrize(
    "data, message",
    [
        (b"", "It is empty"),
        (b"<!DOCTYPE html><html>Not Found", "not a PyTorch checkpoint.*DOCTYPE"),
        (b"version https://git-lfs.github.com/spec/v1\n", "begins with b'version"),
        (b"\x89HDF\r\n\x1a\n", "not a PyTorch checkpoint"),
        (b"\x80\x02K\x01.", "a pickle, but not a PyTorch checkpoint"),
        (
            LEGACY_START[:30].replace(b"M\xe9\x03", b"M\xea\x03"),
            "protocol must be 1001",
        ),
        (b"PK\x05\x06" + bytes(18), "not a PyTorch checkpoint"),
        (zip_checkpoint(state_dict())[:-5], "truncated or damaged.*Download it again"),
    ],
)
def test_invalid_checkpoints(read, data, message):
    with pytest.raises(ValueError, match=message):
        read(data)


def test_an_archive_of_something_else(read):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("config.json", "{}")
    with pytest.raises(ValueError, match=r"one data\.pkl in one folder.*config\.json"):
        read(data.getvalue())


def test_unknown_byte_order(read):
    data = zip_checkpoint(state_dict(a=tensor()), byteorder="middle")
    with pytest.raises(ValueError, match="byte order is unknown.*middle"):
        read(data)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_checkpoint(tmp_path / "none.pth")
