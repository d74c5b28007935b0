import csv
import dataclasses
import importlib.util
import json

import keras
import known_models
import numpy as np
import pytest
from backends import BACKEND, needs_tensorflow, once
from data_scenes import encode, write
from exports import each_format
from known_models import COLORS, picture
from networks import outputs
from PIL import Image

from keras_coordatt import export, visualize
from keras_coordatt.cli import main
from keras_coordatt.detection import NonMaxSuppression
from keras_coordatt.prediction import draw, predict
from keras_coordatt.preprocessing import IMAGENET, RAW_PIXELS, Preprocessing
from keras_coordatt.runnable import open_model
from keras_coordatt.visualize.overlays import class_color

# Three times the networks' size, so that it is resized.
SCENE = picture("green", [("red", 0, 1), ("blue", 1, 2)], scale=3)
RED, BLUE = (48, 0, 96, 48), (96, 48, 144, 96)


@pytest.fixture(scope="module")
def models():
    return {
        "classification": known_models.classifier(),
        "detection": known_models.detector(),
        "segmentation": known_models.segmenter(),
    }


def check_scene(prediction, task, tolerance=1e-3):
    """Compares a prediction with the known object of the scene."""
    assert prediction.size == (96, 144)
    if task == "classification":
        assert prediction.classes[0][0] == "green"
        assert prediction.classes[0][1] == pytest.approx(0.998, abs=tolerance + 1e-3)
    elif task == "detection":
        found = sorted(prediction.objects, key=lambda x: x.label)
        assert [x.label for x in found] == ["blue", "red"]
        np.testing.assert_allclose([x.box for x in found], [BLUE, RED], atol=0.5)
        assert all(x.score > 0.99 for x in found)
    else:
        truth = SCENE.argmax(-1)
        np.testing.assert_array_equal(prediction.mask, truth)
        assert prediction.shares == pytest.approx(
            {"green": 2 / 3, "red": 1 / 6, "blue": 1 / 6}
        )


TASKS = pytest.mark.parametrize("task", ["classification", "detection", "segmentation"])


@TASKS
def test_arrays(models, task):
    for prediction in predict(models[task], np.stack([SCENE] * 3), batch_size=2):
        check_scene(prediction, task)
        json.dumps(prediction.as_dict())
    assert len(prediction.rows()) == {"detection": 2}.get(task, 3)


@TASKS
@each_format
def test_files(models, task, write, name, tmp_path):
    if write is export.onnx and BACKEND == "jax":
        pytest.skip("Keras writes no ONNX file on JAX")
    write(models[task], tmp_path / name)
    Image.fromarray(SCENE).save(tmp_path / "scene.png")
    (prediction,) = predict(tmp_path / name, tmp_path / "scene.png")
    assert prediction.file == str(tmp_path / "scene.png")
    check_scene(prediction, task)


@needs_tensorflow  # the other backends refuse to export it
@each_format
def test_files_of_detectors_with_suppression(models, write, name, tmp_path):
    raw = models["detection"]
    write(keras.Model(raw.input, NonMaxSuppression(0.3)(raw.output)), tmp_path / name)
    check_scene(predict(tmp_path / name, SCENE)[0], "detection")


@needs_tensorflow
@TASKS
def test_int8(models, task, tmp_path):
    squares = [picture(x, [(y, 0, 1)]) for x in COLORS for y in COLORS]
    images = IMAGENET.normalize(np.stack(squares).astype("float32"))
    path = tmp_path / "it.tflite"
    export.litert(models[task], path, precision="int8", representative=images)
    check_scene(predict(path, SCENE)[0], task, tolerance=0.01)


@TASKS
def test_a_keras_file(models, task, tmp_path):
    models[task].save(tmp_path / "it.keras")
    check_scene(predict(str(tmp_path / "it.keras"), SCENE)[0], task)


