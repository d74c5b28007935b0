"""Trains one network with each attention and each seed, and keeps the results.

Each result is added to a file when its run ends. An interrupted comparison continues
after the last one, and within a run after the last complete epoch.
"""

import dataclasses
import functools
import inspect
import itertools
import json
import numbers
import os
import pathlib
import reprlib
from collections.abc import Iterable, Mapping

import keras
import numpy as np

from keras_coordatt import CoordinateAttention, insert_attention
from keras_coordatt.applications import BUILDERS
from keras_coordatt.applications.blocks import ATTENTIONS as NAMED
from keras_coordatt.applications.blocks import COORDINATE_AXES
from keras_coordatt.files import atomic_file
from keras_coordatt.layers.freezing import nested_layers
from keras_coordatt.record import METRICS, TASKS
from keras_coordatt.training import recipe as find_recipe
from keras_coordatt.training import train
from keras_coordatt.training.backup import FINGERPRINT
from keras_coordatt.training.output import Output
from keras_coordatt.training.recipes import RECIPES
from keras_coordatt.validation import (
    check_choice,
    check_mapping,
    check_number,
    check_on_error,
    check_path,
    check_positive_int,
    check_sequence,
    check_type,
)

ATTENTIONS = (None, *NAMED)
# Attentions that can start as the identity
INSERTED = (None, *COORDINATE_AXES)
# What all runs of a comparison have in common
SETTINGS = (
    "task",
    "data",
    "network",
    "arguments",
    "start",
    "recipe_name",
    "changes",
    "validation_split",
    "on_error",
)
# Properties of the data beside its name. Files of earlier versions don't have them.
DATA = ("images", "labels", FINGERPRINT)
# Arguments of the builders that `compare` gives itself, or that its tasks don't leave open
GIVEN = {
    "input_shape",
    "input_tensor",
    "weights",
    "classes",
    "attention",
    "include_top",
}
GIVEN |= {"pooling", "classifier_activation", "skip_mismatch", "name"}


