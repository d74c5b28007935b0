"""Trains the three tasks in several processes, for `test_distribution.py`.

    python distributed.py DATA OUT

Runs once in one process, then with 2 virtual devices, 2 processes and 4 processes, and
writes losses, metrics and weights of each run as OUT/<run>-<process>.npz. All processes
are forked from this one, which has imported everything and computed nothing.
"""

import contextlib
import os
import pathlib
import socket
import sys
import traceback

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from networks import quick_initial_weights
from PIL import Image

from keras_coordatt import CoordinateAttention
from keras_coordatt.data import (
    IGNORED,
    load_classification,
    load_detection,
    load_segmentation,
)
from keras_coordatt.detection import SSDLite, evaluate_detections, ssd_box_shapes
from keras_coordatt.distribution import current, wait
from keras_coordatt.evaluation import evaluate
from keras_coordatt.prediction import predict
from keras_coordatt.preprocessing import IMAGENET
from keras_coordatt.training import distribute
from keras_coordatt.training.distribution import synchronize_batch_norm

STEPS, BATCH = 5, 8
RUNS = {"one": (1, 1), "devices": (1, 2), "two": (2, 1), "four": (4, 1)}
# Whether each also gathers evaluations and predictions, and whether it validates: every
# program is compiled in every process.
MEASURED = {
    "one": (True, True),
    "devices": (False, True),
    "two": (True, True),
    "four": (False, False),
}


def backbone(attention):
    """Builds a network with the names that heads look for, quick to compile."""
    x = image = keras.Input((32, 32, 3))
    x = layers.Conv2D(8, 3, 8, padding="same", name="Conv1")(x)
    for i in (1, 2):
        x = layers.BatchNormalization(name=f"block_{i}_expand_BN")(x)
        x = layers.ReLU(name=f"block_{i}_expand_relu")(x)
        depthwise = layers.DepthwiseConv2D(3, 2, padding="same")
        depthwise.name = f"block_{i}_depthwise"
        x = depthwise(x)
    return keras.Model(image, CoordinateAttention()(x) if attention else x)


def build(task):
    """Returns a compiled model; with several devices, accuracy needs weights."""
    network, arguments = backbone(task == "classification"), {}
    if task == "classification":
        x = layers.GlobalAveragePooling2D()(network.output)
        x = layers.Dense(3, "softmax")(x)
        arguments["loss"] = "sparse_categorical_crossentropy"
        arguments["weighted_metrics"] = ["accuracy"]
    elif task == "detection":
        model = SSDLite(network, 2, box_shapes=ssd_box_shapes()[:2])
    else:
        x = layers.UpSampling2D(32)(layers.Conv2D(3, 1)(network.output))
        arguments["loss"] = keras.losses.SparseCategoricalCrossentropy(
            True, ignore_class=IGNORED
        )
        arguments["metrics"] = [
            keras.metrics.MeanIoU(3, ignore_class=IGNORED, sparse_y_pred=False)
        ]
    if task != "detection":
        model = keras.Model(network.input, x)
    model.compile(keras.optimizers.SGD(1e-2), **arguments)
    return model


def write_data(folder):
    """Writes 11 images to validate, which no batch divides, and enough to train."""
    rng = np.random.default_rng(0)
    for split, count in (("train", STEPS * BATCH + 3), ("validation", 11)):
        for i in range(count):
            image = rng.integers(0, 256, (32, 32, 3)).astype("uint8")
            for file in (
                f"classification/{split}/{'abc'[i % 3]}/{i}.png",
                f"detection/{split}/images/{i}.png",
                f"segmentation/{split}/images/{i}.png",
            ):
                write(folder / file, image)
            mask = rng.choice([0, 1, 2, 255], (32, 32)).astype("uint8")
            write(folder / f"segmentation/{split}/masks/{i}.png", mask)
            boxes = rng.uniform(0.3, 0.5, (i % 4, 4))
            lines = [f"{j % 2} {' '.join(map(str, x))}\n" for j, x in enumerate(boxes)]
            label = folder / f"detection/{split}/labels/{i}.txt"
            label.parent.mkdir(parents=True, exist_ok=True)
            label.write_text("".join(lines))
    (folder / "detection" / "data.yaml").write_text(
        "train: train/images\nval: validation/images\nnames: [a, b]\n"
    )
    (folder / "segmentation" / "labels.txt").write_text("a\nb\nc\n")


