"""The command line has the same results as the package, and clear errors."""

import dataclasses
import functools
import inspect
import itertools
import json
import os
import pathlib
import re
import subprocess
import sys
import zipfile

import h5py
import keras
import numpy as np
import pytest
from backends import needs_tensorflow, once

from keras_coordatt import MobileNetV2CA, __version__
from keras_coordatt import benchmark as measuring
from keras_coordatt.applications.network_file import read_network, save_network
from keras_coordatt.applications.recognition import network_of
from keras_coordatt.cli import COMMANDS, main
from keras_coordatt.cli import weights as weights_command
from keras_coordatt.cli.parser import METAVARS, name_options
from keras_coordatt.weights import CATALOG, save_safetensors
from keras_coordatt.weights.safetensors_file import read_safetensors, write_safetensors
from keras_coordatt.weights.torch_checkpoint import read_checkpoint

ROOT = pathlib.Path(__file__).parents[1]


def run(*arguments):
    return main([str(argument) for argument in arguments])


@pytest.fixture
def checkpoint(golden):
    return golden("mbv2_ca_w025_c10.pth")


def test_converts_from_each_format_to_the_next(checkpoint, tmp_path, capsys):
    paths = [checkpoint] + [
        tmp_path / f"converted{suffix}" for suffix in (".keras", ".weights.h5")
    ]
    for source, output in itertools.pairwise(paths):
        assert run("convert", source, output) == 0
        printed = capsys.readouterr().out
        assert printed.startswith(f"{output}: ")
        assert str(source) in printed
    # Weights alone do not tell the network.
    options = ("--alpha", 0.25, "--classes", 10)
    last = tmp_path / "converted.safetensors"
    assert run("convert", paths[-1], last, *options) == 0

    theirs, ours = read_checkpoint(checkpoint), read_safetensors(last)
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        if not name.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(ours[name], array)
    assert keras.saving.load_model(paths[1]).output_shape == (None, 10)
    assert sorted(tmp_path.iterdir()) == sorted([*paths[1:], last])


def test_converts_from_safetensors(checkpoint, tmp_path):
    arrays = read_checkpoint(checkpoint)
    source, output = tmp_path / "it.safetensors", tmp_path / "it.weights.h5"
    write_safetensors({k: np.ascontiguousarray(v) for k, v in arrays.items()}, source)
    assert run("convert", source, output) == 0
    with h5py.File(output) as file:
        kernel = file["layers/dense/vars/0"][()]
    np.testing.assert_array_equal(kernel, arrays["classifier.1.weight"].T)


