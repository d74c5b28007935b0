"""Downloads, verifies, converts and caches published weights."""

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
except ImportError:  # Windows: see `_exclusive_lock`
    fcntl = None  # type: ignore[assignment]


def cached_weights(name: str, build: Callable[[], keras.Model]) -> str:
    """Returns the path of published weights that `load_weights` can read.

    The first call downloads, verifies and converts the published file, and keeps the
    converted file; a damaged one is converted again. A published file that was put into
    the cache by hand is used instead of a download, after the same checks. Weights in
    the package are used as they are.

    Args:
        name: A name in the catalog.
        build: Builds the network that the weights are for.

    Returns:
        The path of a file that `load_weights` reads.

    Raises:
        OSError: If the file can't be downloaded.
        ValueError: If the file is not the published one.
    """
    record = CATALOG[name]
    if record.url is None:
        return str(pathlib.Path(__file__).parent / record.filename)
    converted, source = cached_path(name), published_path(name)
    if _can_be_opened(converted):
        return str(converted)

    cache = cache_dir()
    cache.mkdir(parents=True, exist_ok=True)
    with _exclusive_lock(cache) as locked:
        if _can_be_opened(converted):  # another process converted it while we waited
            return str(converted)
        if locked:  # remove what killed processes left behind
            for left in cache.glob(f".{name}-*"):
                shutil.rmtree(left, ignore_errors=True)
        # Everything is made in a folder beside the file and then renamed, so that
        # other processes see a complete file or none.
        with tempfile.TemporaryDirectory(dir=cache, prefix=f".{name}-") as folder:
            if source.exists():
                check_file(source, record, str(source))
            else:
                source = _download(name, folder)
                check_file(source, record, f"What {record.url} gave")
            model = _in_float32(build)
            load_torch(model, source)
            temporary = pathlib.Path(folder) / "converted.weights.h5"
            model.save_weights(temporary)
            os.replace(temporary, converted)
    return str(converted)


def cache_dir() -> pathlib.Path:
    """Returns Keras's folder of models, `$KERAS_HOME/models` or `~/.keras/models`."""
    home = os.environ.get("KERAS_HOME") or pathlib.Path.home() / ".keras"
    return pathlib.Path(home) / "models"


def cached_path(name: str) -> pathlib.Path:
    """Returns the path of the converted file, with part of the published hash."""
    digest = CATALOG[name].hash.partition(":")[2]
    return cache_dir() / f"{name}_{digest[:8]}.weights.h5"


def _can_be_opened(path):
    """Returns whether a converted file exists and can be opened."""
    try:
        h5py.File(path, "r").close()
    except OSError:
        return False
    return True


def published_path(name: str) -> pathlib.Path:
    """Returns the path where the published file may be put by hand."""
    return cache_dir() / CATALOG[name].filename


@contextlib.contextmanager
def _exclusive_lock(folder: pathlib.Path) -> Iterator[bool]:
    """Makes other processes wait, and yields whether they do.

    The lock only spares them the download: files are complete without it. So where
    there are no locks, as on Windows and some network file systems, all go on.
    """
    if fcntl is None:
        yield False
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)  # released when the process ends
            locked = True
        except OSError:
            locked = False
        yield locked
    finally:
        os.close(handle)


def _in_float32(build):
    """Builds in float32 whatever the policy, as the cache serves every policy."""
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
    """Raises a `ValueError` unless the file, named `what`, is the published one."""
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
            f"{what} is not the published file of {record.url}: it is truncated or was "
            f"changed. Nothing was loaded. Expected: {record.hash}{bytes_}. "
            f"Received: {algorithm}:{digest.hexdigest()}, {size} bytes"
        )
