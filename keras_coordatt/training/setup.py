"""Prepares a training: data, task, recipe and settings."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import inspect
import json
import os
import pathlib
from collections.abc import Callable, Mapping

import numpy as np
import tensorflow as tf

from keras_coordatt.data import class_names, find_task, open_data
from keras_coordatt.data import splits as count_splits
from keras_coordatt.data.folder import Folder
from keras_coordatt.data.opening import check_data
from keras_coordatt.extras import install_hint
from keras_coordatt.record import VERBS
from keras_coordatt.training.augmentation import Augmentation
from keras_coordatt.training.backup import FINGERPRINT
from keras_coordatt.training.recipes import RECIPES, Recipe, check_changes
from keras_coordatt.training.recipes import recipe as named_recipe
from keras_coordatt.training.tasks import TASKS, Task
from keras_coordatt.validation import check_choice, check_type
from keras_coordatt.weights import CATALOG
from keras_coordatt.weights.by_name import find_published


def open_task(
    task: str | None,
    data,
    build: Callable,
    weights: str | os.PathLike | None,
    recipe: str | Recipe | None,
    changes: Mapping | None,
    validation_split: float,
    on_error: str,
) -> Task:
    """Opens the data for a task, and chooses the recipe.

    Args:
        task, data, build, weights, recipe, changes, validation_split, on_error: Same as
            in `train`.

    Returns:
        The task.

    Raises:
        ValueError: If an argument is invalid or the data can't be used.
    """
    if task is not None:
        check_choice("task", task, tuple(TASKS))
    _check_arguments(build)
    check_data("data", data)
    check_type("weights", weights, str | os.PathLike | None, "a name, a path or None")
    changes = check_changes(changes)
    if not isinstance(recipe, Recipe | None):
        check_choice("recipe", recipe, RECIPES)
    task = task or find_task(data)
    if recipe is None:
        recipe = "scratch" if weights is None else "fine-tune"
    if isinstance(recipe, Recipe):
        recipe = dataclasses.replace(recipe, **changes)
    else:
        size = _published_size(build, weights) if task == "classification" else None
        if size is not None:
            changes.setdefault("image_size", size)
        recipe = named_recipe(recipe, task, changes)
    if task == "detection" and importlib.util.find_spec("pycocotools") is None:
        raise ImportError(
            "Detection needs pycocotools, for average precision: "
            f"{install_hint('detection')}"
        )
    builder, splits = _open_splits(task, data, validation_split, on_error)
    labels = class_names(builder, task)
    job = TASKS[task](
        recipe,
        builder,
        splits,
        labels=labels,
        augmentation=Augmentation(task, recipe),
        seed=tf.Variable(0, dtype="int64", trainable=False),
    )
    if labels is not None and len(labels) < 2 and task != "detection":
        # The loader may raise a more precise error, such as for masks of 255.
        job.batches("train")
        raise ValueError(
            f"`data` must have at least two classes for {task}. "
            f"Received: {data} with {labels}"
        )
    return job


def _check_arguments(build):
    """Raises an error for an argument that the builder does not take, or no builder."""
    check_type("build", build, Callable, "a function that builds networks")
    if isinstance(build, functools.partial):
        known = inspect.signature(build.func).parameters
        if any(x.kind is x.VAR_KEYWORD for x in known.values()):
            return
        for name, value in build.keywords.items():
            if name not in known:
                raise ValueError(
                    f"`{name}` is not an argument of {build.func.__name__}. "
                    f"Received: {value!r}"
                )


def _published_size(build, weights):
    """Returns the image size of published weights, or `None`."""
    arguments = inspect.signature(build).parameters
    arguments = {
        name: arguments[name].default
        for name in ("alpha", "variant", "attention", "reduction")
        if name in arguments
    }
    function = build.func if isinstance(build, functools.partial) else build
    network = getattr(function, "__name__", "")
    name = find_published(network, weights, arguments)
    return name and CATALOG[name].input_size


def _open_splits(task, data, validation_split, on_error):
    """Returns the builder, and its splits for training, validation and test."""
    builder = open_data(data, task, on_error=on_error)
    found = count_splits(builder)
    if "train" not in found:
        raise ValueError(f"`data` must have a split 'train'. Received: {list(found)}")
    splits = {name: name for name in ("train", "validation", "test") if name in found}
    if "validation" in found or not validation_split:
        return builder, splits
    if isinstance(data, str | os.PathLike) and os.path.exists(data):
        builder = open_data(
            data, task, on_error=on_error, validation_split=validation_split
        )
    else:
        percent = round(100 * (1 - validation_split))
        if percent in (0, 100):
            raise ValueError(
                "`validation_split` must be a percentage of TFDS data, from 0.01 to "
                f"0.99. Received: {validation_split}"
            )
        splits["train"] = f"train[:{percent}%]"
        splits["validation"] = f"train[{percent}%:]"
    return builder, {"train": splits["train"], "validation": "validation", **splits}


def settings_of(
    job: Task,
    data,
    build: Callable,
    weights: str | os.PathLike | None,
    options: Mapping,
) -> dict:
    """Returns all settings that determine a training's result, as JSON can hold them.

    The data count by `Folder.fingerprint`: a change of labels, or of an image's size in
    bytes, makes another training. Data sets of TFDS count by their name and version.
    """
    is_path = isinstance(data, str | os.PathLike)
    return {
        "task": job.name,
        "data": os.fspath(data) if is_path else job.builder.info.full_name,
        **describe_data(job),
        "network": describe(build),
        "weights": None if weights is None else os.fspath(weights),
        "recipe": dataclasses.asdict(job.recipe),
        **options,
    }


def describe_data(job: Task) -> dict:
    """Returns the data's fingerprint, if it has one, its images per split and labels."""
    has_one = isinstance(job.builder, Folder)
    return {
        FINGERPRINT: job.builder.fingerprint() if has_one else None,
        "images": {
            name: job.builder.info.splits[split].num_examples
            for name, split in job.splits.items()
        },
        "labels": job.labels,
    }


