"""A backbone that is quick to trace, and images to train a detector on."""

import keras
import networks
import numpy as np
import pytest
from backends import BACKEND
from keras import layers


@pytest.fixture(scope="module", autouse=True)
def quick_initial_weights():
    with networks.quick_initial_weights():
        yield


@pytest.fixture
def tiny_backbone():
    """Returns a function that builds a network of two blocks, named as ours are."""

    def build(size=64, channels=8):
        first = keras.config.image_data_format() == "channels_first"
        image = keras.Input((3, size, size) if first else (size, size, 3))
        x = layers.Conv2D(channels, 4, 4, "same", activation="relu", name="Conv1")(
            image
        )
        x = layers.DepthwiseConv2D(4, 4, "same", name="block_1_depthwise")(x)
        x = layers.Conv2D(channels, 1, name="block_1_project")(x)
        x = layers.Conv2D(3 * channels, 1, name="block_2_expand")(x)
        x = layers.ReLU(6.0, name="block_2_expand_relu")(x)
        x = layers.ZeroPadding2D(1, name="block_2_pad")(x)
        x = layers.DepthwiseConv2D(3, 2, name="block_2_depthwise")(x)
        x = layers.Conv2D(channels, 1, name="block_2_project")(x)
        x = layers.Conv2D(4 * channels, 1, activation="relu", name="Conv_1")(x)
        return keras.Model(image, x, name="tiny")

    return build


@pytest.fixture
def squares():
    """Returns a function that draws red and green squares on dark noise."""

    def draw(count, size=64, seed=0):
        rng = np.random.default_rng(seed)
        images = rng.uniform(-0.2, 0.2, (count, size, size, 3)).astype("float32")
        boxes = np.zeros((count, 3, 4), "float32")
        labels = np.full((count, 3), -1, "int32")
        for i in range(count):
            # One in the left half, and in every second image one in the right half.
            for j in range(1 + i % 2):
                side = rng.integers(size // 4, size // 2)
                left, top = rng.integers(0, (size // 2 - side + 1, size - side + 1))
                left += j * size // 2
                labels[i, j] = rng.integers(2)
                images[i, top : top + side, left : left + side, labels[i, j]] = 1
                boxes[i, j] = np.array([left, top, left + side, top + side]) / size
        return images, {"boxes": boxes, "labels": labels}

    return draw


@pytest.fixture
def outputs():
    """Returns a function from a model and images to its outputs as NumPy arrays."""

    def run(model, images):
        # JAX compiles one graph in less time than every operation apart.
        call = model.predict_on_batch if BACKEND == "jax" else model
        found = call(images.astype("float32"))
        return {k: keras.ops.convert_to_numpy(v) for k, v in found.items()}

    return run


@pytest.fixture
def compiled():
    """Compiles a function of arrays on JAX, where to run it by operations is slow."""
    if BACKEND != "jax":
        return lambda function: function
    import jax

    return jax.jit
