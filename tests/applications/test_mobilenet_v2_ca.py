import keras
import numpy as np
import pytest

from keras_coordatt import MobileNetV2CA
from keras_coordatt.weights import load_torch

CHECKPOINTS = [
    "mbv2_ca_w025_c10.pth",
    "mbv2_ca_w025_c10_legacy.pth",
    "mbv2_ca_w025_c10_wrapped.pth",
]


def images(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_is_the_official_network(golden, assert_within, checkpoint):
    numbers = np.load(golden("mbv2_ca_w025_c10_io.npz"))
    x = numbers["input_nchw"].transpose(0, 2, 3, 1)
    model = MobileNetV2CA(
        x.shape[1:],
        alpha=0.25,
        weights=golden(checkpoint),
        classes=10,
        classifier_activation=None,
    )
    taps = keras.Model(
        model.input, [model.get_layer("block_16_project_BN").output, model.output]
    )
    features, logits = taps.predict(x, verbose=0)
    difference = np.abs(features.transpose(0, 3, 1, 2) - numbers["features_nchw"]).max()
    assert_within(f"{checkpoint}: features", difference, 1e-4)
    assert_within(
        f"{checkpoint}: logits", np.abs(logits - numbers["logits"]).max(), 1e-4
    )


@pytest.mark.parametrize(
    "alpha, attention, expected",
    [
        (0.25, "coordinate", 1_566_920),
        (0.35, "coordinate", 1_750_970),
        (0.5, "coordinate", 2_095_568),
        (0.75, "coordinate", 2_891_631),
        (1.0, "coordinate", 3_950_648),
        (1.4, "coordinate", 6_958_700),
        (1.0, None, 3_504_872),
    ],
)
def test_trainable_parameters(alpha, attention, expected):
    model = MobileNetV2CA(alpha=alpha, weights=None, attention=attention)
    assert sum(np.prod(w.shape) for w in model.trainable_weights) == expected


@pytest.mark.parametrize("alpha", [0.35, 1.0])
def test_without_attention_is_keras_applications(alpha):
    # At 65 = 2^6 + 1, every stride-2 convolution there pads all sides alike, as ours.
    theirs = keras.applications.MobileNetV2((65, 65, 3), alpha, weights=None, classes=5)
    ours = MobileNetV2CA((65, 65, 3), alpha, weights=None, classes=5, attention=None)
    rng = np.random.default_rng(0)
    for layer in theirs.layers:
        if layer.weights:
            weights = [w * rng.uniform(0.8, 1.2, w.shape) for w in layer.get_weights()]
            layer.set_weights(weights)
            if isinstance(layer, keras.layers.BatchNormalization):
                weights[3] += layer.epsilon - ours.get_layer(layer.name).epsilon
            ours.get_layer(layer.name).set_weights(weights)
    x = images(2, 65, 65, 3)
    expected = theirs.predict(x, verbose=0)
    np.testing.assert_allclose(ours.predict(x, verbose=0), expected, atol=1e-5)
    assert np.ptp(expected) > 1e-3
    assert {layer.name for layer in theirs.layers if layer.weights} == {
        layer.name for layer in ours.layers if layer.weights
    }


def test_attention_stands_where_channels_are_expanded():
    model = MobileNetV2CA((64, 64, 3), 0.25, weights=None)
    names = [layer.name for layer in model.layers]
    attentions = [name for name in names if name.endswith("attention")]
    assert attentions == [f"block_{i}_attention" for i in range(1, 17)]
    for name in attentions:
        before, after = (names[names.index(name) + step] for step in (-1, 1))
        assert before == name.replace("attention", "depthwise_relu")
        assert after == name.replace("attention", "project")


@pytest.mark.parametrize("output_stride", [16, 8])
def test_dilation_gives_the_strided_features_and_those_between(output_stride):
    # Attention averages over a whole map, so without it.
    arguments = {"alpha": 0.25, "weights": None, "include_top": False}
    strided = MobileNetV2CA((96, 64, 3), attention=None, **arguments)
    dense = MobileNetV2CA(
        (96, 64, 3), attention=None, output_stride=output_stride, **arguments
    )
    dense.set_weights(strided.get_weights())
    x = images(2, 96, 64, 3)
    step = 32 // output_stride
    np.testing.assert_allclose(
        dense.predict(x, verbose=0)[:, ::step, ::step],
        strided.predict(x, verbose=0),
        atol=1e-5,
    )


def test_headless_network_takes_the_weights_of_a_whole_one(tmp_path):
    whole = MobileNetV2CA((32, 32, 3), 0.25, weights=None, classes=3)
    whole.save_weights(tmp_path / "whole.weights.h5")
    headless = MobileNetV2CA(
        (32, 32, 3), 0.25, False, weights=tmp_path / "whole.weights.h5"
    )
    for layer in headless.layers:
        for ours, theirs in zip(
            layer.get_weights(), whole.get_layer(layer.name).get_weights(), strict=True
        ):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("alpha", [0, -1, "wide", None, float("nan"), float("inf")])
def test_wrong_alpha(alpha):
    with pytest.raises(ValueError, match=f"`alpha`.*Received: {alpha!r}"):
        MobileNetV2CA(alpha=alpha, weights=None)


def test_attention_changes_what_a_checkpoint_must_have(golden):
    checkpoint = golden("mbv2_ca_w025_c10.pth")
    plain = MobileNetV2CA((32, 32, 3), 0.25, weights=None, classes=10, attention=None)
    with pytest.raises(ValueError, match=r"unexpected: features\.2\.conv\.6\.conv1"):
        load_torch(plain, checkpoint)
