"""MaskFolder with masks of all common kinds."""

import numpy as np
import pytest
import tensorflow_datasets as tfds
from backends import once
from data_scenes import STORE, encode, is_red, scene, write
from PIL import Image

from keras_coordatt.data import (
    IGNORED,
    ClassFolder,
    MaskFolder,
    class_names,
    find_task,
    load_segmentation,
    open_data,
    splits,
)

pytestmark = once

CLASSES = ["background", "thing"]


def add(folder, name, image, mask, **options):
    write(folder / f"train/images/{name}.jpg", encode(image, **options))
    write(folder / f"train/masks/{name}.png", encode(Image.fromarray(mask), "PNG"))


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "labels.txt", "\ufeff" + "\r\n".join(CLASSES))
    for i in range(3):
        image, _, mask = scene(i)
        add(tmp_path, f"photo {i}", image, mask)
    return tmp_path


@pytest.fixture
def binary(folder):
    for i in range(3):
        image, _, mask = scene(i)
        add(folder, f"photo {i}", image, mask * 255)
    return folder


def read(name, size=(32, 48), **arguments):
    dataset = load_segmentation(name, "train", size, 1, **arguments)
    return [(image[0], mask[0]) for image, mask in tfds.as_numpy(dataset)]


def assert_on_object(image, mask):
    assert set(np.unique(mask)) == {0, 1}
    assert (is_red(image) == (mask == 1)).mean() > 0.98


def test_a_folder_is_loaded_by_its_path(folder):
    examples = read(folder)
    assert len(examples) == 3
    for image, mask in examples:
        assert_on_object(image, mask)
    feature = MaskFolder(folder).info.features["segmentation_mask"]
    assert feature.names == CLASSES


@pytest.mark.parametrize("size", [(48, 32), (32, 32)], ids=["wide", "square"])
def test_masks_lie_on_objects_of_turned_pictures(folder, size):
    for i, orientation in enumerate(STORE):
        image, _, mask = scene(i, size)
        add(folder, f"turned {i}", image, mask, orientation=orientation)
    examples = read(folder, size[::-1])
    assert len(examples) == 10
    for image, mask in examples:
        assert_on_object(image, mask)


def test_black_and_white_masks_are_refused_with_the_way_out(binary):
    with pytest.raises(ValueError, match="255 is the value.*ignored") as error:
        read(binary)
    assert "'thing' occurs nowhere" in str(error.value)
    assert "'0: background' and '255: thing'" in str(error.value)
    (hint,) = error.value.__notes__
    assert "classes=['background', 'thing'], values=(0, 255)" in hint
    (binary / "labels.txt").unlink()
    match = "'255: thing'.*\n.*classes=.'class_0', 'thing'., values=.0, 255"
    with pytest.raises(ValueError, match=match):
        read(binary)


@pytest.mark.parametrize("separator", [": ", ",", "\t"])
def test_values_in_labels_txt(binary, separator):
    lines = [f"255{separator}thing", f"0{separator}background"]
    write(binary / "labels.txt", "\n".join(lines))
    assert class_names(MaskFolder(binary)) == ["thing", "background"]
    for image, mask in read(binary):
        assert_on_object(image, 1 - mask)
    write(binary / "labels.txt", f"0{separator}(ignored)\n255{separator}thing\n")
    assert class_names(MaskFolder(binary)) == ["thing"]
    for image, mask in read(binary):
        assert set(np.unique(mask)) == {0, IGNORED}
        assert_on_object(image, np.where(mask == 0, 1, 0))


def test_gray_masks_in_rgb(folder):
    for mode in ("RGB", "RGBA"):
        mask = scene()[2]
        file = folder / "train/masks/photo 0.png"
        write(file, encode(Image.fromarray(mask).convert(mode), "PNG"))
        (_, loaded), *_ = read(folder)
        np.testing.assert_array_equal(loaded, mask)


def test_255_may_be_a_class(binary):
    for image, mask in read(MaskFolder(binary, values=(0, 255))):
        assert_on_object(image, mask)


