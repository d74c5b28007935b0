"""ClassTable: CSV files in all common forms."""

import re

import pytest
import tensorflow_datasets as tfds
from backends import once
from data_scenes import encode, scene, write

from keras_coordatt.data import (
    ClassFolder,
    ClassTable,
    class_names,
    find_task,
    load_classification,
    open_data,
    splits,
)

pytestmark = once

IMAGE = encode(scene()[0])


@pytest.fixture
def folder(tmp_path):
    for name in ("a.jpg", "b.JPG", "straße c.jpg"):
        write(tmp_path / "images" / name, IMAGE)
    return tmp_path


def examples(builder, split="train"):
    names = class_names(builder)
    return {
        example["image/filename"].decode().rsplit("/", 1)[1]: names[example["label"]]
        for example in tfds.as_numpy(builder.as_dataset(split=split))
    }


RIGHT = {"a.jpg": "cat", "b.JPG": "dog", "straße c.jpg": "cat"}


@pytest.mark.parametrize(
    "text",
    [
        "filename,label\na.jpg,cat\nb.JPG,dog\nstraße c.jpg,cat\n",
        "Image ID;Class\na;cat\nb;dog\nstraße c;cat",
        "\ufefflabel\tid\r\ncat\ta\r\ndog\tb.jpg\r\ncat\tstraße c\r\n\r\n",
        (
            'breed,path\n"cat",images/a.jpg\ndog,"/home/me/images/b.JPG"\ncat,'
            "images\\straße c.jpg"
        ),
        (
            "id,file_name,label,class_name\n1,a.jpg,0,cat\n2,b.jpg,1,dog\n"
            "3,straße c.jpg,0,cat"
        ),
        "a.jpg,cat\nb.JPG,dog\nstraße c.jpg,cat",
        "cat,a.jpg\ndog,b.JPG\ncat,straße c.jpg",
    ],
)
def test_tables(folder, text):
    write(folder / "labels.csv", text)
    assert find_task(folder) == find_task(folder / "labels.csv") == "classification"
    for builder in (open_data(folder), ClassTable(folder / "labels.csv")):
        assert isinstance(builder, ClassTable)
        assert class_names(builder) == ["cat", "dog"]
        assert examples(builder) == RIGHT
    images, labels = next(iter(load_classification(folder / "labels.csv", "train", 32)))
    assert len(images) == 3
    assert sorted(labels.numpy()) == [0, 0, 1]


def test_splits_of_tables(folder):
    text = "filename,label,split\na.jpg,cat,Train\nb.JPG,dog,val\nstraße c.jpg,cat,test"
    write(folder / "labels.csv", text)
    builder = ClassTable(folder)
    assert splits(builder) == {"train": 1, "validation": 1, "test": 1}
    assert examples(builder, "validation") == {"b.JPG": "dog"}
    (folder / "labels.csv").unlink()
    write(folder / "train.csv", "filename,label\na.jpg,cat\nb.jpg,dog")
    write(folder / "valid.csv", "filename,label\nstraße c,cat")
    # Files of other kinds.
    write(folder / "test.csv", "filename\na.jpg")
    write(folder / "sample_submission.csv", "filename,label\na.jpg,cat")
    assert splits(open_data(folder)) == {"train": 2, "validation": 1}
    (folder / "valid.csv").unlink()
    builder = open_data(folder, validation_split=0.5)
    assert splits(builder) == {"train": 1, "validation": 1}


def test_images_of_equal_names(tmp_path):
    for split in ("train", "test"):
        write(tmp_path / split / "1.jpg", IMAGE)
        write(tmp_path / f"{split}.csv", f"id,label\n1,{split}")
    builder = open_data(tmp_path)
    for split in ("train", "test"):
        (example,) = tfds.as_numpy(builder.as_dataset(split=split))
        assert f"/{split}/1.jpg" in example["image/filename"].decode()


@pytest.mark.parametrize("folder", ["", "{}/", "C:\\data\\{}\\", "{}/images/"])
def test_a_missing_image_is_not_replaced_by_that_of_another_split(tmp_path, folder):
    inner = "images" if "images" in folder else "."
    for name in ("train/{}/0", "train/{}/1", "val/{}/1"):
        write(tmp_path / f"{name.format(inner)}.jpg", IMAGE)
    lines = [
        f"{folder.format(split)}{i}.jpg,{i},{split}"
        for split in ("train", "val")
        for i in range(2)
    ]
    write(tmp_path / "labels.csv", "\n".join(["file,label,split", *lines]))
    with pytest.raises(ValueError, match=r"1 lines .*\n.*line 4: there is no image"):
        ClassTable(tmp_path)
    with pytest.warns(UserWarning, match="1 lines cannot be used"):
        builder = ClassTable(tmp_path, on_error="skip")
    (fact,) = builder.facts("validation")
    assert "/val/" in fact["image"]


def test_numbers_are_in_order(folder):
    write(folder / "labels.csv", "id,label\na,10\nb,9\nstraße c,10")
    assert class_names(ClassTable(folder)) == ["9", "10"]
    assert class_names(ClassTable(folder, classes=["10", "9"])) == ["10", "9"]
    with pytest.raises(ValueError, match=r"`classes`.*without \['9'\]"):
        ClassTable(folder, classes=["10"])


def test_class_folders_beside_a_table(folder):
    for name in ("cat", "dog"):
        write(folder / f"images/{name}/1.jpg", IMAGE)
    write(folder / "images/labels.csv", "filename,label\na.jpg,cat")
    assert isinstance(open_data(folder / "images"), ClassFolder)


