"""Matching of arrays to a network, adaptation, and messages."""

import warnings

import keras
import numpy as np
import pytest

from keras_coordatt.weights import load_weights
from keras_coordatt.weights.matching import ExpectedWeight, match_arrays

STEM = ExpectedWeight("stem", (3, 3, 3, 4), "stem", 2)
EXPECTED = [
    STEM,
    ExpectedWeight("scale", (4,)),
    ExpectedWeight("head/kernel", (4, 5), "head", 1),
    ExpectedWeight("head/bias", (5,), "head", 0),
]


def arrays_for(slots, seed=0):
    rng = np.random.default_rng(seed)
    return {slot.name: rng.normal(size=slot.shape).astype("float32") for slot in slots}


def fitted(slots, arrays, **arguments):
    head = [name for name in arrays if name.startswith("head/")]
    return match_arrays(
        slots, arrays, head=head, source="it", target="network", **arguments
    )


def with_channels(channels):
    return [STEM._replace(shape=(3, 3, channels, 4)), *EXPECTED[1:]]


def with_classes(classes):
    return [
        *EXPECTED[:2],
        EXPECTED[2]._replace(shape=(4, classes)),
        EXPECTED[3]._replace(shape=(classes,)),
    ]


def test_matching_arrays_are_returned_without_warnings():
    arrays = arrays_for(EXPECTED)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        given = fitted(EXPECTED, arrays)
    assert list(given) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(given[name], array)


# The head


def test_another_number_of_classes():
    arrays = arrays_for(EXPECTED)
    message = "its classifier has 5 outputs, the network's 7"
    with pytest.raises(ValueError, match=f"{message} .pass `skip_mismatch=True`"):
        fitted(with_classes(7), arrays)
    with pytest.warns(UserWarning, match=f"{message}.*keep the network's own"):
        given = fitted(with_classes(7), arrays, skip_mismatch=True)
    assert list(given) == ["stem", "scale"]


@pytest.mark.parametrize("skip_mismatch", [True, False])
def test_a_network_without_a_head(skip_mismatch):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        given = fitted(EXPECTED[:2], arrays_for(EXPECTED), skip_mismatch=skip_mismatch)
    assert list(given) == ["stem", "scale"]


def test_a_detectors_heads():
    # Each predictor has the classes' outputs once for each of its boxes.
    def heads(classes):
        return [
            EXPECTED[1],
            ExpectedWeight("head/4", (4, 4 * classes), "head", 1),
            ExpectedWeight("head/6", (6 * classes,), "head", 0),
        ]

    arrays = arrays_for(heads(5))
    with pytest.warns(UserWarning, match="has 20 outputs, the network's 12"):
        given = fitted(heads(3), arrays, skip_mismatch=True)
    assert list(given) == ["scale"]
    other = heads(3)
    other[2] = other[2]._replace(shape=(4 * 3,))
    with pytest.raises(ValueError, match="misshapen: head/6"):
        fitted(other, arrays, skip_mismatch=True)


@pytest.mark.parametrize(
    "change",
    [
        {"head/bias": np.ones(6)},  # for other classes than the kernel
        {"head/kernel": np.ones((3, 6)), "head/bias": np.ones(6)},  # other features
        {"head/kernel": np.ones(6), "head/bias": np.ones(6)},
    ],
)
def test_a_head_that_differs_in_more_than_classes(change):
    with pytest.raises(ValueError, match="misshapen: head/"):
        fitted(EXPECTED, arrays_for(EXPECTED) | change, skip_mismatch=True)


def test_a_head_that_is_not_there():
    message = r"it has no classifier(.|\n)*missing: head/kernel(.|\n)*head/bias"
    with pytest.raises(ValueError, match=message):
        fitted(EXPECTED, arrays_for(EXPECTED[:2]), skip_mismatch=True)
    with pytest.raises(ValueError, match="missing: head/bias"):
        fitted(with_classes(7), arrays_for(EXPECTED[:3]), skip_mismatch=True)


# The stem


