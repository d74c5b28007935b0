"""Names of torchvision and timm, and of attentions that no published code has."""

import json
import pathlib
import zlib

import numpy as np
import pytest
from keras import ops

from keras_coordatt import (
    CoordinateAttention,
    EfficientNetCA,
    MobileNetV2CA,
    MobileNeXtCA,
)
from keras_coordatt.applications import efficientnet_names
from keras_coordatt.applications.recognition import network_of
from keras_coordatt.layers import CBAM, SqueezeExcite
from keras_coordatt.weights import load_torch, save_safetensors
from keras_coordatt.weights.official import official_state

# Names, shapes, and the logits of torchvision's and timm's own networks; see the README.
GOLDEN = json.loads(
    (pathlib.Path(__file__).parents[1] / "data" / "torch_names.json").read_text()
)
SHAPE = (64, 96, 3)
NETWORKS = {
    "torchvision mobilenet_v2": lambda **k: MobileNetV2CA(SHAPE, 0.25, **k),
    "timm mobilenetv2_035": lambda **k: MobileNetV2CA(SHAPE, 0.35, **k),
    "timm tf_efficientnet_b0": lambda **k: EfficientNetCA("b0", SHAPE, **k),
}


def state_of(shapes):
    """Weights that depend on their names only, as those of the golden networks do."""
    state = {}
    for name, shape in shapes.items():
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        if len(shape) > 1:
            array = rng.normal(scale=(2 / np.prod(shape[1:])) ** 0.5, size=shape)
        elif name.endswith(("running_var", "weight")):
            array = rng.uniform(0.5, 1.5, shape)
        else:
            array = rng.normal(scale=0.3, size=shape)
        state[name] = array.astype("float32")
    return state


@pytest.mark.parametrize("name", GOLDEN)
def test_networks_of_torchvision_and_timm(name, assert_within):
    golden = GOLDEN[name]
    model = NETWORKS[name](
        weights=None,
        attention="se" if "efficientnet" in name else None,
        classes=10,
        classifier_activation=None,
    )
    load_torch(model, state_of(golden["shapes"]))
    x = np.random.default_rng(0).normal(size=(2, 3, *SHAPE[:2])).astype("float32")
    logits = ops.convert_to_numpy(model(x.transpose(0, 2, 3, 1)))
    largest = np.abs(golden["logits"]).max()
    difference = np.abs(logits - golden["logits"]).max() / largest
    assert_within(f"logits, {name}", float(difference), 1e-4)
    if "efficientnet" in name:  # which is saved under timm's names
        names = [n for n in official_state(model) if "num_batches" not in n]
        assert names == list(golden["shapes"])


def test_networks_are_known_by_timms_names():
    shapes = GOLDEN["timm tf_efficientnet_b0"]["shapes"]
    builder, arguments = network_of(state_of(shapes), "it")
    assert builder is EfficientNetCA
    assert arguments == {
        "variant": "b0",
        "attention": "se",
        "include_top": True,
        "classes": 10,
        "input_shape": (None, None, 3),
    }
    for name, message in {
        "torchvision mobilenet_v2": "it has the official names of none of.*`weights`",
        "timm mobilenetv2_035": "it is not of EfficientNetCA.* has 17 blocks",
    }.items():
        with pytest.raises(ValueError, match=message):
            network_of(state_of(GOLDEN[name]["shapes"]), "it")


