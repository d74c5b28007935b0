"""Networks of every kind are copied with all that they carry."""

import keras
import numpy as np
import pytest
from keras import layers, ops
from surgery_models import (
    assert_same,
    attentions,
    differ,
    images,
    network,
    run,
    scrambled,
    trained,
)

from keras_coordatt import (
    CoordinateAttention,
    fuse_attention,
    insert_attention,
)

apps = keras.applications


def test_nested_models():
    backbone = network(name="backbone")
    preprocessing = keras.Sequential([layers.Rescaling(0.5)], name="preprocessing")
    head = keras.Sequential(
        [layers.DepthwiseConv2D(3, name="head_depthwise"), layers.Flatten()],
        name="head",
    )
    inputs = keras.Input((8, 8, 6))
    x = preprocessing(inputs)
    x = head(backbone(backbone(x)))
    model = keras.Model(inputs, layers.Dense(3)(x))
    new = insert_attention(model)
    x = images(2, 8, 8, 6)
    assert_same(model, new, x)
    names = [layer.name for layer in attentions(new)]
    assert names == ["depthwise_attention", "head_depthwise_attention"]
    assert [layer.name for layer in new.layers] == [x.name for x in model.layers]
    assert isinstance(new.get_layer("preprocessing"), keras.Sequential)
    trained(new)
    assert_same(new, fuse_attention(new), x)
    assert differ(model, new, x)


def test_sequential():
    model = keras.Sequential(
        [
            keras.Input((8, 8, 4)),
            layers.DepthwiseConv2D(3, name="depthwise"),
            layers.ReLU(),
            layers.Conv2D(2, 1),
        ],
        name="sequential",
    )
    new = insert_attention(model)
    assert_same(model, new, images(2, 8, 8, 4))
    assert [type(layer) for layer in new.layers[1:]] == [
        layers.DepthwiseConv2D,
        layers.ReLU,
        CoordinateAttention,
        layers.Conv2D,
    ]
    assert (new.name, new.input_shape) == ("sequential", (None, 8, 8, 4))


@pytest.mark.parametrize("after", ["^depthwise$", "^inner$", "depthwise|inner"])
def test_a_nested_sequential_that_is_called_at_two_sizes(after):
    nested = keras.Sequential(
        [
            keras.Input((None, None, 3)),
            layers.DepthwiseConv2D(3, name="inner"),
            layers.ReLU(),
            layers.Conv2D(4, 1),
        ],
        name="nested",
    )
    depthwise = layers.DepthwiseConv2D(3, name="depthwise")
    a, b = keras.Input((8, 8, 3)), keras.Input((12, 12, 3))
    model = keras.Model([a, b], [depthwise(nested(a)), depthwise(nested(b))])
    new = insert_attention(model, after)
    x = [images(2, 8, 8, 3), images(2, 12, 12, 3)]
    assert_same(model, new, x)
    trained(new)
    assert differ(model, new, x)
    assert_same(new, fuse_attention(new), x)


def test_shared_layers_share_attention():
    shared = layers.DepthwiseConv2D(3, padding="same", name="shared")
    a, b = keras.Input((8, 8, 4), name="a"), keras.Input((8, 8, 4), name="b")
    x = layers.ReLU()(shared(a))
    y = layers.BatchNormalization()(shared(shared(b)))
    model = scrambled(keras.Model({"a": a, "b": b}, {"sum": x + y, "y": y}))
    new = insert_attention(model)
    x = {"a": images(2, 8, 8, 4), "b": images(2, 8, 8, 4, seed=1)}
    assert_same(model, new, x)
    assert [layer.name for layer in attentions(new)] == ["shared_attention"]
    assert set(new(x)) == {"sum", "y"}
    count = sum(isinstance(x, layers.DepthwiseConv2D) for x in new.layers)
    assert count == 1
    trained(new)
    assert_same(new, fuse_attention(new), x)


