"""`keras-coordatt evaluate`: metrics of a model on labeled data."""

import pathlib
from json import dumps

from keras_coordatt import evaluation
from keras_coordatt.cli.options import (
    OnError,
    PreprocessingName,
    Task,
    check_outputs,
    read_labels,
    read_preprocessing,
)
from keras_coordatt.files import atomic_file
from keras_coordatt.runnable import open_model
from keras_coordatt_command import quiet_stderr


def evaluate(
    model: pathlib.Path,
    data: str,
    *,
    split: str = "test",
    validation_split: float | None = None,
    json: pathlib.Path | None = None,
    task: Task | None = None,
    labels: str | None = None,
    image_size: int | None = None,
    preprocessing: PreprocessingName | None = None,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    on_error: OnError = "raise",
    batch_size: int = 32,
    resamples: int = 500,
    confidence: float = 0.95,
    seed: int = 0,
) -> None:
    """Measure accuracy, average precision or mean IoU of a model on labeled data.

    Task, labels, preprocessing and image size are read from the model, or given by
    options if it does not record them. Each main metric has a bootstrap interval, from
    resampling the images.

    Args:
        model: `.keras`, `.tflite` or `.onnx` file, or the folder of a SavedModel.
        data: Folder or file of labeled pictures, or TFDS name.
        split: Split of DATA.
        validation_split: Part of the training images that is the split `validation`, if
            DATA has none. The value of the training gives the same images, as long as
            none was added to DATA or removed.
        json: File to write the report to, as JSON.
        task: What the model is for.
        labels: UTF-8 file with one class name per line, in the order of the model's
            outputs; or `data` if they are those of DATA, in the same order.
        image_size: Height and width, if the model takes images of any size.
        preprocessing: Preprocessing by name. imagenet: ImageNet's mean and standard
            deviation; raw: values in [0, 255]; tf: values in [-1, 1].
        mean: Mean per channel, of values in [0, 1].
        std: Standard deviation per channel.
        on_error: What to do with files that cannot be used.
        batch_size: Images per call of the model.
        resamples: Number of bootstrap samples; 0 for no intervals.
        confidence: Probability of the intervals.
        seed: Seed of the bootstrap.
    """
    file = None if labels in (None, "data") else pathlib.Path(labels)
    check_outputs([("--json", json)], [model, data, file])
    with quiet_stderr():  # LiteRT logs there
        runnable = open_model(
            model,
            task=task,
            labels=None if file is None else read_labels(file),
            preprocessing=read_preprocessing(preprocessing, mean, std),
            image_size=image_size,
            score_threshold=evaluation.SCORE_THRESHOLD,
        )
    report = evaluation.evaluate(
        runnable,
        data,
        split=split,
        labels="data" if labels == "data" else None,
        validation_split=validation_split,
        on_error=on_error,
        batch_size=batch_size,
        resamples=resamples,
        confidence=confidence,
        seed=seed,
    )
    if json is not None:
        with atomic_file(json) as temporary:
            temporary.write_text(dumps(report.as_dict(), indent=1), "utf-8")
    print(report)
