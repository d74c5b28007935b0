"""The output of a training: a folder with models and reports, or one model file."""

import contextlib
import csv
import json
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Iterator

import keras

from keras_coordatt.applications.network_file import OUTPUTS, save_network
from keras_coordatt.distribution import current
from keras_coordatt.export import WRITERS
from keras_coordatt.files import check_writable, exclusive_lock
from keras_coordatt.training.backup import Backup, check_settings
from keras_coordatt.validation import check_path, first_line
from keras_coordatt.weights import FILE_TYPES
from keras_coordatt.weights.official import official_state

BEST, LAST, REPORT = "best.keras", "last.keras", "report.json"
CONFIG, HISTORY = "config.json", "history.csv"
LOGS = "logs/events.out.tfevents.history"
# Weights, two optimizer slots and a moving average in the backup, twice while it is
# replaced; the best weights; and two models.
_COPIES = 12


class Output:
    """The output of a training.

    Args:
        path: A folder; a file that ends in one of `OUTPUTS`, for the model alone; or
            `None` for nothing.

    Attributes:
        folder: The folder, or `None` for a file or nothing.
        file: The file, or `None`.
        state: Folder for the state of the training.

    Raises:
        ValueError: If `path` is neither.
    """

    def __init__(self, path: str | os.PathLike | None):
        self.folder: pathlib.Path | None = None
        self.file: pathlib.Path | None = None
        self._temporary = None
        if path is None:
            self._temporary = tempfile.TemporaryDirectory()
            self.state = pathlib.Path(self._temporary.name) / "state"
            return
        path = pathlib.Path(check_path("output", path))
        if path.name.endswith(OUTPUTS):
            if path.is_dir():
                raise ValueError(f"`output` must be a file. Received a folder: {path}")
            self.file = path
            self.state = path.with_name(f".{path.name}-training")
            return
        if path.suffix in (*FILE_TYPES, *WRITERS) or path.is_file():
            raise ValueError(
                f"`output` must be a folder, or a file that ends in one of {OUTPUTS}. "
                f"Received: {path}"
            )
        self.folder = path
        self.state = path / ".training"

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps other trainings out of the output, inside a `with` block.

        Of the processes that train together, the first one does.

        Raises:
            ValueError: If another training is in progress there.
        """
        with contextlib.ExitStack() as stack:
            if current().first:
                path = self.state.with_name(f"{self.state.name}.lock")
                try:
                    stack.enter_context(exclusive_lock(path))
                except BlockingIOError as error:
                    raise ValueError(
                        "`output` must not be in use, and another process trains into "
                        f"it. Received: {self.folder or self.file}"
                    ) from error
            yield

    def check_names(self, model: keras.Model) -> None:
        """Checks that a `.safetensors` file can hold the model, before the training.

        Raises:
            ValueError: If a part of the model has no PyTorch names.
        """
        if self.file is None or self.file.suffix != ".safetensors":
            return
        try:
            official_state(model)
        except ValueError as error:
            raise ValueError(
                "`output` must be a folder or a .keras or .weights.h5 file, as the model "
                f"has no PyTorch names. Received: {self.file} ({first_line(error)})"
            ) from error

    def check_space(self, parameters: int) -> None:
        """Checks that files can be written, before the training starts.

        Raises:
            OSError: If not, or if the disk has too little room for them.
        """
        parent = self.folder or (self.file and self.file.parent)
        if parent is None:
            return
        parent = check_writable("`output`", parent)
        needed, free = 4 * _COPIES * parameters, shutil.disk_usage(parent).free
        if free < needed:
            raise OSError(
                f"`output` needs about {needed / 1e6:.0f} MB, and {parent} has "
                f"{free / 1e6:.0f} MB left"
            )

    def finished(self, settings: dict) -> dict | None:
        """Returns the report of a finished training with these settings, or `None`.

        Raises:
            ValueError: If the folder holds another training, or a model without
                a report, or if the file exists.
        """
        if self.file is not None and self.file.exists() and not self.state.exists():
            raise ValueError(
                "`output` exists already, and a training doesn't replace a model. Choose "
                f"another name, or delete the file. Received: {self.file}"
            )
        if self.folder is None:
            return None
        settings = json.loads(json.dumps(settings))
        if (self.folder / REPORT).exists():
            report = self._read_report(self.folder)
            if "settings" in report:
                check_settings(report["settings"], settings, self.folder)
                return report
        for name in (BEST, LAST, REPORT, CONFIG, HISTORY):
            if (self.folder / name).exists() and not self.state.exists():
                raise ValueError(
                    f"`output` has a file {name} already, of another training. "
                    f"Choose another folder. Received: {self.folder}"
                )
        return None

    def _read_report(self, folder):
        path = folder / REPORT
        try:
            report = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(report, dict):
                raise ValueError(f"not a report: {report!r}")
        except ValueError as error:
            advice = (
                "Delete it to continue the training"
                if self.state.exists()
                else f"Delete {folder} to train from the start"
            )
            raise ValueError(
                f"Cannot read {str(path)!r}. {advice} ({error})"
            ) from error
        return report

    def publish(
        self, backup: Backup, twin: keras.Model, best: bool, config: dict
    ) -> None:
        """Updates the folder after an epoch."""
        if self.folder is None:
            return
        if best:
            self.save(backup, twin, BEST)
        for write, name in ((write_history, HISTORY), (write_events, LOGS)):
            path = self.folder / name
            if current().first:
                path.parent.mkdir(exist_ok=True)
            with backup.writing(path) as temporary:
                write(backup.rows, temporary)
        if not (self.folder / CONFIG).exists():
            self.write_json(backup, config, CONFIG)

    def save(self, backup: Backup, model: keras.Model, name: str) -> None:
        """Saves a model in the folder, if there is one."""
        if self.folder is None:
            return
        with backup.writing(self.folder / name) as temporary:
            model.save(temporary)

    def save_figure(self, backup: Backup, figure, name: str) -> None:
        """Saves a figure as PNG in the folder, if there is one."""
        if self.folder is None:
            return
        with backup.writing(self.folder / name) as temporary:
            figure.savefig(temporary, format="png", dpi=110, bbox_inches="tight")

    def write_json(self, backup: Backup, content: dict, name: str) -> None:
        """Writes JSON into the folder, if there is one."""
        if self.folder is None:
            return
        with backup.writing(self.folder / name) as temporary:
            text = json.dumps(content, indent=1, ensure_ascii=False)
            temporary.write_text(f"{text}\n", encoding="utf-8")

    def write_file(self, model: keras.Model) -> None:
        """Saves the best model, if the output is a file."""
        if self.file is not None and current().first:
            save_network(model, self.file)

    def close(self) -> None:
        """Deletes temporary files if there is no output."""
        if self._temporary is not None:
            with contextlib.suppress(OSError):
                self._temporary.cleanup()


def write_history(rows: list[dict], path: str | os.PathLike) -> None:
    """Writes a history as CSV."""
    names = dict.fromkeys(name for row in rows for name in row)
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write_events(rows: list[dict], path: str | os.PathLike) -> None:
    """Writes a history as TensorBoard reads it.

    TensorFlow's own writer needs the package tensorboard, and appends: an epoch that was
    interrupted and repeated would be there twice.
    """
    import tensorflow as tf  # imported already, for the data

    proto = tf.compat.v1
    with tf.io.TFRecordWriter(str(path)) as file:
        event = proto.Event(wall_time=time.time(), file_version="brain.Event:2")
        file.write(event.SerializeToString())
        for row in rows:
            values = [
                proto.Summary.Value(tag=name, simple_value=value)
                for name, value in row.items()
                if isinstance(value, float)
            ]
            event = proto.Event(
                wall_time=time.time(),
                step=row["epoch"],
                summary=proto.Summary(value=values),
            )
            file.write(event.SerializeToString())