def test_pictures_are_read_with_their_orientation(models, tmp_path):
    """With orientation 6, the file stores the scene on its side."""
    upright = Image.fromarray(SCENE)
    write(tmp_path / "a" / "Straße 1.JPG", encode(upright))
    write(tmp_path / "a" / "deep" / "b.jpg", encode(upright, orientation=6))
    write(tmp_path / "a" / "notes.txt", "not a picture")
    write(tmp_path / "a" / ".hidden.png", encode(upright, "PNG"))
    found = predict(models["detection"], tmp_path / "a")
    assert [x.file.rpartition("/")[2] for x in found] == ["Straße 1.JPG", "b.jpg"]
    for images in (tmp_path / "a", str(tmp_path / "a" / "**" / "*.[jJ]*")):
        for prediction in predict(models["detection"], images):
            boxes = sorted(x.box for x in prediction.objects)
            np.testing.assert_allclose(boxes, [RED, BLUE], atol=0.5)


def test_pictures_are_resized_as_recorded(tmp_path):
    """Nearest and bilinear interpolation differ on a pattern of stripes."""
    stripes = np.zeros((64, 96, 3), "uint8")
    stripes[::2] = 255
    model = known_models.segmenter()
    for preprocessing in (
        Preprocessing(interpolation="nearest", antialias=False),
        Preprocessing(interpolation="bicubic"),
    ):
        x = open_model(model, preprocessing=preprocessing).prepare([stripes])
        size = Image.Resampling[preprocessing.interpolation.upper()]
        expected = np.asarray(Image.fromarray(stripes).resize((48, 32), size))
        expected = preprocessing.normalize(expected.astype("float32"))
        np.testing.assert_allclose(x[0], expected, atol=0.03)


def test_pictures_that_cannot_be_read(models, tmp_path):
    write(tmp_path / "good.png", encode(Image.fromarray(SCENE), "PNG"))
    write(tmp_path / "bad.png", "no picture")
    with pytest.raises(ValueError, match="bad.png cannot be read"):
        predict(models["classification"], tmp_path)
    with pytest.warns(UserWarning, match="1 pictures.*\n.*bad.png"):
        found = predict(models["classification"], tmp_path, on_error="skip")
    assert [x.file for x in found] == [str(tmp_path / "good.png")]


def test_without_labels_classes_have_numbers(models):
    head = keras.layers.Dense(7)(models["classification"].layers[-2].output)
    model = keras.Model(models["classification"].input, head)
    (prediction,) = predict(model, SCENE, task="classification", top=7)
    scores = outputs(model, open_model(model, task="classification").prepare([SCENE]))
    best = scores[0].argsort()[::-1]
    assert [x for x, _ in prediction.classes] == [str(i) for i in best]
    # Logits are no shares of one.
    assert f" {scores.max():.2f}  {best[0]}\n" in str(prediction)
    assert "%" not in str(prediction)


def test_unknown_settings_are_asked_for(models, tmp_path):
    image = keras.Input((None, None, 3))
    foreign = keras.Model(image, keras.layers.GlobalAveragePooling2D()(image))
    with pytest.raises(ValueError, match="`image_size` must be given"):
        predict(foreign, SCENE)
    with pytest.raises(ValueError, match="`task` must be given"):
        predict(foreign, SCENE, image_size=32)
    settings = {"task": "classification", "image_size": 32}
    with pytest.raises(ValueError, match="`preprocessing` must be given"):
        predict(foreign, SCENE, **settings)
    settings["preprocessing"] = RAW_PIXELS
    with pytest.raises(ValueError, match="`labels`.*3 classes.*Received"):
        predict(foreign, SCENE, labels=["a", "b"], **settings)
    sequential = keras.Sequential(foreign.layers)
    for model in (foreign, sequential):
        (prediction,) = predict(model, SCENE, labels=COLORS, **settings)
        assert dict(prediction.classes) == pytest.approx(
            dict(zip(COLORS, SCENE.mean((0, 1)))), abs=1
        )


