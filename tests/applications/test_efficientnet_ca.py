import functools
import re

import keras
import numpy as np
import pytest
from backends import needs_tensorflow
from keras import ops
from networks import drawn

from keras_coordatt.applications import efficientnet_ca
from keras_coordatt.applications.efficientnet_ca import EfficientNetCA
from keras_coordatt.weights import CATALOG

# Only weight shapes and settings are compared of these: one backend is enough.
VARIANTS = ["b1", "b2", "b3", "b4", "b5", "b6", "b7"]

# Our names of the layers in a block of keras.applications.
PARTS = {
    "expand_conv": "expand",
    "expand_bn": "expand_BN",
    "dwconv": "depthwise",
    "bn": "depthwise_BN",
    "se_reduce": "attention",
    "se_expand": "attention",
    "project_conv": "project",
    "project_bn": "project_BN",
    "drop": "drop",
}
ENDS = ["stem_conv", "stem_bn", "top_conv", "top_bn", "top_dropout", "predictions"]


def keras_efficientnet(variant, *args, **kwargs):
    builder = getattr(keras.applications, f"EfficientNet{variant.upper()}")
    return builder(*args, weights=None, **kwargs)


def by_our_names(theirs):
    """Returns the layers of keras.applications by our names."""
    named, blocks = {}, []
    for layer in theirs.layers:
        if layer.name in ENDS:
            named[layer.name] = [layer]
        elif match := re.fullmatch(r"(block\d[a-z])_(\w+)", layer.name):
            block, part = match.groups()
            if block not in blocks:
                blocks.append(block)
            if part in PARTS:
                name = f"block_{blocks.index(block)}_{PARTS[part]}"
                named.setdefault(name, []).append(layer)
    return named


@functools.cache
def unmade(variant="b0", **arguments):
    """A network of which only the shapes of the weights are known: built fast."""
    return drawn(EfficientNetCA, variant, **arguments)


def random_weights(layer, rng, gated):
    """Sets weights under which each weight and the image affect the output similarly."""
    if isinstance(layer, keras.layers.Normalization):
        # The mean and the variance of ImageNet, and the number of pixels.
        std = np.array([0.229, 0.224, 0.225])
        return [np.array([0.485, 0.456, 0.406]), std**2, np.array(1)]
    weights = []
    for shape in [tuple(w.shape) for w in layer.weights]:
        if len(shape) > 1:
            depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
            fan_in = np.prod(shape[:2] if depthwise else shape[:-1])
            weights.append(rng.normal(scale=(2 / fan_in) ** 0.5, size=shape))
        else:
            weights.append(rng.normal(scale=0.3, size=shape))
    if isinstance(layer, keras.layers.BatchNormalization):
        weights[0] = rng.uniform(0.5, 1.5, weights[0].shape)
        weights[3] = rng.uniform(0.5, 1.5, weights[3].shape)
        if not gated and layer.name.lower().endswith("project_bn"):
            weights[0] /= 2  # as gates of about 0.5 would
    return weights


@functools.cache
def theirs(height, width, gated=True):
    """EfficientNetB0 of keras.applications, an image, and its output."""
    model = keras_efficientnet(
        "b0", input_shape=(height, width, 3), classes=5, classifier_activation=None
    )
    rng = np.random.default_rng(0)
    for layer in model.layers:
        weights = random_weights(layer, rng, gated)
        if not gated and layer.name.endswith("se_expand"):
            weights = [np.zeros_like(weights[0]), np.full_like(weights[1], 100)]
        layer.set_weights(weights)
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()
    x = pixels(2, height, width, 3)
    expected = outputs(model, x)
    assert np.abs(expected[0] - expected[1]).max() > 0.1
    return model, x, expected


def port(theirs, ours):
    """Copies the weights of keras.applications over, and leaves none out."""
    layers = by_our_names(theirs)
    for layer in ours.layers:
        if layer.weights:
            # A 1x1 convolution of theirs may be a dense layer of ours.
            theirs = [w for other in layers[layer.name] for w in other.get_weights()]
            shapes = [w.shape for w in layer.weights]
            layer.set_weights(
                [w.reshape(s) for w, s in zip(theirs, shapes, strict=True)]
            )


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).uniform(0, 255, shape).astype("float32")


def outputs(model, x):
    return ops.convert_to_numpy(model(x, training=False))


@pytest.mark.parametrize("shape", [(64, 32), (None, None)], ids=["even", "unknown"])
def test_with_se_is_keras_applications(shape):
    model, x, expected = theirs(shape[0] or 33, shape[1] or 47)
    ours = EfficientNetCA(
        "b0",
        (*shape, 3),
        classes=5,
        classifier_activation=None,
        attention="se",
        include_preprocessing=True,
    )
    port(model, ours)
    np.testing.assert_allclose(outputs(ours, x), expected, atol=1e-4)


