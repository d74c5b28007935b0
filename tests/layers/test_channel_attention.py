"""Common behavior of squeeze-and-excitation and CBAM."""

import re

import keras
import numpy as np
import pytest
from backends import BACKEND, gradient, needs_tensorflow, needs_xla, xla
from keras import ops

from keras_coordatt import CBAM, SqueezeExcite

each_layer = pytest.mark.parametrize("kind", [SqueezeExcite, CBAM])


def images(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def numpy_of(tensor):
    return ops.convert_to_numpy(ops.cast(tensor, "float32"))


def perturbed(layer, shape, seed=1):
    """Builds a layer and gives every weight a random value, so that none is idle."""
    if not layer.built:
        layer.build(shape)
    rng = np.random.default_rng(seed)
    for variable in layer.variables:
        variable.assign(rng.uniform(0.1, 0.5, variable.shape))
    return layer


@each_layer
@pytest.mark.parametrize("training", [False, True])
def test_data_formats_agree(kind, training):
    x = images(2, 5, 7, 12)
    last = perturbed(kind(data_format="channels_last"), x.shape)
    first = perturbed(kind(data_format="channels_first"), (2, 12, 5, 7))
    y = numpy_of(first(x.transpose(0, 3, 1, 2), training=training))
    np.testing.assert_allclose(
        y.transpose(0, 2, 3, 1), numpy_of(last(x, training=training)), atol=1e-6
    )
    assert first.compute_output_shape((2, 12, 5, 7)) == (2, 12, 5, 7)


@each_layer
def test_unknown_sizes(kind):
    inputs = keras.Input((None, None, 12))
    layer = kind(data_format="channels_last")
    model = keras.Model(inputs, layer(inputs))
    assert model.output_shape == (None, None, None, 12)
    perturbed(layer, (None, None, None, 12))
    for shape in [(2, 5, 7, 12), (1, 9, 3, 12)]:
        x = images(*shape)
        y = model.predict(x, verbose=0)
        np.testing.assert_allclose(y, numpy_of(layer(x)), atol=1e-5)


@needs_tensorflow
@each_layer
@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_unknown_sizes_while_training(kind, data_format):
    import tensorflow as tf

    shape = [None] * 4
    shape[1 if data_format == "channels_first" else 3] = 12
    layer = perturbed(kind(data_format=data_format), shape)
    graph = tf.function(
        lambda x: layer(x, training=True), input_signature=[tf.TensorSpec(shape)]
    )
    for sizes in [(5, 7), (9, 3)]:
        x = images(2, *[n or sizes[i % 2] for i, n in enumerate(shape[1:])])
        expected = numpy_of(layer(x, training=True))
        np.testing.assert_allclose(numpy_of(graph(x)), expected, atol=1e-5)


@needs_xla
@each_layer
@pytest.mark.parametrize("training", [False, True])
def test_xla(kind, training):
    x = images(2, 5, 7, 12)
    layer = perturbed(kind(data_format="channels_last"), x.shape)
    compiled = xla(lambda x: layer(x, training=training))
    expected = numpy_of(layer(x, training=training))
    np.testing.assert_allclose(numpy_of(compiled(x)), expected, atol=1e-5)


@each_layer
def test_gradient(kind):
    x = images(1, 3, 4, 5)
    layer = perturbed(kind(2, data_format="channels_last"), x.shape)
    grad = gradient(lambda x: ops.square(layer(x)), x)
    for place in [(0, 0, 0, 0), (0, 2, 1, 3), (0, 1, 3, 4)]:
        step = np.zeros_like(x)
        step[place] = 1e-2
        up, down = (
            np.square(numpy_of(layer(x + s)).astype("float64")).sum()
            for s in (step, -step)
        )
        assert grad[place] == pytest.approx((up - down) / 2e-2, rel=1e-2, abs=1e-3)


@each_layer
def test_every_weight_learns(kind):
    x = images(8, 6, 6, 12)
    layer = kind(4)
    model = keras.Sequential([keras.Input(x.shape[1:]), layer])
    before = [numpy_of(w) for w in model.weights]
    model.compile(keras.optimizers.SGD(1.0), "mse")
    model.fit(x, x * np.linspace(0, 2, 12), epochs=3, verbose=0)
    for weight, old in zip(model.weights, before, strict=True):
        assert np.abs(numpy_of(weight) - old).max() > 1e-5, weight.path


@each_layer
def test_kernels_start_different(kind):
    layer = kind(1)
    layer.build((None, 8, 8, 16))
    difference = numpy_of(layer.reduce.kernel) - numpy_of(layer.expand.kernel)
    assert np.abs(difference).max() > 0.01


# Precision


@each_layer
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", ["mixed_float16", "mixed_bfloat16"])
def test_half_precision_does_not_overflow(kind, dtype, training):
    # 50,000 is near float16's largest number: a sum of two is infinite, and so is a
    # square.
    x = np.abs(images(2, 32, 48, 12)).clip(0.5, 1) * 5e4
    half = kind(dtype=dtype, data_format="channels_last")
    full = kind(dtype="float32", data_format="channels_last")
    perturbed(half, x.shape)
    perturbed(full, x.shape)
    x = ops.cast(x, half.compute_dtype)
    y = half(x, training=training)
    expected = full(ops.cast(x, "float32"), training=training)
    assert keras.backend.standardize_dtype(y.dtype) == half.compute_dtype
    rounding = {"float16": 2.0**-11, "bfloat16": 2.0**-8}[half.compute_dtype]
    # CBAM's second gate sees what the first one rounded.
    limit = (5 if kind is SqueezeExcite else 30) * rounding
    np.testing.assert_allclose(numpy_of(y), numpy_of(expected), rtol=limit, atol=1e-4)


@each_layer
@pytest.mark.parametrize("dtype", ["mixed_float16", "float16", "float64"])
def test_variables_have_the_dtype_of_the_policy(kind, dtype):
    if dtype == "float64" and BACKEND == "jax":
        pytest.skip("JAX has float64 only where it is switched on")
    layer = kind(dtype=dtype)
    layer.build((None, 8, 8, 16))
    expected = "float64" if dtype == "float64" else "float32"
    assert {w.dtype for w in layer.weights} == {expected}
    x = ops.cast(images(2, 8, 8, 16), layer.compute_dtype)
    assert keras.backend.standardize_dtype(layer(x).dtype) == layer.compute_dtype


# Saving


CONFIG = {
    "reduction": 4,
    "activation": "relu6",
    "gate_activation": "hard_sigmoid",
    "data_format": "channels_first",
    "kernel_initializer": keras.initializers.HeNormal(seed=1),
    "kernel_regularizer": keras.regularizers.L2(1e-4),
    "name": "attention",
    "dtype": "mixed_bfloat16",
}
OWN_CONFIG = {
    SqueezeExcite: {},
    CBAM: {"kernel_size": 3, "momentum": 0.8, "epsilon": 1e-3},
}


@each_layer
def test_config_has_every_argument(kind):
    layer = kind(**CONFIG, **OWN_CONFIG[kind])
    config = layer.get_config()
    assert config == kind.from_config(config).get_config()
    for name, value in OWN_CONFIG[kind].items():
        assert config[name] == value
    same = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(layer)
    )
    assert type(same) is kind
    assert same.reduction == 4
    assert same.activation is keras.activations.relu6
    assert same.gate_activation is keras.activations.hard_sigmoid
    assert same.data_format == "channels_first"
    assert same.kernel_initializer.seed == 1
    assert same.kernel_regularizer.l2 == pytest.approx(1e-4)
    assert same.dtype_policy.name == "mixed_bfloat16"


