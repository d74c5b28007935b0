"""How a published file gets here: downloaded, checked, converted, kept."""

import contextlib
import hashlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator

import h5py
import keras

from keras_coordatt.weights.catalog import CATALOG, Record
from keras_coordatt.weights.official import load_torch

try:
    import fcntl
except ImportError:  # Windows: see `_alone`
    fcntl = None


def cached_weights(name: str, build: Callable[[], keras.Model]) -> str:
    """Gives the path of published weights in Keras's format.

    The first time, the published file is downloaded, checked, converted, and the
    converted file kept; one that is damaged is made anew. A published file that was put
    into the cache by hand is used in place of a download, after the same checks. What
    is in the package is there already, and is used as it is.

    Args:
        name: A name in the catalog.
        build: Builds the network that the weights are for.

    Returns:
        The path of a file that `load_weights` reads.

    Raises:
        OSError: if the file can't be downloaded.
        ValueError: if the file is not the published one.
    """
    record = CATALOG[name]
    if record.url is None:
        return str(pathlib.Path(__file__).parent / record.filename)
    converted, source = cached_path(name), published_path(name)
    if _is_whole(converted):
        return str(converted)

    cache = cache_dir()
    cache.mkdir(parents=True, exist_ok=True)
    with _alone(cache) as alone:
        if _is_whole(converted):  # by who was first
            return str(converted)
        if alone:  # what is left was left by who was killed
            for left in cache.glob(f".{name}-*"):
                shutil.rmtree(left, ignore_errors=True)
        # Everything is made beside the cache and then renamed, so that whoever
        # looks, another process too, sees a whole file or none.
        with tempfile.TemporaryDirectory(dir=cache, prefix=f".{name}-") as scratch:
            if source.exists():
                check_file(source, record, str(source))
            else:
                source = _download(name, scratch)
                check_file(source, record, f"What {record.url} gave")
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


def cached_path(name: str) -> pathlib.Path:
    """Where the converted file is kept; its hash tells one edition from another."""
    digest = CATALOG[name].hash.partition(":")[2]
    return cache_dir() / f"{name}_{digest[:8]}.weights.h5"


def _is_whole(path):
    """Whether a converted file is there, neither cut off nor another."""
    try:
        h5py.File(path, "r").close()
    except OSError:
        return False
    return True


def published_path(name: str) -> pathlib.Path:
    """Where the published file may be put by hand."""
    return cache_dir() / CATALOG[name].filename


@contextlib.contextmanager
def _alone(folder: pathlib.Path) -> Iterator[bool]:
    """Has other processes wait, and tells whether they do.

    A lock spares them the download, no more: files are whole without it. So where
    there are no locks, as on Windows and some networks' file systems, all go on.
    """
    if fcntl is None:
        yield False
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)  # the end of the process is its end too
            locked = True
        except OSError:
            locked = False
        yield locked
    finally:
        os.close(handle)


def _in_float32(build):
    """Builds in full precision, whatever the policy: the cache is for every policy."""
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32")
    try:
        return build()
    finally:
        keras.config.set_dtype_policy(policy)


def _download(name, folder):
    record = CATALOG[name]
    try:
        path = keras.utils.get_file(
            record.filename, origin=record.url, cache_dir=folder, cache_subdir=""
        )
    except Exception as error:  # get_file raises plain Exceptions
        raise OSError(
            f"{record.url} could not be downloaded ({error}). Put the file at "
            f"{published_path(name)} by hand, or pass `weights=None`."
        ) from error
    return pathlib.Path(path)


def check_file(path: pathlib.Path, record: Record, what: str) -> None:
    """Raises a ValueError unless the file, called `what`, is the published one."""
    size = path.stat().st_size
    algorithm, _, expected = record.hash.partition(":")
    if algorithm == "git":
        digest = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    else:
        digest = hashlib.new(algorithm)
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    if digest.hexdigest() != expected or record.size not in (None, size):
        bytes_ = f", {record.size} bytes" if record.size else ""
        raise ValueError(
            f"{what} is not the file that {record.url} is known to be: it is truncated "
            f"or was changed. Nothing was loaded. Expected: {record.hash}{bytes_}. "
            f"Received: {algorithm}:{digest.hexdigest()}, {size} bytes"
        )
