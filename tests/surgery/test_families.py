"""Attention in the families of `keras.applications`.

They are cut off where their blocks begin to repeat, and built once each. TensorFlow tries
them all, the other backends those of FEW; JAX, which compiles each layer, the first two.
"""

import keras
import numpy as np
import pytest
from backends import BACKEND
from keras import ops
from surgery_models import (
    application,
    assert_same,
    attentions,
    differ,
    images,
    run,
    scrambled,
    tap,
    trained,
)

from keras_coordatt import (
    fuse_attention,
    insert_attention,
)

apps = keras.applications


def xception():
    return apps.Xception(input_shape=(71, 71, 3), weights=None, include_top=False)


# Builder, the last layer to keep (the deep ones repeat themselves), `after`, and the
# matched layers.
FAMILIES = {
    "MobileNet": (
        application(apps.MobileNet, alpha=0.25),
        "conv_pw_6_relu",
        "depthwise",
        [f"conv_dw_{i}" for i in range(1, 7)],
    ),
    "MobileNetV2": (
        application(apps.MobileNetV2, alpha=0.35),
        "block_4_add",
        r"^block_\d+_depthwise$",
        [f"block_{i}_depthwise" for i in range(1, 5)],
    ),
    "MobileNetV3Small": (
        application(apps.MobileNetV3Small),
        "expanded_conv_4_add",
        "depthwise",
        ["expanded_conv_depthwise"]
        + [f"expanded_conv_{i}_depthwise" for i in range(1, 5)],
    ),
    "MobileNetV3Large": (
        application(apps.MobileNetV3Large),
        "expanded_conv_7_add",
        "depthwise",
        ["expanded_conv_depthwise"]
        + [f"expanded_conv_{i}_depthwise" for i in range(1, 8)],
    ),
    "EfficientNetB0": (
        application(apps.EfficientNetB0),
        "block3b_add",
        "depthwise",
        [f"block{i}_dwconv" for i in ("1a", "2a", "2b", "3a", "3b")],
    ),
    "EfficientNetV2B0": (
        application(apps.EfficientNetV2B0),
        "block4c_add",
        "depthwise",
        [f"block{i}_dwconv2" for i in ("4a", "4b", "4c")],
    ),
    "ResNet50": (
        application(apps.ResNet50),
        "conv3_block1_out",
        r"block\d_2_conv$",
        [f"conv2_block{i}_2_conv" for i in (1, 2, 3)] + ["conv3_block1_2_conv"],
    ),
    "ResNet50V2": (
        application(apps.ResNet50V2),
        "conv3_block1_out",
        r"block\d_2_conv$",
        [f"conv2_block{i}_2_conv" for i in (1, 2, 3)] + ["conv3_block1_2_conv"],
    ),
    "DenseNet121": (
        application(apps.DenseNet121),
        "pool2_pool",
        r"conv\d_block\d+_1_conv",
        [f"conv2_block{i}_1_conv" for i in range(1, 7)],
    ),
    "Xception": (
        xception,
        "block5_sepconv3_bn",
        "depthwise",
        [f"block{i}_sepconv{j}" for i in (2, 3, 4) for j in (1, 2)]
        + [f"block5_sepconv{j}" for j in (1, 2, 3)],
    ),
    "NASNetMobile": (
        application(apps.NASNetMobile),
        "reduction_concat_stem_1",
        "depthwise",
        [
            f"separable_conv_{i}_reduction_{branch}_stem_1"
            for i in (1, 2)
            for branch in ("left1", "left4", "right1", "right2", "right3")
        ],
    ),
    "ConvNeXtTiny": (
        application(apps.ConvNeXtTiny),
        "convnext_tiny_stage_2_block_0_layernorm",
        lambda layer: layer.name.endswith("pointwise_conv_1"),
        [
            f"convnext_tiny_stage_{i}_block_{j}_pointwise_conv_1"
            for i in (0, 1)
            for j in (0, 1, 2)
        ],
    ),
}
FEW = ("MobileNetV2", "MobileNetV3Small", "ResNet50V2", "ConvNeXtTiny")
if BACKEND == "jax":
    FEW = FEW[:2]


@pytest.fixture(scope="module")
def family(request):
    """A family's name, its network, the network with attention, and an input."""
    build, last, after, _ = FAMILIES[request.param]
    model = scrambled(tap(build(), last))
    # Some take pixels and scale them.
    pixels = images(2, *model.input_shape[1:]) * 50 + 127
    return request.param, model, insert_attention(model, after), pixels.clip(0, 255)


each_family = pytest.mark.parametrize(
    "family",
    [
        pytest.param(name, marks=pytest.mark.slow if name == "NASNetMobile" else ())
        for name in FAMILIES
        if BACKEND == "tensorflow" or name in FEW
    ],
    indirect=True,
    scope="module",
)


@each_family
def test_families_keep_their_outputs(family):
    _, model, new, x = family
    assert_same(model, new, x)


@each_family
def test_families_get_attention_behind_the_expected_layers(family):
    name, model, new, _ = family
    names = {f"{matched}_attention" for matched in FAMILIES[name][3]}
    assert {layer.name for layer in attentions(new)} == names
    old = {layer.name: layer for layer in model.layers}
    assert {layer.name for layer in new.layers} == names | old.keys()
    for layer in new.layers:
        if layer.name in old:
            assert layer is not old[layer.name]
            for weight, expected in zip(
                layer.get_weights(), old[layer.name].get_weights(), strict=True
            ):
                np.testing.assert_array_equal(weight, expected)


@each_family
def test_families_fuse(family):
    _, model, new, x = family
    weights = new.get_weights()
    trained(new)
    fused = fuse_attention(new)
    assert_same(new, fused, x)
    assert differ(model, fused, x)
    assert not any(layer.identity_init for layer in attentions(fused))
    new.set_weights(weights)


@pytest.mark.parametrize("mode", ["predict", "training"])
def test_compiled_outputs_are_the_same(mode):
    model = application(apps.MobileNetV2, alpha=0.35)()
    model = scrambled(tap(model, "block_2_add"))
    new = insert_attention(model)
    x = images(2, 32, 32, 3)
    if mode == "training":
        assert_same(model, new, x, training=True)
    # After training=True, both have updated their statistics on the same batch.
    y, expected = (m.predict(x, verbose=0) for m in (new, model))
    np.testing.assert_array_equal(y, expected)


def test_parameters_are_the_papers():
    # The official network of this width has 1,750,970 trainable parameters.
    model = apps.MobileNetV2((32, 32, 3), 0.35, weights=None)
    new = insert_attention(model, r"^block_\d+_depthwise$")
    count = sum(np.prod(weight.shape) for weight in new.trainable_weights)
    assert count == 1_750_970


def test_only_the_attention_of_a_family_learns():
    model = application(apps.MobileNetV2, alpha=0.35)()
    model = scrambled(tap(model, "block_2_add"))
    model.trainable = False
    new = insert_attention(model, r"^block_\d+_depthwise$")
    assert len(new.trainable_weights) == 2 * 8
    x = images(8, 32, 32, 3)
    target = run(model, x)[0] * np.linspace(0.5, 1.5, 8)
    new.compile(keras.optimizers.Adam(0.01), "mse")
    losses = new.fit(x, target, epochs=6, batch_size=8, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    for attention in attentions(new):
        for gate in attention.gates.values():
            assert np.abs(ops.convert_to_numpy(gate.kernel)).max() > 0
