import json
import math

import keras
import known_models
import numpy as np
import pytest
import tensorflow as tf
from backends import needs_tensorflow
from data_scenes import encode, write
from known_models import CELL, COLORS, cells, picture
from PIL import Image

from keras_coordatt import export
from keras_coordatt.cli import main
from keras_coordatt.data import MaskFolder
from keras_coordatt.evaluation import evaluate
from keras_coordatt.metrics import (
    ClassificationMetrics,
    DetectionMetrics,
)
from keras_coordatt.prediction import predict
from keras_coordatt.record import record_of, set_record

SCALE = 3


def png(pixels):
    return encode(Image.fromarray(pixels), "PNG")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Class folders; of the test images, one in three is in the wrong folder."""
    folder = tmp_path_factory.mktemp("photos")
    for i, color in enumerate(COLORS):
        write(folder / "train" / color / "a.png", png(picture(color)))
        for j in range(3):
            shown = COLORS[(i + (j == 2)) % 3]
            pixels = picture(shown, [(COLORS[j], 0, j)], scale=SCALE)
            write(folder / "test" / color / f"{j}.png", png(pixels))
    return folder


def test_classification(photos):
    sklearn = pytest.importorskip("sklearn.metrics")
    model = known_models.classifier()
    report = evaluate(model, photos, resamples=200)
    truth, scores = [], []
    for file in sorted(photos.glob("test/*/*.png")):
        truth.append(COLORS.index(file.parent.name))
        found = dict(predict(model, file)[0].classes)
        scores.append([found[color] for color in COLORS])
    predicted = np.argmax(scores, 1)
    assert report.task == "classification"
    assert report.images == len(truth) == 9
    assert report.metrics == {"top1": sklearn.accuracy_score(truth, predicted)}
    assert report.metrics["top1"] == pytest.approx(2 / 3)
    assert report.confusion == sklearn.confusion_matrix(truth, predicted).tolist()
    columns = sklearn.precision_recall_fscore_support(truth, predicted)
    for row, *expected in zip(report.by_class, *columns):
        given = [row[x] for x in ("precision", "recall", "f1", "images")]
        assert given == pytest.approx(expected)
    assert [row["label"] for row in report.by_class] == list(COLORS)
    low, high = report.intervals["top1"]
    assert low < 2 / 3 < high
    assert json.loads(json.dumps(report.as_dict()))["metrics"] == report.metrics
    assert "top1" in str(report) and "66.7 %" in str(report)


def test_top5_is_as_in_scikit_learn():
    sklearn = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    scores, truth = rng.normal(size=(200, 9)), rng.integers(0, 9, 200)
    metrics = ClassificationMetrics([str(i) for i in range(9)])
    for x, y in zip(scores, truth):
        metrics.keep(metrics.measure({"scores": x}, {"label": y}))
    found = metrics.main(np.arange(200))
    for name, k in (("top1", 1), ("top5", 5)):
        expected = sklearn.top_k_accuracy_score(truth, scores, k=k)
        assert found[name] == pytest.approx(expected)


@pytest.fixture(scope="module")
def streets(tmp_path_factory):
    """Masks that are right but for a column of each picture, with ignored pixels."""
    folder = tmp_path_factory.mktemp("streets")
    for i, background in enumerate(COLORS[:2]):
        pixels = picture(background, [("blue", i, 1)], scale=SCALE)
        mask = pixels.argmax(-1).astype("uint8")
        mask[:, : 10 * (i + 1)] = 1
        mask[:7] = 255
        write(folder / "test" / "images" / f"{i}.png", png(pixels))
        write(folder / "test" / "masks" / f"{i}.png", png(mask))
    return folder


def test_segmentation(streets):
    model = known_models.segmenter()
    data = MaskFolder(streets, classes=COLORS)
    report = evaluate(model, data, resamples=50)
    metric = keras.metrics.MeanIoU(3, ignore_class=255)
    for i in range(2):
        picture_ = np.asarray(Image.open(streets / "test" / "images" / f"{i}.png"))
        truth = np.asarray(Image.open(streets / "test" / "masks" / f"{i}.png"))
        (found,) = predict(model, picture_)
        metric.update_state(truth, found.mask)
    assert report.metrics["mean_iou"] == pytest.approx(float(metric.result()), abs=1e-6)
    assert 0.5 < report.metrics["mean_iou"] < 1
    table = keras.ops.convert_to_numpy(metric.total_cm)
    for i, row in enumerate(report.by_class):
        union = table[i].sum() + table[:, i].sum() - table[i, i]
        assert row["iou"] == pytest.approx(table[i, i] / union)
        assert row["pixels"] == table[i].sum()
    accuracy = table.trace() / table.sum()
    assert report.metrics["pixel_accuracy"] == pytest.approx(accuracy)
    low, high = report.intervals["mean_iou"]
    assert low < high


OBJECT = """<object><name>{}</name><difficult>{}</difficult><bndbox><xmin>{}</xmin>
<ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"""


@pytest.fixture(scope="module")
def cell_pictures(tmp_path_factory):
    """Pictures in Pascal VOC's layout whose boxes are not all where the model's are."""
    folder = tmp_path_factory.mktemp("voc")
    shifts = {"0": 0, "1": 6, "2": 14}
    for name, shift in shifts.items():
        squares = [("red", 0, 0), ("blue", 1, 2), ("red", 1, 0)]
        pixels = picture("green", squares, scale=SCALE)
        height, width = pixels.shape[:2]
        objects = ""
        for i, (color, row, column) in enumerate(squares):
            side = CELL * SCALE
            x, y = column * side, row * side
            box = (x + shift * (i != 1), y, x + side, y + side)
            objects += OBJECT.format(color, int(i == 2 and name == "2"), *box)
        write(
            folder / "Annotations" / f"{name}.xml",
            f"<annotation><size><width>{width}</width><height>{height}</height>"
            f"<depth>3</depth></size>{objects}</annotation>",
        )
        write(folder / "JPEGImages" / f"{name}.png", png(pixels))
    write(folder / "ImageSets" / "Main" / "test.txt", "0\n1\n2\n")
    return folder


def test_detection(cell_pictures):
    pytest.importorskip("pycocotools")
    model = known_models.detector()
    report = evaluate(model, cell_pictures, resamples=20)
    assert report.images == 3
    # Blue is always found exactly; red moves away, and one red object is difficult.
    blue, red = sorted(report.by_class, key=lambda row: row["label"])
    assert blue["label"], red["label"] == ("blue", "red")
    assert blue["AP"] == pytest.approx(1)
    assert (blue["objects"], red["objects"]) == (3, 5)
    assert 0.3 < red["AP"] < red["AP50"] == pytest.approx(1)
    assert report.metrics["AP"] == pytest.approx((blue["AP"] + red["AP"]) / 2)
    assert report.metrics["AP50"] == pytest.approx(1)
    assert report.metrics["VOC_mAP"] == pytest.approx(1)
    # 48 x 48 pixels
    assert report.metrics["AP_medium"] == pytest.approx(report.metrics["AP"])
    assert math.isnan(report.metrics["AP_small"])
    assert report.as_dict()["metrics"]["AP_large"] is None
    low, high = report.intervals["AP"]
    assert low <= report.metrics["AP"] <= high


def target(size, boxes, labels, crowd=None, difficult=None):
    """Returns a target of `DetectionMetrics`."""
    marks = {"crowd": crowd, "difficult": difficult}
    marks = {k: [False] * len(boxes) if x is None else x for k, x in marks.items()}
    return {"size": size, "boxes": boxes, "labels": labels, **marks}


def test_average_precision_is_that_of_coco():
    """A JSON file through `loadRes` and `summarize`, as COCO's users call it."""
    coco = pytest.importorskip("pycocotools.coco")
    cocoeval = pytest.importorskip("pycocotools.cocoeval")
    rng = np.random.default_rng(0)
    metrics = DetectionMetrics(["a", "b", "c"])
    truth, found = [], []
    size = np.array([300, 400])
    for image in range(12):
        corner = rng.uniform(0, 0.5, (5, 2))
        side = rng.uniform(0.03, 0.4, (5, 2)) * rng.choice([0.2, 1], (5, 1))
        boxes = np.concatenate([corner, corner + side], 1)
        labels, ignored = rng.integers(0, 3, 5), rng.random(5) < 0.1
        noisy = boxes + rng.normal(0, 0.02, boxes.shape) * side.repeat(2, 0).reshape(
            5, 4
        )
        noisy = np.concatenate([noisy, boxes[::-1] + 0.1])
        guesses = np.concatenate([labels, rng.integers(0, 3, 5)])
        scores = rng.uniform(0, 1, 10)
        measured = metrics.measure(
            {"boxes": noisy, "labels": guesses, "scores": scores},
            target(size, boxes, labels, crowd=ignored),
        )
        metrics.keep(measured)
        scale = np.tile(size[::-1], 2)
        for box, label, crowd in zip(boxes * scale, labels, ignored):
            box = [*box[:2], *(box[2:] - box[:2])]
            truth.append(
                {
                    "id": len(truth) + 1,
                    "image_id": image,
                    "category_id": int(label),
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": int(crowd),
                }
            )
        for box, label, score in zip(noisy * scale, guesses, scores):
            box = [*box[:2], *(box[2:] - box[:2])]
            found.append(
                {
                    "image_id": image,
                    "category_id": int(label),
                    "bbox": box,
                    "score": score,
                }
            )
    data = coco.COCO()
    data.dataset = {
        "info": {},
        "images": [{"id": i} for i in range(12)],
        "categories": [{"id": i} for i in range(3)],
        "annotations": truth,
    }
    data.createIndex()
    evaluation = cocoeval.COCOeval(data, data.loadRes(found), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    names = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
    given = {**metrics.main(np.arange(12)), **metrics.others()}
    assert 0.1 < given["AP"] < 0.9
    for name, expected in zip(names, evaluation.stats):
        assert given[name] == pytest.approx(expected), name
    # Resampled metrics are those of a data set with these images.
    images = rng.integers(0, 12, 12)
    again = DetectionMetrics(["a", "b", "c"])
    for image in images:
        again.images += 1
        for name in ("objects", "detections"):
            rows = [x for x in getattr(metrics, name) if x["image_id"] == image]
            getattr(again, name).extend(
                {**x, "image_id": again.images - 1} for x in rows
            )
    assert metrics.main(images) == pytest.approx(again.main(np.arange(12)))
    assert metrics.by_class()[0]["AP"] == pytest.approx(
        evaluation.eval["precision"][:, :, 0, 0, -1].mean()
    )


def test_vocs_average_precision_is_of_eleven_points():
    """Precision at 11 recalls, from VOC's definition: hit, miss, hit of three objects."""
    pytest.importorskip("pycocotools")
    metrics = DetectionMetrics(["a"])
    boxes = np.array(cells())[:3]
    measured = metrics.measure(
        {
            "boxes": np.array([boxes[0], [0.5, 0.5, 0.6, 0.6], boxes[1]]),
            "labels": np.zeros(3, int),
            "scores": np.array([0.9, 0.8, 0.7]),
        },
        target((96, 144), boxes, [0] * 3),
    )
    metrics.keep(measured)
    # Precision 1 up to a recall of 1/3, 2/3 up to one of 2/3.
    assert metrics.others()["VOC_mAP"] == pytest.approx((4 * 1 + 3 * 2 / 3) / 11)


def voc_average_precision(truth, found):
    """Pascal VOC 2007's, after its development kit: images of boxes and marks or scores."""
    used = [np.zeros(len(difficult), bool) for _, difficult in truth]
    hits = []
    rows = [(s, i, x) for i, y in enumerate(found) for x, s in zip(*y)]
    for _, image, (x1, y1, x2, y2) in sorted(rows, key=lambda row: -row[0]):
        boxes, difficult = truth[image]
        width = np.minimum(boxes[:, 2], x2) - np.maximum(boxes[:, 0], x1)
        height = np.minimum(boxes[:, 3], y2) - np.maximum(boxes[:, 1], y1)
        shared = width.clip(0) * height.clip(0)
        areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        ious = shared / (areas + (x2 - x1) * (y2 - y1) - shared)
        best = ious.argmax()
        if ious[best] < 0.5:
            hits.append(False)
        elif not difficult[best]:
            hits.append(not used[image][best])
            used[image][best] = True
    total = sum((~difficult).sum() for _, difficult in truth)
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    recall = np.cumsum(hits) / total
    levels = np.linspace(0, 1, 11)
    return np.mean([precision[recall >= x].max(initial=0) for x in levels])


def test_detections_of_difficult_objects_are_ignored_as_in_voc():
    """Those that match, however many; small ones inside are false, unlike in a crowd."""
    pytest.importorskip("pycocotools")
    rng = np.random.default_rng(0)
    grid = np.array([[x, y, x + 0.2, y + 0.2] for x in (0, 0.4, 0.8) for y in (0, 0.5)])
    metrics = DetectionMetrics(["a"])
    truth, found = [], []
    for _ in range(20):
        difficult = rng.random(6) < 0.4
        exact = grid[rng.integers(0, 6, 6)] + rng.normal(0, 0.01, (6, 4))
        inside = grid[rng.integers(0, 6, 2)] + [0.05, 0.05, -0.05, -0.05]
        boxes, scores = np.concatenate([exact, inside]), rng.random(8)
        measured = metrics.measure(
            {"boxes": boxes, "labels": np.zeros(8, int), "scores": scores},
            target((100, 100), grid, [0] * 6, difficult=difficult),
        )
        metrics.keep(measured)
        truth.append((grid, difficult))
        found.append((boxes, scores))
    expected = voc_average_precision(truth, found)
    assert 0.2 < expected < 0.8
    assert metrics.others()["VOC_mAP"] == pytest.approx(expected)


def test_intervals_have_the_stated_coverage():
    """Of 1000 images with a rate of 0.7, the interval is the binomial's."""
    metrics = ClassificationMetrics(["a", "b"])
    for i in range(1000):
        scores = np.eye(2)[int(i % 10 >= 7)]
        metrics.keep(metrics.measure({"scores": scores}, {"label": 0}))
    from keras_coordatt.evaluation import _intervals

    low, high = _intervals(metrics, 1000, 400, 0.95, seed=0)["top1"]
    half = 1.96 * math.sqrt(0.7 * 0.3 / 1000)
    assert (low, high) == pytest.approx((0.7 - half, 0.7 + half), abs=0.005)


def test_classes_of_the_data_are_found_by_name(photos, tmp_path):
    """A model with more classes, in another order."""
    known = known_models.classifier()
    x = keras.ops.take(known.output, [2, 1, 0, 0], axis=1) * np.array(
        [[1, 1, 1, 0]], "float32"
    )
    model = keras.Model(known.input, x)
    set_record(model, labels=["blue", "green", "red", "gray"])
    report = evaluate(model, photos, task="classification", resamples=0)
    assert report.metrics["top1"] == pytest.approx(2 / 3)
    assert [row["images"] for row in report.by_class] == [3, 3, 3, 0]
    assert report.intervals == {}


def test_labels_that_contradict_the_record(photos):
    """They were used instead of it, so that other classes were compared."""
    model = known_models.classifier()
    assert record_of(model).labels == ("red", "green", "blue")
    for labels in (["green", "red", "blue"], ["a", "b", "c"], ["red", "green"], "data"):
        with pytest.raises(
            ValueError, match=r"`labels` must.*\['red', 'green', 'blue'\]"
        ):
            evaluate(model, photos, labels=labels)
    expected = evaluate(model, photos, resamples=0)
    given = evaluate(model, photos, labels=["red", "green", "blue"], resamples=0)
    assert given.metrics == expected.metrics
    # The data's names may be others, such as in another language.
    set_record(model, labels=["bleu", "vert", "rouge"])
    assert evaluate(model, photos, labels="data").labels == ("blue", "green", "red")


@needs_tensorflow
def test_a_file_has_the_metrics_of_its_model(photos, streets, cell_pictures, tmp_path):
    for build, data in (
        (known_models.classifier, photos),
        (known_models.segmenter, MaskFolder(streets, classes=COLORS)),
        (known_models.detector, cell_pictures),
    ):
        model = build()
        export.litert(model, tmp_path / "it.tflite")
        expected = evaluate(model, data, resamples=0)
        given = evaluate(tmp_path / "it.tflite", data, resamples=0, batch_size=2)
        assert given.metrics == pytest.approx(expected.metrics, nan_ok=True)


def test_bad_arguments(photos, streets, cell_pictures):
    model = known_models.classifier()
    with pytest.raises(ValueError, match=r"`split`.*\['train', 'test'\].*'validation'"):
        evaluate(model, photos, split="validation")
    for arguments in (
        {"resamples": -1},
        {"confidence": 1.0},
        {"batch_size": 0},
        {"labels": "photos"},
    ):
        (name,) = arguments
        with pytest.raises(ValueError, match=f"`{name}`.*Received"):
            evaluate(model, photos, **arguments)
    unnamed = keras.Model(model.input, keras.layers.Dense(3)(model.output))
    task = {"task": "classification"}
    with pytest.raises(ValueError, match=r"`labels`.*3 classes.*Received: \['red'"):
        evaluate(unnamed, photos, labels=["red", "green", "blue", "x"], **task)
    message = r"`data` has classes.*\['blue'\].*same order, pass `labels=\"data\"`"
    with pytest.raises(ValueError, match=message):
        evaluate(unnamed, photos, labels=["red", "green", "x"], **task)
    with pytest.raises(ValueError, match="`labels` must be given.*'red'"):
        evaluate(unnamed, photos, task="classification")
    assert record_of(unnamed).labels is None
    given = evaluate(unnamed, photos, task="classification", labels="data")
    assert given.labels == ("blue", "green", "red")
    message = r"`data` has classes that the model doesn't know: \['x'\]"
    with pytest.raises(ValueError, match=message):
        classes = ["red", "green", "x"]
        evaluate(known_models.segmenter(), MaskFolder(streets, classes=classes))


class MasksWithUnknownValues(MaskFolder):
    """Like other TFDS builders: a `MaskFolder` itself refuses such masks."""

    def _as_dataset(self, *args, **kwargs):
        def change(example):
            mask = example["segmentation_mask"]
            return example | {
                "segmentation_mask": mask + 6 * tf.cast(mask == 1, mask.dtype)
            }

        return super()._as_dataset(*args, **kwargs).map(change)


def test_masks_with_an_unknown_value(streets):
    data = MasksWithUnknownValues(streets, classes=COLORS)
    message = r"`data` must have masks of 3 classes.*Received: a mask with \[.*7, 255\]"
    with pytest.raises(ValueError, match=message):
        evaluate(known_models.segmenter(), data)


def test_command(photos, tmp_path, capsys):
    model = known_models.classifier()
    model.save(tmp_path / "it.keras")
    arguments = ["evaluate", tmp_path / "it.keras", photos]
    json_file = tmp_path / "new" / "report.json"
    assert main([str(x) for x in [*arguments, "--json", json_file]]) == 0
    report = json.loads(json_file.read_text("utf-8"))
    assert report["metrics"]["top1"] == pytest.approx(2 / 3)
    printed = capsys.readouterr().out
    assert printed.startswith("it.keras: ") and "top1" in printed
    assert main([str(x) for x in [*arguments, "--split", "nowhere"]]) == 1
    error = capsys.readouterr().err
    assert "'nowhere'" in error and error.count("\n") == 1
    # The option as it is typed, not the name in Python
    assert "--split must be" in error and "--validation-split 0.2 sets" in error
