"""Train MobileNetV2 with each attention, and compare.

One line of JSON per run is added to the output when the run ends. Runs that are already
in it are not repeated.
"""

import argparse

from keras_coordatt.ablation import ablation, table
from keras_coordatt.cli.options import DATA_HELP


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", metavar="DATA", help=DATA_HELP)
    parser.add_argument("--output", default="runs/ablation.jsonl", help="file of runs")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2], help="one run for each"
    )
    parser.add_argument("--steps", type=int, default=400, help="training steps per run")
    parser.add_argument(
        "--image-size", type=int, default=48, help="height and width in pixels"
    )
    parser.add_argument("--alpha", type=float, default=0.25, help="width multiplier")
    parser.add_argument("--batch-size", type=int, default=64, help="images per step")
    parser.add_argument(
        "--learning-rate", type=float, default=0.05, help="highest learning rate"
    )


def run(**options) -> None:
    print(table(ablation(**options)))
