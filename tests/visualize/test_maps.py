import keras
import numpy as np
import pytest
from backends import BACKEND
from keras import layers, ops
from networks import images

from keras_coordatt import CBAM, CoordinateAttention, SqueezeExcite, insert_attention
from keras_coordatt.visualize import attention_maps, grad_cam

ATTENTIONS = {
    "coordinate": lambda **k: CoordinateAttention(reduction=2, **k),
    "height": lambda **k: CoordinateAttention(axes="height", **k),
    "identity": lambda **k: CoordinateAttention(identity_init=True, **k),
    "se": lambda **k: SqueezeExcite(reduction=2, **k),
    "cbam": lambda **k: CBAM(reduction=2, kernel_size=3, **k),
}
KEYS = {
    "coordinate": ["height", "width", "product"],
    "height": ["height", "product"],
    "identity": ["height", "width", "product"],
    "se": ["channel", "product"],
    "cbam": ["channel", "position", "product"],
}


def randomize(model, seed=0):
    """Draws weights under which every layer's output depends on its input."""
    rng = np.random.default_rng(seed)
    model.set_weights([rng.uniform(0.2, 1.0, w.shape) for w in model.get_weights()])
    return model


def classifier(classes=3, activation="softmax"):
    """A small network whose score isn't linear in the feature map `features`."""
    x = image = keras.Input((6, 5, 2))
    x = layers.Conv2D(4, 2, activation="tanh", name="features")(x)
    x = layers.DepthwiseConv2D(2, name="deep", activation="softsign")(x)
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dense(classes, activation=activation, name="predictions")(x)
    model = keras.Model(image, x)
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(size=w.shape) for w in model.get_weights()])
    return model


@pytest.mark.parametrize("name", ATTENTIONS)
def test_the_output_of_attention_is_the_input_times_the_product(name):
    x = image = keras.Input((6, 5, 3))
    x = layers.Conv2D(8, 2, name="conv")(x)
    attention = ATTENTIONS[name](name="attention")
    model = randomize(keras.Model(image, attention(x)))
    outer = keras.Sequential([keras.Input((6, 5, 3)), model, layers.ReLU()])
    batch = images(2, 6, 5, 3)
    inside = keras.Model(model.input, [attention.input, model.output])
    before, after = map(ops.convert_to_numpy, inside(batch))

    (maps,) = attention_maps(outer, batch).values()
    assert list(maps) == KEYS[name]
    np.testing.assert_allclose(before * maps["product"], after, rtol=1e-5, atol=1e-7)
    assert np.ptp(maps["product"]) > 1e-3
    # The layers are as before.
    assert "call" not in vars(attention)
    np.testing.assert_array_equal(
        ops.convert_to_numpy(outer(batch)), np.maximum(after, 0)
    )


@pytest.mark.parametrize("name", ["coordinate", "cbam"])
def test_gates_are_channels_last_in_either_data_format(name):
    channels_first = ATTENTIONS[name](data_format="channels_first", name="attention")
    model = keras.Sequential([keras.Input((8, 4, 3)), channels_first])
    randomize(model)
    x = images(2, 8, 4, 3)
    (maps,) = attention_maps(model, x).values()
    last = ATTENTIONS[name](data_format="channels_last", name="attention")
    twin = keras.Sequential([keras.Input((4, 3, 8)), last])
    twin.set_weights(model.get_weights())
    (expected,) = attention_maps(twin, x.transpose(0, 2, 3, 1)).values()
    for key, gates in maps.items():
        np.testing.assert_allclose(gates, expected[key], rtol=1e-5, err_msg=key)


def test_retrofitted_and_repeated_attention():
    model = insert_attention(classifier())
    maps = attention_maps(model, images(2, 6, 5, 2))
    assert list(maps) == ["deep_attention"]
    # Inserted attention starts as the identity.
    assert np.all(maps["deep_attention"]["product"] == 1)

    image = keras.Input((6, 5, 8))
    attention = SqueezeExcite(name="attention")
    twice = keras.Model(image, attention(attention(image)))
    assert list(attention_maps(twice, images(1, 6, 5, 8))) == [
        "attention",
        "attention_1",
    ]


