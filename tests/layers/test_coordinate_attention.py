import re

import keras
import numpy as np
import pytest
from backends import BACKEND, gradient, needs_tensorflow, needs_xla, xla
from keras import ops

from keras_coordatt import CoordinateAttention
from keras_coordatt.weights import load_torch, load_weights

GOLDEN = [
    "coordatt_c16_7x11_r4.npz",
    "coordatt_c64_14x14_r32.npz",
    "coordatt_c320_9x5_r32.npz",
]


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
        if "seed" not in variable.path:
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
    return layer


# Against the official code


@pytest.fixture(params=GOLDEN)
def official(request, golden):
    """The numbers of the official layer, and our layer with its weights."""
    arrays = dict(np.load(golden(request.param)))
    state = {
        name.removeprefix("state/"): array
        for name, array in arrays.items()
        if name.startswith("state/")
    }
    for name, array in arrays.items():
        if name.endswith("_nchw"):
            arrays[name] = array.transpose(0, 2, 3, 1)
    layer = CoordinateAttention(
        int(arrays["reduction"]),
        data_format="channels_last",
        name=request.param.removesuffix(".npz"),
    )
    layer.build(arrays["input_nchw"].shape)
    load_torch(layer, state)
    return arrays, layer


@pytest.mark.parametrize("mode, limit", [("eval", 1e-5), ("train", 1e-4)])
def test_output_is_the_official(official, assert_within, mode, limit):
    arrays, layer = official
    y = numpy_of(layer(arrays["input_nchw"], training=mode == "train"))
    expected = arrays[f"{mode}_output_nchw"]
    difference = np.abs(y - expected).max()
    if mode == "train":
        difference /= np.abs(expected).max()
    assert_within(f"{layer.name}: {mode} output", difference, limit)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_input_gradient_is_the_official(official, assert_within, mode):
    arrays, layer = official
    grad = gradient(
        lambda x: ops.square(layer(x, training=mode == "train")), arrays["input_nchw"]
    )
    expected = arrays[f"{mode}_input_grad_nchw"]
    difference = np.abs(grad - expected).max() / np.abs(expected).max()
    assert_within(f"{layer.name}: {mode} input gradient", difference, 1e-4)


def test_moving_statistics_are_the_official(official, assert_within):
    arrays, layer = official
    x = arrays["input_nchw"]
    before = numpy_of(layer.norm.moving_variance)
    layer(x, training=True)

    mean = numpy_of(layer.norm.moving_mean)
    difference = np.abs(mean - arrays["running_mean_after"]).max()
    assert_within(f"{layer.name}: moving mean", difference, 1e-5)

    # PyTorch's variance of a batch is n / (n - 1) times Keras's.
    n = x.shape[0] * (x.shape[1] + x.shape[2])
    batch = (numpy_of(layer.norm.moving_variance) - 0.9 * before) / 0.1
    unbiased = 0.9 * before + 0.1 * batch * n / (n - 1)
    difference = np.abs(unbiased - arrays["running_var_after"]).max()
    assert_within(f"{layer.name}: moving variance, unbiased", difference, 1e-5)


def test_the_variances_differ_without_the_factor(official):
    arrays, layer = official
    layer(arrays["input_nchw"], training=True)
    variance = numpy_of(layer.norm.moving_variance)
    assert np.abs(variance - arrays["running_var_after"]).max() > 1e-5


# Against a second implementation


def reference(layer, x):
    """The paper's equations at inference, one sum at a time."""
    x = x.astype("float64")

    def weights(dense):
        return [numpy_of(w).astype("float64") for w in (dense.kernel, dense.bias)]

    norm = layer.norm
    mean, variance, gamma, beta = (
        numpy_of(w).astype("float64")
        for w in (norm.moving_mean, norm.moving_variance, norm.gamma, norm.beta)
    )
    out = x.copy()
    for axis, gate in layer.gates.items():
        positions = x.shape[1] if axis == "height" else x.shape[2]
        for p in range(positions):
            strip = x[:, p] if axis == "height" else x[:, :, p]
            kernel, bias = weights(layer.shared)
            y = strip.mean(1) @ kernel + bias
            y = (y - mean) / np.sqrt(variance + layer.epsilon) * gamma + beta
            y = y * np.clip(y + 3, 0, 6) / 6
            kernel, bias = weights(gate)
            a = 1 / (1 + np.exp(-(y @ kernel + bias)))[:, None]
            if layer.identity_init:
                a = 2 * a
            if axis == "height":
                out[:, p] *= a
            else:
                out[:, :, p] *= a
    return out


