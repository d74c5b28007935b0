"""Measurements of networks, each against the same network without attention."""

import concurrent.futures
import importlib.util
import inspect
import math
import multiprocessing
import pickle
import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_coordatt.applications import BUILDERS, MobileNetV2CA
from keras_coordatt.benchmark.memory import peak_memory
from keras_coordatt.benchmark.runtimes import (
    INFERENCE,
    MEASURES,
    concrete_function,
    exported,
    noise,
    single_thread,
)
from keras_coordatt.detection import SSDLite
from keras_coordatt.layers.freezing import nested_layers
from keras_coordatt.segmentation import DeepLabV3
from keras_coordatt.validation import check_choice, check_positive_int, first_line


def _ssdlite(alpha=1.0, **arguments):
    backbone = MobileNetV2CA(alpha=alpha, include_top=False, **arguments)
    return SSDLite(backbone, 20)


def _deeplab(alpha=1.0, **arguments):
    arguments = {"include_top": False, "output_stride": 16, **arguments}
    return DeepLabV3(MobileNetV2CA(alpha=alpha, **arguments), 21)


# With seed 0, a hidden layer of `"se"` in MobileNetV2CA outputs 0 for all images of noise,
# and LiteRT can't run its int8 file.
SEED = 1

HEADS: dict[str, Callable] = {"SSDLite": _ssdlite, "DeepLabV3": _deeplab}
MODELS: dict[str, Callable] = {**BUILDERS, **HEADS}


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
    quartiles of the ratios say more than the times. Weights are random, and the same in
    every run: Keras's, NumPy's and Python's random numbers are seeded.

    Args:
        models: Names of builders, from `keras_coordatt.applications.list_models()`, in
            their default variant, or `"SSDLite"` and `"DeepLabV3"` (stride 16), both on
            MobileNetV2CA.
        attentions: Values of the builders' `attention`. `None` is always measured.
        image_size: Height and width of the images, in pixels.
        alpha: Width multiplier of the networks that have one.
        measures: Keys of `MEASURES`. Those of exported files and of the TF graph on all
            cores need the TensorFlow backend. Those with one thread of a backend run in
            a process of their own, so scripts need the same guard as for `memory`.
        rounds: Number of rounds.
        memory: Whether to measure peak memory too, in one process per network. A script
            that does needs `if __name__ == "__main__":`, as with any use of
            `multiprocessing`.
        extra: Further attentions to compare, a dict from names to callables that the
            builders take. `REFERENCES` has the layer as it is usually written, and its
            means and multiplications without the convolutions.

    Returns:
        One dict per network: its `model`, `attention` and `parameters`; on the
        TensorFlow backend `multiply_adds` and `peak_memory` in bytes (inference at
        batch size 16, above the process's peak before it built the network; not for
        `extra`); `size_float32` and `size_int8` of the LiteRT files in bytes, if
        they are timed; and for each measure a dict of the median `seconds`, the images
        `per_second`, and `ratio`, the quartiles of the ratio to no attention as
        `(25 %, 50 %, 75 %)`, if that was measured. If a network could not be measured,
        because a runtime isn't installed or a head has no training step, the dict has
        the reason as `absent` instead.

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
    needy = [name for name in measures if name in INFERENCE]
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

    rows, networks, built = [], {}, {}
    for name in models:
        for attention in attentions:
            key = name, attention
            parameters = inspect.signature(MODELS[name]).parameters
            width = {"alpha": alpha} if "alpha" in parameters else {}
            arguments = {
                "input_shape": (image_size, image_size, 3),
                "weights": None,
                "attention": extra.get(attention, attention),
                **width,
            }
            built[key] = arguments
            # The same weights in every run, whatever else is compared.
            keras.utils.set_random_seed(SEED)
            networks[key] = calibrate_batch_norm(MODELS[name](**arguments))
            row: dict[str, Any] = {
                "model": name,
                "attention": attention,
                "parameters": count_trainable(networks[key]),
            }
            if backend == "tensorflow":
                row["multiply_adds"] = multiply_adds(networks[key])
            if memory and backend == "tensorflow" and attention not in extra:
                try:
                    row["peak_memory"] = peak_memory(MODELS[name], arguments)
                except BrokenProcessPool as error:
                    warnings.warn(f"No peak memory of {key}: {error}", stacklevel=2)
            rows.append(row)

    for measure in measures:
        chosen = {
            key: model
            for key, model in networks.items()
            if not (measure.startswith("train") and key[0] in HEADS)
        }
        settings, times = MEASURES[measure], {}
        reasons = {
            key: "no training step for heads" for key in networks.keys() - chosen
        }
        if settings.backend and chosen:
            weights = {key: model.get_weights() for key, model in chosen.items()}
            times, failed = _time_elsewhere(measure, built, weights, rounds)
            reasons.update(failed)
        elif chosen:
            times, failed = _time(measure, chosen, rounds)
            reasons.update(failed)
        for row in rows:
            key = row["model"], row["attention"]
            if key not in times:
                row[measure] = {"absent": reasons[key]}
                continue
            row[measure] = summarize(
                times[key], times.get((key[0], None)), settings.images
            )
            if measure.startswith("litert"):
                precision = measure.split("_")[1]
                row[f"size_{precision}"] = len(exported(networks[key], precision))
    exported.cache_clear()
    return rows


