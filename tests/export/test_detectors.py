"""Detectors in each format: their detections, in any order."""

import keras
import numpy as np
import pytest
from backends import BACKEND, needs_tensorflow
from exports import litert_description, run_lite
from keras import layers

from keras_coordatt import MobileNetV2CA, export
from keras_coordatt.cli import export as cli_export
from keras_coordatt.cli import main
from keras_coordatt.detection import NonMaxSuppression, SSDLite
from keras_coordatt.export.detections import compare_detections
from keras_coordatt.export.pictures import draw_pictures
from keras_coordatt.preprocessing import RAW_PIXELS, PreprocessingRecord

SIZE = (32, 24)
needs_saved_model = pytest.mark.skipif(BACKEND == "torch", reason="no SavedModel")


def image():
    return keras.Input((*SIZE, 3))


def detector(threshold=0.05, bias=0.0):
    """Finds red, green and blue in the quarters of an image: scores are the colors."""
    inputs = image()
    x = PreprocessingRecord(RAW_PIXELS)(inputs)
    x = layers.AveragePooling2D((16, 12))(x)
    scores = layers.Reshape((4, 3))(x) / 255.0 + bias
    corners = [[a, b, a + 0.5, b + 0.5] for b in (0, 0.5) for a in (0, 0.5)]
    boxes = keras.ops.zeros_like(scores[..., :1]) + np.array(corners, "float32")
    found = NonMaxSuppression(threshold, max_detections=5)(
        {"boxes": boxes, "scores": scores}
    )
    return keras.Model(inputs, found)


@pytest.mark.skipif(BACKEND == "jax", reason="writes neither")
def test_detections_in_every_format(tmp_path):
    pytest.importorskip("onnxruntime")
    model = detector()
    assert export.onnx(model, tmp_path / "it.onnx").detections == 20
    if BACKEND == "torch":
        return
    report = export.saved_model(model, tmp_path / "it")
    assert report.detections == 20
    assert "20 detections compared" in str(report)


@needs_tensorflow
@pytest.mark.parametrize("precision", ["float32", "float16", "dynamic", "int8"])
def test_litert_finds_the_objects(tmp_path, precision):
    # Red top left, green bottom left, blue top right, black bottom right
    x = np.zeros((1, *SIZE, 3), "float32")
    x[0, :16, :12, 0], x[0, 16:, :12, 1], x[0, :16, 12:, 2] = 230, 200, 170
    ranges = {}
    if precision == "int8":
        ranges["representative"] = draw_pictures(8, *SIZE, 3).astype("float32")
    path, labels = tmp_path / "it.tflite", ["red", "green", "blue"]
    export.litert(
        detector(), path, precision=precision, labels=labels, images=x, **ranges
    )
    found = run_lite(path, x)
    assert {value.dtype for value in found.values()} == {np.dtype("float32")}
    assert found["count"].tolist() == [3]
    assert found["labels"].tolist() == [[0, 1, 2, -1, -1]]
    scores = np.array([[230, 200, 170, 0, 0]]) / 255
    np.testing.assert_allclose(found["scores"], scores, atol=0.01)
    boxes = [[0, 0, 0.5, 0.5], [0, 0.5, 0.5, 1], [0.5, 0, 1, 0.5]] + [[0] * 4] * 2
    np.testing.assert_allclose(found["boxes"], [boxes], atol=0.01)


def suppression_alone(classes, most):
    """A model that takes boxes and scores as an image, and two such images."""
    inputs = keras.Input((300, 4 + classes, 1))
    x = layers.Reshape((300, 4 + classes))(inputs)
    layer = NonMaxSuppression(0.25, 0.5, max_detections=most)
    model = keras.Model(inputs, layer({"boxes": x[..., :4], "scores": x[..., 4:]}))
    # Corners on a coarse grid, so that many overlaps are exactly the threshold
    rng = np.random.default_rng(0)
    corner, side = rng.integers(0, 9, (2, 300, 2)), rng.integers(1, 5, (2, 300, 2))
    boxes = np.concatenate([corner, corner + side], axis=-1) / 16
    scores = rng.permuted(np.arange(300 * classes) / 4096).reshape(1, 300, classes)
    scores = np.concatenate([scores, scores[:, ::-1]]) * 12 / classes
    return model, np.concatenate([boxes, scores], axis=-1).astype("float32")[..., None]


