"""A quick valid call of every public function and class, for changing its arguments."""

import importlib
import inspect
import json

import keras
import known_models
import numpy as np
import reference
import surgery_models
import tensorflow as tf
from data_scenes import annotation, encode, scene, write
from networks import images
from PIL import Image

from keras_coordatt import (
    CoordinateAttention,
    MobileNetV2CA,
    data,
    prediction,
    training,
    weights,
)
from keras_coordatt.detection import SSDLite
from keras_coordatt.layers.gated_attention import GatedAttention
from keras_coordatt.preprocessing import IMAGENET
from keras_coordatt.runnable import open_model

RESULT = "a result, which users read and do not build"
KERAS = "Keras's own function"
MEASURES = "measures for minutes, or is what is measured: tests/test_benchmark.py"
# These are called on TensorFlow, and all others on PyTorch.
NEEDS_TENSORFLOW = {"comparison.latency", "export.litert", "export.saved_model"}
# Public names whose arguments are not changed here, and why.
EXCEPTED = {
    "applications.list_models": "no arguments",
    "applications.efficientnet_ca.decode_predictions": KERAS,
    "applications.efficientnet_ca.preprocess_input": KERAS,
    **dict.fromkeys(
        (
            "benchmark.Measure",
            "benchmark.PassesOnly",
            "benchmark.PlainPort",
            "benchmark.benchmark",
            "benchmark.build_times",
            "benchmark.measure_processes",
            "benchmark.multiply_adds",
            "benchmark.official_rows",
        ),
        MEASURES,
    ),
    "data.DataReport": RESULT,
    "evaluation.Evaluation": RESULT,
    "export.LayerError": RESULT,
    "export.Report": RESULT,
    "export.accuracy.AccuracyChange": RESULT,
    "prediction.DetectedObject": RESULT,
    "prediction.Prediction": RESULT,
    "record.Record": RESULT,
    "runnable.Runnable": RESULT,
    "training.Training": RESULT,
}


def public_callables():
    """Public functions and classes by name, each once."""
    found = {}
    for module in reference.MODULES:
        for name, value in reference.public(importlib.import_module(module)).items():
            if callable(value) and value not in found.values():
                found[f"{module}.{name}".removeprefix("keras_coordatt.")] = value
    return found


class Reached(Exception):
    """The arguments are accepted: what follows would take long."""


def stop(*args, **kwargs):
    raise Reached


def call(function, arguments):
    """Calls a function, and what only acts when it is used."""
    try:
        made = function(**arguments)
        if inspect.isgenerator(made):
            list(made)
        elif hasattr(made, "__enter__"):
            with made:
                pass
        elif isinstance(made, tf.data.Dataset):
            list(made.take(1))
        elif isinstance(made, GatedAttention):
            made(np.zeros((1, 4, 4, 8), "float32"))
            again = type(made).from_config(made.get_config())
            assert again.get_config() == made.get_config()
    except Reached:
        pass


class Unfitted(keras.Model):
    def fit(self, *args, **kwargs):
        raise Reached


def write_files(folder):
    """Writes the inputs of the calls, as users have them."""
    image, box, mask = scene()
    picture, label = encode(image, "PNG"), "0 0.5 0.5 0.25 0.25"
    thing = {"id": 1, "image_id": 1, "category_id": 3, "bbox": [2, 3, 9, 8]}
    size = {"width": image.width, "height": image.height}
    coco = {
        "images": [{"id": 1, "file_name": "a.png", **size}],
        "annotations": [thing],
        "categories": [{"id": 3, "name": "thing"}],
    }
    for split in ("train", "test"):
        for color in known_models.COLORS:
            pixels = Image.fromarray(known_models.picture(color))
            for i in range(2):
                write(
                    folder / "photos" / split / color / f"{i}.png",
                    encode(pixels, "PNG"),
                )
        write(folder / "yolo" / "images" / split / "a.png", picture)
        write(folder / "yolo" / "labels" / split / "a.txt", label)
        write(folder / "masks" / split / "images" / "a.png", picture)
        write(
            folder / "masks" / split / "masks" / "a.png",
            encode(Image.fromarray(mask), "PNG"),
        )
    write(folder / "yolo" / "classes.txt", "thing")
    write(folder / "voc" / "a.xml", annotation(image.size, box))
    write(folder / "coco" / "a.json", json.dumps(coco))
    for name in ("voc", "coco", "table"):
        write(folder / name / "a.png", picture)
    write(folder / "table" / "labels.csv", "image,label\na.png,thing\n")
    write(folder / "runs.jsonl", "")
    write(folder / "official" / "mbv2_ca.py", "")
    known_models.classifier().save(folder / "it.keras")
    weights.save_safetensors(backbone(), folder / "it.safetensors")
    weights.save_safetensors(backbone(attention=None), folder / "plain.safetensors")


