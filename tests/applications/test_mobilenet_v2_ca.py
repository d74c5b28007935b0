import keras
import numpy as np
import pytest
from networks import assert_near, calibrated, copy_weights, count, images, outputs

from keras_coordatt import MobileNetV2CA
from keras_coordatt.applications import mobilenet_v2_ca
from keras_coordatt.weights import load_torch

CHECKPOINTS = [
    "mbv2_ca_w025_c10.pth",
    "mbv2_ca_w025_c10_legacy.pth",
    "mbv2_ca_w025_c10_wrapped.pth",
]


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
        (1.0, "se", 3_888_208),
        (1.0, "cbam", 3_889_808),
    ],
)
def test_trainable_parameters(alpha, attention, expected):
    model = MobileNetV2CA(alpha=alpha, weights=None, attention=attention)
    assert count(model) == expected
    published = {None: 3.5e6, "se": 3.89e6, "cbam": 3.89e6, "coordinate": 3.95e6}
    if alpha == 1.0:
        assert count(model) == pytest.approx(published[attention], rel=0.01)


@pytest.mark.parametrize("alpha", [0.35, 1.0])
def test_without_attention_is_keras_applications(alpha):
    # At 65 = 2^6 + 1, every stride-2 convolution there pads all sides alike, as ours.
    theirs = keras.applications.MobileNetV2((65, 65, 3), alpha, weights=None, classes=5)
    ours = MobileNetV2CA((65, 65, 3), alpha, weights=None, classes=5, attention=None)
    x = images(4, 65, 65, 3)
    calibrated(theirs, x)
    for layer in theirs.layers:
        if layer.weights:
            weights = layer.get_weights()
            if isinstance(layer, keras.layers.BatchNormalization):
                weights[3] += layer.epsilon - ours.get_layer(layer.name).epsilon
            ours.get_layer(layer.name).set_weights(weights)
    assert_near(outputs(ours, x), outputs(theirs, x), 1e-5)
    assert {layer.name for layer in theirs.layers if layer.weights} == {
        layer.name for layer in ours.layers if layer.weights
    }


def test_layer_names():
    # Those of keras.applications, but without its padding on one side.
    model = MobileNetV2CA((32, 32, 3), 0.25, weights=None, classes=3)
    strided, same_width = (1, 3, 6, 13), (2, 4, 5, 7, 8, 9, 11, 12, 14, 15)
    expected = ["preprocessing_record", "Conv1_pad", "Conv1", "bn_Conv1", "Conv1_relu"]
    for part in [
        "depthwise",
        "depthwise_BN",
        "depthwise_relu",
        "project",
        "project_BN",
        "add",
    ]:
        expected += [f"expanded_conv_{part}"]
    for i in range(1, 17):
        parts = ["expand", "expand_BN", "expand_relu"]
        parts += ["pad"] if i in strided else []
        parts += ["depthwise", "depthwise_BN", "depthwise_relu", "attention"]
        parts += ["project", "project_BN"] + (["add"] if i in same_width else [])
        expected += [f"block_{i}_{part}" for part in parts]
    expected += ["Conv_1", "Conv_1_bn", "out_relu"]
    expected += ["avg_pool", "top_dropout", "predictions"]
    assert [layer.name for layer in model.layers[1:]] == expected


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
    # Without attention, which averages over the feature map.
    arguments = {"alpha": 0.25, "weights": None, "include_top": False}
    arguments["attention"] = None
    x = images(2, 96, 64, 3)
    strided = calibrated(MobileNetV2CA((96, 64, 3), **arguments), x)
    dense = MobileNetV2CA((96, 64, 3), output_stride=output_stride, **arguments)
    copy_weights(strided, dense)
    step = 32 // output_stride
    assert_near(outputs(dense, x)[:, ::step, ::step], outputs(strided, x), 1e-5)


@pytest.mark.parametrize("suffix", [".weights.h5", ".h5"])
def test_weights_from_a_file(tmp_path, suffix):
    # A headless network takes the weights of a full one.
    full = MobileNetV2CA((32, 32, 3), 0.25, weights=None, classes=3)
    path = str(tmp_path / f"full{suffix}")
    (full.save_weights if suffix == ".weights.h5" else full.save)(path)
    for include_top in (True, False):
        model = MobileNetV2CA((32, 32, 3), 0.25, include_top, path, classes=3)
        for layer in model.layers:
            if layer.weights:
                theirs = full.get_layer(layer.name).get_weights()
                for ours, their in zip(layer.get_weights(), theirs, strict=True):
                    np.testing.assert_array_equal(ours, their)


@pytest.mark.parametrize("alpha", [0, -1, "wide", None, float("nan"), float("inf")])
def test_wrong_alpha(alpha):
    with pytest.raises(ValueError, match=f"`alpha`.*Received: {alpha!r}"):
        MobileNetV2CA(alpha=alpha, weights=None)


def test_checkpoint_must_match_the_attention(golden):
    checkpoint = golden("mbv2_ca_w025_c10.pth")
    plain = MobileNetV2CA((32, 32, 3), 0.25, weights=None, classes=10, attention=None)
    with pytest.raises(ValueError, match=r"unexpected: features\.2\.conv\.6\.conv1"):
        load_torch(plain, checkpoint)


@pytest.mark.parametrize(
    "arguments, received",
    [
        ({"classes": 10}, "classes=10"),
        ({"alpha": 0.25}, "alpha=0.25, attention='coordinate', reduction=32"),
        ({"alpha": 1.4, "attention": None}, "alpha=1.4, attention=None, reduction=32"),
        ({"attention": "se"}, "alpha=1.0, attention='se', reduction=32"),
        ({"reduction": 16}, "alpha=1.0, attention='coordinate', reduction=16"),
    ],
)
def test_networks_without_published_weights(arguments, received, monkeypatch):
    monkeypatch.setattr(
        mobilenet_v2_ca, "load_named_weights", lambda *_, **__: pytest.fail("loaded")
    )
    with pytest.raises(ValueError) as caught:
        MobileNetV2CA(weights="imagenet", **arguments)
    message = str(caught.value)
    assert message.startswith('`weights="imagenet"` ')
    assert message.endswith(f"Received: {received}")
