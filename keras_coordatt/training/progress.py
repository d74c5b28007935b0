"""Callback for the end of each epoch: validates, saves, prints and stops early."""

import random
import time
from collections.abc import Callable

import keras
import numpy as np

from keras_coordatt.distribution import current
from keras_coordatt.training.augmentation import reseed
from keras_coordatt.training.averaging import averaged
from keras_coordatt.training.backup import Backup
from keras_coordatt.training.history import (
    best_epoch,
    check_loss,
    number_or_none,
    stops_early,
)
from keras_coordatt.training.tasks import Task


class Epochs(keras.callbacks.Callback):
    """Seeds each epoch so that it can be repeated, and saves it when it is complete.

    Args:
        task: The task.
        network: The model to keep; `fit` may run on one that shares its weights.
        twin: The same model again, not compiled. It gets the best weights.
        probe: The network, or a model that gets its weights to be measured.
        validation: Validation batches, or `None`.
        backup: Where epochs are saved.
        seed: Seed of the training.
        phase: Name of the phase.
        publish: Called when an epoch is saved, with whether it is the best so far.
        quiet: Whether to show nothing.
    """

    def __init__(
        self,
        task: Task,
        network: keras.Model,
        twin: keras.Model,
        probe: keras.Model,
        validation,
        backup: Backup,
        seed: int,
        phase: str,
        publish: Callable[[bool], None],
        quiet: bool,
    ):
        super().__init__()
        self.task = task
        self.network = network
        self.twin = twin
        self.probe = probe
        self.validation = validation
        self.backup = backup
        self.seed = seed
        self.phase = phase
        self.publish = publish
        self.quiet = quiet
        self.start = 0.0

    def on_epoch_begin(self, epoch, logs=None):
        self.start = time.perf_counter()
        # Epochs of all seeds differ.
        seed = self.seed * 1_000_003 + epoch
        _set_seed(seed % 2**32)
        self.task.seed.assign(seed)
        # Each process augments its images with other random numbers.
        self.task.augmentation.reseed(seed + 10_007 * current().process)
        reseed(self.model, seed)

    def on_train_batch_end(self, batch, logs=None):
        check_loss(logs["loss"], batch, self.backup.rows)

    def on_epoch_end(self, epoch, logs=None):
        logs = {} if logs is None else logs
        best = False
        with averaged(self.model):
            if self.validation is not None:
                if self.probe is not self.network:
                    self.probe.set_weights(self.network.get_weights())
                logs.update(self.task.measure(self.probe, self.validation))
            row = {
                "epoch": epoch + 1,
                "phase": self.phase,
                "learning_rate": float(self.model.optimizer.learning_rate),
                **{name: number_or_none(value) for name, value in logs.items()},
            }
            best = best_epoch([*self.backup.rows, row], self.task.metric) == epoch + 1
            if best:
                self.twin.set_weights(self.network.get_weights())
        self.backup.save(self.model, row, self.twin if best else None)
        self.publish(best)
        if not self.quiet:
            self._show(row, best)
        if stops_early(self.backup.rows, self.task.metric, self.task.recipe):
            self.model.stop_training = True

    def _show(self, row, best):
        seconds = time.perf_counter() - self.start
        names = [name for name in row if name not in ("epoch", "phase")]
        values = "  ".join(f"{name} {_text(row[name])}" for name in names)
        print(
            f"epoch {row['epoch']}/{self.task.recipe.epochs}  {seconds:.0f} s  "
            f"{values}{'  best' if best else ''}",
            flush=True,
        )


def _set_seed(seed):
    if keras.config.backend() == "tensorflow":
        # Not tf.random.set_seed, after which TensorFlow traces its functions again: that
        # takes seconds, and neither Keras's layers nor the data need it.
        random.seed(seed)
        np.random.seed(seed)
    else:
        keras.utils.set_random_seed(seed)


def _text(value):
    return "-" if value is None else f"{value:.4g}"
