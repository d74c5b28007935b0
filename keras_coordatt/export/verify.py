"""Comparison of an exported file with the Keras model that it was made from."""

import dataclasses
import pathlib

import keras
import numpy as np
from keras import ops

from keras_coordatt.applications.blocks import channel_axis

# By how much outputs may differ. In float32, of the range that they have over the
# images, and of their size, as there is rounding where they don't vary at all. Where
# weights or activations are rounded, the root mean square, of that of the outputs: what
# is past it is no rounding.
FLOAT_TOLERANCE = 1e-4
ROUNDING = 1e-5
SCORE_STEP = 1 / 256  # int8's, after a softmax or a sigmoid
TOLERANCES = {"float16": 0.02, "dynamic": 0.2, "int8": 0.5}
# Below this share of equal top-1 classes, the errors are listed by layer.
AGREEMENT = 0.99


@dataclasses.dataclass(frozen=True)
class LayerError:
    """How far one of an int8 network's tensors is from float32.

    Attributes:
        layer: The layer that gives it, and the operation in the layer.
        rms: Root mean square of the difference, which is that of the layers before too.
        share: The same, of the root mean square of what differs between images: at 1,
            nothing is left of that.
    """

    layer: str
    rms: float
    share: float


@dataclasses.dataclass(frozen=True)
class Report:
    """What an exported file was found to be.

    Attributes:
        path: Where it is.
        size: Its size in bytes.
        images: How many images it was compared with the Keras model on.
        difference: By output, the largest absolute difference.
        agreement: The share of these images, or of their pixels, with the same top-1
            class; or `None`, for random images, and for an output that is neither
            scores of classes nor maps of them of the images' size.
        float_tensors: Tensors of an int8 network that are not integers, apart from its
            inputs and outputs: none, if it is wholly int8.
        layers: If the agreement is below 99 %, the errors by layer, in their order.
    """

    path: pathlib.Path
    size: int
    images: int
    difference: dict[str, float]
    agreement: float | None = None
    float_tensors: tuple[str, ...] = ()
    layers: tuple[LayerError, ...] = ()

    def __str__(self):
        lines = [f"{self.path}: {self.size:,} bytes, compared on {self.images} images"]
        lines += [
            f"  {name}: largest difference {value:.1e}"
            for name, value in self.difference.items()
        ]
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


def to_numpy(outputs):
    return [ops.convert_to_numpy(x) for x in keras.tree.flatten(outputs)]


BATCH = 32


def reference_outputs(model, images):
    """Names of the model's outputs, and what it gives for the images."""
    batches = []
    # A GPU may multiply in lower precision.
    with keras.device("cpu:0"):
        for start in range(0, len(images), BATCH):
            outputs = model(images[start : start + BATCH], training=False)
            batches.append(to_numpy(outputs))
    if isinstance(outputs, dict):
        names = [str(name) for name in keras.tree.flatten({k: k for k in outputs})]
    else:
        names = list(getattr(model, "output_names", []))
    if len(set(names)) != len(batches[0]):
        names = [f"output_{i}" for i in range(len(batches[0]))]
    return names, [np.concatenate(x).astype("float32") for x in zip(*batches)]


def check_outputs(names, given, reference, what, precision="float32"):
    """The largest differences by output, if none is too large."""
    difference = {}
    for name, ours, theirs in zip(names, given, reference, strict=True):
        if ours.shape != theirs.shape:
            raise ValueError(
                f"{what} gives {name!r} in shape {ours.shape}, and the Keras model in "
                f"{theirs.shape}."
            )
        difference[name] = float(np.abs(ours - theirs).max())
        if precision == "float32":
            kind, size = "largest difference", difference[name]
            limit = FLOAT_TOLERANCE * np.ptp(theirs, axis=0).max()
            limit += ROUNDING * np.abs(theirs).max()
        else:
            kind, size = "root mean square difference", rms(ours - theirs)
            limit = TOLERANCES[precision] * rms(theirs)
            if precision == "int8" and 0 <= theirs.min() and theirs.max() <= 1:
                limit += SCORE_STEP
        if not size <= limit:  # nor if it is NaN
            raise ValueError(
                f"{what} does not give what the Keras model gives. The largest "
                f"difference of {name!r} is {difference[name]:.3g}. Its {kind} may be "
                f"{limit:.3g}, and is {size:.3g}."
            )
    return difference


def rms(x):
    return float(np.sqrt(np.mean(np.square(x))))


def top1_agreement(given, reference, image):
    """The share of images or pixels with the same top-1 class, if there are classes."""
    if len(reference) != 1:
        return None
    axis = channel_axis() if reference[0].ndim == 4 else 1
    *_, classes = shape = np.moveaxis(reference[0], axis, -1).shape
    if shape[1:-1] not in ((), image.size) or classes < 2:
        return None
    return float((given[0].argmax(axis) == reference[0].argmax(axis)).mean())