def test_no_attention():
    with pytest.raises(ValueError, match="`model` must have attention layers"):
        attention_maps(classifier(), images(1, 6, 5, 2))
    with pytest.raises(TypeError, match="`model` must be a keras.Model. Received: 3"):
        attention_maps(3, images(1, 6, 5, 2))
    with pytest.raises(ValueError, match="`model` must be built first"):
        attention_maps(keras.Sequential([SqueezeExcite()]), images(1, 6, 5, 2))


def finite_differences(model, layer, x, classes):
    """Grad-CAM by its formula, with central differences in place of gradients."""
    features = keras.Model(model.input, model.get_layer(layer).output)(x)
    features = ops.convert_to_numpy(features).astype("float64")
    tail = image = keras.Input(features.shape[1:])
    for each in model.layers[model.layers.index(model.get_layer(layer)) + 1 : -1]:
        tail = each(tail)
    tail = keras.Model(image, tail)
    kernel, _ = model.layers[-1].get_weights()
    maps = []
    for feature, index in zip(features, classes):
        steps = 1e-2 * np.eye(feature.size).reshape(-1, *feature.shape)
        pooled = [tail((feature + s).astype("float32")) for s in (steps, -steps)]
        up, down = (ops.convert_to_numpy(x).astype("float64") for x in pooled)
        gradient = ((up - down) / 2e-2) @ kernel[:, index]
        weights = gradient.reshape(feature.shape).mean(axis=(0, 1))
        maps.append(np.maximum(feature @ weights, 0))
    return np.stack(maps)


@pytest.mark.parametrize("activation", ["softmax", None])
def test_grad_cam_agrees_with_finite_differences(activation):
    model, x = classifier(activation=activation), images(3, 6, 5, 2)
    scores = ops.convert_to_numpy(model(x))
    classes = scores.argmax(axis=-1)
    expected = finite_differences(model, "features", x, classes)
    assert np.all(expected.max(axis=(1, 2)) > 0)
    close = {"rtol": 1e-3, "atol": 1e-4}
    np.testing.assert_allclose(grad_cam(model, x, "features"), expected, **close)
    np.testing.assert_allclose(
        grad_cam(model, x, model.get_layer("features"), class_index=[2, 0, 1]),
        finite_differences(model, "features", x, [2, 0, 1]),
        **close,
    )
    # The last feature map by default, and nothing stays behind.
    np.testing.assert_allclose(
        grad_cam(model, x, class_index=1),
        finite_differences(model, "deep", x, [1, 1, 1]),
        **close,
    )
    np.testing.assert_array_equal(ops.convert_to_numpy(model(x)), scores)
    assert not any("call" in vars(layer) for layer in model.layers)


def test_grad_cam_of_a_quantized_classifier():
    model, x = classifier(), images(3, 6, 5, 2)
    expected = finite_differences(model, "features", x, [2, 0, 1])
    model.quantize("int8")
    result = grad_cam(model, x, "features", class_index=[2, 0, 1])
    np.testing.assert_allclose(result, expected, atol=0.02 * expected.max())
    assert not any("quantized_call" in vars(layer) for layer in model.layers)


def test_grad_cam_before_a_classifier_of_convolutions():
    x = image = keras.Input((6, 5, 2))
    x = layers.Conv2D(4, 2, activation="tanh", name="features")(x)
    x = layers.GlobalAveragePooling2D(keepdims=True)(x)
    x = layers.Flatten()(layers.Conv2D(3, 1)(x))
    model = randomize(keras.Model(image, x))
    x = images(2, 6, 5, 2)
    result = grad_cam(model, x, class_index=1)
    np.testing.assert_array_equal(result, grad_cam(model, x, "features", 1))
    assert result.shape == (2, 5, 4)


def test_grad_cam_of_nested_and_retrofitted_models():
    model, x = classifier(), images(2, 6, 5, 2)
    expected = grad_cam(model, x, "deep", class_index=1)
    retrofitted = insert_attention(model)
    for layer in ("deep", "deep_attention", None):
        result = grad_cam(retrofitted, x, layer, class_index=1)
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-6)
    backbone = keras.Model(model.input, model.get_layer("deep").output, name="inner")
    nested = keras.Sequential([keras.Input((6, 5, 2)), backbone, *model.layers[-2:]])
    for layer in ("deep", "inner", None):
        result = grad_cam(nested, x, layer, class_index=1)
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-6)


