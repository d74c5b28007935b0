"""Keras's files are compared completely with models of every kind."""

import keras
import numpy as np
import pytest
from backends import each_quantization, once
from keras import layers, ops

from keras_coordatt import CoordinateAttention
from keras_coordatt.weights import load_weights

NATIVE = pytest.mark.parametrize("suffix", [".keras", ".weights.h5"])
EACH = pytest.mark.parametrize("suffix", [".keras", ".weights.h5", ".h5"])


def save(model, path):
    (model.save_weights if str(path).endswith(".weights.h5") else model.save)(path)
    return path


def randomized(model, seed=0):
    rng = np.random.default_rng(seed)
    for w in model.weights:
        if "float" in str(w.dtype):
            w.assign(rng.uniform(0.5, 1.5, w.shape))
    return model


def assert_same(ours, theirs):
    assert len(ours.weights) == len(theirs.weights) > 0
    for a, b in zip(ours.get_weights(), theirs.get_weights()):
        np.testing.assert_array_equal(a, b)


def assert_refused(model, path, message):
    before = model.get_weights()
    with pytest.raises(ValueError, match=message):
        load_weights(model, path)
    assert all(map(np.array_equal, before, model.get_weights()))


# Models of a class of their own


@keras.saving.register_keras_serializable("test_keras_file")
class Subclassed(keras.Model):
    def __init__(self, units=3, blocks=2):
        super().__init__()
        self.blocks = [layers.Dense(units) for _ in range(blocks)]
        self.named = {"last": layers.Dense(2)}
        self.scale = self.add_weight(shape=(2,), name="scale")
        self.seen = keras.metrics.Mean("seen")

    def call(self, x):
        for block in self.blocks:
            x = block(x)
        return self.named["last"](x) * self.scale


@keras.saving.register_keras_serializable("test_keras_file")
class WithAttributes(keras.Model):
    """Layers are attributes, with names that Keras made and names of one's own."""

    def __init__(self):
        super().__init__()
        self.first = layers.Dense(3)
        self.second = layers.Dense(3)
        self.attention = CoordinateAttention(2)
        self.dense = layers.EinsumDense("...a,ab->...b", output_shape=2)
        self.head = layers.Dense(2, name="scores")

    def call(self, x):
        x = self.attention(self.second(self.first(x)))
        return self.head(self.dense(x))


def subclassed(*arguments):
    model = Subclassed(*arguments)
    model(np.ones((1, 3)))
    return model


@NATIVE
def test_subclassed_models(tmp_path, suffix):
    model = randomized(subclassed())
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)
    model.seen.update_state(5.0)
    path = save(model, tmp_path / f"model{suffix}")
    other = subclassed()
    load_weights(other, path)
    assert_same(other, model)
    assert other.seen.result() == 0  # a metric's state is not a weight
    assert_refused(subclassed(4), path, "misshapen: blocks/dense/vars/0")
    assert_refused(subclassed(3, 3), path, "missing: blocks/dense_2/vars/0")
    assert_refused(subclassed(3, 1), path, "unexpected: blocks/dense_1/vars/0")
    functional = keras.Sequential([keras.Input((3,)), layers.Dense(3)])
    assert_refused(functional, path, "of another architecture")
    path = save(functional, tmp_path / f"functional{suffix}")
    assert_refused(subclassed(), path, "of another architecture")


@NATIVE
def test_layers_that_are_attributes(tmp_path, suffix):
    models = [WithAttributes() for _ in range(2)]
    for model in models:
        model(np.ones((1, 4, 4, 3)))
    load_weights(models[1], save(randomized(models[0]), tmp_path / f"it{suffix}"))
    assert_same(*models)


@keras.saving.register_keras_serializable("test_keras_file")
class WithExtraLayer(keras.Model):
    """A functional model with a layer that is not in its graph."""

    def __init__(self, extra=True):
        image = keras.Input((3,))
        super().__init__(image, layers.Dense(2, name="a")(image))
        if extra:
            self.extra = layers.Dense(4, name="extra")
            self.extra.build((None, 3))


@NATIVE
def test_a_layer_outside_the_graph(tmp_path, suffix):
    model = randomized(WithExtraLayer())
    path = save(model, tmp_path / f"model{suffix}")
    other = WithExtraLayer()
    load_weights(other, path)
    assert_same(other, model)
    assert_refused(WithExtraLayer(False), path, "unexpected: extra/vars/0")
    path = save(WithExtraLayer(False), tmp_path / f"less{suffix}")
    assert_refused(other, path, "missing: extra/vars/0")


def test_a_layer_outside_the_graph_in_a_legacy_file(tmp_path):
    # Keras does not write it.
    path = save(WithExtraLayer(), tmp_path / "model.h5")
    assert_refused(WithExtraLayer(), path, "missing: .*extra/kernel")


# Weights that are not floating-point


