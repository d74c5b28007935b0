"""Reports of `keras-coordatt data` on data sets of known content."""

import ast
import dataclasses
import json
import re

import keras
import numpy as np
import pytest
from backends import once
from data_scenes import annotation, encode, scene, write
from PIL import Image

from keras_coordatt import MobileNetV2CA, cli
from keras_coordatt.data import VOCFolder, describe_data
from keras_coordatt.data.box_shapes import find_matched, fit_box_shapes, map_sizes
from keras_coordatt.detection import SSDLite, ssd_box_shapes
from keras_coordatt.detection.default_boxes import default_boxes

pytestmark = once

SIZE = (320, 320)


def random_boxes(count, low, high, ratio=1.0):
    rng = np.random.default_rng(0)
    sides = rng.uniform(low, high, (count, 1)) * (ratio**0.5, ratio**-0.5)
    corners = rng.uniform(0, 1 - sides)
    return np.concatenate([corners, corners + sides], axis=1).astype("float32")


# Default boxes


def test_sizes_of_feature_maps_are_those_of_the_detector():
    backbone = MobileNetV2CA(
        (130, 200, 3), alpha=0.25, include_top=False, weights=None, attention=None
    )
    assert map_sizes((130, 200)) == list(SSDLite(backbone, 2).map_sizes)


def test_matched_boxes_by_keras():
    boxes = random_boxes(300, 0.03, 0.6, 2)
    default = default_boxes(map_sizes(SIZE), ssd_box_shapes())
    iou = keras.utils.bounding_boxes.compute_iou(boxes, default, "xyxy")
    expected = keras.ops.convert_to_numpy(iou).max(axis=1) > 0.5
    assert 0 < expected.mean() < 1
    np.testing.assert_array_equal(find_matched(boxes, SIZE), expected)
    assert find_matched(boxes[:0], SIZE).shape == (0,)


@pytest.mark.parametrize(
    ("low", "high", "ratio", "size"),
    [
        (0.1, 0.15, 1, SIZE),
        (0.2, 0.3, 6, SIZE),
        (0.1, 0.9, 1, (240, 320)),
        (0.1, 0.2, 1 / 5, SIZE),
    ],
)
def test_shapes_that_fit(low, high, ratio, size):
    boxes = random_boxes(300, low, high, ratio)
    shapes = fit_box_shapes(boxes, size)
    assert 2 <= len(shapes) <= 6
    assert all(1 <= len(found) <= 6 for found in shapes)
    before, after = (find_matched(boxes, size, s).mean() for s in (None, shapes))
    assert after > 0.9
    assert after > before + 0.1 or before > 0.9


def test_fitted_shapes_make_a_detector():
    backbone = MobileNetV2CA(
        (64, 64, 3), alpha=0.25, include_top=False, weights=None, attention=None
    )
    shapes = fit_box_shapes(random_boxes(50, 0.2, 0.3), (64, 64))
    assert len(SSDLite(backbone, 2, box_shapes=shapes).map_sizes) == len(shapes)


# Reports


@pytest.fixture
def voc(tmp_path):
    for i in range(4):
        image, box, _ = scene(i)
        write(tmp_path / f"images/{i}.jpg", encode(image))
        write(tmp_path / f"annotations/{i}.xml", annotation(image.size, box, box))
    write(tmp_path / "images/3.jpg", b"")
    write(tmp_path / "annotations/2.xml", annotation(image.size, (2, 2, 2, 3)))
    write(tmp_path / "annotations/1.xml", annotation(image.size, (9, 9, 2, 3)))
    return tmp_path


def test_a_detection_folder(voc, tmp_path, capsys):
    output = tmp_path / "new" / "report.json"
    arguments = ["data", str(voc), "--image-size", "96", "--json", str(output)]
    assert cli.main(arguments) == 0
    text = capsys.readouterr().out
    report = json.loads(output.read_text())
    assert report["task"] == "detection"
    train = report["splits"]["train"]
    # One box is wrong, and one image empty.
    assert (train["images"], train["unreadable"]) == (2, 1)
    assert train["class_images"] == {"thing": 2}
    assert train["class_objects"] == {"thing": 3}
    assert train["sizes"] == [[48, 32]] * 3
    boxes = report["boxes"]
    # A box of 1 x 2 pixels in 48 x 32, in an image of 96 x 96.
    assert boxes["smallest"][0] == [2.0, 6.0, str(voc / "images/2.jpg")]
    assert boxes["most"] == 2
    assert boxes["fitted"] >= boxes["matched"]
    assert boxes["class_matched"] == {"thing": boxes["matched"]}
    for found in (
        "thing  2 (3)",
        "1.xml: the box (9, 9, 2, 3)",
        "3.jpg cannot be read",
    ):
        assert found in text
    assert "box_shapes=[" in text
    # Printed as Python code, to be copied.
    shapes = re.search(r"box_shapes=(\[\n.*?\n +\])\n", text, re.DOTALL)[1]
    shapes = ast.literal_eval(" ".join(shapes.split()))
    assert shapes == [[tuple(shape) for shape in m] for m in boxes["box_shapes"]]


def test_class_folders(tmp_path):
    for i, name in enumerate(("cat/1", "cat/2", "dog/1")):
        image = Image.new("RGB", (10 + i, 20))
        write(tmp_path / f"{name}.jpg", encode(image))
    report = describe_data(tmp_path)
    train = report.splits["train"]
    assert train.class_images == {"cat": 2, "dog": 1}
    assert train.sizes == [(10, 20), (11, 20), (12, 20)]
    assert report.boxes is None
    assert report.remarks == []
    assert "classification, class folders" in str(report)
    report = describe_data(tmp_path, validation_split=0.4)
    assert {name: s.images for name, s in report.splits.items()} == {
        "train": 2,
        "validation": 1,
    }


def test_masks(tmp_path, monkeypatch):
    for i, split in enumerate(("train", "val")):
        image, _, mask = scene(i)
        mask[:4] = 255
        write(tmp_path / f"{split}/images/1.jpg", encode(image))
        content = encode(Image.fromarray(mask), "PNG")
        write(tmp_path / f"{split}/masks/1.png", content)
    report = describe_data(tmp_path)
    assert set(report.splits) == {"train", "validation"}
    counts = np.bincount(scene(0)[2][4:].ravel())
    shares = report.splits["train"].class_objects
    assert list(shares) == ["class_0", "class_1"]
    np.testing.assert_allclose([*shares.values()], counts / counts.sum())
    assert "class_1  1 (1" in str(report)
    monkeypatch.setattr("keras_coordatt.data.report.Folder", int)
    assert describe_data(tmp_path) == report


def test_a_builder_of_tfds_is_read_alike(voc, monkeypatch):
    write(voc / "images/3.jpg", encode(scene(3)[0]))
    builder = VOCFolder(voc, on_error="repair")
    direct = describe_data(builder)
    assert direct.splits["train"].class_objects == {"thing": 6}
    monkeypatch.setattr("keras_coordatt.data.report.Folder", int)
    read = describe_data(builder)
    assert dataclasses.replace(read, remarks=direct.remarks) == direct


def test_an_error_is_one_line(tmp_path, capsys):
    assert cli.main(["data", "missing"]) == 1
    error = capsys.readouterr().err
    assert "neither a file or folder 'missing' nor a TFDS data set" in error
    assert error.count("\n") == 1
    assert cli.main(["data", str(tmp_path)]) == 1
    assert "none of the layouts" in capsys.readouterr().err
