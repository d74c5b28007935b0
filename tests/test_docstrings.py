"""The examples in the docstrings run, and show what they really return.

An example may use variables of its reader: a `model`, `images`, a folder. `given` makes
small ones. A line that shows no result may have one.
"""

import doctest
import importlib
import json
import pkgutil
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from backends import BACKEND
from data_scenes import annotation, encode, scene, write
from PIL import Image

import keras_coordatt
from keras_coordatt import MobileNetV2CA, data, visualize, weights
from keras_coordatt.applications.mobilenet_v2_ca import preprocess_input
from keras_coordatt.data import load_classification
from keras_coordatt.detection import SSDLite
from keras_coordatt.export import saved_model
from keras_coordatt.preprocessing import IMAGENET, PreprocessingRecord
from keras_coordatt.record import set_record
from keras_coordatt.segmentation import DeepLabV3

# Examples that are not run here, and why.
NOT_RUN = {
    "comparison.runs.compare": "trains for hours",
    "benchmark.measure.benchmark": "takes minutes",
    # Starting from weights in the package, it would take 15 s, mostly to save networks.
    "training.trainer.train": "downloads the ImageNet weights",
    "benchmark.references.build_times": "its result depends on the machine",
}
# Run on TensorFlow; the others run on PyTorch, which builds networks fastest.
NEEDS_TENSORFLOW = ("benchmark.", "export.", "files.atomic_folder")
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def examples():
    for module in pkgutil.walk_packages(keras_coordatt.__path__, "keras_coordatt."):
        if module.name.endswith("__main__"):
            continue
        for test in doctest.DocTestFinder().find(importlib.import_module(module.name)):
            name = test.name.removeprefix("keras_coordatt.")
            backend = "tensorflow" if name.startswith(NEEDS_TENSORFLOW) else "torch"
            if test.examples and name not in NOT_RUN and backend == BACKEND:
                yield pytest.param(test, id=name)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """The files of the examples' reader."""
    folder = tmp_path_factory.mktemp("examples")
    (folder / "labels.txt").write_text("background\nthing\n")
    Image.new("RGB", (4032, 3024)).save(folder / "IMG_0001.JPG")
    mask = Image.fromarray(np.array([[0, 1], [15, 255]], "uint8"))
    mask.putpalette(range(256))
    (folder / "SegmentationClass").mkdir()
    mask.save(folder / "SegmentationClass" / "2007_000032.png")
    # Black cats and white dogs, and a network that tells them apart
    for name, color in ("cat", "black"), ("dog", "white"):
        (folder / "photos" / name).mkdir(parents=True)
        for i in range(4):
            image = Image.new("RGB", (80, 60), color)
            image.save(folder / "photos" / name / f"{i}.jpg")
    write_data_sets(folder)
    (folder / "photo.jpg").symlink_to(folder / "photos" / "cat" / "0.jpg")
    cats = tiny_classifier()
    cats.layers[-1].kernel.assign([[-1, 1]] * 3)
    set_record(cats, task="classification", labels=("cat", "dog"), image_size=(64, 64))
    cats.save(folder / "cats.keras")
    if BACKEND == "torch":
        import torch
        from safetensors.torch import load_file

        model = MobileNetV2CA(weights=None)
        weights.save_safetensors(model, folder / "mbv2_ca.safetensors")
        torch.save(load_file(folder / "mbv2_ca.safetensors"), folder / "mbv2_ca.pth")
    return folder


def write_data_sets(folder):
    """Data sets of the layouts that people have, of one picture or a few."""
    image, box, mask = scene()
    picture, size = encode(image), {"width": image.width, "height": image.height}
    for i in range(4):
        write(folder / "pets" / f"{i}.jpg", picture)
    lines = [f"{i}.jpg,{'cat' if i % 2 else 'dog'}" for i in range(4)]
    write(folder / "pets" / "labels.csv", "\n".join(["image,label", *lines]))
    thing = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [2, 3, 9, 8]}
    coco = {
        "images": [{"id": 1, "file_name": "1.jpg", **size}],
        "annotations": [thing],
        "categories": [{"id": 1, "name": "thing"}],
    }
    annotations = folder / "coco2017" / "annotations" / "instances_train2017.json"
    write(annotations, json.dumps(coco))
    write(folder / "coco2017" / "train2017" / "1.jpg", picture)
    voc, yolo = folder / "VOCdevkit" / "VOC2007", folder / "coco128"
    write(voc / "Annotations" / "1.xml", annotation(image.size, box))
    write(voc / "JPEGImages" / "1.jpg", picture)
    write(yolo / "classes.txt", "thing")
    write(yolo / "labels" / "train" / "1.txt", "0 0.5 0.5 0.2 0.2")
    write(yolo / "images" / "train" / "1.jpg", picture)
    masks = folder / "camvid"
    write(masks / "labels.txt", "sky\nbuilding\nunlabelled")
    write(masks / "train" / "images" / "1.jpg", picture)
    write(masks / "train" / "masks" / "1.png", encode(Image.fromarray(mask), "PNG"))


