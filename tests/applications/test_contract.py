"""The contract of keras.applications, tested for all builders by one table."""

import functools
import inspect
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

import keras
import numpy as np
import pytest
from backends import BACKEND
from keras import ops
from networks import assert_near, calibrated, copy_weights, drawn, images, outputs

import keras_coordatt
from keras_coordatt import (
    CBAM,
    CoordinateAttention,
    EfficientNetCA,
    MobileNetV2CA,
    MobileNeXtCA,
    SqueezeExcite,
)
from keras_coordatt.applications import (
    BUILDERS,
    NAMES,
    efficientnet_ca,
    mobilenet_v2_ca,
    mobilenext_ca,
)
from keras_coordatt.applications.blocks import ATTENTIONS as NAMED_ATTENTIONS
from keras_coordatt.applications.network_file import read_network, save_network
from keras_coordatt.applications.recognition import network_of
from keras_coordatt.weights.torch_names import namings

SHAPE = (64, 32, 3)


class Family(NamedTuple):
    builder: Callable
    module: ModuleType
    small: dict  # the arguments of a small network
    channels: int  # of its feature map
    attentions: int  # in a network of `few_blocks`

    def build(self, include_top=True, **arguments):
        if include_top:
            arguments = {"classes": 3, **arguments}
        return self.builder(
            **{"weights": None, **self.small, "include_top": include_top, **arguments}
        )


FAMILIES = [
    Family(MobileNetV2CA, mobilenet_v2_ca, {"alpha": 0.25}, 1280, 7),
    Family(MobileNeXtCA, mobilenext_ca, {"alpha": 0.25}, 1280, 5),
    Family(EfficientNetCA, efficientnet_ca, {"variant": "b0"}, 1280, 8),
]
ATTENTIONS = {
    "coordinate": (CoordinateAttention, {"axes": "both"}),
    "height": (CoordinateAttention, {"axes": "height"}),
    "width": (CoordinateAttention, {"axes": "width"}),
    "se": (SqueezeExcite, {}),
    "cbam": (CBAM, {}),
    None: (),
}


def test_all_builders_are_here():
    assert {family.builder for family in FAMILIES} == set(BUILDERS.values())
    assert set(NAMES) == set(BUILDERS)
    assert {x for x in ATTENTIONS if x} == set(NAMED_ATTENTIONS)


@pytest.fixture(
    scope="module", params=FAMILIES, ids=lambda family: family.builder.__name__
)
def family(request):
    return request.param


@pytest.fixture(scope="module", autouse=True)
def few_blocks(family):
    """Leaves one block of each stage, and two of the third: more only cost time."""

    def block_numbers(stages):
        for i, (*others, _, stride) in enumerate(stages):
            yield (*others, 2 if i == 2 else 1, stride)

    with pytest.MonkeyPatch.context() as patch:
        stages = tuple(block_numbers(family.module.STAGES))
        patch.setattr(family.module, "STAGES", stages)
        yield


# These networks are built once, and no test changes them.


@pytest.fixture(scope="module")
def x():
    return images(8, *SHAPE)


@pytest.fixture(scope="module")
def complete(family, x):
    """A network with a classifier of logits, whose weights are not idle."""
    return calibrated(family.build(input_shape=SHAPE, classifier_activation=None), x)


@pytest.fixture(scope="module")
def logits(complete, x):
    return outputs(complete, x)


@pytest.fixture(scope="module")
def headless(family, complete):
    model = family.build(input_shape=SHAPE, include_top=False)
    return copy_weights(complete, model)


@pytest.fixture(scope="module")
def features(headless, x):
    return outputs(headless, x)


# Outputs


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_every_attention(family, attention, x):
    model = family.build(input_shape=SHAPE, attention=attention)
    y = outputs(model, x)
    assert y.shape == (8, 3)
    np.testing.assert_allclose(y.sum(1), 1, atol=1e-5)

    layers = [layer for layer in model.layers if layer.name.endswith("_attention")]
    if attention is None:
        assert not layers
    else:
        kind, config = ATTENTIONS[attention]
        assert len(layers) == family.attentions
        for layer in layers:
            assert type(layer) is kind
            assert config.items() <= layer.get_config().items()
        copy = keras.saving.deserialize_keras_object(
            keras.saving.serialize_keras_object(layers[0])
        )
        assert copy.get_config() == layers[0].get_config()


def test_classifier_activation(family, complete, logits, x):
    model = copy_weights(complete, family.build(input_shape=SHAPE))
    expected = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    # Logarithms, because probabilities near 1 hardly differ.
    assert_near(np.log(outputs(model, x)), expected, 1e-5)


