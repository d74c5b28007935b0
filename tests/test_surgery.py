"""The families of `keras.applications` are cut off where their blocks begin to repeat,
and built once each. TensorFlow tries them all, the other backends those of FEW."""

import keras
import numpy as np
import pytest
from backends import BACKEND, needs_tensorflow
from keras import layers, ops

from keras_coordatt import (
    CoordinateAttention,
    MobileNetV2CA,
    SqueezeExcite,
    fuse_attention,
    insert_attention,
)
from keras_coordatt.layers.coordinate_attention import GATE_AT_ZERO

apps = keras.applications


@pytest.fixture(autouse=True)
def seed():
    keras.utils.set_random_seed(0)


def images(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def scrambled(model, seed=0):
    """Gives every weight that has a constant initializer a random value."""
    rng = np.random.default_rng(seed)
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            scrambled(layer, seed + 1)
            continue
        for weight in layer.weights:
            if len(weight.shape) < 2:
                weight.assign(rng.uniform(0.5, 1.5, weight.shape))
        if isinstance(layer, layers.Normalization):
            layer.finalize_state()
    return model


def trained(model, seed=0):
    """Gives the attention layers random weights, as if they were trained."""
    rng = np.random.default_rng(seed)
    for layer in attentions(model):
        for weight in layer.weights:
            weight.assign(rng.uniform(0.2, 0.8, weight.shape))
        for gate in layer.gates.values():
            gate.kernel.assign(rng.uniform(-1, 1, gate.kernel.shape))
    return model


def attentions(model):
    found = []
    for layer in model.layers:
        if isinstance(layer, CoordinateAttention):
            found.append(layer)
        elif isinstance(layer, keras.Model):
            found += attentions(layer)
    return found


def run(model, x, **kwargs):
    """The outputs, without a compiler, as a list of arrays."""
    outputs = model(x, **kwargs)
    return [
        ops.convert_to_numpy(ops.cast(y, "float32"))
        for y in keras.tree.flatten(outputs)
    ]


def assert_same(model, other, x, **kwargs):
    for y, expected in zip(
        run(other, x, **kwargs), run(model, x, **kwargs), strict=True
    ):
        np.testing.assert_array_equal(y, expected)
        assert np.ptp(y) > 0


def differ(model, other, x):
    return any(np.abs(a - b).max() > 1e-6 for a, b in zip(run(model, x), run(other, x)))


def tap(model, name):
    return keras.Model(model.input, model.get_layer(name).output)


def network(channels=6, name="network"):
    """An inverted residual."""
    inputs = keras.Input((8, 8, channels))
    y = layers.Conv2D(12, 1, name="expand")(inputs)
    y = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="depthwise")(y)
    y = layers.BatchNormalization(name="depthwise_bn")(y)
    y = layers.ReLU(6.0, name="depthwise_relu")(y)
    y = layers.Conv2D(channels, 1, name="project")(y)
    y = layers.BatchNormalization(name="project_bn")(y)
    y = layers.Add(name="add")([inputs, y])
    return scrambled(keras.Model(inputs, y, name=name))


# The families


def application(builder, **arguments):
    return lambda: builder(
        input_shape=(32, 32, 3), weights=None, include_top=False, **arguments
    )


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
def test_families_get_attention_where_it_belongs(family):
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
    # Both have seen one batch, if it was for training.
    y, expected = (m.predict(x, verbose=0) for m in (new, model))
    np.testing.assert_array_equal(y, expected)


def test_parameters_are_the_papers():
    # The official network of this width has 1,750,970 trainable parameters.
    model = apps.MobileNetV2((32, 32, 3), 0.35, weights=None)
    new = insert_attention(model, r"^block_\d+_depthwise$")
    count = sum(np.prod(weight.shape) for weight in new.trainable_weights)
    assert count == 1_750_970


# The place


@pytest.mark.parametrize(
    "after, name, reads",
    [
        ("depthwise", "depthwise_attention", "depthwise_relu"),
        ("wise$", "depthwise_attention", "depthwise_relu"),
        ("depthwise_bn", "depthwise_bn_attention", "depthwise_relu"),
        ("_relu$", "depthwise_relu_attention", "depthwise_relu"),
        # All three have the same place behind them.
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
def test_place(after, name, reads):
    model = network()
    new = insert_attention(model, after)
    (attention,) = attentions(new)
    assert attention.name == name
    x = images(2, 8, 8, 6)
    before = keras.Model(new.input, attention.input)
    np.testing.assert_array_equal(run(before, x)[0], run(tap(model, reads), x)[0])
    assert_same(model, new, x)
    # What the attention gives is what is read from there on.
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


# Models of models


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
    # The first output is what the attention gives.
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


def test_what_is_frozen_stays_frozen():
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


def test_saving(tmp_path):
    new = trained(insert_attention(network()))
    new.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert_same(new, loaded, images(2, 8, 8, 6))
    for ours, theirs in zip(loaded.layers, new.layers, strict=True):
        assert ours.get_config() == theirs.get_config()


# A layer of one's own


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


# In the place of squeeze-and-excitation


def gates_opened(model):
    """Makes every squeeze-and-excitation of a family give 1."""
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


NO_AVERAGE = {
    "maximum": layers.GlobalMaxPooling2D,
    "mean of a row": mean((2,)),
    "mean over channels": mean((2, 3)),
    "mean of all": mean(None),
}


@pytest.mark.parametrize(
    "case", ["one layer", "gate is read", "other map", *NO_AVERAGE]
)
def test_what_is_no_squeeze_excite(case):
    pool = NO_AVERAGE.get(case, layers.GlobalAveragePooling2D)
    inputs, x, y = gated(1 if case == "one layer" else 2, pool)
    outputs = [layers.Multiply()([inputs if case == "other map" else x, y])]
    if case == "gate is read":
        outputs.append(y)
    with pytest.raises(ValueError, match="`replace` found no squeeze_excite.*conv2d"):
        insert_attention(keras.Model(inputs, outputs), replace="squeeze_excite")


# Fusing


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
def test_the_factor_goes_into_what_follows(build):
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
def test_the_factor_goes_into_what_stands_before(first):
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
def test_the_factor_stays_where_it_has_no_place(follow):
    model = behind(follow)()
    fused = fuse_attention(model)
    assert_same(model, fused, images(2, 8, 8, 4))
    assert all(layer.identity_init for layer in attentions(fused))


def test_nothing_to_fuse():
    model = network()
    assert_same(model, fuse_attention(model), images(2, 8, 8, 6))


@needs_tensorflow
def test_fused_costs_no_operation_more_than_plain():
    import tensorflow as tf

    def operations(model):
        graph = tf.function(lambda x: model(x)).get_concrete_function(
            tf.TensorSpec((1, 8, 8, 6))
        )
        return sorted(op.type for op in graph.graph.get_operations())

    model = network()
    plain = insert_attention(model, layer=CoordinateAttention)
    new = insert_attention(model)
    fused = fuse_attention(new)
    assert operations(fused) == operations(plain)
    # A multiplication a gate, and its constant.
    assert len(operations(new)) == len(operations(plain)) + 4


# Wrong arguments


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


def test_what_is_no_map():
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
    with pytest.raises(
        ValueError, match="`model` must be a functional model.*Received"
    ):
        edit(model)


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
