import os
import types
from concurrent.futures.process import BrokenProcessPool

import keras
import numpy as np
import pytest
from backends import BACKEND, needs_tensorflow, once
from keras import ops
from networks import images

from keras_coordatt import (
    CoordinateAttention,
    EfficientNetCA,
    MobileNetV2CA,
    benchmark,
)
from keras_coordatt.benchmark import measure, references, runtimes
from keras_coordatt.benchmark.memory import peak_memory


def test_functions_are_timed_in_turns(monkeypatch):
    clock, calls = [0.0], []

    def takes(name, seconds):
        def run():
            clock[0] += seconds
            calls.append(name)

        return run

    clock_module = types.SimpleNamespace(perf_counter=lambda: clock[0])
    monkeypatch.setattr(measure, "time", clock_module)
    functions = {"a": takes("a", 1.0), "b": takes("b", 3.0)}
    times = benchmark.interleaved(functions, rounds=2, calls=3)
    assert times == {"a": [1.0, 1.0], "b": [3.0, 3.0]}
    # Twice each to warm up, then the rounds, each begun by another.
    assert "".join(calls) == "abab" + "aaabbb" + "bbbaaa"


@once
def test_rounds_are_shared_among_starts(monkeypatch):
    prepared, called = [], []

    def prepare(model):
        prepared.append(model.name)
        return lambda: called.append(len(prepared))

    fake = benchmark.Measure("fake", prepare, images=1, calls=1, starts=2)
    monkeypatch.setitem(benchmark.MEASURES, "train_fake", fake)
    arguments = {"image_size": 32, "alpha": 0.25, "memory": False}
    benchmark.benchmark(measures=["train_fake"], attentions=[], rounds=5, **arguments)
    # With two calls to warm up, 3 rounds and then 2.
    assert called == [1] * 5 + [2] * 4


@once
def test_weights_are_the_same_in_every_run(monkeypatch):
    def first_se_kernel(attentions):
        models = {}

        def prepare(model):
            models[len(models)] = model
            return lambda: None

        fake = benchmark.Measure("fake", prepare, images=1, calls=1)
        monkeypatch.setitem(benchmark.MEASURES, "train_fake", fake)
        arguments = {"image_size": 32, "alpha": 0.1, "memory": False, "rounds": 1}
        benchmark.benchmark(attentions=attentions, measures=["train_fake"], **arguments)
        layer = models[len(attentions)].get_layer("block_3_attention")
        return ops.convert_to_numpy(layer.reduce.kernel)

    expected = first_se_kernel(["se"])
    assert expected.std() > 0
    assert (first_se_kernel(["height", "se"]) == expected).all()


@needs_tensorflow
@pytest.mark.parametrize(
    "attention, published", [(None, 300e6), ("se", 300e6), ("coordinate", 310e6)]
)
def test_multiply_adds_are_the_papers(attention, published):
    model = MobileNetV2CA(weights=None, attention=attention)
    # They are published to two digits.
    assert abs(benchmark.multiply_adds(model) - published) <= 6e6


@needs_tensorflow
def test_multiply_adds_of_layers():
    inputs = keras.Input((8, 6, 4))
    x = keras.layers.Conv2D(10, 3, padding="same")(inputs)
    x = keras.layers.DepthwiseConv2D(3, padding="valid")(x)
    x = keras.layers.Dense(5)(keras.layers.GlobalAveragePooling2D()(x))
    expected = 8 * 6 * 10 * 9 * 4 + 6 * 4 * 10 * 9 + 10 * 5
    assert benchmark.multiply_adds(keras.Model(inputs, x)) == expected


def test_the_plain_port_is_the_layer():
    x = images(2, 5, 7, 64)
    ours, plain = CoordinateAttention(), benchmark.PlainPort()
    ours(x, training=True)
    plain(x)
    plain.set_weights(
        [
            w.reshape(v.shape)
            for w, v in zip(ours.get_weights(), plain.weights, strict=True)
        ]
    )
    given, expected = (ops.convert_to_numpy(layer(x)) for layer in (plain, ours))
    np.testing.assert_allclose(given, expected, atol=1e-6)


