import keras
import numpy as np
import pytest

from keras_coordatt.detection import SSDLite, ssd_box_shapes


def perturbed(model, seed=0):
    rng = np.random.default_rng(seed)
    model.set_weights([rng.uniform(0.1, 1, w.shape) for w in model.get_weights()])
    return model


@pytest.fixture
def model(tiny_backbone):
    shapes = ssd_box_shapes(2, 0.25, 0.5, reduce_first=False)
    return perturbed(SSDLite(tiny_backbone(), 2, box_shapes=shapes, name="finder"))


@pytest.fixture
def assert_same(outputs):
    def check(*models):
        x = np.random.default_rng(1).uniform(size=(2, 64, 64, 3))
        ours, theirs = (outputs(model, x) for model in models)
        assert set(ours) == set(theirs)
        for name in ours:
            assert np.ptp(theirs[name]) > 0
            np.testing.assert_array_equal(ours[name], theirs[name])

    return check


def test_keras_file(model, squares, assert_same, tmp_path):
    model.compile(keras.optimizers.Adam(1e-3))
    model.train_on_batch(*squares(2))
    model.save(tmp_path / "finder.keras")
    loaded = keras.saving.load_model(tmp_path / "finder.keras")
    assert type(loaded) is SSDLite and loaded.name == "finder"
    assert loaded.backbone.name == "tiny" and loaded.classes == 2
    assert loaded.box_shapes == model.box_shapes
    np.testing.assert_array_equal(loaded.default_boxes, model.default_boxes)
    assert_same(loaded, model)
    # The training goes on where it was.
    assert int(loaded.optimizer.iterations) == 1
    for ours, theirs in zip(loaded.optimizer.variables, model.optimizer.variables):
        np.testing.assert_allclose(*map(keras.ops.convert_to_numpy, (ours, theirs)))
    assert loaded.evaluate(*squares(2), verbose=0, return_dict=True).keys() == {
        "loss",
        "box_loss",
        "class_loss",
    }


def freeze_head(model):
    model.get_layer("map_1_classes").trainable = False
    model.get_layer("map_2_boxes_depthwise_BN").trainable = False


def freeze_backbone(model):
    model.backbone.trainable = False


def freeze_all(model):
    model.trainable = False
    model.get_layer("map_1_classes").trainable = True


@pytest.mark.parametrize("freeze", [freeze_head, freeze_backbone, freeze_all])
def test_frozen_layers_stay_frozen(model, squares, freeze, tmp_path):
    def trainable(model):
        return [v.path for v in model.trainable_weights]

    def layers(model):
        return [layer.name for layer in model.layers if layer.trainable]

    everything = trainable(model)
    freeze(model)
    assert len(trainable(model)) < len(everything)
    if model.trainable:
        # The optimizer has fewer variables than the model.
        model.compile(keras.optimizers.Adam(1e-3))
        model.train_on_batch(*squares(2))
    model.save(tmp_path / "finder.keras")
    loaded = keras.saving.load_model(tmp_path / "finder.keras")
    assert trainable(loaded) == trainable(model)
    assert layers(loaded) == layers(model)
    assert loaded.trainable == model.trainable
    if model.trainable:
        assert len(loaded.optimizer.variables) == len(model.optimizer.variables)
    for layer in loaded.layers:
        layer.trainable = True
    loaded.trainable = True
    assert trainable(loaded) == everything


def test_configurations_without_frozen_entry_are_loaded(model):
    config = model.get_config()
    del config["trainable"], config["frozen"]
    loaded = SSDLite.from_config(config)
    assert len(loaded.trainable_weights) == len(model.trainable_weights)


def test_detector_is_saved_on_its_own(model, assert_same, tmp_path):
    detector = model.detector(0.2, 0.3, 7)
    detector.save(tmp_path / "detector.keras")
    assert_same(keras.saving.load_model(tmp_path / "detector.keras"), detector)


def test_config_and_clone(model, assert_same):
    same = SSDLite.from_config(model.get_config())
    same.set_weights(model.get_weights())
    assert_same(same, model)
    # Keras clones models of one's own class as plain ones.
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    assert_same(clone, model)


def test_precision_and_data_format_are_the_backbones(tiny_backbone):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        config = SSDLite(tiny_backbone(), 2, box_shapes=ssd_box_shapes(2)).get_config()
    finally:
        keras.config.set_dtype_policy("float32")
    same = SSDLite.from_config(config)
    assert same.get_layer("map_1_boxes").dtype_policy.name == "mixed_bfloat16"


@pytest.mark.parametrize("ending", [".keras", ".weights.h5"])
def test_weights_of_a_file(model, tiny_backbone, assert_same, tmp_path, ending):
    path = tmp_path / f"finder{ending}"
    model.save(path) if ending == ".keras" else model.save_weights(path)
    backbone = tiny_backbone()
    same = SSDLite(backbone, 2, box_shapes=model.box_shapes, weights=path)
    assert_same(same, model)
    # A file for other classes does not fit, and then nothing changes.
    backbone = tiny_backbone()
    before = backbone.get_weights()
    with pytest.raises(ValueError, match=r"skip_mismatch=True(.|\n)*map_1_classes"):
        SSDLite(backbone, 3, box_shapes=model.box_shapes, weights=path)
    assert all(map(np.array_equal, before, backbone.get_weights()))


def test_a_detector_of_other_classes_is_reused(model, tiny_backbone, tmp_path):
    path = tmp_path / "finder.weights.h5"
    model.save_weights(path)
    with pytest.warns(UserWarning, match="classifier has 18 outputs, the network's 24"):
        other = SSDLite(
            tiny_backbone(),
            3,
            box_shapes=model.box_shapes,
            weights=path,
            skip_mismatch=True,
        )
    for layer in other.layers:
        if layer.weights and layer.name not in ("map_1_classes", "map_2_classes"):
            same = model.get_layer(layer.name).get_weights()
            assert all(map(np.array_equal, layer.get_weights(), same)), layer.name
    # The boxes are not skipped.
    boxes = [shapes[:-1] for shapes in model.box_shapes]
    with pytest.raises(ValueError, match="misshapen: .*map_1_boxes"):
        SSDLite(tiny_backbone(), 3, box_shapes=boxes, weights=path, skip_mismatch=True)


def test_weights_of_the_backbone_are_kept(tiny_backbone):
    backbone = perturbed(tiny_backbone())
    before = backbone.get_weights()
    model = SSDLite(backbone, 2, box_shapes=ssd_box_shapes(2))
    assert all(map(np.array_equal, before, model.backbone.get_weights()))
    # Other classes, with the learned weights
    other = SSDLite(model.backbone, 5, box_shapes=ssd_box_shapes(2))
    assert all(map(np.array_equal, before, other.backbone.get_weights()))
