"""Downloads, verifies and caches published weights."""

import contextlib
import hashlib
import os
import pathlib
import shutil
import time

import keras

from keras_coordatt.files import atomic_file
from keras_coordatt.validation import check_choice
from keras_coordatt.weights.catalog import CATALOG, Record

_DAY = 24 * 60 * 60


def cached_weights(name: str) -> pathlib.Path:
    """Returns the path of a published file, which is downloaded once.

    The hash is verified at every call, also that of a file that was put into the cache
    by hand.

    Args:
        name: A name in the catalog.

    Returns:
        The path of the file as it was published, which `load_weights` reads.

    Raises:
        OSError: If the file can't be downloaded.
        ValueError: If `name` is not in the catalog, or the file is not the published one.
    """
    check_choice("name", name, CATALOG)
    record = CATALOG[name]
    path = published_path(name)
    if not path.exists():
        _remove_leftovers(path)
        # Other processes see the complete file or none.
        with atomic_file(path) as temporary:
            _download(record, temporary, path)
            check_file(temporary, record, f"The file downloaded from {record.url}")
    elif record.url:
        what = f"{path} (delete it to download {record.url} again)"
        check_file(path, record, what)
    else:
        check_file(path, record, f"{path} (install the package again)")
    return path


def cache_dir() -> pathlib.Path:
    """Returns Keras's folder of models, `$KERAS_HOME/models` or `~/.keras/models`."""
    home = os.environ.get("KERAS_HOME") or pathlib.Path.home() / ".keras"
    return pathlib.Path(home) / "models"


def published_path(name: str) -> pathlib.Path:
    """Returns the path of a published file, where it may also be put by hand."""
    record = CATALOG[name]
    folder = cache_dir() if record.url else pathlib.Path(__file__).parent
    return folder / record.filename


def _remove_leftovers(path):
    """Removes the unfinished downloads of killed processes."""
    for left in path.parent.glob(f".{path.name}-*"):
        with contextlib.suppress(FileNotFoundError):  # finished or removed meanwhile
            if time.time() - left.stat().st_mtime > _DAY:
                shutil.rmtree(left, ignore_errors=True)


def _download(record, temporary, path):
    try:
        keras.utils.get_file(
            temporary.name,
            origin=record.url,
            cache_dir=temporary.parent,
            cache_subdir="",
        )
    except Exception as error:  # get_file raises plain Exceptions
        raise OSError(
            f"{record.url} could not be downloaded ({error}). Put the file at {path} by "
            "hand, or pass `weights=None`."
        ) from error


def check_file(path: pathlib.Path, record: Record, what: str) -> None:
    """Raises a `ValueError` unless the file, named `what`, is the published one."""
    size = path.stat().st_size
    algorithm, _, expected = record.hash.partition(":")
    if algorithm == "git":
        digest = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    else:
        digest = hashlib.new(algorithm, usedforsecurity=False)
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    if digest.hexdigest() != expected:
        raise ValueError(
            f"{what} is not the published file: it is truncated or was changed. Nothing "
            f"was loaded. Expected: {record.hash}. Received: "
            f"{algorithm}:{digest.hexdigest()}, {size} bytes"
        )