@once
def test_activations_are_as_in_a_network_that_was_trained():
    model = MobileNetV2CA((32, 32, 3), 0.25, weights=None)
    maps = [layer.output for layer in model.layers if layer.name.endswith("_BN")]
    calibrated = keras.Model(measure.calibrate_batch_norm(model).input, maps)
    for x in calibrated(images(8, 32, 32, 3), training=False):
        assert 0.2 < np.std(ops.convert_to_numpy(x)) < 2
    assert model.get_layer("bn_Conv1").momentum == 0.9


@needs_tensorflow
def test_measures_run_the_networks(eager):
    # The others differ from these in a number.
    measures = ["litert_float32_1", "litert_int8_1", "graph_1", "train_32"]
    arguments = {"image_size": 32, "alpha": 0.25, "rounds": 1, "memory": False}
    plain, coordinate = benchmark.benchmark(
        attentions=["coordinate"], measures=measures, **arguments
    )
    assert (plain["attention"], coordinate["attention"]) == (None, "coordinate")
    assert plain["parameters"] < coordinate["parameters"]
    assert plain["multiply_adds"] < coordinate["multiply_adds"]
    for row in (plain, coordinate):
        # Four bytes per parameter, and one.
        assert 1 < row["size_float32"] / (4 * row["parameters"]) < 1.1
        assert 1 < row["size_int8"] / row["parameters"] < 1.5
    for name in measures:
        assert plain[name]["ratio"] == (1, 1, 1)
        ratio = coordinate[name]["seconds"] / plain[name]["seconds"]
        assert coordinate[name]["ratio"][1] == pytest.approx(ratio, rel=1e-3)
        images = benchmark.MEASURES[name].images
        for row in (plain, coordinate):
            rate, seconds = row[name]["per_second"], row[name]["seconds"]
            assert rate == pytest.approx(images / seconds)


@needs_tensorflow
def test_peak_memory_is_that_of_the_feature_maps():
    ballast = np.ones(2**27)  # that this process has a gigabyte does not count
    rows = [
        peak_memory(
            MobileNetV2CA,
            {
                "input_shape": (size, size, 3),
                "alpha": 0.25,
                "weights": None,
                "attention": None,
            },
        )
        for size in (32, 320)
    ]
    # The feature maps before and after the expansion of `block_1`, at 320 pixels.
    assert rows[1] - rows[0] > 16 * 160 * 160 * (8 + 48) * 4
    assert rows[1] < ballast.nbytes


def row(attention, parameters, seconds, ratio):
    return {
        "model": "MobileNetV2CA",
        "attention": attention,
        "parameters": parameters,
        "graph_1": {"seconds": seconds, "per_second": 1 / seconds, "ratio": ratio},
    }


ROWS = [
    row(None, 3_504_872, 0.02, (1.0, 1.0, 1.0)),
    row("coordinate", 3_950_648, 0.0221, (1.09, 1.1, 1.12)),
]


def test_table():
    assert benchmark.table(ROWS).splitlines() == [
        "| MobileNetV2CA | none | coordinate |",
        "| --- | --- | --- |",
        "| parameters | 3.50 M | 3.95 M |",
        "| TF graph, batch 1, all cores | 20 ms | 22.1 ms, × 1.10 (1.09-1.12) |",
    ]
    absent = [{**row, "graph_1": {"absent": "no TensorFlow"}} for row in ROWS]
    assert benchmark.table(absent).endswith("| no TensorFlow | no TensorFlow |")


def test_table_of_long_times_and_official_rows():
    official = [
        {"model": "it", "attention": name, "torch_1": {"seconds": seconds}}
        for name, seconds in ((None, 0.999), ("se", 0.9996), ("official", 1.444))
    ]
    last = benchmark.table(official).splitlines()[-1]
    assert last == "| PyTorch, batch 1, all cores | 999 ms | 1 s | 1.44 s |"


