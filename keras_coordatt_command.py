"""Entry point of the `keras-coordatt` command.

It is outside of the package because importing the package imports Keras and its backend,
which read the environment and print messages when they are imported.
"""

import contextlib
import importlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator

# Commands that never import TensorFlow under other backends.
_WITHOUT_TENSORFLOW = ("convert", "weights")


def main() -> int:
    """Runs the command line, without TensorFlow's start-up messages."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    command = sys.argv[1:2]
    only_help = not command or {"-h", "--help", "--version"} & set(sys.argv)
    if only_help:
        # Nothing is computed, and this backend is imported fastest.
        os.environ["KERAS_BACKEND"] = "numpy"
    with quiet_stderr():
        cli = importlib.import_module("keras_coordatt.cli")
        if not only_help and command[0] not in _WITHOUT_TENSORFLOW:
            with contextlib.suppress(ImportError):
                importlib.import_module("tensorflow")
    return cli.main()


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """Discards the output to stderr, unless an error occurs.

    `TF_CPP_MIN_LOG_LEVEL` does not reach messages that TensorFlow logs while it is
    imported: they are written to the file descriptor.
    """
    with tempfile.TemporaryFile() as log:
        stderr = os.dup(2)
        os.dup2(log.fileno(), 2)
        try:
            yield
        except BaseException:
            log.seek(0)
            with os.fdopen(os.dup(stderr), "wb") as file:
                shutil.copyfileobj(log, file)
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


if __name__ == "__main__":
    sys.exit(main())