def test_a_layer_shared_with_a_nested_model():
    shared = layers.DepthwiseConv2D(3, padding="same", name="shared")
    inner_inputs = keras.Input((8, 8, 4))
    inner = keras.Model(inner_inputs, shared(inner_inputs), name="inner")
    inputs = keras.Input((8, 8, 4))
    model = keras.Model(inputs, inner(shared(inputs)))
    new = insert_attention(model)
    x = images(2, 8, 8, 4)
    assert_same(model, new, x)
    inner = new.get_layer("inner")
    for name in ("shared", "shared_attention"):
        assert inner.get_layer(name) is new.get_layer(name)
    trained(new)
    assert_same(new, fuse_attention(new), x)


def test_outputs():
    inputs = keras.Input((8, 8, 4))
    x = layers.DepthwiseConv2D(3, name="depthwise")(inputs)
    y = layers.BatchNormalization(name="norm")(x)
    z = layers.Conv2D(2, 1, name="conv")(y)
    model = scrambled(keras.Model(inputs, [x, z]))
    new = insert_attention(model)
    x = images(2, 8, 8, 4)
    assert_same(model, new, x)
    # The first output is the attention's.
    assert new.output_names == ["depthwise_attention", "conv"]
    trained(new)
    assert np.abs(run(new, x)[0] - run(model, x)[0]).max() > 0.01
    assert_same(new, fuse_attention(new), x)


def test_behind_a_nested_model():
    backbone = network(name="backbone")
    inputs = keras.Input((8, 8, 6))
    model = keras.Model(inputs, layers.Conv2D(2, 1)(backbone(inputs)))
    new = insert_attention(model, "^backbone$")
    assert [layer.name for layer in attentions(new)] == ["backbone_attention"]
    assert_same(model, new, images(2, 8, 8, 6))


def test_layers_that_carry_more_than_weights():
    norm = layers.Normalization()
    norm.adapt(images(9, 8, 8, 4) * 3 + 1)
    offset = 0.5
    inputs = keras.Input((8, 8, 4))
    x = layers.Lambda(lambda x: x - offset)(norm(inputs))
    x = layers.DepthwiseConv2D(3)(ops.concatenate([x, x * 2], axis=-1))
    x = layers.Dropout(0.5, seed=1)(x)
    model = keras.Model(inputs, x)
    new = insert_attention(model)
    x = images(2, 8, 8, 4)
    assert_same(model, new, x)
    assert_same(model, new, x, training=True)


# Precision and data format


@pytest.mark.parametrize("dtype", ["mixed_float16", "mixed_bfloat16", "float16"])
def test_precision(dtype):
    keras.config.set_dtype_policy(dtype)
    try:
        model = network()
    finally:
        keras.config.set_dtype_policy("float32")
    new = insert_attention(model)
    (attention,) = attentions(new)
    assert attention.dtype_policy.name == dtype
    assert {layer.dtype_policy.name for layer in new.layers[1:]} == {dtype}
    assert new.output.dtype == model.output.dtype
    x = images(2, 8, 8, 6)
    assert_same(model, new, x)
    trained(new)
    assert_same(new, fuse_attention(new), x)


@pytest.mark.parametrize("mode", ["int8", "float8"])
def test_attention_behind_a_quantized_layer_is_trained(mode):
    inputs = keras.Input((8, 8, 6))
    x = layers.ReLU()(layers.Dense(4, name="dense")(inputs))
    model = scrambled(keras.Model(inputs, layers.Dense(3, name="last")(x)))
    model.quantize(mode)
    new = insert_attention(model, "dense")
    (attention,) = attentions(new)
    assert {weight.dtype for weight in attention.weights} == {"float32"}
    assert len(attention.trainable_weights) == 8
    assert new.get_layer("dense").quantization_mode == mode
    assert_same(model, new, images(2, 8, 8, 6))


def test_channels_first():
    inputs = keras.Input((4, 8, 7))
    x = layers.DepthwiseConv2D(3, data_format="channels_first", name="a")(inputs)
    x = layers.BatchNormalization(axis=1)(x)
    x = layers.ReLU(name="relu")(x)
    x = layers.Conv2D(3, 1, data_format="channels_first")(x)
    model = scrambled(keras.Model(inputs, x))
    x = images(2, 4, 8, 7)
    # A ReLU does not know the data format, but the network has only one.
    for after in ("depthwise", "relu"):
        new = insert_attention(model, after)
        (attention,) = attentions(new)
        assert attention.data_format == "channels_first"
        assert attention.shared.kernel.shape[0] == 4
        assert_same(model, new, x)