def test_settings_of_another_process_end(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    with runtimes.single_thread("torch"):
        assert os.environ["KERAS_BACKEND"] == "torch"
        assert os.environ["OMP_NUM_THREADS"] == "1"
        # No GPU, on TensorFlow and PyTorch, and on JAX
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "-1"
        assert os.environ["JAX_PLATFORMS"] == "cpu"
    assert os.environ["KERAS_BACKEND"] == "jax"
    assert "OMP_NUM_THREADS" not in os.environ


@pytest.mark.skipif(BACKEND != "torch", reason="once is enough")
def test_backends_are_timed_in_a_process_of_their_own():
    arguments = {"image_size": 32, "alpha": 0.25, "rounds": 1}
    (row,) = benchmark.benchmark(attentions=[], measures=["keras_torch_1"], **arguments)
    assert row["keras_torch_1"]["ratio"] == (1, 1, 1)


def test_a_network_that_fails_does_not_end_the_others(monkeypatch):
    def prepare(model):
        if model == "bad":
            raise ValueError("is not exact enough")
        return lambda: None

    fake = benchmark.Measure("fake", prepare, images=1, calls=1)
    monkeypatch.setitem(benchmark.MEASURES, "fake", fake)
    times, failed = measure._time("fake", {"a": "bad", "b": "good"}, rounds=2)
    assert len(times.pop("b")) == 2
    assert (times, failed) == ({}, {"a": "is not exact enough"})


def test_missing_packages_are_named(monkeypatch):
    def prepare(model):
        raise ImportError("No module named 'fast'")

    fake = benchmark.Measure("fake", prepare, images=1, calls=1)
    monkeypatch.setitem(benchmark.MEASURES, "train_fake", fake)
    arguments = {"image_size": 32, "alpha": 0.25, "memory": False}
    (row,) = benchmark.benchmark(measures=["train_fake"], attentions=[], **arguments)
    assert row["train_fake"] == {"absent": "No module named 'fast'"}
    with pytest.raises(ValueError, match="`measure` must be.*Received: 'train_fake'"):
        benchmark.picture([row], "none.png", "train_fake")


@once
@pytest.mark.parametrize("refused", [0, 1])
def test_one_network_is_refused(monkeypatch, tmp_path, refused):
    names = iter(range(2))

    def prepare(model):
        if next(names) == refused:
            raise ValueError  # without a message
        return lambda: None

    fake = benchmark.Measure("fake", prepare, images=1, calls=1)
    monkeypatch.setitem(benchmark.MEASURES, "train_fake", fake)
    arguments = {"image_size": 32, "alpha": 0.25, "memory": False}
    rows = benchmark.benchmark(
        measures=["train_fake"], attentions=["se"], rounds=2, **arguments
    )
    assert rows[refused]["train_fake"] == {"absent": "ValueError"}
    measured = rows[1 - refused]["train_fake"]
    assert measured["seconds"] > 0 and ("ratio" in measured) == (refused == 1)
    assert "ValueError" in benchmark.table(rows)
    renamed = [{**row, "onnx_1": row["train_fake"]} for row in rows]
    for name, draw in (
        ("a.png", lambda path: benchmark.latency_picture(renamed, path)),
        ("b.png", lambda path: benchmark.picture(rows, path, "train_fake")),
    ):
        draw(tmp_path / name)
        assert (tmp_path / name).stat().st_size > 1000


@once
def test_a_runtime_that_fails_later_has_no_times():
    starts = iter([True, False])

    def prepare(model):
        if not next(starts):
            raise RuntimeError("out of memory")
        return lambda: None

    fake = benchmark.Measure("fake", prepare, images=1, calls=1, starts=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(benchmark.MEASURES, "fake", fake)
        found = measure._time("fake", {"a": None}, rounds=4)
    assert found == ({}, {"a": "out of memory"})


@once
def test_a_script_that_sets_another_backend_is_told():
    """The process for a measure runs the script first, which may set the backend."""
    _, failed = measure._build_and_time("jax_1", {}, {"a": []}, 1)
    assert failed == {"a": f"KERAS_BACKEND was set to {BACKEND}, and must be jax"}


def killed(*arguments):
    os._exit(9)


def broken(*arguments):
    raise BrokenProcessPool("killed")


@once
def test_other_processes_do_not_end_the_benchmark(monkeypatch):
    monkeypatch.setattr(measure, "_build_and_time", killed)
    # No other process can have the first.
    built = {"mine": {"attention": lambda name: None}, "se": {"attention": "se"}}
    times, failed = measure._time_elsewhere("keras_torch_1", built, built, 1)
    assert not times and "terminated" in failed["se"]
    # The words before these differ between versions of Python.
    assert "local object" in failed["mine"]
    monkeypatch.setattr(measure, "peak_memory", broken)
    monkeypatch.setattr(measure.keras.config, "backend", lambda: "tensorflow")
    monkeypatch.setattr(measure, "multiply_adds", lambda model: 0)
    with pytest.warns(UserWarning, match="No peak memory of .*killed"):
        rows = benchmark.benchmark(attentions=[], measures=[], image_size=32, alpha=0.1)
    assert len(rows) == 1 and "peak_memory" not in rows[0]


@needs_tensorflow
def test_heads_and_onnx_files_run(eager, tmp_path):
    rows = benchmark.benchmark(
        ["SSDLite"],
        [],
        image_size=96,
        alpha=0.25,
        measures=["onnx_1", "train_32"],
        rounds=1,
        memory=False,
    )
    assert rows[0]["onnx_1"]["seconds"] > 0
    assert rows[0]["train_32"] == {"absent": "no training step for heads"}
    path = tmp_path / "latency.png"
    benchmark.latency_picture(rows, path)
    assert keras.utils.img_to_array(keras.utils.load_img(path)).std() > 10


def test_wrong_picture(tmp_path):
    with pytest.raises(ValueError, match="`measure`.*'graph_16'"):
        benchmark.picture(ROWS, tmp_path / "picture.png", "graph_16")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"models": ["ResNet"]}, "`models`.*'ResNet'"),
        ({"measures": ["speed"]}, "`measures`.*'speed'"),
        ({"rounds": 0}, "`rounds`.*0"),
        ({"extra": {"se": None}, "measures": ["train_32"]}, "`extra`.*'se'"),
        ({"image_size": 2.5}, "`image_size`.*2.5"),
    ],
)
def test_wrong_argument(arguments, message):
    with pytest.raises(ValueError, match=message):
        benchmark.benchmark(**arguments)