def timm_stem(kernel, channels):
    """Same as in timm: summed for one channel, else repeated, cut and scaled."""
    out = np.zeros((*kernel.shape[:2], channels, kernel.shape[3]))
    for c in range(max(channels, 3)):
        if channels == 1:
            out[:, :, 0] += kernel[:, :, c]
        elif c < channels:
            out[:, :, c] = kernel[:, :, c % 3] * 3 / channels
    return out


@pytest.mark.parametrize(
    "channels, word", [(1, "sum"), (2, "3/2"), (4, "3/4"), (7, "3/7")]
)
def test_stems_for_other_channels(channels, word):
    arrays = arrays_for(EXPECTED)
    message = f"for 3 channels, the network's for {channels}.*{word}"
    with pytest.raises(ValueError, match=message):
        fitted(with_channels(channels), arrays)
    with pytest.warns(UserWarning, match=message):
        given = fitted(with_channels(channels), arrays, skip_mismatch=True)
    expected = timm_stem(arrays["stem"], channels)
    np.testing.assert_allclose(given["stem"], expected, atol=1e-6)
    assert given["stem"].dtype == np.float32


@pytest.mark.parametrize("stored, needed", [(4, 3), (1, 3), (4, 1)])
def test_only_rgb_stems_are_adapted(stored, needed):
    with pytest.raises(ValueError, match="misshapen: stem"):
        fitted(
            with_channels(needed), arrays_for(with_channels(stored)), skip_mismatch=True
        )


def test_a_stem_of_another_width_is_not_adapted():
    slots = [STEM._replace(shape=(3, 3, 1, 8)), *EXPECTED[1:]]
    with pytest.raises(ValueError, match=r"misshapen: stem, shape \(3, 3, 3, 4\)"):
        fitted(slots, arrays_for(EXPECTED), skip_mismatch=True)


def test_both_at_once_are_told_once():
    slots = [with_channels(1)[0], *with_classes(2)[1:]]
    with pytest.warns(UserWarning, match="classifier.*3 channels") as caught:
        fitted(slots, arrays_for(EXPECTED), skip_mismatch=True)
    assert len(caught) == 1
    with pytest.raises(ValueError, match="misshapen: stem.*(\n.*)misshapen: head"):
        fitted(slots, arrays_for(EXPECTED))


def dense(classes, dtype="float32"):
    head = keras.layers.Dense(classes, dtype=dtype, name="predictions")
    return keras.Sequential([keras.Input((2,)), head], name="network")


def test_a_warning_points_at_the_users_line(tmp_path):
    path = tmp_path / "model.weights.h5"
    dense(3).save_weights(path)
    with pytest.warns(UserWarning, match="3 outputs, the network's 4") as caught:
        load_weights(dense(4), path, skip_mismatch=True)
    assert caught[-1].filename == __file__


def test_refused_files_cause_no_other_warnings():
    arrays = arrays_for(EXPECTED)
    del arrays["scale"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match="missing: scale"):
            fitted(with_classes(7), arrays, skip_mismatch=True)


# Mismatches


@pytest.mark.parametrize(
    "change, message",
    [
        ({"scale": np.ones(4, "int64")}, "not floating-point: scale, dtype int64"),
        ({"scale": np.ones(4, "complex64")}, "not floating-point: scale, .*complex64"),
        ({"scale": np.ones(4, "bool")}, "not floating-point: scale, dtype bool"),
        ({"scale": np.ones((4, 1))}, r"misshapen: scale, shape \(4, 1\), expected"),
        ({"extra": np.ones(4)}, r"unexpected: extra, shape \(4,\)"),
        ({"scale": np.array([1, np.nan, np.inf, 0])}, "not finite: scale, 2 of 4 val"),
        ({"scale": np.array([1, 0, 0, -np.inf], "f2")}, "not finite: scale, 1 of 4 va"),
        ({"scale": np.array([1, 0, 0, -1e300])}, "not finite: scale, 1 of 4 values"),
        ({"half": np.array([65504, -1e5], "f4")}, "half, 1 of 2 .* in float16"),
        ({"bfloat": np.array([1e5, np.inf], "f4")}, "bfloat, 1 of 2 .*"),
    ],
)
def test_each_misfit_has_its_error(change, message):
    narrow = (
        ExpectedWeight("half", (2,), dtype="float16"),
        ExpectedWeight("bfloat", (2,), dtype="bfloat16"),
    )
    slots = [*EXPECTED, *narrow]
    with pytest.raises(ValueError, match=f"it .*no weight was changed(.|\n)*{message}"):
        fitted(slots, arrays_for(slots) | change)