def test_values_of_classes(folder):
    image, _, mask = scene()
    mask = np.where(mask, 200, 100).astype("uint8")
    mask[0] = IGNORED
    for i in range(3):
        add(folder, f"photo {i}", image, mask)
    for values, ignored in (((100, 200), None), ((200, 100), None), ((100, 200), 0)):
        builder = MaskFolder(folder, values=values, ignored=ignored)
        (_, loaded), *_ = read(builder)
        assert (loaded[0] == IGNORED).all()
        expected = np.where(mask == values[1], 1, 0)
        if ignored == 0:
            expected = np.where(expected == 0, IGNORED, 0)
        np.testing.assert_array_equal(loaded[1:], expected[1:])


def test_ignored_pixels_beside_two_classes(folder):
    image, _, mask = scene()
    mask[:, 40:] = IGNORED
    add(folder, "photo 0", image, mask)
    (_, loaded), *_ = read(folder)
    np.testing.assert_array_equal(loaded, mask)


def test_one_error_lists_all_bad_files(folder):
    image, _, mask = scene()
    add(folder, "photo 0", image, mask * 7)
    add(folder, "photo 1", image, mask[:, :40])
    with pytest.raises(ValueError, match="2 images of 'train'") as error:
        read(folder)
    assert "photo 0.png has values of unknown classes: [7]" in str(error.value)
    assert "photo 1.png is 40 x 32 pixels, and its image is 48 x 32" in str(error.value)
    with pytest.warns(UserWarning, match="2 images of 'train'.*left out"):
        (example,) = read(folder, on_error="skip")
    assert_on_object(*example)


def test_files_without_a_partner_and_of_another_kind(folder):
    (folder / "train/images/photo 0.jpg").unlink()
    write(folder / "train/masks/photo 1.png", encode(scene()[0]))
    with pytest.raises(ValueError, match="2 files cannot be used") as error:
        MaskFolder(folder)
    assert "photo 0.png must have an image" in str(error.value)
    assert "photo 1.png must be a PNG, gray" in str(error.value)
    with pytest.warns(UserWarning, match="2 files cannot be used, left out"):
        (example,) = read(folder, on_error="skip")
    assert_on_object(*example)


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        ("images/a.jpg", ("masks/a.png", "masks/a_mask.png")),
        ("a.jpg", ("a_mask.png", "a mask.png")),
    ],
)
def test_two_masks_of_one_image(tmp_path, images, masks):
    image, _, mask = scene()
    write(tmp_path / images, encode(image))
    for name in masks:
        write(tmp_path / name, encode(Image.fromarray(mask), "PNG"))
    with pytest.raises(ValueError, match="a.* are both masks of") as error:
        MaskFolder(tmp_path)
    for name in masks:
        assert str(tmp_path / name) in str(error.value)
    # Each has an image of its own.
    write(tmp_path / images.replace("a.", "a_mask."), encode(image))
    if "images" in images:
        assert splits(MaskFolder(tmp_path)) == {"train": 2}


def test_hidden_folders_are_not_splits(folder):
    (folder / ".ipynb_checkpoints/masks").mkdir(parents=True)
    assert set(MaskFolder(folder).info.splits) == {"train"}


@pytest.mark.parametrize("lists", [True, False])
def test_the_layout_of_pascal_voc(tmp_path, lists):
    for i in range(3):
        image, _, mask = scene(i)
        palette = Image.fromarray(mask)
        palette.putpalette([0, 0, 0, 128, 0, 0] + [224, 224, 192] * 254)
        write(tmp_path / f"JPEGImages/photo {i}.jpg", encode(image))
        mask = encode(palette, "PNG")
        write(tmp_path / f"SegmentationClass/photo {i}.png", mask)
    write(tmp_path / "JPEGImages/without.jpg", encode(image))
    if lists:
        folder = tmp_path / "ImageSets/Segmentation"
        write(folder / "train.txt", "photo 0\nphoto 1")
        write(folder / "val.txt", "photo 2")
    builder = MaskFolder(tmp_path)
    sizes = {name: split.num_examples for name, split in builder.info.splits.items()}
    assert sizes == ({"train": 2, "validation": 1} if lists else {"train": 3})
    feature = builder.info.features["segmentation_mask"]
    assert feature.names == ["class_0", "class_1"]
    for image, mask in read(tmp_path):
        assert_on_object(image, mask)
    named = MaskFolder(tmp_path, classes=CLASSES)
    assert named.info.features["segmentation_mask"].names == CLASSES


