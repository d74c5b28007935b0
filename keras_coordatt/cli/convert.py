"""Convert weights of a MobileNetV2CA to another format.

The network is read from IN: from the configuration in a `.keras` or legacy `.h5` file,
or from the shapes in a file with the official PyTorch names. A `.weights.h5` file has
neither, so describe its network with the options.
"""

import argparse
import pathlib

from keras_coordatt.cli.options import add_network_options, check_not_a_folder
from keras_coordatt.weights.network_file import OUTPUTS, read_network, save_network


def add_options(parser: argparse.ArgumentParser) -> None:
    add_network_options(parser)
    parser.add_argument(
        "output",
        metavar="OUT",
        type=pathlib.Path,
        help=f"file to write, which ends in one of {', '.join(OUTPUTS)}",
    )


def run(source: pathlib.Path, output: pathlib.Path, **network) -> None:
    check_output(output)
    model = read_network(source, **network)
    save_network(model, output)
    print(f"{output}: {model.count_params():,} parameters, from {source}")


def check_output(output: pathlib.Path) -> None:
    """Raises a ValueError unless OUT is a file that a network can be saved to."""
    if not str(output).endswith(OUTPUTS):
        raise ValueError(f"OUT must end in one of {OUTPUTS}. Received: {output}")
    check_not_a_folder(output)
