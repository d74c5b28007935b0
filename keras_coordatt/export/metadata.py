"""Metadata in exported files: labels, preprocessing, versions."""

import contextlib
import json
import os
import pathlib
import zipfile

import keras

from keras_coordatt.extras import install_hint
from keras_coordatt.record import check_labels, classes_of, record_of
from keras_coordatt.validation import check_path


def describe(format, model, image, labels):
    """Returns the metadata of a file, as `read_metadata` reads it.

    Raises:
        ValueError: If `labels` aren't one string per class.
    """
    import keras_coordatt

    record = record_of(model)
    if labels is None:
        labels = record.labels and list(record.labels)
    else:
        labels = check_labels(labels, classes_of(model))
    preprocessing = image.preprocessing
    return {
        "name": model.name,
        "format": format,
        "task": record.task,
        "labels": labels,
        "image_size": record.image_size and list(record.image_size),
        "metrics": dict(record.metrics),
        "preprocessing": preprocessing
        and {
            "input_size": image.size and list(image.size),
            "color": "RGB",
            "data_format": keras.config.image_data_format(),
            "interpolation": preprocessing.interpolation,
            "antialias": preprocessing.antialias,
            "scale": 255,
            "mean": list(preprocessing.mean),
            "std": list(preprocessing.std),
        },
        "versions": {
            "keras_coordatt": keras_coordatt.__version__,
            "keras": keras.__version__,
        },
    }


def read_metadata(path: str | os.PathLike) -> dict:
    """Reads the metadata of an exported file.

    Args:
        path: A file or folder that this module wrote.

    Returns:
        A dictionary: `"name"` of the model, `"format"`, `"task"` (as in
        `keras_coordatt.record.Record`, or `None`), `"labels"` (a list, or `None`),
        `"image_size"` and `"metrics"` of the training (as in `Record`),
        `"preprocessing"` (`None`, or `"input_size"`, `"color"`, `"data_format"`,
        `"interpolation"`, `"antialias"`, `"scale"`, `"mean"` and `"std"`: the input is
        `(image / scale - mean) / std`), `"versions"`, and for LiteRT `"precision"`.

    Raises:
        ValueError: If the file has no such metadata.
        OSError: If it can't be opened.

    Example:

    >>> report = saved_model(model, "flowers", labels=["daisy", "rose"])
    >>> read_metadata("flowers")["labels"]
    ['daisy', 'rose']
    """
    path = pathlib.Path(check_path("path", path))
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
    """Says how to install the packages for ONNX if one of them is missing."""
    try:
        yield
    except ImportError as error:
        raise ImportError(
            f"An ONNX file needs more packages: {install_hint('export')} ({error})"
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
