"""What keras.applications promises, by one table over all builders."""

import inspect

import keras
import numpy as np
import pytest
from keras import ops

import keras_coordatt
from keras_coordatt import CoordinateAttention, MobileNetV2CA
from keras_coordatt.applications import mobilenet_v2_ca

# (builder, its module, arguments of a small network, channels of its feature map)
BUILDERS = [
    pytest.param(
        MobileNetV2CA, mobilenet_v2_ca, {"alpha": 0.25}, 1280, id="MobileNetV2CA"
    ),
]
ATTENTIONS = ["coordinate", "height", "width", None]

each_builder = pytest.mark.parametrize("builder, module, small, channels", BUILDERS)


@pytest.fixture
def small_network(builder, small):
    """Builds a small network without published weights."""

    def build(**arguments):
        defaults = {"weights": None, **small}
        if arguments.get("include_top", True):
            defaults["classes"] = 3
        return builder(**{**defaults, **arguments})

    return build


@pytest.fixture
def channels_first():
    keras.config.set_image_data_format("channels_first")
    yield
    keras.config.set_image_data_format("channels_last")


def images(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def scrambled(model):
    """Gives every weight a random value near its own, so that none is idle."""
    rng = np.random.default_rng(1)
    model.set_weights([w * rng.uniform(0.9, 1.1, w.shape) for w in model.get_weights()])
    return model


def copy_weights(source, target):
    target.set_weights(source.get_weights())
    return target


# Outputs


@each_builder
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_classifier(small_network, module, channels, attention):
    model = small_network(input_shape=(32, 32, 3), attention=attention)
    y = model.predict(images(2, 32, 32, 3), verbose=0)
    assert y.shape == (2, 3)
    np.testing.assert_allclose(y.sum(1), 1, atol=1e-6)
    names = [layer.name for layer in model.layers if "attention" in layer.name]
    assert bool(names) == (attention is not None)


@each_builder
def test_logits(small_network, module, channels):
    model = scrambled(small_network(input_shape=(32, 32, 3)))
    logits = small_network(input_shape=(32, 32, 3), classifier_activation=None)
    copy_weights(model, logits)
    x = images(2, 32, 32, 3)
    y = ops.softmax(logits.predict(x, verbose=0))
    np.testing.assert_allclose(
        ops.convert_to_numpy(y), model.predict(x, verbose=0), atol=1e-6
    )


@each_builder
@pytest.mark.parametrize("image_channels", [1, 3, 4, 5])
def test_any_number_of_channels(small_network, module, channels, image_channels):
    model = small_network(input_shape=(64, 32, image_channels), include_top=False)
    assert model.input_shape == (None, 64, 32, image_channels)
    assert model.output_shape == (None, 2, 1, channels)
    assert model.predict(images(1, 64, 32, image_channels), verbose=0).shape == (
        1,
        2,
        1,
        channels,
    )


@each_builder
def test_odd_sizes(small_network, module, channels):
    model = small_network(input_shape=(123, 123, 3), include_top=False)
    plain = keras.applications.MobileNetV2((123, 123, 3), 0.35, False, None)
    assert model.output_shape[:3] == plain.output_shape[:3] == (None, 4, 4)


@each_builder
def test_unknown_sizes(small_network, module, channels):
    model = scrambled(small_network(input_shape=(None, None, 3)))
    fixed = copy_weights(model, small_network(input_shape=(45, 70, 3)))
    x = images(2, 45, 70, 3)
    np.testing.assert_allclose(
        model.predict(x, verbose=0), fixed.predict(x, verbose=0), atol=1e-6
    )


@each_builder
def test_pooling(small_network, module, channels):
    arguments = {"input_shape": (64, 64, 3), "include_top": False}
    bare = scrambled(small_network(**arguments))
    x = images(2, 64, 64, 3)
    features = bare.predict(x, verbose=0)
    for pooling, function in [("avg", np.mean), ("max", np.max)]:
        model = copy_weights(bare, small_network(**arguments, pooling=pooling))
        assert model.output_shape == (None, channels)
        np.testing.assert_allclose(
            model.predict(x, verbose=0), function(features, axis=(1, 2)), atol=1e-5
        )


@each_builder
@pytest.mark.parametrize("output_stride", [32, 16, 8])
def test_output_stride(small_network, module, channels, output_stride):
    arguments = {"input_shape": (64, 96, 3), "include_top": False}
    model = small_network(**arguments, output_stride=output_stride)
    size = (64 // output_stride, 96 // output_stride)
    assert model.output_shape == (None, *size, channels)
    copy_weights(small_network(**arguments), model)


@each_builder
def test_channels_first_agrees(small_network, module, channels, channels_first):
    first = small_network(input_shape=(3, 64, 32), include_top=False)
    assert first.output_shape == (None, channels, 2, 1)
    assert small_network(include_top=False).input_shape == (None, 3, None, None)
    keras.config.set_image_data_format("channels_last")
    last = scrambled(small_network(input_shape=(64, 32, 3), include_top=False))
    copy_weights(last, first)
    x = images(2, 64, 32, 3)
    np.testing.assert_allclose(
        first.predict(x.transpose(0, 3, 1, 2), verbose=0).transpose(0, 2, 3, 1),
        last.predict(x, verbose=0),
        atol=1e-5,
    )


# Inputs


@each_builder
def test_input_tensor_from_another_layer(small_network, module, channels):
    inputs = keras.Input((32, 32, 3))
    image = keras.layers.Rescaling(1 / 127.5, offset=-1)(inputs)
    model = scrambled(small_network(input_tensor=image))
    assert model.input is inputs
    alone = small_network(input_shape=(32, 32, 3))
    copy_weights(model, alone)
    x = images(2, 32, 32, 3) * 100
    np.testing.assert_allclose(
        model.predict(x, verbose=0), alone.predict(x / 127.5 - 1, verbose=0), atol=1e-6
    )


@each_builder
def test_default_shapes(small_network, module, channels):
    assert small_network().input_shape == (None, 224, 224, 3)
    assert small_network(include_top=False).input_shape == (None, None, None, 3)


@each_builder
def test_signature_begins_as_keras_applications(builder, module, small, channels):
    ours = inspect.signature(builder).parameters.values()
    theirs = inspect.signature(keras.applications.MobileNetV2).parameters.values()
    for our, their in zip(ours, theirs):
        assert our.name == their.name
        assert our.default == their.default or our.name == "name"
    assert keras_coordatt.__dict__[builder.__name__] is builder


@each_builder
def test_names(small_network, builder, module, channels):
    default = inspect.signature(builder).parameters["name"].default
    assert small_network(input_shape=(32, 32, 3)).name == default
    assert small_network(input_shape=(32, 32, 3), name="mine").name == "mine"


@each_builder
def test_attention_of_ones_own(small_network, module, channels):
    names = []

    def named(name):
        names.append(name)
        return CoordinateAttention(identity_init=True, name=name)

    plain = scrambled(small_network(input_shape=(32, 32, 3), attention=None))
    model = small_network(input_shape=(32, 32, 3), attention=named)
    assert [n for n in names if model.get_layer(n).identity_init] == names
    for layer in plain.layers:
        model.get_layer(layer.name).set_weights(layer.get_weights())
    x = images(2, 32, 32, 3)
    np.testing.assert_array_equal(
        model.predict(x, verbose=0), plain.predict(x, verbose=0)
    )
    anonymous = small_network(
        input_shape=(32, 32, 3), attention=lambda: keras.layers.Activation("linear")
    )
    assert len(anonymous.layers) == len(model.layers)


# Saving and copying


@each_builder
def test_copies_are_the_same(small_network, module, channels):
    model = scrambled(small_network(input_shape=(32, 32, 3)))
    x = images(2, 32, 32, 3)
    expected = model.predict(x, verbose=0)
    for copy in (
        keras.models.clone_model(model),
        keras.Model.from_config(model.get_config()),
    ):
        copy_weights(model, copy)
        np.testing.assert_allclose(copy.predict(x, verbose=0), expected, atol=1e-6)


@each_builder
@pytest.mark.parametrize("suffix", [".keras", ".weights.h5", ".h5"])
def test_weights_from_a_file(small_network, module, channels, tmp_path, suffix):
    model = scrambled(small_network(input_shape=(32, 32, 3)))
    path = tmp_path / f"model{suffix}"
    (model.save_weights if suffix == ".weights.h5" else model.save)(path)
    for given in (path, str(path)):
        loaded = small_network(input_shape=(32, 32, 3), weights=given)
        for ours, theirs in zip(loaded.get_weights(), model.get_weights(), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    if suffix != ".weights.h5":
        whole = keras.models.load_model(path, compile=False)
        x = images(2, 32, 32, 3)
        np.testing.assert_allclose(
            whole.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-6
        )


@each_builder
@pytest.mark.parametrize("dtype", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision(small_network, module, channels, dtype):
    full = scrambled(small_network(input_shape=(32, 32, 3)))
    keras.config.set_dtype_policy(dtype)
    try:
        model = copy_weights(full, small_network(input_shape=(32, 32, 3)))
    finally:
        keras.config.set_dtype_policy("float32")
    assert {w.dtype for w in model.trainable_weights} == {"float32"}
    x = images(2, 32, 32, 3)
    np.testing.assert_allclose(
        model.predict(x, verbose=0).astype("float32"),
        full.predict(x, verbose=0),
        atol=0.02,
    )


# Images and predictions


@each_builder
def test_preprocess_input(builder, module, small, channels):
    x = np.random.default_rng(0).uniform(0, 255, (2, 8, 6, 3)).astype("float32")
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected, before = (x / 255 - mean) / std, x.copy()
    np.testing.assert_allclose(module.preprocess_input(x), expected, atol=1e-5)
    np.testing.assert_array_equal(x, before)
    first = module.preprocess_input(x.transpose(0, 3, 1, 2), "channels_first")
    np.testing.assert_allclose(first.transpose(0, 2, 3, 1), expected, atol=1e-5)
    tensor = module.preprocess_input(ops.convert_to_tensor(x))
    np.testing.assert_allclose(ops.convert_to_numpy(tensor), expected, atol=1e-5)
    pixels = x.astype("uint8")
    np.testing.assert_allclose(
        module.preprocess_input(pixels), (pixels / 255 - mean) / std, atol=1e-5
    )
    with pytest.raises(ValueError, match="data_format.*Received.*'NHWC'"):
        module.preprocess_input(x, data_format="NHWC")


@each_builder
def test_decode_predictions(builder, module, small, channels, monkeypatch, tmp_path):
    # Keras downloads the class names; here they are at hand.
    path = tmp_path / "names.json"
    path.write_text(
        "{" + ", ".join(f'"{i}": ["n{i:04}", "class {i}"]' for i in range(1000)) + "}"
    )
    monkeypatch.setattr(
        inspect.getmodule(keras.applications.imagenet_utils.decode_predictions),
        "CLASS_INDEX_PATH",
        path.as_uri(),
    )
    monkeypatch.setattr(
        inspect.getmodule(keras.applications.imagenet_utils.decode_predictions),
        "CLASS_INDEX",
        None,
    )
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    preds = np.zeros((1, 1000))
    preds[0, [7, 3]] = [0.9, 0.1]
    assert module.decode_predictions(preds, top=2) == [
        [("n0007", "class 7", 0.9), ("n0003", "class 3", 0.1)]
    ]
    with pytest.raises(ValueError, match=r"\(1, 10\)"):
        module.decode_predictions(np.zeros((1, 10)))


# Wrong arguments


@each_builder
@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"classes": 0}, "`classes`.*Received: 0"),
        ({"classes": 10.0}, "`classes`.*Received: 10.0"),
        ({"classes": 10, "weights": "imagenet"}, "classes=10"),
        ({"weights": "imagenet", "classifier_activation": "sigmoid"}, "sigmoid"),
        ({"weights": "cityscapes"}, "`weights`.*Received: 'cityscapes'"),
        ({"weights": "no_such_file.weights.h5"}, "`weights`.*no_such_file"),
        ({"weights": 3}, "`weights`.*Received: 3"),
        ({"input_shape": (31, 64, 3)}, r"`input_shape`.*32.*\(31, 64, 3\)"),
        ({"input_shape": (64, 64)}, r"`input_shape`.*\(64, 64\)"),
        ({"input_shape": 64}, "`input_shape`.*64"),
        ({"input_shape": (64, 64, None)}, "`input_shape.*None"),
        ({"input_shape": (64, 64.5, 3)}, "`input_shape.*64.5"),
        ({"input_shape": (64, 64, 4), "weights": "imagenet"}, "3 channels.*4"),
        ({"pooling": "sum", "include_top": False}, "`pooling`.*'sum'"),
        ({"attention": "triplet"}, "`attention`.*'triplet'"),
        ({"attention": 3}, "`attention`.*3"),
        ({"attention": CoordinateAttention()}, "`attention`.*CoordinateAttention"),
        ({"attention": None, "weights": "imagenet"}, "'attention': None"),
        ({"reduction": 0}, "`reduction`.*0"),
        ({"output_stride": 4}, "`output_stride`.*4"),
        ({"input_tensor": np.zeros((1, 32, 32, 3))}, "`input_tensor`.*ndarray"),
        ({"classifier_activation": "no_such"}, "no_such"),
    ],
)
def test_wrong_argument(small_network, module, channels, arguments, message):
    with pytest.raises(ValueError, match=message):
        small_network(**{"classes": 1000, **arguments})


@each_builder
def test_width_without_published_weights(builder, module, small, channels):
    with pytest.raises(ValueError, match=r"Received: \{'alpha': 0.25"):
        builder(weights="imagenet", **small)


@each_builder
def test_input_shape_must_be_the_tensors(small_network, module, channels):
    tensor = keras.Input((64, 64, 3))
    with pytest.raises(ValueError, match=r"\(64, 64, 3\).*\(32, 32, 3\)"):
        small_network(input_tensor=tensor, input_shape=(32, 32, 3))


@each_builder
def test_attention_must_give_a_layer(small_network, module, channels):
    with pytest.raises(TypeError, match="`attention`.*'not a layer'"):
        small_network(input_shape=(32, 32, 3), attention=lambda: "not a layer")
