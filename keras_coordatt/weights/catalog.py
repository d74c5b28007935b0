"""The published weights: where they are, and how they get here."""

import dataclasses
import hashlib
import os
import pathlib
import tempfile
from collections.abc import Callable

import keras

from keras_coordatt.weights.from_torch import load_torch


@dataclasses.dataclass(frozen=True)
class Record:
    """A published file of weights.

    Attributes:
        url: Where it is, at a pinned commit.
        filename: Its name in the cache.
        git_blob: SHA-1 of its size and bytes, as git names a file.
        size: Its size in bytes, where it is known apart from `git_blob`.
        top1: Accuracy on ImageNet's validation set, as published, in percent.
        license: The licence it is published under.
    """

    url: str
    filename: str
    git_blob: str
    size: int | None
    top1: float
    license: str


CATALOG = {
    "mobilenetv2_ca_imagenet": Record(
        url="https://github.com/houqb/CoordAttention/raw/"
        "9c9d9cc234c1fc0e195816304eb07753ef308e00/mbv2_ca.pth",
        filename="mbv2_ca.pth",
        git_blob="07b6640600b7d767acfaebcf5ddb801b675073df",
        size=None,
        top1=74.3,
        license="MIT",
    ),
}


def cached_weights(name: str, build: Callable[[], keras.Model]) -> str:
    """Gives the path of published weights in Keras's format.

    The first time, the published file is downloaded, checked, converted, and the
    converted file kept. A published file that was put into the cache by hand is
    used in place of a download, after the same checks.

    Args:
        name: A name in the catalog.
        build: Builds the network that the weights are for.

    Returns:
        The path of a `.weights.h5` file.

    Raises:
        OSError: if the file can't be downloaded.
        ValueError: if the file is not the published one.
    """
    record = CATALOG[name]
    cache = cache_dir()
    converted = cache / f"{name}_{record.git_blob[:8]}.weights.h5"
    if converted.exists():
        return str(converted)

    cache.mkdir(parents=True, exist_ok=True)
    # Everything is made beside the cache and then renamed, so that whoever looks,
    # another process too, sees a whole file or none.
    with tempfile.TemporaryDirectory(dir=cache, prefix=f".{name}-") as scratch:
        source = cache / record.filename
        if not source.exists():
            source = _download(record, scratch)
        check_file(source, record)
        model = _in_float32(build)
        load_torch(model, source)
        fresh = pathlib.Path(scratch) / "converted.weights.h5"
        model.save_weights(fresh)
        os.replace(fresh, converted)
    return str(converted)


def cache_dir() -> pathlib.Path:
    """Where Keras keeps models: `$KERAS_HOME/models`, or `~/.keras/models`."""
    home = os.environ.get("KERAS_HOME") or pathlib.Path.home() / ".keras"
    return pathlib.Path(home) / "models"


def _in_float32(build):
    """Builds in full precision, whatever the policy: the cache is for every policy."""
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32")
    try:
        return build()
    finally:
        keras.config.set_dtype_policy(policy)


def _download(record, folder):
    try:
        path = keras.utils.get_file(
            record.filename, origin=record.url, cache_dir=folder, cache_subdir=""
        )
    except Exception as error:  # get_file raises plain Exceptions
        raise OSError(
            f"{record.url} could not be downloaded ({error}). Put the file at "
            f"{cache_dir() / record.filename} by hand, or pass `weights=None`."
        ) from error
    return pathlib.Path(path)


def check_file(path: pathlib.Path, record: Record) -> None:
    """Raises a ValueError unless the file is the one that was published."""
    size = path.stat().st_size
    digest = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    if digest.hexdigest() != record.git_blob or record.size not in (None, size):
        expected = record.git_blob + (f", {record.size} bytes" if record.size else "")
        raise ValueError(
            f"{path} is not the file that {record.url} is known to be: it is truncated "
            f"or was changed. Nothing was loaded. Expected the git blob {expected}. Received: "
            f"{digest.hexdigest()}, {size} bytes"
        )
