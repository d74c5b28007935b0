import numpy as np
import pytest
from backends import gradient
from keras import ops

from keras_coordatt.detection.losses import multibox_loss


def examples(matched, boxes=30, classes=4, seed=0):
    """Outputs and targets of images with so many matches each."""
    rng = np.random.default_rng(seed)
    shape = (len(matched), boxes)
    offsets, targets = rng.normal(scale=2, size=(2, *shape, 4)).astype("float32")
    logits = rng.normal(size=(*shape, classes + 1)).astype("float32")
    true = np.zeros(shape, "int32")
    for i, count in enumerate(matched):
        true[i, rng.permutation(boxes)[:count]] = rng.integers(1, classes + 1, count)
    return offsets, logits, targets, true


def reference(offsets, logits, targets, true):
    """The loss, a box at a time."""
    box_loss = class_loss = 0.0
    for o, z, t, k in zip(offsets, logits.astype("float64"), targets, true):
        z = z - z.max(1, keepdims=True)
        cross_entropy = np.log(np.exp(z).sum(1)) - z[range(len(k)), k]
        for i in np.flatnonzero(k):
            for error in np.abs(o[i].astype("float64") - t[i]):
                box_loss += error - 0.5 if error > 1 else error**2 / 2
            class_loss += cross_entropy[i]
        negatives = sorted(cross_entropy[k == 0])[::-1]
        class_loss += sum(negatives[: max(3 * np.count_nonzero(k), 3)])
    matches = max(np.count_nonzero(true), 1)
    return box_loss / matches, class_loss / matches


@pytest.mark.parametrize("matched", [(1,), (3, 5), (4, 0), (0, 0), (9, 30)], ids=str)
def test_against_a_box_at_a_time(matched, compiled):
    example = examples(matched)
    ours = [float(x) for x in compiled(multibox_loss)(*example)]
    np.testing.assert_allclose(ours, reference(*example), rtol=1e-5)
    assert (ours[0] > 0) == (sum(matched) > 0)


def test_easy_background_has_no_gradient():
    offsets, logits, targets, true = examples((2,))
    grad = gradient(lambda z: multibox_loss(offsets, z, targets, true)[1], logits)
    # Two matches, and six of the background
    assert np.count_nonzero(np.abs(grad[0]).sum(-1)) == 8
    grad = gradient(lambda o: multibox_loss(o, logits, targets, true)[0], offsets)
    assert np.count_nonzero(np.abs(grad[0]).sum(-1)) == 2


def test_half_precision_is_summed_in_single():
    # The sums are past what half precision can hold.
    offsets, logits, targets, true = examples((30, 30))
    offsets, logits = (ops.cast(3000 * x, "float16") for x in (offsets, logits))
    ours = [float(x) for x in multibox_loss(offsets, logits, targets, true)]
    halves = [ops.convert_to_numpy(x) for x in (offsets, logits)]
    expected = reference(halves[0], halves[1], targets, true)
    assert sum(expected) * 60 > 1e5
    np.testing.assert_allclose(ours, expected, rtol=1e-3)


def test_large_logits():
    offsets, logits, targets, true = examples((3, 5))
    loss = multibox_loss(offsets, 1000 * logits, targets, true)[1]
    assert np.isfinite(float(loss))
