"""Pictures are read as a viewer shows them, and text as it was written."""

import struct
import zlib

import numpy as np
import pytest
from backends import once
from data_scenes import STORE, encode, scene, write
from PIL import Image

from keras_coordatt.data.reading import (
    check_mask,
    image_size,
    list_folder,
    read_image,
    read_mask,
    report_faults,
)

pytestmark = once

IMAGE, _, _ = scene()
PIXELS = np.asarray(IMAGE, int)
GRAY = np.asarray(IMAGE.convert("L"), int)[..., None]
# Palettes and WebP are exact, JPEG nearly so.
FILES = {
    "cmyk.jpg": encode(IMAGE.convert("CMYK")),
    "palette.png": encode(IMAGE.convert("P", palette=Image.Palette.ADAPTIVE), "PNG"),
    "rgba.png": encode(IMAGE.convert("RGBA"), "PNG"),
    "animated.gif": encode(
        IMAGE,
        "GIF",
        save_all=True,
        append_images=[IMAGE.transpose(Image.Transpose.FLIP_LEFT_RIGHT)],
    ),
    "UPPER.JPG": encode(IMAGE),
    "straße 写真.jpg": encode(IMAGE),
    "png_named.jpg": encode(IMAGE, "PNG"),
    "web.webp": encode(IMAGE, "WEBP", lossless=True),
    "bitmap.bmp": encode(IMAGE, "BMP"),
    "scan.tif": encode(IMAGE, "TIFF"),
    "progressive.jpeg": encode(IMAGE, progressive=True),
}
GRAY_FILES = {
    "gray.jpg": encode(IMAGE.convert("L")),
    "gray16.png": encode(Image.fromarray((GRAY[..., 0] * 257).astype("uint16")), "PNG"),
    "gray16.tif": encode(
        Image.fromarray((GRAY[..., 0] * 257).astype("uint16")), "TIFF"
    ),
    "alpha.png": encode(IMAGE.convert("LA"), "PNG"),
}


@pytest.mark.parametrize("name", [*FILES, *GRAY_FILES])
def test_odd_pictures(tmp_path, name):
    write(tmp_path / name, (FILES | GRAY_FILES)[name])
    image = read_image(tmp_path / name)
    assert image.dtype == np.uint8
    expected = np.broadcast_to(GRAY if name in GRAY_FILES else PIXELS, PIXELS.shape)
    assert image.shape == expected.shape
    # Colors run a little at the object's edge.
    assert np.abs(image - expected).mean() < 4
    assert np.abs(image - expected).max((0, 1, 2)) < 90
    assert image_size(tmp_path / name) == image.shape[:2]


@pytest.mark.parametrize("size", [IMAGE.size, (32, 32)], ids=["wide", "square"])
@pytest.mark.parametrize("orientation", STORE)
def test_exif_orientation(tmp_path, orientation, size):
    shown, _, _ = scene(1, size)
    write(tmp_path / "a.jpg", encode(shown, orientation=orientation))
    image = read_image(tmp_path / "a.jpg")
    assert image.shape == (*size[::-1], 3)
    assert np.abs(image - np.asarray(shown, int)).mean() < 4
    assert image_size(tmp_path / "a.jpg") == size[::-1]


