"""ClassFolder: layouts, messages, and pictures as a viewer shows them."""

import warnings

import numpy as np
import pytest
import tensorflow_datasets as tfds
from backends import once
from data_scenes import encode, is_red, scene, write

from keras_coordatt.data import ClassFolder, load_classification, open_data, splits

pytestmark = once

IMAGE, _, MASK = scene()


@pytest.fixture
def folder(tmp_path):
    for name in ("train/cat/a", "train/dog/b", "test/cat/c", "test/dog/d"):
        write(tmp_path / f"{name}.jpg", encode(IMAGE))
    return tmp_path


def names(builder):
    return builder.info.features["label"].names


def files(builder, split="train"):
    examples = tfds.as_numpy(builder.as_dataset(split=split))
    return sorted(e["image/filename"].decode().rsplit("/", 1)[1] for e in examples)


def test_a_folder_is_loaded_by_its_path(folder):
    write(folder / "train/dog/sideways.jpg", encode(IMAGE, orientation=6))
    for path in (folder, str(folder)):
        ((images, labels),) = tfds.as_numpy(
            load_classification(path, "train", (32, 48))
        )
        assert sorted(labels) == [0, 1, 1]
        # Pictures as a viewer shows them.
        for image in images:
            assert (is_red(image) == MASK).mean() > 0.98


def test_splits_are_sliced(folder):
    for i in range(4):
        write(folder / f"train/cat/{i}.jpg", encode(IMAGE))
    builder = ClassFolder(folder)
    assert set(builder.info.splits) == {"train", "test"}
    parts = [files(builder, f"train[{part}]") for part in (":50%", "50%:")]
    assert [len(part) for part in parts] == [3, 3]
    assert sorted([*parts[0], *parts[1]]) == files(builder)


def test_splits_that_there_are_not(folder):
    builder = ClassFolder(folder)
    assert len(files(builder, "all")) == 4
    assert len(files(builder, "train[:50%] + test[0:1]")) == 2
    message = (
        r"`split` must be of \['test', 'train'\].*`validation_split`.*'validation'"
    )
    for split in ("validation", "val[:50%]", "train + valid"):
        with pytest.raises(ValueError, match=message):
            load_classification(folder, split, 32)


def test_classes_called_like_splits_and_leftovers_of_a_zip(tmp_path):
    for name in ("train/a", "bus/a", "car/a", "__MACOSX/a"):
        write(tmp_path / f"{name}.jpg", encode(IMAGE))
    builder = open_data(tmp_path)
    assert names(builder) == ["bus", "car", "train"]
    assert splits(builder) == {"train": 3}


@pytest.mark.parametrize("unlabeled", [["test"], ["val"], ["train", "Test"]])
def test_images_without_classes_beside_class_folders(tmp_path, unlabeled):
    for name in ("cat", "dog", *unlabeled):
        write(tmp_path / f"{name}/a.jpg", encode(IMAGE))
    with pytest.warns(UserWarning) as warned:
        builder = open_data(tmp_path)
    (warning,) = warned
    for name in unlabeled:
        assert f"1 images in {tmp_path / name} are in no class" in str(warning.message)
    assert names(builder) == ["cat", "dog"]
    assert splits(builder) == {"train": 2}


def test_a_seed_chooses_the_part_for_validation(tmp_path):
    for i in range(20):
        write(tmp_path / f"cat/{i}.jpg", encode(IMAGE))
    parts = [
        files(ClassFolder(tmp_path, validation_split=0.3, split_seed=s), "validation")
        for s in (0, 0, 1)
    ]
    assert parts[0] == parts[1] != parts[2]
    with pytest.raises(ValueError, match="`split_seed` must be an integer"):
        load_classification(tmp_path, "train", 32, split_seed=0.5)


def test_class_without_training_images(tmp_path):
    for name in (*(f"cat/{i}" for i in range(9)), "dog/a"):
        write(tmp_path / f"{name}.jpg", encode(IMAGE))
    seeds = range(20)
    alone = []
    for seed in seeds:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            builder = ClassFolder(tmp_path, validation_split=0.5, split_seed=seed)
        has_dog = "a.jpg" in files(builder, "train")
        assert [str(w.message).endswith("is left of dog") for w in caught] == (
            [] if has_dog else [True]
        )
        alone.append(has_dog)
    assert set(alone) == {True, False}


def test_a_flat_folder(tmp_path, recwarn):
    for i in range(5):
        for name in ("cat", "dog"):
            write(tmp_path / f"{name}/{i}.jpg", encode(IMAGE))
    builder = ClassFolder(tmp_path)
    assert names(builder) == ["cat", "dog"]
    assert {s: x.num_examples for s, x in builder.info.splits.items()} == {"train": 10}

    def paths(split, part=0.3):
        builder = ClassFolder(tmp_path, validation_split=part)
        examples = tfds.as_numpy(builder.as_dataset(split=split))
        return {example["image/filename"] for example in examples}

    # The same part each time.
    train, validation = paths("train"), paths("validation")
    assert (len(train), len(validation)) == (7, 3)
    assert len(train | validation) == 10
    assert paths("validation") == validation
    images, _ = next(
        iter(load_classification(tmp_path, "validation", 32, validation_split=0.3))
    )
    assert len(images) == 3
    assert not recwarn.list
    for part in (0, 1.0, 0.01, "0.3"):
        with pytest.raises(ValueError, match="`validation_split`.*Received"):
            ClassFolder(tmp_path, validation_split=part)


