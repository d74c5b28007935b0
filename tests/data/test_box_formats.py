"""COCOFolder and YOLOFolder: all common layouts, and the same boxes as VOC."""

import json
import re
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds
from backends import once
from data_scenes import annotation, encode, is_red, scene, write

from keras_coordatt.data import (
    COCOFolder,
    VOCFolder,
    YOLOFolder,
    class_names,
    find_task,
    load_detection,
    open_data,
    splits,
)

pytestmark = once

NAMES = ("photo 0.jpg", "photo_1.JPG", "straße 2.png")
WIDTH, HEIGHT = 48, 32


def pictures(folder, names=NAMES):
    for i, name in enumerate(names):
        image, _, _ = scene(i)
        write(folder / name, encode(image, "PNG" if name.endswith("png") else "JPEG"))


def coco(names=NAMES, boxes=None, **images):
    boxes = boxes or [scene(i)[1] for i in range(len(names))]
    return {
        "images": [
            {"id": 10 * i, "file_name": name, "width": WIDTH, "height": HEIGHT}
            for i, name in enumerate(names)
        ],
        "annotations": [
            {
                "id": i,
                "image_id": 10 * i,
                "category_id": 18,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
            }
            for i, (x1, y1, x2, y2) in enumerate(boxes)
        ],
        # The ids have gaps and are not in order, and "other" never occurs.
        "categories": [{"id": 18, "name": "thing"}, {"id": 3, "name": "other"}],
    }


