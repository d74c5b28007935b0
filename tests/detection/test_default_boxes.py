import numpy as np
import pytest
from keras import ops

from keras_coordatt.detection import default_boxes, ssd_box_shapes
from keras_coordatt.detection.default_boxes import decode, encode, iou


@pytest.mark.parametrize(
    "sizes, boxes, count",
    [
        # The SSD paper's SSD300, and TensorFlow's SSDLite of 300 and of 320 pixels
        ((38, 19, 10, 5, 3, 1), (4, 6, 6, 6, 4, 4), 8732),
        ((19, 10, 5, 3, 2, 1), None, 1917),
        ((20, 10, 5, 3, 2, 1), None, 2034),
    ],
)
def test_published_counts(sizes, boxes, count):
    shapes = ssd_box_shapes() if boxes is None else [[(0.1, 0.1)] * n for n in boxes]
    assert default_boxes([(n, n) for n in sizes], shapes).shape == (count, 4)


def test_shapes_of_ssdlite():
    first, second, *_, last = (np.array(x) for x in ssd_box_shapes())
    np.testing.assert_allclose(
        first, [(0.1, 0.1), (0.2828, 0.1414), (0.1414, 0.2828)], atol=1e-4
    )
    # The scales are 0.2, 0.35, 0.5, 0.65, 0.8, 0.95, and past the last 1.
    np.testing.assert_allclose(
        second,
        [
            (0.35, 0.35),
            (0.35 * 2**0.5, 0.35 / 2**0.5),
            (0.35 / 2**0.5, 0.35 * 2**0.5),
            (0.35 * 3**0.5, 0.35 / 3**0.5),
            (0.35 / 3**0.5, 0.35 * 3**0.5),
            (0.175**0.5, 0.175**0.5),
        ],
    )
    np.testing.assert_allclose(last[[0, 5]], [[0.95] * 2, [0.95**0.5] * 2])


def test_shapes_of_ssd():
    shapes = ssd_box_shapes(6, 0.2, 0.9, reduce_first=False)
    assert [len(x) for x in shapes] == [6] * 6
    np.testing.assert_allclose(
        [x[0][0] for x in shapes], [0.2, 0.34, 0.48, 0.62, 0.76, 0.9]
    )
    np.testing.assert_allclose(shapes[0][5], [(0.2 * 0.34) ** 0.5] * 2)


def test_order_and_positions():
    # Two rows of one position, and then one position of two shapes.
    boxes = default_boxes([(2, 1), (1, 1)], [[(0.2, 0.4)], [(1, 1), (0.5, 0.1)]])
    expected = [
        [0.4, 0.05, 0.6, 0.45],
        [0.4, 0.55, 0.6, 0.95],
        [0, 0, 1, 1],
        [0.25, 0.45, 0.75, 0.55],
    ]
    np.testing.assert_allclose(boxes, expected, atol=1e-7)
    # Columns before rows
    boxes = default_boxes([(2, 2)], [[(0.5, 0.5)]])
    np.testing.assert_allclose(boxes[:, :2], [[0, 0], [0.5, 0], [0, 0.5], [0.5, 0.5]])


def test_squares_are_square_in_any_image():
    height, width = 100, 400
    box = default_boxes([(1, 1)], [[(0.5, 0.5)]], (height, width))[0]
    np.testing.assert_allclose(box * [width, height, width, height], [175, 25, 225, 75])


def test_offsets_are_ssds():
    # A box to the right by a tenth of the default box's width, and twice as high.
    default = np.array([[0.2, 0.2, 0.6, 0.4]], "float32")
    box = np.array([[[0.24, 0.1, 0.64, 0.5]]], "float32")
    offsets = ops.convert_to_numpy(encode(box, default))
    expected = [0.1 / 0.1, 0, 0, np.log(2) / 0.2]
    np.testing.assert_allclose(offsets[0, 0], expected, atol=1e-5)


def test_decode_is_the_inverse():
    rng = np.random.default_rng(0)
    default = default_boxes([(3, 3), (1, 1)], ssd_box_shapes(2))
    corner = rng.uniform(0, 0.7, (4, len(default), 2))
    size = rng.uniform(0.02, 0.3, corner.shape)
    boxes = np.concatenate([corner, corner + size], -1).astype("float32")
    again = ops.convert_to_numpy(decode(encode(boxes, default), default))
    np.testing.assert_allclose(again, boxes, atol=1e-6)


def test_iou_of_small_boxes():
    # Half of one overlaps with half of the other; both are of a hundredth's width.
    a = np.array([[[0.5, 0.5, 0.51, 0.51]]], "float32")
    b = np.array([[[0.505, 0.5, 0.515, 0.51], [0, 0, 0, 0]]], "float32")
    np.testing.assert_allclose(
        ops.convert_to_numpy(iou(a, b)), [[[1 / 3, 0]]], rtol=1e-4
    )


@pytest.mark.parametrize(
    "argument, value",
    [("maps", 1), ("maps", 2.0), ("min_scale", 0), ("min_scale", 1)]
    + [("max_scale", 0.1), ("max_scale", 1.1), ("max_scale", "1")],
)
def test_bad_arguments(argument, value):
    with pytest.raises(ValueError, match=f"`{argument}`.*Received: .*{value}"):
        ssd_box_shapes(**{argument: value})
