"""What an exported file says about itself: labels, preprocessing, versions."""

import contextlib
import json
import os
import pathlib
import zipfile

import keras


def describe(format, model, image, labels):
    import keras_coordatt

    if labels is not None:
        labels = list(labels)
        outputs = keras.tree.flatten(model.outputs)
        classes = outputs[0].shape[-1]
        one = len(outputs) == 1 and len(outputs[0].shape) == 2
        if not all(isinstance(x, str) for x in labels) or one * (classes - len(labels)):
            raise ValueError(
                "`labels` must be strings, one a class"
                f"{f', {classes} of them' if one else ''}. Received: {labels}"
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


def read_metadata(path: str | os.PathLike) -> dict:
    """Reads what an exported file says about itself.

    Args:
        path: A file or folder that this module wrote.

    Returns:
        A dictionary: `"name"` of the model, `"format"`, `"labels"` (a list, or `None`),
        `"preprocessing"` (`None`, or `"input_size"`, `"color"`, `"data_format"`,
        `"interpolation"`, `"antialias"`, `"scale"`, `"mean"` and `"std"`: the input is
        `(image / scale - mean) / std`), `"versions"`, and for LiteRT `"precision"`.

    Raises:
        ValueError: if the file has no such metadata.
        OSError: if it can't be opened.

    Example:

    >>> read_metadata("flowers.tflite")["labels"]
    ['daisy', 'rose']
    """
    path = pathlib.Path(path)
    try:
        if path.is_dir():
            text = (path / "assets.extra" / "metadata.json").read_text()
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