# The old model, and the new


def test_the_old_model_is_left_alone():
    model = network()
    model.compile(keras.optimizers.SGD(0.1), "mse")
    x, y = images(4, 8, 8, 6), images(4, 8, 8, 6, seed=1)
    weights, config = model.get_weights(), model.get_config()
    new = insert_attention(model)
    assert not new.compiled
    assert model.compiled
    assert model.get_config() == config

    new.compile(keras.optimizers.SGD(0.1), "mse")
    new.fit(x, y, epochs=2, verbose=0)
    for weight, expected in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(weight, expected)
    trained_weights = new.get_weights()
    model.fit(x, y, epochs=1, verbose=0)
    for weight, expected in zip(new.get_weights(), trained_weights, strict=True):
        np.testing.assert_array_equal(weight, expected)
    run(new, x)


def test_frozen_layers_stay_frozen():
    backbone = network(name="backbone")
    backbone.trainable = False
    inputs = keras.Input((8, 8, 6))
    model = keras.Model(inputs, layers.Conv2D(2, 1)(backbone(inputs)))
    new = insert_attention(model)
    (attention,) = attentions(new)
    ours = {id(w) for w in new.trainable_weights}
    assert ours == {
        id(w) for layer in (attention, new.layers[-1]) for w in layer.trainable_weights
    }
    assert len(ours) == 8 + 2


def test_every_new_weight_learns_and_the_loss_falls():
    model = network()
    new = insert_attention(model)
    (attention,) = attentions(new)
    before = attention.get_weights()
    x = images(8, 8, 8, 6)
    target = run(model, x)[0] * np.linspace(0.2, 1.8, 8)[:, None]
    new.compile(keras.optimizers.Adam(0.01), "mse")
    losses = new.fit(x, target, epochs=15, batch_size=8, verbose=0).history["loss"]
    assert losses[-1] < 0.8 * losses[0]
    for weight, old in zip(attention.weights, before, strict=True):
        # Normalization takes the shared bias away, so it has no gradient.
        if weight is not attention.shared.bias:
            assert np.abs(ops.convert_to_numpy(weight) - old).max() > 1e-5, weight.path


def test_saving(tmp_path):
    new = trained(insert_attention(network()))
    new.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert_same(new, loaded, images(2, 8, 8, 6))
    for ours, theirs in zip(loaded.layers, new.layers, strict=True):
        assert ours.get_config() == theirs.get_config()


def with_frozen_normalization():
    model = trained(insert_attention(network()))
    for layer in attentions(model):
        layer.norm.trainable = False
    return model


@pytest.mark.parametrize(
    "operation", [fuse_attention, lambda model: insert_attention(model, "project")]
)
def test_frozen_normalization_inside_attention_stays_frozen(operation):
    model = with_frozen_normalization()
    new = operation(model)
    (frozen,) = [x for x in attentions(new) if x.name == attentions(model)[0].name]
    assert not frozen.norm.trainable and frozen.shared.trainable
    before = frozen.norm.get_weights()
    new(images(2, 8, 8, 6), training=True)
    for old, now in zip(before, frozen.norm.get_weights(), strict=True):
        np.testing.assert_array_equal(now, old)


def test_a_frozen_part_of_a_layer_stays_frozen():
    inputs = keras.Input((8, 8, 6))
    wrapper = layers.TimeDistributed(layers.BatchNormalization(), name="wrapper")
    model = keras.Model(inputs, layers.Conv2D(4, 1, name="conv")(wrapper(inputs)))
    wrapper.layer.trainable = False
    new = insert_attention(model, "conv")
    assert not new.get_layer("wrapper").layer.trainable
    assert new.get_layer("wrapper").trainable
