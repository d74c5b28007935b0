"""Every record of the catalog, loaded by name from a local server."""

import contextlib
import inspect
import io
import re
import warnings

import h5py
import keras
import numpy as np
import pytest
from backends import once
from keras import ops
from networks import drawn, quick_initial_weights

import keras_coordatt
from keras_coordatt import EfficientNetCA, MobileNetV2CA, MobileNeXtCA, insert_attention
from keras_coordatt.applications import (
    BUILDERS,
    efficientnet_ca,
    list_models,
    list_weights,
)
from keras_coordatt.applications.verify import verify_weights
from keras_coordatt.record import record_of
from keras_coordatt.surgery import fuse_attention
from keras_coordatt.weights import (
    CATALOG,
    cached_weights,
    load_weights,
    save_safetensors,
)
from keras_coordatt.weights.official import official_state

DOWNLOADED = [name for name, record in CATALOG.items() if record.url]
SHAPE = (32, 32, 3)
# One name per network, for tests that do not depend on the record.
PLAIN = "mobilenetv2_025_imagenet"
NETWORKS = ["mobilenetv2_ca_imagenet", PLAIN, "mobilenext_imagenet"]
NETWORKS += ["efficientnetb0_imagenet"]


@pytest.fixture(autouse=True)
def quick(short_stages):
    with quick_initial_weights():
        yield


def build(name, **changes):
    record = CATALOG[name]
    builder = getattr(keras_coordatt, record.network)
    return builder(**{"input_shape": SHAPE, "weights": record.weights} | changes)


def build_like(name, **changes):
    """Builds the network of a record, with its weights unless they are changed."""
    return build(name, **CATALOG[name].arguments | changes)


def random_network(name):
    model = build_like(name, weights=None)
    rng = np.random.default_rng(0)
    model.set_weights([rng.uniform(0.5, 1.5, w.shape) for w in model.weights])
    return model


def published_file(model, record):
    """The bytes of a file as the record's source publishes it."""
    if record.filename.endswith(".h5"):
        return keras_2_file(model)
    torch = pytest.importorskip("torch")
    state = {k: torch.tensor(v) for k, v in official_state(model).items()}
    if record.filename.endswith(".tar"):  # of a training script
        state = {"module." + k: v for k, v in state.items()}
        state = {"state_dict": state, "epoch": 200, "best_acc1": torch.tensor(74.0)}
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def keras_2_file(model):
    """Weights of an EfficientNet under the names of keras.applications."""
    parts = {"depthwise": "dwconv", "depthwise_BN": "bn", "expand": "expand_conv"}
    parts |= {"expand_BN": "expand_bn", "project": "project_conv"}
    parts |= {"project_BN": "project_bn"}
    repeats = [layer.name for layer in model.layers if "depthwise_BN" in layer.name]
    first = sum(
        f"{name.removesuffix('depthwise_BN')}expand" not in model_names(model)
        for name in repeats
    )
    arrays = {"normalization/mean": [0.485, 0.456, 0.406], "normalization/count": 0}
    arrays["normalization/variance"] = [0.229, 0.224, 0.225]
    for layer in model.layers:
        name = layer.name
        if match := re.fullmatch(r"block_(\d+)_(.*)", name):
            i, part = int(match[1]), match[2]
            stage, letter = (1, i) if i < first else (2, i - first)
            block = f"block{stage}{'abcdefghijklm'[letter]}_"
            if part == "attention":
                for sub in ("reduce", "expand"):
                    kernel, bias = getattr(layer, sub).get_weights()
                    arrays[f"{block}se_{sub}/kernel"] = kernel[None, None]
                    arrays[f"{block}se_{sub}/bias"] = bias
                continue
            name = block + parts.get(part, part)
        for variable, array in zip(layer.weights, layer.get_weights(), strict=True):
            arrays[f"{name}/{keras_2_name(name, variable.path)}"] = array
    file = io.BytesIO()
    with h5py.File(file, "w") as h5:
        for path, array in arrays.items():
            h5[f"{path.split('/')[0]}/{path}:0"] = array
    return file.getvalue()


def keras_2_name(layer, path):
    weight = path.split("/")[-1]
    return "depthwise_kernel" if "dwconv" in layer else weight


def model_names(model):
    return {layer.name for layer in model.layers}


@pytest.fixture
def published(publish):
    """Publishes a random network of few blocks as a record, and returns it."""

    def make(name):
        model = random_network(name)
        publish(name, published_file(model, CATALOG[name]))
        return model

    return make


