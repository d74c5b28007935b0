import numpy as np
import pytest
from keras import ops

from keras_coordatt import CBAM


def images(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def perturbed(layer, shape, seed=1):
    """Builds a layer and gives every weight a random value, so that none is idle."""
    layer.build(shape)
    rng = np.random.default_rng(seed)
    for variable in layer.variables:
        low = 0.5 if "variance" in variable.path else -1
        variable.assign(rng.uniform(low, 1, variable.shape))
    return layer


def numpy_of(tensor):
    return ops.convert_to_numpy(tensor).astype("float64")


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def reference(layer, x, training):
    """The paper's equations, one pixel at a time.

    Returns:
        The output, and the mean and the variance of the convolution's output.
    """
    reduce, reduce_bias = map(numpy_of, layer.reduce.weights)
    expand, expand_bias = map(numpy_of, layer.expand.weights)
    (kernel,) = map(numpy_of, layer.conv.weights)
    gamma, beta, mean, variance = map(numpy_of, layer.norm.weights)

    def mlp(x):
        return np.maximum(x @ reduce + reduce_bias, 0) @ expand + expand_bias

    x = x.astype("float64")
    x = x * sigmoid(mlp(x.mean((1, 2))) + mlp(x.max((1, 2))))[:, None, None]

    reach = layer.kernel_size // 2
    padded = np.pad(
        np.stack([x.max(3), x.mean(3)], 3),
        ((0, 0), (reach, reach), (reach, reach), (0, 0)),
    )
    mixed = np.zeros(x.shape[:3])
    for h, w in np.ndindex(mixed.shape[1:]):
        window = padded[:, h : h + layer.kernel_size, w : w + layer.kernel_size]
        mixed[:, h, w] = (window * kernel[..., 0]).sum((1, 2, 3))
    if training:
        mean, variance = mixed.mean(), mixed.var()
    gate = (mixed - mean) / np.sqrt(variance + layer.epsilon) * gamma + beta
    return x * sigmoid(gate)[..., None], mixed.mean(), mixed.var()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("size, kernel_size", [((5, 8), 7), ((9, 3), 3), ((1, 1), 7)])
def test_follows_the_equations(size, kernel_size, training):
    x = images(2, *size, 12)
    layer = CBAM(4, kernel_size, data_format="channels_last")
    perturbed(layer, x.shape)
    before = [float(numpy_of(w)[0]) for w in layer.norm.non_trainable_weights]
    expected, mean, variance = reference(layer, x, training)
    y = ops.convert_to_numpy(layer(x, training=training))
    np.testing.assert_allclose(y, expected, atol=2e-5)

    after = [float(numpy_of(w)[0]) for w in layer.norm.non_trainable_weights]
    if training:
        moved = [0.99 * b + 0.01 * m for b, m in zip(before, (mean, variance))]
        np.testing.assert_allclose(after, moved, rtol=1e-5)
    else:
        assert after == before


def test_knows_where_but_only_nearby():
    # Two feature maps with the same channel gates, that differ in the position of a pixel:
    # their spatial gates differ within the kernel's reach of both positions, and no further.
    x = np.full((2, 5, 16, 12), 0.5, "float32")
    x[0, 2, 2] = x[1, 2, 3] = 2.0
    layer = perturbed(CBAM(4, data_format="channels_last"), x.shape)
    y = ops.convert_to_numpy(layer(x))
    difference = np.abs(y[0] - y[1]).max((0, 2))
    assert (difference[:7] > 1e-5).all()
    assert (difference[7:] < 1e-6).all()


def test_parameters():
    layer = CBAM(24, data_format="channels_last")
    layer.build((None, None, None, 96))
    perceptron, convolution, norm = 2 * 96 * 4 + 4 + 96, 7 * 7 * 2, 2
    assert (
        sum(np.prod(w.shape) for w in layer.trainable_weights)
        == perceptron + convolution + norm
    )


@pytest.mark.parametrize(
    "arguments, received",
    [
        ({"kernel_size": 4}, "`kernel_size` must be .*Received: 4$"),
        ({"kernel_size": 0}, "`kernel_size` must be .*Received: 0$"),
        ({"momentum": 1.0}, r"`momentum` must be .*Received: 1\.0$"),
        ({"epsilon": 0}, "`epsilon` must be .*Received: 0$"),
    ],
)
def test_wrong_argument(arguments, received):
    with pytest.raises(ValueError, match=received):
        CBAM(**arguments)
