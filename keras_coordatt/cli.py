"""The command line: `keras-coordatt COMMAND`, a thin layer over the package.

A command is a function that takes the parsed arguments; its options stand beside it
in `COMMANDS`. What the package raises about bad input is printed, without a
traceback.
"""

import argparse
import importlib.util
import pathlib
import shutil
import statistics
import sys
import textwrap
import zipfile
from collections.abc import Sequence

# As in `keras_coordatt.benchmark`, which would take long to import for `--help`.
MEASURES = (
    *("litert_float32_1", "litert_float32_2", "litert_int8_1", "litert_int8_2"),
    *("graph_1", "graph_16", "train_32"),
)
NETWORK_OPTIONS = ("alpha", "classes", "attention", "reduction", "include_top")
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
        text = command.__doc__
        options = commands.add_parser(name, help=text.splitlines()[0], description=text)
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
    output = arguments.output
    _check_output(output)
    model = _network(arguments)
    _save(model, output)
    print(f"{output}: {model.count_params():,} parameters, from {arguments.input}")


def _check_output(output):
    if not str(output).endswith(OUTPUTS):
        raise ValueError(f"OUT must end in one of {OUTPUTS}. Received: {output}")
    _check_no_folder(output)


def _check_no_folder(output):
    if output.is_dir():
        raise ValueError(f"OUT must be a file. Received a folder: {output}")


def _save(model, output):
    from keras_coordatt.files import atomic_file
    from keras_coordatt.weights import save_safetensors

    output.parent.mkdir(parents=True, exist_ok=True)
    if str(output).endswith(".safetensors"):
        save_safetensors(model, output)
    else:
        with atomic_file(output) as fresh:
            whole = str(output).endswith(".keras")
            (model.save if whole else model.save_weights)(fresh)


def _network(arguments):
    """The network that the input is of, with its weights."""
    from keras_coordatt import MobileNetV2CA
    from keras_coordatt.applications.mobilenet_v2_names import arguments_of
    from keras_coordatt.weights import FILE_TYPES, load_weights
    from keras_coordatt.weights.loading import OFFICIAL
    from keras_coordatt.weights.official import read_official

    source = arguments.input
    if not source.name.endswith(FILE_TYPES):
        raise ValueError(f"IN must end in one of {FILE_TYPES}. Received: {source}")
    given = {k: v for k, v in vars(arguments).items() if k in NETWORK_OPTIONS}
    if not source.name.endswith((*OFFICIAL, ".weights.h5")):
        if given:
            raise ValueError(
                f"{source.name} tells the network itself; leave out the options. "
                f"Received: {given}"
            )
        return _keras_network(source)
    if source.name.endswith(OFFICIAL):
        given = arguments_of(read_official(source), repr(str(source))) | given
    model = MobileNetV2CA(weights=None, **given)
    load_weights(model, source)
    return model


def _keras_network(source):
    """A network that Keras saved with its configuration, which may be any."""
    import keras

    from keras_coordatt.weights.matching import ExpectedWeight, match_arrays

    with open(source, "rb") as file:
        if source.suffix == ".keras" and not zipfile.is_zipfile(file):
            raise ValueError(
                f"Cannot read {str(source)!r}: it is truncated, damaged, or no .keras "
                "archive."
            )
    try:
        model = keras.saving.load_model(source, compile=False)
    except Exception as error:  # Keras checks little, so it may be any
        problem = textwrap.shorten(f"{type(error).__name__}: {error}", 500)
        raise ValueError(
            f"Cannot read {str(source)!r}: its configuration or its weights are "
            f"damaged, or not known here ({problem})."
        ) from error
    if not isinstance(model, keras.Model) or not model.built:
        raise ValueError(f"{str(source)!r} must hold a built model. Received: {model}")
    # Keras has compared the shapes, by names that are not ours to know. It takes what
    # is no number without a word.
    arrays = {
        f"{weight.path} ({i})": keras.ops.convert_to_numpy(
            keras.ops.cast(weight, "float32")
        )
        for i, weight in enumerate(model.weights)
    }
    slots = [ExpectedWeight(name, array.shape) for name, array in arrays.items()]
    match_arrays(slots, arrays, head=(), source=repr(str(source)), target=model.name)
    return model


def _convert_options(parser):
    parser.add_argument("input", metavar="IN", type=pathlib.Path)
    parser.add_argument("output", metavar="OUT", type=pathlib.Path)
    # What is not given is absent: None is an attention.
    network = parser.add_argument_group("network", argument_default=argparse.SUPPRESS)
    network.add_argument("--alpha", type=float, help="its width")
    network.add_argument("--classes", type=int, help="number of classes")
    network.add_argument(
        "--attention", type=_attention, help="coordinate, height, width, se, cbam, none"
    )
    network.add_argument("--reduction", type=int, help="reduction of the attention")
    network.add_argument(
        "--no-top", dest="include_top", action="store_false", help="no classifier"
    )


