"""Tables and pictures of measurements."""

import os

from keras_coordatt.benchmark.measure import MEASURES


def table(rows: list[dict]) -> str:
    """Formats measurements as a Markdown table.

    Args:
        rows: Return value of `benchmark` or `official_rows`.

    Returns:
        A table, one row per network: the median time, and the median and the quartiles
        of the ratio to the network without attention.
    """
    counts = {
        "parameters": ("parameters", 1e6, "M", 2),
        "multiply_adds": ("M-Adds", 1e6, "M", 0),
        "size_float32": ("LiteRT float32", 2**20, "MiB", 2),
        "size_int8": ("LiteRT int8", 2**20, "MiB", 2),
        "peak_memory": ("peak memory", 2**20, "MiB", 0),
    }
    measures = [name for name in rows[0] if isinstance(rows[0][name], dict)]
    shown = [name for name in counts if any(name in row for row in rows)]
    titles = ["model", "attention", *(counts[name][0] for name in shown)]
    titles += [MEASURES[n].title if n in MEASURES else n for n in measures]
    lines = [titles, ["---"] * len(titles)]
    for row in rows:
        cells = [row["model"], row["attention"] or "none"]
        for name in shown:
            _, unit, suffix, digits = counts[name]
            value = f"{row[name] / unit:.{digits}f} {suffix}" if name in row else ""
            cells.append(value)
        for name in measures:
            low, middle, high = row[name]["ratio"]
            cell = f"{1000 * row[name]['seconds']:.3g} ms"
            if row["attention"]:
                cell += f", × {middle:.3f} ({low:.3f} to {high:.3f})"
            cells.append(cell)
        lines.append(cells)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def picture(rows: list[dict], path: str | os.PathLike, measure: str) -> None:
    """Plots latency against parameters.

    Args:
        rows: Return value of `benchmark`.
        path: Image file to write, of a type that matplotlib supports.
        measure: The measure to plot, a key of `MEASURES`.

    Raises:
        ValueError: If `measure` was not measured.
    """
    import matplotlib.figure

    if measure not in rows[0]:
        raise ValueError(f"`measure` must be one of `rows`. Received: {measure!r}")
    figure = matplotlib.figure.Figure(figsize=(6, 4), layout="tight")
    axes = figure.subplots()
    for model in dict.fromkeys(row["model"] for row in rows):
        chosen = [row for row in rows if row["model"] == model]
        x = [row["parameters"] / 1e6 for row in chosen]
        y = [1000 * row[measure]["seconds"] for row in chosen]
        axes.scatter(x, y, label=model)
        for row, place in zip(chosen, zip(x, y)):
            label = row["attention"] or "none"
            axes.annotate(label, place, xytext=(5, 3), textcoords="offset points")
    axes.set_xlabel("parameters, in millions")
    axes.set_ylabel(f"{MEASURES[measure].title}, in ms")
    axes.set_ylim(bottom=0)
    axes.margins(x=0.2)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path)