class Wrapped(layers.Layer):
    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(3, activation="softmax")

    def call(self, x):
        return self.dense(x)


def squashed(squash):
    """The classifier without an activation, and one with a softmax or sigmoid after it."""
    model = classifier(activation=None)
    return model, keras.Model(model.input, squash(model.output))


@pytest.mark.parametrize(
    "squash",
    [
        ops.softmax,
        ops.sigmoid,
        keras.activations.softmax,
        layers.Softmax(),
        layers.Activation("sigmoid"),
        layers.Lambda(ops.softmax),
        lambda x: layers.Identity()(layers.Dropout(0.5)(layers.Softmax()(x))),
        lambda x: layers.Flatten()(ops.reshape(ops.softmax(x), (-1, 1, 3))),
        lambda x: keras.Sequential([keras.Input((3,)), layers.Softmax()])(x),
    ],
)
def test_grad_cam_explains_the_score_before_the_softmax(squash):
    model, probable = squashed(squash)
    x = 3 * images(2, 6, 5, 2)
    expected = grad_cam(model, x, "features", 1)
    assert np.all(expected.max(axis=(1, 2)) > 0)
    nested = keras.Sequential([keras.Input((6, 5, 2)), probable, layers.Identity()])
    for each in (probable, nested):
        result = grad_cam(each, x, "features", 1)
        np.testing.assert_allclose(result, expected, rtol=1e-5)


class Subclass(keras.Model):
    def __init__(self, model, squash):
        super().__init__()
        self.model, self.squash = model, squash
        self.aside = layers.Dense(2, activation="softmax")

    def call(self, x):
        scores = self.model(x)
        self.aside(scores)
        return self.squash(scores)


def test_grad_cam_of_layers_and_models_of_other_code():
    model = classifier(activation=None)
    x = images(2, 6, 5, 2)
    expected = grad_cam(model, x, "features", 1)
    wrapped = keras.Model(model.input, Wrapped()(model.layers[-2].output))
    wrapped.set_weights(model.get_weights())
    # The layer that is called last isn't the end.
    scores, probable = Subclass(model, lambda x: x), Subclass(model, ops.softmax)
    scores(x), probable(x)
    for each in (wrapped, scores):
        result = grad_cam(each, x, "features", 1)
        np.testing.assert_allclose(result, expected, rtol=1e-5)

    _, clipped = squashed(lambda x: ops.clip(ops.softmax(x), 1e-7, 1))
    _, unknown = squashed(layers.Lambda(lambda x: ops.softmax(x)))
    for each in (probable, clipped, unknown):
        with pytest.raises(ValueError, match="`model` must return scores, or end in"):
            grad_cam(each, x, "features")


def test_grad_cam_of_means_of_probabilities():
    def mean(squash):
        x = image = keras.Input((6, 5, 2))
        x = layers.Conv2D(4, 2, activation="tanh", name="features")(x)
        one, two = (squash(layers.Conv2D(3, 2)(x)) for _ in range(2))
        x = layers.GlobalAveragePooling2D()(layers.Average()([one, two]))
        return keras.Model(image, x)

    x = images(2, 6, 5, 2)
    model = randomize(mean(lambda x: x))
    expected = grad_cam(model, x, "features", 1)
    for squash in (ops.sigmoid, layers.Softmax()):
        probable = mean(squash)
        probable.set_weights(model.get_weights())
        result = grad_cam(probable, x, "features", 1)
        np.testing.assert_allclose(result, expected, rtol=1e-5)


def test_layers_that_lead_to_no_output():
    model = classifier()
    image, middle = model.input, model.get_layer("features").output

    class Aside(layers.Layer):
        def __init__(self):
            super().__init__()
            self.conv = layers.Conv2D(2, 1, name="lost")

        def call(self, x):
            self.conv(x)
            return x

    x = Aside()(middle)
    for layer in model.layers[2:]:
        x = layer(x)
    model, x = keras.Model(image, x), images(2, 6, 5, 2)
    for trainable in (True, False):
        model.trainable = trainable
        with pytest.raises(ValueError, match="`layer` must lead to.* Received: 'lost'"):
            grad_cam(model, x, "lost")
    # A path, along which the gradient is 0
    model.get_layer("predictions").set_weights([np.zeros((4, 3)), np.zeros(3)])
    assert np.all(grad_cam(model, x, "features") == 0)


