"""The hash of a data set: what makes another one, of the same files' names and sizes."""

import json

import pytest
from backends import once
from data_scenes import annotation, encode, scene, write

from keras_coordatt.data import open_data

pytestmark = once

IMAGE, BOX, MASK = scene()
NAMES = ("a", "b")


def table(root):
    for name in NAMES:
        write(root / f"{name}.jpg", encode(IMAGE))
    write(root / "labels.csv", "filename,label\na.jpg,cat\nb.jpg,dog\n")
    return root, root / "labels.csv", ("cat", "dog")


def voc(root):
    for name in NAMES:
        write(root / f"images/{name}.jpg", encode(IMAGE))
        write(root / f"annotations/{name}.xml", annotation(IMAGE.size, BOX))
    return (
        root,
        root / "annotations/a.xml",
        (f"<xmin>{BOX[0]}<", f"<xmin>{BOX[0] + 1}<"),
    )


def yolo(root):
    """Images and labels lie outside of the folder of data.yaml."""
    for name in NAMES:
        write(root / f"there/images/{name}.jpg", encode(IMAGE))
        write(root / f"there/labels/{name}.txt", "0 0.5 0.5 0.2 0.2\n")
    text = f"train: {root / 'there/images'}\nnames: [x, y]\n"
    write(root / "here/data.yaml", text)
    return root / "here/data.yaml", root / "there/labels/a.txt", ("0 0.5", "1 0.5")


def coco(root):
    images = [
        {"id": i, "file_name": f"{name}.jpg", "width": 48, "height": 32}
        for i, name in enumerate(NAMES)
    ]
    boxes = [
        {"id": i + 1, "image_id": i, "category_id": 1, "bbox": [4, 4, 9, 9], "area": 81}
        for i in range(2)
    ]
    content = {"images": images, "annotations": [{**x, "iscrowd": 0} for x in boxes]}
    content["categories"] = [{"id": i, "name": f"c{i}"} for i in (1, 2)]
    for name in NAMES:
        write(root / f"{name}.jpg", encode(IMAGE))
    write(root / "train.json", json.dumps(content))
    edit = '"category_id": 1, "bbox": [4', '"category_id": 2, "bbox": [4'
    return root / "train.json", root / "train.json", edit


def masks(root):
    from PIL import Image

    for name in NAMES:
        write(root / f"images/{name}.jpg", encode(IMAGE))
        write(root / f"masks/{name}.png", encode(Image.fromarray(MASK), "PNG"))
    write(root / "labels.txt", "0: sky\n1: sea\n")
    return root, root / "labels.txt", ("0: sky\n1: sea", "1: sky\n0: sea")


@pytest.mark.parametrize("layout", [table, voc, yolo, coco, masks])
def test_annotations_of_the_same_size(tmp_path, layout):
    path, file, (old, new) = layout(tmp_path / "data")
    first = open_data(path).fingerprint()
    assert len(first) == 16
    text = file.read_text()
    file.write_text(text.replace(old, new, 1))
    assert len(file.read_text()) == len(text) and file.read_text() != text
    assert open_data(path).fingerprint() != first
    file.write_text(text)
    # Files that are not read don't count.
    write(file.parent / "notes.md", "read by nobody")
    assert open_data(path).fingerprint() == first


@pytest.mark.parametrize("layout", [table, voc, yolo, coco, masks])
def test_images_count_by_their_size_and_split(tmp_path, layout):
    path, _, _ = layout(tmp_path / "data")
    first = open_data(path).fingerprint()
    image = next((tmp_path / "data").rglob("b.jpg"))
    content = image.read_bytes()
    image.write_bytes(content + b" ")
    assert open_data(path).fingerprint() != first
    image.write_bytes(content)
    assert open_data(path).fingerprint() == first
    assert open_data(path, validation_split=0.5).fingerprint() != first


def test_a_class_folder_with_a_file_that_is_gone(tmp_path):
    for name in ("cat/a", "cat/b", "dog/c"):
        write(tmp_path / f"{name}.jpg", encode(IMAGE))
    builder = open_data(tmp_path, on_error="skip")
    first = builder.fingerprint()
    (tmp_path / "cat/a.jpg").unlink()
    assert builder.fingerprint() != first
    write(tmp_path / "dog/a.jpg", encode(IMAGE))
    assert open_data(tmp_path, on_error="skip").fingerprint() != first