@each_layer
def test_saving(kind, tmp_path):
    x = images(2, 6, 5, 12)

    def build():
        inputs = keras.Input((None, None, 12))
        return keras.Model(inputs, kind(4, data_format="channels_last")(inputs))

    model = build()
    perturbed(model.layers[-1], x.shape)
    expected = numpy_of(model(x))
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")

    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(numpy_of(loaded(x)), expected)
    other = build()
    assert np.abs(numpy_of(other(x)) - expected).max() > 1e-2
    other.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(numpy_of(other(x)), expected)


@each_layer
def test_regularizer_reaches_every_kernel(kind):
    layer = kind(kernel_regularizer=keras.regularizers.L2(0.5))
    layer(images(1, 4, 4, 8))
    kernels = [w for w in layer.trainable_weights if w.name == "kernel"]
    assert len(kernels) == (2 if kind is SqueezeExcite else 3)
    squares = sum((numpy_of(kernel) ** 2).sum() for kernel in kernels)
    assert float(sum(layer.losses)) == pytest.approx(squares / 2, rel=1e-5)


# Wrong arguments and inputs


@each_layer
@pytest.mark.parametrize(
    "arguments",
    [
        {"reduction": 0},
        {"reduction": 2.5},
        {"reduction": True},
        {"data_format": "NHWC"},
    ],
)
def test_wrong_argument(kind, arguments):
    ((name, value),) = arguments.items()
    received = rf"`{name}` must be .*Received: {re.escape(repr(value))}$"
    with pytest.raises(ValueError, match=received):
        kind(**arguments)


# Names of the arguments in Keras's messages
LOOKED_UP = {
    "activation": "activation function",
    "gate_activation": "activation function",
    "kernel_initializer": "initializer",
}


@each_layer
@pytest.mark.parametrize("name, kind_of_name", LOOKED_UP.items())
def test_unknown_name(kind, name, kind_of_name):
    with pytest.raises(ValueError, match=f"{kind_of_name} identifier: no_such$"):
        kind(**{name: "no_such"})


@each_layer
@pytest.mark.parametrize(
    "shape, received",
    [
        ((2, 8, 16), r"expected ndim=4, found ndim=3.*\(2, 8, 16\)"),
        ((2, 4, 8, 8, 16), r"expected ndim=4, found ndim=5.*\(2, 4, 8, 8, 16\)"),
    ],
)
def test_wrong_rank(kind, shape, received):
    with pytest.raises(ValueError, match=received):
        kind()(images(*shape))


@each_layer
def test_unknown_channels(kind):
    with pytest.raises(ValueError, match=rf"{kind.__name__}.*Received: .*None"):
        kind()(keras.Input((8, 8, None)))


@each_layer
def test_other_channels_than_built_for(kind):
    layer = kind(data_format="channels_last")
    layer.build((None, 8, 8, 16))
    with pytest.raises(ValueError, match=r"axis 3 .*value 16,.*\(2, 8, 8, 12\)"):
        layer(images(2, 8, 8, 12))


@each_layer
def test_integers_are_refused(kind):
    # Keras casts only floating-point inputs to a layer's dtype.
    with pytest.raises(ValueError, match=rf"{kind.__name__}.*floating-point.*int32"):
        kind()(np.ones((2, 8, 8, 16), "int32"))
