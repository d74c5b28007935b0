"""Metadata in exported files: labels, preprocessing, versions."""

import contextlib
import json
import os
import pathlib
import zipfile

import keras

from keras_coordatt.applications.blocks import channel_axis
from keras_coordatt.export.detections import DETECTIONS
from keras_coordatt.export.inference import suppression_of


def describe(format, model, image, labels):
    """Returns the metadata of a file, as `read_metadata` reads it.

    Raises:
        ValueError: If `labels` aren't one string per class.
    """
    import keras_coordatt

    if labels is not None:
        labels = list(labels)
        classes = _number_of_classes(model)
        wrong = classes is not None and len(labels) != classes
        if wrong or not all(isinstance(x, str) for x in labels):
            raise ValueError(
                "`labels` must be strings, one per class"
                f"{f', {classes} of them' if classes else ''}. Received: {labels}"
            )
    how = image.preprocessing
    return {
        "name": model.name,
        "format": format,
        "labels": labels,
        "preprocessing": how
        and {
            "input_size": image.size and list(image.size),
            "color": "RGB",
            "data_format": keras.config.image_data_format(),
            "interpolation": how.interpolation,
            "antialias": how.antialias,
            "scale": 255,
            "mean": list(how.mean),
            "std": list(how.std),
        },
        "versions": {
            "keras_coordatt": keras_coordatt.__version__,
            "keras": keras.__version__,
        },
    }


def _number_of_classes(model):
    """Number of classes of a classifier, detector or segmenter; else `None`."""
    outputs = model.output
    if isinstance(outputs, dict):
        if set(outputs) == {"boxes", "classes"}:  # logits, the background's first
            return outputs["classes"].shape[-1] - 1
        if set(outputs) == {"boxes", "scores"}:
            return outputs["scores"].shape[-1]
        suppression = suppression_of(model)
        if set(outputs) == DETECTIONS and suppression is not None:
            _, scores = keras.tree.flatten(suppression.input)  # after the boxes
            return scores.shape[-1]
    outputs = keras.tree.flatten(outputs)
    if len(outputs) == 1 and len(outputs[0].shape) == 2:
        return outputs[0].shape[-1]
    if len(outputs) == 1 and len(outputs[0].shape) == 4:
        size = list(outputs[0].shape[1:])
        classes = size.pop(channel_axis() - 1)
        images = list(model.input.shape[1:])
        images.pop(channel_axis() - 1)
        return classes if size == images and "float" in outputs[0].dtype else None
    return None


def read_metadata(path: str | os.PathLike) -> dict:
    """Reads the metadata of an exported file.

    Args:
        path: A file or folder that this module wrote.

    Returns:
        A dictionary: `"name"` of the model, `"format"`, `"labels"` (a list, or `None`),
        `"preprocessing"` (`None`, or `"input_size"`, `"color"`, `"data_format"`,
        `"interpolation"`, `"antialias"`, `"scale"`, `"mean"` and `"std"`: the input is
        `(image / scale - mean) / std`), `"versions"`, and for LiteRT `"precision"`.

    Raises:
        ValueError: If the file has no such metadata.
        OSError: If it can't be opened.

    Example:

    >>> read_metadata("flowers.tflite")["labels"]
    ['daisy', 'rose']
    """
    path = pathlib.Path(path)
    try:
        if path.is_dir():
            text = (path / "assets.extra" / "metadata.json").read_text("utf-8")
        elif path.suffix == ".onnx":
            return _read_onnx_metadata(path)
        else:
            with zipfile.ZipFile(path) as archive:
                text = archive.read("metadata.json")
        return json.loads(text)
    except (FileNotFoundError, KeyError, ValueError, zipfile.BadZipFile) as error:
        if not path.exists():
            raise
        raise ValueError(
            f"{os.fspath(path)!r} has no metadata of keras_coordatt."
        ) from error


@contextlib.contextmanager
def packages_for_onnx():
    try:
        yield
    except ImportError as error:
        raise ImportError(
            "An ONNX file needs more packages: pip install 'keras_coordatt[export]' "
            f"({error})"
        ) from error


def _read_onnx_metadata(path):
    with packages_for_onnx():
        import onnx
        from google.protobuf.message import DecodeError

        try:
            proto = onnx.load(path, load_external_data=False)
        except DecodeError as error:
            raise ValueError(str(error)) from error
    metadata = {x.key: x.value for x in proto.metadata_props}
    if "preprocessing" not in metadata:
        raise KeyError("preprocessing")
    return {key: json.loads(value) for key, value in metadata.items()}
