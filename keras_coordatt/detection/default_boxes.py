"""SSD's default boxes, and boxes as offsets from them.

Boxes are `"rel_xyxy"`: (x1, y1, x2, y2) as fractions of the image's width and height.
`decode` and `iou`, which detectors contain, use `keras.ops` instead of
`keras.utils.bounding_boxes`, which computes with TensorFlow while JAX exports a
SavedModel.
"""

import itertools
import math
from collections.abc import Sequence

import numpy as np
from keras import ops
from keras.utils import bounding_boxes

from keras_coordatt.validation import (
    MAX_SIZE,
    check_array,
    check_choice,
    check_number,
    check_positive_int,
    check_sequence,
    height_and_width,
)

RATIOS = (1, 2, 1 / 2, 3, 1 / 3)

# Offsets of the center, and of the logarithm of the size, are divided by these.
VARIANCE = (0.1, 0.1, 0.2, 0.2)


def ssd_box_shapes(
    maps: int = 6,
    min_scale: float = 0.2,
    max_scale: float = 0.95,
    reduce_first: bool = True,
) -> list[list[tuple[float, float]]]:
    """Returns the shapes of SSD's default boxes for each feature map.

    The scale, the square root of a box's area, grows linearly from one feature map to
    the next. Every position has boxes with the aspect ratios (width by height) 1, 2,
    1/2, 3 and 1/3, and a square whose scale is the geometric mean of this feature map's
    and the next one's.

    Args:
        maps: Number of feature maps, at least 2. Defaults to 6.
        min_scale: Scale of the first feature map, in (0, 1). Small objects need small
            boxes: they must cover at least half of an object. Defaults to 0.2, as in
            SSD.
        max_scale: Scale of the last feature map, in (0, 1]. Defaults to 0.95, as in
            SSDLite.
        reduce_first: Whether the first feature map, which has the most positions, has
            only three boxes per position, as in SSDLite: the aspect ratios 2 and 1/2,
            and a square of half the scale. Defaults to `True`.

    Returns:
        One list per feature map of `(width, height)`, as fractions of the image's
        shorter side.

    Raises:
        ValueError: If an argument is out of its range.

    Example:

    >>> [len(shapes) for shapes in ssd_box_shapes()]
    [3, 6, 6, 6, 6, 6]

    Reference:
        - [SSD: Single Shot MultiBox Detector](https://arxiv.org/abs/1512.02325)
          (ECCV 2016), section 2.2
        - [MobileNetV2](https://arxiv.org/abs/1801.04381) (CVPR 2018), section 6.2
    """
    check_choice("reduce_first", reduce_first, (True, False))
    if check_positive_int("maps", maps, MAX_SIZE) < 2:
        raise ValueError(f"`maps` must be at least 2. Received: {maps}")
    check_number("min_scale", min_scale, 0, 1)
    if check_number("max_scale", max_scale, 0) > 1 or max_scale < min_scale:
        raise ValueError(
            "`max_scale` must be a number from `min_scale` to 1. Received: "
            f"min_scale={min_scale}, max_scale={max_scale}"
        )
    scales = [*np.linspace(min_scale, max_scale, maps).tolist(), 1.0]
    shapes = [
        [_shape(scale, ratio) for ratio in RATIOS] + [_shape(math.sqrt(scale * next))]
        for scale, next in itertools.pairwise(scales)
    ]
    if reduce_first:
        shapes[0] = [_shape(min_scale / 2), *shapes[0][1:3]]
    return shapes


def _shape(scale, ratio=1):
    return scale * math.sqrt(ratio), scale / math.sqrt(ratio)


def default_boxes(
    map_sizes: Sequence[tuple[int, int]],
    box_shapes: Sequence[Sequence[tuple[float, float]]],
    image_size: tuple[int, int] = (1, 1),
) -> np.ndarray:
    """Returns the default boxes of an image.

    Args:
        map_sizes: Height and width of each feature map.
        box_shapes: Shapes for each feature map, such as from `ssd_box_shapes`.
        image_size: Height and width of the image; only their ratio matters. Defaults
            to a square.

    Returns:
        Array `(A, 4)`, ordered by feature map, row, column and shape. Boxes near the
        edge extend beyond the image.

    Raises:
        ValueError: If an argument isn't of this form.

    Example:

    >>> sizes = [(20, 20), (10, 10), (5, 5), (3, 3), (2, 2), (1, 1)]
    >>> default_boxes(sizes, ssd_box_shapes()).shape
    (2034, 4)
    """
    image_size = height_and_width(image_size)
    height, width = (min(image_size) / size for size in image_size)
    sizes = [
        [
            check_positive_int("map_sizes", side, MAX_SIZE)
            for side in check_sequence("map_sizes", size, 2)
        ]
        for size in check_sequence("map_sizes", map_sizes)
    ]
    if not sizes:
        raise ValueError(f"`map_sizes` must have a feature map. Received: {map_sizes}")
    boxes = []
    for (rows, columns), shapes in zip(
        sizes, check_sequence("box_shapes", box_shapes, len(sizes))
    ):
        shapes = check_array("box_shapes", shapes, 2)
        if shapes.shape[1] != 2:
            raise ValueError(
                f"`box_shapes` must be pairs (width, height). Received: {box_shapes!r}"
            )
        y, x, i = np.mgrid[:rows, :columns, : len(shapes)].reshape(3, -1)
        center = np.stack([(x + 0.5) / columns, (y + 0.5) / rows], axis=1)
        half = shapes[i] * (width, height) / 2
        boxes.append(np.concatenate([center - half, center + half], axis=1))
    return np.concatenate(boxes).astype("float32")


def encode(boxes, default_boxes):
    """Encodes boxes as offsets of center and size from default boxes.

    Args:
        boxes: `(N, A, 4)`, one box per default box.
        default_boxes: `(A, 4)`.

    Returns:
        Offsets `(N, A, 4)`, of about unit variance.
    """
    return bounding_boxes.encode_box_to_deltas(
        default_boxes, boxes, "xyxy", "xyxy", "center_xywh", VARIANCE
    )


def decode(offsets, default_boxes):
    """Inverts `encode`.

    Args:
        offsets: `(N, A, 4)`.
        default_boxes: `(A, 4)`.

    Returns:
        Boxes `(N, A, 4)`.
    """
    boxes = ops.convert_to_tensor(default_boxes, "float32")
    center, size = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    offsets = ops.multiply(offsets, ops.convert_to_tensor(VARIANCE, "float32"))
    center = center + offsets[..., :2] * size
    half = size * ops.exp(offsets[..., 2:]) / 2
    return ops.concatenate([center - half, center + half], axis=-1)


def iou(boxes, others):
    """Computes the intersection over union of all pairs of boxes.

    Args:
        boxes: `(N, A, 4)` or `(A, 4)`.
        others: `(N, M, 4)`.

    Returns:
        `(N, A, M)`.
    """
    boxes = ops.convert_to_tensor(boxes)[..., None, :]
    others = ops.convert_to_tensor(others)[..., None, :, :]
    sides = ops.minimum(boxes[..., 2:], others[..., 2:]) - ops.maximum(
        boxes[..., :2], others[..., :2]
    )
    intersection = ops.prod(ops.maximum(sides, 0.0), axis=-1)
    areas = ops.prod(boxes[..., 2:] - boxes[..., :2], axis=-1) + ops.prod(
        others[..., 2:] - others[..., :2], axis=-1
    )
    # The IoU of boxes without an area is 0.
    return intersection / ops.maximum(areas - intersection, 1e-12)
