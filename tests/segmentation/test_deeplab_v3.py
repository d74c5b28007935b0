import functools

import keras
import numpy as np
import pytest
from backends import gradient, needs_tensorflow
from keras import ops
from networks import (
    assert_near,
    calibrated,
    copy_weights,
    count,
    drawn,
    images,
    outputs,
)

from keras_coordatt import EfficientNetCA, MobileNetV2CA, MobileNeXtCA
from keras_coordatt.applications import pyramid_outputs
from keras_coordatt.segmentation import DeepLabV3

SHAPE = (64, 48, 3)
IGNORED = 255


def shallow_network(input_shape=(None, None, 3), output_stride=16):
    """A quick backbone of one convolution per stride."""
    x = image = keras.Input(input_shape)
    names = ["stem", *(f"block_{i}_conv" for i in range(4))]
    for name in names[: output_stride.bit_length() - 1]:
        x = keras.layers.Conv2D(16, 3, 2, "same", activation="relu", name=name)(x)
    return keras.Model(image, x)


@pytest.fixture(scope="module")
def x():
    return images(4, *SHAPE)


@pytest.fixture(scope="module")
def model(x):
    """A segmenter of images of any size."""
    return calibrated(DeepLabV3(shallow_network(), 5, filters=16), x)


@pytest.fixture(scope="module")
def logits(model, x):
    return outputs(model, x)


# The paper's network


@pytest.mark.parametrize("attention, millions", [(None, 4.5), ("coordinate", 5.0)])
def test_parameters_of_the_paper(attention, millions):
    network = drawn(MobileNetV2CA, weights=None, output_stride=16, attention=attention)
    model = drawn(DeepLabV3, network, 21)
    assert round(count(model) / 1e6, 1) == millions


