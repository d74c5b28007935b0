"""VOCFolder with lists, boxes and pictures of all common kinds."""

import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds
from backends import once
from data_scenes import STORE, annotation, encode, is_red, scene, write

from keras_coordatt.data import VOCFolder, load_detection, splits

pytestmark = once


@pytest.fixture
def folder(tmp_path):
    """Three pictures, whose names end in a number after a space."""
    for i in range(3):
        image, box, _ = scene(i)
        write(tmp_path / f"JPEGImages/IMG {i}.jpg", encode(image))
        write(tmp_path / f"Annotations/IMG {i}.xml", annotation(image.size, box))
    write(tmp_path / "ImageSets/Main/train.txt", "IMG 0\nIMG 1\nIMG 2\n")
    return tmp_path


def read(path, size=(32, 48), **arguments):
    """Images and boxes in pixels, one array of boxes per image."""
    dataset = load_detection(path, "train", size, 1, max_boxes=4, **arguments)
    for images, objects in tfds.as_numpy(dataset):
        boxes = objects["boxes"][0][objects["labels"][0] >= 0]
        yield images[0], boxes * np.tile(size[::-1], 2)


def assert_on_object(image, box):
    ys, xs = np.nonzero(is_red(image))
    expected = xs.min(), ys.min(), xs.max() + 1, ys.max() + 1
    # Annotated from 0, and read as if from 1.
    np.testing.assert_allclose(box, expected, atol=1.1)


@pytest.mark.parametrize("square", [False, True])
def test_boxes_lie_on_objects_of_turned_pictures(folder, square):
    for i, orientation in enumerate(STORE):
        image, box, _ = scene(i, (32, 32) if square else (48, 32))
        content = encode(image, orientation=orientation)
        write(folder / f"JPEGImages/{orientation}.jpg", content)
        write(folder / f"Annotations/{orientation}.xml", annotation(image.size, box))
    lines = "\n".join(map(str, STORE))
    write(folder / "ImageSets/Main/train.txt", lines)
    compared = 0
    for image, boxes in read(folder, (32, 32) if square else (32, 48)):
        assert_on_object(image, *boxes)
        compared += 1
    assert compared == 7


@pytest.mark.parametrize(
    "content",
    [
        b"IMG 0\nIMG 1\nIMG 2",
        b"\xef\xbb\xbfIMG 0\r\nIMG 1\r\nIMG 2",
        "IMG 0\r\nIMG 1\r\nIMG 2".encode("utf-16"),
        b"IMG 0.jpg\nIMG 1.JPG\nIMG 2.png\n",
        b"IMG 0\nIMG 1\nIMG 2\nIMG 0.jpg\n",
    ],
    ids=["numbers", "BOM", "UTF-16", "endings", "repeated"],
)
def test_lists(folder, content):
    write(folder / "ImageSets/Main/train.txt", content)
    # A list of one class, which is not a split.
    write(folder / "ImageSets/Main/thing_train.txt", "IMG 0 1\nIMG 1 -1\nIMG 2  0\n")
    assert set(VOCFolder(folder).info.splits) == {"train"}
    examples = list(read(folder))
    assert len(examples) == 3
    for image, boxes in examples:
        assert_on_object(image, *boxes)


@pytest.mark.parametrize(
    "names", [("images", "annotations"), (".", "."), ("JPEGImages", "Annotations")]
)
def test_layouts_without_lists(folder, names):
    shutil.rmtree(folder / "ImageSets")
    for old, new in zip(("JPEGImages", "Annotations"), names, strict=True):
        for file in list((folder / old).iterdir()):
            (folder / new).mkdir(exist_ok=True)
            file.rename(folder / new / file.name)
    for old in {"JPEGImages", "Annotations"} - set(names):
        (folder / old).rmdir()
    examples = list(read(folder))
    assert len(examples) == 3
    for image, boxes in examples:
        assert_on_object(image, *boxes)
    # An image without an annotation.
    write(folder / names[0] / "new.JPG", encode(scene()[0]))
    with pytest.warns(UserWarning, match="1 images .*no annotation.*'new'"):
        assert len(list(read(folder))) == 3


def test_a_validation_split(folder):
    def names(split):
        builder = VOCFolder(folder, validation_split=0.3)
        examples = tfds.as_numpy(builder.as_dataset(split=split))
        return {example["image/filename"] for example in examples}

    assert len(names("train")) == 2
    assert len(names("validation")) == 1
    assert len(names("train") | names("validation")) == 3
    assert len(list(read(folder, validation_split=0.3))) == 2


