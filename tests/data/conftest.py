"""Pictures of colored rectangles at known positions."""

import keras
import numpy as np
import pytest

from keras_coordatt.data import batches

HEIGHT, WIDTH = 30, 40


@pytest.fixture(scope="session")
def pictures():
    """Twelve pictures of a red, a green and a blue rectangle on gray, and their corners.

    Corners are (x1, y1, x2, y2), in pixels. Rectangles don't overlap, nor touch a border.
    """
    rng = np.random.default_rng(0)
    images = np.full((12, HEIGHT, WIDTH, 3), 60, "uint8")
    places = np.zeros((12, 3, 4), int)
    for image, rectangles in zip(images, places, strict=True):
        for channel, left in enumerate((2, 14, 26)):
            x1, y1 = left + rng.integers(0, 4), rng.integers(3, 14)
            x2, y2 = x1 + rng.integers(5, 8), y1 + rng.integers(6, 13)
            image[y1:y2, x1:x2] = 0
            image[y1:y2, x1:x2, channel] = 250
            rectangles[channel] = x1, y1, x2, y2
    return images, places


@pytest.fixture
def mixed_float16():
    keras.config.set_dtype_policy("mixed_float16")
    yield
    keras.config.set_dtype_policy("float32")


@pytest.fixture
def limit_memory(monkeypatch):
    """Limits the bytes of decoded examples in the cache, and in the shuffle buffer."""

    def limit(size):
        for name in ("_CACHE", "_BUFFER"):
            monkeypatch.setattr(batches, name, size)

    return limit
