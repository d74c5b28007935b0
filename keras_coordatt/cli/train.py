"""Train a MobileNetV2CA from scratch, and test it once.

Run an interrupted training again to continue it after its last complete epoch.
"""

import argparse
import functools
import pathlib
import shutil

from keras_coordatt.applications import MobileNetV2CA
from keras_coordatt.cli.convert import check_output
from keras_coordatt.cli.options import DATA_HELP, attention
from keras_coordatt.training import OPTIMIZERS, train_classifier
from keras_coordatt.weights.network_file import OUTPUTS, save_network


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", metavar="DATA", help=DATA_HELP)
    parser.add_argument(
        "output",
        metavar="OUT",
        type=pathlib.Path,
        help=f"file to write, which ends in one of {', '.join(OUTPUTS)}",
    )
    parser.add_argument("--alpha", type=float, default=0.25, help="width multiplier")
    parser.add_argument(
        "--attention",
        default="coordinate",
        type=attention,
        help="coordinate, height, width, se, cbam or none",
    )
    parser.add_argument(
        "--image-size", type=int, default=64, help="height and width in pixels"
    )
    parser.add_argument(
        "--epochs", type=int, default=16, help="passes over the training images"
    )
    parser.add_argument("--batch-size", type=int, default=64, help="images per step")
    parser.add_argument("--optimizer", default="sgd", help=" or ".join(OPTIMIZERS))
    parser.add_argument(
        "--learning-rate", type=float, default=0.05, help="highest learning rate"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="makes the training repeatable"
    )


def run(output: pathlib.Path, alpha: float, attention: str | None, **settings) -> None:
    check_output(output)
    if output.suffix == ".safetensors" and attention in ("se", "cbam"):
        raise ValueError(
            "OUT can be .safetensors only with an attention that has official names. "
            f"Received: {output} with --attention {attention}"
        )
    backup_dir = output.with_name(f".{output.name}-backup")
    build = functools.partial(MobileNetV2CA, alpha=alpha, attention=attention)
    model, report = train_classifier(build, **settings, backup_dir=backup_dir)
    save_network(model, output)
    shutil.rmtree(backup_dir)
    print(
        f"{output}: {report['accuracy']:.2%} of the test images, "
        f"{report['parameters']:,} parameters, {report['seconds']} s"
    )
