"""Tables and pictures of measurements."""

import os

from keras_coordatt.benchmark.runtimes import MEASURES
from keras_coordatt.validation import check_path, check_sequence, check_type

COUNTS = {
    "parameters": ("parameters", 1e6, "M", 2),
    "multiply_adds": ("M-Adds", 1e6, "M", 0),
    "size_float32": ("LiteRT float32", 2**20, "MiB", 2),
    "size_int8": ("LiteRT int8", 2**20, "MiB", 2),
    "peak_memory": ("peak memory", 2**20, "MiB", 0),
}
# Measures of `official_rows` that `MEASURES` lacks
_OFFICIAL_TITLES = {
    "torch_1": "PyTorch, batch 1, all cores",
    "torch_16": "PyTorch, batch 16, all cores",
    "torch_train_32": "PyTorch training step, batch 32",
}


def table(rows: list[dict]) -> str:
    """Formats measurements as Markdown tables, one per model.

    Args:
        rows: Return value of `benchmark` or `official_rows`.

    Returns:
        Tables with one column per attention and one row per measure: the median time,
        and the median and the quartiles of the ratio to the network without attention.

    Raises:
        ValueError: If `rows` aren't such measurements.
    """
    check_rows(rows, "model", "benchmark")
    models = dict.fromkeys(row["model"] for row in rows)
    tables = [_table([r for r in rows if r["model"] == model]) for model in models]
    return "\n\n".join(tables)


def check_rows(rows: list[dict], key: str, source: str) -> None:
    """Raises a ValueError if `rows` aren't the measurements of a function."""
    found = check_sequence("rows", rows)
    if not found or not all(isinstance(row, dict) and key in row for row in found):
        raise ValueError(f"`rows` must be from `{source}`. Received: {rows!r}")


def _table(rows):
    lines = [[rows[0]["model"], *(row["attention"] or "none" for row in rows)]]
    lines.append(["---"] * len(lines[0]))
    for name, (title, unit, suffix, digits) in COUNTS.items():
        if any(name in row for row in rows):
            cells = [
                f"{row[name] / unit:.{digits}f} {suffix}" if name in row else ""
                for row in rows
            ]
            lines.append([title, *cells])
    for name in _measures(rows):
        lines.append([_title(name), *(_cell(row, name) for row in rows)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _measures(rows):
    return [name for name, value in rows[0].items() if isinstance(value, dict)]


def _title(measure):
    if measure in MEASURES:
        return MEASURES[measure].title
    return _OFFICIAL_TITLES.get(measure, measure)


def _cell(row, measure):
    found = row[measure]
    if "absent" in found:
        return found["absent"]
    seconds = found["seconds"]
    # 0.9995 s would round to 1e+03 ms.
    cell = f"{seconds:.3g} s" if seconds >= 0.9995 else f"{1000 * seconds:.3g} ms"
    if row["attention"] and "ratio" in found:
        low, middle, high = found["ratio"]
        cell += f", × {middle:.2f} ({low:.2f}-{high:.2f})"
    return cell


def latency_picture(rows: list[dict], path: str | os.PathLike) -> None:
    """Plots the latency per image in every runtime, for inference on a CPU.

    Args:
        rows: Return value of `benchmark`, of which the first model is plotted.
        path: Image file to write, of a type that matplotlib supports.

    Raises:
        ValueError: If `rows` aren't such measurements, or `path` isn't a path.
    """
    import matplotlib.figure

    check_rows(rows, "model", "benchmark")
    check_path("path", path)
    rows = [row for row in rows if row["model"] == rows[0]["model"]]
    measures = [
        name
        for name in _measures(rows)
        if any("seconds" in row[name] for row in rows) and not name.startswith("train")
    ][::-1]
    figure = matplotlib.figure.Figure(
        figsize=(7, 1 + 0.12 * len(measures) * (len(rows) + 1)), layout="tight"
    )
    axes = figure.subplots()
    thick = 0.8 / len(rows)
    for i, row in enumerate(rows):
        bars = {
            y + 0.4 - (i + 0.5) * thick: 1000 / row[name]["per_second"]
            for y, name in enumerate(measures)
            if "seconds" in row[name]
        }
        label = row["attention"] or "none"
        axes.barh([*bars.keys()], [*bars.values()], thick, label=label)
    axes.set_yticks(range(len(measures)), [_title(name) for name in measures])
    axes.set_xlabel(f"{rows[0]['model']}: ms per image")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(title="attention")
    figure.savefig(path)


def picture(rows: list[dict], path: str | os.PathLike, measure: str) -> None:
    """Plots latency against parameters.

    Args:
        rows: Return value of `benchmark`.
        path: Image file to write, of a type that matplotlib supports.
        measure: The measure to plot, a key of `MEASURES`.

    Raises:
        TypeError: If `measure` isn't a string.
        ValueError: If no network has this measure, or another argument is invalid.
    """
    import matplotlib.figure

    check_rows(rows, "model", "benchmark")
    check_path("path", path)
    check_type("measure", measure, str, "a key of `MEASURES`")
    rows = [row for row in rows if "seconds" in row.get(measure, {})]
    if not rows:
        raise ValueError(f"`measure` must be one of `rows`. Received: {measure!r}")
    figure = matplotlib.figure.Figure(figsize=(6, 4), layout="tight")
    axes = figure.subplots()
    for model in dict.fromkeys(row["model"] for row in rows):
        chosen = [row for row in rows if row["model"] == model]
        x = [row["parameters"] / 1e6 for row in chosen]
        y = [1000 * row[measure]["seconds"] for row in chosen]
        axes.scatter(x, y, label=model)
        for row, point in zip(chosen, zip(x, y)):
            label = row["attention"] or "none"
            axes.annotate(label, point, xytext=(5, 3), textcoords="offset points")
    axes.set_xlabel("parameters, in millions")
    axes.set_ylabel(f"{MEASURES[measure].title}, in ms")
    axes.set_ylim(bottom=0)
    axes.margins(x=0.2)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path)
