"""load_segmentation and MaskFolder against rectangles that were drawn, and Pillow."""

import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

from keras_coordatt.data import IGNORED, MaskFolder, load_segmentation

# Gray, and the three colors.
CLASSES = ["background", "red", "green", "blue"]


@pytest.fixture(scope="module")
def masks(pictures):
    """1 + channel where a picture is colored, and a column that does not count."""
    masks = 1 + pictures[0].argmax(-1)
    masks[pictures[0].min(-1) == 60] = 0
    masks[:, :, 39] = IGNORED
    return masks.astype("uint8")


@pytest.fixture(scope="module")
def template(pictures, masks, tmp_path_factory):
    path = tmp_path_factory.mktemp("masks")
    (path / "labels.txt").write_text("\n".join(CLASSES) + "\n")
    for split, places in (("train", range(8)), ("test", range(8, 12))):
        for folder, arrays in (("images", pictures[0]), ("masks", masks)):
            (path / split / folder).mkdir(parents=True)
            for i in places:
                Image.fromarray(arrays[i]).save(path / split / folder / f"{i:02}.png")
    return path


@pytest.fixture
def folder(template, tmp_path):
    """A copy to damage."""
    return shutil.copytree(template, tmp_path / "masks")


@pytest.fixture
def load(template):
    def load(image_size=(30, 40), batch_size=3, split="train", **arguments):
        builder = MaskFolder(template)
        return load_segmentation(builder, split, image_size, batch_size, **arguments)

    return load


def read(dataset):
    """All images and masks of a data set, as two arrays."""
    images, masks = zip(*tfds.as_numpy(dataset), strict=True)
    return np.concatenate(images), np.concatenate(masks)


def colors(images):
    """The class by the color of each pixel, 0 for any other color."""
    best = images.argmax(-1)
    others = np.sort(images, axis=-1)[..., 1]
    return np.where(images.max(-1) - others > 125, 1 + best, 0)


# Layouts


def test_batches_equal_drawn_data(load, pictures, masks):
    batches = list(load())
    assert [len(images) for images, _ in batches] == [3, 3, 2]
    images, read_masks = read(batches)
    assert (images.dtype, read_masks.dtype) == ("float32", "int32")
    np.testing.assert_array_equal(images, pictures[0][:8])
    np.testing.assert_array_equal(read_masks, masks[:8])


def test_static_shapes(load):
    images, masks = load((24, 50)).element_spec
    assert images.shape.as_list() == [None, 24, 50, 3]
    assert masks.shape.as_list() == [None, 24, 50]


# Down and up, by whole and broken factors, whose points are never between two pixels.
@pytest.mark.parametrize("size", [(90, 24), (46, 56)])
def test_masks_are_resized_to_the_nearest_pixel_as_by_pillow(load, masks, size):
    images, resized = read(load(size))
    assert images.shape == (8, *size, 3)
    for mask, expected in zip(resized, masks, strict=False):
        expected = Image.fromarray(expected).resize(
            size[::-1], Image.Resampling.NEAREST
        )
        np.testing.assert_array_equal(mask, np.array(expected))
    assert set(np.unique(resized)) <= {0, 1, 2, 3, IGNORED}


def test_shuffled_together_and_a_seed_repeats_it(load, limit_memory):
    # Room for three.
    limit_memory(3 * 30 * 40 * 4)
    one, same = (load(shuffle=True, seed=0) for _ in range(2))
    orders = []
    for _ in range(2):
        images, masks = read(one)
        for array, again in zip((images, masks), read(same), strict=True):
            np.testing.assert_array_equal(array, again)
        counts = masks != IGNORED
        np.testing.assert_array_equal(colors(images)[counts], masks[counts])
        orders.append([image.tobytes() for image in images])
    stored = [image.tobytes() for image in read(load())[0]]
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(stored)
    assert len({tuple(order) for order in [*orders, stored]}) == 3


# Augmentation

constant = {"fill_mode": "constant", "seed": 0}


# The filling, such as a class or 255.
@pytest.mark.parametrize("fill", [0.0, 2.0, 255.0])
def test_filled_pixels_are_ignored(load, fill):
    layer = keras.layers.RandomTranslation(
        0.3, 0.3, fill_value=fill, interpolation="nearest", **constant
    )
    images, masks = read(load(augment=layer))
    outside = (images == fill).all(-1)
    assert 0.1 < outside.mean() < 0.5
    assert (masks[outside] == IGNORED).all()
    # The column that does not count is still there, and little else.
    assert 0 < (masks[~outside] == IGNORED).mean() < 0.04
    counts = masks != IGNORED
    np.testing.assert_array_equal(colors(images)[counts], masks[counts])


