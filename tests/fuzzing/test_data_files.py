"""Damaged data sets: they open, or a ValueError names the file or folder."""

import json
import warnings

import numpy as np
import pytest
from backends import once
from data_scenes import annotation, encode, scene, write
from fuzzing.damage import damaged, within
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from keras_coordatt.data import open_data, reading

pytestmark = once


IMAGE, BOX, MASK = scene()
MASK_IMAGE = Image.fromarray(MASK)
WIDTH, HEIGHT = IMAGE.size
COCO = {
    "images": [{"id": 1, "file_name": "a.jpg", "width": WIDTH, "height": HEIGHT}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 3, "bbox": [2, 3, 9, 8]}],
    "categories": [{"id": 3, "name": "thing"}],
}
POLYGON = [{**COCO["annotations"][0], "bbox": [], "segmentation": [[2, 3, 9, 3, 5, 8]]}]
# The file that is damaged, and the sound files of the data set.
SETS = {
    "voc": ("a.xml", {"a.jpg": encode(IMAGE), "a.xml": annotation(IMAGE.size, BOX)}),
    "voc_lists": (
        "ImageSets/Main/train.txt",
        {
            "JPEGImages/a.jpg": encode(IMAGE),
            "Annotations/a.xml": annotation(IMAGE.size, BOX),
            "ImageSets/Main/train.txt": "a\n",
        },
    ),
    "coco": ("_.coco.json", {"a.jpg": encode(IMAGE), "_.coco.json": json.dumps(COCO)}),
    "coco_polygons": (
        "_.coco.json",
        {
            "a.jpg": encode(IMAGE),
            "_.coco.json": json.dumps({**COCO, "annotations": POLYGON}),
        },
    ),
    "yolo": (
        "a.txt",
        {
            "a.jpg": encode(IMAGE),
            "a.txt": "0 0.5 0.5 0.2 0.3\n",
            "classes.txt": "thing\n",
        },
    ),
    "yolo_yaml": (
        "data.yaml",
        {
            "images/a.jpg": encode(IMAGE),
            "labels/a.txt": "0 0.5 0.5 0.2 0.3\n",
            "data.yaml": "train: images\nnc: 1\nnames: {0: thing}\n",
        },
    ),
    "csv": (
        "labels.csv",
        {"a.jpg": encode(IMAGE), "labels.csv": "file,label\na.jpg,1\n"},
    ),
    "labels": (
        "labels.txt",
        {
            "images/a.jpg": encode(IMAGE),
            "masks/a.png": encode(MASK_IMAGE, "PNG"),
            "labels.txt": "0 background\n1 thing\n",
        },
    ),
    "image": ("train/cat/a.jpg", {"train/cat/a.jpg": encode(IMAGE)}),
    "mask": (
        "masks/a.png",
        {"images/a.jpg": encode(IMAGE), "masks/a.png": encode(MASK_IMAGE, "PNG")},
    ),
}


def read_all(folder, on_error="raise"):
    builder = open_data(folder, on_error=on_error)
    for split in builder.info.splits:
        for example in builder.as_dataset(split=split).as_numpy_iterator():
            assert example["image"].ndim == 3
    return builder


@pytest.mark.parametrize("name", SETS)
def test_sound_folder(name, tmp_path):
    for file, content in SETS[name][1].items():
        write(tmp_path / file, content)
    assert (
        sum(info.num_examples for info in read_all(tmp_path).info.splits.values()) == 1
    )


@pytest.mark.parametrize("name", SETS)
@given(data=st.data())
def test_folder(name, tmp_path_factory, data):
    victim, files = SETS[name]
    folder = tmp_path_factory.mktemp("set")
    for file, content in files.items():
        write(folder / file, content)
    content = (folder / victim).read_bytes()
    (folder / victim).write_bytes(data.draw(damaged(content)))
    with warnings.catch_warnings(), within(20):
        warnings.simplefilter("ignore")
        try:
            read_all(folder, data.draw(st.sampled_from(["raise", "repair"])))
        except ValueError as error:
            assert folder.name in str(error)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"])
@given(data=st.data())
def test_image(kind, tmp_path_factory, data):
    file = tmp_path_factory.mktemp("image") / "damaged.png"
    file.write_bytes(data.draw(damaged(encode(IMAGE, kind))))
    for read in (reading.read_image, reading.image_size, reading.read_mask):
        with warnings.catch_warnings(), within(20):
            warnings.simplefilter("ignore")
            try:
                found = read(file)
            except ValueError as error:
                assert file.name in str(error)
            else:
                assert read is reading.image_size or found.dtype == np.uint8