def train(arguments: argparse.Namespace) -> None:
    """Train a MobileNetV2CA from scratch, and test it once.

    An interrupted training goes on when it is started again.
    """
    import functools

    from keras_coordatt import MobileNetV2CA
    from keras_coordatt.training import train_classifier

    options = vars(arguments).copy()
    del options["command"]
    output = options.pop("output")
    _check_output(output)
    if output.suffix == ".safetensors" and arguments.attention in ("se", "cbam"):
        raise ValueError(
            "OUT can be .safetensors only with the attentions of the official names. "
            f"Received: {output} with --attention {arguments.attention}"
        )
    backup_dir = output.with_name(f".{output.name}-backup")
    _check_backup(backup_dir, options)
    build = functools.partial(
        MobileNetV2CA, **{name: options.pop(name) for name in ("alpha", "attention")}
    )
    model, report = train_classifier(build, **options, backup_dir=backup_dir)
    _save(model, output)
    shutil.rmtree(backup_dir)
    print(
        f"{output}: {report['accuracy']:.2%} of the test images, "
        f"{report['parameters']:,} parameters, {report['seconds']} s"
    )


def _check_backup(backup_dir, options):
    """Notes the options of a training, or raises if a backup is of another one."""
    import json

    noted, options = backup_dir / "options.json", json.dumps(options)
    if noted.exists() and noted.read_text() != options:
        raise ValueError(
            f"{backup_dir} has another training that was interrupted. Go on with its "
            f"options, {noted.read_text()}, delete it, or choose another OUT. "
            f"Received: {options}"
        )
    backup_dir.mkdir(parents=True, exist_ok=True)
    noted.write_text(options)


def _train_options(parser):
    parser.add_argument("data", metavar="DATA", help="a folder, or a TFDS name")
    parser.add_argument("output", metavar="OUT", type=pathlib.Path)
    parser.add_argument("--alpha", type=float, default=0.25)
    parser.add_argument("--attention", default="coordinate", type=_attention)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--optimizer", default="sgd", help="sgd or lamb")
    parser.add_argument("--learning-rate", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)


def export(arguments: argparse.Namespace) -> None:
    """Export a network as SavedModel, LiteRT or ONNX.

    OUT ends in `.tflite` or `.onnx`, or is the name of a folder. The network is read as
    by `convert`. The file is compared with it: LiteRT on the test images of DATA if
    that is given, and else on random ones. For int8, the training images of DATA tell
    the ranges.
    """
    from keras_coordatt import export as formats

    output, suffix = arguments.output, arguments.output.suffix
    if suffix in (*OUTPUTS, ".h5", ".pth", ".pt"):
        raise ValueError(
            "OUT must end in .tflite or .onnx, or be the name of a folder. "
            f"Received: {output}"
        )
    if suffix in (".tflite", ".onnx"):
        _check_no_folder(output)
    if suffix != ".tflite" and arguments.precision != "float32":
        raise ValueError(
            f"--precision is for OUT that ends in .tflite. Received: {output}"
        )
    if arguments.precision == "int8" and arguments.data is None:
        raise ValueError("--precision int8 needs --data")
    model = _network(arguments)

    options = {}
    if suffix in (".tflite", ".onnx"):
        options["image_size"] = arguments.image_size
    if suffix == ".tflite":
        options["precision"] = arguments.precision
        if arguments.data is not None:
            options |= _export_data(arguments, model)
    if arguments.labels is not None:
        options["labels"] = arguments.labels.read_text().splitlines()
    writers = {".tflite": formats.litert, ".onnx": formats.onnx}
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        report = writers.get(suffix, formats.saved_model)(model, output, **options)
    except ImportError as error:
        raise ValueError(str(error)) from error
    print(report)


def _export_data(arguments, model):
    """Images to measure ranges and to compare on, and the names of the classes."""
    import keras

    from keras_coordatt.data import ClassFolder, load_classification
    from keras_coordatt.data.classification import open_images
    from keras_coordatt.export import preprocessing_of

    first = keras.config.image_data_format() == "channels_first"
    size = model.input_shape[2:] if first else model.input_shape[1:3]
    if None in size:
        if arguments.image_size is None:
            raise ValueError("--data needs --image-size: the network takes any size")
        size = arguments.image_size
    builder = open_images(arguments.data)

    def images(split, count):
        dataset = load_classification(
            builder, split, size, 1, preprocess=preprocessing_of(model).normalize
        )
        return dataset.take(count)

    found = {"images": images("test", 1000)}
    if arguments.precision == "int8":
        found["representative"] = images("train", 300)
    if isinstance(builder, ClassFolder):
        found["labels"] = builder.info.features["label"].names
    return found


