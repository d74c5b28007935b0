"""Exported files compute the same as the Keras model, and describe their use."""

import functools
import json
import warnings
import zipfile

import keras
import numpy as np
import pytest
from backends import BACKEND, needs_tensorflow
from exports import LABELS, SIZE, each_format, pictures, run_lite
from keras import layers
from networks import assert_near, calibrated, outputs

from keras_coordatt import CoordinateAttention, export
from keras_coordatt.applications import (
    MobileNetV2CA,
    mobilenet_v2_ca,
)
from keras_coordatt.detection import SSDLite, ssd_box_shapes
from keras_coordatt.export import Preprocessing, read_metadata
from keras_coordatt.preprocessing import RAW_PIXELS, PreprocessingRecord
from keras_coordatt.segmentation import DeepLabV3


def test_onnx_takes_any_batch(model, x, tmp_path, onnxruntime):
    path = tmp_path / "it.onnx"
    export.onnx(model, path, labels=LABELS)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["batch", *SIZE, 3]
    for n in (1, 3):
        (given,) = session.run(["predictions"], {"image": x[:n]})
        np.testing.assert_allclose(given, outputs(model, x[:n]), atol=1e-5)
    props = session.get_modelmeta().custom_metadata_map
    assert json.loads(props["labels"]) == LABELS


@each_format
def test_metadata_is_read_back(model, path, write):
    preprocessing = Preprocessing(
        (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bicubic", antialias=False
    )
    write(model, path, labels=LABELS, preprocessing=preprocessing)
    found = read_metadata(path)
    assert found["labels"] == LABELS
    assert found["name"] == "small"
    assert found["preprocessing"] == {
        "input_size": list(SIZE),
        "color": "RGB",
        "data_format": "channels_last",
        "interpolation": "bicubic",
        "antialias": False,
        "scale": 255,
        "mean": [0.1, 0.2, 0.3],
        "std": [0.4, 0.5, 0.6],
    }
    assert found["versions"]["keras"] == keras.__version__
    if path.suffix == ".tflite":
        with zipfile.ZipFile(path) as archive:
            assert archive.read("labels.txt").decode().split() == LABELS


@each_format
def test_several_outputs_keep_their_names(path, write, x):
    image = keras.Input((*SIZE, 3))
    features = CoordinateAttention()(layers.Conv2D(8, 3)(image))
    flat = layers.GlobalAveragePooling2D()(features)
    scores, box = layers.Dense(3, name="scores")(flat), layers.Dense(4)(flat)
    # Not in the order of the alphabet.
    model = keras.Model(image, {"scores": scores, "map": features, "box": box})
    calibrated(model, x)
    report = write(model, path, labels=LABELS)
    assert set(report.difference) == {"scores", "map", "box"}
    if path.suffix == ".tflite":
        given = run_lite(path, x[:1])
    elif path.suffix == ".onnx":
        import onnxruntime

        names = ["box", "scores", "map"]
        session = onnxruntime.InferenceSession(path)
        given = dict(zip(names, session.run(names, {"image": x[:1]})))
    else:
        import tensorflow as tf

        loaded = tf.saved_model.load(str(path))
        given = loaded.serve(x[:1])
    for key, value in model(x[:1]).items():
        np.testing.assert_allclose(
            given[key], keras.ops.convert_to_numpy(value), atol=1e-4
        )


@functools.cache
def dense_network(task):
    """A network with several outputs, and their names."""
    stride = 16 if task == "segmentation" else 32
    size = None if task == "segmentation" else 64
    stages = [(6 if i else 1, 8 * i + 8, 1, min(i, 1) + 1) for i in range(5)]
    with pytest.MonkeyPatch.context() as patch:
        # One block per stage: export time grows with their number.
        patch.setattr(mobilenet_v2_ca, "STAGES", stages)
        backbone = MobileNetV2CA(
            (size, size, 3), include_top=False, weights=None, output_stride=stride
        )
    if task == "segmentation":
        return calibrated(DeepLabV3(backbone, 5, filters=16), scenes()), {"logits"}
    # One map beyond the backbone's
    heads = SSDLite(backbone, 5, box_shapes=ssd_box_shapes()[:3])
    model = calibrated(heads, scenes())
    if task == "detection":
        return model, {"boxes", "classes"}
    return model.detector(suppress=False), {"boxes", "scores"}


def scenes():
    return pictures(4, 64, 64, seed=3)


# JAX takes long for either, and what it hands over is the same.
not_on_jax = pytest.mark.skipif(BACKEND == "jax", reason="takes 40 s")


@each_format
@pytest.mark.parametrize(
    "task", [pytest.param("segmentation", marks=not_on_jax), "detections"]
)
def test_dense_networks(path, write, task):
    model, names = dense_network(task)
    x = scenes()
    size = {} if path.suffix == "" else {"image_size": 64}
    report = write(model, path, labels=LABELS, **size)
    assert report.difference.keys() == names
    # `write` compares on noise: here it is pictures.
    if path.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path)
        given = dict(zip(names, session.run([*names], {"image": x})))
    elif path.suffix == ".tflite":
        given = run_lite(path, x)
    else:
        import tensorflow as tf

        loaded = tf.saved_model.load(str(path))
        given = loaded.serve(x)
    # One image at a time, as JAX compiles each operation for each size of a batch.
    expected = [model(x[i : i + 1], training=False) for i in range(len(x))]
    if task == "segmentation":
        expected = [{"logits": y} for y in expected]
        given = given if isinstance(given, dict) else {"logits": given}
    for name in names:
        theirs = np.concatenate([keras.ops.convert_to_numpy(y[name]) for y in expected])
        assert_near(np.asarray(given[name]), theirs, 1e-4)


