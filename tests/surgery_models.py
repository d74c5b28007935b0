"""Networks for the tests of surgery, and comparisons of their outputs."""

import keras
import numpy as np
from keras import layers, ops

from keras_coordatt import CoordinateAttention


def images(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def scrambled(model, seed=0):
    """Sets weights with a constant initializer to random values."""
    rng = np.random.default_rng(seed)
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            scrambled(layer, seed + 1)
            continue
        for weight in layer.weights:
            if len(weight.shape) < 2:
                weight.assign(rng.uniform(0.5, 1.5, weight.shape))
        if isinstance(layer, layers.Normalization):
            layer.finalize_state()
    return model


def trained(model, seed=0):
    """Sets the weights of attention layers to random values, as if trained."""
    rng = np.random.default_rng(seed)
    for layer in attentions(model):
        for weight in layer.weights:
            weight.assign(rng.uniform(0.2, 0.8, weight.shape))
        for gate in layer.gates.values():
            gate.kernel.assign(rng.uniform(-1, 1, gate.kernel.shape))
    return model


def attentions(model):
    found = []
    for layer in model.layers:
        if isinstance(layer, CoordinateAttention):
            found.append(layer)
        elif isinstance(layer, keras.Model):
            found += attentions(layer)
    return found


def run(model, x, **kwargs):
    """The outputs, without a compiler, as a list of arrays."""
    outputs = model(x, **kwargs)
    return [
        ops.convert_to_numpy(ops.cast(y, "float32"))
        for y in keras.tree.flatten(outputs)
    ]


def assert_same(model, other, x, **kwargs):
    for y, expected in zip(
        run(other, x, **kwargs), run(model, x, **kwargs), strict=True
    ):
        np.testing.assert_array_equal(y, expected)
        assert np.ptp(y) > 0


def differ(model, other, x):
    return any(np.abs(a - b).max() > 1e-6 for a, b in zip(run(model, x), run(other, x)))


def tap(model, name):
    return keras.Model(model.input, model.get_layer(name).output)


def network(channels=6, name="network"):
    """An inverted residual."""
    inputs = keras.Input((8, 8, channels))
    y = layers.Conv2D(12, 1, name="expand")(inputs)
    y = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="depthwise")(y)
    y = layers.BatchNormalization(name="depthwise_bn")(y)
    y = layers.ReLU(6.0, name="depthwise_relu")(y)
    y = layers.Conv2D(channels, 1, name="project")(y)
    y = layers.BatchNormalization(name="project_bn")(y)
    y = layers.Add(name="add")([inputs, y])
    return scrambled(keras.Model(inputs, y, name=name))


def application(builder, **arguments):
    return lambda: builder(
        input_shape=(32, 32, 3), weights=None, include_top=False, **arguments
    )