@needs_tensorflow
@pytest.mark.parametrize("classes", [1, 7])
def test_litert_suppresses_as_the_layer(tmp_path, classes):
    model, x = suppression_alone(classes, 60)
    path = tmp_path / "it.tflite"
    export.litert(model, path, images=x, batch_size=2)
    given, expected = run_lite(path, x, batch_size=2), model(x)
    counts = (np.asarray(expected["labels"]) >= 0).sum(1)
    assert counts.min() > 30
    np.testing.assert_array_equal(given.pop("count"), counts)
    for name, value in given.items():
        np.testing.assert_array_equal(value, np.asarray(expected[name], "float32"))


@pytest.mark.skipif(BACKEND == "jax", reason="writes no ONNX")
@pytest.mark.parametrize("classes, most", [(1, 60), (7, 60), (1, 400)])
def test_onnx_suppresses_as_the_layer(tmp_path, classes, most):
    onnxruntime = pytest.importorskip("onnxruntime")
    model, x = suppression_alone(classes, most)
    path = tmp_path / "it.onnx"
    export.onnx(model, path, images=x)
    session = onnxruntime.InferenceSession(path)
    names = [output.name for output in session.get_outputs()]
    expected = model(x)
    found = (keras.ops.convert_to_numpy(expected["labels"]) >= 0).sum(1)
    assert found.min() > 30
    for images, rows in ((x, slice(2)), (x[1:], slice(1, 2))):
        given = dict(zip(names, session.run(names, {"image": images}), strict=True))
        for name, value in expected.items():
            value = keras.ops.convert_to_numpy(value)[rows]
            np.testing.assert_array_equal(given[name], value)
            assert given[name].dtype == value.dtype


@needs_tensorflow
def test_litert_detectors_are_files_for_mediapipe(tmp_path):
    path, labels = tmp_path / "it.tflite", ["red", "green", "blue"]
    export.litert(detector(), path, labels=labels)
    # Loops would be further subgraphs, which MediaPipe does not take.
    _, graph = litert_description(path)
    # TensorMetadata: 0 name, 3 content, 6 associated files
    outputs = {output.string(0): output for output in graph.tables(3)}
    assert set(outputs) == {"location", "category", "score", "number of detections"}
    # Content: 0 type, 1 properties; BoundingBoxProperties: 0 index, 1 type
    content = outputs["location"].table(3)
    assert content.value(0, "u1") == 3  # BoundingBoxProperties
    assert content.table(1).vector(0, "<u4")[0].tolist() == [0, 1, 2, 3]
    assert content.table(1).value(1, "u1") == 1  # BOUNDARIES
    (file,) = outputs["category"].tables(6)
    assert file.string(0) == "labels.txt"
    assert file.value(2, "u1") == 3  # TENSOR_VALUE_LABELS
    assert not outputs["score"].has(6)


@needs_tensorflow
def test_nothing_to_compare_is_told(tmp_path):
    model = detector(0.9, bias=-1.0)
    with pytest.warns(UserWarning, match="no detection was compared"):
        report = export.saved_model(model, tmp_path / "it")
    assert report.detections == 0
    assert "no detection was compared" in str(report)


@needs_tensorflow
def test_int8_of_a_loop_is_refused(tmp_path):
    x = draw_pictures(4, *SIZE, 3).astype("float32")

    class Loop(layers.Layer):
        def call(self, x):
            return keras.ops.while_loop(
                lambda x: keras.ops.max(x) < 100, lambda x: (2 * x + 1,), (x,)
            )[0]

        def compute_output_spec(self, x):
            return keras.KerasTensor(x.shape, x.dtype)

    model = keras.Model(inputs := image(), Loop()(layers.Conv2D(4, 3)(inputs)))
    with pytest.raises(ValueError, match="cannot run the loops"):
        export.litert(model, tmp_path / "it.tflite", precision="int8", representative=x)


