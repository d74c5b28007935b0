"""Helpers for tests of complete networks."""

import contextlib

import keras
import numpy as np
import pytest
from environment import AS_USERS
from keras import ops


@contextlib.contextmanager
def quick_initial_weights():
    """Draws initial kernels with NumPy, as JAX compiles one program per shape."""
    if AS_USERS:
        yield
        return

    def draw(self, shape, dtype=None):
        values = np.random.default_rng(0).normal(scale=0.1, size=shape)
        return ops.convert_to_tensor(values.astype("float32"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keras.initializers.VarianceScaling, "__call__", draw)
        yield


def drawn(build, *args, **arguments):
    """Builds a network without creating its weights, which takes the most time."""
    with keras.StatelessScope(initialize_variables=False):
        model = build(*args, **arguments)
    # Otherwise the next model that is traced would create them.
    keras.utils.clear_session(free_memory=False)
    return model


def images(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def outputs(model, x):
    """Returns the outputs at inference, in the way that takes least time to compile."""
    y = _run(model, x, training=False)
    return ops.convert_to_numpy(ops.cast(y, "float32"))


def _run(model, x, training):
    """Calls the model; on JAX as one program, as there each operation is one otherwise."""
    if keras.config.backend() != "jax" or not isinstance(model, keras.Model):
        return model(x, training=training)
    import jax

    @jax.jit
    def run(trainable, others, x):
        return model.stateless_call(trainable, others, x, training=training)

    values = [
        [w.value for w in weights]
        for weights in (model.trainable_variables, model.non_trainable_variables)
    ]
    y, others = run(*values, x)
    for weight, value in zip(model.non_trainable_variables, others):
        weight.assign(value)
    return y


def calibrated(model, x):
    """Sets random weights under which the output of a network depends on its input.

    With initial weights it barely does: the initial moving averages of batch
    normalization let activations fade layer by layer. So every weight becomes random,
    the same on each backend, and then the moving averages are set by the images.
    Channels of small variance are not scaled up, as this would amplify rounding errors.
    """
    rng = np.random.default_rng(1)

    def draw(w):
        if w.ndim > 1:
            return rng.normal(scale=np.prod(w.shape[:-1]) ** -0.5, size=w.shape)
        return w * rng.uniform(0.8, 1.2, w.shape) + rng.uniform(-0.1, 0.1, w.shape)

    model.set_weights([draw(w) for w in model.get_weights()])
    # Attention may have a normalization of its own.
    norms = [getattr(layer, "norm", layer) for layer in model.layers]
    norms = [x for x in norms if isinstance(x, keras.layers.BatchNormalization)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    _run(model, x, training=True)
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum
        variance = ops.convert_to_numpy(norm.moving_variance)
        norm.moving_variance.assign(np.maximum(variance, variance.mean()))
    return model


def copy_weights(source, target):
    """Copies the weights of layers to those of `target` with the same names."""
    for layer in target.layers:
        if layer.weights:
            layer.set_weights(source.get_layer(layer.name).get_weights())
    return target


def assert_near(ours, theirs, limit):
    """Asserts that outputs differ by at most `limit`, relative to their differences between images."""
    assert ours.shape == theirs.shape
    spread = np.ptp(theirs, axis=0).max()
    assert spread > 0
    assert np.abs(ours - theirs).max() <= limit * spread


def count(model):
    """The number of trainable parameters."""
    return sum(int(np.prod(w.shape)) for w in model.trainable_weights)