def check_outside(data, folder: pathlib.Path | None) -> None:
    """Raises a ValueError if figures would become images: `output` is in `data`."""
    if folder is None or not isinstance(data, str | os.PathLike):
        return
    root = pathlib.Path(data)
    if root.is_dir() and folder.resolve().is_relative_to(root.resolve()):
        raise ValueError(
            "`output` must not be inside `data`, as its figures would become images. "
            f"Received: {folder}, in {root}"
        )


def describe(build: Callable) -> dict:
    """Returns the builder's name and arguments, to tell trainings apart."""
    if not isinstance(build, functools.partial):
        return {"name": getattr(build, "__name__", repr(build))}
    arguments = {str(i): x for i, x in enumerate(build.args)} | build.keywords
    # JSON can't hold NumPy's numbers.
    arguments = {
        k: x.item() if isinstance(x, np.generic) else x for k, x in arguments.items()
    }
    simple = (str, int, float, type(None))
    return {
        **describe(build.func),
        **{k: x if isinstance(x, simple) else repr(x) for k, x in arguments.items()},
    }


def config_of(settings: Mapping, output: str | os.PathLike | None) -> dict:
    """Returns the options of `keras-coordatt train` that repeat a training."""
    network = dict(settings["network"])
    recipe = dict(settings["recipe"])
    name = recipe.pop("name")
    name = name if name in RECIPES else "scratch"
    typed = {key: recipe.pop(key) for key in ("epochs", "optimizer")}
    # Only values that don't follow from these options, so that another optimizer changes
    # the rates again.
    implied = dataclasses.asdict(named_recipe(name, settings["task"], typed))
    others = {key: value for key, value in recipe.items() if value != implied[key]}
    verbs = {task: verb for verb, task in VERBS.items()}
    if "attention" in network:
        network["attention"] = network["attention"] or "none"
    return {
        "task": verbs[settings["task"]],
        "data": settings["data"],
        "output": None if output is None else os.fspath(output),
        "network": network.pop("name"),
        **network,
        "weights": settings["weights"],
        "recipe": name,
        **typed,
        "set": [f"{key}={_text(value)}" for key, value in others.items()],
        **{
            name: settings[name]
            for name in ("validation_split", "on_error", "seed", "deterministic")
        },
    }


def _text(value):
    return value if isinstance(value, str) else json.dumps(value)