def test_without_attention_is_keras_applications_with_open_gates():
    model, x, expected = theirs(33, 47, gated=False)
    ours = EfficientNetCA(
        "b0", (33, 47, 3), classes=5, classifier_activation=None, attention=None
    )
    port(model, ours)
    x = efficientnet_ca.preprocess_input(x)
    np.testing.assert_allclose(outputs(ours, x), expected, atol=1e-4)


@pytest.mark.parametrize(
    "variant",
    ["b0", *(pytest.param(variant, marks=needs_tensorflow) for variant in VARIANTS)],
)
def test_every_variant_is_keras_applications(variant):
    theirs = drawn(keras_efficientnet, variant)
    ours = unmade(variant, attention="se")
    assert ours.input_shape == theirs.input_shape
    layers = by_our_names(theirs)
    for layer in ours.layers:
        if not layer.weights and "drop" not in layer.name:
            continue
        expected = [w.shape for other in layers[layer.name] for w in other.weights]
        if layer.name.endswith("attention"):
            expected = [shape[-2:] if len(shape) == 4 else shape for shape in expected]
        assert [w.shape for w in layer.weights] == expected, layer.name
        config, (other, *_) = layer.get_config(), layers.pop(layer.name)
        same = ["rate", "noise_shape", "kernel_size", "strides", "use_bias", "units"]
        same += ["momentum", "epsilon", "axis", "activation", "dilation_rate"]
        same += ["kernel_initializer", "depthwise_initializer"]
        for key, value in other.get_config().items():
            if key in same and key in config:
                assert config[key] == value, (layer.name, key)
    assert not layers
    # Keras's normalization has a mean, a variance and a count.
    assert ours.count_params() == theirs.count_params() - 7
    record = CATALOG[f"efficientnet{variant}_imagenet"]
    assert ours.count_params() == record.parameters
    assert ours.input_shape[1] == record.input_size


def test_parameters():
    counts = {
        attention: unmade(attention=attention).count_params()
        for attention in ("coordinate", "height", "width", None)
    }
    # The authors say 5.4M, and 5.3M with SE.
    assert abs(counts["coordinate"] / 5.4e6 - 1) < 0.01
    assert abs(unmade(attention="se").count_params() / 5.3e6 - 1) < 0.01

    expanded = [32, 96, 144, 144, 240, 240, 480, 480, 480, 672, 672, 672]
    expanded += [1152, 1152, 1152, 1152]
    mid = [max(8, channels // 32) for channels in expanded]
    shared = sum(m * (c + 1) + 4 * m for c, m in zip(expanded, mid))
    gate = sum(c * (m + 1) for c, m in zip(expanded, mid))
    assert counts["height"] == counts["width"] == counts[None] + shared + gate
    assert counts["coordinate"] == counts[None] + shared + 2 * gate


@pytest.mark.parametrize("attention", ["coordinate", "se", "height"])
def test_attention_stands_in_every_block_where_channels_are_expanded(attention):
    names = [layer.name for layer in unmade(attention=attention).layers]
    attentions = [name for name in names if name.endswith("attention")]
    assert attentions == [f"block_{i}_attention" for i in range(16)]
    for name in attentions:
        before, after = (names[names.index(name) + step] for step in (-1, 1))
        assert before == name.replace("attention", "depthwise_activation")
        assert after == name.replace("attention", "project")


def test_dilation_gives_the_strided_features_and_those_between():
    # Without attention, which averages over the feature map.
    arguments = {"input_shape": (64, 32, 3), "include_top": False, "attention": None}
    strided = EfficientNetCA(**arguments)
    dense = EfficientNetCA(**arguments, output_stride=8)
    rng = np.random.default_rng(0)
    for layer in strided.layers:
        layer.set_weights(random_weights(layer, rng, gated=False))
    dense.set_weights(strided.get_weights())
    x = efficientnet_ca.preprocess_input(pixels(2, 64, 32, 3))
    features = outputs(strided, x)
    assert features.std() > 0.1
    # At an even size, "same" with a stride of 2 begins at the second position.
    np.testing.assert_allclose(
        outputs(dense, x)[:, 3::4, 3::4], features, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"variant": "b8"}, r"`variant`.*'b0', .*'b7'.*Received: 'b8'"),
        ({"variant": "B0"}, "`variant`.*Received: 'B0'"),
        ({"variant": 0}, "`variant`.*Received: 0"),
        ({"weights": "imagenet"}, 'weights="imagenet".*published(.|\n)*attention="se"'),
        ({"attention": "se", "reduction": 16}, "`reduction`.*'se', reduction=16"),
        ({"attention": "cbam", "reduction": 16}, "`reduction`.*'cbam', reduction=16"),
        ({"reduction": 0}, "`reduction`.*Received: 0"),
        ({"output_stride": 64}, "`output_stride`.*Received: 64"),
        ({"include_preprocessing": "yes"}, "`include_preprocessing`.*'yes'"),
        (
            {"include_preprocessing": True, "input_shape": (32, 32, 1)},
            r"`include_preprocessing.*\(32, 32, 1\)",
        ),
    ],
)
def test_wrong_argument(arguments, message):
    with pytest.raises(ValueError, match=message):
        EfficientNetCA(**arguments)