def test_lists_called_val(folder):
    write(folder / "ImageSets/Main/val.txt", "IMG 1")
    builder = VOCFolder(folder)
    assert set(builder.info.splits) == {"train", "validation"}
    with pytest.raises(ValueError, match="`validation_split` is for data without"):
        VOCFolder(folder, validation_split=0.5)


def test_annotations_in_utf16(folder):
    text = (folder / "Annotations/IMG 0.xml").read_text().replace("thing", "straße")
    (folder / "Annotations/IMG 0.xml").write_bytes(text.encode("utf-16"))
    names = VOCFolder(folder).info.features["objects"]["label"].names
    assert names == ["straße", "thing"]


# Boxes that are wrong


@pytest.fixture
def bad_boxes(folder):
    size = (48, 32)
    swapped, good = (30, 10, 10, 20), (5, 5, 20, 20)
    write(folder / "Annotations/IMG 0.xml", annotation(size, swapped, good))
    nowhere, over = (0, 0, 0, 0), (40, 20, 90, 60)
    write(folder / "Annotations/IMG 1.xml", annotation(size, nowhere, over))
    return folder


def test_one_error_lists_all_bad_boxes(bad_boxes):
    with pytest.raises(ValueError, match="3 boxes are wrong.*'repair'") as error:
        VOCFolder(bad_boxes)
    lines = str(error.value).splitlines()[1:]
    for line, (name, corners) in zip(
        lines,
        [
            ("IMG 0.xml", "(30, 10, 10, 20)"),
            ("IMG 1.xml", "(0, 0, 0, 0)"),
            ("IMG 1.xml", "(40, 20, 90, 60)"),
        ],
        strict=True,
    ):
        assert name in line
        assert corners in line


def test_bad_boxes_are_repaired_and_counted_when_asked(bad_boxes):
    match = r"(?s)3 boxes.*1 sorted, 1 cut to the image, 1 left out.*IMG 0\.xml"
    with pytest.warns(UserWarning, match=match) as warned:
        (_, first), (_, second), (image, third) = read(bad_boxes, on_error="repair")
    assert len(warned) == 1
    np.testing.assert_allclose(first, [(9, 9, 30, 20), (4, 4, 20, 20)], atol=1e-4)
    np.testing.assert_allclose(second, [(39, 19, 48, 32)], atol=1e-4)
    assert_on_object(image, *third)


def test_images_with_bad_boxes_are_left_out_when_asked(bad_boxes):
    with pytest.warns(UserWarning, match="3 boxes are wrong, 2 images left out"):
        ((image, boxes),) = read(bad_boxes, on_error="skip")
    assert_on_object(image, *boxes)


def test_a_pixel_outside_is_cut_off(folder, recwarn):
    box = (0, 0, 49, 33)
    write(folder / "Annotations/IMG 0.xml", annotation((48, 32), box))
    _, boxes = next(iter(read(folder)))
    np.testing.assert_allclose(boxes, [(0, 0, 48, 32)], atol=1e-4)
    assert not recwarn.list


# Files that are wrong


@pytest.fixture
def bad_files(folder):
    write(folder / "Annotations/IMG 0.xml", "<annotation>")
    (folder / "JPEGImages/IMG 1.jpg").unlink()
    return folder


def test_one_error_lists_all_bad_annotations(bad_files):
    with pytest.raises(ValueError, match="2 annotations cannot be used") as error:
        VOCFolder(bad_files)
    assert "IMG 0.xml cannot be used" in str(error.value)
    assert "IMG 1.xml has no image" in str(error.value)


@pytest.mark.parametrize("on_error", ["skip", "repair"])
def test_bad_annotations_are_left_out_when_asked(bad_files, on_error):
    with pytest.warns(UserWarning, match="2 annotations cannot be used, their images"):
        ((image, boxes),) = read(bad_files, on_error=on_error)
    assert_on_object(image, *boxes)


def test_one_error_lists_all_bad_images(folder):
    write(folder / "JPEGImages/IMG 0.jpg", encode(scene(0)[0])[:-40])
    write(folder / "Annotations/IMG 1.xml", annotation((32, 48), (5, 5, 9, 9)))
    with pytest.raises(ValueError, match="2 images of 'train'") as error:
        list(read(folder))
    assert "IMG 0.jpg cannot be read: image file is truncated" in str(error.value)
    assert "IMG 1.jpg is 48 x 32 pixels" in str(error.value)
    assert "its annotation says 32 x 48" in str(error.value)
    with pytest.warns(UserWarning, match="2 images of 'train' .*, left out"):
        ((image, boxes),) = read(folder, on_error="skip")
    assert_on_object(image, *boxes)


