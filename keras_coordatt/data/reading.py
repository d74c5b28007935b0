"""Reads pictures and masks of all common kinds, and lists folders."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

# Files with other endings are not looked at.
IMAGE_SUFFIXES = frozenset(
    (".bmp", ".gif", ".jpe", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
)
# Pillow modes of masks; RGB only with equal channels.
_MASK_MODES = ("1", "L", "P", "RGB", "RGBA")
# The value of white in pictures of 8 bits.
_WHITE = 255.0
# Left in a folder by the operating system.
_CLUTTER = frozenset(("thumbs.db", "desktop.ini", "__macosx", "@eadir"))
# EXIF's tag, and its values that swap height and width.
_ORIENTATION = 0x0112
_SIDEWAYS = (5, 6, 7, 8)
# Maximum number of faults that a warning lists.
_LISTED = 20


def read_image(file: str | os.PathLike) -> np.ndarray:
    """Reads a picture as a viewer shows it.

    EXIF orientation is applied, 16 bits per channel are scaled to 8, transparency is
    laid on white, and of an animation the first frame is read. The format is that of
    the content, whatever the file's ending. Floats must be from 0 to 1.

    Args:
        file: The file.

    Returns:
        The RGB picture, uint8 of shape `(height, width, 3)`.

    Raises:
        ValueError: If the file cannot be read. The message names it.

    Example:

    >>> read_image("IMG_0001.JPG").shape
    (3024, 4032, 3)
    """

    def read(image):
        white = _white(image)
        image = ImageOps.exif_transpose(image)
        if white != _WHITE:
            pixels = np.round(np.asarray(image) / white * _WHITE)
            image = Image.fromarray(pixels.astype("uint8"))
        elif image.has_transparency_data:
            image = image.convert("RGBA")
            background = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(background, image)
        return np.asarray(image.convert("RGB"))

    return _open(file, read)


def image_size(file: str | os.PathLike) -> tuple[int, int]:
    """Decodes a picture only to check it.

    Args:
        file: The file.

    Returns:
        Height and width, as `read_image` reads it.

    Raises:
        ValueError: If the file cannot be read. The message names it.

    Example:

    >>> image_size("IMG_0001.JPG")
    (3024, 4032)
    """

    def check(image):
        width, height = image.size
        sideways = image.getexif().get(_ORIENTATION) in _SIDEWAYS
        # An eighth of the size is decoded faster, and the file is still read to its end.
        image.draft(image.mode, (1, 1))
        image.load()
        _white(image)
        return (width, height) if sideways else (height, width)

    return _open(file, check)


def read_mask(file: str | os.PathLike) -> np.ndarray:
    """Reads a mask: the value of each pixel, or its index in the palette.

    Args:
        file: A PNG of up to 8 bits: with a palette, or gray, also as gray RGB.

    Returns:
        The values, uint8 of shape `(height, width)`.

    Raises:
        ValueError: If the file cannot be read or is not such a PNG. The message names it.

    Example:

    >>> np.unique(read_mask("SegmentationClass/2007_000032.png"))
    array([  0,   1,  15, 255], dtype=uint8)
    """

    def read(image):
        values = np.asarray(ImageOps.exif_transpose(image), "uint8")
        if image.mode == "L":
            # Pillow spreads 2 and 4 bits over 0 to 255.
            values = values // (255 // (2 ** _bits(file) - 1))
        elif values.ndim == 3:
            colors = values[..., :3]
            if (colors != colors[..., :1]).any():
                raise ValueError("it is in color, and must have one value per pixel")
            values = colors[..., 0]
        return values

    check_mask(file)
    return _open(file, read)


def check_mask(file: str | os.PathLike) -> None:
    """Checks that a mask is of the right kind, without decoding it.

    Args:
        file: The file.

    Raises:
        ValueError: If it is not a PNG of up to 8 bits.
    """
    try:
        with Image.open(file) as image:
            fits = image.format == "PNG" and image.mode in _MASK_MODES
            # Pillow cuts 16 bits of color to 8.
            fits = fits and _bits(file) <= 8
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        fits = False
    if not fits:
        raise ValueError(
            f"{os.fspath(file)} must be a PNG, gray or with a palette, of up to 8 bits"
        )


def list_folder(folder: Path) -> tuple[list[Path], list[Path], list[Path]]:
    """Lists the visible contents of a folder, in alphabetical order.

    Args:
        folder: The folder.

    Returns:
        The images, the other files, and the subfolders.
    """
    images, others, folders = [], [], []
    if not folder.is_dir():
        return images, others, folders
    with os.scandir(folder) as found:
        # `scandir` tells folders from files without another system call per entry.
        entries = sorted((entry.name, entry.is_dir()) for entry in found)
    for name, is_folder in entries:
        if name.startswith(".") or name.lower() in _CLUTTER:
            continue
        path = folder / name
        if is_folder:
            folders.append(path)
        elif path.suffix.lower() in IMAGE_SUFFIXES:
            images.append(path)
        else:
            others.append(path)
    return images, others, folders


def find_faults(check: Callable, arguments: Iterable) -> tuple[list, list[str | None]]:
    """Calls a check in several threads.

    Args:
        check: A function that raises a ValueError where something is wrong.
        arguments: What to call it with.

    Returns:
        Two lists with one entry per argument: results of the check, or `None`; and
        messages of its errors, or `None`.
    """

    def call(argument):
        try:
            return check(argument), None
        except ValueError as error:
            return None, str(error)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        results = list(pool.map(call, arguments))
    return [result for result, _ in results], [fault for _, fault in results]


def report_faults(
    faults: Iterable[str | None], on_error: str, what: str, outcome: str
) -> None:
    """Raises one error that lists all faults, or warns once of them.

    Args:
        faults: Messages, or `None` where there is no fault, as from `find_faults`.
        on_error: `"raise"`; any other value warns.
        what: Subject of the message, such as `"images that cannot be read"`.
        outcome: Outcome for the warning, such as `"left out"`.

    Raises:
        ValueError: If there are faults, and `on_error` is `"raise"`.
    """
    messages = [fault for fault in faults if fault is not None]
    if not messages:
        return
    if on_error == "raise":
        # All of them, so that they can be fixed in one go.
        raise ValueError("\n  ".join([f"{len(messages)} {what}:", *messages]))
    listed = messages[:_LISTED]
    if len(messages) > _LISTED:
        listed.append(f"and {len(messages) - _LISTED} more")
    text = "\n  ".join([f"{len(messages)} {what}, {outcome}:", *listed])
    warnings.warn(text, stacklevel=2)


def _open(file, read):
    try:
        with Image.open(file) as image:
            return read(image)
    # Pillow's decoders raise all kinds of errors on damaged files.
    except Exception as error:
        reason = str(error)
        if isinstance(error, UnidentifiedImageError):
            reason = "not an image" if os.path.getsize(file) else "the file is empty"
        raise ValueError(f"{os.fspath(file)} cannot be read: {reason}") from error


def _white(image: Image.Image) -> float:
    """Returns the value of white in a picture.

    Raises:
        ValueError: If it is not certain.
    """
    # Older versions of Pillow read PNGs of 16 bits as "I".
    if image.mode.startswith("I;16") or (image.mode, image.format) == ("I", "PNG"):
        return 65535.0
    if image.mode not in ("I", "F"):
        return _WHITE
    values = np.asarray(image)
    low, high = values.min(), values.max()
    if image.mode == "F" and low >= 0 and high <= 1:
        return 1.0
    kind = "floats" if image.mode == "F" else "integers of more than 8 bits"
    raise ValueError(
        f"its values are {kind} from {low:g} to {high:g}, and which of them is white is "
        "unknown. Save it with 8 bits per channel, or floats from 0 to 1"
    )


def _bits(file) -> int:
    """Returns the bits per pixel of a PNG, which its header has at a fixed offset."""
    with open(file, "rb") as png:
        return png.read(25)[24]
