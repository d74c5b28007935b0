"""What the attentions cost: speed, size and memory, side by side.

All that is timed is timed in turns within one run, so that every network meets the same
machine, and what is reported is the ratio to the same network without attention.
`keras-coordatt benchmark` is the command.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import importlib
import math
import multiprocessing
import os
import pathlib
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable

import keras
import numpy as np
from keras import layers, ops

from keras_coordatt.applications import EfficientNetCA, MobileNetV2CA, MobileNeXtCA
from keras_coordatt.validation import check_choice, check_positive_int

MODELS = {
    "MobileNetV2CA": MobileNetV2CA,
    "MobileNeXtCA": MobileNeXtCA,
    "EfficientNetCA": EfficientNetCA,
}


class PlainPort(layers.Layer):
    """Coordinate attention as it is usually written in Keras, channels last."""

    def build(self, input_shape):
        channels = input_shape[-1]
        self.shared = layers.Conv2D(max(8, channels // 32), 1)
        self.norm = layers.BatchNormalization(momentum=0.9, epsilon=1e-5)
        self.height_gate = layers.Conv2D(channels, 1, activation="sigmoid")
        self.width_gate = layers.Conv2D(channels, 1, activation="sigmoid")

    def call(self, inputs, training=None):
        height = inputs.shape[1]
        rows = ops.mean(inputs, axis=2, keepdims=True)
        columns = ops.mean(inputs, axis=1, keepdims=True)
        columns = ops.transpose(columns, (0, 2, 1, 3))
        both = self.shared(ops.concatenate([rows, columns], axis=1))
        both = ops.hard_swish(self.norm(both, training=training))
        rows, columns = ops.split(both, [height], axis=1)
        columns = ops.transpose(columns, (0, 2, 1, 3))
        return inputs * self.height_gate(rows) * self.width_gate(columns)


class PassesOnly(layers.Layer):
    """What is left of it without any gate: two means and two multiplications.

    As long as each of these is an operation of its own, no implementation is faster.
    """

    def call(self, inputs):
        rows = ops.mean(inputs, axis=2, keepdims=True)
        columns = ops.mean(inputs, axis=1, keepdims=True)
        return inputs * rows * columns


# What to compare the layer with: `benchmark(extra=REFERENCES)`.
REFERENCES = {"plain port": PlainPort, "passes only": PassesOnly}


@dataclasses.dataclass(frozen=True)
class Measure:
    """A way to run a network.

    Attributes:
        title: What the table calls it.
        prepare: Function of a model that gives a function without arguments, which
            is timed.
        images: How many images that function takes.
        calls: How often it is called for one time.
        starts: How often it is prepared anew in the course of the rounds.
    """

    title: str
    prepare: Callable
    images: int
    calls: int
    starts: int = 1


@functools.cache  # for the measures with 1 and 2 threads
def _converted(model, precision):
    from keras_coordatt.export import litert

    representative = _images(model) if precision == "int8" else None
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        # Of a network that was never trained, classes needn't agree.
        warnings.filterwarnings("ignore", ".*the top-1 class is")
        path = pathlib.Path(folder) / "model.tflite"
        litert(model, path, precision=precision, representative=representative)
        return path.read_bytes()


def _litert(precision, threads):
    def prepare(model):
        import tensorflow as tf

        content = _converted(model, precision)
        interpreter = tf.lite.Interpreter(model_content=content, num_threads=threads)
        interpreter.allocate_tensors()
        (image,) = interpreter.get_input_details()
        interpreter.set_tensor(image["index"], _images(model)[:1])
        return interpreter.invoke

    # Where its memory happens to lie makes an interpreter some percent faster or slower.
    return Measure(f"LiteRT {precision}, {threads} thread", prepare, 1, 5, starts=5)


def _graph(batch_size):
    def prepare(model):
        import tensorflow as tf

        images = tf.random.normal((batch_size, *model.input_shape[1:]))
        graph = _concrete(model, batch_size)
        return lambda: graph(images)

    calls = 5 if batch_size == 1 else 1
    return Measure(f"TF graph, batch {batch_size}", prepare, batch_size, calls)


def _training(batch_size):
    def prepare(model):
        model = keras.models.clone_model(model)
        model.compile("sgd", "sparse_categorical_crossentropy")
        images = keras.random.normal((batch_size, *model.input_shape[1:]))
        labels = np.zeros(batch_size, "int32")
        return lambda: model.train_on_batch(images, labels)

    return Measure(f"training step, batch {batch_size}", prepare, batch_size, 1)


MEASURES = {
    "litert_float32_1": _litert("float32", 1),
    "litert_float32_2": _litert("float32", 2),
    "litert_int8_1": _litert("int8", 1),
    "litert_int8_2": _litert("int8", 2),
    "graph_1": _graph(1),
    "graph_16": _graph(16),
    "train_32": _training(32),
}


def benchmark(
    models: Iterable[str] = ("MobileNetV2CA",),
    attentions: Iterable[str | None] = (None, "se", "coordinate"),
    *,
    image_size: int = 224,
    alpha: float = 1.0,
    measures: Iterable[str] = tuple(MEASURES),
    rounds: int = 20,
    memory: bool = True,
    extra: dict[str, Callable] | None = None,
) -> list[dict]:
    """Measures networks with each attention against the same without.

    In every round each network is timed once, in an order that changes from round to
    round; a ratio is of two times of the same round. On a machine that others use too,
    the ratios' median and quartiles say more than the times.

    Args:
        models: Names of builders, of `"MobileNetV2CA"`, `"MobileNeXtCA"` and
            `"EfficientNetCA"` (b0).
        attentions: What the builders take as `attention`, by name. That without any,
            `None`, is always measured.
        image_size: Height and width of the images, in pixels.
        alpha: Width multiplier of the networks that have one.
        measures: Keys of `MEASURES`. Those of LiteRT and of the TF graph need the
            TensorFlow backend.
        rounds: How often each is timed.
        memory: Whether to measure the peak memory too, in a process a network. A script
            that does needs `if __name__ == "__main__":`, as for any `multiprocessing`.
        extra: Further attentions to compare: a name, and a callable as the builders
            take. `REFERENCES` has the layer as it is usually written, and what no
            implementation can do without.

    Returns:
        A dict a network: its `model`, `attention`, `parameters`, `multiply_adds`,
        `size_float32` and `size_int8` of the LiteRT files in bytes, `peak_memory` in
        bytes (of inference, batch 16, above what the same process had before it built
        the network; not of those in `extra`) and, for each measure, a dict of the
        median `seconds`, the images `per_second`, and the quartiles of the ratio to no
        attention, `ratio`, as `(25 %, 50 %, 75 %)`.

    Raises:
        ValueError: if an argument is unknown, or the backend can't do what is asked.

    Example:

    >>> rows = benchmark(measures=["graph_1"], rounds=10)
    >>> print(table(rows))
    """
    check_positive_int("image_size", image_size)
    check_positive_int("rounds", rounds)
    models, measures, attentions = tuple(models), tuple(measures), tuple(attentions)
    for name in models:
        check_choice("models", name, tuple(MODELS))
    for name in measures:
        check_choice("measures", name, tuple(MEASURES))
    backend = keras.config.backend()
    needy = [name for name in measures if not name.startswith("train")]
    if needy and backend != "tensorflow":
        raise ValueError(
            f"{needy} need the TensorFlow backend: set KERAS_BACKEND=tensorflow, or "
            f"pass `measures`. Received: the backend {backend}"
        )
    extra = extra or {}
    if both := extra.keys() & set(attentions):
        raise ValueError(
            f"`extra` must have names of its own. Received: {sorted(both)}"
        )
    attentions = [None, *(a for a in attentions if a is not None), *extra]

    rows, networks = [], {}
    for name in models:
        for attention in attentions:
            key = name, attention
            width = {"alpha": alpha} if name != "EfficientNetCA" else {}
            arguments = {
                "input_shape": (image_size, image_size, 3),
                "weights": None,
                "attention": extra.get(attention, attention),
                **width,
            }
            networks[key] = _awake(MODELS[name](**arguments))
            row = {
                "model": name,
                "attention": attention,
                "parameters": sum(
                    math.prod(w.shape) for w in networks[key].trainable_weights
                ),
            }
            if backend == "tensorflow":
                row["multiply_adds"] = multiply_adds(networks[key])
            if memory and needy and attention not in extra:
                row["peak_memory"] = _in_a_process(_peak_memory, name, arguments)
            rows.append(row)

    for measure in measures:
        how = MEASURES[measure]
        times = {key: [] for key in networks}
        for part in np.array_split(np.arange(rounds), min(rounds, how.starts)):
            runs = {key: how.prepare(m) for key, m in networks.items()}
            for key, new in interleaved(runs, len(part), how.calls).items():
                times[key] += new
        for row in rows:
            key = row["model"], row["attention"]
            plain = times[row["model"], None]
            row[measure] = _summary(times[key], plain, how.images)
            if measure.startswith("litert"):
                precision = measure.split("_")[1]
                size = len(_converted(networks[key], precision))
                row[f"size_{precision}"] = size
    _converted.cache_clear()
    return rows


def _images(model):
    rng = np.random.default_rng(0)
    return rng.normal(size=(8, *model.input_shape[1:])).astype("float32")


def _awake(model):
    """Lets batch normalization see images, as in a network that was trained.

    Without, the numbers fade away layer by layer. In int8 their scales are then so
    small that LiteRT runs some operations in another, slower way.
    """
    norms = [
        part
        for layer in model.layers
        for part in (layer, *vars(layer).values())
        if isinstance(part, layers.BatchNormalization)
    ]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    model(_images(model), training=True)
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum
        # A channel that happened to vary little must not become all rounding error.
        variance = norm.moving_variance
        variance.assign(ops.maximum(variance, ops.mean(variance)))
    return model


def interleaved(
    functions: dict[object, Callable[[], object]], rounds: int, calls: int = 1
) -> dict[object, list[float]]:
    """Times functions in turns.

    Args:
        functions: Functions without arguments, by name.
        rounds: How often each is timed, in an order that changes.
        calls: How often each is called for one time.

    Returns:
        The seconds of one call, a list of `rounds` by name.
    """
    names = list(functions)
    for name in names * 2:  # what is slow only the first time
        functions[name]()
    times = {name: [] for name in names}
    for round_ in range(rounds):
        first = round_ % len(names)
        for name in names[first:] + names[:first]:
            start = time.perf_counter()
            for _ in range(calls):
                functions[name]()
            times[name].append((time.perf_counter() - start) / calls)
    return times


def _summary(own: list[float], plain: list[float], images: int) -> dict:
    ratios = [a / b for a, b in zip(own, plain)]
    seconds = statistics.median(own)
    return {
        "seconds": seconds,
        "per_second": images / seconds,
        "ratio": tuple(np.percentile(ratios, (25, 50, 75)).round(4).tolist()),
    }


def multiply_adds(model: keras.Model) -> int:
    """Counts the multiplications of one image, as papers count them.

    Those of convolutions and of matrix products; what is done once an element, such as
    the multiplication by a gate, is not counted, as it isn't in the paper.

    Args:
        model: A model with a known image size, on the TensorFlow backend.

    Returns:
        The number of multiplications, each with its addition.
    """
    total = 0
    for op in _concrete(model, 1).graph.get_operations():
        if op.type in ("Conv2D", "DepthwiseConv2dNative"):
            *window, inputs, _ = op.inputs[1].shape
            depthwise = op.type == "DepthwiseConv2dNative"
            each = math.prod(window) * (1 if depthwise else inputs)
            total += math.prod(op.outputs[0].shape) * each
        elif op.type in ("MatMul", "BatchMatMulV2"):
            total += math.prod(op.outputs[0].shape) * op.inputs[0].shape[-1]
    return total


def _concrete(model, batch_size):
    import tensorflow as tf

    signature = tf.TensorSpec((batch_size, *model.input_shape[1:]), "float32")
    run = tf.function(lambda images: model(images, training=False))
    return run.get_concrete_function(signature)


def _peak_memory(name: str, arguments: dict) -> int:
    import tensorflow as tf

    _concrete(keras.Sequential([keras.Input((8,)), keras.layers.Dense(8)]), 1)
    before = _peak()
    graph = _concrete(MODELS[name](**arguments), 16)
    graph(tf.random.normal((16, *arguments["input_shape"])))
    return _peak() - before


def _peak() -> int:
    """The most memory that this process ever had, in bytes."""
    try:  # In Linux, `ru_maxrss` is at least what the parent had.
        status = pathlib.Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except OSError:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def _in_a_process(function, *arguments):
    # Unlike multiprocessing.Pool, this ends if the process does.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def check_official(path: pathlib.Path) -> None:
    """Raises a ValueError unless the folder has the authors' network."""
    if not (path / "mbv2_ca.py").is_file():
        raise ValueError(f"`path` must have the file mbv2_ca.py. Received: {path}")


