"""Command line of the package: `keras-coordatt COMMAND`.

A command is a function with typed parameters and a docstring in Keras's form, from which
`keras_coordatt.cli.parser` derives its options. Errors about the input are printed in
one line, without a traceback.
"""

import os
import sys
from collections.abc import Callable, Sequence

import keras_coordatt
from keras_coordatt.cli import (
    benchmark,
    compare,
    convert,
    data,
    demo,
    evaluate,
    export,
    predict,
    train,
    weights,
)
from keras_coordatt.cli.parser import (
    CommandParser,
    add_command,
    config_first,
    first_choices,
    name_options,
)

COMMANDS: dict[str, Callable[..., None]] = {
    "data": data.data,
    "train": train.train,
    "evaluate": evaluate.evaluate,
    "predict": predict.predict,
    "export": export.export,
    "convert": convert.convert,
    "weights": weights.weights,
    "compare": compare.compare,
    "benchmark": benchmark.benchmark,
    "demo": demo.demo,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv: The arguments, without the program's name. Defaults to those of the
            process.

    Returns:
        The exit status: 0, 1 if the command failed, or 130 if it was interrupted. If the
        arguments can't be parsed, the process ends with status 2.
    """
    parser = CommandParser(
        prog="keras-coordatt", description="Coordinate attention for Keras."
    )
    parser.add_argument(
        "--version", action="version", version=keras_coordatt.__version__
    )
    commands = parser.add_subcommands(metavar="COMMAND")
    for name, function in COMMANDS.items():
        add_command(commands, name, function)
    arguments = parser.parse_args(config_first(sys.argv[1:] if argv is None else argv))
    function = COMMANDS[arguments.subcommand]
    options = {**first_choices(function), **vars(arguments[arguments.subcommand])}
    del options["config"]
    try:
        function(**options)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has closed the pipe, such as `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (
        ArithmeticError,
        ImportError,
        MemoryError,
        OSError,
        TypeError,
        ValueError,
    ) as error:
        message = " ".join(str(error).split())
        message = name_options(message, function, train.settable(options))
        print(f"keras-coordatt: error: {message}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print(f"keras-coordatt: interrupted. {stop}".strip(), file=sys.stderr)
        return 130
    return 0
