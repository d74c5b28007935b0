"""`keras-coordatt data`: contents and faults of a data set."""

import dataclasses
import json as json_lib
import pathlib

from keras_coordatt.cli.options import Task, check_outputs
from keras_coordatt.files import atomic_file


def data(
    data: str,
    *,
    task: Task | None = None,
    image_size: int = 320,
    validation_split: float | None = None,
    split_seed: int = 0,
    json: pathlib.Path | None = None,
) -> None:
    """Summarize a data set, and list its faults.

    Reads all files. For detection, compares the objects with the default boxes of
    SSDLite, and finds box_shapes that would fit.

    Args:
        data: Folder, CSV, JSON or YAML file, or TFDS name.
        task: Task, if the data set has data for several.
        image_size: Height and width of images in a detector, in pixels.
        validation_split: Part of train to use as validation, if there is none.
        split_seed: Determines this part.
        json: File to write the report to, as JSON.
    """
    from keras_coordatt.data import describe_data

    check_outputs([("--json", json)], [data])
    report = describe_data(
        data,
        task,
        image_size=image_size,
        validation_split=validation_split,
        split_seed=split_seed,
    )
    print(report)
    if json is not None:
        text = json_lib.dumps(dataclasses.asdict(report), indent=2)
        with atomic_file(json) as temporary:
            temporary.write_text(text, encoding="utf-8")
