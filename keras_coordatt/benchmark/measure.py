"""Measurements of networks, each against the same network without attention."""

import dataclasses
import functools
import math
import pathlib
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_coordatt.applications import EfficientNetCA, MobileNetV2CA, MobileNeXtCA
from keras_coordatt.benchmark.memory import peak_memory
from keras_coordatt.layers.freezing import nested_layers
from keras_coordatt.validation import check_choice, check_positive_int

MODELS: dict[str, Callable] = {
    "MobileNetV2CA": MobileNetV2CA,
    "MobileNeXtCA": MobileNeXtCA,
    "EfficientNetCA": EfficientNetCA,
}


@dataclasses.dataclass(frozen=True)
class Measure:
    """One way to run a network.

    Attributes:
        title: Name in the table.
        prepare: Takes a model, and returns a function without arguments to be timed.
        images: Number of images that the function processes.
        calls: Number of calls per timing.
        starts: How often the function is prepared anew in the course of the rounds.
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
        # The classes of an untrained network needn't agree.
        warnings.filterwarnings("ignore", ".*the top-1 class is")
        path = pathlib.Path(folder) / "model.tflite"
        litert(model, path, precision=precision, representative=representative)
        return path.read_bytes()


def _litert(precision, threads):
    def prepare(model):
        from ai_edge_litert.interpreter import Interpreter

        content = _converted(model, precision)
        interpreter = Interpreter(model_content=content, num_threads=threads)
        interpreter.allocate_tensors()
        (image,) = interpreter.get_input_details()
        interpreter.set_tensor(image["index"], _images(model)[:1])
        return interpreter.invoke

    # An interpreter is some percent faster or slower depending on where its memory lies.
    return Measure(f"LiteRT {precision}, {threads} thread", prepare, 1, 5, starts=5)


def _graph(batch_size):
    def prepare(model):
        import tensorflow as tf

        images = tf.random.normal((batch_size, *model.input_shape[1:]))
        graph = concrete_function(model, batch_size)
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
    extra: Mapping[Any, Callable] | None = None,
) -> list[dict]:
    """Compares networks with each attention to the same network without.

    Every round times each network once, in an order that changes from round to round;
    ratios compare times of the same round. On a shared machine, the median and the
    quartiles of the ratios say more than the times.

    Args:
        models: Names of builders: `"MobileNetV2CA"`, `"MobileNeXtCA"` or
            `"EfficientNetCA"` (b0).
        attentions: Values of the builders' `attention`. `None` is always measured.
        image_size: Height and width of the images, in pixels.
        alpha: Width multiplier of the networks that have one.
        measures: Keys of `MEASURES`. Those of LiteRT and of the TF graph need the
            TensorFlow backend.
        rounds: Number of rounds.
        memory: Whether to measure peak memory too, in one process per network. A script
            that does needs `if __name__ == "__main__":`, as with any use of
            `multiprocessing`.
        extra: Further attentions to compare, a dict from names to callables that the
            builders take. `REFERENCES` has the layer as it is usually written, and the
            part that no implementation can avoid.

    Returns:
        One dict per network: its `model`, `attention`, `parameters`, `multiply_adds`,
        `size_float32` and `size_int8` of the LiteRT files in bytes, `peak_memory` in
        bytes (inference at batch size 16, above what the same process had before it
        built the network; not for `extra`) and, for each measure, a dict of the median
        `seconds`, the images `per_second`, and `ratio`, the quartiles of the ratio to
        no attention as `(25 %, 50 %, 75 %)`.

    Raises:
        ValueError: If an argument is invalid, or needs another backend.

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
            networks[key] = calibrate_batch_norm(MODELS[name](**arguments))
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
                row["peak_memory"] = peak_memory(MODELS[name], arguments)
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
            row[measure] = summarize(times[key], plain, how.images)
            if measure.startswith("litert"):
                precision = measure.split("_")[1]
                size = len(_converted(networks[key], precision))
                row[f"size_{precision}"] = size
    _converted.cache_clear()
    return rows


def _images(model):
    rng = np.random.default_rng(0)
    return rng.normal(size=(8, *model.input_shape[1:])).astype("float32")


def calibrate_batch_norm(model):
    """Sets the statistics of batch normalization from images, as training would.

    With the initial statistics, activations fade to zero layer by layer. Their int8
    scales are then so small that LiteRT falls back to slower kernels.
    """
    norms = [
        layer
        for layer in nested_layers(model)
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    model(_images(model), training=True)
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum
        # A channel that happens to vary little must not be amplified to rounding error.
        variance = norm.moving_variance
        variance.assign(ops.maximum(variance, ops.mean(variance)))
    return model


def interleaved(
    functions: Mapping[Any, Callable[[], object]], rounds: int, calls: int = 1
) -> dict[Any, list[float]]:
    """Times functions in turns.

    Args:
        functions: Dict from names to functions without arguments.
        rounds: Number of timings of each, in an order that changes.
        calls: Number of calls per timing.

    Returns:
        Dict from names to lists of `rounds` timings, in seconds per call.
    """
    names = list(functions)
    for name in names * 2:  # warm up
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


def summarize(own: list[float], plain: list[float], images: int) -> dict:
    ratios = [a / b for a, b in zip(own, plain)]
    seconds = statistics.median(own)
    return {
        "seconds": seconds,
        "per_second": images / seconds,
        "ratio": tuple(np.percentile(ratios, (25, 50, 75)).round(4).tolist()),
    }


def multiply_adds(model: keras.Model) -> int:
    """Counts the multiplications of one image, as papers count them.

    Counts convolutions and matrix products. Elementwise operations, such as the
    multiplication by a gate, don't count, same as in the paper.

    Args:
        model: A model with a known image size, on the TensorFlow backend.

    Returns:
        The number of multiply-adds.
    """
    total = 0
    for op in concrete_function(model, 1).graph.get_operations():
        if op.type in ("Conv2D", "DepthwiseConv2dNative"):
            *window, inputs, _ = op.inputs[1].shape
            depthwise = op.type == "DepthwiseConv2dNative"
            each = math.prod(window) * (1 if depthwise else inputs)
            total += math.prod(op.outputs[0].shape) * each
        elif op.type in ("MatMul", "BatchMatMulV2"):
            total += math.prod(op.outputs[0].shape) * op.inputs[0].shape[-1]
    return total


def concrete_function(model, batch_size):
    import tensorflow as tf

    signature = tf.TensorSpec((batch_size, *model.input_shape[1:]), "float32")
    run = tf.function(lambda images: model(images, training=False))
    return run.get_concrete_function(signature)
