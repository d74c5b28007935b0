"""Text files are read in any common encoding, and files are written atomically.

Of an atomic write, a reader sees the old file or the new one, never half of one.
"""

import contextlib
import os
import pathlib
import sys
import tempfile
from collections.abc import Iterator


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields a temporary path, and renames it to `path` on success.

    Until then, and if writing fails, other processes see the old file or none. The
    temporary path is in a folder beside `path` and has its name, so that code that
    looks at the suffix works.

    Args:
        path: The file to write. Folders that are missing above it are made, and removed
            again if writing fails.

    Yields:
        Path of a temporary file, to be written.

    Example:

    >>> with atomic_file("scores.json") as temporary:
    ...     temporary.write_text("{}")
    """
    with _temporary_folder(path) as folder:
        temporary = folder / pathlib.Path(path).name
        yield temporary
        os.replace(temporary, path)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields a temporary folder, and renames it to `path` on success.

    A folder that is already at `path` is replaced atomically, and put back if the new
    one can't be moved there.

    Args:
        path: The folder to write.

    Yields:
        Path of a temporary folder, to be filled.

    Example:

    >>> with atomic_folder("saved_model") as temporary:
    ...     model.export(temporary)
    """
    path = pathlib.Path(path)
    with _temporary_folder(path) as folder:
        temporary, old = folder / "new", folder / "old"
        yield temporary
        try:
            # os.replace cannot overwrite a folder that is not empty.
            if path.exists():
                os.replace(path, old)
            os.replace(temporary, path)
        except BaseException:
            if old.exists():
                os.replace(old, path)
            raise


def read_text(file: str | os.PathLike) -> str:
    """Reads a text file in UTF-8, or in UTF-16 if it begins with a byte order mark.

    Args:
        file: The file.

    Returns:
        The text, without a byte order mark.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is not in UTF-8.

    Example:

    >>> read_text("labels.txt").split()
    ['background', 'thing']
    """
    data = pathlib.Path(file).read_bytes()
    utf16 = data.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        return data.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{os.fspath(file)} must be saved as UTF-8: {error}") from None


def check_writable(name: str, folder: pathlib.Path) -> pathlib.Path:
    """Checks that files can be written to a folder, which may not exist yet.

    Args:
        name: Name of the argument or option, for the error.
        folder: The folder.

    Returns:
        The folder, or the nearest one above it that exists.

    Raises:
        OSError: If no file can be made there.
    """
    existing = next(x for x in (folder, *folder.parents) if x.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            return existing
    except OSError as error:
        raise OSError(
            f"{name} can't be written to {folder}: {error.strerror or error}"
        ) from error


@contextlib.contextmanager
def exclusive_lock(path: str | os.PathLike) -> Iterator[None]:
    """Holds a lock inside a `with` block.

    The system releases it when the process ends, however it ends. Where no file can be
    written, or the file system has no locks, there is none.

    Args:
        path: File to lock. It is made for this, with the folders that are missing above
            it, and deleted at the end, with those of the folders that are empty.

    Raises:
        BlockingIOError: If another process holds the lock.

    Example:

    >>> with exclusive_lock("runs/.lock"):
    ...     pathlib.Path("runs/scores.json").write_text("{}")
    """
    path = pathlib.Path(path)
    made = [folder for folder in path.parents if not folder.exists()]
    file = None
    try:
        file = _open_locked(path)
    except BlockingIOError:
        raise
    except OSError:
        pass
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # not empty, or Windows
            if file is not None:
                path.unlink()
            for parent in made:
                parent.rmdir()
        if file is not None:
            os.close(file)


def _open_locked(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT)
        try:
            _lock(file)
            if os.path.samestat(os.fstat(file), os.stat(path)):
                return file
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(file)
            raise
        # The holder before us has deleted the file since we opened it.
        os.close(file)


def _lock(file):
    if sys.platform == "win32":
        import msvcrt

        try:
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        except OSError as error:
            raise BlockingIOError(*error.args) from error
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextlib.contextmanager
def _temporary_folder(path):
    """Yields a folder on the file system of `path`, so that renaming is atomic."""
    path = pathlib.Path(path)
    made = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(
            dir=path.parent, prefix=f".{path.name}-"
        ) as folder:
            yield pathlib.Path(folder)
    except BaseException:
        with contextlib.suppress(OSError):  # not empty: others have written there
            for parent in made:
                parent.rmdir()
        raise
