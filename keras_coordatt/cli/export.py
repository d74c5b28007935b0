"""`keras-coordatt export`: files for other runtimes."""

import dataclasses
import inspect
import pathlib

from keras_coordatt.applications.network_file import read_network
from keras_coordatt.cli.options import (
    Attention,
    OnError,
    Precision,
    PreprocessingName,
    Task,
    check_outputs,
    network_arguments,
    read_labels,
    read_preprocessing,
)
from keras_coordatt.detection import SSDLite
from keras_coordatt.export import WRITERS, saved_model
from keras_coordatt.export._litert import CALIBRATED
from keras_coordatt.export._saved_model import check_replaceable
from keras_coordatt.export.accuracy import AccuracyCheck
from keras_coordatt.files import atomic_file, atomic_folder, check_writable
from keras_coordatt.record import check_recorded_labels, record_of
from keras_coordatt.validation import check_number
from keras_coordatt.weights import FILE_TYPES
from keras_coordatt_command import quiet_stderr


def export(
    source: pathlib.Path,
    output: pathlib.Path,
    *,
    precision: Precision = "float32",
    data: str | None = None,
    split: str = "test",
    validation_split: float | None = None,
    on_error: OnError = "raise",
    max_drop: float | None = None,
    task: Task | None = None,
    labels: str | None = None,
    image_size: int | None = None,
    preprocessing: PreprocessingName | None = None,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    detector: bool = True,
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

    The network is read as by `convert`. The file is compared with it on drawn pictures,
    or on those of DATA if given. Then accuracy, average precision or mean IoU are
    measured too, of the network and of the file. For int8, the training images of DATA
    calibrate the ranges. The preprocessing of images is read from the network. If none
    is recorded, pass --preprocessing, or --mean and --std.

    Args:
        source: `.keras`, `.h5`, `.weights.h5`, `.pth`, `.pt` or `.safetensors` file.
        output: `.tflite` or `.onnx` file to write, or a folder for a SavedModel.
        precision: Precision of a `.tflite` file. `mixed` is int8, except for the few
            layers that must stay in float32 so that the results agree.
        data: Folder or file of labeled pictures, or TFDS name.
        split: Split of DATA to measure on.
        validation_split: Part of the training images that is the split `validation`, if
            DATA has none. The value of the training gives the same images, as long as
            none was added to DATA or removed.
        on_error: What to do with files of DATA that cannot be used.
        max_drop: Largest acceptable loss of accuracy, average precision or mean IoU,
            such as 0.01 for one percentage point. If it is exceeded, no file is written.
        task: What the network is for, if it does not record it and DATA is for several
            tasks.
        labels: UTF-8 file with one class name per line, if the network does not record
            them; or `data` if they are those of DATA, in the same order.
        image_size: Height and width, if the network takes images of any size.
        preprocessing: Preprocessing, if the network records none. imagenet: ImageNet's
            mean and standard deviation; raw: values in [0, 255]; tf: values in [-1, 1].
        mean: Mean per channel, of values in [0, 1].
        std: Standard deviation per channel.
        detector: Export boxes, labels and scores of an SSDLite, not its raw offsets,
            which have no average precision.
        score_threshold: Lowest score of a box that is kept.
        iou_threshold: Overlap above which a box is suppressed.
        max_detections: Highest number of boxes per image.
        suppression: Suppress overlapping boxes.
        alpha: Width multiplier of the network, if IN doesn't specify it.
        classes: Number of classes, if IN doesn't specify it.
        attention: Attention of the network, if IN doesn't specify it.
        reduction: Reduction of the attention, if IN doesn't specify it.
        top: Whether the network has its classifier.
    """
    if output.suffix in FILE_TYPES:
        raise ValueError(
            f"OUT must end in {' or '.join(WRITERS)}, or be the name of a folder. "
            f"Received: {output}"
        )
    labels_file = None if labels in (None, "data") else pathlib.Path(labels)
    is_file = output.suffix in WRITERS
    if is_file:
        check_outputs([("OUT", output)], [source, labels_file])
    else:
        check_replaceable(output)
        check_writable("OUT", output.parent)
    write = WRITERS.get(output.suffix, saved_model)
    parameters = inspect.signature(write).parameters
    if "precision" not in parameters and precision != "float32":
        raise ValueError(
            f"--precision is for OUT that ends in .tflite. Received: {output}"
        )
    if precision in CALIBRATED and data is None:
        raise ValueError(f"--precision {precision} needs --data")
    if max_drop is not None:
        check_number("--max-drop", max_drop, 0, 1, closed=True)
        if data is None:
            raise ValueError("--max-drop needs --data")
    prepared = read_preprocessing(preprocessing, mean, std)
    arguments = network_arguments(alpha, classes, attention, reduction, top)
    model = read_network(source, **arguments)
    detects = isinstance(model, SSDLite)
    raw = detects and not detector
    if raw and max_drop is not None:
        raise ValueError("--max-drop is not for raw offsets, of --no-detector")
    if detects and detector:
        model = model.detector(
            score_threshold, iou_threshold, max_detections, suppression
        )

    options: dict = {
        "preprocessing": prepared,
        "image_size": image_size,
        "precision": precision,
    }
    options = {name: x for name, x in options.items() if name in parameters}
    names = labels if labels_file is None else read_labels(labels_file)
    if isinstance(names, list):
        check_recorded_labels(names, record_of(model).labels, source.name)
        options["labels"] = names
    check = None
    if data is not None:
        check = AccuracyCheck(
            model,
            data,
            split=split,
            task="detection" if detects else task,
            labels=names,
            preprocessing=prepared,
            image_size=image_size,
            validation_split=validation_split,
            on_error=on_error,
        )
        options |= check.options(precision)
    change = None
    with (atomic_file if is_file else atomic_folder)(output) as temporary:
        with quiet_stderr():  # converters log there
            report = write(model, temporary, **options)
            file = check.open(temporary) if check and not raw else None
        if check and file:
            change = check.compare(file, max_drop)
    print(dataclasses.replace(report, path=output))
    if change:
        print(f"  {change}")
