import gc
import weakref

import keras
import numpy as np
import pytest
from keras import ops

from keras_coordatt.detection import SSDLite, evaluate_detections, ssd_box_shapes

pytest.importorskip("pycocotools")

# The number of detections per image that COCO counts.
ROWS = 100


@pytest.fixture(scope="module")
def oracle():
    """A detector whose images encode its detections: rows of box, label and score."""
    image = keras.Input((ROWS, 6, 1))
    return keras.Model(
        image,
        {
            "boxes": image[:, :, :4, 0],
            "labels": ops.cast(image[:, :, 4, 0], "int32"),
            "scores": image[:, :, 5, 0],
        },
    )


def padded(rows, columns):
    result = np.zeros((ROWS, columns), "float32")
    result[:, 4] = -1
    if len(rows):
        result[: len(rows)] = np.array(rows)[:, :columns]
    return result


def batch(*images):
    """A batch of images of (detections, objects), rows of box, label and a score."""
    x = np.stack([padded([(*row, 0.9)[:6] for row in rows], 6) for rows, _ in images])
    y = np.stack([padded(rows, 5) for _, rows in images])
    return x[..., None], {"boxes": y[..., :4], "labels": y[..., 4].astype("int32")}


A = (0.1, 0.1, 0.4, 0.5, 0)
B = (0.6, 0.1, 0.7, 0.2, 0)
C = (0.3, 0.6, 0.9, 0.9, 1)


def test_perfect(oracle, capsys):
    rows = [A, B, C]
    result = evaluate_detections(
        oracle, [batch((rows, rows), ([], [])), batch((rows, rows))]
    )
    by_class = result.pop("AP_by_class")
    assert result == pytest.approx({"AP": 1, "AP50": 1, "AP75": 1})
    assert by_class == pytest.approx({0: 1, 1: 1})
    assert capsys.readouterr().out == ""


def test_empty(oracle):
    result = evaluate_detections(oracle, [batch(([], [A, C]))])
    assert result == {"AP": 0, "AP50": 0, "AP75": 0, "AP_by_class": {0: 0, 1: 0}}


def test_one_of_two(oracle):
    # The precision is 1 at the recalls 0, 0.01, ..., 0.5 of 101, and then 0.
    result = evaluate_detections(oracle, [batch(([A, C], [A, B, C]))])
    expected = [51 / 101, 1]
    np.testing.assert_allclose(list(result["AP_by_class"].values()), expected)
    np.testing.assert_allclose(result["AP"], np.mean(expected))


def test_inexact(oracle):
    # An IoU of 0.82 is enough for 0.5, 0.55, ..., 0.8: seven of ten.
    near = (0.1, 0.1, 0.1 + 0.3 * 0.82, 0.5, 0)
    result = evaluate_detections(oracle, [batch(([near], [A]))])
    assert result["AP50"] == result["AP75"] == pytest.approx(1)
    assert result["AP"] == pytest.approx(0.7)


def test_sure_detections_come_first(oracle):
    # The wrong detection comes first, with a low score.
    result = evaluate_detections(oracle, [batch(([(*B, 0.2)], []), ([(*A, 0.8)], [A]))])
    assert result["AP"] == pytest.approx(1)


def test_wrong_class_and_wrong_image(oracle):
    wrong = (*A[:4], 1)
    assert evaluate_detections(oracle, [batch(([wrong], [A]))])["AP"] == 0
    result = evaluate_detections(oracle, [batch(([A], [])), batch(([], [A]))])
    assert result["AP"] == 0


def test_classes_without_objects_do_not_count(oracle):
    batches = [batch(([A, C], [A]))]
    result = evaluate_detections(oracle, batches, class_names=["a", "c", "d"])
    assert result["AP"] == pytest.approx(1)
    assert result["AP_by_class"]["a"] == pytest.approx(1)
    assert list(result["AP_by_class"]) == ["a", "c", "d"]
    assert np.isnan([result["AP_by_class"][name] for name in "cd"]).all()
    nothing = evaluate_detections(oracle, [batch(([], []))])
    assert np.isnan([nothing[name] for name in ("AP", "AP50", "AP75")]).all()


def test_unsure_detections_of_an_ssdlite_count(oracle, tiny_backbone, monkeypatch):
    asked = {}
    monkeypatch.setattr(SSDLite, "detector", lambda _, **x: asked.update(x) or oracle)
    model = SSDLite(tiny_backbone(), 2, box_shapes=ssd_box_shapes(2))
    assert evaluate_detections(model, [batch(([A], [A]))])["AP50"] == pytest.approx(1)
    assert asked["score_threshold"] <= 0.01


def test_one_detector_is_kept(tiny_backbone, squares, monkeypatch):
    built = []
    build = SSDLite.detector
    monkeypatch.setattr(
        SSDLite,
        "detector",
        lambda self, **arguments: built.append(1) or build(self, **arguments),
    )
    model = SSDLite(tiny_backbone(), 2, box_shapes=ssd_box_shapes(2))
    other = SSDLite(tiny_backbone(), 2, box_shapes=ssd_box_shapes(2))
    evaluate_detections(model, [squares(2)])
    # The kept one has the weights as they are now: detections at the image's edge
    for layer in model.layers:
        if layer.name.endswith("_classes"):
            layer.set_weights([np.full_like(w, -9) for w in layer.get_weights()])
    again = evaluate_detections(model, [squares(2)])
    assert len(built) == 1
    assert again == evaluate_detections(
        build(model, score_threshold=0.01), [squares(2)]
    )
    evaluate_detections(other, [squares(2)])
    assert len(built) == 2
    # Neither keeps the other alive.
    kept = weakref.ref(other)
    del other
    gc.collect()
    assert kept() is None


def test_bad_arguments(oracle, tiny_backbone):
    with pytest.raises(ValueError, match=r"`batches`.*Received none"):
        evaluate_detections(oracle, [])
    with pytest.raises(ValueError, match=r"`class_names`.*Received: \['a'\].* 1"):
        evaluate_detections(oracle, [batch(([], [A, C]))], class_names=["a"])
    images, y = batch(([], [A, C]))
    with pytest.raises(ValueError, match=r"`y\['boxes'\]`.*fractions.*Received"):
        evaluate_detections(oracle, [(images, {**y, "boxes": 64 * y["boxes"]})])
    ssdlite = SSDLite(tiny_backbone(), 1, box_shapes=ssd_box_shapes(2))
    with pytest.raises(ValueError, match=r"`y\['labels'\]`.*1 classes.*Received: 1"):
        evaluate_detections(ssdlite, [(images, y)])
    for model in (None, tiny_backbone()):
        with pytest.raises(ValueError, match="`model`.*Received: "):
            evaluate_detections(model, [])