def renamed(model):
    found = model.output
    outputs = {"boxes": found["boxes"], "class": found["labels"], "p": found["scores"]}
    return keras.Model(model.input, outputs)


@needs_tensorflow
@pytest.mark.parametrize("suffix", ["onnx", "tflite"])
def test_other_names_of_detections_are_kept(tmp_path, suffix):
    write = {"onnx": export.onnx, "tflite": export.litert}[suffix]
    report = write(renamed(detector()), tmp_path / f"it.{suffix}")
    assert report.difference.keys() == {"boxes", "class", "p"}


@pytest.mark.skipif(BACKEND == "tensorflow", reason="works there")
def test_suppression_inside_a_model_error_names_the_remedy(tmp_path):
    model, path, write = detector(), tmp_path / "it", export.saved_model
    if BACKEND == "torch":  # which writes suppression at the end only
        model, path, write = renamed(model), tmp_path / "it.onnx", export.onnx
    with pytest.raises(ValueError, match=r"detector\(suppress=False\)"):
        write(model, path)


def test_detections_are_compared_without_regard_to_order():
    boxes = np.random.default_rng(0).uniform(size=(1, 3, 4)).astype("float32")
    found = {
        "boxes": boxes,
        "labels": np.array([[1, 1, -1]]),
        "scores": np.array([[0.5, 0.5, 0.0]], "float32"),
    }
    swapped = {key: x[:, [1, 0, 2]] for key, x in found.items()}
    assert compare_detections(swapped, found, "it", "float32", 0.1) == {
        "boxes": 0,
        "scores": 0,
    }
    for change in (
        {"labels": np.array([[1, 0, -1]])},
        {"boxes": boxes + [[[0.0], [0.01], [0.0]]]},
        {"scores": np.array([[0.5, 0.4, 0.0]])},
        {"labels": np.array([[1, -1, -1]])},
        {"labels": np.array([[1, 1, 1]]), "scores": np.array([[0.5, 0.5, 0.4]])},
    ):
        with pytest.raises(ValueError, match="1 have no counterpart|2 have no"):
            compare_detections(found | change, found, "it", "float32", 0.1)
    # The rounding of a score may take it below the threshold.
    fewer = found | {"labels": np.array([[1, -1, -1]])}
    compare_detections(fewer, found, "it", "float32", 0.49999)


@needs_saved_model
def test_labels_of_detectors_and_segmenters_are_counted(tmp_path):
    inputs = image()
    segmenter = keras.Model(inputs, layers.Conv2D(4, 3, padding="same")(inputs))
    for model, classes in ((segmenter, 4), (detector(), 3)):
        with pytest.raises(ValueError, match=f"one per class, {classes} of them"):
            export.saved_model(model, tmp_path / "it", labels=["a", "b"])


# The command line


def command(*arguments):
    return main(["export", *map(str, arguments)])


@needs_tensorflow
@pytest.mark.slow
def test_the_command_exports_a_detector(tmp_path, capsys, monkeypatch):
    backbone = MobileNetV2CA((64, 64, 3), alpha=0.25, weights=None, include_top=False)
    SSDLite(backbone, 2).save(tmp_path / "it.keras")
    it = (tmp_path / "it.keras", tmp_path / "it.tflite")
    assert command(*it, "--no-suppression") == 0
    assert "scores: largest difference" in capsys.readouterr().out
    assert command(*it, "--score-threshold", 0.001, "--max-detections", 7) == 0
    assert "detections compared" in capsys.readouterr().out

    def measure(model, data, task, **_):
        raise ValueError(f"measures {task}")

    # These data have boxes and masks, and no task is recorded.
    with monkeypatch.context() as patch:
        patch.setattr(cli_export, "AccuracyCheck", measure)
        assert command(*it, "--data", "digits/scenes") == 1
    assert "measures detection" in capsys.readouterr().err
    raw = ("--no-detector", "--data", "digits/scenes", "--max-drop", 0.1)
    assert command(*it, *raw) == 1
    assert "--max-drop is not for raw offsets" in capsys.readouterr().err
