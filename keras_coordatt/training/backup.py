"""State of a training on disk, from which it continues after an interruption.

Keras's `BackupAndRestore` writes weights and epoch into two files in place: a process
that is killed meanwhile leaves a truncated file, or weights of one epoch and the number
of another. Here the weights of each epoch are a file of their own, and one small file,
replaced atomically, says which epoch is complete and holds its history.
"""

import contextlib
import json
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Iterator

import keras

from keras_coordatt.distribution import current, wait

STATE = "state.json"
# Setting with the hash of the data.
FINGERPRINT = "files_and_labels"


class Backup:
    """History, weights and optimizer of a training after its last complete epoch.

    The folder is made when the first epoch is complete, so a training that failed
    before leaves nothing behind.

    Args:
        folder: Folder of the state, of this training alone.
        settings: Dict of everything that determines the training, as JSON can hold it.

    Attributes:
        rows: The history: one dict of numbers per complete epoch.
        seconds: Time of the complete epochs before an interruption, and since it.

    Raises:
        ValueError: If the folder has the state of another training, or a damaged one.

    Example:

    >>> backup = Backup("runs/.training", {"learning_rate": 0.1})
    >>> backup.save(model, {"epoch": 1, "loss": 0.7}, best=model)
    """

    def __init__(self, folder: str | os.PathLike, settings: dict):
        self.folder = pathlib.Path(folder)
        self.settings = json.loads(json.dumps(settings))
        self.rows: list[dict] = []
        self._start = time.perf_counter()
        state = self.folder / STATE
        if state.exists():
            saved = self._read_state(state)
            check_settings(saved["settings"], self.settings, self.folder)
            self.rows = saved["rows"]
            # States of earlier versions don't have it.
            self._start -= saved.get("seconds", 0)
        if current().first:
            # Left by a process that was killed while writing
            shutil.rmtree(self.folder / "temporary", ignore_errors=True)

    def _read_state(self, path):
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
            rows = state["rows"]
            fits = isinstance(state["settings"], dict) and isinstance(rows, list)
            if not fits or not rows or any("epoch" not in row for row in rows):
                raise ValueError("its epochs or settings are missing")
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"Cannot read {str(path)!r}. Delete {self.folder} to train from the "
                f"start ({type(error).__name__}: {error})"
            ) from error
        return state

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._start

    def save(self, model: keras.Model, row: dict, best: keras.Model | None) -> None:
        """Saves a complete epoch.

        All processes must call it, as a distributed model needs them all to be saved.

        Args:
            model: The compiled model.
            row: The epoch's part of the history, with its number as `"epoch"`, from 1.
            best: Model with the weights to keep as the best ones, if this epoch is the
                best so far; otherwise `None`, and the previous ones are kept.
        """
        kept = [self._path("epoch", row["epoch"])]
        with self.writing(kept[0]) as temporary:
            model.save_weights(temporary)
        if best is not None:
            kept.append(self._path("best", row["epoch"]))
            with self.writing(kept[1]) as temporary:
                best.save_weights(temporary)
        rows = [*self.rows, row]
        with self.writing(self.folder / STATE) as temporary:
            state = {
                "settings": self.settings,
                "rows": rows,
                "seconds": self.seconds,
            }
            temporary.write_text(json.dumps(state), encoding="utf-8")
        self.rows = rows
        if current().first:
            # Delete old files last: until now, the previous state referred to them.
            stale = "*-*.weights.h5" if best is not None else "epoch-*.weights.h5"
            for path in set(self.folder.glob(stale)) - set(kept):
                path.unlink()
        wait()  # The others may load the files next.

    def load(self, model: keras.Model) -> None:
        """Loads the weights of the last epoch, and if the model is compiled its optimizer.

        Raises:
            ValueError: If the file is damaged.
        """
        # `LossScaleOptimizer` would get its variables twice.
        if model.optimizer is not None and not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        self._load(model, "epoch", self.rows[-1]["epoch"])

    def load_best(self, model: keras.Model, epoch: int) -> None:
        """Loads the best weights, which were those after `epoch`.

        Raises:
            ValueError: If the file is damaged.
        """
        self._load(model, "best", epoch)

    def _path(self, kind, epoch):
        return self.folder / f"{kind}-{epoch}.weights.h5"

    def _load(self, model, kind, epoch):
        path = self._path(kind, epoch)
        try:
            model.load_weights(path)
        except Exception as error:  # h5py and Keras raise many types
            raise ValueError(
                f"Cannot read {str(path)!r}. Delete {self.folder} to train from the "
                f"start ({type(error).__name__}: {error})"
            ) from error

    @contextlib.contextmanager
    def writing(self, path: pathlib.Path) -> Iterator[pathlib.Path]:
        """Yields a path as `atomic_file` does, but in the state's folder.

        The file of the first process is kept; those of the others are deleted.

        Args:
            path: File to write, on the file system of the state's folder.

        Yields:
            Path of a temporary file, to be written.
        """
        if not current().first:
            with tempfile.TemporaryDirectory() as own:
                yield pathlib.Path(own) / path.name
            return
        folder = self.folder / "temporary"
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as unique:
            temporary = pathlib.Path(unique) / path.name
            yield temporary
            os.replace(temporary, path)

    def delete(self) -> None:
        """Deletes the state, when no process needs it any more."""
        wait()
        if current().first:
            shutil.rmtree(self.folder, ignore_errors=True)


def check_settings(saved: dict, settings: dict, folder: pathlib.Path) -> None:
    """Raises a ValueError if a folder is of a training with other settings."""
    if FINGERPRINT not in saved:
        # Earlier versions saved a hash of names and sizes alone, as "files".
        settings = {**settings, FINGERPRINT: None}
        saved = {name: value for name, value in saved.items() if name != "files"}
    saved, settings = _flat(saved), _flat(settings)
    differing = [
        f"{name}: {saved.get(name)!r} there, {settings.get(name)!r} now"
        for name in {**saved, **settings}
        if saved.get(name) != settings.get(name)
    ]
    if differing:
        raise ValueError(
            f"{folder} is of another training. Repeat its settings to continue it, "
            f"choose another `output`, or delete it. Different: {'; '.join(differing)}"
        )


def _flat(settings):
    """Returns nested settings with names such as `recipe.epochs`."""
    flat = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{key}": x for key, x in _flat(value).items()}
        else:
            flat[name] = value
    return flat