@pytest.mark.parametrize(
    ("layer", "first"),
    [
        (lambda: keras.layers.RandomFlip(seed=0), False),
        (lambda: keras.layers.RandomZoom((-0.4, 0.5), **constant), True),
        (lambda: keras.layers.RandomRotation(0.2, **constant), False),
        (lambda: keras.layers.RandomCrop(40, 60, seed=0), True),
    ],
    ids=["flip", "zoom", "rotation", "crop"],
)
def test_masks_follow_the_layers(load, layer, first, request):
    if first:
        request.getfixturevalue("channels_first")
    bright = keras.layers.RandomBrightness(0.05, seed=0)
    augment = keras.layers.Pipeline([layer(), bright])
    images, masks = read(load((60, 80), 8, augment=augment))
    if first:
        images = images.transpose(0, 2, 3, 1)
    assert images.shape[:3] == masks.shape
    assert masks.dtype == np.int32
    assert set(np.unique(masks)) <= {0, 1, 2, 3, IGNORED}
    counts = masks != IGNORED
    # Colors blend into gray at the edges, masks don't.
    assert (colors(images) == masks)[counts].mean() > 0.95
    plain = read(load(masks.shape[1:]))[1]
    assert (masks != plain).mean() > 0.1


def test_function_and_layer_take_the_same_dict(load, masks):
    def mirror(data):
        assert data["segmentation_masks"].dtype == tf.int32
        assert data["segmentation_masks"].shape[1:] == (30, 40, 1)
        return {name: tf.reverse(tensor, [2]) for name, tensor in data.items()}

    images, mirrored = read(load(augment=mirror, preprocess=lambda x: x / 255))
    plain = read(load())[0]
    np.testing.assert_allclose(images, plain[:, :, ::-1] / 255, atol=1e-6)
    np.testing.assert_array_equal(mirrored, masks[:8, :, ::-1])


def test_a_seed_repeats_augmentation(load):
    def dataset():
        flip = keras.layers.RandomFlip("horizontal", seed=0)
        return load(augment=flip, shuffle=True, seed=1)

    one, same = dataset(), dataset()
    for _ in range(2):
        for array, again in zip(read(one), read(same), strict=True):
            np.testing.assert_array_equal(array, again)


def test_masks_are_exact_under_mixed_precision(load, mixed_float16, masks):
    flip = keras.layers.RandomFlip("horizontal", seed=0)
    images, flipped = read(load(augment=flip))
    assert (images.dtype, flipped.dtype) == ("float32", "int32")
    for mask, expected in zip(flipped, masks, strict=False):
        assert (mask == expected).all() or (mask == expected[:, ::-1]).all()


# Data sets


def test_mask_folder(template):
    builder = MaskFolder(template)
    assert builder.info.features["segmentation_mask"].names == CLASSES
    assert builder.info.features["segmentation_mask"].num_classes == 4
    sizes = {name: split.num_examples for name, split in builder.info.splits.items()}
    assert sizes == {"train": 8, "test": 4}
    # Like any other data set of TFDS.
    example = next(iter(tfds.as_numpy(builder.as_dataset(split="train[3:]"))))
    assert example["image/filename"].endswith(b"03.png")
    assert example["segmentation_mask"].shape == (30, 40, 1)
    assert example["segmentation_mask"].dtype == np.uint8


@pytest.mark.parametrize("ignored", ["green", 2, "background", 0, np.int64(3)])
def test_a_class_that_does_not_count(template, masks, ignored):
    index = CLASSES.index(ignored) if isinstance(ignored, str) else int(ignored)
    builder = MaskFolder(template, ignored=ignored)
    names = builder.info.features["segmentation_mask"].names
    assert names == [name for name in CLASSES if name != CLASSES[index]]
    read_masks = read(load_segmentation(builder, "train", (30, 40)))[1]
    for value, name in enumerate(CLASSES):
        expected = IGNORED if name not in names else names.index(name)
        assert (read_masks[masks[:8] == value] == expected).all()
    assert (read_masks[masks[:8] == IGNORED] == IGNORED).all()


# Masks that Pillow writes and reads: with a palette, and with fewer bits.
@pytest.mark.parametrize(("mode", "bits"), [("P", 8), ("P", 4), ("P", 2), ("1", 1)])
def test_pngs_of_masks(folder, mode, bits):
    values = np.random.default_rng(0).integers(0, min(2**bits, 4), (30, 40), "uint8")
    image = Image.fromarray(values)
    if mode == "P":
        colors = np.random.default_rng(1).integers(0, 256, (2**bits, 3))
        image.putpalette(colors.astype("uint8").tobytes())
        image.info["transparency"] = 0
    elif mode == "1":
        image = Image.fromarray(values.astype(bool))
    file = folder / "train/masks/00.png"
    image.save(file, bits=bits)
    assert file.read_bytes()[24:26] == bytes([bits, 3 if mode == "P" else 0])
    mask = read(load_segmentation(MaskFolder(folder), "train[:1]", (30, 40)))[1][0]
    np.testing.assert_array_equal(mask, np.array(Image.open(file)))