def test_a_validation_split(folder):
    (folder / "train").rename(folder / "training")
    assert len(read(folder, validation_split=0.3)) == 2
    assert set(MaskFolder(folder, validation_split=0.3).info.splits) == {
        "train",
        "validation",
    }


@pytest.mark.parametrize("values", [(0,), (0, 0), (0, 256), (0, 1.5), "ab", 3])
def test_bad_values(folder, values):
    with pytest.raises(ValueError, match="`values` must be 2 different integers"):
        MaskFolder(folder, values=values)


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("images/{}.jpg", "masks/{}.png"),
        ("images/train/{}.jpg", "masks/train/{}.png"),
        ("images/{}.jpg", "annotations/{}_mask.png"),
        ("JPEGImages/{}.jpg", "SegmentationClass/{}.png"),
        ("train/images/{}.jpg", "train/labels/{}.png"),
        ("{}.jpg", "{}_mask.png"),
        ("training/{}.jpg", "training/{} Mask.png"),
    ],
)
def test_layouts(tmp_path, image, mask):
    for i in range(3):
        picture, _, values = scene(i)
        write(tmp_path / image.format(f"photo {i}"), encode(picture))
        content = encode(Image.fromarray(values), "PNG")
        write(tmp_path / mask.format(f"photo {i}"), content)
    assert find_task(tmp_path) == "segmentation"
    builder = open_data(tmp_path)
    assert splits(builder) == {"train": 3}
    assert class_names(builder) == ["class_0", "class_1"]
    for example in read(builder):
        assert_on_object(*example)


def test_splits(tmp_path):
    for split, count in (("train", 2), ("val", 1), ("test", 1)):
        for i in range(count):
            image, _, mask = scene(i)
            write(tmp_path / f"images/{split}/{i}.jpg", encode(image))
            content = encode(Image.fromarray(mask), "PNG")
            write(tmp_path / f"masks/{split}/{i}.png", content)
    assert splits(MaskFolder(tmp_path)) == {"train": 2, "validation": 1, "test": 1}


@pytest.mark.parametrize("split", ["train", "."])
@pytest.mark.parametrize("others", [True, False])
def test_masks_without_images(folder, split, others):
    if split == ".":
        for name in ("images", "masks"):
            (folder / f"train/{name}").rename(folder / name)
    write(folder / "test/images/1.png", encode(scene()[0]))
    write(folder / "test/masks/1.png", encode(Image.fromarray(scene()[2]), "PNG"))
    images = folder / split / "images"
    # A name that is not known.
    images.rename(images.with_name("pictures" if others else ".images"))
    with pytest.raises(ValueError, match="There are no images in .*images"):
        open_data(folder, "segmentation")


@pytest.mark.parametrize("classes", [("mask", "no_mask"), ("masks", "no_masks")])
def test_a_class_called_mask(tmp_path, classes):
    for name in classes:
        write(tmp_path / f"{name}/1.jpg", encode(scene()[0]))
        write(tmp_path / f"{name}/1_1.jpg", encode(scene()[0]))
    assert isinstance(open_data(tmp_path), ClassFolder)
    assert isinstance(open_data(tmp_path, "classification"), ClassFolder)


def test_blurred_masks_without_names(folder):
    (folder / "labels.txt").unlink()
    image, _, mask = scene()
    blurred = np.arange(mask.size, dtype="uint8").reshape(mask.shape)
    add(folder, "photo 0", image, blurred)
    with pytest.raises(ValueError, match=r"photo 0\.png, hold 255 different values"):
        MaskFolder(folder)
