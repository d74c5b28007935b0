import keras
import networks
import pytest
from networks import drawn

from keras_coordatt import EfficientNetCA, MobileNetV2CA, MobileNeXtCA
from keras_coordatt.detection import SSDLite, ssd_box_shapes

# (builder of a small network, the layers of its first two maps)
NETWORKS = [
    pytest.param(
        lambda **arguments: MobileNetV2CA(alpha=0.25, weights=None, **arguments),
        ("block_13_expand_relu", "out_relu"),
        id="MobileNetV2CA",
    ),
    pytest.param(
        lambda **arguments: MobileNeXtCA(alpha=0.25, **arguments),
        ("block_12_expand_relu", "block_19_depthwise_2_BN"),
        id="MobileNeXtCA",
    ),
    pytest.param(
        lambda **arguments: EfficientNetCA("b0", **arguments),
        ("block_11_expand_activation", "top_activation"),
        id="EfficientNetCA",
    ),
    pytest.param(
        # Keras's own has ImageNet weights.
        lambda **arguments: keras.applications.MobileNetV2(
            alpha=0.35, weights=None, **arguments
        ),
        ("block_13_expand_relu", "out_relu"),
        id="keras.applications.MobileNetV2",
    ),
]


@pytest.mark.parametrize(
    "attention, millions", [(None, 4.3), ("se", 4.7), ("coordinate", 4.8)]
)
def test_published_parameters(attention, millions):
    backbone = drawn(MobileNetV2CA, (320, 320, 3), weights=None, attention=attention)
    model = drawn(SSDLite, backbone, 80)
    assert round(networks.count(model) / 1e6, 1) == millions
    shapes = {name: x.shape for name, x in model.output.items()}
    assert shapes == {"boxes": (None, 2034, 4), "classes": (None, 2034, 81)}
    assert model.default_boxes.shape == (2034, 4)


def consumers(model, name):
    """The layers that take the output of a layer."""
    output = model.get_layer(name).output
    return {
        layer.name
        for layer in model.layers
        if any(x is output for x in keras.tree.flatten(layer.input))
    }


def assert_maps(backbone, taps):
    model = drawn(SSDLite, backbone, 2)
    assert model.map_sizes == ((6, 4), (3, 2), (2, 1), (1, 1), (1, 1), (1, 1))
    for i, name in enumerate(taps, 1):
        heads = {f"map_{i}_boxes_depthwise", f"map_{i}_classes_depthwise"}
        assert heads <= consumers(model, name)
    assert "extra_1_reduce" in consumers(model, taps[1])
    # No classifier is left over, and the layers are the backbone's own.
    assert model.backbone.output is model.get_layer(taps[1]).output
    assert "predictions" not in {layer.name for layer in model.layers}
    shared = set(map(id, model.layers)) & set(map(id, backbone.layers))
    assert len(shared) == len(model.backbone.layers)


@pytest.mark.parametrize("build, taps", NETWORKS)
def test_maps_of_the_backbone(build, taps):
    assert_maps(drawn(build, input_shape=(96, 64, 3)), taps)


@pytest.mark.parametrize("pooling", [None, "max"])
def test_maps_of_a_backbone_without_its_top(pooling):
    build, taps = NETWORKS[1].values
    arguments = {"include_top": False, "pooling": pooling}
    assert_maps(drawn(build, input_shape=(96, 64, 3), **arguments), taps)


def test_number_of_maps(tiny_backbone):
    model = SSDLite(tiny_backbone(), 3, box_shapes=ssd_box_shapes(2))
    assert model.map_sizes == ((4, 4), (2, 2))
    assert model.output["classes"].shape == (None, 4 * 4 * 3 + 2 * 2 * 6, 4)
    model = SSDLite(tiny_backbone(), 3, box_shapes=[[(0.1, 0.2)]] * 3)
    assert model.output["boxes"].shape == (None, 16 + 4 + 1, 4)


def built_in(builder, *args, data_format="channels_last", policy="float32"):
    """Calls a builder under other global settings."""
    before = keras.config.image_data_format(), keras.config.dtype_policy()
    keras.config.set_image_data_format(data_format)
    keras.config.set_dtype_policy(policy)
    try:
        return builder(*args)
    finally:
        keras.config.set_image_data_format(before[0])
        keras.config.set_dtype_policy(before[1])


