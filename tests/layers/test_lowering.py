"""The form for ONNX files computes the same as the layer."""

import keras
import numpy as np
import pytest
from backends import BACKEND
from keras import ops
from networks import images

from keras_coordatt import CoordinateAttention
from keras_coordatt.layers.lowering import lowered_for_onnx

pytestmark = pytest.mark.skipif(
    BACKEND == "jax",
    reason="no exporter asks for the form there, and compiling is slow",
)

CASES = {
    "paper": {},
    "height": {"axes": "height"},
    "width": {"axes": "width"},
    "identity": {"identity_init": True},
    "relu": {"activation": "relu", "gate_activation": "hard_sigmoid"},
}


def trained(layer, x):
    """Sets random weights and moving statistics."""
    layer(x)
    rng = np.random.default_rng(1)
    layer.set_weights([rng.uniform(0.2, 1.0, w.shape) for w in layer.get_weights()])
    return layer


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("size", [(5, 7), (30, 1)])
def test_the_form_is_the_layer(case, size):
    x = images(2, *size, 40)
    layer = trained(CoordinateAttention(**CASES[case]), x)
    expected = ops.convert_to_numpy(layer(x, training=False))
    with lowered_for_onnx():
        given = ops.convert_to_numpy(layer(x, training=False))
    assert np.abs(given - expected).max() <= 1e-6 * np.abs(expected).max()
    # Lowered indeed: of other operations, whose rounding differs
    assert (given != expected).any() or case == "relu"


@pytest.mark.skipif(BACKEND == "tensorflow", reason="its CPU has no such convolution")
def test_channels_first():
    x = images(2, 40, 5, 7)
    layer = trained(CoordinateAttention(data_format="channels_first"), x)
    expected = ops.convert_to_numpy(layer(x))
    with lowered_for_onnx():
        given = ops.convert_to_numpy(layer(x))
    assert np.abs(given - expected).max() <= 1e-6 * np.abs(expected).max()


def test_training_and_quantized_layers_stay_as_they_are():
    x = images(2, 4, 4, 40)
    layer = trained(CoordinateAttention(), x)
    layer.norm.momentum = 1.0
    expected = ops.convert_to_numpy(layer(x, training=True))
    with lowered_for_onnx():
        assert (ops.convert_to_numpy(layer(x, training=True)) == expected).all()
    layer.gates["height"].quantize("int8")
    expected = ops.convert_to_numpy(layer(x))
    with lowered_for_onnx():
        assert (ops.convert_to_numpy(layer(x)) == expected).all()


def test_models_lower_the_layers_inside():
    x = images(1, 8, 8, 3)
    inputs = keras.Input((8, 8, 3))
    y = keras.layers.Conv2D(16, 1)(inputs)
    model = keras.Model(inputs, CoordinateAttention()(y))
    expected = ops.convert_to_numpy(model(x, training=False))
    with lowered_for_onnx():
        given = ops.convert_to_numpy(model(x, training=False))
    np.testing.assert_allclose(given, expected, atol=1e-6)
    assert (given != expected).any()