def yolo(folder, names=NAMES):
    for i, name in enumerate(names):
        x1, y1, x2, y2 = scene(i)[1]
        x, y, w, h = (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1
        numbers = x / WIDTH, y / HEIGHT, w / WIDTH, h / HEIGHT
        line = " ".join(f"{n:.6f}" for n in numbers)
        write(folder / f"{name.rsplit('.', 1)[0]}.txt", f"0 {line}\n")


def examples(builder, split="train"):
    return {
        example["image/filename"].decode().rsplit("/", 1)[1]: example
        for example in tfds.as_numpy(builder.as_dataset(split=split))
    }


def assert_on_objects(builder, split="train", count=3):
    """Asserts that the boxes are where the red pixels are."""
    found = examples(builder, split)
    assert len(found) == count
    for example in found.values():
        ys, xs = np.nonzero(is_red(example["image"]))
        expected = ys.min(), xs.min(), ys.max() + 1, xs.max() + 1
        (box,) = example["objects"]["bbox"] * (HEIGHT, WIDTH, HEIGHT, WIDTH)
        np.testing.assert_allclose(box, expected, atol=0.01)


# COCO


@pytest.mark.parametrize(
    ("file", "images"),
    [
        ("annotations.json", "train"),
        ("annotations/instances_train2017.json", "train2017"),
        ("annotations/instances_default.json", "images"),
        ("train/_annotations.coco.json", "train"),
        ("labels.json", "."),
    ],
)
def test_layouts_of_coco(tmp_path, file, images):
    pictures(tmp_path / images)
    write(tmp_path / file, json.dumps(coco()))
    # Files for other tasks, or of other tools.
    write(tmp_path / "annotations/captions_train2017.json", json.dumps(coco()))
    write(tmp_path / "settings.json", '{"theme": "dark"}')
    assert find_task(tmp_path) == "detection"
    for builder in (open_data(tmp_path), COCOFolder(tmp_path / file)):
        assert splits(builder) == {"train": 3}
        assert class_names(builder) == ["other", "thing"]
        assert_on_objects(builder)
    images, objects = next(iter(load_detection(tmp_path / file, "train", 32)))
    assert len(images) == 3
    assert {*objects["labels"].numpy().ravel()} == {-1, 1}


def test_splits_of_coco(tmp_path):
    for split, names in (("train2017", NAMES[:2]), ("val2017", NAMES[2:])):
        # The same names in both folders.
        pictures(tmp_path / split, names)
        content = json.dumps(coco(names))
        write(tmp_path / f"annotations/instances_{split}.json", content)
    assert splits(COCOFolder(tmp_path)) == {"train": 2, "validation": 1}
    write(tmp_path / "annotations/instances_valid.json", '{"images": []}')
    with pytest.raises(ValueError, match="both of 'validation'"):
        COCOFolder(tmp_path)
    one = tmp_path / "annotations/instances_train2017.json"
    builder = COCOFolder(one, validation_split=0.5)
    assert splits(builder) == {"train": 1, "validation": 1}
    shown = [examples(builder, split).keys() for split in ("train", "validation")]
    assert sorted([*shown[0], *shown[1]]) == sorted(NAMES[:2])


@pytest.mark.parametrize("split", ["train", "val"])
def test_images_of_equal_names(tmp_path, split):
    # The file name agrees with both; the image of the split's own folder is meant.
    for other in ("train", "val"):
        color = (200, 0, 0) if other == split else (0, 0, 200)
        image, _, _ = scene()
        image.paste(color, (0, 0, WIDTH, HEIGHT))
        write(tmp_path / other / "a.jpg", encode(image))
    content = coco(["a.jpg"])
    write(tmp_path / split / "_annotations.coco.json", json.dumps(content))
    (example,) = examples(
        COCOFolder(tmp_path), "validation" if split == "val" else split
    ).values()
    assert is_red(example["image"]).all()
    # A folder that is named tells them apart too.
    content["images"][0]["file_name"] = rf"C:\data\{split}\a.jpg"
    (tmp_path / split / "_annotations.coco.json").unlink()
    write(tmp_path / "annotations.json", json.dumps(content))
    (example,) = examples(COCOFolder(tmp_path)).values()
    assert is_red(example["image"]).all()
    content["images"][0]["file_name"] = "a.jpg"
    write(tmp_path / "annotations.json", json.dumps(content))
    with pytest.raises(ValueError, match=r"'a\.jpg' may be any of"):
        COCOFolder(tmp_path)


def test_a_missing_image_is_not_replaced_by_that_of_another_split(tmp_path):
    pictures(tmp_path / "train2017", ["0.jpg", "1.jpg"])
    pictures(tmp_path / "val2017", ["1.jpg"])
    file = tmp_path / "annotations/instances_val2017.json"
    for folder in ("val2017/", "/home/me/coco/val2017/", "images/val2017/", ""):
        write(file, json.dumps(coco([f"{folder}{i}.jpg" for i in range(2)])))
        with pytest.raises(ValueError, match=r"1 annotations.*\n.*there is no image"):
            COCOFolder(tmp_path)
    # The folder of the split decides if both have the name.
    write(file, json.dumps(coco(["1.jpg"])))
    builder = COCOFolder(tmp_path)
    ((fact,),) = [builder.facts(split) for split in splits(builder)]
    assert fact["image"].endswith("val2017/1.jpg")
    # A folder of the split that isn't here at all, and that was moved.
    shutil.rmtree(tmp_path / "val2017")
    write(file, json.dumps(coco(["val2017/1.jpg"])))
    with pytest.raises(ValueError, match="there is no image"):
        COCOFolder(tmp_path)
    (tmp_path / "train2017").rename(tmp_path / "photos")
    assert splits(COCOFolder(tmp_path)) == {"validation": 1}


def test_crowds_and_images_without_objects(tmp_path):
    pictures(tmp_path)
    content = coco()
    content["annotations"][0]["iscrowd"] = 1
    del content["annotations"][1]
    # A mask, and no box.
    x1, y1, x2, y2 = scene(2)[1]
    del content["annotations"][1]["bbox"]
    content["annotations"][1]["segmentation"] = [[x1, y1, x2, y1, x2, y2, x1, y2]]
    write(tmp_path / "a.json", json.dumps(content))
    found = examples(COCOFolder(tmp_path))
    assert [len(found[name]["objects"]["bbox"]) for name in NAMES] == [1, 0, 1]
    assert found[NAMES[0]]["objects"]["is_crowd"].all()
    box = found[NAMES[2]]["objects"]["bbox"][0] * (HEIGHT, WIDTH, HEIGHT, WIDTH)
    np.testing.assert_allclose(box, (y1, x1, y2, x2), atol=0.01)
    _, objects = next(iter(load_detection(tmp_path, "train", 32)))
    assert (objects["labels"].numpy() >= 0).sum(axis=1).tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("images"), "not a COCO file: KeyError: 'images'"),
        (lambda c: c.update(images=3), "not a COCO file"),
        (lambda c: c["images"][0].update(file_name="gone.jpg"), r"image 0.*gone\.jpg"),
        (lambda c: c["images"][0].update(file_name=7), r"image 0.*string, not 7"),
        # Annotation tools leave polygons of fewer than three points.
        (
            lambda c: c["annotations"][1].update(bbox=[], segmentation=[[4, 4]]),
            "image 10.*annotation 1 has no box, and its segmentation",
        ),
        (lambda c: c["images"][0].pop("width"), "image 0.*no 'width'"),
        (lambda c: c["images"][0].update(width=0), "image 0.*must be positive"),
        (lambda c: c["images"][0].update(width=HEIGHT), "(?s)outside|32 x 32"),
        (lambda c: c["annotations"][0].update(category_id=7), "image 0.*no 7"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 3]), "image 0.*unpack"),
        (
            lambda c: c["annotations"][0].update(bbox=[5, 5, 0, 9]),
            r"\[5, 5, 0, 9\] \(annotation 0\) of 'thing' has no pixel",
        ),
        (
            lambda c: c["annotations"][0].update(bbox=[40, 5, 20, 9]),
            r"\[40, 5, 20, 9\].*partly outside",
        ),
    ],
)
def test_faults_of_coco(tmp_path, change, message):
    pictures(tmp_path)
    content = coco()
    change(content)
    write(tmp_path / "a.json", json.dumps({"categories": 0, **content}))
    with pytest.raises(ValueError, match=message) as error:
        load_detection(tmp_path, "train", 32)
    assert "a.json" in str(error.value) or "photo 0" in str(error.value)
    if "image 0" in message or "box" in str(error.value):
        with pytest.warns(UserWarning, match="1 (annotations|boxes)"):
            builder = COCOFolder(tmp_path, on_error="skip")
        assert splits(builder) == {"train": 2}


