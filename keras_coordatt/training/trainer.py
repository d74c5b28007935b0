"""Trains a model for one of three tasks, from data in a common layout."""

from __future__ import annotations

import dataclasses
import math
import os
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import keras

from keras_coordatt.applications import MobileNetV2CA
from keras_coordatt.distribution import alone, current, wait
from keras_coordatt.extras import has_matplotlib, install_hint
from keras_coordatt.preprocessing import preprocessing_of
from keras_coordatt.record import set_record
from keras_coordatt.training.averaging import AveragedValidation, averaged
from keras_coordatt.training.backup import Backup
from keras_coordatt.training.distribution import (
    check_devices,
    open_devices,
    synchronize_batch_norm,
)
from keras_coordatt.training.history import best_epoch, stops_early
from keras_coordatt.training.numerics import dtype_policy, operations
from keras_coordatt.training.optimizers import make_optimizer
from keras_coordatt.training.output import BEST, LAST, REPORT, Output
from keras_coordatt.training.phases import find_head, phases
from keras_coordatt.training.recipes import Recipe
from keras_coordatt.validation import (
    check_choice,
    check_number,
    check_positive_int,
    check_type,
    height_and_width,
)

if TYPE_CHECKING:
    import tensorflow_datasets as tfds


_UNRECORDED = (
    "the network records no preprocessing: images are normalized by ImageNet's mean and "
    "standard deviation"
)


@dataclasses.dataclass(frozen=True)
class Training:
    """A finished training.

    Attributes:
        model: The best model, not compiled, with its record.
        report: Dict of `settings`, `history` (one dict per epoch), `best_epoch`,
            `metrics` of the best model on `split`, `parameters`, and the `seconds` that
            it took, without epochs that were interrupted.
    """

    model: keras.Model
    report: dict


def train(
    task: str | None,
    data: str | os.PathLike | tfds.core.DatasetBuilder,
    output: str | os.PathLike | None,
    *,
    build: Callable[..., keras.Model] = MobileNetV2CA,
    weights: str | os.PathLike | None = None,
    recipe: str | Recipe | None = None,
    changes: Mapping | None = None,
    validation_split: float = 0.2,
    on_error: str = "raise",
    seed: int = 0,
    deterministic: bool = False,
    verbose: bool = True,
    devices: int | str | None = None,
    coordinator: str | None = None,
    processes: int | None = None,
    process_id: int | None = None,
) -> Training:
    """Trains a classifier, detector or segmenter, and measures it.

    The best epoch by validation accuracy, average precision or mean IoU is kept. An
    interrupted training continues after its last complete epoch when it is called
    again; with `deterministic`, it then ends as if it had not been interrupted.

    Args:
        task: `"classification"`, `"detection"`, `"segmentation"`, or `None` to find it
            from the data.
        data: A folder or file that `keras_coordatt.data` reads, a TFDS name or a
            builder.
        output: A folder for the models, the history, figures and a report; a file that
            ends in `.keras`, `.weights.h5` or `.safetensors`, for the best model alone;
            or `None`.
        build: A builder such as `MobileNetV2CA`, or a `functools.partial` of one.
            Detection puts `SSDLite` on its network and segmentation `DeepLabV3`. Images
            are normalized as `preprocessing_of` says of the network, and by ImageNet's
            mean and standard deviation if nothing is recorded, as on networks of other
            packages.
        weights: Name of published weights or path of a file to start from: of the
            network, or of the whole model. `None` to start from random weights.
        recipe: `"fine-tune"`, `"scratch"`, `"paper"` or a `Recipe`. Defaults to
            `"fine-tune"` with weights, and to `"scratch"` without.
        changes: Dict of values to change in the recipe, such as `{"epochs": 5}`. With a
            named recipe, the learning rates and the weight decay follow a change of
            the optimizer.
        validation_split: Fraction of the training images that is set aside for
            validation if the data has no split for it; 0 to train without. `evaluate`
            finds the same images by the same value while none is added or removed.
        on_error: Same as in `keras_coordatt.data.load_classification`.
        seed: Non-negative integer that determines initial weights, order and
            augmentation.
        deterministic: Whether to use deterministic operations only, which may be
            slower.
        verbose: Whether to show the recipe and each epoch.
        devices, coordinator, processes, process_id: Same as in `distribute`, to train
            on several devices, or in several processes that all read `data` and
            `output` under these names. The recipe's batch size is that of all of them
            together. Defaults to one device, to those of `distribute` around the call,
            or to all if `KERAS_DISTRIBUTION_NUM_PROCESSES` is set.

    Returns:
        A `Training`.

    Raises:
        TypeError: If an argument is of another kind.
        ValueError: If an argument is invalid, the data can't be used, `output` is a
            folder of another training, a file that exists, in use by another process
            that trains, or a `.safetensors` file and the model has no PyTorch names.
        FloatingPointError: If the loss becomes NaN or infinite.
        OSError: If `output` can't be written.

    Example:

    >>> done = train(None, "photos", "runs/photos", weights="imagenet")
    >>> done.report["metrics"]["accuracy"]
    0.94
    """
    arguments = (task, data, output, build, weights, recipe, changes)
    options = {
        "validation_split": validation_split,
        "on_error": on_error,
        "seed": seed,
        "deterministic": deterministic,
    }
    with open_devices(devices, coordinator, processes, process_id):
        return _train(*arguments, options, verbose)


