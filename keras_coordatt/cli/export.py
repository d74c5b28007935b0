"""Export a network as SavedModel, LiteRT or ONNX.

OUT ends in `.tflite` or `.onnx`, or is the name of a folder. The network is read as by
`convert`. The file is compared with it: LiteRT on the test images of DATA if given,
otherwise on random ones. For int8, the training images of DATA calibrate the ranges.
"""

import argparse
import pathlib

import keras

from keras_coordatt import export as writers
from keras_coordatt.cli.options import (
    DATA_HELP,
    add_network_options,
    check_not_a_folder,
)
from keras_coordatt.preprocessing import preprocessing_of
from keras_coordatt.weights import FILE_TYPES
from keras_coordatt.weights.network_file import read_network


def add_options(parser: argparse.ArgumentParser) -> None:
    add_network_options(parser)
    parser.add_argument(
        "output",
        metavar="OUT",
        type=pathlib.Path,
        help=".tflite or .onnx file to write, or a folder for a SavedModel",
    )
    parser.add_argument(
        "--precision",
        choices=("float32", "float16", "dynamic", "int8"),
        default="float32",
        help="precision of a .tflite file",
    )
    parser.add_argument("--data", metavar="DATA", help=DATA_HELP)
    parser.add_argument(
        "--labels", type=pathlib.Path, help="UTF-8 file with one class name per line"
    )
    parser.add_argument(
        "--image-size",
        type=int,
        help="height and width, if the network takes images of any size",
    )


def run(
    source: pathlib.Path,
    output: pathlib.Path,
    precision: str,
    data: str | None,
    labels: pathlib.Path | None,
    image_size: int | None,
    **network,
) -> None:
    suffix = output.suffix
    if suffix in FILE_TYPES:
        raise ValueError(
            "OUT must end in .tflite or .onnx, or be the name of a folder. "
            f"Received: {output}"
        )
    if suffix in (".tflite", ".onnx"):
        check_not_a_folder(output)
    if suffix != ".tflite" and precision != "float32":
        raise ValueError(
            f"--precision is for OUT that ends in .tflite. Received: {output}"
        )
    if precision == "int8" and data is None:
        raise ValueError("--precision int8 needs --data")
    model = read_network(source, **network)

    options = {}
    if suffix in (".tflite", ".onnx"):
        options["image_size"] = image_size
    if suffix == ".tflite":
        options["precision"] = precision
        if data is not None:
            options |= _data_options(model, data, image_size, precision)
    if labels is not None:
        options["labels"] = labels.read_text(encoding="utf-8-sig").splitlines()
    write = {".tflite": writers.litert, ".onnx": writers.onnx}
    output.parent.mkdir(parents=True, exist_ok=True)
    print(write.get(suffix, writers.saved_model)(model, output, **options))


def _data_options(model, data, image_size, precision):
    """Images to calibrate and to compare on, and the names of the classes."""
    from keras_coordatt.data import ClassFolder, load_classification
    from keras_coordatt.data.classification import open_images

    first = keras.config.image_data_format() == "channels_first"
    size = model.input_shape[2:] if first else model.input_shape[1:3]
    if None in size:
        if image_size is None:
            raise ValueError("--data needs --image-size: the network takes any size")
        size = image_size
    preprocessing = preprocessing_of(model)
    if preprocessing is None:
        raise ValueError(
            "--data needs a network that records its preprocessing, as those of this "
            f"package do. Received: {model.name}"
        )
    builder = open_images(data)

    def images(split, count):
        dataset = load_classification(
            builder, split, size, 1, preprocess=preprocessing.normalize
        )
        return dataset.take(count)

    options = {"images": images("test", 1000)}
    if precision == "int8":
        options["representative"] = images("train", 300)
    if isinstance(builder, ClassFolder):
        options["labels"] = builder.info.features["label"].names
    return options
