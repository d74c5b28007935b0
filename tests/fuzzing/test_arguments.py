"""Any value of any public argument works, or is an error that names the argument."""

import functools
import inspect

import numpy as np
import pytest
from backends import once
from fuzzing.damage import within
from hypothesis import given
from hypothesis import strategies as st

from keras_coordatt import (
    CBAM,
    CoordinateAttention,
    EfficientNetCA,
    MobileNetV2CA,
    MobileNeXtCA,
    SqueezeExcite,
)
from keras_coordatt.detection import (
    NonMaxSuppression,
    SSDLite,
    default_boxes,
    ssd_box_shapes,
)
from keras_coordatt.preprocessing import Preprocessing, PreprocessingRecord
from keras_coordatt.segmentation import DeepLabV3

pytestmark = once


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


def small(build, **fixed):
    """A builder whose other arguments make a small network."""

    def call(**arguments):
        return build(
            **{"weights": None, "input_shape": (32, 32, 3), **fixed, **arguments}
        )

    call.__signature__ = inspect.signature(build)
    return call


def called(layer):
    """A layer class whose layers are also called."""

    def call(**arguments):
        made = layer(**arguments)
        made(np.zeros((1, 4, 4, 8), "float32"))
        again = type(made).from_config(made.get_config())
        assert again.get_config() == made.get_config()

    call.__signature__ = inspect.signature(layer)
    return call


@functools.cache
def backbone():
    return MobileNetV2CA((32, 32, 3), alpha=0.1, include_top=False, weights=None)


def on_backbone(head, **fixed):
    """A head whose backbone is built once."""

    def call(**arguments):
        return head(**{"backbone": backbone(), **fixed, **arguments})

    call.__signature__ = inspect.signature(head)
    return call


CALLS = {
    "CoordinateAttention": called(CoordinateAttention),
    "SqueezeExcite": called(SqueezeExcite),
    "CBAM": called(CBAM),
    "MobileNetV2CA": small(MobileNetV2CA, alpha=0.1, classes=2),
    "MobileNeXtCA": small(MobileNeXtCA, alpha=0.1, classes=2),
    "EfficientNetCA": small(EfficientNetCA, classes=2),
    "Preprocessing": Preprocessing,
    "PreprocessingRecord": PreprocessingRecord,
    "NonMaxSuppression": NonMaxSuppression,
    "default_boxes": default_boxes,
    "ssd_box_shapes": ssd_box_shapes,
    "SSDLite": on_backbone(SSDLite, classes=2),
    "DeepLabV3": on_backbone(DeepLabV3, classes=2, filters=8, atrous_rates=(1, 2, 3)),
}
# Passed on to Keras, whose messages need not name the argument.
OF_KERAS = {"dtype", "kwargs", "trainable", "autocast", "name"}


KERAS = ["unknown `config`", "expected `shape`"]


@pytest.mark.parametrize("name", CALLS)
@given(data=st.data())
def test_argument(name, data):
    call = CALLS[name]
    required = [
        p.name
        for p in inspect.signature(call).parameters.values()
        if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    ]
    known = [
        p.name
        for p in inspect.signature(call).parameters.values()
        if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL) and p.name not in OF_KERAS
    ]
    argument, value = data.draw(st.sampled_from(known)), data.draw(values)
    try:
        with within(60):
            call(**{argument: value})
    except (TypeError, ValueError) as error:
        # Keras calls a `gate_activation` an activation, and a dict a config. It takes an
        # array for an initializer, and then names its shape.
        name = argument.rpartition("_")[2]
        others = [f"'{other}'" for other in required if other != argument]
        assert any(text in str(error).lower() for text in [name, *others, *KERAS])


@pytest.mark.parametrize(
    "name, argument",
    [
        ("MobileNetV2CA", "alpha"),
        ("MobileNetV2CA", "classes"),
        ("MobileNeXtCA", "alpha"),
        ("EfficientNetCA", "input_shape"),
        ("CoordinateAttention", "min_channels"),
        ("CBAM", "kernel_size"),
        ("SSDLite", "classes"),
        ("DeepLabV3", "classes"),
        ("DeepLabV3", "filters"),
        ("DeepLabV3", "atrous_rates"),
        ("ssd_box_shapes", "maps"),
        ("NonMaxSuppression", "max_detections"),
    ],
)
def test_sizes_that_no_memory_holds(name, argument):
    size = 10**12 + 1
    value = {"input_shape": (size, 32, 3), "atrous_rates": (size,)}.get(argument, size)
    with within(5), pytest.raises(ValueError, match=f"`{argument}`.*must be.*{size}"):
        CALLS[name](**{argument: value})