def assert_same_weights(ours, theirs):
    """The layers of `ours` with weights have those of the same name in `theirs`."""
    layers = [layer for layer in ours.layers if layer.weights]
    assert len(layers) > 10
    for layer in layers:
        expected = theirs.get_layer(layer.name).get_weights()
        for a, b in zip(layer.get_weights(), expected, strict=True):
            np.testing.assert_array_equal(a, b, err_msg=layer.name)


@contextlib.contextmanager
def no_warning():
    with warnings.catch_warnings():
        warnings.filterwarnings("error", category=UserWarning)
        yield


@pytest.mark.parametrize(
    "name",
    [
        # The larger EfficientNets differ from the first in sizes only.
        pytest.param(n, marks=once) if re.search("netb[1-7]", n) else n
        for n in DOWNLOADED
    ],
)
def test_every_record(name, published, server, cache):
    source, record = published(name), CATALOG[name]
    with no_warning():
        model = build_like(name)
    assert server.answers == [(f"/{record.filename}", 200)]
    assert [path.name for path in cache.iterdir()] == [record.filename]
    assert len(model.weights) == len(source.weights)
    assert_same_weights(model, source)
    assert record_of(model).labels == record.labels
    assert record_of(model).task == "classification"


@once
def test_the_number_of_parameters_and_the_size_of_images(monkeypatch):
    monkeypatch.undo()  # whole networks
    for name, record in CATALOG.items():
        if re.search("netb[1-7]", name):
            continue  # see tests/applications/test_efficientnet_ca.py
        arguments = {"weights": None, "classes": record.classes, **record.arguments}
        model = drawn(getattr(keras_coordatt, record.network), **arguments)
        assert model.count_params() == record.parameters, name
        if record.dataset == "ImageNet-1k":
            assert model.input_shape == (None, *[record.input_size] * 2, 3), name


def test_hashes_of_efficientnets_are_those_that_keras_lists():
    module = inspect.getmodule(keras.applications.EfficientNetB0)
    for name, record in CATALOG.items():
        if record.network == "EfficientNetCA":
            hashes = module.WEIGHTS_HASHES[record.arguments["variant"]]
            assert record.hash == f"md5:{hashes[0]}", name
            assert record.url.startswith(module.BASE_WEIGHTS_PATH)


# A name does what a file does


@pytest.mark.parametrize("name", NETWORKS)
def test_without_a_classifier(name, published):
    source = published(name)
    with no_warning():
        model = build_like(name, include_top=False)
    assert_same_weights(model, source)
    assert record_of(model).labels is None


@pytest.mark.parametrize("name", NETWORKS)
def test_another_number_of_classes(name, published, server):
    source = published(name)
    with pytest.raises(ValueError, match="1000 classes.*skip_mismatch.*classes=5"):
        build_like(name, classes=5)
    assert server.answers == []  # before anything is downloaded
    with pytest.warns(UserWarning, match="1000 outputs, the network's 5") as caught:
        model = build_like(name, classes=5, skip_mismatch=True)
    assert len([w for w in caught if w.category is UserWarning]) == 1
    assert caught[0].filename == __file__
    assert_same_weights(keras.Model(model.input, model.layers[-2].output), source)
    assert record_of(model).labels is None


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("name", NETWORKS)
def test_other_channels(name, published, channels):
    source = published(name)
    shape = (*SHAPE[:2], channels)
    with pytest.raises(ValueError, match="skip_mismatch=True"):
        build_like(name, input_shape=shape)
    with pytest.warns(UserWarning, match=f"the network's for {channels}"):
        model = build_like(name, input_shape=shape, skip_mismatch=True)
    ours, theirs = (
        next(la for la in m.layers if isinstance(la, keras.layers.Conv2D))
        for m in (model, source)
    )
    expected = theirs.get_weights()[0].sum(2)
    kernel = ours.get_weights()[0]
    if channels == 1:
        np.testing.assert_allclose(kernel[:, :, 0], expected, rtol=1e-6)
    assert kernel.shape[2] == channels


def test_on_another_tensor(published):
    source = published(PLAIN)
    image = keras.Input(SHAPE)
    x = keras.layers.Conv2D(3, 1, name="before")(image)
    model = build_like(PLAIN, input_shape=None, input_tensor=x)
    assert_same_weights(source, model)


