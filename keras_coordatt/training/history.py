"""The history of a training: its best epoch, and early stopping.

A history is one dict per complete epoch, with its number as `"epoch"`, from 1.
"""

import math

from keras_coordatt.training.recipes import Recipe


def check_loss(loss: float, batch: int, rows: list[dict]) -> None:
    """Raises a FloatingPointError if the loss of an epoch's batch isn't finite."""
    if not math.isfinite(loss):
        raise FloatingPointError(
            f"The loss is {float(loss)} since step {batch + 1} of epoch "
            f"{len(rows) + 1}. Try a lower `learning_rate`, or `clip_norm`"
        )


def number_or_none(value: float) -> float | None:
    """Returns the value as JSON can hold it: `None` for NaN and infinity."""
    value = float(value)
    return value if math.isfinite(value) else None


def best_epoch(rows: list[dict], metric: str) -> int:
    """Returns the number of the epoch with the highest metric; the last without one.

    Of equally good epochs it is the first. An epoch without the metric, such as an
    average precision where there are no objects, is worse than all others.
    """
    if not any(metric in row for row in rows):
        return rows[-1]["epoch"]
    values = [-math.inf if row.get(metric) is None else row[metric] for row in rows]
    return rows[values.index(max(values))]["epoch"]


def stops_early(rows: list[dict], metric: str, recipe: Recipe) -> bool:
    """Returns whether no epoch was better for as many epochs as the patience."""
    if not recipe.patience or not any(metric in row for row in rows):
        return False
    since = max(best_epoch(rows, metric), recipe.head_epochs)
    return rows[-1]["epoch"] - since >= recipe.patience
