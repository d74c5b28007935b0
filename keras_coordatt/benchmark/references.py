"""References: the layer as usually written, the authors' network, Keras's builders."""

import contextlib
import importlib
import io
import os
import pathlib
import sys
import time
import timeit
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from keras_coordatt.applications import EfficientNetCA, MobileNetV2CA
from keras_coordatt.benchmark.measure import interleaved, summarize
from keras_coordatt.benchmark.runtimes import onnx_run
from keras_coordatt.validation import check_path


class PlainPort(layers.Layer):
    """Coordinate attention as it is usually written in Keras, channels last.

    Args:
        **kwargs: Same as in `keras.layers.Layer`.
    """

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)

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
    """Coordinate attention without its convolutions, in plain Keras operations.

    What remains are the two means and the two multiplications of the feature map, as a
    reference for their share of the cost. It is not a lower bound: in the form of
    `keras_coordatt.layers.lowering`, the complete layer is faster in ONNX Runtime. A
    sigmoid of the means keeps the products bounded, so that exported files can be
    compared with the model.

    Args:
        **kwargs: Same as in `keras.layers.Layer`.
    """

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)

    def call(self, inputs):
        rows = ops.mean(inputs, axis=2, keepdims=True)
        columns = ops.mean(inputs, axis=1, keepdims=True)
        return inputs * ops.sigmoid(rows) * ops.sigmoid(columns)


# To compare the layer with: `benchmark(extra=REFERENCES)`
REFERENCES = {"plain port": PlainPort, "passes only": PassesOnly}


def check_official(path: str | os.PathLike) -> None:
    """Checks that a folder holds the authors' network.

    Args:
        path: The folder.

    Raises:
        ValueError: If it doesn't.
    """
    if not pathlib.Path(check_path("path", path), "mbv2_ca.py").is_file():
        raise ValueError(f"`path` must have the file mbv2_ca.py. Received: {path}")


def official_rows(path: str | os.PathLike, rounds: int = 10) -> list[dict]:
    """Measures the authors' PyTorch network, with and without its attention.

    Args:
        path: The folder of your copy of the authors' repository, with `mbv2_ca.py`.
            It is imported, and so executed.
        rounds: Number of rounds.

    Returns:
        One dict per network, same as from `benchmark`, with the measures `torch_1`,
        `torch_16`, `torch_train_32`, `onnx_1` and `onnx_16`. The latter two are ONNX
        files of PyTorch's older exporter, for one batch size, because the network does
        not export with dynamic shapes. If timm is installed, its variant of the layer
        is measured in the same network.

    Raises:
        ValueError: If there is no `mbv2_ca.py`, or PyTorch is not installed.
    """
    check_official(path)
    try:
        import torch
    except ImportError as error:
        raise ValueError(
            "The authors' network needs PyTorch to be installed"
        ) from error

    folder = os.fspath(path)
    sys.path.insert(0, folder)
    try:
        official = importlib.import_module("mbv2_ca")
    finally:
        sys.path.remove(folder)

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

    def in_onnx(network, batch_size):
        images = torch.randn(batch_size, 3, 224, 224)
        file = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the older exporter is deprecated
            torch.onnx.export(network.eval(), (images,), file, dynamo=False)
        return onnx_run(file.getvalue(), np.asarray(images))

    for measure, prepare, batch_size, calls in (
        ("torch_1", inference, 1, 5),
        ("torch_16", inference, 16, 1),
        ("onnx_1", in_onnx, 1, 5),
        ("onnx_16", in_onnx, 16, 1),
        ("torch_train_32", training, 32, 1),
    ):
        try:
            runs = {name: prepare(net, batch_size) for name, net in networks.items()}
        except ImportError as error:
            for row in rows:
                row[measure] = {"absent": str(error)}
            continue
        times = interleaved(runs, rounds, calls)
        for row in rows:
            row[measure] = summarize(times[row["attention"]], times[None], batch_size)
    return rows


def build_times(repeats: int = 5) -> dict[str, list[float]]:
    """Compares the time to build networks with that of Keras's plain ones.

    It is CPU time, without the collection of garbage from networks built before.

    Args:
        repeats: How often each is built, in turns.

    Returns:
        Dict from networks to the ratios, one per repeat.

    Example:

    >>> build_times(repeats=3)
    {'MobileNetV2CA': [1.5, 1.6, 1.5], 'EfficientNetCA b0': [1.1, 1.2, 1.1]}
    """
    pairs: dict[str, tuple[Callable, Callable]] = {
        "MobileNetV2CA": (MobileNetV2CA, keras.applications.MobileNetV2),
        "EfficientNetCA b0": (EfficientNetCA, keras.applications.EfficientNetB0),
    }
    ratios = {}
    for name, (ours, theirs) in pairs.items():
        _build_time(ours), _build_time(theirs)  # warm up
        ratios[name] = [_build_time(ours) / _build_time(theirs) for _ in range(repeats)]
    return ratios


def _build_time(builder: Callable) -> float:
    return timeit.timeit(
        lambda: builder(weights=None),
        setup=keras.backend.clear_session,
        timer=time.process_time,
        number=1,
    )