@once
@pytest.mark.parametrize(
    "builder, arguments",
    [
        (MobileNetV2CA, {"alpha": 0.25, "weights": "imagenet"}),
        (MobileNetV2CA, {"alpha": 0.25, "attention": "height", "weights": "imagenet"}),
        (
            MobileNetV2CA,
            {"alpha": 0.25, "attention": None, "weights": "imagenet-plain"},
        ),
        (MobileNeXtCA, {"weights": "imagenet"}),
        (MobileNeXtCA, {"weights": "imagenet-plain", "attention": "cbam"}),
        (EfficientNetCA, {"weights": "imagenet"}),
    ],
)
def test_the_error_shows_lines_that_work(builder, arguments, published):
    with pytest.raises(ValueError, match='`weights="imagenet.*not published') as caught:
        builder(input_shape=SHAPE, **arguments)
    for name in NETWORKS[1:]:
        published(name)
    lines = caught.value.__notes__[0].splitlines()[1:]
    assert len(lines) == 2
    for line in lines:
        scope = {"insert_attention": insert_attention}
        scope |= BUILDERS
        line = line.replace("CA(", "CA(input_shape=(32, 32, 3), ")  # to save time
        assert isinstance(eval(line, scope), keras.Model)


def test_widths_without_weights():
    with pytest.raises(ValueError) as caught:
        MobileNetV2CA(alpha=1.4)
    for alpha in (0.25, 0.35, 0.5, 0.75, 1.0):
        call = f'(alpha={alpha}, attention=None, weights="imagenet")'
        assert call in caught.value.__notes__[0]
    with pytest.raises(ValueError, match=r"must be None, 'imagenet', or the path"):
        EfficientNetCA(weights="imagenet-plain")


# "imagenet-plain"


@pytest.mark.parametrize(
    "name, attention",
    [
        ("mobilenetv2_imagenet", "height"),
        ("mobilenetv2_075_imagenet", "width"),
        ("mobilenetv2_050_imagenet", "coordinate"),
        ("mobilenetv2_035_imagenet", "height"),
        (PLAIN, "coordinate"),
        ("mobilenext_imagenet", "coordinate"),
    ],
)
def test_plain_weights_under_attention(name, attention, published, tmp_path):
    published(name)
    plain = build_like(name)
    arguments = CATALOG[name].arguments | {"attention": attention}
    with no_warning():
        model = build(name, **arguments, weights="imagenet-plain")
    x = np.random.default_rng(0).normal(size=(4, *SHAPE)).astype("float32")
    expected = ops.convert_to_numpy(plain(x))
    assert np.ptp(expected) > 0
    np.testing.assert_array_equal(ops.convert_to_numpy(model(x)), expected)
    assert len(model.trainable_weights) > len(plain.trainable_weights)
    assert record_of(model).labels == CATALOG[name].labels

    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(ops.convert_to_numpy(again(x)), expected)


@once
def test_plain_weights_under_attention_as_files(published, tmp_path):
    published(PLAIN)
    arguments = {"alpha": 0.25, "attention": "coordinate"}
    model = build(PLAIN, **arguments, weights="imagenet-plain")
    for layer in model.layers:  # as if they were trained
        if layer.name.endswith("attention"):
            rng = np.random.default_rng(0)
            layer.set_weights([rng.uniform(0.5, 1, w.shape) for w in layer.weights])
    # The gates' factor is in no file of weights for the network without it.
    model.save_weights(tmp_path / "model.weights.h5")
    with pytest.raises(ValueError, match="`identity_init=True`.*fuse_attention"):
        build(PLAIN, **arguments, weights=tmp_path / "model.weights.h5")
    with pytest.raises(ValueError, match="`identity_init=True`.*fuse_attention"):
        save_safetensors(model, tmp_path / "model.safetensors")
    save_safetensors(fuse_attention(model), tmp_path / "model.safetensors")
    again = build(PLAIN, **arguments, weights=tmp_path / "model.safetensors")
    x = np.random.default_rng(0).normal(size=(2, *SHAPE)).astype("float32")
    expected = ops.convert_to_numpy(model(x))
    assert np.ptp(expected) > 0
    np.testing.assert_array_equal(ops.convert_to_numpy(again(x)), expected)


def test_mobilenext_without_a_classifier(publish):
    name = "mobilenext_imagenet"
    model = random_network(name)
    headless = build_like(name, weights=None, include_top=False)
    headless.set_weights(model.get_weights()[:-2])
    publish(name, published_file(headless, CATALOG[name]))
    with no_warning():
        assert_same_weights(build_like(name, include_top=False), model)
    with pytest.raises(ValueError, match="no classifier, as with `include_top=False`"):
        build_like(name)


# EfficientNet


