"""Charts of a training and of its result: curves, bars and confusion matrices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import keras
import numpy as np

from keras_coordatt.validation import check_array, check_mapping, check_sequence
from keras_coordatt.visualize.canvas import add_legend, subplots
from keras_coordatt.visualize.overlays import check_range

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike


def plot_history(
    history: keras.callbacks.History | Mapping[str, Sequence[float]],
) -> Figure:
    """Plots the losses and metrics of each epoch of a training.

    Args:
        history: Return value of `model.fit`, or a dict of one list per measure. A name
            with `val_` in front goes into the same axes as the one without.

    Returns:
        A `matplotlib.figure.Figure`, with one set of axes per measure.

    Raises:
        ValueError: If nothing was measured.

    Example:

    >>> plot_history(model.fit(train, validation_data=test)).savefig("curves.png")
    """
    first = 1
    if isinstance(history, keras.callbacks.History):
        # An unfitted one has no `epoch`.
        first = next(iter(getattr(history, "epoch", ())), 0) + 1
        history = history.history
    lines = {
        name: check_array(f"history[{name!r}]", values, 1)
        for name, values in check_mapping("history", history).items()
    }
    measures = list(dict.fromkeys(name.removeprefix("val_") for name in lines))
    if not measures or not all(map(len, lines.values())):
        raise ValueError(
            "`history` must have measures, each of one epoch or more. "
            f"Received: {history!r}"
        )
    columns = min(3, len(measures))
    figure, axes = subplots(-(-len(measures) // columns), columns, (4, 3))
    for axis in axes.flat[len(measures) :]:
        axis.remove()
    for axis, measure in zip(axes.flat, measures):
        styles = {
            measure: ("training", "tab:blue"),
            f"val_{measure}": ("validation", "tab:orange"),
        }
        for name, (label, color) in styles.items():
            if name in lines:
                epochs = range(first, first + len(lines[name]))
                axis.plot(epochs, lines[name], ".-", label=label, color=color)
        axis.set(xlabel="epoch", title=measure.replace("_", " "))
        # One epoch has one tick.
        axis.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axis.grid(alpha=0.3)
        if f"val_{measure}" in lines:
            axis.legend()
    return figure


def plot_confusion_matrix(
    matrix: ArrayLike, labels: Sequence[str] | None = None
) -> Figure:
    """Plots how often each class was predicted as each other class.

    Args:
        matrix: Array `(classes, classes)` of counts or shares: true classes in rows,
            predicted classes in columns.
        labels: Class names. Defaults to their numbers.

    Returns:
        A `matplotlib.figure.Figure`. Colors are shares of the row, and the numbers are
        the counts; above 20 classes, only the colors.

    Raises:
        ValueError: If the matrix isn't square or has negative numbers, or `labels` has
            another length.

    Example:

    >>> matrix = np.zeros((10, 10), int)
    >>> np.add.at(matrix, (labels, predictions), 1)
    >>> plot_confusion_matrix(matrix)
    """
    matrix = check_array("matrix", matrix).astype("float64")
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.size:
        raise ValueError(
            f"`matrix` must be of shape (classes, classes). Received: {matrix.shape}"
        )
    check_range("matrix", matrix, 0)
    labels = _labels(labels, "matrix", matrix)
    side = 1.5 + min(10, 0.45 * len(matrix))
    figure, axes = subplots(1, 1, (side + 1, side))
    axis = axes[0, 0]
    totals = matrix.sum(axis=1, keepdims=True)
    shares = matrix / np.where(totals > 0, totals, 1)
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axis, label="share of the true class", shrink=0.8)
    ticks = range(len(matrix))
    long = max(map(len, labels)) > 2
    axis.set_xticks(ticks, labels, rotation=90 if long else 0)
    axis.set_yticks(ticks, labels)
    axis.set(xlabel="predicted", ylabel="true")
    if len(matrix) <= 20:
        for row, column in np.argwhere(matrix):
            number = matrix[row, column]
            axis.text(
                column,
                row,
                f"{number:.0f}"
                if number % 1 == 0 or number >= 100
                else f"{number:.3g}",
                ha="center",
                va="center",
                fontsize=8,
                color="white" if shares[row, column] > 0.5 else "black",
            )
    return figure


def plot_precision_recall(
    curves: Mapping[str, Sequence[float]], name: str = "average precision"
) -> Figure:
    """Plots the precision of a detector against its recall, one curve per class.

    Args:
        curves: Dict from each class to its precision at evenly spaced recalls from 0
            to 1, such as `precision_recall` of an `Evaluation`.
        name: What the mean of a curve is called, such as `"AP50"`.

    Returns:
        A `matplotlib.figure.Figure`. The legend says the mean of each curve.

    Raises:
        ValueError: If there are no curves, or one isn't of numbers in [0, 1].

    Example:

    >>> figure = plot_precision_recall({"cat": [1.0, 0.9, 0.5, 0.0]})
    """
    lines = {
        label: check_array(f"curves[{label!r}]", precision, 1)
        for label, precision in check_mapping("curves", curves).items()
    }
    if not lines or not all(map(len, lines.values())):
        raise ValueError(
            "`curves` must have a class, and each a precision or more. "
            f"Received: {curves!r}"
        )
    figure, axes = subplots(1, 1, (6.5, 4.5))
    axis = axes[0, 0]
    for label, precision in lines.items():
        check_range(f"curves[{label!r}]", precision, 0, 1)
        recall = np.linspace(0, 1, len(precision))
        axis.plot(recall, precision)
    axis.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    axis.grid(alpha=0.3)
    columns = -(-len(lines) // 20)
    add_legend(
        axis,
        axis.lines,
        [f"{label} {np.mean(precision):.2f}" for label, precision in lines.items()],
        title=name,
        loc="upper left",
        bbox_to_anchor=(1, 1),
        ncols=columns,
    )
    return figure


def plot_class_scores(
    values: Sequence[float], labels: Sequence[str], name: str = "score"
) -> Figure:
    """Plots one number per class as bars, the highest on top.

    Args:
        values: One number in [0, 1] per class. NaN is left out.
        labels: Class names.
        name: What the numbers are.

    Returns:
        A `matplotlib.figure.Figure`. A dashed line is the mean.

    Raises:
        ValueError: If `labels` has another length, no value is a number, or one isn't in
            [0, 1].

    Example:

    >>> figure = plot_class_scores([0.9, 0.4], ["road", "sign"], "IoU")
    """
    values = check_array("values", values, 1).astype("float64")
    names = _labels(labels, "values", values)
    check_range("values", values[~np.isnan(values)], 0, 1)
    order = [i for i in np.argsort(values) if not np.isnan(values[i])]
    if not order:
        raise ValueError(f"`values` must have a number. Received: {values}")
    figure, axes = subplots(1, 1, (6, 1.2 + 0.25 * len(order)))
    axis = axes[0, 0]
    bars = axis.barh(range(len(order)), values[order], color="tab:blue")
    # Not as categories, of which two of the same name would share a bar
    axis.set_yticks(range(len(order)), [names[i] for i in order])
    axis.bar_label(bars, fmt="%.2f", padding=3)
    mean = values[order].mean()
    axis.axvline(mean, color="black", linestyle="--", linewidth=1)
    axis.set(xlabel=name, xlim=(0, 1.1), title=f"mean {name} {mean:.3f}")
    return figure


def _labels(labels, name, values):
    labels = range(len(values)) if labels is None else check_sequence("labels", labels)
    if len(labels) != len(values):
        raise ValueError(
            f"`labels` must be a sequence with {len(values)} entries, as many as `{name}` "
            f"has. Received: {labels!r}"
        )
    return [str(label) for label in labels]
