"""Comparison of an exported file with the Keras model that it was made from."""

import dataclasses
import pathlib
import warnings

import keras
import numpy as np
from keras import ops

from keras_coordatt.applications.blocks import channel_axis
from keras_coordatt.export.detections import (
    DETECTIONS,
    compare_detections,
    count_detections,
    detection_agreement,
)
from keras_coordatt.export.inference import half_precision, suppression_of
from keras_coordatt.graph import input_and_output
from keras_coordatt.preprocessing import Preprocessing

# Tolerances. float32: of the range of the outputs over the images, plus rounding errors
# of their size for outputs that hardly vary. Half precision and quantized: RMS error
# relative to the RMS of the outputs; above it the export is broken.
FLOAT_TOLERANCE = 1e-4
ROUNDING = 1e-5
SCORE_STEP = 1 / 256  # of int8 scores, after a softmax or a sigmoid
TOLERANCES = {"float16": 0.02, "bfloat16": 0.1, "dynamic": 0.2, "int8": 0.5}

# Below this share of equal top-1 classes, the errors are listed by layer.
AGREEMENT = 0.99

BATCH = 32
# Pictures in which a detector may find objects to compare.
SCENES = 32


@dataclasses.dataclass(frozen=True)
class LayerError:
    """Error of one tensor of an int8 network, relative to float32.

    Attributes:
        layer: Name of the layer, and of the operation in it.
        rms: Root mean square of the error, including what earlier layers add to it.
        share: `rms` relative to the RMS of what differs between images. At 1, nothing
            of the signal is left.
    """

    layer: str
    rms: float
    share: float


@dataclasses.dataclass(frozen=True)
class Report:
    """Results of the checks of an exported file.

    Attributes:
        path: Path of the file.
        size: Its size in bytes.
        images: Number of images on which it was compared with the Keras model.
        difference: Largest absolute difference per output.
        preprocessing: The preprocessing in the file's metadata, or `None` if none is
            recorded on the model and none was given.
        agreement: Share of the images, or of their pixels, with the same top-1 class;
            `None` without `images`, and for outputs that aren't scores of classes, or
            maps of them of the images' size.
        detections: Number of detections that were compared, for a detector with
            suppression; else `None`. At 0, nothing was compared.
        float_tensors: Names of the tensors of an int8 network that aren't integers,
            apart from its inputs and outputs. Empty if it is fully int8.
        layers: Errors by layer, in their order, if the agreement is below 99 %.
    """

    path: pathlib.Path
    size: int
    images: int
    difference: dict[str, float]
    preprocessing: Preprocessing | None = None
    agreement: float | None = None
    detections: int | None = None
    float_tensors: tuple[str, ...] = ()
    layers: tuple[LayerError, ...] = ()

    def __str__(self):
        lines = [f"{self.path}: {self.size:,} bytes, compared on {self.images} images"]
        lines += [
            f"  {name}: largest difference {value:.1e}"
            for name, value in self.difference.items()
        ]
        if self.preprocessing is None:
            lines.append(
                "  preprocessing unknown: it is not recorded on the model, so the file "
                "has no metadata on it, and a SavedModel no `serve_images`"
            )
        if self.detections == 0:
            lines.append(f"  {NOTHING_COMPARED}")
        elif self.detections:
            lines.append(f"  {self.detections} detections compared, in any order")
        if self.agreement is not None:
            lines.append(f"  same top-1 class as the Keras model: {self.agreement:.2%}")
        if self.float_tensors:
            lines.append(f"  not in int8: {', '.join(self.float_tensors)}")
        if self.layers:
            lines.append("  largest errors by layer, of what differs between images:")
            largest = sorted(self.layers, key=lambda error: -error.share)[:20]
            lines += [
                f"    {error.share:7.1%}  {error.layer}"
                for error in self.layers
                if error in largest
            ]
        return "\n".join(lines)


NOTHING_COMPARED = (
    "no detection was compared: the model finds nothing in the test images. Pass "
    "`images` with objects"
)