def test_images_may_be_jpegs_and_gray(folder):
    (folder / "train/images/00.png").unlink()
    gray = Image.fromarray(np.full((30, 40), 77, "uint8"))
    gray.save(folder / "train/images/00.jpeg")
    # Left by macOS.
    (folder / "train/images/._00.png").write_bytes(b"")
    images, _ = read(load_segmentation(MaskFolder(folder), "train[:1]", (30, 40)))
    np.testing.assert_array_equal(images, np.full((1, 30, 40, 3), 77))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.full((30, 40), 4, "uint8"), r"00\.png.*unknown classes: \[4\]"),
        (np.eye(3, dtype="uint8")[np.ones((30, 40), int)], r"00\.png .*in color"),
        (np.zeros((30, 41), "uint8"), r"00\.png is 41 x 30.*its image is 40 x 30"),
    ],
)
def test_a_mask_that_does_not_fit(folder, mask, message):
    Image.fromarray(mask).save(folder / "train/masks/00.png")
    with pytest.raises(ValueError, match=message):
        read(load_segmentation(MaskFolder(folder), "train", (30, 40)))


@pytest.mark.parametrize(
    ("mask", "suffix"),
    [
        (np.zeros((30, 40), "uint16"), "png"),
        (np.zeros((30, 40), "uint8"), "jpg"),
        (None, "png"),
    ],
    ids=["16 bits", "jpeg", "empty"],
)
def test_files_that_are_not_masks(folder, mask, suffix):
    (folder / "train/masks/00.png").unlink()
    file = folder / f"train/masks/00.{suffix}"
    file.touch() if mask is None else Image.fromarray(mask).save(file)
    with pytest.raises(ValueError, match=f"00.{suffix} must be a PNG"):
        MaskFolder(folder)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("train/images/00.png", r"masks.00\.png must have an image"),
        ("test/masks/09.png", r"images.09\.png must have a mask"),
        ("train/images", "no images in.*images"),
    ],
)
def test_a_damaged_folder(folder, path, message):
    if (folder / path).is_dir():
        shutil.rmtree(folder / path)
    else:
        (folder / path).unlink()
    with pytest.raises(ValueError, match=message):
        MaskFolder(folder)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ignored": "violet"}, "`ignored` must be.*'violet'"),
        ({"ignored": 4}, "`ignored` must be.*4"),
        ({"ignored": -1}, "`ignored` must be.*-1"),
        ({"classes": "red"}, "`classes` must be.*red"),
        ({"classes": ["red", "red"]}, r"`classes` must be.*\['red', 'red'\]"),
        ({"classes": ["red", ""]}, r"`classes` must be.*\['red', ''\]"),
        ({"classes": [str(i) for i in range(256)]}, "At most 255.*256"),
    ],
)
def test_bad_arguments_of_a_folder(template, arguments, message):
    with pytest.raises(ValueError, match=message):
        MaskFolder(template, **arguments)


def test_a_folder_without_masks(tmp_path):
    with pytest.raises(ValueError, match="must have images and masks"):
        MaskFolder(tmp_path, classes=["red"])


def test_a_data_set_of_tfds(tmp_path):
    with tfds.testing.mock_data(num_examples=5):
        dataset = load_segmentation(
            "oxford_iiit_pet", "train", 32, 2, shuffle=True, data_dir=tmp_path
        )
        images, masks = read(dataset)
    assert images.shape == (5, 32, 32, 3)
    assert masks.shape == (5, 32, 32)
    assert masks.dtype == np.int32


# Arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": 3}, "`name` must be.*Received: 3"),
        ({"name": "digits/classification"}, "'image' and a 'seg.*digits/class"),
        ({"split": "validation"}, r"`split` must be of .*Received: 'validation'"),
        ({"split": None}, "`split` must be.*None"),
        ({"image_size": 0}, "`image_size` must be.*0"),
        ({"batch_size": 0}, "`batch_size` must be.*0"),
        ({"augment": "flip"}, "`augment` must be callable.*'flip'"),
        ({"preprocess": 255}, "`preprocess` must be callable.*255"),
        ({"shuffle": 1000}, "`shuffle` must be.*1000"),
        ({"seed": 0.5}, "`seed` must be.*0.5"),
    ],
)
def test_bad_arguments(template, tmp_path, arguments, message):
    valid = {"name": MaskFolder(template), "split": "train", "image_size": 8}
    with pytest.raises(ValueError, match=f"(?s){message}"):
        load_segmentation(**{**valid, **arguments}, data_dir=tmp_path)