@EACH
def test_normalization(tmp_path, suffix):
    def build():
        return keras.Sequential(
            [keras.Input((3,)), layers.Normalization(), layers.Dense(2)]
        )

    x = np.random.default_rng(0).normal(3, 2, (50, 3)).astype("float32")
    model = build()
    model.layers[0].adapt(x)
    other = build()
    load_weights(other, save(model, tmp_path / f"model{suffix}"))
    assert_same(other, model)
    expected = ops.convert_to_numpy(model(x[:4]))
    np.testing.assert_array_equal(ops.convert_to_numpy(other(x[:4])), expected)


@EACH
@pytest.mark.parametrize("mode", ["int8", pytest.param("int4", marks=once)])
def test_quantized(tmp_path, suffix, mode):
    def build(quantized=True):
        model = keras.Sequential(
            [keras.Input((8,)), layers.Dense(4, name="a"), layers.Dense(2, name="b")]
        )
        randomized(model, seed=int(quantized))
        if quantized:
            model.quantize(mode)
        return model

    model = build()
    x = np.random.default_rng(0).normal(size=(4, 8)).astype("float32")
    path = save(model, tmp_path / f"model{suffix}")
    other = build()
    for w in other.weights:
        w.assign(ops.zeros(w.shape, w.dtype))
    load_weights(other, path)
    assert_same(other, model)
    expected = ops.convert_to_numpy(model(x))
    np.testing.assert_array_equal(ops.convert_to_numpy(other(x)), expected)
    assert_refused(build(False), path, "as if one of them is quantized")
    path = save(build(False), tmp_path / f"float{suffix}")
    assert_refused(other, path, "as if one of them is quantized")


@NATIVE
@each_quantization
def test_a_quantized_classifier(tmp_path, suffix, mode):
    def build(classes):
        head = layers.Dense(classes, name="predictions")
        model = keras.Sequential([keras.Input((8,)), layers.Dense(6, name="a"), head])
        model.quantize(mode)
        return model

    model, same, other = build(3), build(3), build(4)
    path = save(model, tmp_path / f"model{suffix}")
    load_weights(same, path)
    assert_same(same, model)
    with pytest.warns(UserWarning, match="has 3 outputs, the network's 4"):
        load_weights(other, path, skip_mismatch=True)
    for ours, theirs in zip(other.layers[0].weights, model.layers[0].weights):
        np.testing.assert_array_equal(
            *map(ops.convert_to_numpy, (ours.value, theirs.value))
        )


# Names that Keras numbers


def test_a_legacy_file_of_a_model_that_was_built_before(tmp_path):
    def build():
        return keras.Sequential(
            [
                keras.Input((8, 8, 3)),
                layers.Conv2D(4, 3),
                layers.BatchNormalization(),
                keras.Sequential([layers.Conv2D(4, 3), layers.Conv2D(4, 3)]),
                layers.BatchNormalization(),
                layers.Flatten(),
                layers.Dense(2),
            ]
        )

    models = [randomized(build(), seed) for seed in range(11)]
    for model in models[1::3]:  # "conv2d_10" comes after "conv2d_9"
        other = build()
        load_weights(other, save(model, tmp_path / "model.h5"))
        assert_same(other, model)


# Nested models


def backbone(seed=0, width=4, name="backbone"):
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(width, 3, name="Conv1")(image)
    x = layers.BatchNormalization(name="bn")(x)
    return randomized(keras.Model(image, layers.Conv2D(width, 3)(x), name=name), seed)


def around(*backbones):
    image = keras.Input((8, 8, 3))
    x = layers.Rescaling(1 / 255)(image)
    x = layers.Concatenate()([b(x) for b in backbones])
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, layers.Dense(2, name="predictions")(x))


@EACH
def test_a_backbone_takes_the_file_of_the_model_around_it(tmp_path, suffix):
    inner = backbone()
    path = save(around(inner, inner), tmp_path / f"model{suffix}")
    other = backbone(1)
    load_weights(other, path)
    assert_same(other, inner)
    assert_refused(backbone(1, width=5), path, "misshapen: .*Conv1")
    two = around(backbone(2), backbone(3, name="second"))
    path = save(two, tmp_path / f"two{suffix}")
    assert_refused(other, path, "more than one place: .*backbone/.*second/")


@pytest.mark.parametrize("suffix", [".weights.h5", ".h5", ".safetensors"])
def test_a_network_behind_layers_with_weights(tmp_path, suffix, short):
    from keras_coordatt.weights import save_safetensors

    source = randomized(short())
    path = tmp_path / f"model{suffix}"
    if suffix == ".safetensors":
        save_safetensors(source, path)
    else:
        save(source, path)

    def build(weights):
        image = keras.Input((32, 32, 5))
        to_rgb = layers.Conv2D(3, 1, name="to_rgb")
        model = short(input_shape=None, input_tensor=to_rgb(image), weights=weights)
        return to_rgb, model

    to_rgb, model = build(path)
    x = np.random.default_rng(0).uniform(size=(2, 32, 32, 5)).astype("float32")
    expected = source(to_rgb(x), training=False)
    np.testing.assert_allclose(
        *map(ops.convert_to_numpy, (model(x, training=False), expected)), atol=1e-6
    )
    # And the file of the complete model
    if suffix != ".safetensors":
        again = build(save(model, tmp_path / f"whole{suffix}"))[1]
        assert_same(again, model)
