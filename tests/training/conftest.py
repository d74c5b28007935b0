"""A network that trains in a moment, and data for each task."""

import keras
import pytest
from keras import layers

from keras_coordatt.applications.blocks import image_entrance


def tiny(
    input_shape,
    classes=3,
    weights=None,
    skip_mismatch=False,
    include_preprocessing=False,
):
    """Builds a classifier of two layers, as builders of networks do."""
    image = keras.Input(input_shape)
    x = image_entrance(image, include_preprocessing)
    x = layers.Conv2D(4, 3, 4, name="conv")(x)
    x = layers.BatchNormalization(axis=1 if input_shape[0] == 3 else -1)(x)
    # Not the maximum: XLA without optimization, as in these tests, makes its gradient NaN.
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dropout(0.2)(x)
    x = layers.Dense(classes, activation="softmax", name="predictions")(x)
    model = keras.Model(image, x, name="tiny")
    if weights is not None:
        model.load_weights(weights, skip_mismatch=skip_mismatch)
    return model


def residual(input_shape, classes=3, weights=None, skip_mismatch=False):
    """Same as `tiny`, with residual blocks, which have several widths."""
    image = keras.Input(input_shape)
    x = layers.Conv2D(4, 3, 4, name="conv")(image_entrance(image, False))
    for width in (4, 8, 12):
        name, x = f"block_{width}", layers.Conv2D(width, 1)(x)
        y = layers.Conv2D(width, 1, name=f"{name}_project")(x)
        y = layers.BatchNormalization(name=f"{name}_project_BN")(y)
        x = layers.Add(name=f"{name}_add")([x, y])
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dense(classes, activation="softmax", name="predictions")(x)
    model = keras.Model(image, x, name="residual")
    if weights is not None:
        model.load_weights(weights, skip_mismatch=skip_mismatch)
    return model


@pytest.fixture
def build():
    return tiny


@pytest.fixture
def quick():
    """Values of a recipe for few, small images."""
    return {"image_size": 32, "batch_size": 4, "epochs": 2, "zero_init": False}
