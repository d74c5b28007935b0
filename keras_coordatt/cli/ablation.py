"""`keras-coordatt ablation`: accuracy by attention and seed."""

from keras_coordatt import ablation as runs


def ablation(
    data: str,
    *,
    output: str = "runs/ablation.jsonl",
    seeds: tuple[int, ...] = (0, 1, 2),
    steps: int = 400,
    image_size: int = 48,
    alpha: float = 0.25,
    batch_size: int = 64,
    learning_rate: float = 0.05,
) -> None:
    """Train MobileNetV2 with each attention, and compare.

    One line of JSON per run is added to the output when the run ends. Runs that are
    already in it are not repeated.

    Args:
        data: Folder with train/<class>/ and test/<class>/, or TFDS name.
        output: File of runs.
        seeds: One run for each.
        steps: Training steps per run.
        image_size: Height and width in pixels.
        alpha: Width multiplier.
        batch_size: Images per step.
        learning_rate: Highest learning rate.
    """
    results = runs.ablation(
        data,
        output,
        seeds=seeds,
        steps=steps,
        image_size=image_size,
        alpha=alpha,
        batch_size=batch_size,
        learning_rate=learning_rate,
    )
    print(runs.table(results))