# As in timm: blocks, and input and output channels of conv_head
VARIANTS = {
    "b0": (16, 320, 1280),
    "b1": (23, 320, 1280),
    "b2": (23, 352, 1408),
    "b3": (26, 384, 1536),
    "b4": (32, 448, 1792),
    "b5": (39, 512, 2048),
    "b6": (45, 576, 2304),
    "b7": (55, 640, 2560),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_are_known_by_timms_names(variant):
    blocks, widest, features = VARIANTS[variant]
    shapes = {f"blocks.0.{i}.conv_dw.weight": (32, 1, 3, 3) for i in range(blocks)}
    shapes["conv_head.weight"] = (features, widest, 1, 1)
    assert efficientnet_names.size_of(shapes) == ({"variant": variant}, features)
    shapes["conv_head.weight"] = (features, widest + 8, 1, 1)
    with pytest.raises(ValueError, match=f"{blocks} blocks.* {widest + 8} channels in"):
        efficientnet_names.size_of(shapes)


@pytest.fixture
def build(short_stages):
    """Builds the first blocks of a network."""

    def build(builder, **arguments):
        alpha = {} if builder is EfficientNetCA else {"alpha": 0.25}
        defaults = {"input_shape": (32, 32, 3), "classes": 3, "weights": None}
        return builder(**alpha, **defaults, **arguments)

    return build


@pytest.mark.parametrize(
    "attention", ["coordinate", "height", "width", "se", "cbam", None]
)
@pytest.mark.parametrize("builder", [MobileNetV2CA, MobileNeXtCA, EfficientNetCA])
def test_every_network_with_every_attention(build, builder, attention, tmp_path):
    one, two = (build(builder, attention=attention) for _ in range(2))
    rng = np.random.default_rng(0)
    one.set_weights([rng.uniform(0.5, 1.5, w.shape) for w in one.weights])
    save_safetensors(one, tmp_path / "network.safetensors")
    load_torch(two, tmp_path / "network.safetensors")
    for a, b in zip(one.get_weights(), two.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


# Written down from the authors' code, with 16 channels and 4 in the hidden layer.
CBAM_SHAPES = {
    "ChannelGate.mlp.1.weight": (4, 16),
    "ChannelGate.mlp.1.bias": (4,),
    "ChannelGate.mlp.3.weight": (16, 4),
    "ChannelGate.mlp.3.bias": (16,),
    "SpatialGate.spatial.conv.weight": (1, 2, 7, 7),
    **{
        f"SpatialGate.spatial.bn.{part}": (1,)
        for part in ("weight", "bias", "running_mean", "running_var")
    },
}
LINEAR = {"weight": (4, 16), "bias": (4,)}, {"weight": (16, 4), "bias": (16,)}
CONV = {**LINEAR[0], "weight": (4, 16, 1, 1)}, {**LINEAR[1], "weight": (16, 4, 1, 1)}


def se_shapes(names, layers):
    return {
        f"{name}.{part}": shape
        for name, layer in zip(names, layers, strict=True)
        for part, shape in layer.items()
    }


@pytest.mark.parametrize(
    "layer, shapes",
    [
        (CBAM(4), CBAM_SHAPES),
        (SqueezeExcite(4), se_shapes(("fc.0", "fc.2"), LINEAR)),
        (SqueezeExcite(4), se_shapes(("conv_reduce", "conv_expand"), CONV)),
    ],
)
def test_layers_have_the_names_of_their_authors(layer, shapes):
    layer.build((None, None, None, 16))
    state = state_of(shapes)
    load_torch(layer, state)
    kernel = next(iter(state.values()))
    np.testing.assert_array_equal(
        ops.convert_to_numpy(layer.reduce.kernel), kernel.reshape(4, 16).T
    )
    x = np.random.default_rng(0).normal(size=(2, 5, 7, 16)).astype("float32")
    assert np.isfinite(ops.convert_to_numpy(layer(x))).all()
    if "conv_reduce.weight" not in shapes:
        assert set(official_state(layer)) - {
            "SpatialGate.spatial.bn.num_batches_tracked"
        } == set(shapes)


def test_a_layer_without_names():
    with pytest.raises(TypeError, match="attention layer of this package.*str"):
        load_torch("coordinate", {})
    layer = CoordinateAttention(4, name="not_built")
    with pytest.raises(ValueError, match="must be built.*not_built"):
        load_torch(layer, {})
