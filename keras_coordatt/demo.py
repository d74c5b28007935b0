"""Demo: fine-tunes the packaged network on digits, looks at it, and exports it.

`make demo` and `keras-coordatt demo` run it. Nothing is downloaded.
"""

import contextlib
import functools
import io
import pathlib
import time

import keras
import numpy as np

from keras_coordatt import MobileNetV2CA, export, visualize
from keras_coordatt.applications.mobilenet_v2_ca import preprocess_input
from keras_coordatt.data import load_classification, open_data
from keras_coordatt.files import check_writable
from keras_coordatt.record import set_record
from keras_coordatt.training import warmup_cosine
from keras_coordatt_command import quiet_stderr

SIZE = 64
BATCH_SIZE = 64
EPOCHS = 8
# Images on which the int8 file is measured, and compared with the Keras model
CHECKED = 200
LABELS = [str(digit) for digit in range(10)]


def main(folder: pathlib.Path = pathlib.Path("runs/demo")) -> None:
    """Runs the demo.

    Args:
        folder: Folder for the pictures and models.
    """
    # TensorFlow, its converter and TFDS log there.
    with quiet_stderr():
        run(folder)


def run(folder: pathlib.Path) -> None:
    """Fine-tunes, draws and exports, and prints each step."""
    check_writable("`output`", folder)
    folder.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(0)
    load_digits = functools.partial(
        load_classification, "digits/classification", image_size=SIZE, seed=0
    )
    # The first time, TFDS prints that it builds the data.
    with contextlib.redirect_stdout(io.StringIO()):
        open_data("digits/classification")
    train = load_digits(
        split="train",
        batch_size=BATCH_SIZE,
        augment=keras.layers.RandomTranslation(0.1, 0.1, fill_mode="nearest", seed=0),
        preprocess=preprocess_input,
        shuffle=True,
    )
    test = load_digits(split="test", preprocess=preprocess_input)

    model = MobileNetV2CA((SIZE, SIZE, 3), alpha=0.5, weights="cifar10", classes=10)
    print(
        "1. A MobileNetV2 with coordinate attention, "
        f"{model.count_params():,} parameters.\n"
        "   Its weights are part of the package: trained on CIFAR-10 beforehand, in 82\n"
        "   minutes on two CPU cores. CIFAR-10 has airplanes and frogs, but no digits."
    )
    print(
        f"2. Fine-tuning on {train_size(train)} handwritten digits, here and now "
        f"({EPOCHS} epochs)."
    )
    start = time.perf_counter()
    optimizer = keras.optimizers.Lamb(warmup_cosine(EPOCHS * len(train), 1e-2))
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    history = model.fit(train, epochs=EPOCHS, verbose=0, callbacks=[Progress()])
    print(f"   That took {time.perf_counter() - start:.0f} s.")

    images = np.concatenate([images for images, _ in test])
    labels = np.concatenate([labels for _, labels in test])
    predictions = model.predict(images, verbose=0).argmax(axis=-1)
    accuracy = np.mean(predictions == labels)
    print(
        f"3. Accuracy on {len(labels)} test digits, from forms that were not in the "
        f"training data: {accuracy:.1%}"
    )
    set_record(
        model,
        task="classification",
        labels=LABELS,
        image_size=(SIZE, SIZE),
        metrics={"accuracy": float(accuracy)},
    )

    print("4. Pictures of it:")
    pictures = load_digits(split="test")
    pictures = np.concatenate([pictures for pictures, _ in pictures])
    for name, (figure, caption) in draw(
        model, history, pictures, images, labels, predictions
    ).items():
        figure.savefig(folder / name)
        print(f"   {folder / name}: {caption}")

    print("5. Models, each compared with the Keras model after it was written:")
    model.save(folder / "model.keras")
    loaded = keras.saving.load_model(folder / "model.keras")
    same = np.abs(loaded.predict(images, verbose=0) - model.predict(images, verbose=0))
    print(f"   {folder / 'model.keras'}: loads, largest difference {same.max():.1e}")
    report = export.saved_model(model, folder / "saved_model")
    print(
        f"   {report.path}: for serving, largest difference "
        f"{max(report.difference.values()):.1e}"
    )
    report = export.litert(
        model,
        folder / "model_int8.tflite",
        precision="int8",
        representative=train.unbatch().batch(50).take(CHECKED // 50),
        images=images[:CHECKED],
    )
    print(
        f"   {report.path}: for phones, {report.size / 2**20:.1f} MiB, same class as "
        f"the Keras model for {report.agreement:.1%} of {report.images} test digits"
    )


def train_size(batches) -> int:
    """Returns the number of images in a dataset of batches."""
    return sum(len(labels) for _, labels in batches)


def draw(model, history, pictures, images, labels, predictions) -> dict:
    """Returns the figures and their captions by file name."""
    wrong = np.flatnonzero(predictions != labels)
    right = np.flatnonzero(predictions == labels)
    shown = np.concatenate([wrong[:8], right])[:24]
    titles = [
        f"{guess}" if guess == label else f"{guess}, not {label}"
        for guess, label in zip(predictions[shown], labels[shown])
    ]
    matrix = np.zeros((10, 10), int)
    np.add.at(matrix, (labels, predictions), 1)
    some = shown[-4:]
    # One of the first attention layers, whose feature map is large enough to look at
    gates = visualize.attention_maps(model, images[some])["block_2_attention"]
    heat = visualize.grad_cam(model, images[shown], "block_5_depthwise_relu")
    return {
        "curves.png": (visualize.plot_history(history), "loss and accuracy by epoch"),
        "predictions.png": (
            visualize.plot_gallery(
                pictures[shown], titles, wrong=predictions[shown] != labels[shown]
            ),
            f"the first of {len(wrong)} mistakes in red, then digits that are right",
        ),
        "confusion.png": (
            visualize.plot_confusion_matrix(matrix, LABELS),
            "which digit was taken for which",
        ),
        "attention.png": (
            visualize.plot_attention(
                pictures[some], gates, title="coordinate attention of block 2"
            ),
            "gates of the rows and columns, by which one layer multiplies",
        ),
        "grad_cam.png": (
            visualize.plot_gallery(
                visualize.overlay(pictures[shown], heat), predictions[shown]
            ),
            "Grad-CAM: where the evidence for the predicted digit lies (yellow)",
        ),
    }


class Progress(keras.callbacks.Callback):
    """Prints one line per epoch."""

    def on_epoch_end(self, epoch, logs):
        print(
            f"   epoch {epoch + 1}: loss {logs['loss']:.3f}, "
            f"training accuracy {logs['accuracy']:.1%}",
            flush=True,
        )
