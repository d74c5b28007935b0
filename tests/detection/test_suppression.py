import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_coordatt.detection import NonMaxSuppression, suppression


def random_boxes(images=2, boxes=60, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 0.5, (images, boxes, 2))
    size = rng.uniform(0.1, 0.5, corner.shape)
    return {
        "boxes": np.concatenate([corner, corner + size], -1).astype("float32"),
        "scores": rng.uniform(size=(images, boxes, classes)).astype("float32"),
    }


def kept(inputs, *arguments):
    outputs = NonMaxSuppression(*arguments)(inputs)
    return {k: keras.ops.convert_to_numpy(v) for k, v in outputs.items()}


def reference(inputs, score_threshold, iou_threshold, count):
    """TensorFlow's suppression, class by class, of each image."""
    for boxes, scores in zip(inputs["boxes"], inputs["scores"]):
        found = []
        for label, column in enumerate(scores.T):
            best = tf.image.non_max_suppression(
                boxes, column, len(boxes), iou_threshold, score_threshold
            )
            found += [(column[i], label, *boxes[i]) for i in best.numpy()]
        yield np.array(sorted(found, reverse=True)[:count])


@pytest.mark.parametrize(
    "arguments",
    [(0.0, 0.5, 100), (0.3, 0.2, 20), (0.0, 0.99, 60)],
    ids=str,
)
def test_against_tensorflow(arguments):
    inputs = random_boxes()
    outputs = kept(inputs, *arguments)
    for i, expected in enumerate(reference(inputs, *arguments)):
        n = len(expected)
        assert 0 < n < 180
        np.testing.assert_allclose(outputs["scores"][i, :n], expected[:, 0])
        np.testing.assert_array_equal(outputs["labels"][i, :n], expected[:, 1])
        np.testing.assert_allclose(outputs["boxes"][i, :n], expected[:, 2:])
        assert (outputs["labels"][i, n:] == -1).all()
        assert (outputs["scores"][i, n:] == 0).all()
        assert (outputs["boxes"][i, n:] == 0).all()


def test_nothing_found():
    outputs = kept(random_boxes(boxes=5), 0.999, 0.5, 7)
    assert outputs["boxes"].shape == (2, 7, 4)
    assert (outputs["labels"] == -1).all() and outputs["labels"].dtype == "int32"


def test_more_slots_than_boxes():
    inputs = {
        "boxes": np.array([[[0, 0, 1, 1], [0, 0, 1, 0.9]]], "float32"),
        "scores": np.array([[[0.7], [0.8]]], "float32"),
    }
    outputs = kept(inputs, 0.1, 0.5, 4)
    np.testing.assert_array_equal(outputs["labels"], [[0, -1, -1, -1]])
    np.testing.assert_allclose(outputs["boxes"][0, 0], [0, 0, 1, 0.9])


def test_boxes_without_an_area():
    inputs = {
        "boxes": np.zeros((1, 3, 4), "float32"),
        "scores": np.array([[[0.5], [0.9], [0.7]]], "float32"),
    }
    np.testing.assert_allclose(
        kept(inputs, 0.1, 0.5, 4)["scores"], [[0.9, 0.7, 0.5, 0]]
    )


def test_only_the_best_are_looked_at(monkeypatch):
    monkeypatch.setattr(suppression, "CANDIDATES", 5)
    inputs = random_boxes(classes=1)
    outputs = kept(inputs, 0.0, 0.99, 3)
    best = -np.sort(-inputs["scores"][..., 0])
    np.testing.assert_allclose(outputs["scores"], best[:, :3])
    # `max_detections` of them
    np.testing.assert_allclose(kept(inputs, 0.0, 0.99, 7)["scores"], best[:, :7])


def test_in_a_model_and_from_its_config():
    layer = NonMaxSuppression(0.3, 0.2, 20, name="nms")
    same = NonMaxSuppression.from_config(layer.get_config())
    assert same.get_config() == layer.get_config()
    shapes = {"boxes": (60, 4), "scores": (60, 3)}
    inputs = {name: keras.Input(shape, name=name) for name, shape in shapes.items()}
    model = keras.Model(inputs, same(inputs))
    assert {k: (v.shape, v.dtype) for k, v in model.output.items()} == {
        "boxes": ((None, 20, 4), "float32"),
        "labels": ((None, 20), "int32"),
        "scores": ((None, 20), "float32"),
    }
    x = random_boxes()
    expected = kept(x, 0.3, 0.2, 20)
    for name, value in model.predict(x, verbose=0).items():
        np.testing.assert_allclose(value, expected[name], atol=1e-6)


@pytest.mark.parametrize(
    "argument, value",
    [("score_threshold", -0.1), ("score_threshold", 1), ("iou_threshold", 1.0)]
    + [("iou_threshold", None), ("max_detections", 0), ("max_detections", 2.5)],
)
def test_bad_arguments(argument, value):
    with pytest.raises(ValueError, match=f"`{argument}`.*Received: {value}"):
        NonMaxSuppression(**{argument: value})