@pytest.mark.parametrize("name", ["val", "valid", "validation", "Val"])
def test_splits_are_named_alike(folder, name):
    (folder / "test").rename(folder / name)
    builder = ClassFolder(folder)
    assert set(builder.info.splits) == {"train", "validation"}
    assert len(files(builder, f"{name}[:50%]+train")) == 3
    with pytest.raises(ValueError, match="`validation_split` is for data without"):
        ClassFolder(folder, validation_split=0.5)


def test_two_folders_of_one_split(folder):
    (folder / "test").rename(folder / "val")
    write(folder / "valid/cat/a.jpg", encode(IMAGE))
    with pytest.raises(ValueError, match="both called"):
        ClassFolder(folder)


def test_an_image_folder_is_read_alike(folder):
    write(folder / "train/dog/sideways.jpg", encode(IMAGE, orientation=6))
    builder = tfds.ImageFolder(str(folder))
    ((images, _),) = tfds.as_numpy(load_classification(builder, "train", (32, 48)))
    for image in images:
        assert (is_red(image) == MASK).mean() > 0.98
    write(folder / "train/.ipynb_checkpoints/a.jpg", encode(IMAGE))
    with pytest.raises(ValueError, match="(?s)hidden.*ClassFolder.*ipynb_checkpoints"):
        load_classification(tfds.ImageFolder(str(folder)), "train", 32)


# Broken pictures


@pytest.fixture
def broken(folder):
    write(folder / "train/cat/cut.jpg", encode(IMAGE)[:-40])
    write(folder / "train/cat/empty.jpg", b"")
    write(folder / "train/dog/text.jpg", "this is not a picture")
    write(folder / "train/dog/Thumbs.db", b"\0")
    write(folder / "train/dog/.DS_Store", b"\0")
    return folder


def test_one_error_names_all_pictures_that_cannot_be_read(broken, recwarn):
    with pytest.raises(ValueError, match="3 images.*'train'.*on_error") as error:
        load_classification(broken, "train", 32)
    for name in ("cut.jpg", "empty.jpg", "text.jpg"):
        assert name in str(error.value)
    # Files whose names have other endings are ignored, and the other split is sound.
    assert not recwarn.list
    assert len(load_classification(broken, "test", 32)) == 1


@pytest.mark.parametrize("on_error", ["skip", "repair"])
def test_pictures_that_cannot_be_read_are_left_out_when_asked(broken, on_error):
    with pytest.warns(UserWarning, match=r"(?s)3 images.*left out.*\.jpg") as warned:
        dataset = load_classification(broken, "train", 32, on_error=on_error)
    assert len(warned) == 1
    ((images, labels),) = tfds.as_numpy(dataset)
    assert len(images) == 2
    assert sorted(labels) == [0, 1]


def test_no_picture_can_be_read(tmp_path):
    write(tmp_path / "train/cat/a.jpg", b"")
    with pytest.raises(ValueError, match=r"No image of 'train'.*a\.jpg.*empty"):
        load_classification(tmp_path, "train", 32, on_error="skip")


# What counts


def test_hidden_folders_do_not_count(folder, recwarn):
    write(folder / "train/.ipynb_checkpoints/a.jpg", encode(IMAGE))
    write(folder / ".ipynb_checkpoints/cat/a.jpg", encode(IMAGE))
    builder = ClassFolder(folder)
    assert names(builder) == ["cat", "dog"]
    assert set(builder.info.splits) == {"train", "test"}
    assert not recwarn.list


def test_ignored_files_cause_one_warning(folder):
    (folder / "train/empty").mkdir()
    write(folder / "test/only/a.png", encode(IMAGE, "PNG"))
    write(folder / "train/cat/more/a.jpg", encode(IMAGE))
    write(folder / "train/cat/photo.heic", b"")
    write(folder / "train/loose.jpg", encode(IMAGE))
    with pytest.warns(UserWarning) as warned:
        builder = ClassFolder(folder)
    (warning,) = warned
    text = str(warning.message)
    assert "'empty' has no images and does not count" in text
    assert "'only' has no images in" in text
    assert "more is not read" in text
    assert "1 x .heic" in text
    assert "1 images in" in text
    assert names(builder) == ["cat", "dog", "only"]
    assert files(builder) == ["a.jpg", "b.jpg"]


def test_all_formats_are_read(folder, recwarn):
    for kind, ending in (("WEBP", "webp"), ("BMP", "BMP"), ("GIF", "gif")):
        write(folder / f"train/cat/{kind}.{ending}", encode(IMAGE, kind))
    images, _ = next(iter(load_classification(folder, "train", (32, 48))))
    assert len(images) == 5
    for image in images.numpy():
        assert np.abs(image - np.asarray(IMAGE)).mean() < 4
    assert not recwarn.list


@pytest.mark.parametrize("layout", [(), ("a.jpg",), ("train/a.jpg",)])
def test_a_folder_without_images_in_classes(tmp_path, layout):
    for name in layout:
        write(tmp_path / name, encode(IMAGE))
    with pytest.raises(ValueError, match="(none of|no images).*train/cat"):
        load_classification(tmp_path, "train", 32)


def test_on_error(folder):
    with pytest.raises(ValueError, match="`on_error` must be.*'ignore'"):
        ClassFolder(folder, on_error="ignore")
    with pytest.raises(ValueError, match="`on_error` must be.*'ignore'"):
        load_classification(folder, "train", 32, on_error="ignore")
    with pytest.raises(
        ValueError, match="`on_error` and `validation_split` are for a folder"
    ):
        load_classification(ClassFolder(folder), "train", 32, on_error="skip")
    builder = ClassFolder(folder, on_error="skip")
    assert open_data(builder, "classification") is builder