@pytest.mark.parametrize("first", [True, False])
def test_data_format_is_the_backbones(first):
    formats = ["channels_last", "channels_first"]
    backbone_format, other_format = formats[first], formats[not first]
    shape = (3, 64, 96) if first else (64, 96, 3)
    backbone = built_in(
        lambda: drawn(MobileNetV2CA, shape, alpha=0.25, weights=None),
        data_format=backbone_format,
    )
    model = built_in(lambda: drawn(SSDLite, backbone, 2), data_format=other_format)
    assert model.map_sizes[:2] == ((4, 6), (2, 3))
    assert model.image_size == (64, 96)
    found = {getattr(layer, "data_format", backbone_format) for layer in model.layers}
    assert found == {backbone_format}


def test_building_changes_no_global_setting(tiny_backbone, monkeypatch):
    backbone = built_in(
        tiny_backbone, data_format="channels_first", policy="mixed_float16"
    )

    def forbidden(*_):
        raise AssertionError("another thread would see it")

    for name in ("set_image_data_format", "set_dtype_policy", "set_floatx"):
        monkeypatch.setattr(keras.config, name, forbidden)
    drawn(SSDLite, backbone, 2, box_shapes=ssd_box_shapes(2))


@pytest.mark.parametrize("half", [True, False])
def test_precision_is_the_backbones(tiny_backbone, half):
    policies = ["float32", "mixed_float16"]
    backbone = built_in(tiny_backbone, policy=policies[half])
    shapes = ssd_box_shapes(3)
    model = built_in(
        lambda: SSDLite(backbone, 2, box_shapes=shapes), policy=policies[not half]
    )
    found = {
        layer.compute_dtype
        for layer in model.layers
        if layer.name not in ("boxes", "classes") and "input" not in layer.name
    }
    assert found == {"float16" if half else "float32"}
    assert {x.dtype for x in model.output.values()} == {"float32"}


def test_detections_are_single_precision(tiny_backbone):
    def found():
        model = SSDLite(tiny_backbone(), 2, box_shapes=ssd_box_shapes(2))
        found = [model.detector(suppress=x) for x in (True, False)]
        return model, *found

    model, detector, raw = built_in(found, policy="mixed_float16")
    for x in (detector, raw):
        assert {x.output[name].dtype for name in ("boxes", "scores")} == {"float32"}
    # Offsets of zero are the default boxes, to less than a hundredth of a pixel of 640.
    for name in ("map_1_boxes", "map_2_boxes"):
        layer = model.get_layer(name)
        layer.set_weights([0 * w for w in layer.get_weights()])
    boxes = raw.predict_on_batch(networks.images(1, 64, 64, 3))["boxes"][0]
    expected = model.default_boxes.clip(0, 1)
    assert abs(boxes - expected).max() * 640 < 0.01


def test_bad_backbones(tiny_backbone):
    def refused(backbone, words):
        with pytest.raises(ValueError, match=f"(?s)`backbone`.*{words}.*Received"):
            drawn(SSDLite, backbone, 2)

    refused(None, "network")
    refused(keras.Sequential([keras.Input((8, 8, 3))]), "network")
    small = {"alpha": 0.25, "weights": None, "include_top": False}
    refused(drawn(MobileNetV2CA, **small), "known size")
    refused(drawn(MobileNetV2CA, (96, None, 3), **small), "known size")
    refused(drawn(MobileNetV2CA, (96, 96, 3), output_stride=16, **small), "stride=32")
    tiny = tiny_backbone()
    flat = keras.layers.Flatten()(tiny.output)
    refused(keras.Model(tiny.input, flat), "feature map")


@pytest.mark.parametrize(
    "argument, value",
    [("classes", 0), ("classes", 2.5), ("weights", "nothing.keras")]
    + [
        ("box_shapes", value)
        for value in ([], [[(1, 1)]], [[(1, 1)]] * 7, [[(1, 1)], []], [[(1, 0)]] * 2)
    ]
    + [("box_shapes", [[(1, 1, 1)]] * 2), ("box_shapes", 3)],
)
def test_bad_arguments(tiny_backbone, argument, value):
    arguments = {"classes": 2, argument: value}
    with pytest.raises(ValueError, match=f"`{argument}`.*Received: "):
        SSDLite(tiny_backbone(), **arguments)