def official_rows(path: str | os.PathLike, rounds: int = 10) -> list[dict]:
    """Measures the authors' PyTorch network, with and without its attention.

    Args:
        path: The folder of your copy of the authors' repository, with `mbv2_ca.py`.
            It is imported, and so executed.
        rounds: How often each is timed.

    Returns:
        A dict a network, as `benchmark` gives them, with the measures `torch_1`,
        `torch_16` and `torch_train_32`; and with timm installed, one for timm's
        variant of the layer in the same place.

    Raises:
        ValueError: if there is no `mbv2_ca.py`, or PyTorch is not installed.
    """
    path = pathlib.Path(path)
    check_official(path)
    try:
        import torch
    except ImportError as error:
        raise ValueError(
            "The authors' network needs PyTorch to be installed"
        ) from error

    sys.path.insert(0, str(path))
    try:
        official = importlib.import_module("mbv2_ca")
    finally:
        sys.path.remove(str(path))

    def without(make):
        def build():
            network = official.MBV2_CA()
            for parent in list(network.modules()):
                for name, child in list(parent.named_children()):
                    if type(child).__name__ == "CoordAtt":
                        channels = child.conv1.in_channels
                        setattr(parent, name, make(channels))
            return network

        return build

    builders = {
        None: without(lambda channels: torch.nn.Identity()),
        "official": official.MBV2_CA,
    }
    with contextlib.suppress(ImportError):
        from timm.layers import CoordAttn

        builders["timm"] = without(CoordAttn)
    networks = {name: build().eval() for name, build in builders.items()}
    rows = [
        {
            "model": "MobileNetV2 (PyTorch)",
            "attention": name,
            "parameters": sum(p.numel() for p in network.parameters()),
        }
        for name, network in networks.items()
    ]

    def inference(network, batch_size):
        images = torch.randn(batch_size, 3, 224, 224)

        def run():
            with torch.inference_mode():
                network(images)

        return run

    def training(network, batch_size):
        images = torch.randn(batch_size, 3, 224, 224)
        labels = torch.zeros(batch_size, dtype=torch.long)
        optimizer = torch.optim.SGD(network.parameters(), 0.01)

        def run():
            network.train()
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(images), labels).backward()
            optimizer.step()

        return run

    for measure, prepare, batch_size, calls in (
        ("torch_1", inference, 1, 5),
        ("torch_16", inference, 16, 1),
        ("torch_train_32", training, 32, 1),
    ):
        runs = {name: prepare(net, batch_size) for name, net in networks.items()}
        times = interleaved(runs, rounds, calls)
        for row in rows:
            row[measure] = _summary(times[row["attention"]], times[None], batch_size)
    return rows


