import functools

import numpy as np
import pytest
from backends import BACKEND, gradient
from keras import ops
from keras.backend import standardize_dtype

from keras_coordatt.layers.strip_pooling import (
    strip_mean,
    strip_scale,
)

AXES = [(1, 2), (2, 3)]


def images(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def plain_mean(x, height, width):
    means = [ops.mean(x, axis=width), ops.mean(x, axis=height)]
    return ops.concatenate(means, axis=height)


def plain_multiply(x, rows, columns, height, width):
    return x * rows * columns


def gate_shapes(shape, height, width):
    return [
        tuple(1 if axis == other else size for axis, size in enumerate(shape))
        for other in (width, height)
    ]


def agree(function, plain, x):
    """Outputs and gradients are those of automatic differentiation."""
    np.testing.assert_allclose(
        ops.convert_to_numpy(function(ops.convert_to_tensor(x))),
        ops.convert_to_numpy(plain(ops.convert_to_tensor(x))),
        rtol=1e-6,
    )
    # Its square, so that the gradient that comes in differs by position.
    ours = gradient(lambda x: ops.square(function(x)), x)
    theirs = gradient(lambda x: ops.square(plain(x)), x)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("shape", [(2, 5, 7, 3), (2, 4, 1, 6), (1, 1, 1, 1)])
def test_mean(shape, axes):
    agree(
        lambda x: strip_mean(x, *axes, "float32"),
        lambda x: plain_mean(x, *axes),
        images(*shape),
    )


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_mean_of_half_precision(dtype, axes):
    """Sums are in float32, where those of the rows don't overflow."""
    x = ops.cast(10_000 * images(2, 5, 7, 3), dtype)
    means = strip_mean(x, *axes, "float32")
    assert standardize_dtype(means.dtype) == "float32"
    expected = plain_mean(ops.cast(x, "float32"), *axes)
    np.testing.assert_allclose(
        ops.convert_to_numpy(means), ops.convert_to_numpy(expected), rtol=1e-6
    )
    ours = gradient(lambda x: ops.square(strip_mean(x, *axes, "float32")), x / 1000)
    theirs = gradient(
        lambda x: ops.square(plain_mean(ops.cast(x, "float32"), *axes)), x / 1000
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-2)


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("which", range(3))
def test_multiply(axes, which):
    shape = (2, 5, 7, 3)
    arrays = [images(*shape)]
    arrays += [images(*s, seed=1) for s in gate_shapes(shape, *axes)]

    def of(multiply):
        def function(x):
            given = [ops.convert_to_tensor(array) for array in arrays]
            given[which] = x
            return multiply(*given, *axes)

        return function

    agree(of(strip_scale), of(plain_multiply), arrays[which])


def test_second_derivatives():
    # Second derivatives, which gradient penalties need.
    x = images(2, 3, 4, 2)

    def penalty(mean, multiply):
        def first(x):
            means = mean(x, 1, 2)
            rows, columns = means[:, :3, None], means[:, None, 3:]
            return ops.sum(ops.square(multiply(x, rows, columns, 1, 2)))

        return first

    mean = functools.partial(strip_mean, dtype="float32")
    ours = _second(penalty(mean, strip_scale), x)
    theirs = _second(penalty(plain_mean, plain_multiply), x)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def _second(function, x):
    """The gradient of the squared gradient's sum."""
    if BACKEND == "tensorflow":
        import tensorflow as tf

        x = tf.constant(x)
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                y = function(x)
            loss = tf.reduce_sum(tf.square(inner.gradient(y, x)))
        return outer.gradient(loss, x).numpy()
    if BACKEND == "jax":
        import jax

        loss = lambda x: ops.sum(ops.square(jax.grad(function)(x)))
        return np.asarray(jax.grad(loss)(x))
    import torch

    x = torch.tensor(x, requires_grad=True)
    (first,) = torch.autograd.grad(function(x), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x)
    return second.numpy()


@pytest.mark.skipif(BACKEND != "torch", reason="others don't say what they keep")
def test_only_the_input_is_kept_for_the_gradient():
    import torch

    def kept(multiply):
        sizes = []

        def pack(tensor):
            sizes.append(tensor.numel())
            return tensor

        x = torch.randn(2, 8, 8, 4, requires_grad=True)
        gates = [torch.rand(2, 8, 1, 4), torch.rand(2, 1, 8, 4)]
        gates = [gate.requires_grad_() for gate in gates]
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            multiply(x, *gates, 1, 2)
        return sum(size == x.numel() for size in sizes)

    assert kept(strip_scale) == 1
    assert kept(plain_multiply) == 2
