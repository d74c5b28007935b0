import keras
import numpy as np
import pytest
from backends import BACKEND
from networks import drawn

from keras_coordatt import EfficientNetCA, MobileNetV2CA, MobileNeXtCA
from keras_coordatt.applications import pyramid_outputs

# (builder of a small network, the last layer of each stride)
NETWORKS = [
    pytest.param(
        lambda **arguments: MobileNetV2CA(alpha=0.25, weights=None, **arguments),
        {
            "P2": "block_2_add",
            "P3": "block_5_add",
            "P4": "block_12_add",
            "P5": "block_16_project_BN",
        },
        id="MobileNetV2CA",
    ),
    pytest.param(
        lambda **arguments: MobileNeXtCA(alpha=0.25, **arguments),
        {
            "P2": "block_1_depthwise_2_BN",
            "P3": "block_4_add",
            "P4": "block_11_add",
            "P5": "block_19_depthwise_2_BN",
        },
        id="MobileNeXtCA",
    ),
    pytest.param(
        lambda **arguments: EfficientNetCA("b0", **arguments),
        {
            "P2": "block_2_add",
            "P3": "block_4_add",
            "P4": "block_10_add",
            "P5": "block_15_project_BN",
        },
        id="EfficientNetCA",
    ),
]

each_network = pytest.mark.parametrize("build, last_layers", NETWORKS)


def assert_taps(model, last_layers):
    taps = pyramid_outputs(model)
    assert list(taps) == list(last_layers)
    for tap, name in zip(taps.values(), last_layers.values()):
        assert tap is model.get_layer(name).output


@each_network
def test_last_layer_of_each_stride(build, last_layers):
    assert_taps(drawn(build), last_layers)


@each_network
@pytest.mark.parametrize("output_stride, coarsest", [(16, "P4"), (8, "P3")])
def test_output_stride(build, last_layers, output_stride, coarsest):
    model = drawn(build, output_stride=output_stride, attention=None)
    # All later blocks are at the last stride too.
    expected = {k: v for k, v in last_layers.items() if k <= coarsest}
    expected[coarsest] = last_layers["P5"]
    assert_taps(model, expected)


@each_network
def test_survive_saving_and_cloning(build, last_layers, tmp_path):
    model = build(input_shape=(None, None, 3), classes=2)
    assert_taps(drawn(keras.models.clone_model, model=model), last_layers)

    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", compile=False)
    assert_taps(loaded, last_layers)
    features = keras.Model(loaded.input, pyramid_outputs(loaded))
    # JAX compiles one graph in less time than every operation apart.
    call = features.predict if BACKEND == "jax" else features
    maps = call(np.ones((1, 64, 32, 3), "float32"))
    assert {name: x.shape[:3] for name, x in maps.items()} == {
        "P2": (1, 16, 8),
        "P3": (1, 8, 4),
        "P4": (1, 4, 2),
        "P5": (1, 2, 1),
    }


@each_network
def test_strides_count_from_the_networks_own_image(build, last_layers):
    inputs = keras.Input((512, 384, 1))
    image = keras.layers.Conv2D(3, 3, 4, "same", name="before")(inputs)
    image = keras.layers.Rescaling(1 / 255)(image)
    model = drawn(build, input_tensor=image, attention="se")
    assert_taps(model, last_layers)
    assert pyramid_outputs(model)["P5"].shape[1:3] == (4, 3)


@each_network
def test_under_another_head(build, last_layers):
    backbone = build(attention=None, include_top=False)
    x = keras.layers.Conv2D(4, 3, 2, "same", name="extra")(backbone.output)
    side = keras.layers.Conv2D(4, 3, 2)(backbone.get_layer(last_layers["P3"]).output)
    model = keras.Model(backbone.input, [side, x, *pyramid_outputs(backbone).values()])
    assert_taps(model, last_layers)
    # A model of the maps has them too, and one cut off has those it reaches.
    features = keras.Model(backbone.inputs, pyramid_outputs(backbone))
    assert_taps(features, last_layers)
    cut = keras.Model(backbone.inputs, backbone.get_layer(last_layers["P3"]).output)
    assert_taps(cut, {k: last_layers[k] for k in ("P2", "P3")})


def test_channels_first():
    keras.config.set_image_data_format("channels_first")
    try:
        model = drawn(EfficientNetCA, input_shape=(3, 64, 96))
    finally:
        keras.config.set_image_data_format("channels_last")
    shapes = {k: v.shape[1:] for k, v in pyramid_outputs(model).items()}
    assert shapes == {
        "P2": (24, 16, 24),
        "P3": (40, 8, 12),
        "P4": (112, 4, 6),
        "P5": (320, 2, 3),
    }


def test_other_models_are_refused():
    others = [
        drawn(keras.applications.MobileNetV3Small, weights=None),
        keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(1, 3)]),
        keras.Sequential([drawn(MobileNetV2CA, alpha=0.25, weights=None)]),
    ]
    for model in others:
        with pytest.raises(ValueError, match=f"`model`.*Received: .*{model.name}"):
            pyramid_outputs(model)
    for nothing in (None, "block_1_add", pyramid_outputs):
        with pytest.raises(ValueError, match="`model`.*Received: "):
            pyramid_outputs(nothing)
