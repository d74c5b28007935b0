"""`keras-coordatt export`: files for other runtimes."""

import pathlib
from typing import Literal

import keras

from keras_coordatt import export as writers
from keras_coordatt.cli.options import (
    Attention,
    PreprocessingName,
    check_not_a_folder,
    network_arguments,
    read_labels,
    read_preprocessing,
)
from keras_coordatt.detection import SSDLite
from keras_coordatt.preprocessing import preprocessing_of
from keras_coordatt.weights import FILE_TYPES
from keras_coordatt.weights.network_file import read_network


def export(
    source: pathlib.Path,
    output: pathlib.Path,
    *,
    precision: Literal["float32", "float16", "dynamic", "int8"] = "float32",
    data: str | None = None,
    labels: pathlib.Path | None = None,
    image_size: int | None = None,
    preprocessing: PreprocessingName | None = None,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    detector: bool = False,
    score_threshold: float = 0.05,
    iou_threshold: float = 0.5,
    max_detections: int = 100,
    suppression: bool = True,
    alpha: float | None = None,
    classes: int | None = None,
    attention: Attention | None = None,
    reduction: int | None = None,
    top: bool = True,
) -> None:
    """Export a network as SavedModel, LiteRT or ONNX.

    The network is read as by `convert`. The file is compared with it: LiteRT on the
    test images of DATA if given, otherwise on drawn ones. For int8, the training images
    of DATA calibrate the ranges. How images are prepared is read from the network. If
    that does not record it, say it by --preprocessing, or by --mean and --std.

    Args:
        source: `.keras`, `.h5`, `.weights.h5`, `.pth`, `.pt` or `.safetensors` file.
        output: `.tflite` or `.onnx` file to write, or a folder for a SavedModel.
        precision: Precision of a `.tflite` file.
        data: Folder with train/<class>/ and test/<class>/, or TFDS name.
        labels: UTF-8 file with one class name per line.
        image_size: Height and width, if the network takes images of any size.
        preprocessing: What the network does not record. imagenet: ImageNet's mean and
            standard deviation; raw: values in [0, 255]; tf: values in [-1, 1].
        mean: Mean per channel, of values in [0, 1].
        std: Standard deviation per channel.
        detector: Export boxes, labels and scores of an SSDLite, not its raw offsets.
        score_threshold: Lowest score of a box that is kept, with --detector.
        iou_threshold: Overlap above which a box is suppressed, with --detector.
        max_detections: Highest number of boxes per image, with --detector.
        suppression: Suppress overlapping boxes, with --detector.
        alpha: Width multiplier of the network, if IN doesn't tell it.
        classes: Number of classes, if IN doesn't tell it.
        attention: Attention of the network, if IN doesn't tell it.
        reduction: Reduction of the attention, if IN doesn't tell it.
        top: Whether the network has its classifier.
    """
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
    prepared = read_preprocessing(preprocessing, mean, std)
    arguments = network_arguments(alpha, classes, attention, reduction, top)
    model = read_network(source, **arguments)
    if detector:
        if not isinstance(model, SSDLite):
            raise ValueError(f"--detector needs an SSDLite. Received: {model.name}")
        model = model.detector(
            score_threshold, iou_threshold, max_detections, suppression
        )

    options = {"preprocessing": prepared}
    if suffix in (".tflite", ".onnx"):
        options["image_size"] = image_size
    if suffix == ".tflite":
        options["precision"] = precision
        if data is not None:
            options |= _data_options(
                model, data, image_size, precision, prepared, detector
            )
    if labels is not None:
        options["labels"] = read_labels(labels)
    write = {".tflite": writers.litert, ".onnx": writers.onnx}
    output.parent.mkdir(parents=True, exist_ok=True)
    print(write.get(suffix, writers.saved_model)(model, output, **options))


def _data_options(model, data, image_size, precision, preprocessing, detector):
    """Images to calibrate and to compare on, and the names of the classes."""
    from keras_coordatt.data import (
        ClassFolder,
        load_classification,
        load_detection,
        open_data,
    )

    first = keras.config.image_data_format() == "channels_first"
    size = model.input_shape[2:] if first else model.input_shape[1:3]
    if None in size:
        if image_size is None:
            raise ValueError("--data needs --image-size: the network takes any size")
        size = image_size
    preprocessing = preprocessing or preprocessing_of(model)
    if preprocessing is None:
        raise ValueError(
            "--data needs to know how images are prepared, and the network does not "
            "record it: say it by --preprocessing, or by --mean and --std. "
            f"Received: {model.name}"
        )
    load = load_detection if detector else load_classification
    builder = data if detector else open_data(data, "classification")

    def images(split, count):
        dataset = load(builder, split, size, 1, preprocess=preprocessing.normalize)
        return dataset.take(count)

    options = {"images": images("test", 1000)}
    if precision == "int8":
        options["representative"] = images("train", 300)
    if isinstance(builder, ClassFolder):
        options["labels"] = builder.info.features["label"].names
    return options