def tiny_classifier():
    image = keras.Input((64, 64, 3), name="image")
    x = keras.layers.GlobalAveragePooling2D()(PreprocessingRecord(IMAGENET)(image))
    x = keras.layers.Dense(2, "softmax", name="predictions")(x)
    return keras.Model(image, x)


def given_to_exports():
    return {
        "keras": keras,
        "np": np,
        "tf": tf,
        "model": tiny_classifier(),  # as an export takes a while
        "images": np.zeros((2, 64, 64, 3), "float32"),
        "preprocess_input": preprocess_input,
        "load_classification": load_classification,
        "saved_model": saved_model,
    }


@pytest.fixture(scope="session")
def given():
    """The variables of the examples' reader: everywhere, and in examples by name."""
    if BACKEND == "tensorflow":
        return {"": given_to_exports()}
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (2, 64, 64, 3), "uint8")
    labels = np.array([0, 1])
    images = preprocess_input(pictures.astype("float32"))
    model = MobileNetV2CA((64, 64, 3), 0.1, weights=None, classes=2)
    model.compile("sgd", "sparse_categorical_crossentropy")
    gated = model.get_layer("block_3_attention").input.shape[1:]
    modules = (keras_coordatt, data, visualize)
    public = [(m, name) for m in modules for name in m.__all__]
    everywhere = {
        **{name: getattr(module, name) for module, name in public},
        "feature_map": rng.normal(size=(2, *gated)),
        "keras": keras,
        "np": np,
        "preprocess_input": preprocess_input,
        "model": model,
        "pictures": pictures,
        "images": images,
        "labels": labels,
        "predictions": labels,
        "train": tf.data.Dataset.from_tensors((images, labels)),
        "test": tf.data.Dataset.from_tensors((images, labels)),
    }

    backbone = MobileNetV2CA((64, 64, 3), 0.1, include_top=False, weights=None)
    boxes = {
        "boxes": np.array([[[0, 0, 0.5, 0.5]]] * 2, "float32"),
        "labels": np.zeros((2, 1), "int32"),
    }
    detection = {
        "backbone": backbone,
        "model": SSDLite(backbone, classes=20),
        "train": tf.data.Dataset.from_tensors((images, boxes)),
        "val": tf.data.Dataset.from_tensors((images, boxes)),
    }
    backbone = MobileNetV2CA(
        (64, 64, 3), 0.1, include_top=False, weights=None, output_stride=16
    )
    segmentation = {
        "model": DeepLabV3(backbone, classes=11, filters=8),
        "images": images,
        "masks": np.zeros((2, 64, 64), "int32"),
        "classes": 11,
    }
    return {
        "": everywhere,
        "data.report": {"SSDLite": SSDLite, "backbone": detection["backbone"]},
        "detection": detection,
        "visualize.galleries.plot_detections": detection,
        "segmentation": segmentation,
        "visualize.galleries.plot_masks": segmentation,
        "visualize.overlays.draw_masks": segmentation,
    }


class Checker(doctest.OutputChecker):
    def check_output(self, want, got, optionflags):
        # Shapes look different on each backend.
        got = re.sub(r"(?:torch\.Size|TensorShape)\(\[(.*?)\]\)", r"(\1)", got)
        return not want or super().check_output(want, got, optionflags)


@pytest.mark.parametrize("example", examples())
def test_example(example, given, folder, monkeypatch, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    monkeypatch.setattr(keras.utils, "get_file", None)  # nothing is downloaded
    name = example.name.removeprefix("keras_coordatt.")
    for prefix, variables in given.items():
        if name.startswith(prefix):
            example.globs |= variables
    report = []
    runner = doctest.DocTestRunner(Checker(), verbose=False, optionflags=FLAGS)
    runner.run(example, out=report.append)
    assert not report, "".join(report)