# YOLO


@pytest.fixture
def folder(tmp_path):
    pictures(tmp_path / "images/train")
    yolo(tmp_path / "labels/train")
    return tmp_path


YAML = "path: .\ntrain: images/train\nval: images/val\nnames:\n  0: thing\n"


@pytest.mark.parametrize(
    ("config", "images", "labels"),
    [
        (YAML, "images/train", "labels/train"),
        (YAML.replace(": .", ": /content/data"), "images/train", "labels/train"),
        ("train: ../train/images\nnames: [thing]", "train/images", "train/labels"),
        ("train: [images]\nnc: 1", "images", "labels"),
        ("train: list.txt\nnames: [thing]", "images", "labels"),
        (None, "images/train", "labels/train"),
        (None, "train/images", "train/labels"),
        (None, "images", "labels"),
        (None, "obj_train_data", "obj_train_data"),
        (None, ".", "."),
    ],
)
def test_layouts_of_yolo(tmp_path, config, images, labels):
    pictures(tmp_path / images)
    yolo(tmp_path / labels)
    if config:
        write(tmp_path / "data.yaml", config)
        lines = [f"./{images}/{name}" for name in NAMES]
        write(tmp_path / "list.txt", "\n".join(lines))
    else:
        write(tmp_path / "classes.txt", "thing\n")
    assert find_task(tmp_path) == "detection"
    for builder in (open_data(tmp_path), YOLOFolder(tmp_path)):
        assert splits(builder) == {"train": 3}
        expected = "class_0" if config and "nc" in config else "thing"
        assert class_names(builder) == [expected]
        assert_on_objects(builder)


