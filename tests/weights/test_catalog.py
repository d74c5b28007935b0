"""The catalog agrees with the networks."""

import pathlib

import numpy as np
import PIL.Image
import pytest
from keras import ops

from keras_coordatt.applications import efficientnet_ca, mobilenet_v2_ca, mobilenext_ca
from keras_coordatt.weights import CATALOG
from keras_coordatt.weights.catalog import table

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "weights.md"
MODULES = {
    "MobileNetV2CA": mobilenet_v2_ca,
    "MobileNeXtCA": mobilenext_ca,
    "EfficientNetCA": efficientnet_ca,
}
PILLOW = {
    "bilinear": PIL.Image.Resampling.BILINEAR,
    "bicubic": PIL.Image.Resampling.BICUBIC,
}
# Of git, at the commits in the URLs
PLAIN = {
    1.0: (72.834, "328582ba4afd90b6d910cda251d9d9e411b60c39"),
    0.75: (69.952, "cdeec72e379dd97de9f2c6da9804bcb2b1acc83d"),
    0.5: (64.592, "ccd6f9174d801e775e3423dd82af6fbc4ee9456c"),
    0.35: (60.092, "6e99454d05c8600f241f620557201ce9bd28a3a8"),
    0.25: (52.352, "bf82bc72fc702f6dc491343b4991c1ff6d39b208"),
}


def test_the_official_file_is_pinned():
    record = CATALOG["mobilenetv2_ca_imagenet"]
    assert record.url == (
        "https://github.com/houqb/CoordAttention/raw/"
        "9c9d9cc234c1fc0e195816304eb07753ef308e00/mbv2_ca.pth"
    )
    assert record.hash == "git:07b6640600b7d767acfaebcf5ddb801b675073df"
    assert (record.top1, record.license, record.classes) == (74.3, "MIT", 1000)
    assert (record.input_size, record.resize_size) == (224, 256)


def test_the_plain_files_are_pinned():
    found = {
        record.arguments["alpha"]: (record.top1, record.hash.removeprefix("git:"))
        for record in CATALOG.values()
        if record.source == "https://github.com/d-li14/mobilenetv2.pytorch"
    }
    assert found == PLAIN
    record = CATALOG["mobilenetv2_035_imagenet"]
    assert record.url == (
        "https://github.com/d-li14/mobilenetv2.pytorch/raw/"
        "1733532bd43743442077326e1efc556d7cfd025d/pretrained/"
        "mobilenetv2_0.35-b2e15951.pth"
    )
    record = CATALOG["mobilenext_imagenet"]
    assert record.hash == "git:dfcab7a4895a09fa9b19c7ac9d21651c55ab6a15"
    assert record.url == (
        "https://github.com/houqb/ssdlite-pytorch-mobilenext/raw/"
        "6219e33efccceee1825a44cd46c39332d0c01eea/weights/mnext.pth.tar"
    )


@pytest.mark.parametrize("name", CATALOG)
def test_facts(name):
    record = CATALOG[name]
    assert 50 < record.top1 < 85
    assert record.license in ("MIT", "Apache-2.0")
    if record.dataset == "ImageNet-1k":
        assert record.classes == len(set(record.labels)) == 1000
        # Classes that many know by their number
        for i, label in {0: "tench", 207: "golden retriever", 281: "tabby"}.items():
            assert record.labels[i] == label


@pytest.mark.parametrize("name", CATALOG)
def test_preprocessing_is_the_networks(name):
    record = CATALOG[name]
    preprocess_input = MODULES[record.network].preprocess_input
    image = np.random.default_rng(0).uniform(0, 255, (2, 5, 7, 3)).astype("float32")
    expected = (image / 255 - record.mean) / record.std
    given = preprocess_input(image.copy(), data_format="channels_last")
    np.testing.assert_allclose(given, expected, atol=1e-5)


@pytest.mark.parametrize(
    "name",
    ["mobilenetv2_ca_imagenet", "mobilenetv2_ca_cifar10", "efficientnetb0_imagenet"],
)
@pytest.mark.parametrize("size", [(300, 420), (420, 300), (60, 60)])
def test_images_are_transformed_as_pillow_does(name, size):
    record = CATALOG[name]
    rows, columns = np.mgrid[0 : size[0], 0 : size[1]]
    image = np.stack([rows / size[0], columns / size[1], rows * columns / 2e5], -1)
    image = (100 + 100 * np.sin(3 * image)).astype("uint8")

    scale = record.resize_size / min(size)
    width, height = round(size[1] * scale), round(size[0] * scale)
    resized = PIL.Image.fromarray(image).resize(
        (width, height), PILLOW[record.interpolation]
    )
    left, top = (width - record.input_size) // 2, (height - record.input_size) // 2
    box = (left, top, left + record.input_size, top + record.input_size)
    expected = np.asarray(resized.crop(box), "float32")
    expected = (expected / 255 - record.mean) / record.std

    given = ops.convert_to_numpy(record.transform(image[None]))[0]
    assert given.shape == (record.input_size, record.input_size, 3)
    # Pillow rounds to whole values, and does not cut before it resizes.
    np.testing.assert_allclose(given, expected, atol=0.05)


def test_the_readme_has_the_table():
    assert table() in PAGE.read_text()


@pytest.mark.parametrize("name", CATALOG)
def test_table_has_a_row_for_each(name):
    (row,) = [row for row in table().splitlines() if f"| {name} |" in row]
    record = CATALOG[name]
    for value in (record.network, f"{record.top1:.1f} %", record.license):
        assert value in row
    assert record.checked in row
    assert len({row.count("|") for row in table().splitlines()}) == 1
