"""Options and checks shared by several commands."""

import argparse
import pathlib

DATA_HELP = "folder with train/<class>/ and test/<class>/, or TFDS name"


def attention(name: str) -> str | None:
    """Converts the name of an attention, as typed, to the builders' argument."""
    return None if name == "none" else name


def add_network_options(parser: argparse.ArgumentParser) -> None:
    """Adds IN, and the options that say which network it holds."""
    parser.add_argument(
        "source",
        metavar="IN",
        type=pathlib.Path,
        help=".keras, .h5, .weights.h5, .pth, .pt or .safetensors file",
    )
    # Options that aren't given are absent, because None is a valid attention.
    network = parser.add_argument_group(
        "network",
        "Defaults to what IN says, or to the defaults of MobileNetV2CA.",
        argument_default=argparse.SUPPRESS,
    )
    network.add_argument("--alpha", type=float, help="width multiplier")
    network.add_argument("--classes", type=int, help="number of classes")
    network.add_argument(
        "--attention",
        type=attention,
        help="coordinate, height, width, se, cbam or none",
    )
    network.add_argument("--reduction", type=int, help="reduction of the attention")
    network.add_argument(
        "--no-top", dest="include_top", action="store_false", help="no classifier"
    )


def check_not_a_folder(output: pathlib.Path) -> None:
    """Raises a ValueError if OUT, which must be a file, is a folder."""
    if output.is_dir():
        raise ValueError(f"OUT must be a file. Received a folder: {output}")