@pytest.mark.parametrize("suffix", [".keras", ".weights.h5", ".h5"])
def test_numbers_too_large_for_the_network(tmp_path, suffix):
    path, model = tmp_path / f"model{suffix}", dense(3)
    model.set_weights([np.full((2, 3), 1e5), np.ones(3)])
    model.save_weights(path) if suffix == ".weights.h5" else model.save(path)
    load_weights(dense(3, "mixed_float16"), path)
    with pytest.raises(ValueError, match="(kernel|vars/0), 6 of 6 .*in float16"):
        load_weights(dense(3, "float16"), path)


def test_another_architecture():
    arrays = {"conv.weight": np.ones(3), "conv.bias": np.ones(3)}
    with pytest.raises(ValueError, match="another architecture") as caught:
        fitted(EXPECTED, arrays)
    for name in [*arrays, *(slot.name for slot in EXPECTED)]:
        assert name in str(caught.value)


def test_only_the_first_few_are_listed():
    slots = [ExpectedWeight(f"layer_{i}", (3,)) for i in range(300)]
    with pytest.raises(ValueError, match="another architecture") as caught:
        fitted(slots, {"conv.weight": np.ones(3)})
    message = str(caught.value)
    assert "missing: layer_4," in message and "missing: 295 more" in message
    assert len(message) < 500


@pytest.mark.parametrize(
    "dtype, array, message",
    [
        ("int32", np.ones(2, "int64"), None),
        ("int8", np.array([-128, 127]), None),
        ("int8", np.array([-128, 128]), "out of range: count, 1 of 2 .* for int8"),
        ("int8", np.ones(2, "float32"), "not integer: count, dtype float32"),
        ("bool", np.ones(2, "bool"), None),
        ("bool", np.ones(2, "int8"), "not boolean: count, dtype int8"),
    ],
)
def test_other_kinds_of_numbers(dtype, array, message):
    slots = [ExpectedWeight("count", (2,), dtype=dtype)]
    if message is None:
        np.testing.assert_array_equal(fitted(slots, {"count": array})["count"], array)
    else:
        with pytest.raises(ValueError, match=message):
            fitted(slots, {"count": array})


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_either_byte_order(dtype):
    arrays = {k: v.astype(dtype) for k, v in arrays_for(EXPECTED).items()}
    other = {n: a.astype(a.dtype.newbyteorder()) for n, a in arrays.items()}
    for name, array in fitted(EXPECTED, other).items():
        assert array.dtype.isnative
        np.testing.assert_array_equal(array, arrays[name])


class Untouchable:
    """An array that must not be read."""

    dtype = np.dtype("float32")

    def __init__(self, shape):
        self.shape = shape

    def __array__(self, *args, **kwargs):
        raise AssertionError("it was read")


@pytest.mark.parametrize("name", [slot.name for slot in EXPECTED] + ["extra"])
def test_nothing_is_read_before_all_shapes_fit(name):
    arrays = {slot.name: Untouchable(slot.shape) for slot in EXPECTED}
    arrays[name] = Untouchable((2**40, 2**40))
    with pytest.raises(ValueError, match=f": {name}, shape"):
        fitted(EXPECTED, arrays)
    # Nor is the classifier that is skipped.
    arrays = arrays_for(EXPECTED) | {"head/kernel": Untouchable((4, 2**40))}
    arrays["head/bias"] = Untouchable((2**40,))
    with pytest.warns(UserWarning, match="keep the network's own classifier"):
        fitted(EXPECTED, arrays, skip_mismatch=True)