@pytest.mark.parametrize("channels", [1, 4])
def test_any_number_of_channels(family, channels):
    model = family.build(input_shape=(*SHAPE[:2], channels), include_top=False)
    assert model.input_shape == (None, *SHAPE[:2], channels)
    assert model.output_shape == (None, 2, 1, family.channels)
    y = outputs(model, images(8, *SHAPE[:2], channels))
    assert y.shape == (8, 2, 1, family.channels)


def test_unknown_and_odd_sizes(family, headless, x, features):
    free = copy_weights(headless, family.build(include_top=False))
    assert free.input_shape == (None, None, None, 3)
    assert free.output_shape == (None, None, None, family.channels)
    assert_near(outputs(free, x), features, 1e-5)

    odd = family.build(input_shape=(123, 123, 3), include_top=False)
    copy_weights(headless, odd)
    assert odd.output_shape == (None, 4, 4, family.channels)
    x = images(2, 123, 123, 3)
    assert_near(outputs(free, x), outputs(odd, x), 1e-5)


def test_default_sizes(family):
    assert family.build().input_shape == (None, 224, 224, 3)
    assert family.build(input_shape=(None, None, 3)).output_shape == (None, 3)


@pytest.mark.parametrize("pooling, function", [("avg", np.mean), ("max", np.max)])
def test_pooling(family, headless, x, features, pooling, function):
    model = family.build(input_shape=SHAPE, include_top=False, pooling=pooling)
    copy_weights(headless, model)
    assert model.output_shape == (None, family.channels)
    assert_near(outputs(model, x), function(features, axis=(1, 2)), 1e-5)