@once
def test_efficientnet_is_keras_applications(
    publish, monkeypatch, tmp_path, assert_within
):
    """On preprocessed images, its outputs are Keras's on pixels."""
    monkeypatch.setattr(efficientnet_ca, "STAGES", WHOLE)
    theirs = keras.applications.EfficientNetB0(weights=None)
    rng = np.random.default_rng(0)
    for layer in theirs.layers:
        for i, weight in enumerate(layer.weights):
            weight.assign(draw(layer, i, weight, rng))
    theirs.save(tmp_path / "whole.h5")
    # Keras 2 wrote the weights only, under names of its own.
    with h5py.File(tmp_path / "whole.h5") as whole, io.BytesIO() as file:
        with h5py.File(file, "w") as h5:
            h5.attrs["layer_names"] = whole["model_weights"].attrs["layer_names"]
            for layer, group in whole["model_weights"].items():
                names = {
                    f"{layer}/{keras_2_name(layer, name)}:0": name
                    for name in group.attrs["weight_names"]
                }
                h5.create_group(layer).attrs["weight_names"] = [*names]
                for new, name in names.items():
                    h5[f"{layer}/{new}"] = group[name][()]
        data = file.getvalue()
    publish("efficientnetb0_imagenet", data)
    arguments = {"weights": "imagenet", "classifier_activation": None}
    ours = EfficientNetCA("b0", attention="se", **arguments)

    # Keras loads the same file by its own name, and normalizes in two steps.
    module = inspect.getmodule(keras.applications.EfficientNetB0)
    path = str(cached_weights("efficientnetb0_imagenet"))
    monkeypatch.setattr(module.file_utils, "get_file", lambda *_, **__: path)
    theirs = keras.applications.EfficientNetB0(**arguments)
    pixels = rng.uniform(0, 255, (2, 224, 224, 3)).astype("float32")
    expected = ops.convert_to_numpy(theirs(pixels))
    logits = ops.convert_to_numpy(ours(efficientnet_ca.preprocess_input(pixels)))
    assert np.abs(expected[0] - expected[1]).max() > 0.1
    difference = np.abs(logits - expected).max() / np.abs(expected).max()
    assert_within("logits, keras.applications EfficientNetB0", difference, 1e-4)


WHOLE = efficientnet_ca.STAGES


def draw(layer, i, weight, rng):
    """Weights under which the output depends on the image; Keras's own mean and std."""
    if isinstance(layer, keras.layers.Normalization):
        return [np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225]), 0][i]
    if len(weight.shape) > 1:
        depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
        fan_in = np.prod(weight.shape[:2] if depthwise else weight.shape[:-1])
        return rng.normal(scale=(2 / fan_in) ** 0.5, size=weight.shape)
    if isinstance(layer, keras.layers.BatchNormalization) and i in (0, 3):
        return rng.uniform(0.5, 1.5, weight.shape)
    return rng.normal(scale=0.3, size=weight.shape)


def test_efficientnet_of_other_preprocessing(tmp_path):
    name = "efficientnetb0_imagenet"
    model = random_network(name)
    path = tmp_path / "theirs.h5"
    path.write_bytes(keras_2_file(model))
    ours = build_like(name, weights=None)
    with h5py.File(path, "r+") as file:
        file.move("predictions/predictions", "probs/probs")  # its name at first
    load_weights(ours, path)
    assert_same_weights(ours, model)
    with h5py.File(path, "r+") as file:
        file["normalization/normalization/mean:0"][...] = 0
    with pytest.raises(ValueError, match="ImageNet's mean"):
        load_weights(build_like(name, weights=None), path)


# Messages and lists


def test_list_models():
    assert {"MobileNetV2CA", "MobileNeXtCA", "EfficientNetCA"} <= set(list_models())
    assert {record.network for record in CATALOG.values()} <= set(list_models())


def test_list_weights(cache):
    assert [entry["name"] for entry in list_weights()] == list(CATALOG)
    names = [entry["name"] for entry in list_weights("MobileNeXtCA")]
    assert names == ["mobilenext_imagenet"]
    (entry,) = list_weights("MobileNeXtCA")
    assert entry["top1"] == 74.0
    assert entry["megabytes"] == 14
    assert entry["plain"] is True
    assert entry["cached"] is None
    cache.mkdir(parents=True)
    (cache / "mnext.pth.tar").write_bytes(b"")
    (entry,) = list_weights("MobileNeXtCA")
    assert entry["cached"] == str(cache / "mnext.pth.tar")
    with pytest.raises(ValueError, match="`network` must be.*'VGG'"):
        list_weights("VGG")


def test_verify(published, publish):
    published(PLAIN)
    report = verify_weights(PLAIN)
    assert report["name"] == PLAIN
    assert report["published_top1"] == 52.352
    assert "top1" not in report
    publish(PLAIN, b"something else")
    with pytest.raises(ValueError, match="not the published file"):
        verify_weights(PLAIN)
    with pytest.raises(ValueError, match="`name` must be one of.*Received: 'it'"):
        verify_weights("it")
