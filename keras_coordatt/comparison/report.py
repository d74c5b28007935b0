"""Tables and pictures of comparisons."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import TYPE_CHECKING

import keras

from keras_coordatt.applications import BUILDERS
from keras_coordatt.benchmark import MEASURES, interleaved
from keras_coordatt.benchmark.measure import calibrate_batch_norm
from keras_coordatt.benchmark.runtimes import INFERENCE
from keras_coordatt.comparison.runs import difference, is_run, repeated
from keras_coordatt.detection import SSDLite
from keras_coordatt.record import METRICS
from keras_coordatt.segmentation import DeepLabV3
from keras_coordatt.validation import (
    check_choice,
    check_number,
    check_positive_int,
    check_sequence,
    check_type,
)
from keras_coordatt.visualize.canvas import subplots

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def table(runs: list[dict]) -> str:
    """Formats a comparison as a Markdown table.

    Args:
        runs: Return value of `compare`, or of `read_runs`.

    Returns:
        A table, one row per attention: mean and standard deviation of each metric over
        the seeds, in percent, and mean and standard deviation of the difference to no
        attention with the same seed. Parameters include moving averages. The titles name
        the images if they aren't test images.

    Raises:
        ValueError: If these aren't the runs of one comparison.
    """
    names = METRICS[_task(runs)]
    titles = ["attention", "parameters", *(_title(name, runs) for name in names)]
    titles.append(f"{names[0]} over none, same seed")
    rows = [[*titles, "runs"], ["---"] * (len(titles) + 1)]
    for attention, chosen in _by_attention(runs).items():
        rows.append(
            [
                attention or "none",
                f"{chosen[0]['parameters']:,}",
                *(_spread(_values(chosen, name), unit=" %") for name in names),
                _spread(_differences(chosen, runs, names[0]), "+"),
                str(len(chosen)),
            ]
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def curves(runs: list[dict]) -> Figure:
    """Plots the main metric of the validation images by epoch.

    Args:
        runs: Return value of `compare`, or of `read_runs`.

    Returns:
        A `matplotlib.figure.Figure`: one line per run, and the mean over the seeds in
        bold, one color per attention.

    Raises:
        ValueError: If these aren't the runs of one comparison, or none was validated.
    """
    measure = METRICS[_task(runs)][0]
    key = f"val_{measure}"
    if not any(key in epoch for run in runs for epoch in run["history"]):
        raise ValueError("`runs` must have been validated after each epoch")
    figure, axes = subplots(1, 1, (7, 4.5))
    axis = axes[0, 0]
    for i, (attention, chosen) in enumerate(_by_attention(runs).items()):
        lines = [
            {
                number: 100 * epoch[key]
                for number, epoch in enumerate(run["history"], 1)
                if epoch.get(key) is not None
            }
            for run in chosen
        ]
        for line in lines:
            axis.plot(*_points(line), color=f"C{i}", lw=0.6, alpha=0.6)
        # Where every seed has a value: fewer would make a step in the line.
        shared = set.intersection(*map(set, lines))
        mean = {n: statistics.mean(x[n] for x in lines) for n in sorted(shared)}
        axis.plot(*_points(mean), color=f"C{i}", lw=2, label=attention or "none")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set(xlabel="epoch", ylabel=f"validation {measure}, in percent")
    axis.grid(alpha=0.3)
    axis.legend(title="bold: mean over the seeds")
    return figure


def check_measure(measure: str) -> None:
    """Raises a ValueError unless this latency can be measured on this backend."""
    check_choice("measure", measure, INFERENCE)
    if keras.config.backend() != "tensorflow":
        raise ValueError(
            "Latency needs the TensorFlow backend: set KERAS_BACKEND=tensorflow. "
            f"Received: the backend {keras.config.backend()}"
        )


def latency(
    runs: list[dict], measure: str = "litert_float32_1", rounds: int = 20
) -> dict[str | None, float]:
    """Measures how long one picture takes with each attention of a comparison.

    The networks are built again, with random weights, and timed in turns.

    Args:
        runs: Return value of `compare`, or of `read_runs`.
        measure: A key of `keras_coordatt.benchmark.MEASURES` for inference that needs no
            process of its own.
        rounds: Number of timings of each network.

    Returns:
        Dict from attentions to median seconds per picture.

    Raises:
        ValueError: If an argument is out of its range, if the runs started from a file,
            or if the backend isn't TensorFlow.
    """
    _task(runs)
    if any(run.get("start") for run in runs):
        raise ValueError(
            "`runs` must not have started from a file: its network is unknown"
        )
    check_measure(measure)
    check_positive_int("rounds", rounds)
    settings = MEASURES[measure]
    functions = {}
    for attention, (run, *_) in _by_attention(runs).items():
        model = _build(run)
        functions[attention] = settings.prepare(calibrate_batch_norm(model))
    times = interleaved(functions, rounds, settings.calls)
    return {
        attention: statistics.median(values) / settings.images
        for attention, values in times.items()
    }


def picture(
    runs: list[dict],
    seconds: dict[str | None, float],
    measure: str = "litert_float32_1",
) -> Figure:
    """Plots the main metric against latency.

    Args:
        runs: Return value of `compare`, or of `read_runs`.
        seconds: Return value of `latency`.
        measure: Same as in `latency`.

    Returns:
        A `matplotlib.figure.Figure`: one point per attention, the mean over the seeds,
        with the standard deviation as a bar.

    Raises:
        ValueError: If these aren't the runs of one comparison, or an attention has no
            latency.
    """
    name = METRICS[_task(runs)][0]
    check_choice("measure", measure, tuple(MEASURES))
    check_type("seconds", seconds, Mapping, "a dict, from `latency`")
    for attention in _by_attention(runs):
        check_number(f"seconds[{attention!r}]", seconds.get(attention, math.nan), 0)
    figure, axes = subplots(1, 1, (6, 4))
    axis = axes[0, 0]
    for i, (attention, chosen) in enumerate(_by_attention(runs).items()):
        values = _values(chosen, name)
        if not values:
            raise ValueError(f"`runs` must have {name}. {attention!r} has none")
        deviation = statistics.stdev(values) if len(values) > 1 else None
        point = 1000 * seconds[attention], statistics.mean(values)
        axis.errorbar(*point, deviation, fmt="o", color=f"C{i}", capsize=3)
        axis.annotate(
            attention or "none", point, xytext=(6, 4), textcoords="offset points"
        )
    axis.set(
        xlabel=f"{MEASURES[measure].title}, in ms",
        ylabel=f"{_title(name, runs)}, in percent",
    )
    axis.margins(x=0.2)
    axis.grid(alpha=0.3)
    return figure


def _build(run):
    """Builds the network of a run, with random weights."""
    side = run["recipe"]["image_size"]
    sides = (side, side) if isinstance(side, int) else tuple(side)
    arguments = {
        "input_shape": (*sides, 3),
        "weights": None,
        "attention": run["attention"],
        **run["arguments"],
    }
    builder = BUILDERS[run["network"]]
    if run["task"] == "classification":
        return builder(**arguments)
    # The number of classes hardly matters to the latency.
    if run["task"] == "detection":
        return SSDLite(builder(include_top=False, **arguments), 10)
    arguments = {"output_stride": 16, **arguments}
    return DeepLabV3(builder(include_top=False, **arguments), 10)


def _task(runs):
    """Returns the task, if these are the runs of one comparison."""
    runs = check_sequence("runs", runs)
    if not runs:
        raise ValueError("`runs` must not be empty. Received: []")
    for run in runs:
        if not is_run(run):
            raise ValueError(f"`runs` must be from `compare`. Received: {run!r}")
        if found := difference(run, runs[0]):
            raise ValueError(f"`runs` must be of one comparison. Received: {found}")
    if again := repeated(runs):
        raise ValueError(
            "`runs` must have one run for each attention and seed. Received: two of "
            f"{again}"
        )
    return runs[0]["task"]


def _title(name, runs):
    """Returns a metric's name, with the images if they aren't test images."""
    split = runs[0].get("split", "test")
    return name if split == "test" else f"{name}, {split}"


def _points(line):
    """Returns epochs and values of a line, with gaps where there is no value."""
    epochs = range(1, max(line, default=0) + 1)
    return epochs, [line.get(epoch, math.nan) for epoch in epochs]


def _by_attention(runs):
    groups = {}
    for run in runs:
        groups.setdefault(run["attention"], []).append(run)
    return groups


def _values(runs, name):
    return [100 * run["metrics"][name] for run in runs if name in run["metrics"]]


def _differences(chosen, runs, name):
    """Returns the differences to no attention, of the runs with the same seed."""
    plain = {r["seed"]: r["metrics"].get(name) for r in runs if r["attention"] is None}
    pairs = [(run["metrics"].get(name), plain.get(run["seed"])) for run in chosen]
    return [100 * (value - none) for value, none in pairs if None not in (value, none)]


def _spread(values: list[float], sign: str = "", unit: str = "") -> str:
    """Formats mean and standard deviation; the latter needs two values."""
    if not values:
        return ""
    mean = f"{statistics.mean(values):{sign}.2f}"
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{mean}{spread}{unit}"
