import keras
import numpy as np
import pytest
from backends import BACKEND

from keras_coordatt.detection import SSDLite, ssd_box_shapes


def test_initial_scores_match_the_mining_ratio(tiny_backbone, outputs):
    # Mining keeps three negatives per positive, which is of one of five classes.
    model = SSDLite(tiny_backbone(), 5, box_shapes=ssd_box_shapes(3))
    detections = outputs(model.detector(suppress=False), np.zeros((1, 64, 64, 3)))
    np.testing.assert_allclose(detections["scores"], 1 / 20, rtol=1e-3)


def test_detector_gives_the_boxes_that_the_loss_wants(tiny_backbone, outputs):
    model = SSDLite(tiny_backbone(), 2, box_shapes=ssd_box_shapes(2))
    # Offsets of zero are the default boxes themselves, cut off at the image's edge.
    for layer in model.layers:
        if layer.name.endswith("_boxes"):
            layer.set_weights([np.zeros_like(w) for w in layer.get_weights()])
    detections = outputs(model.detector(suppress=False), np.zeros((1, 64, 64, 3)))
    expected = np.clip(model.default_boxes, 0, 1)
    np.testing.assert_allclose(detections["boxes"][0], expected, atol=1e-6)


def test_positions_are_those_of_the_default_boxes(tiny_backbone, outputs):
    # A change in a corner changes the nearest boxes most.
    model = SSDLite(tiny_backbone(size=256), 2, box_shapes=ssd_box_shapes(2))
    rng = np.random.default_rng(0)
    for w in model.trainable_weights:
        if len(w.shape) > 1:
            # Positive, and so small that no activation is at its end
            w.assign(rng.uniform(0, 1 / np.prod(w.shape[:-1]), w.shape))
    blank = rng.uniform(size=(1, 256, 256, 3))
    changed = blank.copy()
    changed[:, :64, 128:] += 1
    before, after = (outputs(model, x)["classes"][0] for x in (blank, changed))
    x, y = (model.default_boxes[:, :2] + model.default_boxes[:, 2:]).T / 2
    first_map = np.arange(len(x)) < 16 * 16 * 3
    difference = np.abs(after - before).max(1)
    different = difference > 1e-3 * difference.max()
    assert different[first_map & (x > 0.5) & (y < 0.25)].all()
    assert not different[first_map & ((x < 0.4) | (y > 0.35))].any()


@pytest.mark.skipif(BACKEND == "tensorflow", reason="no such convolution on CPUs")
def test_channels_first(tiny_backbone, outputs):
    last = SSDLite(tiny_backbone(), 2, box_shapes=ssd_box_shapes(2))
    keras.config.set_image_data_format("channels_first")
    try:
        backbone = tiny_backbone()
    finally:
        keras.config.set_image_data_format("channels_last")
    # The backbone's data format counts, not the one that is global now.
    first = SSDLite(backbone, 2, box_shapes=ssd_box_shapes(2))
    first.set_weights(last.get_weights())
    images = np.random.default_rng(0).normal(size=(2, 64, 64, 3))
    ours, theirs = outputs(first, images.transpose(0, 3, 1, 2)), outputs(last, images)
    for name in ("boxes", "classes"):
        np.testing.assert_allclose(ours[name], theirs[name], atol=1e-5)


def test_bad_arguments_of_the_detector(tiny_backbone):
    model = SSDLite(tiny_backbone(), 2, box_shapes=ssd_box_shapes(2))
    for argument, value in {"score_threshold": 2, "suppress": "no"}.items():
        with pytest.raises(ValueError, match=f"`{argument}`.*Received: "):
            model.detector(**{argument: value})
