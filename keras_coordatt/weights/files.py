"""Files that are whole or not there."""

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Iterator


@contextlib.contextmanager
def written_whole(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Gives a path to write to, whose file then takes the place of `path`.

    Whoever looks meanwhile, another process too, sees the old file or none. If
    writing fails, that is how it stays. The path given is in the same folder, and
    ends as `path` does.
    """
    path = pathlib.Path(path)
    with tempfile.TemporaryDirectory(
        dir=path.parent, prefix=f".{path.name}-"
    ) as folder:
        fresh = pathlib.Path(folder) / path.name
        yield fresh
        os.replace(fresh, path)