@pytest.mark.parametrize("identity_init", [False, True])
@pytest.mark.parametrize("axes", ["both", "height", "width"])
@pytest.mark.parametrize("size", [(5, 7), (1, 6), (6, 1), (1, 1)])
def test_follows_the_equations(axes, size, identity_init):
    x = images(2, *size, 12)
    layer = CoordinateAttention(
        4, axes=axes, identity_init=identity_init, data_format="channels_last"
    )
    perturbed(layer, x.shape)
    np.testing.assert_allclose(numpy_of(layer(x)), reference(layer, x), atol=2e-5)


@pytest.mark.parametrize("axes", ["both", "height", "width"])
@pytest.mark.parametrize("training", [False, True])
def test_data_formats_agree(axes, training):
    x = images(2, 5, 7, 12)
    last = CoordinateAttention(axes=axes, data_format="channels_last")
    first = CoordinateAttention(axes=axes, data_format="channels_first")
    perturbed(last, x.shape)
    perturbed(first, (2, 12, 5, 7))
    y = numpy_of(first(x.transpose(0, 3, 1, 2), training=training))
    np.testing.assert_allclose(
        y.transpose(0, 2, 3, 1), numpy_of(last(x, training=training)), atol=1e-6
    )
    assert first.compute_output_shape((2, 12, 5, 7)) == (2, 12, 5, 7)


def test_the_axes_are_each_others_transpose():
    x = images(2, 5, 7, 12)
    height = CoordinateAttention(axes="height", data_format="channels_last")
    width = CoordinateAttention(axes="width", data_format="channels_last")
    perturbed(height, x.shape)
    perturbed(width, x.shape)
    turned = numpy_of(width(x.transpose(0, 2, 1, 3), training=True))
    np.testing.assert_allclose(
        turned.transpose(0, 2, 1, 3), numpy_of(height(x, training=True)), atol=1e-6
    )


@pytest.mark.parametrize("identity_init", [False, True])
def test_gates_to_look_at(identity_init):
    x = images(2, 5, 7, 12)
    layer = CoordinateAttention(
        identity_init=identity_init, data_format="channels_last"
    )
    perturbed(layer, x.shape)
    gates = {axis: numpy_of(gate) for axis, gate in layer.compute_gates(x).items()}
    assert {axis: gate.shape for axis, gate in gates.items()} == {
        "height": (2, 5, 12),
        "width": (2, 7, 12),
    }
    expected = x * gates["height"][:, :, None] * gates["width"][:, None]
    np.testing.assert_allclose(numpy_of(layer(x)), expected, atol=1e-6)


@pytest.mark.parametrize("training", [False, True])
def test_gates_of_arrays_in_double_precision(training):
    layer = CoordinateAttention(data_format="channels_last")
    x = images(2, 5, 7, 8)
    layer.build(x.shape)
    expected = layer.compute_gates(ops.convert_to_tensor(x), training=training)
    for axis, gate in layer.compute_gates(x.astype("float64"), training).items():
        np.testing.assert_allclose(numpy_of(gate), numpy_of(expected[axis]), atol=1e-6)


# The size of things


