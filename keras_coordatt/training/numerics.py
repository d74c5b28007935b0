"""Precision and determinism of a training."""

import contextlib
from collections.abc import Iterator

import keras


@contextlib.contextmanager
def dtype_policy(name: str) -> Iterator[None]:
    """Sets Keras's global dtype policy inside a `with` block."""
    policy = keras.config.dtype_policy()
    if name != "float32":
        keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(policy)


@contextlib.contextmanager
def operations(deterministic: bool) -> Iterator[None]:
    """Restricts the backend to deterministic operations inside a `with` block."""
    if deterministic and keras.config.backend() == "tensorflow":
        import tensorflow as tf

        # It can't be disabled again by a public function.
        tf.config.experimental.enable_op_determinism()
    if deterministic and keras.config.backend() == "torch":
        import torch

        torch.use_deterministic_algorithms(True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(False)
        return
    yield