def backbone(**others):
    quick = {"alpha": 0.1, "include_top": False, "weights": None}
    return MobileNetV2CA((32, 32, 3), **quick, **others)


def valid_arguments():
    """Valid arguments of the calls, by name; paths are those of `write_files`."""
    network = backbone()
    layer = CoordinateAttention()
    classifier = known_models.classifier()
    gates = keras.Sequential(
        [keras.Input((8, 8, 4)), layer, keras.layers.GlobalAveragePooling2D()]
    )
    pictures = np.zeros((2, 32, 32, 3), "uint8")
    run = {
        "task": "classification",
        "attention": "se",
        "seed": 0,
        "history": [{"val_accuracy": 0.5}],
        "metrics": {"accuracy": 0.5},
        "parameters": 7,
        "network": "MobileNetV2CA",
        "arguments": {},
        "image_size": [32, 32],
        "classes": 2,
    }
    time = {"seconds": 0.1, "per_second": 10.0, "ratio": (1.0, 1.0, 1.0)}
    row = {"model": "MobileNetV2CA", "attention": None, "parameters": 7}
    measured = [row | {"litert_float32_1": time}]
    objects = {"boxes": np.zeros((2, 1, 4)), "labels": np.zeros((2, 1), int)}
    train = {"task": None, "data": "photos", "output": None, "verbose": False}
    batches = tf.data.Dataset.from_tensors((images(2, *known_models.SIZE, 3), [0, 1]))
    unfitted = Unfitted(classifier.input, classifier.output)
    quick = {"weights": None, "input_shape": (32, 32, 3)}
    loader = {"split": "train", "image_size": 8, "batch_size": 1}
    return {
        "EfficientNetCA": quick | {"classes": 2},
        "MobileNeXtCA": quick | {"alpha": 0.1, "classes": 2},
        "MobileNetV2CA": quick | {"alpha": 0.1, "classes": 2},
        "CBAM": {},
        "CoordinateAttention": {},
        "SqueezeExcite": {},
        "fuse_attention": {"model": gates},
        "insert_attention": {"model": surgery_models.network()},
        "applications.list_weights": {},
        "applications.pyramid_outputs": {"model": network},
        "benchmark.check_official": {"path": "official"},
        "benchmark.interleaved": {"functions": {"a": int}, "rounds": 1},
        "benchmark.latency_picture": {"rows": measured, "path": "new.png"},
        "benchmark.picture": {
            "rows": measured,
            "path": "new.png",
            "measure": "litert_float32_1",
        },
        "benchmark.scaling_table": {
            "rows": [
                {"processes": 1, "seconds": 1.0, "per_second": 8.0, "exchanges": {}}
            ]
        },
        "benchmark.table": {"rows": measured},
        "comparison.compare": {
            "task": "classification",
            "data": "photos",
            "output": "runs.jsonl",
            "verbose": False,
        },
        "comparison.curves": {"runs": [run]},
        "comparison.latency": {"runs": [run]},
        "comparison.picture": {"runs": [run], "seconds": {"se": 0.1}},
        "comparison.read_runs": {"path": "runs.jsonl"},
        "comparison.table": {"runs": [run]},
        "data.COCOFolder": {"path": "coco"},
        "data.ClassFolder": {"path": "photos"},
        "data.ClassTable": {"path": "table/labels.csv"},
        "data.MaskFolder": {"path": "masks"},
        "data.VOCFolder": {"path": "voc"},
        "data.YOLOFolder": {"path": "yolo"},
        "data.class_names": {"builder": data.ClassFolder("photos")},
        "data.describe_data": {"name": "photos"},
        "data.find_task": {"name": "photos"},
        "data.load_classification": {"name": "photos", **loader},
        "data.load_detection": {"name": "yolo", **loader},
        "data.load_segmentation": {"name": "masks", **loader},
        "data.open_data": {"name": "photos"},
        "data.splits": {"builder": data.ClassFolder("photos")},
        "detection.NonMaxSuppression": {},
        "detection.SSDLite": {"backbone": network, "classes": 2},
        "detection.default_boxes": {
            "map_sizes": [(1, 1)],
            "box_shapes": [[(0.5, 0.5)]],
        },
        "detection.evaluate_detections": {
            "model": SSDLite(network, 2),
            "batches": [(images(2, 32, 32, 3), objects)],
        },
        "detection.ssd_box_shapes": {},
        "evaluation.evaluate": {"model": classifier, "data": "photos"},
        "export.Preprocessing": {},
        "export.accuracy.AccuracyCheck": {"model": classifier, "data": "photos"},
        "export.litert": {"model": classifier, "path": "new.tflite"},
        "export.onnx": {"model": classifier, "path": "new.onnx"},
        "export.preprocessing_of": {"model": classifier},
        "export.read_metadata": {"path": "it.keras"},
        "export.saved_model": {"model": classifier, "path": "new"},
        "layers.freeze_batch_norm": {"model": gates},
        "prediction.draw": {
            "prediction": prediction.predict(classifier, "photos/test/red/0.png")[0],
            "picture": known_models.picture("red"),
            "labels": None,
        },
        "prediction.predict": {"model": classifier, "images": "photos/test/red/0.png"},
        "prediction.predictions": {
            "model": open_model(classifier),
            "pictures": ["photos/test/red/0.png"],
        },
        "preprocessing.PreprocessingRecord": {"preprocessing": IMAGENET},
        "record.record_of": {"model": classifier},
        "record.set_record": {"model": known_models.classifier()},
        "runnable.open_model": {"model": classifier},
        "segmentation.DeepLabV3": {
            "backbone": network,
            "classes": 2,
            "filters": 8,
            "atrous_rates": (1, 2, 3),
        },
        "segmentation.ResizeLike": {},
        "training.Recipe": vars(training.recipe("scratch", "classification")),
        "training.distribute": {"devices": 1},
        "training.fine_tune": {"model": unfitted, "train": batches},
        "training.recipe": {"name": "scratch", "task": "classification"},
        "training.train": train | {"build": stop},
        "training.warmup_cosine": {"steps": 10, "learning_rate": 0.1},
        "training.zero_init_residuals": {"model": network},
        "visualize.attention_maps": {"model": gates, "images": images(1, 8, 8, 4)},
        "visualize.draw_masks": {
            "pictures": pictures,
            "masks": np.zeros((2, 32, 32), int),
            "classes": 2,
        },
        "visualize.grad_cam": {"model": gates, "images": images(1, 8, 8, 4)},
        "visualize.overlay": {"pictures": pictures, "heat": np.zeros((2, 4, 4))},
        "visualize.plot_attention": {
            "pictures": pictures,
            "gates": {
                "height": np.zeros((2, 4, 4)),
                "width": np.zeros((2, 4, 4)),
                "product": np.zeros((2, 4, 4, 4)),
            },
        },
        "visualize.plot_class_scores": {"values": [0.5], "labels": ["a"]},
        "visualize.plot_confusion_matrix": {"matrix": [[1, 0], [0, 1]]},
        "visualize.plot_detections": {"pictures": pictures, "detections": objects},
        "visualize.plot_gallery": {"pictures": pictures},
        "visualize.plot_history": {"history": {"loss": [1.0, 0.5]}},
        "visualize.plot_masks": {
            "pictures": pictures,
            "masks": np.zeros((2, 32, 32), int),
            "labels": 2,
        },
        "visualize.plot_precision_recall": {"curves": {"a": [0.5, 1.0]}},
        "weights.cached_weights": {"name": "mobilenetv2_ca_cifar10"},
        "weights.load_torch": {"target": network, "source": "it.safetensors"},
        "weights.load_weights": {"model": network, "path": "it.safetensors"},
        "weights.load_without_attention": {
            "model": network,
            "source": "plain.safetensors",
        },
        "weights.save_safetensors": {"target": network, "path": "new.safetensors"},
    }