@pytest.mark.parametrize("output_stride, rates", [(16, (6, 12, 18)), (8, (12, 24, 36))])
def test_each_branch_sees_as_far_as_its_rate(output_stride, rates):
    model = DeepLabV3(shallow_network(output_stride=output_stride), 2, filters=1)
    features = next(reversed(pyramid_outputs(model).values()))
    side = 2 * rates[-1] + 3
    impulse = np.zeros((1, side, side, features.shape[3]), "float32")
    impulse[0, side // 2, side // 2] = 1
    for i, rate in enumerate((0, *rates)):
        convolution = model.get_layer(f"aspp_{i}")
        y = outputs(keras.Model(features, convolution.output), impulse)
        rows, columns = (sorted(set(places)) for places in y[0, :, :, 0].nonzero())
        reach = [-rate, 0, rate] if rate else [0]
        assert rows == columns == [side // 2 + step for step in reach]


def reference(layer, features, rates):
    """The scores on the feature map, in NumPy and float64.

    Args:
        layer: Returns a layer by its name.
    """

    def conv_bn_relu(x, name, dilation=0):
        kernel = weights(name)[0]
        assert kernel.shape[:2] == ((3, 3) if dilation else (1, 1))
        height, width = x.shape[1:3]
        x = np.pad(x, ((0, 0), (dilation, dilation), (dilation, dilation), (0, 0)))
        y = sum(
            x[:, i * dilation :, j * dilation :][:, :height, :width] @ kernel[i, j]
            for i, j in np.ndindex(kernel.shape[:2])
        )
        gamma, beta, mean, variance = weights(f"{name}_BN")
        return np.maximum(gamma * (y - mean) / np.sqrt(variance + 1e-5) + beta, 0)

    def weights(name):
        return [w.astype("float64") for w in layer(name).get_weights()]

    x = features.astype("float64")
    branches = [conv_bn_relu(x, "aspp_0")]
    branches += [conv_bn_relu(x, f"aspp_{i}", r) for i, r in enumerate(rates, 1)]
    pooled = conv_bn_relu(x.mean((1, 2), keepdims=True), "aspp_pool")
    branches.append(np.broadcast_to(pooled, branches[0].shape))
    x = conv_bn_relu(np.concatenate(branches, 3), "aspp_project")
    kernel, bias = weights("predictions")
    return x @ kernel[0, 0] + bias


@pytest.mark.parametrize("rates", [(6, 12, 18), (1, 2), [3]])
def test_the_head_follows_the_equations(rates, bilinear):
    model = DeepLabV3(shallow_network(), 3, filters=4, atrous_rates=rates)
    features = next(reversed(pyramid_outputs(model).values()))
    head = keras.Model([features, model.input], model.output)
    x, image = images(2, 15, 20, features.shape[3]), images(2, 33, 47, 3, seed=1)
    calibrated(head, [x, image])
    expected = bilinear(reference(model.get_layer, x, rates), (33, 47))
    assert_near(outputs(head, [x, image]), expected, 1e-5)


@pytest.mark.parametrize("arguments, rate", [({}, 0.1), ({"dropout": 0.5}, 0.5)])
def test_dropout(arguments, rate):
    model = drawn(DeepLabV3, shallow_network(), 2, **arguments)
    assert model.get_layer("aspp_dropout").rate == rate


# Images and backbones


@pytest.mark.parametrize("size", [(64, 48), (75, 101)])
def test_the_size_may_be_known(model, size):
    x = images(2, *size, 3)
    fixed = copy_weights(model, DeepLabV3(shallow_network((*size, 3)), 5, filters=16))
    assert fixed.output_shape == (None, *size, 5)
    assert model.output_shape == (None, None, None, 5)
    y = outputs(fixed, x)
    assert y.shape == (2, *size, 5)
    assert_near(outputs(model, x), y, 1e-6)


@needs_tensorflow
def test_a_graph_for_any_size():
    import tensorflow as tf

    backbone = MobileNetV2CA(
        alpha=0.25, include_top=False, weights=None, output_stride=8
    )
    model = calibrated(DeepLabV3(backbone, 2, filters=8), images(2, 64, 48, 3))
    call = functools.partial(model, training=False)
    function = tf.function(call, input_signature=[tf.TensorSpec((None, None, None, 3))])
    for size in ((64, 48), (75, 101)):
        x = images(2, *size, 3)
        assert_near(function(x).numpy(), outputs(model, x), 1e-5)


FAMILIES = [
    pytest.param(
        functools.partial(MobileNetV2CA, alpha=0.25, weights=None),
        "block_16_project_BN",
        id="MobileNetV2CA",
    ),
    pytest.param(
        functools.partial(MobileNeXtCA, alpha=0.25),
        "block_19_depthwise_2_BN",
        id="MobileNeXtCA",
    ),
    pytest.param(
        functools.partial(EfficientNetCA, "b0"),
        "block_15_project_BN",
        id="EfficientNetCA",
    ),
]


@pytest.mark.parametrize("build, last", FAMILIES)
@pytest.mark.parametrize("include_top", [True, False])
def test_every_family(build, last, include_top):
    network = drawn(
        build, input_shape=(64, 96, 3), include_top=include_top, output_stride=16
    )
    for source in (network, drawn(keras.models.clone_model, network)):
        model = drawn(DeepLabV3, source, 7)
        assert model.output_shape == (None, 64, 96, 7)
        features = model.get_layer("aspp_0").input
        assert features is source.get_layer(last).output
        ours = {layer.name for layer in model.layers}
        assert not ours & {"Conv_1", "top_conv", "avg_pool"}
        # It is a network whose feature maps can be found, itself.
        assert [*pyramid_outputs(model).values()][-1] is features


def test_shares_its_weights_with_the_backbone(x):
    network = shallow_network(SHAPE)
    model = DeepLabV3(network, 2, filters=4)
    for layer in model.layers:
        if not layer.name.startswith(("aspp", "predictions", "logits")):
            assert layer is network.get_layer(layer.name)
    network.trainable = False
    head = 6 * 3 + 2  # kernels with gamma and beta; the classifier
    assert len(model.trainable_weights) == head


def test_backbone_that_was_saved(tmp_path):
    path, x = tmp_path / "backbone.keras", images(2, 64, 32, 3)
    backbone = MobileNetV2CA(
        x.shape[1:],
        alpha=0.25,
        weights=None,
        classes=2,
        attention=None,
        output_stride=16,
    )
    model = DeepLabV3(backbone, 2, filters=8)
    backbone.save(path)
    loaded = keras.saving.load_model(path, compile=False)
    ours = copy_weights(model, DeepLabV3(loaded, 2, filters=8))
    # JAX compiles one graph in less time than every operation apart.
    assert_near(ours.predict(x, verbose=0), model.predict(x, verbose=0), 1e-5)


def test_preprocessing_and_input_from_another_layer():
    inputs = keras.Input((128, 96, 3))
    image = keras.layers.AveragePooling2D(2, name="half")(inputs)
    network = drawn(
        MobileNetV2CA,
        input_tensor=image,
        alpha=0.25,
        weights=None,
        output_stride=8,
        include_preprocessing=True,
    )
    model = drawn(DeepLabV3, network, 3)
    assert model.input is inputs
    assert model.get_layer("aspp_0").input.shape[1:3] == (8, 6)
    assert model.output_shape == (None, 128, 96, 3)
    assert model.get_layer("aspp_1").dilation_rate == (12, 12)


def test_mixed_precision(model, logits, x):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        ours = DeepLabV3(shallow_network(SHAPE), 5, filters=16)
    finally:
        keras.config.set_dtype_policy("float32")
    copy_weights(model, ours)
    assert {w.dtype for w in ours.weights} == {"float32"}
    y = ours(x, training=False)
    assert keras.backend.standardize_dtype(y.dtype) == "float32"
    assert_near(ops.convert_to_numpy(y), logits, 0.02)


def with_settings(function, data_format, policy):
    """Calls a function under other global settings."""
    before = keras.config.image_data_format(), keras.config.dtype_policy()
    keras.config.set_image_data_format(data_format)
    keras.config.set_dtype_policy(policy)
    try:
        return function()
    finally:
        keras.config.set_image_data_format(before[0])
        keras.config.set_dtype_policy(before[1])


SETTINGS = [("channels_first", "mixed_float16"), ("channels_last", "float32")]


@pytest.mark.parametrize("ours, others", [SETTINGS, SETTINGS[::-1]])
def test_data_format_and_precision_are_the_backbones(ours, others):
    first = ours[0] == "channels_first"
    shape = (3, *SHAPE[:2]) if first else SHAPE
    network = with_settings(lambda: drawn(shallow_network, shape), *ours)
    model = with_settings(lambda: drawn(DeepLabV3, network, 5), *others)
    size = SHAPE[:2]
    assert model.output_shape == (None, 5, *size) if first else (None, *size, 5)
    assert model.output.dtype == "float32"
    for layer in model.layers[1:]:
        assert getattr(layer, "data_format", ours[0]) == ours[0]
        expected = "float32" if layer.name == "logits" else ours[1]
        assert layer.dtype_policy.name == expected, layer.name
    axes = {layer.axis for layer in model.layers if hasattr(layer, "axis")}
    assert axes == {1 if first else 3}


def test_one_image_per_step_ruins_nothing():
    keras.utils.set_random_seed(0)
    x, masks = scenes(3, 64)
    network = shallow_network((64, 64, 3))
    model = DeepLabV3(network, 3, filters=8, atrous_rates=(1,), dropout=0.0)
    model.compile(keras.optimizers.SGD(1e-3), crossentropy())
    # Two steps of one image, then an epoch that ends in one
    model.fit(x[:2], masks[:2], batch_size=1, epochs=30, verbose=0)
    variance = model.get_layer("aspp_pool_BN").get_weights()[3]
    np.testing.assert_array_equal(variance, 1)
    model.fit(x, masks, batch_size=2, epochs=5, shuffle=False, verbose=0)
    features = keras.Model(model.input, model.get_layer("aspp_pool").output)
    pooled = outputs(features, x[:2])
    variance, before = model.get_layer("aspp_pool_BN").get_weights()[3], variance
    # Only the batches of two have changed it.
    expected = before
    for _ in range(5):
        expected = 0.9 * expected + 0.1 * pooled.var((0, 1, 2))
    np.testing.assert_allclose(variance, expected, rtol=0.05)


# Saving and copying


@pytest.mark.parametrize(
    "copy",
    [
        keras.models.clone_model,
        lambda model: keras.models.model_from_json(model.to_json()),
    ],
    ids=["clone_model", "json"],
)
def test_copies_are_the_same(model, logits, x, copy):
    ours = copy_weights(model, copy(model))
    assert ours.name == model.name == "deeplab_v3"
    assert_near(outputs(ours, x), logits, 1e-6)


def test_saving(model, logits, x, tmp_path):
    path = tmp_path / "model.keras"
    model.save(path)
    loaded = keras.saving.load_model(path, compile=False)
    assert_near(outputs(loaded, x), logits, 1e-6)
    ours = DeepLabV3(shallow_network(SHAPE), 5, filters=16, weights=path)
    assert_near(outputs(ours, x), logits, 1e-6)

    # With other classes, the other weights are useful.
    with pytest.raises(ValueError, match="5 outputs.*3 .pass `skip_mismatch=True`"):
        DeepLabV3(shallow_network(SHAPE), 3, filters=16, weights=path)
    with pytest.warns(UserWarning, match="5 outputs, the network's 3"):
        ours = DeepLabV3(
            shallow_network(SHAPE), 3, filters=16, weights=path, skip_mismatch=True
        )
    assert ours.output_shape[3] == 3
    kernels = (m.get_layer("aspp_project").get_weights()[0] for m in (ours, model))
    np.testing.assert_array_equal(*kernels)


# Training


def losses_of(logits, masks):
    """The loss, its gradient, the mean IoU and its classes' confusion, in NumPy."""
    logits = logits.astype("float64")
    logits = logits - logits.max(-1, keepdims=True)
    scores = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    counts = masks != IGNORED
    truth = np.eye(logits.shape[-1])[np.where(counts, masks, 0)]
    loss = -np.log((scores * truth).sum(-1))[counts].mean()
    grad = (scores - truth) * counts[..., None] / counts.sum()
    predicted = logits.argmax(-1)
    ious = []
    for k in range(logits.shape[-1]):
        ours, theirs = ((y == k) & counts for y in (predicted, masks))
        if (ours | theirs).any():
            ious.append((ours & theirs).sum() / (ours | theirs).sum())
    return loss, grad, np.mean(ious)


def crossentropy():
    return keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, ignore_class=IGNORED
    )


def mean_iou(classes):
    return keras.metrics.MeanIoU(
        classes, name="iou", ignore_class=IGNORED, sparse_y_pred=False
    )


def random_masks(logits):
    *size, classes = logits.shape
    masks = np.random.default_rng(2).integers(0, classes + 1, size, "int32")
    return np.where(masks == classes, IGNORED, masks)


def test_pixels_that_dont_count_have_no_gradient(logits):
    masks = random_masks(logits)
    loss = crossentropy()
    grad = gradient(lambda y: loss(masks, y), logits)
    assert not grad[masks == IGNORED].any()
    np.testing.assert_allclose(grad, losses_of(logits, masks)[1], atol=1e-8)


def test_loss_and_metric_are_kerass_own(model, logits, x):
    masks = random_masks(logits)
    metric = mean_iou(5)
    model.compile("sgd", crossentropy(), metrics=[metric])
    report = model.evaluate(x, masks, batch_size=4, verbose=0, return_dict=True)
    loss, _, iou = losses_of(logits, masks)
    np.testing.assert_allclose(report["loss"], loss, rtol=1e-4)
    np.testing.assert_allclose(report["iou"], iou, rtol=1e-4)
    assert ops.convert_to_numpy(metric.total_cm).sum() == (masks != IGNORED).sum()


def test_channels_first(model, logits, x, channels_first):
    network = shallow_network((3, *SHAPE[:2]))
    ours = copy_weights(model, DeepLabV3(network, 5, filters=16))
    assert ours.output_shape == (None, 5, *SHAPE[:2])
    x = x.transpose(0, 3, 1, 2)
    assert_near(outputs(ours, x).transpose(0, 2, 3, 1), logits, 1e-4)

    last = keras.Model(ours.input, keras.layers.Permute((2, 3, 1))(ours.output))
    last.compile("sgd", crossentropy(), metrics=[mean_iou(5)])
    masks = random_masks(logits)
    report = last.evaluate(x, masks, batch_size=4, verbose=0, return_dict=True)
    loss, _, iou = losses_of(logits, masks)
    np.testing.assert_allclose(report["loss"], loss, rtol=1e-4)
    np.testing.assert_allclose(report["iou"], iou, atol=2e-3)


def scenes(count, size):
    """Noisy scenes of a ground, a box and a disc, with outlines that don't count."""
    rng = np.random.default_rng(0)
    places = np.mgrid[:size, :size]
    masks = np.zeros((count, size, size), "int32")
    for mask in masks:
        for k, distance in ((1, np.maximum), (2, np.hypot)):
            radius = distance(*(abs(p - rng.uniform(16, size - 16)) for p in places))
            mask[radius < 16] = IGNORED
            mask[radius < 14] = k
    colors = np.zeros((IGNORED + 1, 3))
    colors[:3] = np.eye(3)
    x = colors[masks] + rng.normal(scale=0.2, size=(*masks.shape, 3))
    return x.astype("float32"), masks


def test_learns_a_few_scenes_by_heart():
    keras.utils.set_random_seed(0)
    x, masks = scenes(4, 64)
    model = DeepLabV3(
        shallow_network((64, 64, 3), output_stride=8),
        3,
        filters=16,
        atrous_rates=(1, 2, 3),
    )
    model.compile(keras.optimizers.Adam(3e-2), crossentropy(), metrics=[mean_iou(3)])
    model.fit(x, masks, batch_size=4, epochs=60, verbose=0)
    report = model.evaluate(x, masks, verbose=0, return_dict=True)
    assert report["iou"] > 0.85


# Wrong arguments


@pytest.fixture(scope="module")
def network():
    return drawn(shallow_network)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"classes": 0}, "`classes`.*Received: 0"),
        ({"classes": 2.0}, "`classes`.*Received: 2.0"),
        ({"filters": -1}, "`filters`.*Received: -1"),
        ({"atrous_rates": 6}, "`atrous_rates`.*Received: 6"),
        ({"atrous_rates": ()}, r"`atrous_rates`.*Received: \(\)"),
        ({"atrous_rates": (6, 0)}, "`atrous_rates`.*Received: 0"),
        ({"dropout": 1}, "`dropout`.*Received: 1"),
        ({"dropout": "0.1"}, "`dropout`.*Received: '0.1'"),
        ({"weights": "voc"}, "`weights`.*Received: 'voc'"),
        ({"weights": "no_such_file.keras"}, "`weights`.*no_such_file"),
        ({"backbone": None}, "`backbone`.*Received: None"),
    ],
)
def test_wrong_argument(network, arguments, message):
    with pytest.raises(ValueError, match=message):
        drawn(DeepLabV3, **{"backbone": network, "classes": 2, **arguments})


def test_other_backbones_are_refused():
    other = drawn(keras.applications.MobileNet, weights=None, alpha=0.25)
    with pytest.raises(ValueError, match="`backbone`.*Received: .*mobilenet"):
        DeepLabV3(other, 2)

    image, other = keras.Input((64, 64, 3)), keras.Input((64, 64, 3))
    both = keras.layers.Add()([image, other])
    network = drawn(MobileNetV2CA, input_tensor=both, alpha=0.25, weights=None)
    with pytest.raises(ValueError, match="`backbone`.*one input.*Received"):
        DeepLabV3(network, 2)


def test_a_backbone_of_stride_32_needs_rates():
    network = drawn(shallow_network, SHAPE, output_stride=32)
    with pytest.raises(ValueError, match="`output_stride=16`.*stride of 32"):
        DeepLabV3(network, 2)
    model = drawn(DeepLabV3, network, 2, atrous_rates=(3, 6, 9))
    assert model.output_shape == (None, *SHAPE[:2], 2)
    assert model.get_layer("aspp_3").dilation_rate == (9, 9)
