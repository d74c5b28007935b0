"""Any value of any public argument works, or is an error that names the argument."""

import functools
import inspect
import os
import pathlib
import re

import numpy as np
import pytest
from backends import BACKEND, once
from fuzzing import public_calls
from fuzzing.damage import within
from hypothesis import given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.skipif(BACKEND == "jax", reason="the same on every backend")


VALUES = [None, True, False, -1, 0, 1, 3, 7, 0.0, 0.5, 1.0, -0.5, 1e-9, 1e30]
VALUES += [
    float("nan"),
    float("inf"),
    "",
    "both",
    "softmax",
    "no such",
    b"",
    (),
    (1, 2),
]
VALUES += [(32, 32, 3), (None, None, 3), (32.5, 32, 3), [[0.5]], [], {}, {"a": 1}]
VALUES += [
    np.float32(0.5),
    np.int64(8),
    np.zeros(2),
    object(),
]
values = st.sampled_from(VALUES)

CALLABLES = public_calls.public_callables()
NAMES = [name for name in CALLABLES if name not in public_calls.EXCEPTED]
CALLED = [
    name
    for name in NAMES
    if (name in public_calls.NEEDS_TENSORFLOW) == (BACKEND == "tensorflow")
]
# A call takes up to a second. `FUZZ=nightly` has as many examples of them as of others.
SLOW = {
    "comparison.compare",
    "data.load_classification",
    "data.load_detection",
    "data.load_segmentation",
    "evaluation.evaluate",
    "export.accuracy.AccuracyCheck",
}
# These are Keras's own.
OF_KERAS = {"dtype", "kwargs", "trainable", "autocast", "name"}
# Keras takes an array for an initializer, and names only its shape when it is used.
KERAS = {"kernel_initializer": "Expected `shape`"}
# Errors may name these by their value, a path or a name.
NAMED_BY_VALUE = {
    "path",
    "source",
    "model",
    "images",
    "output",
    "data",
    "name",
    "builder",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The working directory of the calls, with their inputs."""
    folder = tmp_path_factory.mktemp("fuzzing")
    public_calls.write_files(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("TFDS_DATA_DIR", str(tmp_path_factory.mktemp("tfds")))
        patch.setattr("keras.utils.get_file", None)  # nothing is downloaded
        patch.setattr("keras_coordatt.comparison.runs._builder", stop_building)
        for module in "export._litert.Reference", "export._saved_model.Reference":
            patch.setattr(f"keras_coordatt.{module}", public_calls.stop)
        patch.setattr("keras_coordatt.comparison.report._build", public_calls.stop)
        yield folder


def stop_building(*args):
    return public_calls.stop


@pytest.fixture(scope="module")
def valid(folder):
    return public_calls.valid_arguments()


@functools.cache
def changeable(name, given):
    """The arguments to change: all but those that are Keras's."""
    parameters = inspect.signature(CALLABLES[name]).parameters.values()
    return [
        p.name
        for p in parameters
        if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
        and (p.name not in OF_KERAS or p.name in given)
    ]


def check(function, arguments, argument, value, folder):
    """Asserts that an argument works, or that the error names it and leaves no file."""
    before = {*folder.rglob("*")}
    try:
        with within(60):
            public_calls.call(function, {**arguments, argument: value})
    except (TypeError, ValueError, OSError) as error:
        message = str(error)
        named = re.search(rf"`{argument}\b", message)
        by_value = argument in NAMED_BY_VALUE and isinstance(value, str)
        if by_value:
            named = (
                named or repr(value) in message or str(pathlib.Path(value)) in message
            )
        assert named or message.startswith(KERAS.get(argument, "-")), message
        assert by_value or not isinstance(error, OSError), message
        assert {*folder.rglob("*")} == before, message
    finally:
        for path in sorted({*folder.rglob("*")} - before, reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()


@once
def test_every_public_name_is_here(valid):
    assert NAMES == [name for name in CALLABLES if name in valid]
    assert valid.keys() | public_calls.EXCEPTED.keys() == CALLABLES.keys()


@pytest.mark.parametrize("name", CALLED)
def test_valid_arguments(name, valid, folder):
    """Or else every changed argument would fail for the same reason."""
    before = {*folder.rglob("*")}
    public_calls.call(CALLABLES[name], valid[name])
    for path in {*folder.rglob("*")} - before:
        path.unlink()


@pytest.mark.parametrize("name", CALLED)
def test_argument(name, valid, folder):
    arguments = changeable(name, tuple(valid[name]))
    quick = name in SLOW and os.environ.get("FUZZ") != "nightly"

    @settings(max_examples=4 if quick else settings.default.max_examples)
    @given(argument=st.sampled_from(arguments), value=values)
    def test(argument, value):
        check(CALLABLES[name], valid[name], argument, value, folder)

    test()


@once
@pytest.mark.parametrize(
    "name, argument",
    [
        ("MobileNetV2CA", "alpha"),
        ("MobileNetV2CA", "classes"),
        ("MobileNeXtCA", "alpha"),
        ("EfficientNetCA", "input_shape"),
        ("CoordinateAttention", "min_channels"),
        ("CBAM", "kernel_size"),
        ("detection.SSDLite", "classes"),
        ("segmentation.DeepLabV3", "classes"),
        ("segmentation.DeepLabV3", "filters"),
        ("segmentation.DeepLabV3", "atrous_rates"),
        ("detection.ssd_box_shapes", "maps"),
        ("detection.NonMaxSuppression", "max_detections"),
    ],
)
def test_sizes_that_no_memory_holds(name, argument, valid):
    size = 10**12 + 1
    value = {"input_shape": (size, 32, 3), "atrous_rates": (size,)}.get(argument, size)
    with within(5), pytest.raises(ValueError, match=f"`{argument}`.*must be.*{size}"):
        public_calls.call(CALLABLES[name], {**valid[name], argument: value})