def test_bad_arguments(models, tmp_path):
    model = models["classification"]
    write(tmp_path / "notes.txt", "not a model")
    for images, message in {
        "missing.jpg": "'missing.jpg'",
        "missing/*.jpg": "no picture or folder .missing",
        str(tmp_path): "`images` has no pictures",
        7: "`images` must be.*Received: <class 'int'>",
    }.items():
        with pytest.raises((ValueError, OSError), match=message):
            predict(model, images)
    for images in (SCENE.astype("float32"), SCENE[..., :2], SCENE[0]):
        with pytest.raises(ValueError, match="`images` must be uint8"):
            predict(model, images)
    with pytest.raises(ValueError, match="`model`.*notes.txt"):
        predict(tmp_path / "notes.txt", SCENE)
    for name in ("cut.tflite", "cut.onnx", "cut/saved_model.pb"):
        write(tmp_path / name, "not a model")
        with pytest.raises(ValueError, match="Cannot read .*cut"):
            predict(tmp_path / name.removesuffix("/saved_model.pb"), SCENE)
    with pytest.raises(FileNotFoundError, match="missing.keras"):
        predict("missing.keras", SCENE)
    for arguments in (
        {"top": 0},
        {"score_threshold": 1},
        {"task": "regression"},
        {"labels": "red"},
        {"image_size": 64},
        {"preprocessing": "imagenet"},
        {"on_error": "ignore"},
        {"batch_size": 0},
    ):
        (name,) = arguments
        with pytest.raises(ValueError, match=f"`{name}`.*Received"):
            predict(model, SCENE, **arguments)


def test_drawing(models):
    pytest.importorskip("cv2")
    (found,) = predict(models["detection"], SCENE)
    drawn = draw(found, SCENE, ("red", "blue"))
    changed = (drawn != SCENE).any(-1)
    assert changed[0, 48:96].all() and changed[48:95, 143].all()  # edges of the boxes
    assert not changed[20:28, 66:76].any()  # the middle of one
    # The same colors as in `visualize`, with and without labels
    assert (drawn[0, 48:96] == class_color(0)).all()
    assert (drawn[48:95, 143] == class_color(1)).all()
    unnamed = [
        dataclasses.replace(x, label=str(("red", "blue").index(x.label)))
        for x in found.objects
    ]
    unnamed = dataclasses.replace(found, objects=tuple(unnamed[::-1]))
    unnamed = draw(unnamed, SCENE, None)
    assert (unnamed[0, 48:96] == drawn[0, 48:96]).all()
    assert (unnamed[48:95, 143] == drawn[48:95, 143]).all()
    with pytest.raises(ValueError, match="`labels`.*such as 'blue'.*'red', 'green'"):
        draw(found, SCENE, ("red", "green"))
    (found,) = predict(models["segmentation"], SCENE)
    drawn = draw(found, SCENE, COLORS)
    masks = visualize.draw_masks(SCENE[None], found.mask[None], len(COLORS))
    np.testing.assert_array_equal(drawn, masks[0])
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) == 3
    assert (drawn != SCENE).any(-1).all()
    with pytest.raises(ValueError, match="`labels` must name.*Received.*'thing'"):
        draw(found, SCENE, ("thing", "background"))
    # Pixels of a class with this name are not touched.
    drawn = draw(found, SCENE, ("thing", "background", "other"))
    np.testing.assert_array_equal((drawn == SCENE).all(-1), SCENE.argmax(-1) == 1)
    (found,) = predict(models["classification"], SCENE)
    np.testing.assert_array_equal(draw(found, SCENE, COLORS), SCENE)


def command(*arguments):
    return main(["predict", *map(str, arguments)])