def shapes_of(alpha, attention="coordinate", reduction=32, channels=4, classes=7):
    """Arrays of the shapes in a state dict from which its network is known."""
    from keras_coordatt.applications import mobilenet_v2_ca
    from keras_coordatt.applications.blocks import make_divisible

    widths = [make_divisible(c * alpha) for _, c, _, _ in mobilenet_v2_ca.STAGES]
    last = make_divisible(1280 * max(1.0, alpha))
    shapes = {
        "features.0.0.weight": (make_divisible(32 * alpha), channels, 3, 3),
        "conv.0.weight": (last, widths[-1], 1, 1),
        "classifier.1.weight": (classes, last),
        "classifier.1.bias": (classes,),
    }
    gates = {
        "coordinate": ("conv2", "conv3"),
        "height": ("conv2",),
        "width": ("conv3",),
    }
    for gate in gates.get(attention, ()):
        for block, width in [(2, widths[0] * 6), (17, widths[-2] * 6)]:
            mid, prefix = max(8, width // reduction), f"features.{block}.conv.6"
            shapes[f"{prefix}.conv1.weight"] = (mid, width, 1, 1)
            shapes[f"{prefix}.{gate}.weight"] = (width, mid, 1, 1)
    # They take no memory.
    return {name: np.broadcast_to(np.float32(0), s) for name, s in shapes.items()}


@pytest.mark.parametrize("alpha", [0.25, 0.35, 0.5, 0.75, 1.0, 1.3, 1.33, 1.4])
@pytest.mark.parametrize("attention", ["coordinate", "height", "width", None])
@pytest.mark.parametrize("reduction", [8, 24, 32])
def test_the_network_is_known_by_its_shapes(alpha, attention, reduction):
    # Every shape is that of the given arguments, though alpha may differ a little,
    # and reduction where 8 channels are the least.
    given = shapes_of(alpha, attention, reduction)
    build, found = network_of(given, "it")
    assert build is MobileNetV2CA
    assert found["attention"] == attention
    assert sorted(found.pop("input_shape"), key=str) == [4, None, None]
    assert found.pop("include_top")
    for name, array in shapes_of(channels=4, **found).items():
        assert array.shape == given[name].shape


@pytest.mark.parametrize(
    "name, shape, message",
    [
        ("features.0.0.weight", None, "features.0.0.weight must have 4.*none of that"),
        ("features.0.0.weight", (32,), r"features.0.0.weight must .* shape \(32,\)"),
        ("features.0.0.weight", (32, 0, 3, 3), "none of them empty"),
        ("conv.0.weight", (1280,), "conv.0.weight must have 4 axes"),
        # A width multiplier of 100, which would be a network of 35e9 weights.
        ("conv.0.weight", (1280, 32000, 1, 1), "no `alpha` gives .* 32000 channels"),
        ("conv.0.weight", (128000, 320, 1, 1), "no `alpha` gives .* 128000 out"),
        ("classifier.1.bias", (), r"classifier.1.bias must .* shape \(\)"),
        ("classifier.1.bias", None, "classifier.1.bias must have 1 axes"),
        ("classifier.1.bias", (2_000_000,), r"must be \(2000000, 1280\).*\(7, 1280\)"),
        ("classifier.1.weight", None, "classifier.1.weight must have 2 axes"),
        ("classifier.1.weight", (8, 1280), r"\(7, 1280\).*\(8, 1280\)"),
        ("features.2.conv.6.conv1.weight", (8,), "conv1.weight must have 4 axes"),
        ("features.2.conv.6.conv1.weight", (9, 96, 1, 1), r"no `reduction`.*\(9, 96\)"),
        ("features.17.conv.6.conv1.weight", (7, 960, 1, 1), "no `reduction` gives"),
    ],
)
def test_shapes_that_fit_no_network(name, shape, message):
    arrays = shapes_of(1.0)
    arrays.pop(name)
    if shape is not None:
        arrays[name] = np.broadcast_to(np.float32(0), shape)
    with pytest.raises(ValueError, match=f"^it is not of MobileNetV2CA .*{message}"):
        network_of(arrays, "it")


@pytest.mark.parametrize(
    "arguments",
    [
        {"attention": "height", "reduction": 8},
        {"attention": None, "include_top": False},
    ],
)
def test_converts_its_own_files(tmp_path, arguments):
    model = MobileNetV2CA((32, 32, 3), 0.25, weights=None, classes=3, **arguments)
    official, weights = tmp_path / "it.safetensors", tmp_path / "it.weights.h5"
    save_safetensors(model, official)
    assert run("convert", official, weights) == 0
    # Weights alone do not tell the network.
    options = ["--alpha", 0.25, "--attention", arguments["attention"] or "none"]
    options += ["--reduction", 8] if "reduction" in arguments else []
    options += ["--classes", 3] if arguments.get("include_top", True) else ["--no-top"]
    again = tmp_path / "again.safetensors"
    assert run("convert", weights, again, *options) == 0
    assert again.read_bytes() == official.read_bytes()


@pytest.mark.parametrize("top", [True, False])
@pytest.mark.parametrize("suffix", [".weights.h5", ".safetensors"])
def test_files_of_weights_do_not_tell_the_image_size(tmp_path, suffix, top):
    options = {"alpha": 0.25, "include_top": top, **({"classes": 2} if top else {})}
    model = MobileNetV2CA((32, 32, 3), weights=None, **options)
    save_network(model, path := tmp_path / f"it{suffix}")
    read = read_network(path, **options)
    assert set(read.input_shape) == {None, 3}
    image = np.random.default_rng(0).uniform(size=(1, 32, 32, 3)).astype("float32")
    np.testing.assert_array_equal(read.predict(image), model.predict(image))


@pytest.mark.parametrize(
    "source, output, message",
    [
        ("none.pth", "out.keras", "none.pth"),
        ("none.onnx", "out.keras", "IN must end in one of"),
        ("bad.pth", "out.onnx", "OUT must end in one of"),
        ("bad.pth", "out.keras", "Cannot read .*bad.pth.*not a PyTorch checkpoint"),
        ("bad.safetensors", "out.keras", "Cannot read .*bad.safetensors"),
        ("bad.weights.h5", "out.safetensors", "Cannot read .*bad.weights.h5"),
        ("none.keras", "out.keras", "No such file.*none.keras"),
        ("bad.keras", "out.keras", "Cannot read .*bad.keras.*not a .keras archive"),
        ("none.h5", "out.keras", "No such file.*none.h5"),
        ("bad.h5", "out.keras", "Cannot read .*bad.h5.*signature not found"),
        ("bad.pth", "", "OUT must end in one of"),
        ("bad.pth", "folder.keras", "OUT must be a file. Received a folder"),
        ("folder.keras", "out.keras", "Is a directory.*folder.keras"),
        ("folder.pth", "out.keras", "Is a directory.*folder.pth"),
    ],
)
def test_error_messages(tmp_path, capsys, source, output, message):
    if source.startswith("bad"):
        (tmp_path / source).write_bytes(b"<html>")
    for name in (source, output):
        if name.startswith("folder"):
            (tmp_path / name).mkdir()
    before = sorted(tmp_path.iterdir())
    arguments = ("--alpha", 0.25) if source == "bad.weights.h5" else ()
    assert run("convert", tmp_path / source, tmp_path / output, *arguments) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("keras-coordatt: error: ")
    assert re.search(message, printed.err)
    assert sorted(tmp_path.iterdir()) == before


@pytest.fixture
def refuses(tmp_path, capsys):
    """Asserts that a file is not converted, with a message."""

    def check(path, message):
        before = sorted(tmp_path.iterdir())
        assert run("convert", path, tmp_path / "out.keras") == 1
        printed = capsys.readouterr()
        assert printed.out == ""
        assert "keras-coordatt: error: " in printed.err  # Keras may warn before
        assert path.name in printed.err
        assert re.search(message, printed.err, re.DOTALL)
        assert sorted(tmp_path.iterdir()) == before

    return check


def another_network(path, kernel=1.0):
    """Saves a network that isn't one of ours."""
    image = keras.Input((8, 8, 3))
    x = keras.layers.Normalization(name="counts")(image)  # it keeps an integer
    conv = keras.layers.Conv2D(4, 3, name="its_conv")
    model = keras.Model(image, conv(x))
    conv.set_weights([np.full((3, 3, 3, 4), kernel), np.zeros(4)])
    model.save(path)
    return path


def with_part(path, name, content):
    """Replaces a part of an archive, or one string by another in it, or drops it."""
    with zipfile.ZipFile(path) as archive:
        parts = {part: archive.read(part) for part in archive.namelist()}
    if isinstance(content, tuple):
        assert content[0] in parts[name]
        content = parts[name].replace(*content)
    parts[name] = content
    with zipfile.ZipFile(path, "w") as archive:
        for part, content in parts.items():
            if content is not None:
                archive.writestr(part, content)
    return path


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_converts_any_network_that_keras_loads(tmp_path, suffix):
    source, output = tmp_path / f"it{suffix}", tmp_path / "out.keras"
    assert run("convert", another_network(source), output) == 0
    ours, theirs = map(keras.saving.load_model, (output, source))
    for a, b in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_networks_of_nan_and_infinity(tmp_path, refuses, suffix, number):
    path = another_network(tmp_path / f"damaged{suffix}", number)
    refuses(path, "not finite: .*kernel.*108 of 108 values")


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_truncated_networks(tmp_path, refuses, suffix):
    path = another_network(tmp_path / f"damaged{suffix}")
    data = path.read_bytes()
    for length in (0, 1, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        refuses(path, "Cannot read .*(truncated|signature not found)")


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("config.json", None, "KeyError.*config.json"),
        ("config.json", b"{", "JSONDecodeError"),
        ("config.json", b"[]", "TypeError"),
        ("config.json", b"{}", "Cannot read"),
        ("config.json", b"[" * 100_000, "RecursionError"),
        ("config.json", (b"Conv2D", b"NoSuchLayer"), "NoSuchLayer"),
        ("config.json", (b"its_conv", b"its_conv/"), "Cannot read"),
        ("config.json", (b'"filters": 4', b'"filters": 5'), "its_conv"),
        ("model.weights.h5", None, "model.weights.h5"),
        ("model.weights.h5", b"<html>", "signature not found"),
    ],
)
def test_damaged_archives(tmp_path, refuses, name, content, message):
    path = another_network(tmp_path / "damaged.keras")
    with_part(path, name, content)
    refuses(path, message)