@pytest.mark.parametrize(
    "channels, arguments, units",
    [
        (64, {}, 8),
        (320, {}, 10),
        (320, {"reduction": 16}, 20),
        (24, {"reduction": 4, "min_channels": 2}, 6),
        (24, {"reduction": 4}, 8),
        (1, {}, 8),
    ],
)
def test_shared_channels(channels, arguments, units):
    layer = CoordinateAttention(**arguments, data_format="channels_last")
    layer.build((None, None, None, channels))
    assert layer.shared.kernel.shape == (channels, units)
    shared = channels * units + units + 2 * units
    gates = 2 * (units * channels + channels)
    assert sum(np.prod(w.shape) for w in layer.trainable_weights) == shared + gates


def test_gates_start_different():
    layer = CoordinateAttention()
    layer.build((None, 8, 8, 16))
    height, width = (numpy_of(gate.kernel) for gate in layer.gates.values())
    assert np.abs(height - width).max() > 0.01


def test_unknown_sizes():
    inputs = keras.Input((None, None, 12))
    layer = CoordinateAttention(data_format="channels_last")
    model = keras.Model(inputs, layer(inputs))
    assert model.output_shape == (None, None, None, 12)
    perturbed(layer, (None, None, None, 12))
    for shape in [(2, 5, 7, 12), (1, 9, 3, 12)]:
        x = images(*shape)
        y = model.predict(x, verbose=0)
        np.testing.assert_allclose(y, numpy_of(layer(x)), atol=1e-5)


@needs_tensorflow
@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_unknown_sizes_while_training(data_format):
    import tensorflow as tf

    shape = [None] * 4
    shape[1 if data_format == "channels_first" else 3] = 12
    layer = perturbed(CoordinateAttention(data_format=data_format), shape)
    graph = tf.function(
        lambda x: layer(x, training=True), input_signature=[tf.TensorSpec(shape)]
    )
    for sizes in [(5, 7), (9, 3)]:
        x = images(2, *[n or sizes[i % 2] for i, n in enumerate(shape[1:])])
        expected = numpy_of(layer(x, training=True))
        np.testing.assert_allclose(numpy_of(graph(x)), expected, atol=1e-5)


@needs_xla
@pytest.mark.parametrize("training", [False, True])
def test_xla(training):
    x = images(2, 5, 7, 12)
    layer = perturbed(CoordinateAttention(data_format="channels_last"), x.shape)
    compiled = xla(lambda x: layer(x, training=training))
    expected = numpy_of(layer(x, training=training))
    np.testing.assert_allclose(numpy_of(compiled(x)), expected, atol=1e-5)


# Identity


