import numpy as np
import pytest
from keras import ops

from keras_coordatt import SqueezeExcite


def images(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def perturbed(layer, shape, seed=1):
    """Builds a layer and gives every weight a random value, so that none is idle."""
    layer.build(shape)
    rng = np.random.default_rng(seed)
    for variable in layer.variables:
        variable.assign(rng.uniform(-1, 1, variable.shape))
    return layer


def reference(layer, x):
    """The paper's equations, one image at a time."""
    weights = [ops.convert_to_numpy(w).astype("float64") for w in layer.weights]
    reduce, reduce_bias, expand, expand_bias = weights
    out = []
    for image in x.astype("float64"):
        hidden = np.maximum(image.mean((0, 1)) @ reduce + reduce_bias, 0)
        out.append(image / (1 + np.exp(-(hidden @ expand + expand_bias))))
    return np.stack(out)


@pytest.mark.parametrize("size", [(5, 7), (1, 6), (1, 1)])
def test_follows_the_equations(size):
    x = images(2, *size, 12)
    layer = perturbed(SqueezeExcite(4, data_format="channels_last"), x.shape)
    y = ops.convert_to_numpy(layer(x))
    np.testing.assert_allclose(y, reference(layer, x), atol=1e-5)


def test_is_blind_to_position():
    # Moving the pixels moves the output's pixels, whichever way.
    x = images(2, 4, 6, 12)
    layer = perturbed(SqueezeExcite(4, data_format="channels_last"), x.shape)
    order = np.random.default_rng(2).permutation(24)

    def move(x):
        return np.reshape(x, (2, 24, 12))[:, order].reshape(x.shape)

    np.testing.assert_allclose(
        ops.convert_to_numpy(layer(move(x))),
        move(ops.convert_to_numpy(layer(x))),
        atol=1e-6,
    )


@pytest.mark.parametrize(
    "channels, reduction, units", [(96, 24, 4), (320, 16, 20), (12, 16, 1), (47, 24, 1)]
)
def test_parameters(channels, reduction, units):
    layer = SqueezeExcite(reduction, data_format="channels_last")
    layer.build((None, None, None, channels))
    expected = 2 * channels * units + units + channels
    assert sum(np.prod(w.shape) for w in layer.trainable_weights) == expected
    assert not layer.non_trainable_weights
