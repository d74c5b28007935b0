"""The extra factor of identity-initialized attention is fused into its neighbors."""

import keras
import pytest
from keras import layers, ops
from surgery_models import (
    assert_same,
    attentions,
    differ,
    images,
    network,
    scrambled,
    trained,
)

from keras_coordatt import (
    CoordinateAttention,
    fuse_attention,
    insert_attention,
)
from keras_coordatt.layers import atrous
from keras_coordatt.layers.coordinate_attention import GATE_AT_ZERO

apps = keras.applications


def behind(*follow):
    """A network with attention, and layers behind it."""

    def build(**arguments):
        inputs = keras.Input((8, 8, 4))
        x = layers.DepthwiseConv2D(3, activation="relu6")(inputs)
        x = CoordinateAttention(identity_init=True, **arguments)(x)
        for layer in follow:
            x = layer(x)
        return trained(scrambled(keras.Model(inputs, x)))

    return build


def squeeze_excite(x):
    y = layers.GlobalAveragePooling2D(keepdims=True)(x)
    y = layers.Conv2D(4, 1, activation="sigmoid")(layers.Conv2D(2, 1)(y))
    return layers.Conv2D(3, 1)(layers.Multiply()([x, y]))


def branches(x):
    y = layers.Conv2D(2, 3, padding="same")(x)
    z = layers.ReLU()(layers.MaxPooling2D(1)(x))
    return layers.Concatenate()([y, layers.SeparableConv2D(2, 1)(z)])


FOLLOW = {
    "convolution": behind(lambda x: layers.Conv2D(3, 3, activation="gelu")(x)),
    "atrous convolution": behind(
        lambda x: atrous.Conv2D(3, 3, padding="same", dilation_rate=9)(x)
    ),
    "depthwise": behind(lambda x: layers.DepthwiseConv2D(3)(x)),
    "separable": behind(lambda x: layers.SeparableConv2D(3, 3)(x)),
    "dense": behind(lambda x: layers.Dense(3)(layers.Flatten()(x))),
    "normalization": behind(lambda x: layers.BatchNormalization()(x)),
    "padding": behind(lambda x: layers.Conv2D(3, 3)(layers.ZeroPadding2D()(x))),
    "squeeze-and-excitation": behind(squeeze_excite),
    "branches": behind(branches),
    "another attention": behind(
        lambda x: CoordinateAttention(identity_init=True)(x),
        lambda x: layers.Conv2D(3, 1)(x),
    ),
}


@pytest.mark.parametrize("build", FOLLOW.values(), ids=FOLLOW)
def test_factor_is_fused_into_the_following_layer(build):
    model = build()
    fused = fuse_attention(model)
    assert_same(model, fused, images(2, 8, 8, 4))
    assert not any(layer.identity_init for layer in attentions(fused))
    assert all(layer.identity_init for layer in attentions(model))


@pytest.mark.parametrize("gate_activation", GATE_AT_ZERO)
@pytest.mark.parametrize("axes", ["both", "height", "width"])
def test_every_gate_fuses(axes, gate_activation):
    model = FOLLOW["convolution"](axes=axes, gate_activation=gate_activation)
    fused = fuse_attention(model)
    assert_same(model, fused, images(2, 8, 8, 4))
    assert not any(layer.identity_init for layer in attentions(fused))


@pytest.mark.parametrize("first", ["convolution", "normalization"])
def test_factor_is_fused_into_the_preceding_layer(first):
    inputs = keras.Input((8, 8, 4))
    x = layers.Conv2D(4, 1, name="first")(inputs)
    if first == "normalization":
        x = layers.ReLU()(layers.BatchNormalization()(x))
    x = CoordinateAttention(identity_init=True)(x)
    x = layers.Add()([inputs, x])
    model = trained(scrambled(keras.Model(inputs, layers.Activation("gelu")(x))))
    fused = fuse_attention(model)
    assert_same(model, fused, images(2, 8, 8, 4))
    assert not attentions(fused)[0].identity_init


def unlike_subclass():
    @keras.saving.register_keras_serializable("tests")
    class Standardized(layers.Conv2D):
        def convolution_op(self, inputs, kernel):
            return super().convolution_op(inputs, kernel / ops.std(kernel))

    return Standardized(3, 1)


def called_twice(layer, x):
    return layers.Add()([layer(x), layer(layers.Conv2D(4, 1)(x))])


STAYS = {
    "activation": lambda x: layers.Activation("gelu")(x),
    "residual": lambda x: layers.Conv2D(3, 1)(layers.Add()([x, layers.ReLU(6.0)(x)])),
    "no scale": lambda x: layers.BatchNormalization(scale=False)(x),
    "subclass": lambda x: unlike_subclass()(x),
    "shared": lambda x: called_twice(layers.Conv2D(3, 1), x),
    "output": lambda x: x,
}


@pytest.mark.parametrize("follow", STAYS.values(), ids=STAYS)
def test_factor_stays_if_no_neighbor_can_take_it(follow):
    model = behind(follow)()
    fused = fuse_attention(model)
    assert_same(model, fused, images(2, 8, 8, 4))
    assert all(layer.identity_init for layer in attentions(fused))


def test_nothing_to_fuse():
    model = network()
    assert_same(model, fuse_attention(model), images(2, 8, 8, 6))


def test_fused_layer_is_a_plain_one_of_other_weights():
    model, x = network(), images(2, 8, 8, 6)
    plain = insert_attention(model, layer=CoordinateAttention)
    new = trained(insert_attention(model))
    fused = fuse_attention(new)
    plain.set_weights(fused.get_weights())
    assert_same(fused, plain, x)
    # The factor, which fusing moves, is not a weight.
    plain.set_weights(new.get_weights())
    assert differ(new, plain, x)


@pytest.mark.parametrize("mode", ["int8", "lora"])
def test_quantized_attention_is_copied_and_not_fused(mode):
    model = trained(insert_attention(network()))
    (attention,) = attentions(model)
    for part in attention.sublayers():
        if isinstance(part, layers.Dense):
            part.enable_lora(2) if mode == "lora" else part.quantize(mode)
    for new in (fuse_attention(model), insert_attention(model, "project")):
        copy = new.get_layer(attention.name)
        assert copy.identity_init
        assert_same(model, new, images(2, 8, 8, 6))