@pytest.mark.parametrize(
    "config, message", [(None, "No model config"), ("{", "JSONDecodeError")]
)
def test_damaged_configurations_of_h5(tmp_path, refuses, config, message):
    path = another_network(tmp_path / "damaged.h5")
    with h5py.File(path, "r+") as file:
        del file.attrs["model_config"]
        if config is not None:
            file.attrs["model_config"] = config
    refuses(path, message)


def test_saved_objects_that_are_not_networks(tmp_path, refuses):
    layer = json.dumps(keras.saving.serialize_keras_object(keras.layers.ReLU()))
    path = another_network(tmp_path / "layer.keras")
    refuses(with_part(path, "config.json", layer), "must hold a built model.*ReLU")


def test_code_in_a_configuration_is_refused(tmp_path, refuses):
    path, image = tmp_path / "code.keras", keras.Input((3,))
    keras.Model(image, keras.layers.Lambda(lambda x: x)(image)).save(path)
    refuses(path, "Lambda")


@pytest.mark.parametrize(
    "name, message",
    [
        # Arguments that the shapes of the weights do not determine.
        ("classifier.1.weight", "damaged.pth' is not of MobileNetV2CA"),
        ("features.9.conv.3.weight", "damaged.pth' does not fit.*missing: features.9"),
    ],
)
def test_misfits_name_the_file(checkpoint, tmp_path, refuses, name, message):
    torch = pytest.importorskip("torch")
    state, path = torch.load(checkpoint), tmp_path / "damaged.pth"
    del state[name]
    torch.save(state, path)
    refuses(path, message)


