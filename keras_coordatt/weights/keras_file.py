"""Loads weights from Keras's own files: `.weights.h5`, `.keras` and legacy `.h5`.

Keras loads layer by layer, so a file that fits half changes half of a network. Here the
file is compared with the network first: Keras saves the network's own weights to a
temporary file, the arrays in it are replaced by those of the given file, and Keras loads
the result.
"""

import contextlib
import copy
import functools
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

from keras_coordatt.layers.freezing import nested_layers
from keras_coordatt.weights import bfloat16
from keras_coordatt.weights.matching import ExpectedWeight, match_arrays

# Layers whose outputs are classes: a classifier's, and those of an SSDLite.
HEAD = re.compile(r"(layers/)?(predictions|map_\d+_classes)/")
# Zip bombs: Keras does not compress, so data that grows by more than this factor when
# it is read was not saved by Keras.
_MAX_GROWTH = 100
_SMALL = 1 << 24


def load_keras_file(
    model: keras.Model, path: str | os.PathLike, skip_mismatch: bool = False
) -> None:
    """Loads a Keras file into a network, or changes nothing.

    The file may also be that of a model in which the network is nested.

    Args:
        model: A built model.
        path: The path of a `.keras`, `.weights.h5` or legacy `.h5` file. Only the
            weights are read: no configuration, no state of an optimizer or a metric.
        skip_mismatch: Same as in `load_weights`.

    Raises:
        ValueError: If the file can't be read or does not fit.
        OSError: If the file can't be opened.
    """
    source = f"{os.fspath(path)!r}"
    with contextlib.ExitStack() as stack:
        raw = stack.enter_context(open(path, "rb"))
        with _reading(source):
            data = _unzipped(raw) if str(path).endswith(".keras") else path
            file = stack.enter_context(h5py.File(data, "r"))
            datasets, names = _contents(file, source)
        if str(path).endswith((".keras", ".weights.h5")):
            _load_native(model, datasets, names, source, skip_mismatch)
        else:
            _load_legacy(model, datasets, source, skip_mismatch)


def _load_native(model, datasets, names, source, skip_mismatch):
    arrays = {
        name: datasets[path] for name, path in _by_layer(datasets, names, model).items()
    }
    with tempfile.TemporaryDirectory() as folder:
        form = pathlib.Path(folder) / "form.weights.h5"
        model.save_weights(form)
        with h5py.File(form, "r+") as file:
            variables, names = _contents(file, str(form))
            paths = _by_layer(variables, names, model)
            matched = _matched(
                model,
                {name: variables[path] for name, path in paths.items()},
                f"layers/{_stem(model)}/vars/0",
                arrays,
                source,
                skip_mismatch,
            )
            for name, array in matched.items():
                dtype = variables[paths[name]].dtype
                del file[paths[name]]
                file[paths[name]] = array.astype(dtype, copy=False)
        model.load_weights(form)


def _load_legacy(model, datasets, source, skip_mismatch):
    root = "model_weights/"  # of a file that also holds the model's configuration
    arrays = {
        # Keras 2 appends ":0".
        _legacy_name(path.removeprefix(root).removesuffix(":0")): dataset
        for path, dataset in datasets.items()
        if not path.startswith("optimizer_weights/")
    }
    variables = {
        _legacy_name(f"{layer.name}/{variable.path}"): variable
        for layer in model.layers
        for variable in layer.weights
    }
    # Imported here, as the networks import this package.
    from keras_coordatt.applications.efficientnet_names import from_keras_applications

    arrays = from_keras_applications(arrays, variables, source)
    known = {id(variable) for variable in variables.values()}
    for variable in model.weights:
        if id(variable) not in known:  # not of a layer of the graph
            variables[f"top_level_model_weights/{variable.path}"] = variable

    # Keras numbers the layers of a class across the process: "dense_5" here may be
    # "dense" in the file.
    layers = list(_walk(model))
    automatic = {_snake_case(type(layer).__name__) for layer in layers}
    rename = functools.partial(_renumbered, automatic=automatic)
    variables = rename(variables)
    stem = f"{_stem(model)}/kernel"
    matched = _matched(model, variables, stem, arrays, source, skip_mismatch, rename)
    for name, array in matched.items():
        variables[name].assign(array)
    for layer in layers:
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()  # derives what `call` uses from the variables


def _matched(
    model, variables, stem, arrays, source, skip_mismatch, rename=lambda named: named
):
    """Calls `match_arrays` with variables and arrays under the same kind of names."""
    arrays = _fitting_part(arrays, variables, source, model.name, rename)
    return match_arrays(
        [_expected(name, variable, stem) for name, variable in variables.items()],
        arrays,
        head=[name for name in arrays if HEAD.match(name)],
        source=source,
        target=model.name,
        skip_mismatch=skip_mismatch,
    )


def _fitting_part(arrays, variables, source, target, rename):
    """Returns the arrays of the network, which may be nested in the file's model."""
    needed = {name for name in variables if not HEAD.match(name)}
    renamed = rename(arrays)
    if not needed or renamed.keys() >= needed:
        return renamed
    prefixes = {name[: m.end()] for name in arrays for m in re.finditer("/", name)}
    parts = {
        prefix: rename(
            {
                n.removeprefix(prefix): a
                for n, a in arrays.items()
                if n.startswith(prefix)
            }
        )
        for prefix in sorted(prefixes)
    }
    fitting = [prefix for prefix, part in parts.items() if part.keys() >= needed]
    if len(fitting) > 1:
        raise ValueError(
            f"{source} fits {target} in more than one place: {', '.join(fitting)}. No "
            "weight was changed. Load it into the whole model."
        )
    return parts[fitting[0]] if fitting else renamed


