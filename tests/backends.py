"""Differences between Keras's backends, for the tests."""

import keras
import pytest
from environment import AS_USERS
from keras import ops

BACKEND = keras.config.backend()

needs_tensorflow = pytest.mark.skipif(BACKEND != "tensorflow", reason="TensorFlow only")
# Tests that `make test-as-users` runs
as_users = pytest.mark.skipif(not AS_USERS, reason="takes minutes")
# For tests without a model; PyTorch's suite is the quickest.
once = pytest.mark.skipif(BACKEND != "torch", reason="the same on every backend")
# Quantization is Keras's, and slow on backends that compile each operation.
each_quantization = pytest.mark.parametrize(
    "mode",
    ["int8", pytest.param("int4", marks=once), pytest.param("float8", marks=once)],
)
needs_xla = pytest.mark.skipif(BACKEND == "torch", reason="PyTorch has no XLA here")


def gradient(function, x):
    """The gradient of `sum(function(x))` at the array `x`."""

    def total(x):
        # No state of a layer changes in here.
        with keras.StatelessScope():
            return ops.sum(function(x))

    if BACKEND == "tensorflow":
        import tensorflow as tf

        x = tf.convert_to_tensor(x)
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = total(x)
        grad = tape.gradient(y, x)
    elif BACKEND == "jax":
        import jax

        grad = jax.grad(total)(x)
    else:
        x = ops.convert_to_tensor(x).requires_grad_()
        total(x).backward()
        grad = x.grad
    return ops.convert_to_numpy(grad)


def xla(function):
    """Compiles a function of one array, whose state does not change."""

    def stateless(x):
        with keras.StatelessScope():
            return function(x)

    if BACKEND == "jax":
        import jax

        return jax.jit(stateless)
    import tensorflow as tf

    return tf.function(stateless, jit_compile=True)
