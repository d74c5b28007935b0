"""`keras-coordatt train`: from a folder of pictures to a model."""

import dataclasses
import functools
import json
from collections.abc import Mapping
from typing import Literal

from keras_coordatt.applications import BUILDERS
from keras_coordatt.cli.options import (
    Attention,
    Network,
    OnError,
    Optimizer,
    RecipeName,
    VerbOrAuto,
    given,
)
from keras_coordatt.record import VERBS
from keras_coordatt.training import train as train_model
from keras_coordatt.training.distribution import open_devices
from keras_coordatt.training.recipes import Recipe
from keras_coordatt.weights.by_name import only_arguments


def train(
    task: VerbOrAuto,
    data: str,
    output: str,
    *,
    network: Network = "MobileNetV2CA",
    alpha: float | None = None,
    variant: str | None = None,
    attention: Attention = "coordinate",
    reduction: int | None = None,
    output_stride: int | None = None,
    weights: str | None = None,
    recipe: RecipeName | None = None,
    epochs: int | None = None,
    image_size: int | None = None,
    batch_size: int | None = None,
    optimizer: Optimizer | None = None,
    learning_rate: float | None = None,
    set: tuple[str, ...] = (),
    validation_split: float = 0.2,
    on_error: OnError = "raise",
    seed: int = 0,
    deterministic: bool = False,
    devices: int | Literal["auto"] | None = None,
    coordinator: str | None = None,
    processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Train a classifier, detector or segmenter, and measure it.

    Run an interrupted training again, by the same command, to continue it after its last
    complete epoch. All values of a recipe are printed when it starts.

    Args:
        task: What to learn: classify, detect or segment; auto, if left out, finds it
            from DATA.
        data: Folder or file with the data, or TFDS name.
        output: Folder for models, history, figures and report; or a `.keras`,
            `.weights.h5` or `.safetensors` file for the best model alone.
        network: Builder of the network.
        alpha: Width multiplier. By default that of the weights, or 1.
        variant: Variant of EfficientNetCA, from b0 to b7.
        attention: Attention of the network.
        reduction: Reduction of the attention. By default the builder's.
        output_stride: 32, 16 or 8. By default 16 to segment, otherwise 32.
        weights: Name of published weights, such as imagenet, or file to start from. By
            default random weights.
        recipe: Named values of the training. By default fine-tune with weights, and
            scratch without.
        epochs: Passes over the training images. By default the recipe's.
        image_size: Height and width in pixels. By default the recipe's.
        batch_size: Images per step, over all devices. By default the recipe's.
        optimizer: Optimizer. By default the recipe's. Another one changes the learning
            rates and the weight decay to values that fit it.
        learning_rate: Highest learning rate. By default the recipe's. With
            `--set base_batch_size=64` it is multiplied by batch size / 64.
        set: Other values of the recipe to change, such as `ema=0.99 mixup=0.2`. They
            add to those of a `--config` file.
        validation_split: Fraction of the training images set aside for validation, if
            DATA has no split for it; 0 to train without.
        on_error: What to do with files that can't be used.
        seed: Makes the training repeatable.
        deterministic: Use deterministic operations only, which may be slower.
        devices: Number of devices that share every batch, or auto for all, also of the
            processes that Slurm or Open MPI started. By default one, or all if there
            are several processes.
        coordinator: HOST:PORT at which the other processes reach the first one.
        processes: Number of processes that run this command, on one or more machines
            (JAX only). Requires --coordinator and --process-id, or the
            KERAS_DISTRIBUTION_* environment variables.
        process_id: Number of this process, from 0.
    """
    changes = parse_changes(set) | given(
        epochs=epochs,
        image_size=image_size,
        batch_size=batch_size,
        optimizer=optimizer,
        learning_rate=learning_rate,
    )
    arguments = only_arguments(network, weights) | given(
        alpha=alpha,
        variant=variant,
        reduction=reduction,
        output_stride=output_stride,
    )
    arguments["attention"] = None if attention == "none" else attention
    with open_devices(devices, coordinator, processes, process_id) as found:
        done = train_model(
            VERBS.get(task),  # None for auto
            data,
            output,
            build=functools.partial(BUILDERS[network], **arguments),
            weights=weights,
            recipe=recipe,
            changes=changes,
            validation_split=validation_split,
            on_error=on_error,
            seed=seed,
            deterministic=deterministic,
        )
    if not found.first:
        return
    report = done.report
    metrics = ", ".join(f"{k} {v:.4g}" for k, v in report["metrics"].items())
    print(
        f"{output}: best of epoch {report['best_epoch']}, {report['split']} split: "
        f"{metrics}; {report['parameters']:,} parameters, {report['seconds']} s"
    )


def settable(options: Mapping) -> set[str]:
    """Returns the values of a recipe that a command takes, or was given, by `--set`."""
    if "set" not in options:
        return set()
    names = {field.name for field in dataclasses.fields(Recipe)} - set(options)
    return names | {item.partition("=")[0] for item in options["set"]}


def parse_changes(items):
    """Parses NAME=VALUE, with values as in JSON; anything else is a string."""
    values = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not equals:
            raise ValueError(f"--set takes NAME=VALUE. Received: {item}")
        try:
            values[name] = json.loads(value)
        except json.JSONDecodeError:
            values[name] = value
    return values