@TASKS
def test_command(models, task, tmp_path, capsys):
    models[task].save(tmp_path / "it.keras")
    for folder in ("a", "b"):
        write(tmp_path / folder / "scene.png", encode(Image.fromarray(SCENE), "PNG"))
    arguments = [tmp_path / "a", f"{tmp_path}/b/*.png", "--top", 2]
    arguments += ["--json", tmp_path / "new" / "it.json", "--csv", tmp_path / "it.csv"]
    drawn = task != "classification" and importlib.util.find_spec("cv2")
    if drawn:
        arguments += ["--draw", tmp_path / "drawn"]
    assert command(tmp_path / "it.keras", *arguments) == 0
    out = capsys.readouterr().out
    assert out.count("scene.png\n") == 2
    content = json.loads((tmp_path / "new" / "it.json").read_text("utf-8"))
    files = [str(tmp_path / x / "scene.png") for x in "ab"]
    assert [x["file"] for x in content] == files
    with open(tmp_path / "it.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    expected = {"classification": 2, "detection": 2, "segmentation": 3}[task]
    assert [x["file"] for x in rows] == [x for x in files for _ in range(expected)]
    assert {x["label"] for x in rows[:2]} < set(COLORS)
    if task == "detection":
        boxes = sorted(
            [float(x[k]) for k in ("x1", "y1", "x2", "y2")] for x in rows[:2]
        )
        np.testing.assert_allclose(boxes, [RED, BLUE], atol=0.5)
        unsure = [tmp_path / "it.keras", tmp_path / "a", "--score-threshold", 0.9999]
        assert command(*unsure) == 0
        assert "nothing found with a score above 0.9999\n" in capsys.readouterr().out
    if drawn:
        for name in ("scene.png", "scene-2.png"):
            with Image.open(tmp_path / "drawn" / name) as image:
                assert (np.asarray(image) != SCENE).any()


def test_a_wrong_command_is_told(models, tmp_path, capsys):
    model = tmp_path / "it.keras"
    models["classification"].save(model)
    Image.fromarray(SCENE).save(tmp_path / "scene.png")
    for arguments, message in (
        ([model, tmp_path / "missing.png"], "missing.png"),
        ([tmp_path / "missing.keras", tmp_path / "scene.png"], "missing.keras"),
        ([model, tmp_path / "scene.png", "--draw", tmp_path / "d"], "--draw is for"),
        ([model, tmp_path / "scene.png", "--mean", 0, 0, 0], "--mean and --std"),
    ):
        assert command(*arguments) == 1
        captured = capsys.readouterr()
        assert message in captured.err
        assert captured.err.count("\n") == 1
    assert not (tmp_path / "d").exists()


@once
@pytest.mark.parametrize("links", [False, True])
def test_no_input_is_replaced(models, tmp_path, capsys, links):
    """`predict MODEL photos --draw photos` replaced the pictures by drawings."""
    model, photos = tmp_path / "it.keras", tmp_path / "photos"
    models["segmentation"].save(model)
    photo, labels = photos / "scene.png", tmp_path / "labels.txt"
    write(photo, encode(Image.fromarray(SCENE), "PNG"))
    write(labels, "\n".join(COLORS))
    folder = photos
    if links:
        folder = tmp_path / "drawn"
        folder.mkdir()
        (folder / "scene.png").symlink_to(photo)
    before = {x: x.read_bytes() for x in (model, photo, labels)}
    for option, output, replaced in (
        ("--draw", folder, photo),
        ("--json", model, model),
        ("--csv", labels, labels),
        ("--csv", folder / "scene.png", photo),
    ):
        assert command(model, photos, "--labels", labels, option, output) == 1
        captured = capsys.readouterr()
        assert f"{option} would replace {replaced}, which" in captured.err
        assert captured.out == ""  # nothing was predicted
    same = tmp_path / "same"
    assert command(model, photos, "--json", same, "--csv", same) == 1
    assert "--csv and --json must be different files" in capsys.readouterr().err
    assert before == {x: x.read_bytes() for x in before}


@once
def test_labels_from_a_file(models, tmp_path, capsys):
    """In UTF-16, as Windows writes them; another encoding is an error of one line."""
    model, photo, labels = (tmp_path / x for x in ("it.keras", "a.png", "labels.txt"))
    models["classification"].save(model)
    write(photo, encode(Image.fromarray(SCENE), "PNG"))
    for encoding in ("utf-8-sig", "utf-16"):
        labels.write_text("\n".join(COLORS), encoding)
        assert command(model, photo, "--labels", labels) == 0
        assert "green" in capsys.readouterr().out
    labels.write_text("grün", "latin-1")
    assert command(model, photo, "--labels", labels) == 1
    assert f"--labels: {labels} must be saved as UTF-8" in capsys.readouterr().err
    labels.write_text("\n".join(reversed(COLORS)))
    assert command(model, photo, "--labels", labels) == 1
    error = capsys.readouterr().err
    assert (
        f"--labels must be left out, or those recorded on 'it.keras': {list(COLORS)}"
        in error
    )
