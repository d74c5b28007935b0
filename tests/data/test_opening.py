"""The layout that is opened for each task, and errors if there is none."""

import pathlib

import pytest
import tensorflow_datasets as tfds
from backends import once
from data_scenes import annotation, encode, scene, write

from keras_coordatt.data import (
    ClassFolder,
    VOCFolder,
    class_names,
    find_task,
    load_classification,
    load_detection,
    load_segmentation,
    open_data,
    splits,
)

pytestmark = once

IMAGE, BOX, MASK = scene()


@pytest.fixture
def classes(tmp_path):
    for name in ("cat/a", "dog/b"):
        write(tmp_path / f"classes/{name}.jpg", encode(IMAGE))
    return tmp_path / "classes"


@pytest.fixture
def voc(tmp_path):
    write(tmp_path / "voc/images/a.jpg", encode(IMAGE))
    write(tmp_path / "voc/annotations/a.xml", annotation(IMAGE.size, BOX))
    return tmp_path / "voc"


def test_folders(classes, voc):
    assert find_task(classes) == find_task(str(classes)) == "classification"
    assert find_task(voc) == "detection"
    assert isinstance(open_data(classes), ClassFolder)
    builder = open_data(voc)
    assert isinstance(builder, VOCFolder)
    assert open_data(builder) is builder
    assert open_data(builder, "detection") is builder
    assert splits(builder) == {"train": 1}
    assert class_names(builder) == ["thing"]


def test_a_folder_for_two_tasks(voc):
    write(voc / "SegmentationClass/a.png", b"")
    with pytest.raises(ValueError, match=r"must be given.*VOC .*\(detection\).*masks"):
        find_task(voc)
    assert isinstance(open_data(voc, "detection"), VOCFolder)


def test_tfds_names():
    assert find_task("digits/classification") == "classification"
    builder = open_data("digits/classification")
    assert list(splits(builder)) == ["train", "test"]
    assert class_names(builder) == [str(i) for i in range(10)]
    with pytest.raises(ValueError, match="several: detection.*segmentation"):
        find_task("digits/scenes")
    scenes = tfds.builder("digits/scenes")
    assert class_names(scenes, "detection") == [str(i) for i in range(10)]
    assert class_names(scenes, "segmentation") is None


@pytest.mark.parametrize(
    "load", [load_classification, load_detection, load_segmentation, open_data]
)
@pytest.mark.parametrize("name", ["missing", "missing/photos", "/missing/a", "a b", ""])
def test_neither_a_folder_nor_a_name(load, name):
    arguments = [] if load is open_data else ["train", 32]
    message = f"neither a file or folder '{name}' nor a TFDS data set of this name"
    with pytest.raises(ValueError, match=message) as error:
        load(name, *arguments)
    # TFDS would list all its data sets.
    assert "\n" not in str(error.value)


def test_other_names():
    with pytest.raises(ValueError, match="no such file or folder: missing"):
        open_data(pathlib.Path("missing"))
    with pytest.raises(ValueError, match=r"^TFDS cannot open 'digits/foo': .*foo.*$"):
        open_data("digits/foo")
    with pytest.raises(ValueError, match="a builder. Received: 3"):
        open_data(3)
    with pytest.raises(ValueError, match="`task` must be one of.*'pose'"):
        open_data("digits", "pose")


def test_nothing_is_found(tmp_path):
    with pytest.raises(ValueError, match="none of the layouts.*class folders.*VOC"):
        find_task(tmp_path)


def test_folders_with_nothing_but_one_folder(tmp_path):
    for name in ("VOCdevkit/VOC2007", "kept"):
        write(tmp_path / name / "JPEGImages/a.jpg", encode(IMAGE))
        write(tmp_path / name / "Annotations/a.xml", annotation(IMAGE.size, BOX))
    (tmp_path / "devkit").mkdir()
    (tmp_path / "VOCdevkit").rename(tmp_path / "devkit/VOCdevkit")
    assert find_task(tmp_path / "devkit") == "detection"
    assert splits(open_data(tmp_path / "devkit")) == {"train": 1}
    for name in ("archive/photos/train/cat/a", "archive/photos/train/dog/b"):
        write(tmp_path / f"{name}.jpg", encode(IMAGE))
    assert class_names(open_data(tmp_path / "archive")) == ["cat", "dog"]


def test_data_for_another_task(classes, voc):
    with pytest.raises(ValueError, match=r"not for classification.*VOC.*for detection"):
        open_data(voc, "classification")
    with pytest.raises(ValueError, match="layouts for detection.*It has class folders"):
        open_data(classes, "detection")
