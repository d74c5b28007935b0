"""Trains a model for one of three tasks, from data in a common layout."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import keras

from keras_coordatt.applications import MobileNetV2CA
from keras_coordatt.distribution import current
from keras_coordatt.training.backup import Backup
from keras_coordatt.training.distribution import check_devices, open_devices
from keras_coordatt.training.numerics import dtype_policy, operations
from keras_coordatt.training.output import BEST, REPORT, Output
from keras_coordatt.training.recipes import Recipe
from keras_coordatt.training.session import Session
from keras_coordatt.validation import (
    check_choice,
    check_number,
    check_positive_int,
    check_type,
)

if TYPE_CHECKING:
    import tensorflow_datasets as tfds


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
            Classifiers end in a softmax or in logits. Detection puts `SSDLite` on its network and segmentation `DeepLabV3`. Images
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
