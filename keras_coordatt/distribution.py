"""The devices and processes that train together, and their communication."""

from __future__ import annotations

import contextlib
import dataclasses
import pickle
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import numpy as np


@dataclasses.dataclass(frozen=True)
class Devices:
    """Devices that share every batch.

    Attributes:
        replicas: Number of devices, over all processes.
        processes: Number of processes.
        process: Number of this process, from 0.
        scope: Returns a context manager in which models are distributed.
        synchronize: Whether batch normalization needs `synchronized=True` to average
            over all replicas.
    """

    replicas: int = 1
    processes: int = 1
    process: int = 0
    scope: Callable = contextlib.nullcontext
    synchronize: bool = False

    @property
    def first(self) -> bool:
        """Whether this process prints and writes files."""
        return self.process == 0


_current = [Devices()]


def current() -> Devices:
    """Returns the devices in use: one, unless in the scope of `distribute`."""
    return _current[-1]


@contextlib.contextmanager
def using(devices: Devices) -> Iterator[Devices]:
    """Sets the current devices inside a `with` block."""
    _current.append(devices)
    try:
        yield devices
    finally:
        _current.pop()


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Builds and runs models in this process alone, inside a `with` block."""
    # JAX only: TensorFlow's strategy has one process, and its scope can't be left.
    distribution = keras.distribution.distribution()
    keras.distribution.set_distribution(None)
    try:
        yield
    finally:
        keras.distribution.set_distribution(distribution)


def local_copy(model):
    """Returns a model that this process can run alone: itself, or a copy of it.

    Anything but a model is returned as it is.
    """
    if current().processes == 1 or not isinstance(model, keras.Model):
        return model
    if all(len(weight.value.devices()) == 1 for weight in model.weights):
        return model
    with alone():
        copy = type(model).from_config(model.get_config())
        copy.set_weights(model.get_weights())
    return copy


def sum_over_replicas(value):
    """Returns the sum of a number over TensorFlow's replicas, inside a step of them.

    On other backends a step sees the batch of all devices, so it is the value itself.
    """
    if keras.config.backend() != "tensorflow":
        return value
    import tensorflow as tf

    replica = tf.distribute.get_replica_context()
    if replica is None or replica.num_replicas_in_sync == 1:
        return value
    return replica.all_reduce(tf.distribute.ReduceOp.SUM, value)


def gather(value: Any) -> list:
    """Returns the values of all processes, in their order.

    All processes must call it, at the same point.

    Args:
        value: Whatever pickle can hold.

    Returns:
        One value per process; the same list in each.
    """
    if current().processes == 1:
        return [value]
    from jax.experimental import multihost_utils

    content = np.frombuffer(pickle.dumps(value), "uint8")
    sizes = multihost_utils.process_allgather(np.array(len(content)))
    padded = np.zeros(sizes.max(), "uint8")
    padded[: len(content)] = content
    rows = multihost_utils.process_allgather(padded)
    return [pickle.loads(row[:size].tobytes()) for row, size in zip(rows, sizes)]


def gather_examples(values: Iterable) -> list:
    """Returns the values of all examples in order; each process holds every n-th."""
    shards = gather(list(values))
    count = sum(map(len, shards))
    return [shards[i % len(shards)][i // len(shards)] for i in range(count)]


def wait() -> None:
    """Waits until all processes have called it."""
    gather(None)