class Reference:
    """Outputs of the user's model for test inputs, with which every file is compared.

    Args:
        model: The model as the user gave it, never a copy.
        image: Its `ImageInput`.
        images: Test inputs. Defaults to drawn pictures.

    Attributes:
        inputs: The test inputs.
        names: Names of the outputs.
        outputs: One array per output.
        detections: Number of detections, for a detector with suppression, or `None`.
    """

    def __init__(self, model, image, images=None):
        self.image, self.half = image, half_precision(model)
        self.suppression = suppression_of(model)
        groups = image.test_inputs() if images is None else [images]
        self.names = output_names(model)
        self.detects = self.suppression is not None and set(self.names) == DETECTIONS
        if self.detects and images is None:
            groups = _with_objects(model, image)
        self.inputs = np.concatenate(groups)
        self.outputs = model_outputs(model, self.inputs)
        ends = np.cumsum([len(group) for group in groups])
        self.groups = [slice(end - len(x), end) for x, end in zip(groups, ends)]
        self.detections = None
        if self.detects:
            self.detections = count_detections(self._named(self.outputs))

    def _named(self, outputs):
        return dict(zip(self.names, outputs))

    def agreement(self, given):
        """Returns the share of equal top-1 classes, or of detections in common.

        Args:
            given: A file's outputs for the first of the test inputs, or for all.

        Returns:
            A number from 0 to 1.

        Raises:
            ValueError: If the outputs are neither.
        """
        outputs = [x[: len(given[0])] for x in self.outputs]
        if self.detects:
            return detection_agreement(
                self._named(given),
                self._named(outputs),
                self.suppression.score_threshold,
            )
        agreement = top1_agreement(given, outputs, self.image)
        if agreement is None:
            raise ValueError(
                "mixed precision needs scores of classes, or detections after "
                f"suppression, to see whether they agree. Received: {self.names}"
            )
        return agreement

    def compare(self, given, what, precision="float32"):
        """Compares a file's outputs with the model's.

        Args:
            given: One array per output, in the order of `names`.
            what: The file, for messages.
            precision: Precision of the file.

        Returns:
            The largest absolute difference per output.

        Raises:
            ValueError: If one of them is too large.
        """
        if precision in ("float32", "float16"):
            precision = self.half or precision
        _check_shapes(self.names, given, self.outputs, what)
        if self.detects:
            if self.detections == 0:
                warnings.warn(f"{what}: {NOTHING_COMPARED}.", stacklevel=3)
            return compare_detections(
                self._named(given),
                self._named(self.outputs),
                what,
                precision,
                self.suppression.score_threshold,
            )
        difference = {}
        for name, ours, theirs in zip(self.names, given, self.outputs):
            parts = [(ours[group], theirs[group]) for group in self.groups]
            # Drawn inputs outside of the model's usual range may overflow in it.
            sound = [x for x in parts if np.isfinite(x[1]).all()]
            difference[name] = max(
                _check(name, *part, what, precision) for part in sound or parts
            )
        return difference


def _with_objects(model, image):
    """Returns the test inputs in which a detector finds the most, 4 at most."""
    inputs = np.concatenate(image.test_inputs(SCENES))
    outputs = dict(zip(output_names(model), model_outputs(model, inputs)))
    found = (outputs["labels"] >= 0).sum(axis=1)
    return [inputs[np.argsort(-found, kind="stable")[:4]]]


def to_numpy(outputs):
    return [ops.convert_to_numpy(x) for x in keras.tree.flatten(outputs)]


def output_names(model):
    _, outputs = input_and_output(model)
    if isinstance(outputs, dict):
        names = [str(name) for name in keras.tree.flatten({k: k for k in outputs})]
    else:
        names = list(getattr(model, "output_names", []))
    count = len(keras.tree.flatten(outputs))
    return names if len(set(names)) == count else [f"output_{i}" for i in range(count)]


def model_outputs(model, images):
    """Returns the values of the model's outputs for the images."""
    # Without compilation, because exported files aren't compiled by XLA either. In
    # batches of one on JAX, which compiles each operation for each batch size.
    size = 1 if keras.config.backend() == "jax" else BATCH
    batches = []
    # A GPU may multiply in lower precision.
    with keras.device("cpu:0"):
        for start in range(0, len(images), size):
            outputs = model(images[start : start + size], training=False)
            batches.append([_float32(x) for x in keras.tree.flatten(outputs)])
    return [np.concatenate(x) for x in zip(*batches)]


def _float32(x):
    return ops.convert_to_numpy(ops.cast(x, "float32"))


def _check_shapes(names, given, reference, what):
    for name, ours, theirs in zip(names, given, reference, strict=True):
        if ours.shape != theirs.shape:
            raise ValueError(
                f"{what} gives {name!r} in shape {ours.shape}, and the Keras model in "
                f"{theirs.shape}."
            )


def _check(name, ours, theirs, what, precision):
    """Returns the largest difference, or raises if the error is too large."""
    ours = ours.astype("float32")
    difference = float(np.abs(ours - theirs).max())
    if precision == "float32":
        kind, size = "largest difference", difference
        limit = FLOAT_TOLERANCE * np.ptp(theirs, axis=0).max()
        limit += ROUNDING * np.abs(theirs).max()
    else:
        kind, size = "root mean square difference", rms(ours - theirs)
        limit = TOLERANCES[precision] * rms(theirs)
        if precision == "int8" and 0 <= theirs.min() and theirs.max() <= 1:
            limit += SCORE_STEP
    if not size <= limit:  # also if it is NaN
        raise ValueError(
            f"The outputs of {what} differ from the Keras model's. The largest "
            f"difference of {name!r} is {difference:.3g}. Its {kind} may be "
            f"{limit:.3g}, and is {size:.3g}."
        )
    return difference


def rms(x):
    return float(np.sqrt(np.mean(np.square(x))))


def top1_agreement(given, reference, image):
    """Returns the share of images or pixels with the same top-1 class, or `None`."""
    if len(reference) != 1:
        return None
    axis = channel_axis() if reference[0].ndim == 4 else 1
    *_, classes = shape = np.moveaxis(reference[0], axis, -1).shape
    if shape[1:-1] not in ((), image.size) or classes < 2:
        return None
    return float((given[0].argmax(axis) == reference[0].argmax(axis)).mean())