@pytest.mark.parametrize(
    "name, shape",
    [
        ("classifier.1.bias", (2_000_000,)),
        ("features.17.conv.7.weight", (32_000, 240, 1, 1)),
        ("conv.0.weight", (128_000, 32_000, 1, 1)),
    ],
)
def test_small_files_that_ask_for_large_networks(
    checkpoint, tmp_path, refuses, name, shape
):
    torch = pytest.importorskip("torch")
    state, path = torch.load(checkpoint), tmp_path / "bomb.pth"
    state[name] = torch.zeros(1).expand(shape)
    torch.save(state, path)
    refuses(path, "Cannot read .*bomb.pth.*repeats the numbers")


def test_lists_the_catalog(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    assert run("weights") == 0
    printed = capsys.readouterr().out
    for name, record in CATALOG.items():
        source = record.url or record.training
        for value in (name, source, record.hash, f"{record.top1} %", record.license):
            assert value in printed
    assert "not downloaded yet" in printed
    start = 'MobileNeXtCA(alpha=1.0, attention="coordinate", weights="imagenet-plain")'
    assert f"{start}, whose attention is not trained" in printed

    (tmp_path / "models").mkdir()
    path = tmp_path / "models" / "mbv2_ca.pth"
    path.write_bytes(b"by hand")
    assert run("weights") == 0
    assert f"file      {path}" in capsys.readouterr().out


NAME = "mobilenetv2_ca_cifar10"


def test_verifies_weights(monkeypatch, capsys):
    assert run("weights", "--verify", NAME) == 0
    assert f"{NAME}: the published file, 846,226 par" in capsys.readouterr().out

    broken = dataclasses.replace(CATALOG[NAME], hash="sha256:0")
    monkeypatch.setattr(weights_command, "CATALOG", {NAME: broken})
    monkeypatch.setitem(CATALOG, NAME, broken)
    assert run("weights", "--verify", "all") == 1
    printed = capsys.readouterr()
    assert "FAILED" in printed.out
    assert "not the published file" in printed.out
    assert f"error: 1 of 1: {NAME}" in printed.err
    assert run("weights", "--data", "photos") == 1
    assert "--data needs --verify" in capsys.readouterr().err


@needs_tensorflow
def test_measures_weights(tmp_path, capsys):
    for label in ("cat", "truck"):
        (tmp_path / "test" / label).mkdir(parents=True)
        image = np.random.default_rng(0).integers(0, 256, (32, 40, 3))
        keras.utils.save_img(tmp_path / "test" / label / "0.png", image)
    assert run("weights", "--verify", NAME, "--data", tmp_path) == 0
    # The same image twice: at most one of the two is right.
    assert re.search(r"top-1 (0|50).00 % of 2 test", capsys.readouterr().out)
    (tmp_path / "test" / "cat").rename(tmp_path / "test" / "zebra")
    assert run("weights", "--verify", NAME, "--data", tmp_path) == 1
    assert "must be called as in CIFAR-10" in capsys.readouterr().err


def test_convert_refuses_a_mismatched_head(tmp_path, capsys):
    source = tmp_path / "ten.weights.h5"
    MobileNetV2CA((32, 32, 3), 0.25, weights=None, classes=10).save_weights(source)
    assert run("convert", source, tmp_path / "out.keras", "--alpha", 0.25) == 1
    assert "misshapen" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [source]


def test_options_are_refused_if_the_file_describes_its_network(tmp_path, capsys):
    source = tmp_path / "it.keras"
    source.touch()
    options = ("--alpha", 0.5, "--no-top")
    assert run("convert", source, tmp_path / "out.keras", *options) == 1
    assert "leave out --alpha, --no-top. Received" in capsys.readouterr().err
    with pytest.raises(ValueError, match="leave out `alpha`. Received"):
        read_network(source, alpha=0.5)
    with pytest.raises(ValueError, match="`source` must end in one of"):
        read_network(tmp_path / "it.onnx")


@pytest.mark.parametrize(
    "command, message",
    [
        (["benchmark", "--official", "."], "mbv2_ca.py"),
        (["benchmark", "--processes", 1, "--picture", "a.png"], "leave out --picture"),
        # It would run here, with another backend and all threads.
        (
            ["compare", "classify", "none", "--picture", "a", "--measure", "jax_1"],
            "jax",
        ),
    ],
)
def test_measuring_checks_first(tmp_path, capsys, monkeypatch, command, message):
    monkeypatch.chdir(tmp_path)
    assert run(*command) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@once
@pytest.mark.parametrize(
    "command, option",
    [
        (["predict", "it.keras", "pet.png", "--csv"], "--csv"),
        (["predict", "it.keras", "pet.png", "--draw"], "--draw"),
        (["evaluate", "it.keras", "pets", "--json"], "--json"),
        (["export", "it.keras"], "OUT"),
        (["convert", "it.keras"], "OUT"),
        (["data", "pets", "--json"], "--json"),
        (["compare", "classify", "pets", "--curves"], "--curves"),
        (["benchmark", "--json"], "--json"),
        (["demo", "--output"], "--output"),
    ],
)
def test_outputs_are_checked_first(tmp_path, capsys, monkeypatch, command, option):
    """Before the model is read, which doesn't even exist here."""
    monkeypatch.chdir(tmp_path)
    for name in ("file.txt", "pet.png"):
        pathlib.Path(name).touch()
    suffix = ".keras" if command[0] == "convert" else ".tflite"
    assert run(*command, f"file.txt/out{suffix}") == 1
    error = capsys.readouterr().err
    assert f"{option} can't be written to file.txt" in error
    assert "Not a directory" in error
    if option not in ("--output", "--draw"):  # which are folders
        pathlib.Path(f"folder{suffix}").mkdir()
        assert run(*command, f"folder{suffix}") == 1
        assert f"{option} must be a file. Received a folder" in capsys.readouterr().err


@once
def test_files_of_the_data_are_not_replaced(tmp_path, capsys):
    labels = tmp_path / "pets" / "annotations.json"
    labels.parent.mkdir()
    labels.write_text("{}")
    assert run("data", labels.parent, "--json", labels) == 1
    error = capsys.readouterr().err
    assert f"--json would replace a file of {labels.parent}" in error
    assert labels.read_text() == "{}"
    network = tmp_path / "it.keras"
    network.touch()
    assert run("convert", network, network) == 1
    assert f"OUT would replace {network}" in capsys.readouterr().err


@once
def test_figures_are_written_before_later_steps_fail(tmp_path, capsys, monkeypatch):
    rows = [{"model": "MobileNetV2CA", "attention": None, "jax_1": {"absent": "no"}}]
    monkeypatch.setattr(measuring, "benchmark", lambda *args, **options: rows)

    def official_rows(path, rounds):
        raise ValueError(f"fails in {rounds} rounds")

    monkeypatch.setattr(measuring, "official_rows", official_rows)
    monkeypatch.chdir(tmp_path)
    pathlib.Path("mbv2_ca.py").touch()
    for options, message in (
        (["--official", ".", "--rounds", 3], "fails in 3 rounds"),
        (["--picture", "a.png"], "all networks have. Received: --measures jax_1"),
    ):
        figures = tmp_path / f"{options[0]}.json"
        assert run("benchmark", "--measures", "jax_1", "--json", figures, *options) == 1
        assert message in capsys.readouterr().err
        assert json.loads(figures.read_text()) == rows
    assert run("benchmark", "--official", ".", "--image-size", 32) == 1
    assert "Received: --image-size 32" in capsys.readouterr().err


@pytest.mark.skipif(keras.config.backend() == "jax", reason="JAX can")
def test_processes_are_measured_on_jax(capsys):
    assert run("benchmark", "--processes", 1, 2) == 1
    assert "--processes needs the JAX backend" in capsys.readouterr().err


@needs_tensorflow
def test_benchmarks(tmp_path, capsys):
    figures, picture = tmp_path / "figures.json", tmp_path / "picture.png"
    small = ("--image-size", 32, "--alpha", 0.25, "--rounds", 2, "--no-memory")
    measures = ("--attentions", "coordinate", "--measures", "graph_1")
    files = ("--json", figures, "--picture", picture)
    assert run("benchmark", *small, *measures, *files, "--references") == 0
    rows = json.loads(figures.read_text())
    attentions = [row["attention"] for row in rows]
    assert attentions == [None, "coordinate", "plain port", "passes only"]
    printed = capsys.readouterr().out
    assert f"{1000 * rows[1]['graph_1']['seconds']:.3g} ms" in printed
    assert keras.utils.img_to_array(keras.utils.load_img(picture)).std() > 10


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "error: COMMAND is required"),
        (["no-such"], "invalid choice: 'no-such'.*convert"),
        (["convert", "one"], "arguments are required: OUT"),
        (["--alpha"], "--alpha"),
        (["convert", "one", "two", "--alpha", "wide"], "--alpha: .*float.*'?wide"),
        (["convert", "one", "two", "--aplha", "1"], "--aplha.*mean --alpha[?]"),
        (
            ["convert", "one", "two", "--attention", "z"],
            "--attention: Expected one of 'coordinate', .*'none'. Received: z[.]",
        ),
        (
            ["compare", "classify", "one", "--seeds", "0", "x"],
            "--seeds element 2: .*int.*x",
        ),
        (["convert", "one", "two", "--config", "none.yaml"], "--config: .*none.yaml"),
        # Not an abbreviation of --output-stride
        (
            ["train", "one", "two", "--output", "three"],
            "unrecognized .*--output .*Pass OUT without an option name",
        ),
    ],
)
def test_wrong_usage(arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("keras-coordatt")
    assert re.search(message, line)
    assert line.endswith("--help")


@pytest.mark.parametrize(
    "message, typed",
    [
        ("`data` has `a`", "DATA has `a`"),
        ("the same `data` and `output`", "the same DATA and OUT"),
        ("`validation_split=0.2` sets", "--validation-split 0.2 sets"),
        (
            '`weights="imagenet"` or `weights=None`',
            "--weights imagenet or no --weights",
        ),
    ],
)
def test_errors_name_options_as_they_are_typed(message, typed):
    assert name_options(message, COMMANDS["train"]) == typed


@pytest.mark.parametrize(
    "output, message",
    [
        ("model.pth", "OUT must be a folder, or a file"),
        ("photos/out", "OUT must not be inside DATA"),
    ],
)
@once
def test_errors_of_train_name_its_positional_arguments(
    tmp_path, capsys, output, message
):
    (tmp_path / "photos").mkdir()
    assert run("train", "classify", tmp_path / "photos", tmp_path / output) == 1
    assert f"error: {message}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options, message",
    [
        (["--set", "ema=2"], r"--set ema must be a number in \[0, 1\). Received: 2"),
        (["--set", "emma=2"], "--set emma is not a value of a recipe. It has: .*ema"),
        (["--set", "epochs=0"], "--set epochs must be a positive integer"),
        (["--epochs", "0"], "--epochs must be a positive integer"),
        (["--attention", "se", "--reduction", "16"], "--reduction is .*: leave it out"),
        (
            ["--weights", "imagenet", "--alpha", "9"],
            "--weights .*not pub.*`keras-coordatt weights`",
        ),
    ],
)
@needs_tensorflow
def test_errors_use_the_names_on_the_command_line(tmp_path, capsys, options, message):
    for label in ("cat", "dog"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for i in range(4):
            path = tmp_path / "photos" / label / f"{i}.png"
            keras.utils.save_img(path, np.full((32, 32, 3), 50 * i))
    small = ["--set", "image_size=32"] if "--set" not in options else []
    data, output = tmp_path / "photos", tmp_path / "out"
    assert run("train", "classify", data, output, *small, *options) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(f"keras-coordatt: error: {message}", line)
    assert not re.search(r"functools|\w\(", line)  # Nothing that is typed in Python
    assert not output.exists()


@needs_tensorflow
def test_unreadable_images_are_told_with_the_option_for_them(tmp_path, capsys):
    for label in ("cat", "dog"):
        (tmp_path / "train" / label).mkdir(parents=True)
        (tmp_path / "train" / label / "0.png").write_bytes(b"<html>")
    options = ("--validation-split", 0, "--alpha", 0.25)
    assert run("train", "classify", tmp_path, tmp_path.parent / "out", *options) == 1
    assert "(--on-error skip leaves them out)" in capsys.readouterr().err


def printed_help(capsys, *arguments):
    with pytest.raises(SystemExit) as caught:
        main([*arguments, "--help"])
    assert caught.value.code == 0
    return " ".join(capsys.readouterr().out.split())


def test_help_names_every_command(capsys):
    printed = printed_help(capsys)
    for name, command in COMMANDS.items():
        assert f"{name} {command.__doc__.splitlines()[0]}" in printed


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_has_help_and_shows_its_default(capsys, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "1000")  # one line per option
    with pytest.raises(SystemExit):
        main([command, "--help"])
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert not any("Literal" in line for line in lines)  # the choices are shown
    text = r"[A-Z`].*\."
    for name, option in inspect.signature(COMMANDS[command]).parameters.items():
        heading, end = rf"--{name.replace('_', '-')}\b", "required"
        default = option.default
        if default is option.empty:
            heading = METAVARS.get(name, name.upper())
        else:
            default = list(default) if isinstance(default, tuple) else default
            end = f"default: {'null' if default is None else default}"
        pattern = rf"{heading}.*? {text} \(.*{re.escape(end)}.*\)"
        # The description of a long option is on the next line.
        pairs = map(" ".join, zip(lines, [*lines[1:], ""], strict=True))
        assert any(re.match(pattern, pair) for pair in pairs), name


def test_options_from_a_file(tmp_path, capsys):
    source, output = tmp_path / "ten.weights.h5", tmp_path / "out.safetensors"
    MobileNetV2CA((32, 32, 3), 0.25, weights=None, classes=10).save_weights(source)
    options = tmp_path / "options.yaml"
    options.write_text(f"source: {source}\noutput: {output}\nalpha: 0.25\nclasses: 9\n")
    assert run("convert", "--config", options, "--classes", 10) == 0
    assert output.exists()
    options.write_text("alfa: 0.25\n")
    with pytest.raises(SystemExit):
        run("convert", "--config", options, source, output)
    assert "alfa" in capsys.readouterr().err


def received_by(name, monkeypatch):
    """The options that a command will have been called with, instead of running."""
    received = {}

    @functools.wraps(COMMANDS[name])
    def record(**options):
        received.update(options)

    monkeypatch.setitem(COMMANDS, name, record)
    return received


@pytest.mark.parametrize("equals", [False, True])
@pytest.mark.parametrize("last", [False, True])
def test_typed_options_override_and_extend_a_file(tmp_path, monkeypatch, last, equals):
    received = received_by("train", monkeypatch)
    file = tmp_path / "config.json"
    file.write_text('{"data": "a", "output": "b", "seed": 1, "set": ["ema=0.9"]}')
    typed = ["c", "d", "--seed", 2]
    config = [f"--config={file}"] if equals else ["--config", file]
    typed += ["--set", "mixup=0.1", "--set", "cutmix=0.2"]
    assert run("train", *(typed + config if last else config + typed)) == 0
    assert [received[name] for name in ("data", "output", "seed")] == ["c", "d", 2]
    assert received["set"] == ["ema=0.9", "mixup=0.1", "cutmix=0.2"]


def test_a_typed_list_replaces_that_of_a_file(tmp_path, monkeypatch):
    received = received_by("benchmark", monkeypatch)
    file = tmp_path / "config.json"
    file.write_text('{"processes": [1, 2], "models": ["MobileNeXtCA"]}')
    typed = ["--processes", 4, "--models", "SSDLite"]
    assert run("benchmark", "--config", file, *typed) == 0
    assert received["processes"] == [4] and received["models"] == ["SSDLite"]


def test_version(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"{__version__}\n"


def test_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "keras_coordatt.cli", "weights"],
        env={**os.environ, "KERAS_BACKEND": "numpy"},  # imported the soonest
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("mobilenetv2_ca_imagenet\n")


@once
def test_closed_pipe_is_not_an_error():
    done = subprocess.run(
        f"{sys.executable} -m keras_coordatt.cli weights | true",
        env={**os.environ, "KERAS_BACKEND": "numpy"},  # imported the soonest
        cwd=ROOT,
        shell=True,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""


@needs_tensorflow
def test_the_command_starts_quietly():
    done = subprocess.run(
        [sys.executable, "-m", "keras_coordatt_command", "weights"],
        env={k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout
    assert done.stderr == ""
