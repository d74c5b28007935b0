"""The command line: `keras-coordatt COMMAND`, a thin layer over the package.

A command is a function that takes the parsed arguments; its options stand beside it
in `COMMANDS`. What the package raises about bad input is printed, without a
traceback.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

OUTPUTS = (".keras", ".weights.h5", ".safetensors")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv: The arguments, without the program's name. Defaults to those of the
            process.

    Returns:
        The exit status: 0, or 1 if the command failed. Arguments that can't be
        parsed end the process with 2, as argparse does.
    """
    parser = argparse.ArgumentParser(
        prog="keras-coordatt", description="Coordinate attention for Keras."
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, (command, add_options) in COMMANDS.items():
        options = commands.add_parser(name, help=command.__doc__.splitlines()[0])
        add_options(options)
        options.set_defaults(command=command)
    arguments = parser.parse_args(argv)
    try:
        arguments.command(arguments)
    except (ValueError, OSError) as error:
        print(f"keras-coordatt: error: {error}", file=sys.stderr)
        return 1
    return 0


def convert(arguments: argparse.Namespace) -> None:
    """Convert weights of a MobileNetV2CA to another format.

    The network is read from the input: from its configuration in a `.keras` or
    legacy `.h5` file, from the shapes in a file with the official PyTorch names. A
    `.weights.h5` file does not tell, so there the options do.
    """
    from keras_coordatt import weights
    from keras_coordatt.weights.files import written_whole

    source, output = arguments.input, arguments.output
    if not str(source).endswith(weights.FILE_TYPES):
        raise ValueError(
            f"IN must end in one of {weights.FILE_TYPES}. Received: {source}"
        )
    if not str(output).endswith(OUTPUTS):
        raise ValueError(f"OUT must end in one of {OUTPUTS}. Received: {output}")
    model = _network(arguments)
    if str(output).endswith(".safetensors"):
        weights.save_safetensors(model, output)
    else:
        with written_whole(output) as fresh:
            whole = str(output).endswith(".keras")
            (model.save if whole else model.save_weights)(fresh)
    print(f"{output}: {model.count_params():,} parameters, from {source}")


def _network(arguments):
    """The network that the input is of, with its weights."""
    import keras

    from keras_coordatt import MobileNetV2CA
    from keras_coordatt.weights.official import describe, load_torch, read_official

    source = arguments.input
    given = {
        name: value
        for name in ("alpha", "classes", "reduction")
        if (value := getattr(arguments, name)) is not None
    }
    if source.name.endswith((".pth", ".pt", ".safetensors")):
        arrays = read_official(source)
        model = MobileNetV2CA(**{**describe(arrays), **given, "weights": None})
        load_torch(model, arrays, adapt=False)
        return model
    if source.name.endswith(".weights.h5"):
        return MobileNetV2CA(weights=source, **given)
    return keras.saving.load_model(source, compile=False)


def _convert_options(parser):
    parser.add_argument("input", metavar="IN", type=pathlib.Path)
    parser.add_argument("output", metavar="OUT", type=pathlib.Path)
    parser.add_argument("--alpha", type=float, help="width of the network")
    parser.add_argument("--classes", type=int, help="number of classes")
    parser.add_argument("--reduction", type=int, help="reduction of the attention")


def weights(arguments: argparse.Namespace) -> None:
    """List the published weights.

    Each is printed with whether it is in the cache, and where it would be.
    """
    from keras_coordatt.weights.cache import cached_path, published_path
    from keras_coordatt.weights.catalog import CATALOG

    for name, record in CATALOG.items():
        cached = next(
            (p for p in (cached_path(name), published_path(name)) if p.exists()), None
        )
        print(
            f"{name}\n"
            f"  network   {record.network}, {record.classes} classes, "
            f"{record.input_size} x {record.input_size}\n"
            f"  accuracy  {record.top1} % top-1 on {record.dataset}\n"
            f"  licence   {record.license}\n"
            f"  url       {record.url}\n"
            f"  hash      {record.hash}\n"
            f"  cache     {cached or 'not downloaded yet'}"
        )


COMMANDS = {
    "convert": (convert, _convert_options),
    "weights": (weights, lambda parser: None),
}


if __name__ == "__main__":
    sys.exit(main())