def compare(
    task: str,
    data: str | os.PathLike,
    output: str | os.PathLike,
    *,
    attentions: Iterable[str | None] = (None, "se", "cbam", "coordinate"),
    seeds: Iterable[int] = (0, 1),
    network: str = "MobileNetV2CA",
    arguments: Mapping | None = None,
    start: str | os.PathLike | None = None,
    recipe: str = "scratch",
    changes: Mapping | None = None,
    validation_split: float = 0.2,
    on_error: str = "raise",
    verbose: bool = True,
) -> list[dict]:
    """Trains a network with each attention and each seed, from random weights.

    With one seed, all attentions get the same images in the same order, the same
    augmentation, the same schedule and the same number of steps. Most initial weights
    differ, as an attention layer draws its own from the same random numbers. The best
    epoch is chosen by the validation images, and the result measured on the test images.
    If there are none, it is measured on the validation images, or else on the training
    images, and tables say so.

    Args:
        task: `"classification"`; `"detection"`, by SSDLite; or `"segmentation"`, by
            DeepLabV3.
        data: A folder or file that `keras_coordatt.data` reads, or a TFDS name. Runs
            are identified by the folder's name, not its path, and by its images and
            labels.
        output: File of one comparison, with one line of JSON per run, added when the run
            ends. Runs that are already in it are not repeated. The models are saved
            beside it.
        attentions: Values of the builders' `attention`, all different.
        seeds: Non-negative integers below 2**32, all different.
        network: Name of a builder, one of `keras_coordatt.applications.list_models()`.
        arguments: Dict of further arguments of the builder, such as `{"alpha": 0.5}`,
            without `start`.
        start: `.keras` file of a classifier without attention, to train on instead of
            `network`: as it is for the attention `None`, and for the others after
            `insert_attention` with gates that start at 1. Runs are identified by the
            file's name, without its path. Defaults to `None`.
        recipe, changes, validation_split, on_error, verbose: Same as in
            `keras_coordatt.training.train`.

    Returns:
        One dict per run: its settings, the number of `images` per split, the `labels`,
        all values of the `recipe`, `parameters`, `metrics` on the `split` that was left
        for testing, `best_epoch`, the `history` as one dict per epoch, and `seconds`.

    Raises:
        ValueError: If an argument is invalid, the data can't be used, a line of
            `output` isn't a run, or a run has other settings than these.

    Example:

    >>> runs = compare("segmentation", "digits/scenes", "runs/digits.jsonl")
    >>> print(table(runs))
    """
    check_choice("task", task, TASKS)
    check_choice("network", network, tuple(BUILDERS))
    check_on_error(on_error)
    check_type("verbose", verbose, bool | int, "True or False")
    check_choice("recipe", recipe, RECIPES)
    split = check_number("validation_split", validation_split, 0, 1, closed=True)
    check_path("data", data)
    output = pathlib.Path(check_path("output", output))
    if start is not None:
        check_path("start", start)
    attentions = _check_different("attentions", attentions)
    for attention in attentions:
        check_choice("attentions", attention, ATTENTIONS)
        if start is not None and attention not in INSERTED:
            raise ValueError(
                f"`attentions` must be of {INSERTED} with `start`, as no other can start "
                f"as the identity. Received: {attention!r}"
            )
    seeds = [
        check_positive_int("seeds", seed, 2**32 - 1, zero=True)
        for seed in _check_different("seeds", seeds)
    ]
    arguments = _check_arguments(arguments, network)
    if changes is not None:
        check_mapping("changes", changes)
    find_recipe(recipe, task, changes)
    if start is not None:
        if task != "classification":
            raise ValueError(f"`start` is for classification. Received: task={task!r}")
        if arguments or network != "MobileNetV2CA":
            raise ValueError(
                "`network` and `arguments` are for training without `start`, whose "
                f"network is that of the file. Received: {network!r} and {arguments}"
            )
        _load_start(start)
    settings = {
        "task": task,
        "data": _name(data),
        "network": network,
        "arguments": arguments,
        "start": start and pathlib.Path(start).name,
        "recipe_name": recipe,
        # `zero_init` would undo the training of `start`.
        "changes": {**(changes or {}), **({"zero_init": False} if start else {})},
        "validation_split": split,
        "on_error": on_error,
    }
    # As in the file, where JSON has turned tuples into lists.
    settings = json.loads(json.dumps(settings))
    runs = read_runs(output)
    if again := repeated(runs):
        raise ValueError(
            "`output` must have one run for each attention and seed. Received: "
            f"{output}, with two of {again}"
        )
    values = find_recipe(recipe, task, settings["changes"])
    given = {**settings, "recipe": json.loads(json.dumps(dataclasses.asdict(values)))}
    if pathlib.Path(data).exists() and any(
        name in run for run in runs for name in DATA
    ):
        build = _builder(network, arguments, start, None)
        given |= _describe_data(settings, data, build)
    for run in runs:
        if found := difference(run, given):
            raise ValueError(
                "`output` has runs of another comparison: choose another file. Received: "
                f"{output}, with {found}"
            )
    done = {(run["seed"], run["attention"]) for run in runs}
    # The models, beside which the state of an interrupted run lies until it is complete
    models = {
        (seed, attention): output.with_name(
            f"{output.stem}-{attention or 'none'}-{seed}.keras"
        )
        for seed, attention in itertools.product(seeds, attentions)
        if (seed, attention) not in done
    }
    for model in models.values():
        if model.exists() and not Output(model).state.exists():
            raise ValueError(
                "`output` must have a line for each model beside it: move the model away "
                f"to train it again. Received: {output}, without one for {model.name}"
            )
    output.parent.mkdir(parents=True, exist_ok=True)
    for (seed, attention), model in models.items():
        if verbose:
            print(f"attention={attention}, seed={seed}", flush=True)
        build = _builder(network, arguments, start, attention)
        result = _train(settings, data, model, build, seed, verbose)
        run = {"attention": attention, "seed": seed, **settings, **result}
        _append(output, run)
    return read_runs(output)


