"""`keras-coordatt predict`: classes, boxes or masks of pictures."""

import pathlib
from csv import DictWriter
from json import dumps

import keras

from keras_coordatt import prediction
from keras_coordatt.cli.options import (
    PictureOnError,
    PreprocessingName,
    Task,
    check_outputs,
    read_labels,
    read_preprocessing,
)
from keras_coordatt.files import atomic_file
from keras_coordatt.runnable import open_model
from keras_coordatt_command import quiet_stderr


def predict(
    model: pathlib.Path,
    images: list[str],
    *,
    top: int = 5,
    score_threshold: float = 0.5,
    csv: pathlib.Path | None = None,
    json: pathlib.Path | None = None,
    draw: pathlib.Path | None = None,
    task: Task | None = None,
    labels: pathlib.Path | None = None,
    image_size: int | None = None,
    preprocessing: PreprocessingName | None = None,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    on_error: PictureOnError = "raise",
    batch_size: int = 32,
) -> None:
    """Predict the classes, objects or masks of pictures.

    Pictures are read as a viewer shows them. Task, labels, preprocessing and image size
    are read from the model, or given by options if it does not record them.

    Args:
        model: `.keras`, `.tflite` or `.onnx` file, or the folder of a SavedModel.
        images: Pictures, folders of pictures at any depth, or glob patterns.
        top: Number of classes per picture, for classification.
        score_threshold: Minimum score of an object, for detection.
        csv: CSV file to write: one row per class, object or share of the picture.
        json: JSON file to write: one entry per picture.
        draw: Folder to write pictures to, with boxes or masks drawn on them.
        task: What the model is for.
        labels: UTF-8 file with one class name per line, in the order of the model's
            outputs.
        image_size: Height and width, if the model takes images of any size.
        preprocessing: Preprocessing by name. imagenet: ImageNet's mean and standard
            deviation; raw: values in [0, 255]; tf: values in [-1, 1].
        mean: Mean per channel, of values in [0, 1].
        std: Standard deviation per channel.
        on_error: What to do with pictures that cannot be read. They are named in one
            error; or with `skip` left out, and named at the end.
        batch_size: Pictures per call of the model.
    """
    pictures = prediction.find_pictures(images)
    names = _names(pictures, draw)
    drawn = [("--draw", path) for path in names.values()]
    check_outputs(
        [("--json", json), ("--csv", csv), *drawn], [model, labels, *pictures]
    )
    with quiet_stderr():  # LiteRT logs there
        runnable = open_model(
            model,
            task=task,
            labels=None if labels is None else read_labels(labels),
            preprocessing=read_preprocessing(preprocessing, mean, std),
            image_size=image_size,
            score_threshold=score_threshold,
        )
    if draw is not None and runnable.task == "classification":
        raise ValueError(
            "--draw is for boxes and masks, and this model is for classification. "
            f"Received: {draw}"
        )
    results = []
    for found in prediction.predictions(runnable, pictures, top, batch_size, on_error):
        print(found)
        results.append((found.as_dict(), found.rows()))
        if draw is not None:
            _draw(found, runnable.labels, names[found.file])
    if json is not None:
        with atomic_file(json) as temporary:
            content = dumps([x for x, _ in results], indent=1, ensure_ascii=False)
            temporary.write_text(content, "utf-8")
    if csv is not None:
        with atomic_file(csv) as temporary:
            _write_csv(temporary, [row for _, rows in results for row in rows])


def _names(pictures, folder):
    """Returns a file for each picture, numbered where several have the same name."""
    names, taken = {}, set()
    for picture in pictures if folder else ():
        name, count = picture.stem, 1
        while name in taken:
            count += 1
            name = f"{picture.stem}-{count}"
        taken.add(name)
        names[str(picture)] = folder / f"{name}.png"
    return names


def _draw(found, labels, output):
    from keras_coordatt.data.reading import read_image

    output.parent.mkdir(parents=True, exist_ok=True)
    drawn = prediction.draw(found, read_image(found.file), labels)
    keras.utils.save_img(output, drawn, "channels_last", scale=False)


def _write_csv(path, rows):
    columns = list(dict.fromkeys(key for row in rows for key in row)) or ["file"]
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
