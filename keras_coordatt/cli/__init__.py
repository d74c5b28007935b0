"""Command line of the package: `keras-coordatt COMMAND`.

A command is a module of this package: its docstring is the help text, `add_options`
declares its options, and `run` calls the package. Errors about the input are printed
in one line, without a traceback.
"""

import argparse
import sys
from collections.abc import Sequence

import keras_coordatt
from keras_coordatt.cli import ablation, benchmark, convert, export, train, weights

COMMANDS = {
    "convert": convert,
    "train": train,
    "ablation": ablation,
    "benchmark": benchmark,
    "export": export,
    "weights": weights,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv: The arguments, without the program's name. Defaults to those of the
            process.

    Returns:
        The exit status: 0, or 1 if the command failed. If the arguments can't be
        parsed, argparse ends the process with status 2.
    """
    arguments = vars(_parser().parse_args(argv))
    run = arguments.pop("run")
    try:
        run(**arguments)
    except (ValueError, TypeError, OSError, ImportError) as error:
        message = " ".join(str(error).split())
        print(f"keras-coordatt: error: {message}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="keras-coordatt", description="Coordinate attention for Keras."
    )
    parser.add_argument(
        "--version", action="version", version=keras_coordatt.__version__
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, module in COMMANDS.items():
        options = commands.add_parser(
            name,
            help=module.__doc__.splitlines()[0],
            description=module.__doc__,
            formatter_class=_HelpFormatter,
        )
        module.add_options(options)
        options.set_defaults(run=module.run)
    return parser


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the default of every option that has one."""

    def _get_help_string(self, action):
        if action.default is None or isinstance(action.default, bool):
            return action.help
        return super()._get_help_string(action)