def _stem(model):
    """Returns the name of the first convolution."""
    convolutions = [la.name for la in model.layers if type(la) is keras.layers.Conv2D]
    return convolutions[0] if convolutions else None


def _expected(name, variable, stem):
    weight = ExpectedWeight(name, tuple(variable.shape), dtype=str(variable.dtype))
    if name == stem:
        # (height, width, channels, filters)
        return weight._replace(part="stem", axis=2)
    if HEAD.match(name):
        return weight._replace(part="head", axis=len(weight.shape) - 1)
    return weight


def _walk(layer):
    """Yields a layer and, if it is a model, all layers in it."""
    yield layer
    for inner in getattr(layer, "layers", ()):
        yield from _walk(inner)


# Names in legacy files


def _legacy_name(path):
    """Returns `layer/weight`, without the scopes in which the layer was built."""
    layer, *scopes = path.split("/")
    if layer in scopes:
        scopes = scopes[scopes.index(layer) + 1 :]
    # In Keras 2, the kernel of a DepthwiseConv2D is called depthwise_kernel.
    return re.sub("/depthwise_kernel$", "/kernel", "/".join([layer, *scopes]))


def _renumbered(named, automatic):
    """Renumbers automatic names from 0, in order, in every part of the names."""
    parts = {part for name in named for part in name.split("/")}
    numbers = {}
    for part in parts:
        kind, number = re.fullmatch(r"(.*?)(?:_(\d+))?", part).groups()
        if kind in automatic:
            numbers.setdefault(kind, []).append((int(number or 0), part))
    new = {
        part: f"{kind}_{i}" if i else kind
        for kind, found in numbers.items()
        for i, (_, part) in enumerate(sorted(found))
    }
    return {
        "/".join(new.get(part, part) for part in name.split("/")): value
        for name, value in named.items()
    }


def _snake_case(name):
    """Returns Keras's automatic name for the first layer of a class."""
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", name))
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


# Contents of a file


@contextlib.contextmanager
def _reading(source):
    """Names the file in errors of reading it."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"Cannot read {source}: {error}") from error
    except Exception as error:  # h5py and zipfile raise many types
        raise ValueError(
            f"Cannot read {source}: it is truncated, damaged, or not a Keras file "
            f"({type(error).__name__}: {error})."
        ) from error


def _unzipped(raw):
    """Returns the weights in a `.keras` archive; zipfile checks their CRC."""
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
    """A dataset in a file, read when it is converted to an array."""

    def __init__(self, dataset, source):
        self.shape = dataset.shape
        self._bfloat16 = dataset.attrs.get("dtype") == "bfloat16"
        self.dtype = np.dtype("f4") if self._bfloat16 else dataset.dtype
        self._dataset, self._source = dataset, source

    def without_axes(self, count):
        """Returns the same dataset without its first axes, which have length 1."""
        other = copy.copy(self)
        if self.shape[:count] == (1,) * count:
            other.shape = self.shape[count:]
        return other

    def __array__(self, dtype=None, copy=None):
        with _reading(self._source):
            array = np.asarray(self._dataset[()])
            array = bfloat16.widen(array.view("u2")) if self._bfloat16 else array
            return array.reshape(self.shape).astype(dtype, copy=False)


def _contents(file, source):
    """Returns the datasets of a file by path, and the names that Keras stored."""
    links, datasets, names = [], {}, {}
    file.visititems_links(lambda path, link: links.append((path, link)))
    for path, link in links:
        if not isinstance(link, h5py.HardLink):
            raise ValueError(f"{path} is a link, which is not followed.")
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


def _by_layer(datasets, names, model):
    """Returns the paths of the weights, by paths with the names of layers in them.

    Keras numbers the layers of a class in a list, and stores a layer's name beside its
    weights. The name distinguishes the gates of coordinate attention, which have one
    class. Names that Keras made itself differ from one model in a process to the next,
    so they are not used; nor is that of a layer with an attribute of its own, whose
    name is in the path.
    """
    automatic = {_snake_case(type(layer).__name__) for layer in nested_layers(model)}
    state = _training_state(datasets, model)
    weights = [path for path in datasets if path not in state]
    by_name = {_layer_path(path, names, automatic): path for path in weights}
    if len(by_name) < len(weights):  # some have the same
        return {path: path for path in weights}
    return by_name


def _training_state(datasets, model):
    """Returns the paths of the state of optimizers, metrics and seed generators."""
    metrics = set()
    for attribute, value in vars(model).items():
        values = value.values() if isinstance(value, dict) else value
        values = list(values) if isinstance(value, (dict, list, tuple)) else [value]
        if values and all(isinstance(v, keras.metrics.Metric) for v in values):
            metrics.add(attribute)
    models = {""} | {
        path[: match.start(1)]
        for path in datasets
        for match in re.finditer("/(layers)/", path)
    }
    return {
        path
        for path in datasets
        if path.split("/")[0] in metrics
        or "seed_generator" in path.split("/")
        or any(path.startswith(f"{prefix}optimizer/") for prefix in models)
    }


def _layer_path(path, names, automatic):
    old = path.split("/")
    new = list(old)
    for i, part in enumerate(old):
        name = names.get("/".join(old[: i + 1]), part)
        # Keras also numbers the layers of a class that only the file has.
        numbered = _kind(part) in automatic or old[i - 1 : i] == ["layers"]
        if numbered and _kind(name) not in (*automatic, _kind(part)):
            new[i] = name
    return "/".join(new)


def _kind(name):
    return re.sub(r"_\d+$", "", name)
