"""The catalog says what the networks do."""

import numpy as np
import pytest

from keras_coordatt.applications import mobilenet_v2_ca
from keras_coordatt.weights import CATALOG
from keras_coordatt.weights.catalog import table

MODULES = {"MobileNetV2CA": mobilenet_v2_ca}


def test_the_official_file_is_pinned():
    record = CATALOG["mobilenetv2_ca_imagenet"]
    assert record.url == (
        "https://github.com/houqb/CoordAttention/raw/"
        "9c9d9cc234c1fc0e195816304eb07753ef308e00/mbv2_ca.pth"
    )
    assert record.hash == "git:07b6640600b7d767acfaebcf5ddb801b675073df"
    assert (record.top1, record.license, record.classes) == (74.3, "MIT", 1000)
    assert (record.input_size, record.resize_size) == (224, 256)


@pytest.mark.parametrize("name", CATALOG)
def test_preprocessing_is_the_networks(name):
    record = CATALOG[name]
    preprocess_input = MODULES[record.network].preprocess_input
    image = np.random.default_rng(0).uniform(0, 255, (2, 5, 7, 3)).astype("float32")
    expected = (image / 255 - record.mean) / record.std
    given = preprocess_input(image.copy(), data_format="channels_last")
    np.testing.assert_allclose(given, expected, atol=1e-5)


@pytest.mark.parametrize("name", CATALOG)
def test_table_has_a_row_for_each(name):
    (row,) = [row for row in table().splitlines() if f"| {name} |" in row]
    record = CATALOG[name]
    for value in (record.network, record.dataset, f"{record.top1} %", record.license):
        assert value in row
    assert len({row.count("|") for row in table().splitlines()}) == 1
