"""Backup of a training, from which it continues after an interruption.

Keras's `BackupAndRestore` writes two files in place, weights and epoch. A process that
is killed meanwhile leaves a truncated file, or weights of one epoch and the number of
another; `double_checkpoint` helps only from the second epoch on, and not if the number
is affected. Here one file, replaced atomically, has the weights and the optimizer's
count of steps, which gives the epoch.
"""

import json
import os
import pathlib

import keras

from keras_coordatt.files import atomic_file


class Backup(keras.callbacks.Callback):
    """Saves the state of a training after every epoch.

    The folder is for one training: `settings` are saved too, and restoring with others
    is an error. A folder without a complete epoch restores nothing and refuses nothing.

    Args:
        folder: Folder for the backup. It stays when the training ends, for the caller
            to delete once the model is saved.
        settings: Dict of what the training depends on, which JSON can hold.

    Example:

    >>> backup = Backup("runs/.backup", {"learning_rate": 0.1})
    >>> initial_epoch = backup.restore(model, steps_per_epoch=100)
    >>> model.fit(
    ...     images, epochs=5, initial_epoch=initial_epoch, callbacks=[backup]
    ... )
    """

    def __init__(self, folder: str | os.PathLike, settings: dict):
        super().__init__()
        self.folder = pathlib.Path(folder)
        self.settings = json.dumps(settings)
        self.weights_path = self.folder / "latest.weights.h5"
        self.settings_path = self.folder / "settings.json"

    def check(self) -> None:
        """Raises a ValueError if the folder has a backup of another training."""
        if self.weights_path.exists():
            saved = "which are not known"
            if self.settings_path.exists():
                saved = self.settings_path.read_text(encoding="utf-8")
            if saved != self.settings:
                raise ValueError(
                    f"{self.folder} has a backup of another training, which was "
                    f"interrupted. Continue that one with its settings, {saved}, or "
                    f"delete the folder. Received: {self.settings}"
                )

    def restore(self, model: keras.Model, steps_per_epoch: int) -> int:
        """Creates the folder, and restores the last complete epoch if there is one.

        Args:
            model: The compiled model.
            steps_per_epoch: Steps per epoch, same as in `model.fit`.

        Returns:
            The number of complete epochs: `initial_epoch` of `model.fit`.

        Raises:
            ValueError: If the backup is damaged or of another training.
            OSError: If the folder can't be written to.
        """
        self.check()
        self.folder.mkdir(parents=True, exist_ok=True)
        # Written before the first weights, so that these never stand without it.
        with atomic_file(self.settings_path) as temporary:
            temporary.write_text(self.settings, encoding="utf-8")
        if not self.weights_path.exists():
            return 0
        model.optimizer.build(model.trainable_variables)
        try:
            model.load_weights(self.weights_path)
        except Exception as error:  # h5py and Keras raise many types
            raise ValueError(
                f"Cannot read {str(self.weights_path)!r}. Delete {self.folder} to "
                f"train from the start ({type(error).__name__}: {error})"
            ) from error
        return int(model.optimizer.iterations) // steps_per_epoch

    def on_epoch_end(self, epoch, logs=None):
        with atomic_file(self.weights_path) as temporary:
            self.model.save_weights(temporary)