def _check_different(name, values):
    values = check_sequence(name, values)
    if not values or any(value in values[:i] for i, value in enumerate(values)):
        raise ValueError(
            f"`{name}` must have one or more values, all different. Received: {values}"
        )
    return values


def _check_arguments(arguments, network):
    """Returns a builder's arguments as JSON can hold them."""
    arguments = {} if arguments is None else dict(check_mapping("arguments", arguments))
    known = inspect.signature(BUILDERS[network]).parameters
    for name, value in arguments.items():
        if name not in known or name in GIVEN:
            raise ValueError(
                f"`arguments` must be those of {network} that a comparison leaves open: "
                f"{', '.join(x for x in known if x not in GIVEN)}. Received: {arguments}"
            )
        if isinstance(value, np.generic):
            arguments[name] = value.item()
    try:
        json.dumps(arguments)
    except TypeError as error:
        raise ValueError(
            f"`arguments` must be numbers, text or lists of them. Received: {arguments}"
        ) from error
    return arguments


def _describe_data(settings, data, build):
    """Returns the properties of the data, `DATA`, as a training with `settings` would."""
    # Imports TensorFlow.
    from keras_coordatt.training.setup import describe_data, open_task

    names = ("recipe_name", "changes", "validation_split", "on_error")
    options = (settings[name] for name in names)
    return describe_data(open_task(settings["task"], data, build, None, *options))


def _train(settings, data, model, build, seed, verbose):
    """Trains once, and returns what a run has beside its settings."""
    keras.backend.clear_session()
    training = train(
        settings["task"],
        data,
        model,
        build=build,
        recipe=settings["recipe_name"],
        changes=settings["changes"],
        validation_split=settings["validation_split"],
        on_error=settings["on_error"],
        seed=seed,
        verbose=verbose,
    )
    report = dict(training.report)
    used = report.pop("settings")
    found = {name: used[name] for name in ("recipe", *DATA) if name in used}
    return {**found, **report}


def _builder(network, arguments, start, attention):
    if start is None:
        function, arguments = BUILDERS[network], arguments or {}
    else:
        function, arguments = retrofit, {"start": os.fspath(start)}
    return functools.partial(function, attention=attention, **arguments)


def _load_start(start):
    """Loads a classifier without attention."""
    if not pathlib.Path(start).is_file():
        raise ValueError(f"`start` must be a `.keras` file. Received: {start}")
    model = keras.saving.load_model(start, compile=False)
    attention = [x.name for x in nested_layers(model) if hasattr(x, "compute_gates")]
    if attention:
        raise ValueError(
            "`start` must be a classifier without attention. Received: "
            f"{start}, with {attention[0]!r}"
        )
    return model


def retrofit(
    input_shape: tuple,
    classes: int,
    weights: None = None,
    *,
    start: str,
    attention: str | None,
) -> keras.Model:
    """Loads a classifier, and inserts attention that starts as the identity.

    Args:
        input_shape: Shape of the images that it must take.
        classes: Number of classes that it must have.
        weights: Not used: the classifier has its weights.
        start: Path of a `.keras` file.
        attention: `None`, `"height"`, `"width"` or `"coordinate"`.

    Returns:
        A `keras.Model`.

    Raises:
        ValueError: If the classifier takes other images or has other classes, or has
            attention already.
    """
    model = _load_start(start)
    shapes = tuple(model.input_shape[1:]), tuple(model.output_shape[1:])
    if shapes != (tuple(input_shape), (classes,)):
        raise ValueError(
            f"`start` must be a classifier of images {tuple(input_shape)} into {classes} "
            f"classes. Received: {start}, from {shapes[0]} to {shapes[1]}"
        )
    if attention is None:
        return model
    axes = COORDINATE_AXES[attention]
    return insert_attention(
        model,
        layer=functools.partial(CoordinateAttention, axes=axes, identity_init=True),
    )