def write(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


LOADERS = {
    "classification": load_classification,
    "detection": load_detection,
    "segmentation": load_segmentation,
}
if keras.config.backend() == "tensorflow":
    # It has one process only, and Keras's own losses and metrics do the other tasks.
    RUNS = {"one": (1, 1), "devices": (1, 2)}
    LOADERS = {"detection": load_detection}
    MEASURED["devices"] = (True, True)


def train(task, data, devices, gathers, measures):
    """Trains and measures a model; without devices, as a user of Keras would."""
    load, options = LOADERS[task], {"batch_size": BATCH, "image_size": 32}
    if devices is None:
        batches = load(data, "train", drop_remainder=True, **options)
        validation = load(data, "validation", **options)
    else:
        options["batch_size"] //= devices.processes
        options["shard"] = (devices.process, devices.processes)
        batches = load(data, "train", steps=STEPS, **options)
        validation = load(data, "validation", pad_remainder=True, **options)
    model, losses = build(task), []
    synchronize_batch_norm(model, current())
    record_losses = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda step, logs: losses.append(logs["loss"])
    )
    model.fit(batches, verbose=0, callbacks=[record_losses], shuffle=False)
    found = {"losses": losses}
    if measures:
        found["metrics"] = model.evaluate(validation, verbose=0)
    if task == "detection" and gathers:
        found["AP"] = evaluate_detections(model, validation)["AP"]
    if task == "classification" and gathers:
        options = {"task": task, "preprocessing": IMAGENET}
        report = evaluate(model, data, split="validation", labels="data", **options)
        found["evaluate"] = [*report.metrics.values(), *report.intervals["top1"]]
        pictures = predict(
            model, data / "validation", labels=["a", "b", "c"], **options
        )
        found["predict"] = [picture.classes[0][1] for picture in pictures]
    for weight, value in zip(model.weights, model.get_weights()):
        found[f"weight {weight.path}"] = value
    return {f"{task} {name}": value for name, value in found.items()}


def child(data, out, name, process, port):
    processes, devices = RUNS[name]
    if devices > 1:
        os.environ["XLA_FLAGS"] += f" --xla_force_host_platform_device_count={devices}"
        if keras.config.backend() == "tensorflow":
            kind = tf.config.LogicalDeviceConfiguration
            tf.config.set_logical_device_configuration(
                tf.config.list_physical_devices("CPU")[0], [kind()] * devices
            )
    cluster = {}
    if processes > 1:
        cluster = {"coordinator": f"localhost:{port}", "processes": processes}
        cluster["process_id"] = process
    one = contextlib.nullcontext()
    with distribute(devices, **cluster) if name != "one" else one as found:
        if found:
            assert (found.replicas, found.process) == (processes * devices, process)
        results = {}
        for task in LOADERS:
            keras.utils.set_random_seed(0)
            with quick_initial_weights():
                results |= train(task, data / task, found, *MEASURED[name])
        # In order: the first process holds what the others need to end.
        np.savez(out / f"{name}-{process}.npz", **results)
        wait()


def free_port():
    with socket.socket() as server:
        server.bind(("", 0))
        return server.getsockname()[1]


def main(data, out):
    os.environ.setdefault("XLA_FLAGS", "")
    data, out = pathlib.Path(data), pathlib.Path(out)
    write_data(data)
    for name, (processes, _) in RUNS.items():
        port = free_port()
        children = [fork(child, data, out, name, i, port) for i in range(processes)]
        for pid in children:
            if os.waitpid(pid, 0)[1]:
                sys.exit(f"The run {name!r} failed")


def fork(function, *arguments):
    """Calls a function in a process of its own, and returns its number."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        function(*arguments)
        status = 0
    finally:
        if status:
            traceback.print_exc()
        os._exit(status)


if __name__ == "__main__":
    main(*sys.argv[1:])
