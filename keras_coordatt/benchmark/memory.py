"""Peak memory of a network, measured in a process of its own."""

import concurrent.futures
import multiprocessing
import pathlib
import sys
from collections.abc import Callable

import keras


def peak_memory(build: Callable, arguments: dict) -> int:
    """Measures the peak memory of inference at batch size 16.

    Args:
        build: A builder, importable by other processes.
        arguments: Its keyword arguments, with `input_shape`.

    Returns:
        Bytes above the peak of the same process before it built the network.
    """
    # Unlike multiprocessing.Pool, this ends if the process does.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_measure, build, arguments).result()


def _measure(build, arguments):
    import tensorflow as tf

    from keras_coordatt.benchmark.runtimes import concrete_function

    small = keras.Sequential([keras.Input((8,)), keras.layers.Dense(8)])
    concrete_function(small, 1)
    before = _peak()
    graph = concrete_function(build(**arguments), 16)
    graph(tf.random.normal((16, *arguments["input_shape"])))
    return _peak() - before


def _peak() -> int:
    """Returns the peak memory of this process so far, in bytes."""
    try:  # In Linux, `ru_maxrss` is at least what the parent had.
        status = pathlib.Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except OSError:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