def _export_options(parser):
    _convert_options(parser)
    parser.add_argument(
        "--precision",
        choices=("float32", "float16", "dynamic", "int8"),
        default="float32",
        help="of a .tflite file",
    )
    parser.add_argument(
        "--data", metavar="DATA", help="a folder with train/ and test/, or a TFDS name"
    )
    parser.add_argument(
        "--labels", type=pathlib.Path, help="a file with a class name a line"
    )
    parser.add_argument(
        "--image-size", type=int, help="of a network that takes any size"
    )


def weights(arguments: argparse.Namespace) -> None:
    """List the published weights.

    Each is printed with whether it is in the cache, and where it would be.
    """
    from keras_coordatt.weights.cache import cached_path, published_path
    from keras_coordatt.weights.catalog import CATALOG

    for name, record in CATALOG.items():
        if record.url is None:
            place = f"  training  {record.training}\n  file      in the package"
        else:
            paths = cached_path(name), published_path(name)
            cached = next((path for path in paths if path.exists()), None)
            place = (
                f"  url       {record.url}\n"
                f"  cache     {cached or 'not downloaded yet'}"
            )
        print(
            f"{name}\n"
            f'  network   {record.network}, weights="{record.weights}", '
            f"{record.arguments}, {record.classes} classes, "
            f"{record.input_size} x {record.input_size}\n"
            f"  accuracy  {record.top1} % top-1 on {record.dataset}\n"
            f"  licence   {record.license}\n"
            f"  hash      {record.hash}\n"
            f"{place}"
        )


def ablation(arguments: argparse.Namespace) -> None:
    """Train MobileNetV2 with each attention, and compare.

    A line of JSON a run is added to the output as it ends. What is in it already is not
    run again.
    """
    from keras_coordatt.ablation import ablation, table

    options = vars(arguments).copy()
    del options["command"]
    print(table(ablation(**options)))


def _ablation_options(parser):
    parser.add_argument("data", metavar="DATA", help="a folder, or a TFDS name")
    parser.add_argument("--output", default="runs/ablation.jsonl")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--image-size", type=int, default=48)
    parser.add_argument("--alpha", type=float, default=0.25)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=0.05)


def benchmark(arguments: argparse.Namespace) -> None:
    """Measure speed, size and memory against no attention.

    All networks are timed in turns in one run.
    """
    import json

    from keras_coordatt.benchmark import (
        REFERENCES,
        benchmark,
        build_times,
        check_official,
        official_rows,
        picture,
        table,
    )
    from keras_coordatt.files import atomic_file

    # What can't be done is said before, not after all was measured.
    if arguments.official:
        check_official(arguments.official)
    if arguments.picture and importlib.util.find_spec("matplotlib") is None:
        raise ValueError("--picture needs matplotlib: pip install matplotlib")
    for path in (arguments.json, arguments.picture):
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)

    rows = benchmark(
        arguments.models,
        arguments.attentions,
        image_size=arguments.image_size,
        alpha=arguments.alpha,
        measures=arguments.measures,
        rounds=arguments.rounds,
        memory=arguments.memory,
        extra=REFERENCES if arguments.references else None,
    )
    print(table(rows))
    official = []
    if arguments.official:
        official = official_rows(arguments.official)
        print(f"\n{table(official)}")
    if arguments.build:
        for name, ratios in build_times().items():
            print(
                f"\n{name}: built in {statistics.median(ratios):.2f} times what "
                f"Keras's plain network takes ({min(ratios):.2f} to {max(ratios):.2f})"
            )
    if arguments.json:
        with atomic_file(arguments.json) as fresh:
            fresh.write_text(json.dumps(rows + official, indent=1) + "\n")
    if arguments.picture:
        with atomic_file(arguments.picture) as fresh:
            picture(rows, fresh, arguments.measures[0])


def _benchmark_options(parser):
    parser.add_argument("--models", nargs="+", default=["MobileNetV2CA"])
    parser.add_argument(
        "--attentions", nargs="+", default=["se", "coordinate"], type=_attention
    )
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--alpha", type=float, default=1.0)
    parser.add_argument("--measures", nargs="+", default=list(MEASURES))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument(
        "--references",
        action="store_true",
        help="the layer as it is usually written too, and its passes only",
    )
    parser.add_argument("--build", action="store_true", help="time to build, too")
    parser.add_argument(
        "--official", type=pathlib.Path, help="folder of your copy of the authors' code"
    )
    parser.add_argument("--json", type=pathlib.Path, help="file for the figures")
    parser.add_argument("--picture", type=pathlib.Path, help="file for a picture")


def _attention(name):
    return None if name == "none" else name


COMMANDS = {
    "convert": (convert, _convert_options),
    "train": (train, _train_options),
    "ablation": (ablation, _ablation_options),
    "benchmark": (benchmark, _benchmark_options),
    "export": (export, _export_options),
    "weights": (weights, lambda parser: None),
}


if __name__ == "__main__":
    sys.exit(main())
