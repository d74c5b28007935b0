"""Attention in place of squeeze-and-excitation."""

import keras
import pytest
from backends import BACKEND
from keras import layers, ops
from surgery_models import (
    application,
    assert_same,
    attentions,
    differ,
    images,
    scrambled,
    tap,
)

from keras_coordatt import (
    CoordinateAttention,
    MobileNetV2CA,
    SqueezeExcite,
    insert_attention,
)

apps = keras.applications


def gates_opened(model):
    """Sets the gates of every squeeze-and-excitation of a family to 1."""
    for layer in model.layers:
        if layer.name.endswith(("se_expand", "squeeze_excite_conv_1")):
            kernel, bias = layer.get_weights()
            layer.set_weights([0 * kernel, 0 * bias + 100])
    return model


@pytest.mark.parametrize(
    "builder, last, product, count",
    [
        (apps.MobileNetV3Small, "expanded_conv_4_add", "squeeze_excite_mul", 3),
        (apps.EfficientNetB0, "block2b_add", "se_excite", 3),
        (apps.EfficientNetV2B0, "block4b_add", "se_excite", 2),
    ][: None if BACKEND == "tensorflow" else 1],
)
def test_replace_squeeze_excite(builder, last, product, count):
    model = scrambled(tap(application(builder)(), last))
    new = insert_attention(model, replace="squeeze_excite")
    names = [x.name for x in model.layers if x.name.endswith(product)]
    assert {x.name for x in attentions(new)} == {f"{x}_attention" for x in names}
    assert len(names) == count
    left = [x.name for x in new.layers if "_se_" in x.name or "squeeze" in x.name]
    assert sorted(left) == sorted(f"{x}_attention" for x in names)

    x = (images(2, 32, 32, 3) * 50 + 127).clip(0, 255)
    assert differ(model, new, x)
    assert_same(gates_opened(model), new, x)


def test_replace_our_own_squeeze_excite():
    model = MobileNetV2CA((32, 32, 3), 0.25, False, None, attention="se")
    model = tap(model, "block_2_add")
    new = insert_attention(model, replace="squeeze_excite")
    assert len(attentions(new)) == 2
    assert not any(isinstance(x, SqueezeExcite) for x in new.layers)
    # The names stay, so that weights find their layers.
    assert [x.name for x in new.layers] == [x.name for x in model.layers]


def gated(gate, pool=layers.GlobalAveragePooling2D):
    inputs = keras.Input((8, 8, 4))
    x = layers.Conv2D(4, 1)(inputs)
    y = pool(keepdims=True)(x)
    for _ in range(gate):
        y = layers.Dense(4, activation="sigmoid")(y)
    return inputs, x, y


def test_squeeze_excite_of_dense_layers_and_an_operation():
    inputs, x, y = gated(2)
    new = insert_attention(keras.Model(inputs, y * x), replace="squeeze_excite")
    assert [type(x) for x in new.layers[1:]] == [layers.Conv2D, CoordinateAttention]


def mean(axes, keepdims=True):
    return lambda **_: lambda x: ops.mean(x, axes, keepdims)


@pytest.mark.parametrize("dtype", ["float32", "mixed_float16"])
@pytest.mark.parametrize("keepdims", [True, False])
@pytest.mark.parametrize("axes", [(1, 2), [-2, -3]])
def test_squeeze_excite_that_pools_by_an_operation(axes, keepdims, dtype):
    keras.config.set_dtype_policy(dtype)
    try:
        inputs, x, y = gated(2, mean(axes, keepdims))
        y = y if keepdims else layers.Reshape((1, 1, 4))(y)
        model = keras.Model(inputs, layers.Multiply()([y, x]))
    finally:
        keras.config.set_dtype_policy("float32")
    new = insert_attention(model, replace="squeeze_excite")
    assert [type(x) for x in new.layers[1:]] == [layers.Conv2D, CoordinateAttention]
    assert new.layers[2].dtype_policy.name == dtype


def test_squeeze_excite_that_pools_by_an_operation_channels_first():
    inputs = keras.Input((4, 8, 8))
    y = ops.mean(inputs, (2, 3), keepdims=True)
    for _ in range(2):
        y = layers.Conv2D(4, 1, data_format="channels_first")(y)
    new = insert_attention(keras.Model(inputs, inputs * y), replace="squeeze_excite")
    (attention,) = attentions(new)
    assert attention.data_format == "channels_first"


OTHER_POOLING = {
    "maximum": layers.GlobalMaxPooling2D,
    "mean of a row": mean((2,)),
    "mean over channels": mean((2, 3)),
    "mean of all": mean(None),
}


@pytest.mark.parametrize(
    "case", ["one layer", "gate is read", "other map", *OTHER_POOLING]
)
def test_other_structures_are_not_replaced(case):
    pool = OTHER_POOLING.get(case, layers.GlobalAveragePooling2D)
    inputs, x, y = gated(1 if case == "one layer" else 2, pool)
    outputs = [layers.Multiply()([inputs if case == "other map" else x, y])]
    if case == "gate is read":
        outputs.append(y)
    with pytest.raises(ValueError, match="`replace` found no squeeze_excite.*conv2d"):
        insert_attention(keras.Model(inputs, outputs), replace="squeeze_excite")