@pytest.mark.parametrize("dtype", ["float32", "mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize("gate_activation", ["sigmoid", "hard_sigmoid"])
@pytest.mark.parametrize("training", [False, True])
def test_identity_until_trained(dtype, data_format, gate_activation, training):
    layer = CoordinateAttention(
        identity_init=True,
        gate_activation=gate_activation,
        data_format=data_format,
        dtype=dtype,
    )
    x = ops.cast(images(2, 9, 5, 7) * 1e3, layer.compute_dtype)
    y = layer(x, training=training)
    assert y.dtype == x.dtype
    np.testing.assert_array_equal(numpy_of(y), numpy_of(x))


@pytest.mark.parametrize("identity_init", [False, True])
def test_every_weight_learns(identity_init):
    x = images(8, 6, 6, 12)
    layer = CoordinateAttention(4, identity_init=identity_init)
    model = keras.Sequential([keras.Input(x.shape[1:]), layer])
    before = [numpy_of(w) for w in model.trainable_weights]
    model.compile(keras.optimizers.SGD(1.0), "mse")
    model.fit(x, x * np.linspace(0, 2, 12), epochs=3, verbose=0)
    for weight, old in zip(model.trainable_weights, before, strict=True):
        # Normalization takes the shared bias away, so it has no gradient.
        if weight is not layer.shared.bias:
            assert np.abs(numpy_of(weight) - old).max() > 1e-4, weight.path


# Precision


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", ["mixed_float16", "mixed_bfloat16"])
def test_half_precision_does_not_overflow(dtype, training):
    # 50,000 is near float16's largest number: a sum of two is infinite, and so is a
    # square.
    x = np.abs(images(2, 32, 48, 12)).clip(0.5, 1) * 5e4
    half = CoordinateAttention(dtype=dtype, data_format="channels_last")
    full = CoordinateAttention(dtype="float32", data_format="channels_last")
    perturbed(half, x.shape)
    perturbed(full, x.shape)
    x = ops.cast(x, half.compute_dtype)
    y, expected = (
        half(x, training=training),
        full(ops.cast(x, "float32"), training=training),
    )
    assert keras.backend.standardize_dtype(y.dtype) == half.compute_dtype
    # Two roundings of the gates and two of the products.
    rounding = {"float16": 2.0**-11, "bfloat16": 2.0**-8}[half.compute_dtype]
    np.testing.assert_allclose(
        numpy_of(y), numpy_of(expected), rtol=5 * rounding, atol=1e-4
    )
    for ours, theirs in zip(half.norm.variables, full.norm.variables, strict=True):
        np.testing.assert_allclose(numpy_of(ours), numpy_of(theirs), rtol=1e-5)


@pytest.mark.parametrize("dtype", ["mixed_float16", "float16", "float64"])
def test_variables_have_the_dtype_of_the_policy(dtype):
    if dtype == "float64" and BACKEND == "jax":
        pytest.skip("JAX has float64 only where it is switched on")
    layer = CoordinateAttention(dtype=dtype)
    layer.build((None, 8, 8, 16))
    expected = "float64" if dtype == "float64" else "float32"
    assert {w.dtype for w in layer.weights} == {expected}
    x = ops.cast(images(2, 8, 8, 16), layer.compute_dtype)
    assert keras.backend.standardize_dtype(layer(x).dtype) == layer.compute_dtype


# Saving


CONFIG = {
    "reduction": 4,
    "min_channels": 3,
    "axes": "width",
    "activation": "relu6",
    "gate_activation": "hard_sigmoid",
    "identity_init": True,
    "momentum": 0.8,
    "epsilon": 1e-3,
    "data_format": "channels_first",
    "kernel_initializer": keras.initializers.HeNormal(seed=1),
    "kernel_regularizer": keras.regularizers.L2(1e-4),
    "name": "attention",
    "dtype": "mixed_bfloat16",
}


def test_config_has_every_argument():
    layer = CoordinateAttention(**CONFIG)
    config = layer.get_config()
    assert config == CoordinateAttention.from_config(config).get_config()
    for name in ("reduction", "min_channels", "axes", "momentum", "epsilon"):
        assert config[name] == CONFIG[name]
    same = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(layer)
    )
    assert isinstance(same, CoordinateAttention)
    assert same.activation is keras.activations.relu6
    assert same.gate_activation is keras.activations.hard_sigmoid
    assert same.identity_init is True
    assert same.data_format == "channels_first"
    assert same.kernel_initializer.seed == 1
    assert same.kernel_regularizer.l2 == pytest.approx(1e-4)
    assert same.dtype_policy.name == "mixed_bfloat16"


@pytest.mark.parametrize("axes", ["both", "height", "width"])
def test_saving(tmp_path, axes):
    x = images(2, 6, 5, 12)

    def build():
        inputs = keras.Input((None, None, 12))
        layer = CoordinateAttention(axes=axes, data_format="channels_last")
        return keras.Model(inputs, layer(inputs))

    model = build()
    perturbed(model.layers[-1], x.shape)
    expected = model.predict(x, verbose=0)
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")

    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), expected)
    other = build()
    assert np.abs(other.predict(x, verbose=0) - expected).max() > 1e-2
    other.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(other.predict(x, verbose=0), expected)


