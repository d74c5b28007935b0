import keras
import numpy as np
import pytest
from keras import layers
from networks import quick_initial_weights
from test_preprocessing import (
    in_sequential,
    nested,
    quantized,
    under_another_head,
    with_augmentation,
)

from keras_coordatt import MobileNetV2CA, fuse_attention, insert_attention
from keras_coordatt.detection import SSDLite
from keras_coordatt.export.metadata import describe
from keras_coordatt.export.model_input import ImageInput
from keras_coordatt.preprocessing import (
    IMAGENET,
    RAW_PIXELS,
    PreprocessingRecord,
    preprocessing_of,
)
from keras_coordatt.record import Record, classes_of, record_of, set_record
from keras_coordatt.segmentation import DeepLabV3

SHAPE = (32, 32, 3)
PETS = Record("classification", ("cat", "dog", "fox"), (32, 32), {"accuracy": 0.75})


def backbone(**arguments):
    return MobileNetV2CA(
        SHAPE, 0.1, include_top=False, weights=None, attention=None, **arguments
    )


def record(model, what):
    set_record(
        model,
        task=what.task,
        labels=what.labels,
        image_size=what.image_size,
        metrics=what.metrics,
    )
    return model


@pytest.fixture(scope="module")
def classifier():
    return record(MobileNetV2CA(SHAPE, 0.1, classes=3, weights=None), PETS)


def with_softmax(model):
    return keras.Model(model.input, layers.Softmax()(model.output))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda model: model,
        nested,
        lambda model: nested(nested(model)),
        with_augmentation,
        with_softmax,
        in_sequential,
        keras.models.clone_model,
        insert_attention,
        fuse_attention,
        quantized,
    ],
)
def test_survives(wrap, classifier):
    assert record_of(wrap(classifier)) == PETS


def test_survives_saving(classifier, tmp_path):
    in_sequential(classifier).save(tmp_path / "model.keras")
    assert record_of(keras.saving.load_model(tmp_path / "model.keras")) == PETS


def test_another_head_has_no_record(classifier):
    assert record_of(under_another_head(classifier)) == Record()
    features = classifier.get_layer("avg_pool").output
    same_name = layers.Dense(4, name="predictions")(features)
    assert record_of(keras.Model(classifier.input, same_name)) == Record()


def test_a_head_of_the_same_name_and_width(classifier):
    """Files and clones can't tell it from the old one, as the documentation says."""
    model = keras.models.clone_model(classifier)
    features = model.get_layer("avg_pool").output
    other_name = keras.Model(model.input, layers.Dense(3, name="trees")(features))
    assert record_of(other_name) == Record()
    same = keras.Model(model.input, layers.Dense(3, name="predictions")(features))
    set_record(same, labels=["oak", "elm", "ash"], metrics={})
    new = Record(PETS.task, ("oak", "elm", "ash"), PETS.image_size, {})
    assert record_of(same) == new


def test_two_heads_on_one_backbone_have_a_record_each(tmp_path):
    shared = backbone(output_stride=16)
    segmenter = DeepLabV3(shared, 2, filters=4, atrous_rates=(1,))
    features = layers.GlobalMaxPooling2D()(shared.output)
    classifier = keras.Model(shared.input, layers.Dense(3, name="head")(features))
    roads = Record("segmentation", ("road", "sky"), (32, 32), {"mean_iou": 0.5})
    assert preprocessing_of(segmenter) == IMAGENET
    record(segmenter, roads)
    record(classifier, PETS)
    assert record_of(segmenter) == roads
    assert record_of(classifier) == PETS
    assert record_of(shared) == Record()
    set_record(segmenter, metrics={})
    segmenter.save(tmp_path / "model.keras")
    segmenter = keras.saving.load_model(tmp_path / "model.keras")
    assert record_of(segmenter) == Record("segmentation", ("road", "sky"), (32, 32))


def test_detector_has_the_record_of_its_model(tmp_path):
    model = SSDLite(backbone(), 2)
    cells = Record("detection", ("red", "white"), None, {"AP": 0.3})
    record(model, cells)
    model.save(tmp_path / "model.keras")
    model = keras.saving.load_model(tmp_path / "model.keras")
    for form in (
        model,
        model.detector(),
        model.detector(suppress=False),
        nested(model.detector()),
        keras.models.clone_model(model.detector()),
    ):
        assert record_of(form) == cells
        assert classes_of(form) == 2


def test_models_saved_without_a_record_load():
    config = PreprocessingRecord(RAW_PIXELS).get_config()
    assert "records" not in config
    image = keras.Input(SHAPE)
    x = PreprocessingRecord.from_config(config)(image)
    assert record_of(keras.Model(image, layers.Conv2D(8, 3)(x))) == Record()


def test_arguments_left_out_keep_their_values(classifier):
    model = keras.models.clone_model(classifier)
    set_record(model, metrics={"top5": np.float32(1)})
    assert record_of(model) == Record(PETS.task, PETS.labels, (32, 32), {"top5": 1.0})


@pytest.mark.parametrize(
    "arguments",
    [
        {"task": "regression"},
        {"labels": ["cat", "dog"]},
        {"labels": "cat"},
        {"labels": [1, 2, 3]},
        {"labels": ["cat", "dog", "fox", "owl"]},
        {"image_size": 32},
        {"image_size": (32, 0)},
        {"image_size": (64, 64)},
        {"metrics": {"accuracy": float("nan")}},
        {"metrics": [0.5]},
    ],
)
def test_bad_arguments(arguments, classifier):
    (name,) = arguments
    with pytest.raises(ValueError, match=f"`{name}`.*Received"):
        set_record(classifier, **arguments)
    assert record_of(classifier) == PETS


def test_models_that_cannot_hold_a_record():
    with quick_initial_weights():
        foreign = keras.applications.MobileNetV2(SHAPE, weights=None)
    assert record_of(foreign) == Record()
    with pytest.raises(ValueError, match="`model`.*Received: mobilenetv2"):
        set_record(foreign, task="classification")
    with pytest.raises(TypeError, match="`model`.*Received: None"):
        record_of(None)


def test_labels_are_exported(classifier):
    image = ImageInput(classifier, None)
    described = describe("onnx", classifier, image, None)
    assert described["labels"] == ["cat", "dog", "fox"]
    assert described["task"] == "classification"
    record = record_of(classifier)
    assert described["image_size"] == list(record.image_size)
    assert described["metrics"] == record.metrics != {}
    described = describe("onnx", classifier, image, ["x", "y", "z"])
    assert described["labels"] == ["x", "y", "z"]
    with pytest.raises(ValueError, match="`labels`.*3 of them.*Received"):
        describe("onnx", classifier, image, ["x"])
