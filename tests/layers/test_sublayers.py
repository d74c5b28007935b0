"""Changes of an attention layer's sublayers survive saving and cloning."""

import keras
import numpy as np
import pytest
from backends import each_quantization
from keras import layers

from keras_coordatt import (
    CBAM,
    CoordinateAttention,
    SqueezeExcite,
    insert_attention,
)
from keras_coordatt.layers import freeze_batch_norm

each_attention = pytest.mark.parametrize(
    "attention", [CoordinateAttention, SqueezeExcite, CBAM]
)
X = np.random.default_rng(0).normal(size=(2, 4, 4, 16)).astype("float32")


def network(attention, **arguments):
    image = keras.Input((4, 4, 16))
    x = attention(reduction=2, name="attention", **arguments)(image)
    return keras.Model(image, layers.Dense(2, name="head")(x))


def reloaded(model, tmp_path):
    model.save(tmp_path / "it.keras")
    return keras.models.load_model(tmp_path / "it.keras")


@pytest.mark.parametrize("attention", [CoordinateAttention, CBAM])
def test_frozen_normalization_stays_frozen(attention, tmp_path):
    model = network(attention)
    everything = len(model.trainable_weights)
    model.get_layer("attention").norm.trainable = False
    configured = network(attention, sublayers={"norm": {"trainable": False}})
    for copy in (
        reloaded(model, tmp_path),
        keras.models.clone_model(model),
        keras.models.clone_model(keras.models.clone_model(model)),
        reloaded(keras.Sequential([keras.Input((4, 4, 16)), model]), tmp_path),
        configured,
    ):
        assert len(copy.trainable_weights) == everything - 2
        before = copy.get_weights()
        copy.compile("sgd", "mse")
        copy.fit(X, X[..., :2], verbose=0)
        for weight, old, new in zip(copy.weights, before, copy.get_weights()):
            if "norm" in weight.path:
                np.testing.assert_array_equal(new, old, weight.path)


@each_attention
def test_parts_keep_their_own_flag_under_a_frozen_layer(attention, tmp_path):
    model = network(attention)
    layer = model.get_layer("attention")
    layer.trainable = False
    layer.sublayers()[0].trainable = True
    copy = reloaded(model, tmp_path).get_layer("attention")
    assert not copy.trainable
    assert [x.trainable for x in copy.sublayers()] == [
        x.trainable for x in layer.sublayers()
    ]


@each_quantization
@each_attention
def test_quantized_networks_load(attention, mode, tmp_path):
    model = network(attention)
    model.quantize(mode)
    expected = model.predict(X, verbose=0)
    copy = reloaded(model, tmp_path)
    modes = [getattr(x, "quantization_mode", None) for x in layers_of(copy)]
    assert modes.count(mode) == len(
        [x for x in layers_of(model) if isinstance(x, layers.Dense)]
    )
    np.testing.assert_allclose(copy.predict(X, verbose=0), expected, atol=1e-6)


def layers_of(model):
    return model.get_layer("attention").sublayers()


@pytest.mark.parametrize("quantized", [False, True])
@each_attention
def test_lora_is_kept(attention, quantized, tmp_path):
    model = network(attention)
    for layer in layers_of(model):
        if isinstance(layer, layers.Dense):
            layer.enable_lora(2)
            layer.lora_kernel_b.assign(np.ones(layer.lora_kernel_b.shape))
    if quantized:
        model.quantize("int8")
    copy = reloaded(model, tmp_path)
    assert len(copy.trainable_weights) == len(model.trainable_weights)
    if not quantized:
        np.testing.assert_allclose(
            copy.predict(X, verbose=0), model.predict(X, verbose=0), atol=1e-6
        )
        return
    # Keras merges LoRA into the kernels that it saves, and rounds them to int8 again.
    for layer, loaded in zip(layers_of(model), layers_of(copy)):
        if isinstance(layer, layers.Dense):
            kernel, rounded = effective_kernel(layer), effective_kernel(loaded)
            step = np.abs(kernel).max(axis=0) / 127
            assert (np.abs(rounded - kernel) <= step).all()


def effective_kernel(dense):
    """Returns the kernel of a Dense layer, with LoRA and int8 applied."""
    units = dense.input_spec.axes[-1]
    outputs = [dense(rows) for rows in (np.eye(units), np.zeros((1, units)))]
    return np.subtract(*map(keras.ops.convert_to_numpy, outputs))


def test_configurations_without_changes_are_those_of_earlier_versions():
    layer = network(CoordinateAttention).get_layer("attention")
    assert "sublayers" not in layer.get_config()


@pytest.mark.parametrize(
    "sublayers", ["norm", ["norm"], {"bn": {}}, {"norm": False}, {"norm": {"axis": 1}}]
)
@each_attention
def test_bad_sublayers(attention, sublayers):
    with pytest.raises(ValueError, match="`sublayers` must be"):
        attention(sublayers=sublayers)


def test_freeze_batch_norm_reaches_nested_models_and_sublayers(tmp_path):
    inner = network(CoordinateAttention)
    image = keras.Input((4, 4, 16))
    x = layers.BatchNormalization()(inner(image))
    x = layers.TimeDistributed(layers.BatchNormalization())(x)
    model = keras.Model(image, CBAM()(layers.Dense(16)(x)))
    everything = len(model.trainable_weights)
    assert freeze_batch_norm(model) == 4
    assert len(model.trainable_weights) == everything - 4 * 2
    assert not inner.get_layer("attention").norm.trainable
    # Keras itself loses the state of layers inside TimeDistributed.
    assert len(reloaded(model, tmp_path).trainable_weights) <= everything - 3 * 2
    with pytest.raises(TypeError, match="`model` must be.*Received: 'model'"):
        freeze_batch_norm("model")
    with pytest.raises(ValueError, match="`model` must be built"):
        freeze_batch_norm(CoordinateAttention())


@each_quantization
@each_attention
def test_surgery_copies_quantized_attention(attention, mode):
    model = network(attention)
    model.quantize(mode)
    copy = insert_attention(model, after="head", layer=layers.Identity)
    np.testing.assert_array_equal(
        keras.ops.convert_to_numpy(copy(X)), keras.ops.convert_to_numpy(model(X))
    )
