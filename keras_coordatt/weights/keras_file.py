"""Reads weights from Keras's own files: `.weights.h5`, `.keras` and legacy `.h5`.

Keras loads layer by layer, so a file that fits half changes half of a network. Here
a file is compared with the network first. What it should hold, Keras says itself:
the network's own file is written, the numbers in it are replaced by those of the
given file, and Keras loads the result.
"""

import contextlib
import io
import math
import os
import pathlib
import re
import tempfile
import zipfile

import h5py
import keras
import numpy as np

from keras_coordatt.weights import bfloat16
from keras_coordatt.weights.matching import ExpectedWeight, match_arrays

HEAD = "predictions"
# Numbers that were trained take their space in a file. What grows beyond this when
# it is read does not come from Keras, which does not compress.
_MAX_GROWTH = 100
_SMALL = 1 << 24


def load_keras_file(model: keras.Model, path: str | os.PathLike, adapt=True) -> None:
    """Loads a file of Keras into a network, or changes nothing.

    Args:
        model: A functional model.
        path: The path of a `.keras`, `.weights.h5` or legacy `.h5` file. Only
            weights are read: no configuration, and no optimizer's state.
        adapt: As in `load_weights`.

    Raises:
        ValueError: if the file can't be read or does not fit.
        OSError: if the file can't be opened.
    """
    source = f"{os.fspath(path)!r}"
    with contextlib.ExitStack() as stack:
        raw = stack.enter_context(open(path, "rb"))
        with _reading(source):
            data = _unzipped(raw) if str(path).endswith(".keras") else path
            file = stack.enter_context(h5py.File(data, "r"))
            datasets, names = _contents(file, source)
        if str(path).endswith((".keras", ".weights.h5")):
            _load_native(model, datasets, names, source, adapt)
        else:
            _load_legacy(model, datasets, source, adapt)


def _load_native(model, datasets, names, source, adapt):
    arrays = {
        name: datasets[path]
        for name, path in _by_layer(datasets, names).items()
        # The states of random generators are a network's own.
        if "/seed_generator/" not in name
    }
    stem = _stem(model)
    with tempfile.TemporaryDirectory() as folder:
        form = pathlib.Path(folder) / "form.weights.h5"
        model.save_weights(form)
        with h5py.File(form, "r+") as file:
            expected, names = _contents(file, str(form))
            paths = _by_layer(expected, names)
            slots = [
                _slot(name, variable, f"layers/{stem}/vars/0", "layers/")
                for name, path in paths.items()
                if (variable := expected[path]).dtype.kind == "f"
            ]
            arrays = match_arrays(
                slots,
                arrays,
                head=[name for name in arrays if name.startswith(f"layers/{HEAD}/")],
                source=source,
                target=model.name,
                adapt=adapt,
            )
            for name, array in arrays.items():
                del file[paths[name]]
                file[paths[name]] = array
        model.load_weights(form)


def _load_legacy(model, datasets, source, adapt):
    whole = "model_weights/"  # of a file that holds a model's configuration too
    arrays = {
        path.removeprefix(whole).removesuffix(":0"): dataset  # ":0" is Keras 2's
        for path, dataset in datasets.items()
        if not path.startswith("optimizer_weights/")
    }
    variables = {
        f"{layer.name}/{variable.path}": variable
        for layer in model.layers
        for variable in layer.weights
    }
    stem = _stem(model)
    slots = [
        _slot(name, variable, f"{stem}/{stem}/kernel", "")
        for name, variable in variables.items()
    ]
    arrays = match_arrays(
        slots,
        arrays,
        head=[name for name in arrays if name.startswith(f"{HEAD}/")],
        source=source,
        target=model.name,
        adapt=adapt,
    )
    for name, array in arrays.items():
        variables[name].assign(array)


def _stem(model):
    """The name of the convolution that the image meets."""
    convolutions = [la.name for la in model.layers if type(la) is keras.layers.Conv2D]
    return convolutions[0] if convolutions else None


