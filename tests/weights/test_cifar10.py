"""The weights in the package, offline and on test images."""

import hashlib
import io
import pathlib
import tarfile
import urllib.request
import warnings

import keras
import numpy as np
import pytest
from keras import ops

from keras_coordatt import MobileNetV2CA
from keras_coordatt.record import record_of
from keras_coordatt.weights import CATALOG, cached_weights
from keras_coordatt.weights.safetensors_file import read_safetensors

NAME = "mobilenetv2_ca_cifar10"
RECORD = CATALOG[NAME]
ALPHA = RECORD.arguments["alpha"]
DATA = pathlib.Path(__file__).parents[3] / "shared" / "data" / "cifar10_jpeg.tar.xz"


@pytest.fixture(scope="module", autouse=True)
def offline():
    def fail(*_, **__):
        pytest.fail("something was downloaded")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(urllib.request, "urlopen", fail)
        patch.setattr(keras.utils, "get_file", fail)
        yield


@pytest.fixture(scope="module")
def model():
    return MobileNetV2CA(alpha=ALPHA, weights="cifar10", classes=10)


def test_the_file_is_the_catalogs():
    data = cached_weights(NAME).read_bytes()
    assert len(data) <= 4e6
    assert f"sha256:{hashlib.sha256(data).hexdigest()}" == RECORD.hash


def test_loads_by_name(model):
    assert model.input_shape == (None, RECORD.input_size, RECORD.input_size, 3)
    kernel = read_safetensors(cached_weights(NAME))["classifier.1.weight"]
    np.testing.assert_array_equal(
        model.get_layer("predictions").get_weights()[0], kernel.T
    )


def test_labels(model):
    assert record_of(model).labels == RECORD.labels
    assert record_of(model).image_size == (64, 64)


def test_other_heads_and_stems(model):
    gray = {"input_shape": (64, 64, 1), "alpha": ALPHA, "weights": "cifar10"}
    with pytest.raises(ValueError, match="skip_mismatch=True"):
        MobileNetV2CA(include_top=False, **gray)
    with pytest.warns(UserWarning, match="for 3 channels, the network's for 1"):
        headless = MobileNetV2CA(include_top=False, skip_mismatch=True, **gray)
    stem = model.get_layer("Conv1").get_weights()[0]
    np.testing.assert_allclose(
        headless.get_layer("Conv1").get_weights()[0],
        stem.sum(axis=2, keepdims=True),
        atol=1e-6,
    )


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"alpha": ALPHA}, "10 classes: pass `classes=10`.*classes=1000"),
        ({"classes": 10}, rf"Received: alpha=1\.0(.|\n)*alpha={ALPHA}"),
        (
            {"alpha": ALPHA, "classes": 10, "attention": None},
            "Received: .*attention=None",
        ),
    ],
)
def test_mismatched_files(arguments, message):
    with pytest.raises(ValueError, match=f'weights="cifar10"(.|\n)*{message}'):
        MobileNetV2CA(weights="cifar10", **arguments)


def test_a_name_behaves_as_its_file_does(model):
    path = cached_weights(NAME)
    given = []
    for weights in ("cifar10", path):
        arguments = {"alpha": ALPHA, "weights": weights, "classes": 4}
        with pytest.raises(ValueError, match="`skip_mismatch=True`"):
            MobileNetV2CA((64, 64, 3), **arguments)
        with pytest.warns(UserWarning, match="10 outputs, the network's 4") as caught:
            four = MobileNetV2CA((64, 64, 3), skip_mismatch=True, **arguments)
        assert len([w for w in caught if w.category is UserWarning]) == 1
        with warnings.catch_warnings():
            warnings.filterwarnings("error", category=UserWarning)
            headless = MobileNetV2CA(
                (64, 64, 3), ALPHA, include_top=False, weights=weights
            )
        given.append([headless.get_weights(), four.get_layer("Conv_1").get_weights()])
    for ours, theirs in zip(*given):
        assert len(ours) and all(map(np.array_equal, ours, theirs))


@pytest.mark.skipif(not DATA.exists(), reason="the images are not at hand")
def test_accuracy_on_real_images(model):
    images, labels = [], []
    with tarfile.open(DATA, "r|xz") as archive:
        for member in archive:
            *_, split, label, name = ("", "", *pathlib.PurePath(member.name).parts)
            if split == "train":
                break
            # The first 60 of each of the ten classes.
            if name.endswith(".jpg") and int(name.removesuffix(".jpg")) < 60:
                image = io.BytesIO(archive.extractfile(member).read())
                images.append(keras.utils.img_to_array(keras.utils.load_img(image)))
                labels.append(RECORD.labels.index(label))
    assert len(images) == 600
    x = ops.convert_to_numpy(RECORD.transform(np.stack(images)))
    predictions = model.predict(x, verbose=0)
    accuracy = np.mean(predictions.argmax(1) == labels)
    # Three standard deviations of a sample as large.
    expected = RECORD.top1 / 100
    deviation = (expected * (1 - expected) / len(images)) ** 0.5
    assert abs(accuracy - expected) < 3 * deviation
