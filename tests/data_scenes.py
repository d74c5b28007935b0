"""Pictures of one red object on green, in common kinds of files."""

import io

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 48, 32
# The transposition that a camera applies and an EXIF orientation undoes.
STORE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def scene(seed=0, size=(WIDTH, HEIGHT)):
    """Returns a picture, its object's box in pixels, and its mask."""
    rng = np.random.default_rng(seed)
    width, height = size
    x, y = rng.integers(4, 12, 2)
    box = (int(x), int(y), int(x) + 16, int(y) + 12)
    mask = np.zeros((height, width), "uint8")
    mask[box[1] : box[3], box[0] : box[2]] = 1
    pixels = np.where(mask[..., None], (210, 30, 30), (30, 140, 40)).astype("uint8")
    return Image.fromarray(pixels), box, mask


def is_red(images):
    return np.asarray(images, float)[..., 0] - np.asarray(images)[..., 1:].max(-1) > 60


def encode(image, kind="JPEG", orientation=None, **options):
    """Returns a file's content; with an orientation, as a camera stores it."""
    if kind == "JPEG":
        options = {"quality": 95, "subsampling": 0, **options}
    if orientation:
        image = image.transpose(STORE[orientation])
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def annotation(size, *boxes):
    objects = "".join(
        f"<object><name>thing</name><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin>"
        f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
        for x1, y1, x2, y2 in boxes
    )
    width, height = size
    return (
        f"<annotation><size><width>{width}</width><height>{height}</height></size>"
        f"{objects}</annotation>"
    )


def write(file, content):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