def is_run(run) -> bool:
    """Returns whether `run` has what tables and pictures show, as `compare` writes it."""
    if not isinstance(run, Mapping) or run.get("task") not in TASKS:
        return False
    names = METRICS[run["task"]]
    shown = f"val_{names[0]}"
    return (
        "attention" in run
        and isinstance(run["attention"], str | None)
        and type(run.get("seed")) is int
        and type(run.get("parameters")) is int
        and isinstance(run.get("metrics"), Mapping)
        # There is no AP without objects.
        and all(_is_share(run["metrics"].get(name, 0)) for name in names)
        and isinstance(run.get("history"), list)
        and all(
            isinstance(epoch, Mapping)
            and (epoch.get(shown) is None or _is_share(epoch[shown]))
            for epoch in run["history"]
        )
    )


def _is_share(value):
    """Returns whether `value` is a number in [0, 1], up to rounding."""
    return isinstance(value, numbers.Real) and -1e-6 <= value <= 1 + 1e-6


def repeated(runs: Iterable[Mapping]) -> str | None:
    """Names an attention and seed of which there are two runs, or returns `None`."""
    seen = set()
    for run in runs:
        key = run["attention"], run["seed"]
        if key in seen:
            return f"attention={key[0]!r}, seed={key[1]}"
        seen.add(key)
    return None


def difference(run: Mapping, settings: Mapping) -> str | None:
    """Names a setting in which a run differs.

    Args:
        run: A run.
        settings: Another run, or the settings of a comparison.

    Returns:
        Its name and both values, or `None` if all settings are the same.
    """
    # Older files don't have all of them.
    others = {"on_error": "raise"}
    for name in SETTINGS:
        old, new = (x.get(name, others.get(name)) for x in (run, settings))
        if old != new:
            return f"{name}={old!r} instead of {new!r}"
    for name in ("split", *DATA):
        if name in run and name in settings and run[name] != settings[name]:
            return f"{name}={run[name]!r} instead of {settings[name]!r}"
    # Other versions may have other values by the same name.
    old, new = (x.get("recipe") or {} for x in (run, settings))
    for name in old:
        if name in new and old[name] != new[name]:
            return f"recipe {name}={old[name]!r} instead of {new[name]!r}"
    return None


def read_runs(path: str | os.PathLike) -> list[dict]:
    """Reads the file of a comparison.

    Args:
        path: The `output` of `compare`. It need not exist.

    Returns:
        One dict per run.

    Raises:
        ValueError: If a line isn't a run.
    """
    path = pathlib.Path(check_path("path", path))
    runs = []
    if path.exists() and not path.is_file():
        raise ValueError(f"`output` must be a file. Received: {path}")
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    except UnicodeDecodeError as error:
        raise ValueError(
            f"`output` must be UTF-8. Received: {path}: {error}"
        ) from error
    for number, line in enumerate(lines, 1):
        try:
            run = json.loads(line)
        except json.JSONDecodeError:
            run = {}
        if not is_run(run):
            raise ValueError(
                f"`output` must have a run, as JSON, in every line. {path}, line "
                f"{number}: {reprlib.repr(line)}"
            )
        runs.append(run)
    return runs


def _append(output, run):
    """Adds a line to the file; a process that is killed leaves the old file."""
    lines = [*map(json.dumps, [*read_runs(output), run])]
    try:
        with atomic_file(output) as temporary:
            text = "".join(f"{line}\n" for line in lines)
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OSError(
            f"{output} could not be written: {error}. To keep the run, add this line "
            f"to it: {lines[-1]}"
        ) from error


def _name(data):
    """Returns what identifies data: a folder's name, or a TFDS name."""
    path = pathlib.Path(data)
    return path.resolve().name if path.exists() else os.fspath(data)
