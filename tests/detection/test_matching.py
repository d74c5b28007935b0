import numpy as np
import pytest
from keras import ops

from keras_coordatt.detection import default_boxes
from keras_coordatt.detection.matching import match, training_targets

EVEN = default_boxes([(4, 4), (2, 2)], [[(0.3, 0.3), (0.4, 0.2)], [(0.6, 0.6)]])
# Without boxes of the same size, between which there are ties
NOISE = np.random.default_rng(0).uniform(-0.02, 0.02, EVEN.shape)
DEFAULTS = (EVEN + NOISE).astype("float32")


def random_objects(count, seed):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 0.7, (count, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0.02, 0.6, (count, 2))], 1)
    return np.minimum(boxes, 1)


def batch(*images, rows=8):
    """Pads lists of boxes; their labels are 0, 1, 2, ..."""
    boxes = np.zeros((len(images), rows, 4), "float32")
    labels = np.full((len(images), rows), -1, "int32")
    for i, objects in enumerate(images):
        boxes[i, : len(objects)] = np.reshape(objects, (-1, 4))
        labels[i, : len(objects)] = range(len(objects))
    return boxes, labels


@pytest.fixture
def matched(compiled):
    def run(boxes, labels, defaults=DEFAULTS):
        function = compiled(lambda *arrays: match(defaults, *arrays))
        return ops.convert_to_numpy(function(boxes, labels))

    return run


def overlaps(boxes, defaults=DEFAULTS):
    """IoU in double precision, a pair at a time."""
    result = np.zeros((len(defaults), len(boxes)))
    for i, a in enumerate(defaults.astype("float64")):
        for j, b in enumerate(boxes):
            width = min(a[2], b[2]) - max(a[0], b[0])
            height = min(a[3], b[3]) - max(a[1], b[1])
            inner = max(width, 0) * max(height, 0)
            areas = [(x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)]
            result[i, j] = inner / (sum(areas) - inner)
    return result


def reference(boxes):
    """SSD's matching, a pair at a time."""
    iou = overlaps(boxes)
    pairs = sorted(np.ndindex(iou.shape), key=lambda pair: -iou[pair])
    owner, done = np.full(len(DEFAULTS), -1), set()
    for i, j in pairs:
        if iou[i, j] > 0 and owner[i] < 0 and j not in done:
            owner[i] = j
            done.add(j)
    for i in range(len(DEFAULTS)):
        if owner[i] < 0 and iou[i].max(initial=0) >= 0.5:
            owner[i] = iou[i].argmax()
    return owner


def test_against_a_pair_at_a_time(matched):
    images = [random_objects(1 + seed % 8, seed) for seed in range(40)]
    expected = np.stack([reference(x) for x in images])
    # There is something to tell apart.
    assert len(np.unique(expected)) == 9
    np.testing.assert_array_equal(matched(*batch(*images)), expected)


def test_objects_that_want_the_same_box(matched):
    # All are near one default box, so some must go further than their best.
    crowd = DEFAULTS[5] + np.random.default_rng(0).uniform(-0.02, 0.02, (8, 4))
    expected = reference(crowd)
    assert set(range(8)) <= set(expected)
    np.testing.assert_array_equal(matched(*batch(crowd))[0], expected)


def test_equal_objects_each_get_a_box(matched):
    index = matched(*batch([DEFAULTS[5]] * 3))[0]
    assert {0, 1, 2} <= set(index)


def test_object_between_the_positions_gets_one_box(matched):
    # Equally near to two default boxes: one is enough.
    between = (EVEN[1] + EVEN[3]) / 2 + [0.05, 0.05, -0.05, -0.05]
    iou = overlaps([between], EVEN)[:, 0]
    assert np.isclose(iou[1], iou[3]) and np.isclose(iou[1], iou.max())
    assert iou.max() < 0.5
    assert (matched(*batch([between]), EVEN)[0] == 0).sum() == 1


@pytest.mark.parametrize("rows", [1, 5])
def test_padding_matches_nothing(rows, matched):
    assert (matched(*batch([], [], rows=rows)) == -1).all()


def test_padding_is_ignored_whatever_its_boxes_are(matched):
    boxes, labels = batch(random_objects(3, 0), random_objects(3, 1))
    expected = matched(boxes, labels)
    boxes[:, 3:] = DEFAULTS[:5]
    np.testing.assert_array_equal(matched(boxes, labels), expected)


def test_box_without_an_area_matches_nothing(matched):
    index = matched(*batch([[0.3, 0.3, 0.3, 0.6], *random_objects(1, 0)]))
    assert 0 not in index and 1 in index


def test_targets(compiled):
    boxes, labels = batch(random_objects(4, 3), [])
    labels[0, :4] = [7, 0, 2, 7]
    targets = compiled(lambda *arrays: training_targets(DEFAULTS, *arrays))
    offsets, classes = map(ops.convert_to_numpy, targets(boxes, labels))
    index = reference(boxes[0, :4])
    expected = np.where(index >= 0, labels[0, :4][index] + 1, 0)
    np.testing.assert_array_equal(classes, [expected, 0 * expected])

    found = index >= 0
    center, size = (
        lambda x: (x[:, :2] + x[:, 2:]) / 2,
        lambda x: x[:, 2:] - x[:, :2],
    )
    box, default = boxes[0][index[found]].astype("float64"), DEFAULTS[found]
    moved = (center(box) - center(default)) / size(default) / 0.1
    grown = np.log(size(box) / size(default)) / 0.2
    np.testing.assert_allclose(
        offsets[0, found], np.concatenate([moved, grown], 1), atol=1e-4
    )
    assert np.isfinite(offsets).all()


def test_targets_without_rows(compiled):
    boxes, labels = batch([], [], rows=0)
    targets = compiled(lambda *arrays: training_targets(DEFAULTS, *arrays))
    _, classes = targets(boxes, labels)
    assert (ops.convert_to_numpy(classes) == 0).all()
