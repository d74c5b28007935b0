"""The command line does what the package does, and says what went wrong."""

import itertools
import json
import os
import pathlib
import re
import subprocess
import sys

import h5py
import keras
import numpy as np
import pytest
from backends import needs_tensorflow

from keras_coordatt import MobileNetV2CA, cli
from keras_coordatt.benchmark import MEASURES
from keras_coordatt.cli import COMMANDS, main
from keras_coordatt.weights import CATALOG
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


@pytest.mark.parametrize("alpha", [0.25, 0.35, 0.5, 0.75, 1.0, 1.3, 1.4])
@pytest.mark.parametrize("attention", ["coordinate", None])
def test_the_network_is_known_by_its_shapes(alpha, attention):
    # Every width is that of the given alpha, though alpha itself may differ a little.
    from keras_coordatt.applications import mobilenet_v2_ca
    from keras_coordatt.applications.common import make_divisible
    from keras_coordatt.weights.official import describe

    widths = [make_divisible(c * alpha) for _, c, _, _ in mobilenet_v2_ca.STAGES]
    state = {
        "features.0.0.weight": np.zeros((make_divisible(32 * alpha), 4, 3, 3)),
        "features.1.conv.3.weight": np.zeros((widths[0], 1, 1, 1)),
        "conv.0.weight": np.zeros((1280, widths[-1], 1, 1)),
        "classifier.1.bias": np.zeros(7),
        f"features.17.conv.{7 if attention else 6}.weight": np.zeros(
            (widths[-1], 1, 1, 1)
        ),
    }
    if attention:
        state["features.17.conv.6.conv1.weight"] = np.zeros((8, 1, 1, 1))
    found = describe(state)
    assert found["classes"] == 7
    assert 4 in found["input_shape"]
    assert found.get("attention", "coordinate") == attention
    assert [
        make_divisible(c * found["alpha"]) for _, c, _, _ in mobilenet_v2_ca.STAGES
    ] == widths
    assert make_divisible(32 * found["alpha"]) == make_divisible(32 * alpha)
    last = [make_divisible(1280 * max(1.0, a)) for a in (found["alpha"], alpha)]
    assert last[0] == last[1]


@pytest.mark.parametrize(
    "source, output, message",
    [
        ("none.pth", "out.keras", "none.pth"),
        ("none.onnx", "out.keras", "IN must end in one of"),
        ("bad.pth", "out.onnx", "OUT must end in one of"),
        ("bad.pth", "out.keras", "Cannot read .*bad.pth.*not a PyTorch checkpoint"),
        ("bad.safetensors", "out.keras", "Cannot read .*bad.safetensors"),
        ("bad.weights.h5", "out.safetensors", "Cannot read .*bad.weights.h5"),
    ],
)
def test_what_goes_wrong_is_said(tmp_path, capsys, source, output, message):
    if source.startswith("bad"):
        (tmp_path / source).write_bytes(b"<html>")
    before = sorted(tmp_path.iterdir())
    arguments = ("--alpha", 0.25) if source == "bad.weights.h5" else ()
    assert run("convert", tmp_path / source, tmp_path / output, *arguments) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("keras-coordatt: error: ")
    assert re.search(message, printed.err)
    assert sorted(tmp_path.iterdir()) == before


def test_lists_the_catalog(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    assert run("weights") == 0
    printed = capsys.readouterr().out
    for name, record in CATALOG.items():
        place = record.url or record.training
        for value in (name, place, record.hash, f"{record.top1} %"):
            assert value in printed
    assert "not downloaded yet" in printed

    (tmp_path / "models").mkdir()
    path = tmp_path / "models" / "mbv2_ca.pth"
    path.write_bytes(b"by hand")
    assert run("weights") == 0
    assert f"cache     {path}" in capsys.readouterr().out


@needs_tensorflow
def test_trains_and_goes_on_after_an_interruption(
    eager, image_folder, tmp_path, capsys
):
    output = tmp_path / "there" / "trained.safetensors"
    options = ("--image-size", 32, "--epochs", 2, "--batch-size", 12)
    with pytest.MonkeyPatch.context() as patch:

        def interrupted(*arguments, **options):
            raise KeyboardInterrupt

        patch.setattr(keras.Model, "evaluate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run("train", image_folder, output, *options)
    assert [path.suffix for path in output.parent.iterdir()] == [".safetensors-backup"]

    # Another training must not go on from there.
    assert run("train", image_folder, output, *options, "--seed", 1) == 1
    assert re.search("another training.*seed", capsys.readouterr().err)

    # Both epochs are done, so nothing is left but the test.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keras.Model, "train_step", lambda *_: pytest.fail("trained"))
        assert run("train", image_folder, output, *options) == 0
    assert re.search(r"\d+\.\d\d% of the test images, 3\d\d,", capsys.readouterr().out)
    assert list(output.parent.iterdir()) == [output]
    assert MobileNetV2CA((32, 32, 3), 0.25, weights=output, classes=3).built


@pytest.mark.parametrize(
    "output, attention, message",
    [
        ("out.pth", "coordinate", "OUT must end in one of"),
        ("out.safetensors", "se", "OUT can be .safetensors only.*se"),
    ],
)
def test_train_checks_the_output_first(tmp_path, capsys, output, attention, message):
    options = ("--attention", attention)
    assert run("train", tmp_path, tmp_path / output, *options) == 1
    assert re.search(message, capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


def test_a_head_that_does_not_fit_is_no_conversion(tmp_path, capsys):
    source = tmp_path / "ten.weights.h5"
    MobileNetV2CA((32, 32, 3), 0.25, weights=None, classes=10).save_weights(source)
    assert run("convert", source, tmp_path / "out.keras", "--alpha", 0.25) == 1
    assert "misshapen" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [source]


def test_a_file_that_tells_its_network_takes_no_options(tmp_path, capsys):
    source = tmp_path / "it.keras"
    source.touch()
    assert run("convert", source, tmp_path / "out.keras", "--alpha", 0.5) == 1
    assert "leave out the options" in capsys.readouterr().err


def test_benchmark_checks_first(tmp_path, capsys):
    assert run("benchmark", "--official", tmp_path) == 1
    assert "mbv2_ca.py" in capsys.readouterr().err


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


def test_measures_are_the_benchmarks():
    assert cli.MEASURES == tuple(MEASURES)


@pytest.mark.parametrize(
    "arguments", [[], ["no-such"], ["convert", "one"], ["--alpha"]]
)
def test_wrong_usage(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: keras-coordatt" in capsys.readouterr().err


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    for name, (command, _) in COMMANDS.items():
        assert name in printed
        assert command.__doc__.splitlines()[0] in printed


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