def _train(task, data, output, build, weights, recipe, changes, options, verbose):
    # Imports TensorFlow, which training with other backends needs for its data only.
    from keras_coordatt.training.setup import (
        check_outside,
        config_of,
        open_task,
        settings_of,
    )

    deterministic, on_error = options["deterministic"], options["on_error"]
    validation_split = check_number(
        "validation_split", options["validation_split"], 0, 1, closed=True
    )
    seed = check_positive_int("seed", options["seed"], zero=True)
    # JSON can't hold NumPy's numbers.
    options |= {"validation_split": validation_split, "seed": seed}
    check_choice("deterministic", deterministic, (True, False))
    check_type("verbose", verbose, bool | int, "True or False")
    verbose = verbose and current().first
    out = Output(output)
    check_outside(data, out.folder)
    job = open_task(
        task, data, build, weights, recipe, changes, validation_split, on_error
    )
    settings = settings_of(job, data, build, weights, options)
    with out.lock():
        report = out.finished(settings)
        backup = Backup(out.state, settings)
        check_devices(job.recipe.batch_size, [settings, backup.rows, report is None])
        if report:
            # The backup remains if the process was killed while deleting it.
            backup.delete()
            if verbose:
                print(f"{output} is finished already")
            return Training(keras.saving.load_model(out.folder / BEST), report)
        if verbose:
            print(describe_start(settings, len(backup.rows)), flush=True)
        keras.utils.set_random_seed(seed)
        with dtype_policy(job.recipe.precision), operations(deterministic):
            session = Session(job, build, weights, out, backup, seed, verbose)
            session.fit(config_of(settings, output))
            report = {"settings": settings, **session.finish()}
        report["seconds"] = round(backup.seconds)
        out.write_json(backup, report, REPORT)
        backup.delete()
        return Training(session.twin, report)


