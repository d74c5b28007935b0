"""`keras-coordatt compare`: trains with each attention at the same budget."""

import pathlib
from typing import Literal

from keras_coordatt import comparison
from keras_coordatt.cli.options import (
    Attention,
    Network,
    OnError,
    Verb,
    check_outputs,
    given,
)
from keras_coordatt.cli.train import parse_changes
from keras_coordatt.comparison.report import check_measure
from keras_coordatt.extras import check_matplotlib
from keras_coordatt.files import atomic_file
from keras_coordatt.record import VERBS


def compare(
    task: Verb,
    data: str,
    *,
    output: pathlib.Path = pathlib.Path("runs/compare.jsonl"),
    attentions: tuple[Attention, ...] = ("none", "se", "cbam", "coordinate"),
    seeds: tuple[int, ...] = (0, 1),
    network: Network = "MobileNetV2CA",
    alpha: float | None = None,
    start: pathlib.Path | None = None,
    recipe: Literal["scratch", "paper"] = "scratch",
    epochs: int | None = None,
    image_size: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    set: tuple[str, ...] = (),
    validation_split: float = 0.2,
    on_error: OnError = "raise",
    curves: pathlib.Path | None = None,
    picture: pathlib.Path | None = None,
    measure: str = "litert_float32_1",
) -> None:
    """Train a network with each attention and seed, and compare.

    One line of JSON per run is added to the output when the run ends. Runs that are
    already in it are not repeated, and an interrupted run continues after its last
    complete epoch.

    Args:
        task: What to learn: classify, detect or segment.
        data: Folder or file with the data, or TFDS name.
        output: File of runs. The models lie beside it.
        attentions: What to compare.
        seeds: One run for each attention and seed.
        network: Builder of the network.
        alpha: Width multiplier. By default the builder's.
        start: `.keras` file of a classifier without attention, into which attention is
            inserted, and which is trained on, with it and without.
        recipe: Named values of the training.
        epochs: Passes over the training images. By default the recipe's.
        image_size: Height and width in pixels. By default the recipe's.
        batch_size: Images per step. By default the recipe's.
        learning_rate: Highest learning rate. By default the recipe's.
        set: Other values of the recipe to change, such as `augmentation=none`.
        validation_split: Fraction of the training images set aside for validation, if
            DATA has no split for it; 0 to train without.
        on_error: What to do with files that can't be used.
        curves: File for a picture of the curves.
        picture: File for a picture of the result against latency.
        measure: Latency in the picture, as in `keras-coordatt benchmark`.
    """
    # Fail before the training, which takes hours, rather than after.
    if picture and start:
        raise ValueError(
            "--picture needs networks that are built here, without --start"
        )
    if picture:
        check_measure(measure)
    if curves or picture:
        check_matplotlib()
    check_outputs([("--curves", curves), ("--picture", picture)], [data, start, output])
    changes = parse_changes(set) | given(
        epochs=epochs,
        image_size=image_size,
        batch_size=batch_size,
        learning_rate=learning_rate,
    )
    runs = comparison.compare(
        VERBS[task],
        data,
        output,
        attentions=[None if name == "none" else name for name in attentions],
        seeds=seeds,
        network=network,
        arguments=given(alpha=alpha),
        start=start,
        recipe=recipe,
        changes=changes,
        validation_split=validation_split,
        on_error=on_error,
    )
    print(comparison.table(runs))
    if curves:
        with atomic_file(curves) as temporary:
            comparison.curves(runs).savefig(temporary)
    if picture:
        seconds = comparison.latency(runs, measure)
        with atomic_file(picture) as temporary:
            comparison.picture(runs, seconds, measure).savefig(temporary)
