import functools
import types

import keras
import numpy as np
import pytest
from backends import needs_tensorflow

from keras_coordatt.detection import SSDLite, evaluate_detections, ssd_box_shapes
from keras_coordatt.detection.losses import multibox_loss, total_loss
from keras_coordatt.detection.matching import training_targets
from keras_coordatt.detection.objects import check_objects


@pytest.fixture
def model(tiny_backbone):
    keras.utils.set_random_seed(0)
    shapes = ssd_box_shapes(2, 0.25, 0.5, reduce_first=False)
    return SSDLite(tiny_backbone(channels=16), 2, box_shapes=shapes)


def test_learns_squares_by_heart(model, squares):
    pytest.importorskip("pycocotools")
    images, objects = squares(8)
    detector = model.detector(score_threshold=0.01)
    before = evaluate_detections(detector, [(images, objects)])
    assert before["AP50"] < 0.1
    model.compile(keras.optimizers.Adam(1e-2))
    history = model.fit(images, objects, batch_size=8, epochs=120, verbose=0).history
    assert set(history) == {"loss", "box_loss", "class_loss"}
    assert history["loss"][-1] < 0.2 * history["loss"][0]
    # The detector shares the weights.
    after = evaluate_detections(detector, [(images, objects)])
    assert after["AP50"] > 0.95
    counts = (detector.predict_on_batch(images)["scores"] > 0.5).sum(1)
    np.testing.assert_array_equal(counts, (objects["labels"] >= 0).sum(1))


def test_evaluate_is_the_loss(model, squares, outputs, compiled):
    images, objects = squares(3)
    model.compile("sgd")
    # Batches count by their images, the last one less.
    logs = model.evaluate(images, objects, batch_size=2, verbose=0, return_dict=True)
    found = outputs(model, images)

    def losses(batch):
        boxes, labels = objects["boxes"][batch], objects["labels"][batch]
        targets = training_targets(model.default_boxes, boxes, labels)
        return multibox_loss(found["boxes"][batch], found["classes"][batch], *targets)

    first, last = (
        np.array([float(x) for x in compiled(functools.partial(losses, batch))()])
        for batch in (slice(0, 2), slice(2, 3))
    )
    box_loss, class_loss = (2 * first + last) / 3
    assert logs["box_loss"] == pytest.approx(box_loss, rel=1e-4)
    assert logs["class_loss"] == pytest.approx(class_loss, rel=1e-4)
    assert logs["loss"] == pytest.approx(box_loss + class_loss, rel=1e-4)


def test_images_without_objects(model, squares):
    images, objects = squares(2)
    objects["labels"][:] = -1
    model.compile("sgd")
    logs = model.train_on_batch(images, objects, return_dict=True)
    assert logs["box_loss"] == 0 and 0 < logs["class_loss"] < np.inf
    assert all(np.isfinite(w).all() for w in model.get_weights())


@needs_tensorflow  # JAX always does it, and PyTorch has none here.
def test_compiled_by_xla(model, squares):
    model.compile("sgd", jit_compile=True)
    logs = model.train_on_batch(*squares(2), return_dict=True)
    assert np.isfinite(logs["loss"])


def test_frozen_backbone(model, squares):
    model.backbone.trainable = False
    before = {layer.name: layer.get_weights() for layer in model.layers}
    model.compile("sgd")
    model.train_on_batch(*squares(2))
    inside = {layer.name for layer in model.backbone.layers}
    changed = {
        layer.name
        for layer in model.layers
        if not all(map(np.array_equal, before[layer.name], layer.get_weights()))
    }
    assert {"map_1_boxes", "map_2_classes"} <= changed and not changed & inside


def test_regularizers_count(tiny_backbone, squares):
    backbone = tiny_backbone()
    backbone.get_layer("Conv_1").kernel_regularizer = keras.regularizers.L2(1.0)
    backbone = keras.models.clone_model(backbone)
    model = SSDLite(backbone, 2, box_shapes=ssd_box_shapes(2))
    model.compile("sgd")
    logs = model.test_on_batch(*squares(2), return_dict=True)
    kernel = backbone.get_layer("Conv_1").get_weights()[0]
    assert logs["loss"] - logs["box_loss"] - logs["class_loss"] == pytest.approx(
        np.square(kernel).sum(), rel=1e-3
    )


def test_one_image_per_step_ruins_nothing(tiny_backbone, squares):
    # The last two feature maps have one position.
    shapes = ssd_box_shapes(4, 0.25, 0.5, reduce_first=False)
    model = SSDLite(tiny_backbone(), 2, box_shapes=shapes)
    assert model.map_sizes[2:] == ((1, 1), (1, 1))
    rng = np.random.default_rng(0)
    for name in ("map_3_classes", "map_4_classes"):
        kernel, bias = model.get_layer(name).get_weights()
        model.get_layer(name).set_weights([rng.normal(size=kernel.shape), bias])
    data = squares(2)
    model.compile(keras.optimizers.SGD(1e-6))
    history = model.fit(*data, batch_size=1, epochs=20, verbose=0).history
    loss = model.evaluate(*data, batch_size=1, verbose=0, return_dict=True)["loss"]
    assert loss == pytest.approx(history["loss"][-1], rel=0.05)