class Session:
    """Models of a training, and how they are trained.

    Args:
        job: The task.
        build, weights, seed, verbose: Same as in `train`.
        out: The output.
        backup: The state.
    """

    def __init__(self, job, build, weights, out, backup, seed, verbose):
        self.job, self.out, self.backup = job, out, backup
        self.seed, self.verbose = seed, verbose
        self.devices = current()
        with self.devices.scope():
            self.network = job.build(build, weights)
        preprocessing = preprocessing_of(self.network)
        if preprocessing is not None:
            job.preprocessing = preprocessing
        elif verbose:
            print(_UNRECORDED, flush=True)
        synchronize_batch_norm(self.network, self.devices)
        with alone():
            # The best model, which is saved: never compiled, and nothing in it is frozen.
            self.twin = job.build(build, None)
            # A distributed network runs in all processes at once, on shared batches. To
            # measure images of one process, a copy of its own is needed.
            self.probe = self.network
            if self.devices.processes > 1:
                self.probe = job.build(build, None)
        # Recorded at the start, for the models of an unfinished training.
        record_training(self.twin, job, {})
        self.compiled = None
        out.check_names(self.twin)
        if self.devices.first:
            out.check_space(self.network.count_params())

    def fit(self, config: dict) -> None:
        """Trains the epochs that are not complete yet."""
        with self.devices.scope():
            self._fit(config)

    def _fit(self, config):
        from keras_coordatt.training.progress import Epochs

        job, backup = self.job, self.backup
        batches = job.batches("train", training=True)
        validation = job.batches("validation")
        class_weights = job.class_weights()
        terminal = self.verbose and sys.stdout.isatty()
        previous = None
        for phase in phases(job.recipe):
            done = len(backup.rows)
            if done < phase.last or phase.last == job.recipe.epochs:
                if previous is not None and done == phase.first:
                    # Load its weights instead of the average that `fit` leaves.
                    self._compile(previous, len(batches))
                    backup.load(self.compiled)
                self._compile(phase, len(batches))
                if done > phase.first:
                    backup.load(self.compiled)
                if done == phase.last or (
                    done and stops_early(backup.rows, job.metric, job.recipe)
                ):
                    return
                epochs = Epochs(
                    job,
                    self.network,
                    self.twin,
                    self.probe,
                    validation,
                    backup,
                    self.seed,
                    phase.name,
                    lambda best: self.out.publish(backup, self.twin, best, config),
                    quiet=not self.verbose or terminal,
                )
                averaging = [AveragedValidation()] if job.recipe.ema else []
                try:
                    self.compiled.fit(
                        batches,
                        validation_data=validation,
                        epochs=phase.last,
                        initial_epoch=done,
                        class_weight=class_weights,
                        shuffle=False,  # done already
                        callbacks=[*averaging, epochs],
                        verbose=int(terminal),
                    )
                except FloatingPointError as error:
                    raise FloatingPointError(f"{error}. {self._keep()}") from error
                except KeyboardInterrupt as stop:
                    done = len(backup.rows)
                    raise KeyboardInterrupt(
                        f"The same call continues after epoch {done}"
                        if done
                        else "No epoch was complete, so nothing is left behind"
                    ) from stop
            previous = phase

    def finish(self) -> dict:
        """Measures and saves the models, and returns the report."""
        job, backup = self.job, self.backup
        with self.devices.scope():
            backup.load(self.compiled)
            with averaged(self.compiled):
                self.twin.set_weights(self.network.get_weights())
        self.out.save(backup, self.twin, LAST)
        best = best_epoch(backup.rows, job.metric)
        backup.load_best(self.twin, best)
        split = next(
            name for name in ("test", "validation", "train") if name in job.splits
        )
        batches = job.batches(split)
        with self.devices.scope():
            self.network.set_weights(self.twin.get_weights())
            metrics = self.compiled.evaluate(batches, verbose=0, return_dict=True)
            if self.probe is not self.network:
                self.probe.set_weights(self.twin.get_weights())
        metrics |= {
            name.removeprefix("val_"): value
            for name, value in job.measure(self.probe, batches).items()
        }
        metrics = {name: float(x) for name, x in metrics.items() if math.isfinite(x)}
        record_training(self.twin, job, metrics)
        report = {
            "best_epoch": best,
            "split": split,
            "metrics": metrics,
            "parameters": self.twin.count_params(),
            "history": backup.rows,
        }
        self.out.save(backup, self.twin, BEST)
        if self.out.folder is not None:
            report["evaluation"] = self._evaluate(split)
        self.out.write_file(self.twin)
        return report

    def _evaluate(self, split):
        """Evaluates the best model on the original pictures, and draws figures."""
        from keras_coordatt.training.result import curves, evaluate_result

        evaluation, figures = evaluate_result(self.twin, self.job, split)
        if has_matplotlib() and self.devices.first:
            figures["curves.png"] = curves(self.backup.rows)
        elif self.verbose:
            print(f"No figures: {install_hint('figures')}", flush=True)
        for name, figure in figures.items():
            self.out.save_figure(self.backup, figure, name)
        return evaluation.as_dict()

    def _compile(self, phase, steps):
        head = find_head(self.network, self.job.name)
        phase.set_trainable(self.network, head, self.job.recipe)
        optimizer = make_optimizer(
            self.job.recipe,
            phase.learning_rate,
            (phase.last - phase.first) * steps,
            self.network.trainable_variables,
        )
        self.compiled = self.job.compile(self.network, optimizer)

    def _keep(self):
        """Saves the best model of a training that failed, and says where it is."""
        if not self.backup.rows:
            return "No epoch was complete, so nothing is left behind"
        best = best_epoch(self.backup.rows, self.job.metric)
        self.backup.load_best(self.twin, best)
        # Missing if the process was killed before it was written.
        self.out.save(self.backup, self.twin, BEST)
        self.out.write_file(self.twin)
        wait()  # Otherwise the others might end this process while it writes.
        path = self.out.file or (self.out.folder and self.out.folder / BEST)
        return f"The best model so far, of epoch {best}, is {path}"


def record_training(model: keras.Model, job, metrics: Mapping) -> None:
    """Records task, labels, image size and metrics on a model if it can hold a record."""
    # Models from builders of other packages can't hold a record.
    if preprocessing_of(model) is not None:
        set_record(
            model,
            task=job.name,
            labels=job.labels,
            image_size=height_and_width(job.recipe.image_size),
            metrics=metrics,
        )


def describe_start(settings: Mapping, done: int) -> str:
    """Returns a summary of the training, in a few lines."""
    recipe = dict(settings["recipe"])
    images = ", ".join(f"{n} {count}" for n, count in settings["images"].items())
    name = recipe.pop("name")
    values = ", ".join(f"{key}={value}" for key, value in recipe.items())
    lines = [
        f"{settings['task']} on {settings['data']}: {images} images",
        f"recipe {name}: {values}",
    ]
    if done:
        lines.append(f"continues after epoch {done}")
    return "\n".join(lines)
