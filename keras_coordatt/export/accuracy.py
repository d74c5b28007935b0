"""Accuracy of a network on labeled pictures, against that of its exported file.

    check = AccuracyCheck(model, "photos", split="validation", validation_split=0.2)
    litert(model, "cats.tflite", precision="int8", **check.options("int8"))
    print(check.compare("cats.tflite", max_drop=0.01))

The command is `keras-coordatt export --data DATA --max-drop 0.01`.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import keras

from keras_coordatt.evaluation import check_split, evaluate, match_labels, read_examples
from keras_coordatt.export._litert import CALIBRATED
from keras_coordatt.preprocessing import Preprocessing
from keras_coordatt.record import record_of
from keras_coordatt.runnable import Runnable, open_model
from keras_coordatt.validation import check_number

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

__all__ = ["AccuracyChange", "AccuracyCheck"]

# Numbers of prepared images to compare outputs on, and to calibrate int8 with. They are
# reduced to fit into `IMAGE_BYTES`, but not below `MINIMUM`.
COMPARED = 1000
CALIBRATION = 300
MINIMUM = 32
IMAGE_BYTES = 2**29


@dataclasses.dataclass(frozen=True)
class AccuracyChange:
    """Main metric of a network and of its exported file.

    Attributes:
        metric: Name of the metric, such as `"top1"`, `"AP"` or `"mean_iou"`.
        before: Its value for the network.
        after: Its value for the file.
        images: Number of images.
        split: Split of the data.
    """

    metric: str
    before: float
    after: float
    images: int
    split: str

    @property
    def values(self) -> str:
        """The metric before and after, as text."""
        if self.metric.startswith("top"):
            name = f"top-{self.metric.removeprefix('top')}"
            return f"{name} {100 * self.before:.1f} % -> {100 * self.after:.1f} %"
        name = {"mean_iou": "mIoU"}.get(self.metric, self.metric)
        return f"{name} {self.before:.3f} -> {self.after:.3f}"

    def __str__(self):
        return f"{self.values}, on {self.images} images of {self.split!r}"


class AccuracyCheck:
    """Measures a network on labeled pictures, to compare exported files with it.

    Args:
        model: A `keras.Model`, as it will be exported.
        data: A folder or file that `keras_coordatt.data` reads, a TFDS name or a
            builder.
        split: Split of the data to measure on. Defaults to `"test"`.
        task: Task, if the model does not record it and the data is for several tasks.
        labels, preprocessing, image_size: Used where the model has no record. See
            `keras_coordatt.evaluation.evaluate`.
        validation_split, on_error: Same as in `keras_coordatt.data.load_classification`.

    Raises:
        ValueError: If an argument is invalid, something about the model is neither
            recorded nor given, or the data doesn't fit the model.
        ImportError: If a detector is measured without pycocotools.

    Example:

    >>> data = {"split": "validation", "validation_split": 0.5, "labels": "data"}
    >>> check = AccuracyCheck(model, "photos", **data)
    >>> report = saved_model(model, "cats", **check.options())
    >>> check.compare("cats", max_drop=0.01).metric
    'top1'
    """

    def __init__(
        self,
        model: keras.Model,
        data: str | os.PathLike | tfds.core.DatasetBuilder,
        *,
        split: str = "test",
        task: str | None = None,
        labels: Sequence[str] | str | None = None,
        preprocessing: Preprocessing | None = None,
        image_size: int | tuple[int, int] | None = None,
        validation_split: float | None = None,
        on_error: str = "raise",
    ):
        # Imported here, as it needs TensorFlow.
        from keras_coordatt.data import find_task, open_data, splits
        from keras_coordatt.data.opening import check_data

        check_data("data", data)
        task = record_of(model).task or task or find_task(data)
        self._data = open_data(
            data, task, on_error=on_error, validation_split=validation_split
        )
        check_split(split, self._data)
        self._split = split
        # Calibration must not see the pictures that the file is measured on.
        self._training = "train" if "train" in splits(self._data) else split
        opened = open_model(
            model,
            task=task,
            labels=None if isinstance(labels, str) else labels,
            preprocessing=preprocessing,
            image_size=image_size,
        )
        self._model, _ = match_labels(opened, self._data, labels)
        self._before = self._evaluate(self._model)

    def options(self, precision: str = "float32") -> dict:
        """Returns the arguments of `litert`, `onnx` and `saved_model` that need data.

        Args:
            precision: Same as in `litert`. For `"int8"` and `"mixed"`, images of
                `"train"` calibrate the ranges, if the data has that split.

        Returns:
            A dict of `labels`; of `images`, to compare outputs on; and of
            `representative`, if `precision` needs it.
        """
        options = {
            "labels": self._model.labels,
            "images": self._images(self._split, COMPARED),
        }
        if precision in CALIBRATED:
            options["representative"] = self._images(self._training, CALIBRATION)
        return options

    def open(self, path: str | os.PathLike) -> Runnable:
        """Opens an exported file with the settings of the network."""
        return open_model(
            path,
            task=self._model.task,
            preprocessing=self._model.preprocessing,
            image_size=self._model.image_size,
        )

    def compare(
        self, file: str | os.PathLike | Runnable, max_drop: float | None = None
    ) -> AccuracyChange:
        """Measures an exported file on the same pictures.

        Args:
            file: Path of the file, or the return value of `open`.
            max_drop: Largest acceptable loss of the main metric, such as 0.01 for one
                percentage point. Defaults to any.

        Returns:
            An `AccuracyChange`.

        Raises:
            ValueError: If the metric drops by more than `max_drop`.
        """
        if max_drop is not None:
            check_number("max_drop", max_drop, 0, 1, closed=True)
        after = self._evaluate(file if isinstance(file, Runnable) else self.open(file))
        before, name = self._before, self._before.main
        change = AccuracyChange(
            name, before.metrics[name], after.metrics[name], before.images, self._split
        )
        if max_drop is not None and not change.before - change.after <= max_drop:
            raise ValueError(
                f"`max_drop={max_drop}` is exceeded: {change.values}. "
                '`precision="mixed"`, float16 or more training images may help'
            )
        return change

    def _images(self, split, count):
        height, width = self._model.image_size
        count = max(MINIMUM, min(count, IMAGE_BYTES // (12 * height * width)))
        examples = read_examples(self._model, self._data, split).take(count)
        return self._model.prepare([x["image"] for x in examples.as_numpy_iterator()])

    def _evaluate(self, model):
        return evaluate(model, self._data, split=self._split, resamples=0)
