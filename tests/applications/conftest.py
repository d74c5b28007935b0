"""Fixtures for tests of whole networks."""

import keras
import numpy as np
import pytest
from keras import ops


@pytest.fixture
def quick_initial_weights(monkeypatch):
    """Draws initial kernels with NumPy: JAX would compile a program for each shape."""

    def draw(self, shape, dtype=None):
        values = np.random.default_rng(0).normal(scale=0.1, size=shape)
        return ops.convert_to_tensor(values.astype("float32"))

    monkeypatch.setattr(keras.initializers.VarianceScaling, "__call__", draw)
