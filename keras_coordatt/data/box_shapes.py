"""Measures how SSD's default boxes fit a data set, and proposes boxes that fit."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np

from keras_coordatt.detection.default_boxes import default_boxes, iou, ssd_box_shapes

# Boxes compared at once, and in total.
_CHUNK = 256
_SAMPLE = 5000
# Candidates: scales (square roots of areas) and aspect ratios.
_SCALES = np.geomspace(0.02, 1.0, 30)
_RATIOS = (1, 1.5, 1 / 1.5, 2, 1 / 2, 3, 1 / 3, 5, 1 / 5, 8, 1 / 8)
# Weight of an IoU: from 0 at 0.4 to 1 at 0.7. SSD's threshold for a match is 0.5; the
# ramp prefers shapes that exceed it by a margin.
_LOW, _HIGH = 0.4, 0.7
# Largest scale of a feature map's boxes, in units of its stride. SSD's go up to 4.
_MOST_STRIDES = 6
# Maximum number of shapes per feature map, and the minimum gain per box of one more.
_MOST_SHAPES = 6
_LEAST_GAIN = 0.002

Shapes = list[list[tuple[float, float]]]


def map_sizes(image_size: tuple[int, int], maps: int = 6) -> list[tuple[int, int]]:
    """Returns the sizes of SSDLite's feature maps.

    Args:
        image_size: Height and width of the images.
        maps: Number of feature maps.

    Returns:
        Height and width of each: strides of 16, 32, 64, ...

    Example:

    >>> map_sizes((320, 320))
    [(20, 20), (10, 10), (5, 5), (3, 3), (2, 2), (1, 1)]
    """
    sizes, (height, width) = [], image_size
    for stride in range(1, maps + 4):
        height, width = -(-height // 2), -(-width // 2)
        if stride >= 4:
            sizes.append((height, width))
    return sizes


def find_matched(
    boxes: np.ndarray,
    image_size: tuple[int, int],
    box_shapes: Sequence[Sequence[tuple[float, float]]] | None = None,
) -> np.ndarray:
    """Finds the boxes that have a default box of an IoU above 0.5.

    SSD's training gives every object at least one default box, but one that barely
    overlaps it learns little: such objects are hardly ever found.

    Args:
        boxes: `(N, 4)`, (x1, y1, x2, y2) as fractions of the image's width and height.
        image_size: Height and width of the images.
        box_shapes: Same as in `SSDLite`.

    Returns:
        Array `(N,)` of bool.
    """
    shapes = ssd_box_shapes() if box_shapes is None else box_shapes
    default = default_boxes(map_sizes(image_size, len(shapes)), shapes, image_size)
    best = [
        keras.ops.convert_to_numpy(iou(default, boxes[None, i : i + _CHUNK])).max(1)[0]
        for i in range(0, len(boxes), _CHUNK)
    ]
    return np.concatenate([*best, np.zeros(0)]) > 0.5


def fit_box_shapes(boxes: np.ndarray, image_size: tuple[int, int]) -> Shapes:
    """Finds shapes of default boxes that fit objects.

    Starting with none, it adds the shape to the feature map where the best IoU of all
    objects gains most, until little is gained. A shape's best IoU with an object is
    that at the nearest position of the feature map, so small objects get shapes on the
    feature maps with many positions. Large shapes are left to the other feature maps.

    Args:
        boxes: `(N, 4)`, (x1, y1, x2, y2) as fractions of the image's width and height.
        image_size: Height and width of the images.

    Returns:
        The `box_shapes` of `SSDLite`, for 2 to 6 feature maps.
    """
    sizes = map_sizes(image_size)
    candidates = np.array([(s * r**0.5, s / r**0.5) for s in _SCALES for r in _RATIOS])
    values = np.stack(
        [_best_iou(sample(boxes), image_size, size, candidates) for size in sizes]
    )
    values = np.clip((values - _LOW) / (_HIGH - _LOW), 0, 1)
    scales = np.sqrt(candidates.prod(axis=1))
    for level, size in enumerate(sizes[:-1]):
        values[level, :, scales > _MOST_STRIDES / min(size)] = 0
    best = np.zeros(values.shape[1])
    shapes: Shapes = [[] for _ in sizes]
    while True:
        gains = np.maximum(values - best[:, None], 0).mean(axis=1)
        gains[[len(found) >= _MOST_SHAPES for found in shapes]] = 0
        level, index = np.unravel_index(gains.argmax(), gains.shape)
        if gains[level, index] < _LEAST_GAIN:
            break
        height, width = (float(f"{x:.3g}") for x in candidates[index])
        shapes[level].append((height, width))
        best = np.maximum(best, values[level, :, index])
    while len(shapes) > 2 and not shapes[-1]:
        shapes.pop()
    # Every feature map needs a shape.
    squares = ssd_box_shapes(len(sizes), reduce_first=False)
    return [found or squares[i][:1] for i, found in enumerate(shapes)]


def sample(boxes: np.ndarray) -> np.ndarray:
    """Returns some of many boxes, always the same."""
    if len(boxes) <= _SAMPLE:
        return boxes
    return np.random.default_rng(0).choice(boxes, _SAMPLE, replace=False)


def _best_iou(boxes, image_size, map_size, shapes):
    """Returns IoUs at the nearest position of a feature map: `(N, S)`."""
    intersection = 1.0
    for axis, (length, cells) in enumerate(
        zip(image_size[::-1], map_size[::-1], strict=True)
    ):
        low, high = boxes[:, axis, None], boxes[:, axis + 2, None]
        center = (np.floor((low + high) / 2 * cells).clip(0, cells - 1) + 0.5) / cells
        half = shapes[None, :, axis] * min(image_size) / length / 2
        overlap = np.minimum(center + half, high) - np.maximum(center - half, low)
        intersection = intersection * np.maximum(overlap, 0)
    own = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)[:, None]
    areas = np.prod(shapes, axis=1) * min(image_size) ** 2 / np.prod(image_size)
    return intersection / (own + areas - intersection)