SIZE = (48, 32)
GOOD = annotation(SIZE, (2, 2, 9, 9))
BOMB = "<!DOCTYPE a [<!ENTITY b0 'boom'>{}]><annotation>&b9;</annotation>".format(
    "".join(f"<!ENTITY b{i} '{f'&b{i - 1};' * 99}'>" for i in range(1, 10))
)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("Annotations/IMG 0.xml", None, r"0\.xml cannot be used: .*No such file"),
        ("Annotations/IMG 0.xml", "<annotation>", "0.xml.*(no element|unclosed)"),
        ("Annotations/IMG 0.xml", BOMB, "0.xml.*amplification"),
        ("Annotations/IMG 0.xml", "<annotation/>", "0.xml.*<size/height>"),
        ("Annotations/IMG 0.xml", annotation((0, 0)), "0.xml.*<size>.*positive"),
        ("Annotations/IMG 0.xml", annotation(("inf", 9)), "0.xml.*infinity"),
        (
            "Annotations/IMG 0.xml",
            GOOD.replace("xmax", "xmix"),
            "0.xml.*<bndbox/xmax>",
        ),
        ("Annotations/IMG 0.xml", GOOD.replace("thing", ""), "0.xml.*<name>"),
        (
            "Annotations/IMG 0.xml",
            GOOD.replace("<xmin>2", "<xmin>left"),
            "0.xml.*float: 'left'",
        ),
        (
            "Annotations/IMG 0.xml",
            GOOD.replace("<xmin>2", "<xmin>nan"),
            r"0.xml.*\(nan, 2, 9, 9\).*no pixel",
        ),
        (
            "Annotations/IMG 0.xml",
            annotation(SIZE, (60, 2, 70, 9)),
            r"0.xml.*\(60, 2, 70, 9\).*no pixel",
        ),
        ("JPEGImages/IMG 0.jpg", None, "IMG 0.xml has no image"),
        ("JPEGImages/IMG 0.png", "", "IMG 0.png and .*IMG 0.jpg have the same name"),
        ("ImageSets/Main/train.txt", "99", r"99\.xml has no image"),
        ("JPEGImages", None, "no images in"),
    ],
)
def test_a_damaged_folder(folder, file, text, message):
    if text is not None:
        write(folder / file, text)
    elif (folder / file).is_dir():
        shutil.rmtree(folder / file)
    else:
        (folder / file).unlink()
    with pytest.raises(ValueError, match=f"(?s){message}"):
        VOCFolder(folder)


def test_boxes_of_one_pixel_and_images_without_objects(folder):
    write(folder / "Annotations/IMG 0.xml", annotation(SIZE, (48, 32, 48, 32)))
    write(folder / "Annotations/IMG 1.xml", annotation(SIZE))
    (_, one), (_, none), _ = read(folder)
    np.testing.assert_allclose(one, [(47, 31, 48, 32)], atol=1e-4)
    assert len(none) == 0


@pytest.mark.parametrize("classes", ["ant", [], ["ant", "ant"], [0, 1], ["ant", "bee"]])
def test_classes_that_do_not_fit(folder, classes):
    message = r"\.xml.*'thing'" if "bee" in classes else "`classes` must be"
    with pytest.raises(ValueError, match=message):
        VOCFolder(folder, classes=classes)


def test_folds_in_lists(folder):
    write(folder / "ImageSets/Main/train1.txt", "IMG 1")
    write(folder / "ImageSets/Main/trainval.txt", "IMG 1\nIMG 2")
    found = {"train": 3, "train1": 1, "trainval": 2}
    assert splits(VOCFolder(folder)) == found
    for name in ("train", "train1"):
        (folder / f"ImageSets/Main/{name}.txt").unlink()
    assert splits(VOCFolder(folder)) == {"train": 2}


def test_no_object(folder):
    for i in range(3):
        write(folder / f"Annotations/IMG {i}.xml", annotation(SIZE))
    with pytest.raises(ValueError, match="no object in any image"):
        VOCFolder(folder)


def test_no_image_is_left(folder):
    for i in range(3):
        write(folder / f"Annotations/IMG {i}.xml", "")
    with (
        pytest.warns(UserWarning, match="3 annotations"),
        pytest.raises(ValueError, match=f"no image that can be used in {folder}"),
    ):
        VOCFolder(folder, on_error="skip")
