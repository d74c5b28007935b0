"""`keras-coordatt train`: from a folder of pictures to a model."""

import functools
import pathlib
import shutil
from typing import Literal

from keras_coordatt.applications import MobileNetV2CA
from keras_coordatt.cli.convert import check_output
from keras_coordatt.cli.options import Attention
from keras_coordatt.training import train_classifier
from keras_coordatt.weights.network_file import save_network


def train(
    data: str,
    output: pathlib.Path,
    *,
    alpha: float = 0.25,
    attention: Attention = "coordinate",
    image_size: int = 64,
    epochs: int = 16,
    batch_size: int = 64,
    optimizer: Literal["sgd", "lamb"] = "sgd",
    learning_rate: float = 0.05,
    seed: int = 0,
) -> None:
    """Train a MobileNetV2CA from scratch, and test it once.

    Run an interrupted training again to continue it after its last complete epoch.

    Args:
        data: Folder with train/<class>/ and test/<class>/, or TFDS name.
        output: File to write: `.keras`, `.weights.h5` or `.safetensors`.
        alpha: Width multiplier.
        attention: Attention of the network.
        image_size: Height and width in pixels.
        epochs: Passes over the training images.
        batch_size: Images per step.
        optimizer: Optimizer.
        learning_rate: Highest learning rate.
        seed: Makes the training repeatable.
    """
    check_output(output)
    if output.suffix == ".safetensors" and attention in ("se", "cbam"):
        raise ValueError(
            "OUT can be .safetensors only with an attention that has official names. "
            f"Received: {output} with --attention {attention}"
        )
    backup_dir = output.with_name(f".{output.name}-backup")
    build = functools.partial(
        MobileNetV2CA,
        alpha=alpha,
        attention=None if attention == "none" else attention,
    )
    model, report = train_classifier(
        build,
        data,
        image_size=image_size,
        epochs=epochs,
        batch_size=batch_size,
        optimizer=optimizer,
        learning_rate=learning_rate,
        seed=seed,
        backup_dir=backup_dir,
    )
    save_network(model, output)
    shutil.rmtree(backup_dir)
    print(
        f"{output}: {report['accuracy']:.2%} of the test images, "
        f"{report['parameters']:,} parameters, {report['seconds']} s"
    )