def test_transparency_is_white(tmp_path):
    image = IMAGE.convert("RGBA")
    image.putalpha(
        Image.fromarray(
            np.where(np.arange(48) < 9, 0, 255).astype("uint8")[None].repeat(32, 0)
        )
    )
    write(tmp_path / "a.png", encode(image, "PNG"))
    read = read_image(tmp_path / "a.png")
    assert (read[:, :9] == 255).all()
    np.testing.assert_array_equal(read[:, 9:], PIXELS[:, 9:])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (encode(IMAGE)[:-40], "truncated"),
        (encode(IMAGE, "PNG")[:-40], "."),
        (b"", "empty"),
        (b"this is not a picture", "not an image"),
        (None, "No such file"),
    ],
    ids=["cut", "cut PNG", "empty", "text", "missing"],
)
@pytest.mark.parametrize("read", [read_image, image_size])
def test_pictures_that_cannot_be_read(tmp_path, content, reason, read):
    if content is not None:
        write(tmp_path / "a.jpg", content)
    with pytest.raises(ValueError, match=rf"a\.jpg cannot be read: .*{reason}"):
        read(tmp_path / "a.jpg")


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (np.float32([[0, 128]]), "floats from 0 to 128"),
        (np.float32([[-1, 1]]), "floats from -1 to 1"),
        (np.float32([[0, np.nan]]), "floats from nan to nan"),
        (np.int32([[0, 128]]), "integers of more than 8 bits from 0 to 128"),
        (np.int32([[0, 70000]]), "integers of more than 8 bits from 0 to 70000"),
    ],
)
@pytest.mark.parametrize("read", [read_image, image_size])
def test_pictures_whose_white_is_unknown(tmp_path, values, kind, read):
    write(tmp_path / "a.tif", encode(Image.fromarray(values), "TIFF"))
    with pytest.raises(ValueError, match=rf"a\.tif cannot be read: .*{kind}, and"):
        read(tmp_path / "a.tif")


def test_pictures_of_floats(tmp_path):
    values = np.float32([[0, 0.2, 0.5, 1]])
    write(tmp_path / "a.tif", encode(Image.fromarray(values), "TIFF"))
    assert read_image(tmp_path / "a.tif")[0, :, 0].tolist() == [0, 51, 128, 255]
    assert image_size(tmp_path / "a.tif") == (1, 4)


def png16(values):
    """Returns an RGB PNG of 16 bits, which Pillow doesn't write."""
    pixels = np.asarray(values, ">u2")[..., None].repeat(3, -1)
    height, width, _ = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in pixels))
    chunks = [(b"IHDR", header), (b"IDAT", rows), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data))
        + name
        + data
        + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


def test_masks_of_16_bits(tmp_path):
    mask = np.array([[0, 1], [2, 0]], "uint16")
    write(tmp_path / "gray.png", encode(Image.fromarray(mask), "PNG"))
    write(tmp_path / "rgb.png", png16(mask))
    for name in ("gray", "rgb"):
        for read in (check_mask, read_mask):
            with pytest.raises(ValueError, match=rf"{name}\.png must be .* 8 bits"):
                read(tmp_path / f"{name}.png")
    # As a picture, it is scaled.
    write(tmp_path / "rgb.png", png16([[0, 65535], [128 * 257, 0]]))
    assert read_image(tmp_path / "rgb.png")[..., 1].tolist() == [[0, 255], [128, 0]]


def test_files_that_count_in_a_folder(tmp_path):
    for name in ("b.PNG", "a.jpg", ".c.jpg", "Thumbs.db", ".DS_Store", "notes.txt"):
        (tmp_path / name).touch()
    for name in ("more", ".ipynb_checkpoints"):
        (tmp_path / name).mkdir()
    images, others, folders = list_folder(tmp_path)
    assert [file.name for file in images] == ["a.jpg", "b.PNG"]
    assert [file.name for file in others] == ["notes.txt"]
    assert [file.name for file in folders] == ["more"]


def test_an_error_lists_all_faults_and_a_warning_some():
    faults = [f"fault {i}" for i in range(30)]
    with pytest.raises(ValueError, match="(?s)30 faults:.*fault 0\n.*fault 29$"):
        report_faults(faults, "raise", "faults", "")
    with pytest.warns(UserWarning, match="(?s)30 faults, gone:.*fault 19\n.*10 more$"):
        report_faults(faults, "skip", "faults", "gone")
    report_faults([], "raise", "faults", "")


def test_contents_of_a_folder(tmp_path):
    names = ("b.JPG", "a.png", ".hidden.jpg", "notes.txt", "Thumbs.db", "._a.png")
    for name in names:
        write(tmp_path / name, b"")
    for name in ("more", ".git", "__MACOSX"):
        (tmp_path / name).mkdir()
    found = list_folder(tmp_path)
    expected = ["a.png", "b.JPG"], ["notes.txt"], ["more"]
    assert tuple([path.name for path in part] for part in found) == expected
    assert list_folder(tmp_path / "a.png") == ([], [], [])
    assert list_folder(tmp_path / "missing") == ([], [], [])
