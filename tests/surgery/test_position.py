"""Positions of inserted attention, and invalid arguments."""

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
    tap,
    trained,
)

from keras_coordatt import (
    CoordinateAttention,
    fuse_attention,
    insert_attention,
)

apps = keras.applications


@pytest.mark.parametrize(
    "after, name, reads",
    [
        ("depthwise", "depthwise_attention", "depthwise_relu"),
        ("wise$", "depthwise_attention", "depthwise_relu"),
        ("depthwise_bn", "depthwise_bn_attention", "depthwise_relu"),
        ("_relu$", "depthwise_relu_attention", "depthwise_relu"),
        # All three are followed by the same position.
        ("^depthwise", "depthwise_attention", "depthwise_relu"),
        (lambda x: x.name == "project", "project_attention", "project_bn"),
        (
            lambda x: isinstance(x, layers.ReLU),
            "depthwise_relu_attention",
            "depthwise_relu",
        ),
        ("expand", "expand_attention", "expand"),
        ("add", "add_attention", "add"),
    ],
)
def test_position(after, name, reads):
    model = network()
    new = insert_attention(model, after)
    (attention,) = attentions(new)
    assert attention.name == name
    x = images(2, 8, 8, 6)
    before = keras.Model(new.input, attention.input)
    np.testing.assert_array_equal(run(before, x)[0], run(tap(model, reads), x)[0])
    assert_same(model, new, x)
    # The following layers read the output of the attention.
    trained(new)
    assert differ(model, new, x)


def test_depthwise_by_groups():
    inputs = keras.Input((8, 8, 4))
    x = layers.Conv2D(4, 3, groups=4, name="depthwise")(inputs)
    x = layers.Conv2D(8, 3, groups=4, activation="relu", name="multiplied")(x)
    x = layers.Conv2D(8, 3, groups=4, name="grouped")(x)
    x = layers.Conv2D(1, 1, name="projection")(x)
    x = layers.Conv2D(2, 1, name="of_one_channel")(x)
    model = keras.Model(inputs, x)
    new = insert_attention(model)
    names = [layer.name for layer in attentions(new)]
    assert names == ["depthwise_attention", "multiplied_attention"]


def test_a_compiled_pattern_named_depthwise():
    import re

    new = insert_attention(network(), re.compile("depthwise"))
    assert [layer.name for layer in attentions(new)] == ["depthwise_attention"]


def test_the_unit_ends_where_another_layer_reads():
    inputs = keras.Input((8, 8, 4))
    x = layers.DepthwiseConv2D(3, name="a")(inputs)
    y = layers.BatchNormalization()(x)
    z = layers.ReLU()(y)
    model = scrambled(keras.Model(inputs, layers.Concatenate()([x, y, z])))
    new = insert_attention(model)
    assert_same(model, new, images(2, 8, 8, 4))
    reads = keras.Model(new.input, new.get_layer("a_attention").input)
    x = images(2, 8, 8, 4)
    np.testing.assert_array_equal(run(reads, x)[0], run(tap(model, "a"), x)[0])


def test_one_normalization_and_one_activation():
    # The next block begins with a normalization and an activation of its own.
    inputs = keras.Input((8, 8, 4))
    x = layers.DepthwiseConv2D(3, activation="relu", name="a")(inputs)
    x = layers.LayerNormalization(name="a_norm")(x)
    x = layers.Activation("gelu", name="next_act")(x)
    x = layers.DepthwiseConv2D(3, name="b")(x)
    x = ops.relu6(x)
    x = layers.GroupNormalization(2, name="b_norm")(x)
    x = layers.BatchNormalization(name="next_norm")(x)
    model = scrambled(keras.Model(inputs, x))
    new = insert_attention(model)
    x = images(2, 8, 8, 4)
    for name in "ab":
        reads = keras.Model(new.input, new.get_layer(f"{name}_attention").input)
        expected = run(tap(model, f"{name}_norm"), x)[0]
        np.testing.assert_array_equal(run(reads, x)[0], expected)
    assert_same(model, new, x)


def test_layer_by_its_class_is_named():
    new = insert_attention(network(), layer=CoordinateAttention)
    (attention,) = attentions(new)
    assert attention.name == "depthwise_attention"
    assert not attention.identity_init


def test_layer_without_a_name():
    model = network()
    new = insert_attention(model, layer=lambda: layers.Activation("tanh", name="t"))
    x = images(2, 8, 8, 6)
    expected = np.tanh(run(tap(model, "depthwise_relu"), x)[0])
    np.testing.assert_allclose(run(tap(new, "t"), x)[0], expected, atol=1e-6)


# Invalid arguments


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            {"after": "no_such"},
            "`after` matched no layer.*'no_such'.*expand, depthwise",
        ),
        ({"after": lambda layer: False}, "`after` matched no layer.*lambda.*expand"),
        ({"after": "("}, "`after` is not a valid regular expression.*Received: '\\('"),
        ({"after": 3}, "`after` must be.*Received: 3"),
        ({"after": layers.ReLU()}, "`after` must be.*Received: <ReLU"),
        ({"after": None}, "`after` must be.*Received: None"),
        ({"layer": "coordinate"}, "`layer`.*Received: 'coordinate'"),
        ({"layer": CoordinateAttention()}, "`layer`.*Received: <CoordinateAttention"),
        ({"replace": "se"}, "`replace` must be one of.*squeeze_excite.*'se'"),
        ({"replace": "squeeze_excite"}, "`replace` found no squeeze_excite.*expand"),
        (
            {"replace": "squeeze_excite", "after": "expand"},
            "`after` must keep its default.*Received: after='expand'",
        ),
    ],
)
def test_wrong_argument(arguments, message):
    with pytest.raises(ValueError, match=message):
        insert_attention(network(), **arguments)


def test_nothing_matched_lists_the_layers_of_nested_models():
    backbone = network(name="backbone")
    inputs = keras.Input((8, 8, 6))
    model = keras.Model(inputs, layers.Flatten(name="flat")(backbone(inputs)))
    with pytest.raises(ValueError, match="backbone, flat, expand, depthwise"):
        insert_attention(model, "no_such")


def test_output_must_be_a_feature_map():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, name="dense")])
    with pytest.raises(ValueError, match=r"map.*'dense'.*\(None, 3\)"):
        insert_attention(model, "dense")


def test_twice():
    new = insert_attention(network())
    with pytest.raises(ValueError, match="already has.*'depthwise_attention'"):
        insert_attention(new)


def test_layer_must_give_a_layer():
    with pytest.raises(TypeError, match="`layer` must return a Keras layer.*'not a l"):
        insert_attention(network(), layer=lambda: "not a layer")


class Subclassed(keras.Model):
    def call(self, inputs):
        return inputs


@pytest.mark.parametrize("edit", [insert_attention, fuse_attention])
@pytest.mark.parametrize(
    "model", [Subclassed(), keras.Sequential([layers.ReLU()]), layers.ReLU(), "model"]
)
def test_wrong_model(edit, model):
    with pytest.raises(ValueError, match="`model` must be functional.*Received"):
        edit(model)