@pytest.mark.parametrize(
    ("table", "folders", "text"),
    [
        ("train.csv", ("train_images", "test_images"), "0.jpg,a\n1.jpg,b"),
        ("labels.csv", ("part_1", "part_2"), "0.jpg,a\n1.jpg,b\n2.jpg,b\n3.jpg,a"),
        ("labels.csv", ("images", "masks"), "0.jpg,a\n1.jpg,b"),
        ("labels.csv", ("a", "b"), "0.jpg,a,train\n1.jpg,a,train\n2.jpg,b,val"),
    ],
)
def test_folders_beside_a_table_that_are_not_the_classes(
    tmp_path, table, folders, text
):
    for i in range(4):
        # Masks have the names of their images.
        masks = "masks" in folders
        name = f"{i % 2}.png" if masks and i > 1 else f"{i}.jpg"
        content = encode(scene()[0], "PNG" if name.endswith("png") else "JPEG")
        write(tmp_path / folders[i // 2] / name, content)
    write(tmp_path / table, f"image_id,label,split\n{text}")
    builder = open_data(tmp_path, "classification")
    assert isinstance(builder, ClassTable)
    assert class_names(builder) == ["a", "b"]
    assert sum(splits(builder).values()) == len(text.split())


@pytest.mark.parametrize("labels", ["cat cat dog cat", "0 0 1 1"])
def test_folders_and_a_table_that_both_may_have_the_classes(tmp_path, labels):
    lines = []
    for i, label in enumerate(labels.split()):
        write(tmp_path / ("cat", "dog")[i // 2] / f"{i}.jpg", IMAGE)
        lines.append(f"{i}.jpg,{label}")
    write(tmp_path / "labels.csv", "\n".join(["id,label", *lines]))
    message = r"class folders .*and CSV of labels .*\n.*ClassFolder.* or ClassTable"
    with pytest.raises(ValueError, match=message):
        open_data(tmp_path)
    builder = open_data(tmp_path / "labels.csv")
    assert class_names(builder) == sorted({*labels.split()})


@pytest.mark.parametrize("folders", [("images", "masks"), ("images/x", "masks/x")])
def test_masks_are_not_the_images_of_a_table(tmp_path, folders):
    images, masks = (tmp_path / folder for folder in folders)
    write(images / "1.jpg", IMAGE)
    for i in range(1, 3):
        write(masks / f"{i}.png", encode(scene()[0], "PNG"))
    write(tmp_path / "labels.csv", "id,label\n1,a\n2,b")
    with pytest.raises(ValueError, match="1 lines .*\n.*line 3: .*no image '2'"):
        ClassTable(tmp_path)


def test_folders_and_a_table_that_say_the_same(tmp_path):
    for name in ("cat", "dog"):
        write(tmp_path / f"{name}/1.jpg", IMAGE)
    write(tmp_path / "labels.csv", "id,label\ncat/1.jpg,cat\n1,dog")
    with pytest.warns(UserWarning, match=r"labels\.csv: not read, as the folders"):
        builder = open_data(tmp_path)
    assert isinstance(builder, ClassFolder)


def test_lines_that_cannot_be_used(folder):
    write(folder / "labels.csv", "id,label\na,cat\ngone,dog\nb,\nstraße c,cat")
    with pytest.raises(ValueError, match="2 lines cannot be used") as error:
        ClassTable(folder)
    assert re.search(r"labels\.csv, line 3: .*'gone'", str(error.value))
    assert re.search(r"labels\.csv, line 4: 'b' has no class", str(error.value))
    with pytest.warns(UserWarning, match="2 lines cannot be used, left out"):
        builder = ClassTable(folder, on_error="skip")
    assert splits(builder) == {"train": 2}


def test_images_that_are_listed_twice(folder):
    write(folder / "labels.csv", "id,label\na,cat\nb,dog\nimages/a.jpg,cat")
    assert splits(ClassTable(folder)) == {"train": 2}
    write(folder / "labels.csv", "id,label\na,cat\nb,dog\nimages/a.jpg,dog")
    message = r"a\.jpg must .* 'cat' \(.*csv, line 2\); 'dog' \(.*csv, line 4\)"
    with pytest.raises(ValueError, match=f"1 lines.*\n.*{message}"):
        ClassTable(folder)
    with pytest.warns(UserWarning, match=message):
        builder = ClassTable(folder, on_error="skip")
    assert examples(builder) == {"b.JPG": "dog"}
    lines = "a,cat,train\nb,dog,train\na,cat,val"
    write(folder / "labels.csv", f"id,label,split\n{lines}")
    with pytest.warns(UserWarning, match="'validation' are in 'train' too"):
        assert splits(ClassTable(folder)) == {"train": 2, "validation": 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("filename,xmin,ymin,xmax,ymax,class\na.jpg,1,1,2,2,cat", "boxes.*COCO"),
        ("filename,weight,height\na.jpg,1,2", "no column of classes.*weight, height"),
        ("photo,label\na,cat", "no column of images"),
        ("a.jpg,cat,1\nb.jpg,dog,2", "must have headings"),
        ("", "no column of images"),
    ],
)
def test_tables_that_cannot_be_used(folder, text, message):
    write(folder / "labels.csv", text)
    for path in (folder, folder / "labels.csv"):
        with pytest.raises(ValueError, match=message):
            open_data(path)


def test_columns_are_named(folder):
    write(folder / "labels.csv", "photo,animal,label\na,cat,x\nb,dog,y")
    builder = ClassTable(folder, image_column="Photo", label_column="animal")
    assert examples(builder) == {"a.jpg": "cat", "b.JPG": "dog"}