def test_attributes_of_layers_are_put_back():
    model, x = insert_attention(classifier()), images(1, 6, 5, 2)
    attention = model.get_layer("deep_attention")
    original = attention.call
    attention.call = own = lambda x, **kwargs: original(x) * 0 + 1
    attention_maps(model, x)
    grad_cam(model, x)
    assert attention.call is own


def test_the_default_layer_is_called_once():
    act = layers.ReLU(name="act")
    image = keras.Input((6, 5, 2))
    x = act(act(layers.Conv2D(2, 2, name="first")(image)))
    twice = keras.Model(image, layers.GlobalMaxPooling2D()(x))
    x = images(2, 6, 5, 2)
    np.testing.assert_array_equal(
        grad_cam(twice, x, class_index=1), grad_cam(twice, x, "first", 1)
    )
    pair = [keras.Input((6, 5, 2)), keras.Input((6, 5, 2))]
    siamese = keras.Model(pair, layers.Add()([*map(twice, pair)]))
    with pytest.raises(ValueError, match="`model` must have a layer that is called"):
        grad_cam(siamese, [x, x])
    for wrong in ([x, x[:1]], [x[:0], x[:0]]):
        with pytest.raises(ValueError, match="`images` must have one image or more"):
            grad_cam(siamese, wrong)


def test_images_in_nested_lists():
    with pytest.raises(ValueError, match="^`images` must be an array") as caught:
        grad_cam(classifier(), images(2, 6, 5, 2).tolist())
    assert len(str(caught.value)) < 200


class Own(layers.Layer):
    def __init__(self, gate):
        super().__init__(name="own")
        self.gate = gate

    def compute_gates(self, x):
        return {self.gate: ops.sigmoid(ops.mean(x, axis=(1, 2)))}

    def call(self, x):
        return x * self.compute_gates(x)[self.gate][:, None, None]


def test_own_attention():
    x = images(2, 6, 5, 2)
    model = keras.Sequential([keras.Input((6, 5, 2)), Own("channel")])
    assert attention_maps(model, x)["own"]["product"].shape == x.shape
    model = keras.Sequential([keras.Input((6, 5, 2)), Own("gate")])
    with pytest.raises(
        ValueError, match=r"^`model` must.*`compute_gates`.*'channel'.*\['gate'\]"
    ):
        attention_maps(model, x)


@pytest.mark.skipif(
    BACKEND == "tensorflow", reason="TensorFlow has no such convolutions on the CPU"
)
def test_grad_cam_channels_first():
    model = classifier()
    x = image = keras.Input((2, 6, 5))
    for layer in model.layers[1:-1]:
        config = layer.get_config() | {"data_format": "channels_first"}
        x = type(layer).from_config(config)(x)
    first = keras.Model(image, model.layers[-1](x))
    first.set_weights(model.get_weights())
    batch = images(2, 6, 5, 2)
    np.testing.assert_allclose(
        grad_cam(first, batch.transpose(0, 3, 1, 2), "features"),
        grad_cam(model, batch, "features"),
        rtol=1e-4,
        atol=1e-6,
    )


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"layer": "nothing"}, "`layer`.*0 layers match.*features, deep"),
        (
            {"layer": "predictions"},
            "`layer` must be called once and return one feature",
        ),
        ({"class_index": 3}, "`class_index` must be an integer from 0 to 2.*: 3"),
        ({"class_index": [0, 1, 2]}, r"`class_index`.*2 images.*\[0, 1, 2\]"),
        ({"class_index": 0.5}, "`class_index`.*0.5"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        grad_cam(classifier(), images(2, 6, 5, 2), **arguments)


def test_grad_cam_needs_one_score_per_class():
    model = classifier()
    message = (
        r"one output of shape \(N, classes\).* and a layer before `score` as `layer`"
    )
    with pytest.raises(ValueError, match=message):
        grad_cam(
            keras.Model(model.input, model.get_layer("deep").output),
            images(1, 6, 5, 2),
        )
