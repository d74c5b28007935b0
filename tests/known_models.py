"""Models without training whose outputs follow from the colors of a picture."""

import keras
import numpy as np
from keras import layers, ops

from keras_coordatt.preprocessing import IMAGENET, PreprocessingRecord
from keras_coordatt.record import set_record

COLORS = ("red", "green", "blue")
SIZE = (32, 48)
CELL = 16
# Difference of the values 255 and 0 in the network's input.
SCALE = np.float32(20)


def _input(size=SIZE):
    image = keras.Input((*size, 3))
    return image, PreprocessingRecord(IMAGENET)(image)


def _colors(x, name, **arguments):
    """A convolution that undoes the preprocessing: RGB in [-10, 10]."""
    layer = layers.Conv2D(3, 1, name=name, **arguments)
    y = layer(x)
    layer.set_weights(
        [
            (SCALE * np.diag(IMAGENET.std)).astype("float32")[None, None],
            SCALE * (np.array(IMAGENET.mean, "float32") - 0.5),
        ]
    )
    return y


def classifier():
    """Which color is the strongest in the mean: the softmax of the mean values."""
    image, x = _input()
    x = layers.GlobalAveragePooling2D(keepdims=True)(x)
    x = layers.Softmax()(layers.Flatten()(_colors(x, "predictions")))
    model = keras.Model(image, x, name="colors")
    set_record(model, task="classification", labels=COLORS)
    return model


def segmenter(size=SIZE):
    """The strongest color of each pixel."""
    image, x = _input(size)
    model = keras.Model(image, _colors(x, "predictions"), name="pixels")
    set_record(model, task="segmentation", labels=COLORS)
    return model


def detector():
    """Finds cells of 16 x 16 pixels that are red or blue; the scores are sigmoids."""
    image, x = _input()
    x = layers.AveragePooling2D(CELL)(x)
    x = layers.Reshape((-1, 3))(_colors(x, "predictions"))
    scores = layers.Activation("sigmoid")(x)[..., ::2]
    boxes = np.array(cells(), "float32")
    boxes = ops.zeros_like(scores[..., :1]) + ops.convert_to_tensor(boxes[None])
    model = keras.Model(image, {"boxes": boxes, "scores": scores}, name="cells")
    set_record(model, task="detection", labels=COLORS[::2])
    return model


def cells():
    """The boxes of the cells, `"rel_xyxy"`."""
    height, width = SIZE
    return [
        (x / width, y / height, (x + CELL) / width, (y + CELL) / height)
        for y in range(0, height, CELL)
        for x in range(0, width, CELL)
    ]


def picture(background, squares=(), size=SIZE, scale=1):
    """A picture of one color, with squares `(color, row, column)` in cells."""
    values = 40 + 180 * np.eye(3)
    pixels = np.full((*size, 3), values[COLORS.index(background)], "uint8")
    for color, row, column in squares:
        rows = slice(row * CELL, (row + 1) * CELL)
        columns = slice(column * CELL, (column + 1) * CELL)
        pixels[rows, columns] = values[COLORS.index(color)]
    return pixels.repeat(scale, 0).repeat(scale, 1)