def table(rows: list[dict]) -> str:
    """Formats what was measured as Markdown.

    Args:
        rows: What `benchmark` or `official_rows` returned.

    Returns:
        A table, one row a network: the median time, and the median of the ratio to the
        network without attention with its quartiles.
    """
    counts = {
        "parameters": ("parameters", 1e6, "M", 2),
        "multiply_adds": ("M-Adds", 1e6, "M", 0),
        "size_float32": ("LiteRT float32", 2**20, "MiB", 2),
        "size_int8": ("LiteRT int8", 2**20, "MiB", 2),
        "peak_memory": ("peak memory", 2**20, "MiB", 0),
    }
    measures = [name for name in rows[0] if isinstance(rows[0][name], dict)]
    shown = [name for name in counts if any(name in row for row in rows)]
    titles = ["model", "attention", *(counts[name][0] for name in shown)]
    titles += [MEASURES[n].title if n in MEASURES else n for n in measures]
    lines = [titles, ["---"] * len(titles)]
    for row in rows:
        cells = [row["model"], row["attention"] or "none"]
        for name in shown:
            _, unit, suffix, digits = counts[name]
            value = f"{row[name] / unit:.{digits}f} {suffix}" if name in row else ""
            cells.append(value)
        for name in measures:
            low, middle, high = row[name]["ratio"]
            cell = f"{1000 * row[name]['seconds']:.3g} ms"
            if row["attention"]:
                cell += f", × {middle:.3f} ({low:.3f} to {high:.3f})"
            cells.append(cell)
        lines.append(cells)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def picture(rows: list[dict], path: str | os.PathLike, measure: str) -> None:
    """Draws latency against parameters.

    Args:
        rows: What `benchmark` returned.
        path: The image's file, of a type that matplotlib writes.
        measure: The measure to draw, a key of `MEASURES`.

    Raises:
        ValueError: if `measure` was not measured.
    """
    import matplotlib.figure

    if measure not in rows[0]:
        raise ValueError(f"`measure` must be one of `rows`. Received: {measure!r}")
    axes = matplotlib.figure.Figure(figsize=(6, 4), layout="tight").subplots()
    for model in dict.fromkeys(row["model"] for row in rows):
        chosen = [row for row in rows if row["model"] == model]
        x = [row["parameters"] / 1e6 for row in chosen]
        y = [1000 * row[measure]["seconds"] for row in chosen]
        axes.scatter(x, y, label=model)
        for row, *place in zip(chosen, x, y):
            label = row["attention"] or "none"
            axes.annotate(label, place, xytext=(5, 3), textcoords="offset points")
    axes.set_xlabel("parameters, in millions")
    axes.set_ylabel(f"{MEASURES[measure].title}, in ms")
    axes.set_ylim(bottom=0)
    axes.margins(x=0.2)
    axes.grid(alpha=0.3)
    axes.legend()
    axes.figure.savefig(path)


def build_times(repeats: int = 5) -> dict[str, list[float]]:
    """Times how long networks take to build, as ratios to Keras's plain ones.

    Ours and Keras's are built in turn, so that both meet the same machine.

    Args:
        repeats: How often each is built.

    Returns:
        The ratios of each of our networks, one a repeat.

    Example:

    >>> build_times(repeats=3)
    {'MobileNetV2CA': [1.2, 1.1, 1.2], 'EfficientNetCA b0': [0.9, 0.8, 0.9]}
    """
    pairs = {
        "MobileNetV2CA": (MobileNetV2CA, keras.applications.MobileNetV2),
        "EfficientNetCA b0": (EfficientNetCA, keras.applications.EfficientNetB0),
    }
    ratios = {}
    for name, (ours, theirs) in pairs.items():
        builders = {build: functools.partial(_build, build) for build in (ours, theirs)}
        times = interleaved(builders, repeats)
        ratios[name] = [a / b for a, b in zip(times[ours], times[theirs])]
    return ratios


def _build(builder: Callable) -> None:
    keras.backend.clear_session()
    builder(weights=None)