def _slot(name, variable, stem, root):
    slot = ExpectedWeight(name, tuple(variable.shape), dtype=str(variable.dtype))
    if name == stem:
        # (height, width, channels, filters)
        return slot._replace(part="stem", axis=2)
    if name.startswith(f"{root}{HEAD}/"):
        return slot._replace(part="head", axis=len(slot.shape) - 1)
    return slot


# What is in a file


@contextlib.contextmanager
def _reading(source):
    """Says which file it was that can't be read."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"Cannot read {source}: {error}") from error
    except Exception as error:  # what the libraries make of garbage
        raise ValueError(
            f"Cannot read {source}: it is truncated, damaged, or no file of Keras "
            f"({type(error).__name__}: {error})."
        ) from error


def _unzipped(raw):
    """The weights in a `.keras` archive; zipfile checks their CRC."""
    size = os.fstat(raw.fileno()).st_size
    with zipfile.ZipFile(raw) as archive:
        if "model.weights.h5" not in archive.namelist():
            raise ValueError(
                "the archive holds no model.weights.h5. Received: "
                f"{', '.join(archive.namelist()[:10])}"
            )
        entry = archive.getinfo("model.weights.h5")
        if entry.file_size > max(_SMALL, _MAX_GROWTH * size):
            raise ValueError(
                f"its weights claim {entry.file_size} bytes, and the archive has "
                f"{size}. They were not unpacked."
            )
        return io.BytesIO(archive.read(entry))


class _Dataset:
    """A dataset of numbers in a file, read when it is asked for."""

    def __init__(self, dataset, source):
        self.shape = dataset.shape
        self._bfloat16 = dataset.attrs.get("dtype") == "bfloat16"
        self.dtype = np.dtype("f4") if self._bfloat16 else dataset.dtype
        self._dataset, self._source = dataset, source

    def __array__(self, dtype=None, copy=None):
        with _reading(self._source):
            array = np.asarray(self._dataset[()])
            array = bfloat16.widen(array.view("u2")) if self._bfloat16 else array
            return array.astype(dtype, copy=False)


def _contents(file, source):
    """Every dataset in a file by its path, and the names that Keras gave to paths."""
    links, datasets, names = [], {}, {}
    file.visititems_links(lambda path, link: links.append((path, link)))
    for path, link in links:
        if not isinstance(link, h5py.HardLink):
            raise ValueError(f"{path} is a link to elsewhere, which is not followed.")
        item = file[path]
        if isinstance(item, h5py.Dataset):
            _check_dataset(path, item)
            datasets[path] = _Dataset(item, source)
        elif path.endswith("/vars") and isinstance(item.attrs.get("name"), str):
            names[path.removesuffix("/vars")] = item.attrs["name"]
    return datasets, names


def _check_dataset(path, dataset):
    if dataset.external or dataset.is_virtual:
        raise ValueError(f"{path} is kept in another file, which is not read.")
    if dataset.shape is None:
        raise ValueError(f"{path} holds nothing.")
    claimed = math.prod(dataset.shape) * dataset.dtype.itemsize
    stored = dataset.id.get_storage_size()
    if claimed > max(_SMALL, _MAX_GROWTH * stored):
        raise ValueError(
            f"{path} claims {claimed} bytes, and {stored} are stored. It was not read."
        )


def _by_layer(datasets, names):
    """The paths of the weights, by paths that tell the names of layers.

    Keras numbers the layers of a class, and notes a layer's name beside its weights.
    It tells the gate along the height from that along the width, which have one
    class. A name that Keras made by numbering says less than the number in the path,
    and is not used.
    """
    weights = [path for path in datasets if path.startswith(("layers/", "vars/"))]
    by_name = {_layer_path(path, names): path for path in weights}
    if len(by_name) < len(weights):  # some have the same
        return {path: path for path in weights}
    return by_name


def _layer_path(path, names):
    parts = path.split("/")
    for i, part in enumerate(path.split("/")):
        name = names.get("/".join(path.split("/")[: i + 1]), part)
        kind = re.escape(re.sub(r"_\d+$", "", part))
        if not re.fullmatch(rf"{kind}(_\d+)?", name):
            parts[i] = name
    return "/".join(parts)