@pytest.mark.parametrize("output_stride", [16, 8])
def test_output_stride(family, headless, x, output_stride):
    model = family.build(
        input_shape=SHAPE, include_top=False, output_stride=output_stride
    )
    size = (64 // output_stride, 32 // output_stride)
    assert model.output_shape == (None, *size, family.channels)
    for ours, theirs in zip(model.weights, headless.weights, strict=True):
        assert ours.shape == theirs.shape
    assert outputs(model, x[:1]).shape == (1, *size, family.channels)


def test_channels_first(family, headless, x, features, channels_first):
    model = family.build(input_shape=(3, *SHAPE[:2]), include_top=False)
    assert model.output_shape == (None, family.channels, 2, 1)
    copy_weights(headless, model)
    y = outputs(model, x.transpose(0, 3, 1, 2))
    assert_near(y.transpose(0, 2, 3, 1), features, 1e-4)
    shape = family.build(include_top=False).input_shape
    assert shape == (None, 3, None, None)


# Inputs


def test_input_tensor_from_another_layer(family, complete, logits, x):
    inputs = keras.Input(SHAPE)
    image = keras.layers.Rescaling(1 / 127.5, offset=-1)(inputs)
    model = family.build(input_tensor=image, classifier_activation=None)
    assert model.input is inputs
    copy_weights(complete, model)
    assert_near(outputs(model, (x + 1) * 127.5), logits, 1e-4)


def test_include_preprocessing(family, complete):
    model = family.build(
        input_shape=SHAPE, classifier_activation=None, include_preprocessing=True
    )
    assert len(model.weights) == len(complete.weights)
    copy_weights(complete, model)
    pixels = np.random.default_rng(0).uniform(0, 255, (8, *SHAPE)).astype("float32")
    expected = outputs(complete, family.module.preprocess_input(pixels))
    assert_near(outputs(model, pixels), expected, 1e-4)


def test_signature(family):
    parameters = inspect.signature(family.builder).parameters
    names = [
        *("input_shape", "alpha", "include_top", "weights", "input_tensor", "pooling"),
        *("classes", "classifier_activation", "name"),
        *("attention", "reduction", "output_stride", "include_preprocessing"),
        "skip_mismatch",
    ]
    if "variant" in family.small:
        names.remove("alpha")
        names.insert(0, "variant")
    assert list(parameters) == names
    keyword_only = [n for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY]
    assert keyword_only == names[names.index("attention") :]

    theirs = inspect.signature(keras.applications.MobileNetV2).parameters
    for name in theirs.keys() & parameters.keys() - {"name", "weights"}:
        assert parameters[name].default == theirs[name].default
    published = family.builder is MobileNetV2CA
    assert parameters["weights"].default == ("imagenet" if published else None)
    assert getattr(keras_coordatt, family.builder.__name__) is family.builder


def test_names(family, complete):
    default = inspect.signature(family.builder).parameters["name"].default
    assert complete.name == default
    assert family.build(input_shape=SHAPE, name="mine").name == "mine"


def test_attention_of_ones_own(family, headless, x):
    names = []

    def named(name):
        names.append(name)
        return CoordinateAttention(identity_init=True, name=name)

    arguments = {"input_shape": SHAPE, "include_top": False}
    plain = copy_weights(headless, family.build(attention=None, **arguments))
    model = family.build(attention=named, **arguments)
    assert [n for n in names if model.get_layer(n).identity_init] == names
    for layer in plain.layers:
        if layer.weights:
            model.get_layer(layer.name).set_weights(layer.get_weights())
    # On JAX they are two programs, which XLA optimizes apart.
    limit = 1e-5 if BACKEND == "jax" else 1e-6
    assert_near(outputs(model, x), outputs(plain, x), limit)


def test_attention_that_takes_no_name(family):
    model = family.build(
        input_shape=SHAPE, attention=lambda: keras.layers.Activation("linear")
    )
    added = [x for x in model.layers if x.name.startswith("activation")]
    assert len(added) == family.attentions


def test_attention_of_another_reduction(family):
    model = family.build(
        input_shape=SHAPE, attention=functools.partial(SqueezeExcite, reduction=7)
    )
    assert model.get_layer("block_1_attention").reduction == 7


# Saving and copying


@pytest.mark.parametrize(
    "copy",
    [
        keras.models.clone_model,
        lambda model: keras.models.model_from_json(model.to_json()),
    ],
    ids=["clone_model", "json"],
)
def test_copies_are_the_same(complete, logits, x, copy):
    model = copy(complete)
    assert model.name == complete.name
    copy_weights(complete, model)
    assert_near(outputs(model, x), logits, 1e-6)


def test_saving(family, complete, logits, x, tmp_path):
    path = tmp_path / "model.keras"
    complete.save(path)
    loaded = keras.models.load_model(path, compile=False)
    assert_near(outputs(loaded, x), logits, 1e-6)
    model = family.build(input_shape=SHAPE, classifier_activation=None, weights=path)
    for ours, theirs in zip(model.get_weights(), complete.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def arrays_of(model):
    """Arrays of the shapes in a file of the model's weights, which take no memory."""
    entries, *_ = namings(model)
    zero = np.float32(0)
    return {
        entry.expected.name: np.broadcast_to(zero, entry.expected.shape)
        for entry in entries
    }


@pytest.mark.parametrize(
    "arguments",
    [
        *({"attention": attention} for attention in ATTENTIONS),
        {"input_shape": (*SHAPE[:2], 1), "reduction": 8},
        {"include_top": False},
    ],
    ids=str,
)
def test_the_network_is_known_by_names_and_shapes(family, arguments):
    arrays = arrays_of(drawn(family.build, **arguments))
    builder, found = network_of(arrays, "it")
    assert builder is family.builder
    assert (family.small | arguments).items() <= {
        **found,
        "input_shape": (*SHAPE[:2], found["input_shape"][-1]),
    }.items()
    again = arrays_of(drawn(builder, weights=None, **found))
    assert [(k, x.shape) for k, x in again.items()] == [
        (k, x.shape) for k, x in arrays.items()
    ]


def test_files_of_official_names(family, complete, tmp_path):
    path = tmp_path / "model.safetensors"
    save_network(complete, path)
    model = read_network(path)
    assert model.name == complete.name
    for ours, theirs in zip(model.get_weights(), complete.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    other = "variant" if "alpha" in family.small else "alpha"
    with pytest.raises(
        ValueError, match=f"{family.builder.__name__}.* no `{other}`.*7"
    ):
        read_network(path, **{other: 7})


@pytest.mark.parametrize(
    "dtype, limit", [("mixed_float16", 0.02), ("mixed_bfloat16", 0.2)]
)
def test_mixed_precision(family, complete, logits, x, dtype, limit):
    keras.config.set_dtype_policy(dtype)
    try:
        model = family.build(input_shape=SHAPE, classifier_activation=None)
    finally:
        keras.config.set_dtype_policy("float32")
    assert model.get_layer("avg_pool").compute_dtype == dtype.removeprefix("mixed_")
    assert model.output.dtype == "float32"  # as Keras's guide to mixed precision asks
    assert {w.dtype for w in model.weights} == {"float32"}
    copy_weights(complete, model)
    assert_near(outputs(model, x), logits, limit)


# Images and predictions


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_preprocess_input(family, data_format):
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 255, (2, 8, 6, 3)).astype("float32")
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected, pixels = (x / 255 - mean) / std, x.astype("uint8")
    expected_of_pixels = (pixels / 255 - mean) / std
    if data_format == "channels_first":
        x, pixels, expected, expected_of_pixels = (
            y.transpose(0, 3, 1, 2) for y in (x, pixels, expected, expected_of_pixels)
        )
    before = x.copy()
    preprocess = family.module.preprocess_input
    np.testing.assert_allclose(preprocess(x, data_format), expected, atol=1e-5)
    np.testing.assert_array_equal(x, before)
    np.testing.assert_allclose(
        preprocess(pixels, data_format), expected_of_pixels, atol=1e-5
    )
    y = preprocess(ops.convert_to_tensor(x), data_format)
    np.testing.assert_allclose(ops.convert_to_numpy(y), expected, atol=1e-5)


def test_unknown_data_format(family):
    with pytest.raises(ValueError, match="data_format.*Received.*NHWC"):
        family.module.preprocess_input(np.zeros((1, 8, 8, 3)), data_format="NHWC")


def test_decode_predictions(family, monkeypatch):
    # Keras downloads the class names; here they are at hand.
    module = inspect.getmodule(keras.applications.imagenet_utils.decode_predictions)
    names = {str(i): [f"n{i:04}", f"class {i}"] for i in range(1000)}
    monkeypatch.setattr(module, "CLASS_INDEX", names)
    preds = np.zeros((1, 1000))
    preds[0, [7, 3]] = [0.9, 0.1]
    assert family.module.decode_predictions(preds, top=2) == [
        [("n0007", "class 7", 0.9), ("n0003", "class 3", 0.1)]
    ]
    with pytest.raises(ValueError, match=r"\(1, 10\)"):
        family.module.decode_predictions(np.zeros((1, 10)))


# Wrong arguments


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"classes": 0}, "`classes`.*Received: 0"),
        ({"classes": 10.0}, "`classes`.*Received: 10.0"),
        ({"weights": "cityscapes"}, "`weights`.*Received: 'cityscapes'"),
        ({"weights": "no_such_file.weights.h5"}, "`weights`.*no_such_file"),
        ({"weights": 3}, "`weights`.*Received: 3"),
        ({"input_shape": (31, 64, 3)}, r"`input_shape`.*32.*\(31, 64, 3\)"),
        ({"input_shape": (64, 64)}, r"`input_shape`.*\(64, 64\)"),
        ({"input_shape": 64}, "`input_shape`.*64"),
        ({"input_shape": (64, 64, None)}, "`input_shape.*None"),
        ({"input_shape": (64, 64.5, 3)}, "`input_shape.*64.5"),
        ({"pooling": "sum", "include_top": False}, "`pooling`.*'sum'"),
        ({"attention": "triplet"}, "`attention`.*'cbam'.*'triplet'"),
        ({"attention": 3}, "`attention`.*3"),
        ({"attention": CoordinateAttention()}, "`attention`.*CoordinateAttention"),
        ({"reduction": 0}, "`reduction`.*0"),
        ({"reduction": 16, "attention": "se"}, "`reduction`.*'se'.*16\n.*partial"),
        ({"reduction": 16, "attention": "cbam"}, "`reduction`.*'cbam'.*16\n.*partial"),
        ({"reduction": 16, "attention": None}, "`reduction`.*None.*16\n.*partial"),
        ({"reduction": 16, "attention": SqueezeExcite}, "`reduction`.*16\n.*partial"),
        ({"output_stride": 4}, "`output_stride`.*4"),
        ({"output_stride": "16"}, "`output_stride`.*'16'"),
        ({"include_preprocessing": "yes"}, "`include_preprocessing`.*'yes'"),
        (
            {"include_preprocessing": True, "input_shape": (32, 32, 1)},
            r"`include_preprocessing=True`.*\(32, 32, 1\)",
        ),
        ({"input_tensor": np.zeros((1, 32, 32, 3))}, "`input_tensor`.*ndarray"),
        ({"classifier_activation": "no_such"}, "`classifier_activation`.*'no_such'"),
        ({"classifier_activation": 3}, "`classifier_activation`.*3"),
    ],
)
def test_wrong_argument(family, arguments, message):
    with pytest.raises(ValueError, match=message):
        family.build(**arguments)


def test_input_shape_must_be_the_tensors(family):
    tensor = keras.Input((64, 64, 3))
    with pytest.raises(ValueError, match=r"\(64, 64, 3\).*\(32, 32, 3\)"):
        family.build(input_tensor=tensor, input_shape=(32, 32, 3))


def test_attention_must_give_a_layer(family):
    with pytest.raises(TypeError, match="`attention`.*'not a layer'"):
        family.build(input_shape=SHAPE, attention=lambda: "not a layer")