def test_splits_of_yolo(folder):
    write(folder / "data.yaml", YAML)
    with pytest.warns(UserWarning, match="'images/val', which does not exist"):
        builder = YOLOFolder(folder / "data.yaml", validation_split=0.3)
    assert splits(builder) == {"train": 2, "validation": 1}
    pictures(folder / "images/val", NAMES[:1])
    yolo(folder / "labels/val", NAMES[:1])
    builder = YOLOFolder(folder)
    assert splits(builder) == {"train": 3, "validation": 1}
    assert_on_objects(builder, "validation", 1)
    write(folder / "data.yaml", YAML.replace("/val", "/train"))
    with pytest.warns(UserWarning, match="'validation' are in 'train' too"):
        assert splits(YOLOFolder(folder)) == {"train": 3, "validation": 3}
    with pytest.warns(UserWarning, match="'validation' are in 'train' too"):
        builder = YOLOFolder(folder, validation_split=0.3)
    assert splits(builder) == {"train": 2, "validation": 1}


def test_names_in_a_file(folder):
    write(folder / "data.yaml", "train: images/train\nnames: my.names\n")
    write(folder / "my.names", "thing\n")
    assert class_names(YOLOFolder(folder)) == ["thing"]


def test_names_that_have_gaps(folder):
    write(folder / "data.yaml", YAML.replace("0: thing", "1: other\n  3: more"))
    shutil.copytree(folder / "images/train", folder / "images/val")
    shutil.copytree(folder / "labels/train", folder / "labels/val")
    assert class_names(YOLOFolder(folder)) == ["class_0", "other", "class_2", "more"]


def test_names_whose_numbers_are_strings(folder):
    config = "train: images/train\nnc: 2\nnames: {}\n"
    write(folder / "data.yaml", config.format('{"0": thing, "1": other}'))
    assert class_names(YOLOFolder(folder)) == ["thing", "other"]
    for names in ("{thing: 0, other: 1}", '{"0": thing, 0: other}', "{-1: thing}"):
        write(folder / "data.yaml", config.format(names))
        with pytest.raises(ValueError, match=r"`names` .* numbers.*Received: \{"):
            YOLOFolder(folder)
    write(folder / "data.yaml", config.format("missing.names"))
    with pytest.raises(ValueError, match="must name the classes.*'missing.names'"):
        YOLOFolder(folder)


def test_images_and_objects_that_are_repeated(folder):
    lines = [f"images/train/{name}" for name in NAMES]
    listed = [*lines, f"./{lines[0]}", str(folder / lines[1])]
    write(folder / "list.txt", "\n".join(listed))
    write(folder / "data.yaml", "train: list.txt\nnames: [thing, other]")
    file = folder / f"labels/train/{NAMES[0][:-4]}.txt"
    # The same number, written in two ways, and the same box of another class.
    write(file, "0 .5 .5 .2 .2\n0 0.50 0.5 .2 .2\n1 .5 .5 .2 .2\n")
    builder = YOLOFolder(folder)
    assert splits(builder) == {"train": 3}
    objects = examples(builder)[NAMES[0]]["objects"]
    assert objects["label"].tolist() == [0, 1]


def test_polygons_and_keypoints(folder):
    (folder / "classes.txt").write_text("thing")
    x1, y1, x2, y2 = np.array(scene(0)[1]) / (WIDTH, HEIGHT, WIDTH, HEIGHT)
    polygon = f"0 {x1} {y1} {x2} {y1} {x2} {y2} {x1} {y2}"
    write(folder / f"labels/train/{NAMES[0][:-4]}.txt", polygon)
    assert_on_objects(YOLOFolder(folder))
    shutil.copytree(folder / "images/train", folder / "images/val")
    yolo(folder / "labels/train")
    yolo(folder / "labels/val")
    for file in (folder / "labels").glob("*/*.txt"):
        file.write_text(file.read_text().strip() + " 0.5 0.5 2 0.1 0.1 0")
    write(folder / "data.yaml", YAML + "kpt_shape: [2, 3]")
    assert_on_objects(YOLOFolder(folder))


