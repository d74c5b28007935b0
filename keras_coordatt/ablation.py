"""The paper's ablation: accuracy by attention and seed, at the same training budget.

Each result is added to a file when its run ends, and an interrupted ablation continues
after the last one. The command is `keras-coordatt ablation DATA`.
"""

import functools
import json
import os
import pathlib
import statistics

import keras

from keras_coordatt.applications import MobileNetV2CA
from keras_coordatt.files import atomic_file
from keras_coordatt.training import train
from keras_coordatt.validation import check_positive_int

ATTENTIONS = (None, "se", "cbam", "height", "width", "coordinate")


def ablation(
    data: str | os.PathLike,
    output: str | os.PathLike,
    *,
    seeds: tuple[int, ...] = (0, 1, 2),
    steps: int = 400,
    image_size: int = 48,
    alpha: float = 0.25,
    batch_size: int = 64,
    learning_rate: float = 0.05,
) -> list[dict]:
    """Trains MobileNetV2 from scratch with each attention and each seed.

    All networks get the same images in the same order, the same schedule and the same
    number of steps. Seeds differ in the order and in the initial weights.

    Args:
        data: A folder `train/<class>/*.jpg`, `test/<class>/*.jpg`, or a TFDS name. Runs
            are identified by the folder's name, without its path.
        output: File of one line of JSON per run, written when the run ends. Runs that
            are already in it are not repeated.
        seeds: Sequence of integers.
        steps: Training steps per network.
        image_size: Height and width of the images, in pixels.
        alpha: Width multiplier of the networks.
        batch_size: Images per step.
        learning_rate: The highest learning rate of the schedule.

    Returns:
        One dict per run: its settings, `parameters`, test `accuracy`, and `seconds`.

    Raises:
        ValueError: If an argument is out of its range, the data can't be used, or a
            line of `output` isn't JSON.

    Example:

    >>> runs = ablation("cifar10", "runs/ablation.jsonl", seeds=(0, 1, 2))
    >>> print(table(runs))
    """
    check_positive_int("steps", steps)
    settings = {
        "data": os.path.basename(os.path.normpath(data)),
        "optimizer": "sgd",
        "steps": steps,
        "image_size": image_size,
        "alpha": alpha,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
    }
    output = pathlib.Path(output)
    lines = _lines(output)
    runs = []
    for number, line in enumerate(lines, 1):
        try:
            run = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(
                "`output` must have JSON in every line. "
                f"Received in line {number}: {line!r}"
            ) from error
        if settings.items() <= run.items():
            runs.append(run)
    done = {(run["seed"], run["attention"]) for run in runs}
    output.parent.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        for attention in ATTENTIONS:
            if (seed, attention) not in done:
                run = {"seed": seed, "attention": attention, **settings}
                run |= _train(**{**run, "data": data})
                # Not appended: a process that is killed would leave half a line.
                lines = [*_lines(output), json.dumps(run)]
                with atomic_file(output) as temporary:
                    temporary.write_text(
                        "".join(f"{line}\n" for line in lines), encoding="utf-8"
                    )
                print(json.dumps(run), flush=True)
                runs.append(run)
    return runs


def _lines(path):
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def _train(data, seed, attention, steps, alpha, **settings):
    keras.backend.clear_session()
    build = functools.partial(MobileNetV2CA, alpha=alpha, attention=attention)
    report = train(
        "classification",
        data,
        None,
        build=build,
        recipe="scratch",
        changes={"epochs": 1, "steps_per_epoch": steps, **settings},
        validation_split=0,
        seed=seed,
        verbose=False,
    ).report
    return {
        "parameters": report["parameters"],
        "accuracy": report["metrics"]["accuracy"],
        "seconds": report["seconds"],
    }


def table(runs: list[dict]) -> str:
    """Formats an ablation as a Markdown table, with mean and deviation over seeds.

    Args:
        runs: Return value of `ablation`.

    Returns:
        A table, one row per attention.
    """
    rows = [
        "| attention | parameters | test accuracy | over none, same seed | runs |",
        "|---|---|---|---|---|",
    ]
    plain = {run["seed"]: run["accuracy"] for run in runs if run["attention"] is None}
    for attention in ATTENTIONS:
        chosen = [run for run in runs if run["attention"] == attention]
        if not chosen:
            continue
        accuracy = [100 * run["accuracy"] for run in chosen]
        gain = [
            100 * (run["accuracy"] - plain[run["seed"]])
            for run in chosen
            if run["seed"] in plain
        ]
        rows.append(
            f"| {attention or 'none'} | {chosen[0]['parameters']:,} "
            f"| {_mean_and_deviation(accuracy)} % | {_mean_and_deviation(gain, '+')} "
            f"| {len(chosen)} |"
        )
    return "\n".join(rows)


def _mean_and_deviation(values: list[float], sign: str = "") -> str:
    if not values:
        return ""
    mean = f"{statistics.mean(values):{sign}.2f}"
    return f"{mean} ± {statistics.stdev(values):.2f}" if len(values) > 1 else mean