@pytest.mark.skipif(BACKEND == "tensorflow", reason="there it works")
def test_the_graph_needs_tensorflow():
    with pytest.raises(ValueError, match=f"TensorFlow backend.*{BACKEND}"):
        benchmark.benchmark(measures=["graph_1"])


def test_build_times_are_ratios_to_keras(monkeypatch):
    seconds = {
        MobileNetV2CA: 3.0,
        EfficientNetCA: 1.0,
        keras.applications.MobileNetV2: 2.0,
        keras.applications.EfficientNetB0: 4.0,
    }
    clock = [0.0]

    def replace(module, builder):
        def build(weights):
            assert weights is None
            clock[0] += seconds[builder]

        monkeypatch.setattr(module, builder.__name__, build)

    for builder in seconds:
        known = hasattr(references, builder.__name__)
        replace(references if known else keras.applications, builder)
    collect = lambda: clock.append(clock.pop() + 100)
    monkeypatch.setattr(keras.backend, "clear_session", collect)
    monkeypatch.setattr(references.time, "process_time", lambda: clock[0])
    assert benchmark.build_times(repeats=2) == {
        "MobileNetV2CA": [1.5, 1.5],
        "EfficientNetCA b0": [0.25, 0.25],
    }


# Stands in for the authors' code, which is not part of this repository.
STAND_IN = """
import torch


class CoordAtt(torch.nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(channels, 8, 1)

    def forward(self, x):
        return x * self.conv1(x).mean()


class MBV2_CA(torch.nn.Sequential):
    def __init__(self):
        super().__init__(
            torch.nn.Conv2d(3, 4, 3, stride=32),
            torch.nn.Sequential(CoordAtt(4)),
            torch.nn.AdaptiveAvgPool2d(1),
            torch.nn.Flatten(),
        )
"""


def test_the_official_network_with_and_without_its_attention(tmp_path):
    pytest.importorskip("torch")
    (tmp_path / "mbv2_ca.py").write_text(STAND_IN)
    rows = benchmark.official_rows(tmp_path, rounds=1)
    assert [row["attention"] for row in rows][:2] == [None, "official"]
    assert rows[1]["parameters"] - rows[0]["parameters"] == 4 * 8 + 8
    for name in ("torch_train_32", "onnx_16"):
        assert np.isfinite([row[name]["seconds"] for row in rows]).all()
    with pytest.raises(ValueError, match=r"mbv2_ca\.py.*Received"):
        benchmark.official_rows(tmp_path / "none")


@once
@pytest.mark.parametrize("check", [benchmark.check_official, benchmark.official_rows])
def test_a_folder_without_the_official_network(check):
    with pytest.raises(ValueError, match=r"mbv2_ca\.py.*Received: dir"):
        check("dir")
    with pytest.raises(ValueError, match="`path` must be a path. Received: 7"):
        check(7)