@pytest.mark.parametrize("identity_init", [False, True])
@pytest.mark.parametrize("name", ["model.keras", "model.weights.h5"])
@pytest.mark.parametrize("load", [keras.Model.load_weights, load_weights])
def test_scaled_gates_and_others_have_files_of_their_own(
    load, name, identity_init, tmp_path
):
    def build(identity_init):
        inputs = keras.Input((5, 7, 12))
        layer = CoordinateAttention(identity_init=identity_init, name="attention")
        return keras.Model(inputs, layer(inputs))

    model, other, same = map(build, (identity_init, not identity_init, identity_init))
    perturbed(model.layers[-1], (2, 5, 7, 12))
    (model.save if name == "model.keras" else model.save_weights)(tmp_path / name)
    before = other.get_weights()
    with pytest.raises(ValueError, match="identity_init|gate_scale"):
        load(other, tmp_path / name)
    if load is load_weights:  # Keras's own loads layer by layer
        for weight, old in zip(other.get_weights(), before, strict=True):
            np.testing.assert_array_equal(weight, old)
    load(same, tmp_path / name)
    for weight, new in zip(same.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, new)


def test_regularizer_reaches_every_kernel():
    layer = CoordinateAttention(kernel_regularizer=keras.regularizers.L2(0.5))
    layer(images(1, 4, 4, 8))
    kernels = [layer.shared.kernel, *(gate.kernel for gate in layer.gates.values())]
    squares = sum((numpy_of(kernel) ** 2).sum() for kernel in kernels)
    assert float(sum(layer.losses)) == pytest.approx(squares / 2, rel=1e-5)


# Wrong arguments and inputs


@pytest.mark.parametrize(
    "arguments",
    [
        {"reduction": 0},
        {"reduction": 2.5},
        {"reduction": True},
        {"min_channels": -1},
        {"axes": "depth"},
        {"axes": None},
        {"identity_init": "yes"},
        {"momentum": 1.0},
        {"momentum": "0.9"},
        {"epsilon": 0},
        {"data_format": "NHWC"},
    ],
)
def test_wrong_argument(arguments):
    ((name, value),) = arguments.items()
    received = rf"`{name}` must be .*Received: {re.escape(repr(value))}$"
    with pytest.raises(ValueError, match=received):
        CoordinateAttention(**arguments)


# Names of the arguments in Keras's messages
LOOKED_UP = {
    "activation": "activation function",
    "gate_activation": "activation function",
    "kernel_initializer": "initializer",
}


@pytest.mark.parametrize("name, kind_of_name", LOOKED_UP.items())
def test_unknown_name(name, kind_of_name):
    with pytest.raises(ValueError, match=f"{kind_of_name} identifier: no_such$"):
        CoordinateAttention(**{name: "no_such"})


def test_identity_needs_a_known_gate():
    with pytest.raises(ValueError, match=r"identity_init.*Received: 'relu'"):
        CoordinateAttention(identity_init=True, gate_activation="relu")


@pytest.mark.parametrize(
    "shape, received",
    [
        ((2, 8, 16), r"expected ndim=4, found ndim=3.*\(2, 8, 16\)"),
        ((2, 4, 8, 8, 16), r"expected ndim=4, found ndim=5.*\(2, 4, 8, 8, 16\)"),
    ],
)
def test_wrong_rank(shape, received):
    with pytest.raises(ValueError, match=received):
        CoordinateAttention()(images(*shape))


def test_unknown_channels():
    with pytest.raises(ValueError, match=r"known.*Received: .*None"):
        CoordinateAttention()(keras.Input((8, 8, None)))


def test_other_channels_than_built_for():
    layer = CoordinateAttention(data_format="channels_last")
    layer.build((None, 8, 8, 16))
    with pytest.raises(ValueError, match=r"axis 3 .*value 16,.*\(2, 8, 8, 12\)"):
        layer(images(2, 8, 8, 12))


def test_integers_are_refused():
    # Keras casts only floating-point inputs to a layer's dtype.
    with pytest.raises(ValueError, match=r"floating-point.*int32"):
        CoordinateAttention()(np.ones((2, 8, 8, 16), "int32"))


def test_no_gates_before_it_is_built():
    with pytest.raises(ValueError, match="before it is built"):
        CoordinateAttention().compute_gates(np.zeros((1, 4, 4, 8), "float32"))