def test_images_without_labels_and_labels_without_images(folder):
    write(folder / "classes.txt", "thing")
    (folder / "labels/train" / f"{NAMES[1][:-4]}.txt").unlink()
    write(folder / "labels/train/more.txt", "")
    match = (
        r"(?s)1 images have no label file.*photo_1.*1 label files have no.*more\.txt"
    )
    with pytest.warns(UserWarning, match=match) as warned:
        builder = YOLOFolder(folder)
    assert len(warned) == 1
    assert len(examples(builder)[NAMES[1]]["objects"]["bbox"]) == 0
    shutil.rmtree(folder / "labels")
    write(folder / "data.yaml", YAML)
    with (
        pytest.warns(UserWarning, match="does not exist"),
        pytest.raises(ValueError, match="No image in .* has a label file, such as"),
    ):
        YOLOFolder(folder)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1 .5 .5 .2 .2", "line 1, .*class must be 0 to 0, and is 1"),
        ("0.5 .5 .5 .2 .2", "line 1, .*class must be"),
        ("0 .5 .5 .2", "line 1, .*has 4 numbers"),
        ("0 .5 .5 .2 .2 .9", "line 1, .*has 6 numbers"),
        ("0 .5 .5 .2 thing", "line 1, .*'thing'"),
        ("0 .5 .5 -.2 .2", r"box \(\.5 \.5 -\.2 \.2\) of 'thing' has xmin > xmax"),
        ("0 .5 .5 0 .2", "has no pixel"),
        ("0 nan .5 .1 .2", "has no pixel"),
        ("0 .9 .5 .4 .2", "is partly outside"),
        ("0 240 160 20 20", "has no pixel"),
    ],
)
def test_faults_of_yolo(folder, line, message):
    write(folder / "classes.txt", "thing")
    name = f"{NAMES[0][:-4]}.txt"
    write(folder / "labels/train" / name, line)
    with pytest.raises(ValueError, match=re.escape(name) + ".*" + message):
        open_data(folder)
    with pytest.warns(UserWarning, match="1 (annotations|boxes)"):
        assert splits(YOLOFolder(folder, on_error="skip")) == {"train": 2}


def test_a_tolerance_for_rounded_numbers(folder):
    write(folder / "classes.txt", "thing")
    write(folder / f"labels/train/{NAMES[0][:-4]}.txt", "0 .9 .5 .201 .2")
    box = examples(YOLOFolder(folder))[NAMES[0]]["objects"]["bbox"][0]
    np.testing.assert_allclose(box, (0.4, 0.7995, 0.6, 1), atol=1e-4)


def test_no_names(folder):
    with pytest.raises(ValueError, match="must name the classes.*classes.txt"):
        YOLOFolder(folder)
    assert class_names(YOLOFolder(folder, classes=["ant"])) == ["ant"]
    write(folder / "data.yaml", "train: [images/train\nnames: ]")
    with pytest.raises(ValueError, match=r"data\.yaml cannot be used"):
        YOLOFolder(folder)


# All


def test_an_unzipped_folder_and_two_layouts(tmp_path):
    pictures(tmp_path / "zip/images")
    for i, name in enumerate(NAMES):
        x1, y1, x2, y2 = scene(i)[1]
        content = annotation((WIDTH, HEIGHT), (x1 + 1, y1 + 1, x2, y2))
        write(tmp_path / f"zip/annotations/{name.rsplit('.', 1)[0]}.xml", content)
    write(tmp_path / "README.md", "Boxes")
    builder = open_data(tmp_path)
    assert isinstance(builder, VOCFolder)
    assert_on_objects(builder)
    write(tmp_path / "zip/a.json", json.dumps(coco()))
    assert find_task(tmp_path) == "detection"
    with pytest.raises(ValueError, match=r"VOC .*and COCO .*\n.*COCOFolder\('.*zip'\)"):
        open_data(tmp_path)


@pytest.mark.parametrize("inner", ["", "images"])
def test_voc_in_a_folder_per_split(tmp_path, inner):
    for split, names in (("train", NAMES[:2]), ("valid", NAMES[2:])):
        pictures(tmp_path / split / inner, names)
        for i, name in enumerate(names):
            x1, y1, x2, y2 = scene(i)[1]
            content = annotation((WIDTH, HEIGHT), (x1 + 1, y1 + 1, x2, y2))
            where = tmp_path / split / ("annotations" if inner else "")
            write(where / f"{name.rsplit('.', 1)[0]}.xml", content)
    builder = open_data(tmp_path)
    assert splits(builder) == {"train": 2, "validation": 1}
    assert_on_objects(builder, count=2)
    assert_on_objects(builder, "validation", 1)