def batches(images, objects):
    for i in range(0, len(images), 2):
        yield images[i : i + 2], {k: v[i : i + 2] for k, v in objects.items()}


class Batches(keras.utils.PyDataset):
    def __init__(self, *data):
        super().__init__()
        self.batches = list(batches(*data))

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        return self.batches[index]


def dataset(x, y):
    tf = pytest.importorskip("tensorflow")
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(2)


WAYS = {
    "arrays": lambda model, *data: model.fit(*data, batch_size=2, verbose=0),
    "generator": lambda model, *data: model.fit(batches(*data), verbose=0),
    "tf.data": lambda model, *data: model.fit(dataset(*data), verbose=0),
    "PyDataset": lambda model, *data: model.fit(Batches(*data), verbose=0),
    "validation": lambda model, *data: model.fit(
        *GOOD, batch_size=2, validation_data=data, verbose=0
    ),
    "validation batches": lambda model, *data: model.fit(
        *GOOD, batch_size=2, validation_data=Batches(*data), verbose=0
    ),
}
GOOD = (
    np.zeros((2, 64, 64, 3), "float32"),
    {
        "boxes": np.full((2, 1, 4), [0.2, 0.3, 0.6, 0.8], "float32"),
        "labels": np.ones((2, 1), "int32"),
    },
)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "name, change, message",
    [
        ("labels", lambda x: x + 1, r"`y\['labels'\]`.* from 0 to 1.*Received: 2"),
        ("labels", lambda x: x - 3, r"`y\['labels'\]`.*Received: -2"),
        ("labels", lambda x: x - 0.5, r"`y\['labels'\]`.*integers.*Received: 0.5"),
        (
            "labels",
            lambda x: x[:, 0],
            r"`y`.*shape \(N, M\).*Received: .*(\(2,\)|1 axes)",
        ),
        ("boxes", lambda x: x * 64, r"`y\['boxes'\]`.*fractions.*Received: \[12"),
        ("boxes", lambda x: x[..., ::-1], r"`y\['boxes'\]`.*x1 <= x2.*Received"),
        ("boxes", lambda x: x + np.nan, r"`y\['boxes'\]`.*Received: \[nan"),
    ],
)
def test_wrong_objects_are_refused_before_training(model, way, name, change, message):
    images, objects = GOOD
    before = model.get_weights()
    model.compile("sgd")
    with pytest.raises(ValueError, match=message):
        WAYS[way](model, images, {**objects, name: change(objects[name])})
    assert all(map(np.array_equal, before, model.get_weights()))


def test_padding_may_hold_anything():
    objects = GOOD[1]
    objects = {
        "boxes": np.concatenate([objects["boxes"], np.full((2, 1, 4), -1)], 1),
        "labels": np.concatenate([objects["labels"], np.full((2, 1), -1)], 1),
    }
    check_objects(objects, 2)


@needs_tensorflow
def test_replicas_share_the_loss(monkeypatch):
    import tensorflow as tf

    assert float(total_loss(1.0, 3.0)) == 4
    strategy = types.SimpleNamespace(num_replicas_in_sync=2)
    monkeypatch.setattr(tf.distribute, "has_strategy", lambda: True)
    monkeypatch.setattr(tf.distribute, "get_strategy", lambda: strategy)
    assert float(total_loss(1.0, 3.0)) == 2


@pytest.mark.parametrize("argument", ["loss", "metrics", "loss_weights"])
def test_other_losses_are_refused(model, argument):
    with pytest.raises(ValueError, match=f"`{argument}`.*Received: "):
        model.compile("adam", **{argument: ["mse"]})


def test_bad_batches(model, squares):
    images, objects = squares(2)
    model.compile("sgd")
    for y in (objects["labels"], {"boxes": objects["boxes"]}):
        with pytest.raises(ValueError, match="`y`.*Received: "):
            model.train_on_batch(images, y)
    with pytest.raises(ValueError, match="`sample_weight`.*Received: "):
        model.train_on_batch(images, objects, np.ones((2, 1)))


def test_images_of_weight_zero_do_not_count(model, squares):
    images, objects = squares(3)
    objects["labels"][2] = -1
    model.compile("sgd")
    two = images[:2], {name: x[:2] for name, x in objects.items()}
    expected = model.test_on_batch(*two)
    weights = np.array([2.0, 2.0, 0.0])
    found = model.test_on_batch(images, objects, sample_weight=weights)
    np.testing.assert_allclose(found, 2 * np.array(expected), rtol=1e-5)