@needs_tensorflow
@pytest.mark.parametrize("task", ["segmentation", "detection"])
def test_dense_networks_are_wholly_int8(tmp_path, task):
    model, names = dense_network(task)
    path = tmp_path / "it.tflite"
    x = scenes()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*the top-1 class is")
        report = export.litert(
            model, path, precision="int8", representative=x, image_size=64
        )
    assert report.difference.keys() == names
    assert report.float_tensors == ()
    if task == "segmentation":
        ours, theirs = run_lite(path, x)["logits"], outputs(model, x)
        assert report.agreement == np.mean(ours.argmax(3) == theirs.argmax(3))
    else:
        assert report.agreement is None


@each_format
def test_a_list_of_outputs(path, write, x):
    image = keras.Input((*SIZE, 3))
    flat = layers.GlobalAveragePooling2D()(layers.Conv2D(8, 3)(image))
    model = keras.Model(image, [layers.Dense(n, name=f"d{n}")(flat) for n in (3, 2)])
    report = write(calibrated(model, x), path)
    assert list(report.difference) == ["d3", "d2"]


class Broken(layers.Layer):
    """Returns other outputs once it is compiled."""

    def call(self, x):
        if BACKEND == "tensorflow":
            import tensorflow as tf

            compiled = not tf.executing_eagerly()
        elif BACKEND == "jax":
            import jax

            compiled = isinstance(x, jax.core.Tracer)
        else:
            import torch

            compiled = torch.jit.is_tracing()
        return x * 1.01 if compiled else x


@each_format
def test_a_difference_is_an_error_and_leaves_nothing(path, write, x, model):
    image = keras.Input((*SIZE, 3))
    flat = layers.GlobalAveragePooling2D()(layers.Conv2D(8, 3)(image))
    broken = calibrated(keras.Model(image, Broken(name="broken")(flat)), x)
    with pytest.raises(ValueError, match="largest difference of 'broken' is 0"):
        write(broken, path)
    assert list(path.parent.iterdir()) == []

    write(model, path, labels=LABELS)
    with pytest.raises(ValueError, match="largest difference"):
        write(broken, path)
    assert [x.name for x in path.parent.iterdir()] == [path.name]
    assert read_metadata(path)["labels"] == LABELS


@each_format
def test_a_network_that_takes_bytes_says_so(path, write):
    image = keras.Input((*SIZE, 3))
    x = layers.Rescaling(1 / 127.5, -1)(PreprocessingRecord(RAW_PIXELS)(image))
    flat = layers.GlobalAveragePooling2D()(layers.Conv2D(8, 3)(x))
    model = keras.Model(image, layers.Dense(3)(flat))
    write(model, path)
    preprocessing = read_metadata(path)["preprocessing"]
    bytes_ = np.arange(256) / preprocessing["scale"]
    for mean, std in zip(preprocessing["mean"], preprocessing["std"]):
        np.testing.assert_allclose((bytes_ - mean) / std, np.arange(256), atol=1e-4)
    if path.name == "it":
        import tensorflow as tf

        pictures = np.random.default_rng(0).integers(0, 256, (2, *SIZE, 3), "uint8")
        loaded = tf.saved_model.load(str(path))
        served = loaded.serve_images(pictures)
        np.testing.assert_allclose(served, outputs(model, pictures), atol=1e-4)