def _time(measure, networks, rounds):
    """Returns times by network, and the reasons why others have none."""
    settings = MEASURES[measure]
    times: dict = {}
    failed: dict = {}
    for part in np.array_split(np.arange(rounds), min(rounds, settings.starts)):
        runs = {}
        for key in [key for key in networks if key not in failed]:
            try:
                runs[key] = settings.prepare(networks[key])
            # A file that is not exact enough is refused with a ValueError.
            except (ImportError, RuntimeError, ValueError) as error:
                failed[key] = first_line(error)
        if runs:
            for key, new in interleaved(runs, len(part), settings.calls).items():
                times[key] = times.get(key, []) + new
    return {key: x for key, x in times.items() if key not in failed}, failed


def _time_elsewhere(measure, built, weights, rounds):
    """Times networks in a process with the measure's backend and one thread.

    Args:
        measure: Key of `MEASURES`.
        built: Dict from the networks' keys to the builders' arguments.
        weights: Dict from keys to weights in the form of `get_weights`.
        rounds: Number of rounds.

    Returns:
        `(times, failed)`: a dict from keys to lists of seconds, and one from the other
        keys to what went wrong.
    """
    backend = MEASURES[measure].backend
    if importlib.util.find_spec(backend) is None:
        return {}, dict.fromkeys(weights, f"No module named {backend!r}")
    failed = {}
    for key in weights:
        try:
            pickle.dumps(built[key])
        # A callable of `extra` may be local; the error's type depends on the Python version.
        except (AttributeError, TypeError, pickle.PicklingError) as error:
            failed[key] = first_line(error)
    weights = {key: value for key, value in weights.items() if key not in failed}
    built = {key: built[key] for key in weights}
    context = multiprocessing.get_context("spawn")
    with (
        single_thread(backend),
        concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool,
    ):
        run = pool.submit(_build_and_time, measure, built, weights, rounds)
        try:
            times, others = run.result()
        except RuntimeError as error:  # also that the process was killed
            times, others = {}, dict.fromkeys(weights, first_line(error))
    return times, failed | others


def _build_and_time(measure, built, weights, rounds):
    found, backend = keras.config.backend(), MEASURES[measure].backend
    if found != backend:  # by the user's script, which the process runs first
        reason = f"KERAS_BACKEND was set to {found}, and must be {backend}"
        return {}, dict.fromkeys(weights, reason)
    networks = {}
    for key in weights:
        networks[key] = MODELS[key[0]](**built[key])
        networks[key].set_weights(weights[key])
    return _time(measure, networks, rounds)


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
    model(noise(model.input_shape), training=True)
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

    Raises:
        ValueError: If `functions` isn't a dict of functions, or a number isn't positive.
    """
    if not isinstance(functions, Mapping) or not all(map(callable, functions.values())):
        raise ValueError(
            f"`functions` must be a dict of functions. Received: {functions!r}"
        )
    check_positive_int("rounds", rounds)
    check_positive_int("calls", calls)
    names = list(functions)
    for name in names * 2:  # warm up
        functions[name]()
    times = {name: [] for name in names}
    for round_ in range(rounds):
        first = round_ % max(1, len(names))
        for name in names[first:] + names[:first]:
            start = time.perf_counter()
            for _ in range(calls):
                functions[name]()
            times[name].append((time.perf_counter() - start) / calls)
    return times


def summarize(own: list[float], plain: list[float] | None, images: int) -> dict:
    seconds = statistics.median(own)
    found: dict = {"seconds": seconds, "per_second": images / seconds}
    if plain is not None:
        ratios = [a / b for a, b in zip(own, plain)]
        found["ratio"] = tuple(np.percentile(ratios, (25, 50, 75)).round(4).tolist())
    return found


def count_trainable(model: keras.Model) -> int:
    return sum(math.prod(w.shape) for w in model.trainable_weights)


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
