"""Demo: builds networks, trains them on real images, saves one and loads it back.

    python -m keras_coordatt.demo [FOLDER]

saves the models in FOLDER, `runs/demo` by default. `make demo` runs it.
"""

import pathlib
import sys
import time

import keras
import numpy as np
import tensorflow as tf

from keras_coordatt import MobileNetV2CA
from keras_coordatt.applications.mobilenet_v2_ca import preprocess_input
from keras_coordatt.data import load_classification
from keras_coordatt.training import warmup_cosine, zero_init_residuals

SIZE = 64
BATCH_SIZE = 32
EPOCHS = 16


def train(attention, images, test):
    """Trains a small network from scratch, and returns it and its test accuracy."""
    keras.utils.set_random_seed(0)
    model = MobileNetV2CA(
        (SIZE, SIZE, 3), alpha=0.25, weights=None, classes=10, attention=attention
    )
    zero_init_residuals(model)
    # LAMB's steps are relative to the size of each layer's weights.
    optimizer = keras.optimizers.Lamb(warmup_cosine(EPOCHS * len(images), 1e-2))
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])

    # Building the optimizer first lets TensorFlow trace the step once, not twice.
    optimizer.build(model.trainable_variables)
    print(f"Untrained: {model.evaluate(test, verbose=0)[1]:.1%} test accuracy")

    model.fit(images, epochs=EPOCHS, verbose=2)
    return model, model.evaluate(test, verbose=0)[1]


def main(folder: str = "runs/demo") -> None:
    digits = {"name": "digits/classification", "image_size": SIZE, "seed": 0}
    training = load_classification(
        split="train",
        batch_size=BATCH_SIZE,
        augment=keras.layers.RandomTranslation(0.1, 0.1, fill_mode="nearest", seed=0),
        preprocess=preprocess_input,
        shuffle=True,
        **digits,
    )
    test = load_classification(split="test", preprocess=preprocess_input, **digits)

    start = time.perf_counter()
    models, accuracies = {}, {}
    for attention in ("coordinate", None):
        print(f"\nMobileNetV2CA, alpha 0.25, attention={attention!r}")
        models[attention], accuracies[attention] = train(attention, training, test)
    print(f"\nTrained both in {time.perf_counter() - start:.0f} s.")
    print("Accuracy on 510 test digits, from forms that were not in the training data:")
    for attention, accuracy in accuracies.items():
        parameters = models[attention].count_params()
        print(f"  {attention or 'none':<12}{accuracy:7.1%}  {parameters:,} parameters")

    model = models["coordinate"]
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model.save(folder / "model.keras")
    model.export(folder / "saved_model", verbose=False)

    loaded = keras.models.load_model(folder / "model.keras")
    served = tf.saved_model.load(folder / "saved_model")
    images = np.concatenate([images for images, _ in test])
    expected = model.predict(images, verbose=0)
    print("Largest difference of the predictions after loading back:")
    for name, predictions in {
        "model.keras": loaded.predict(images, verbose=0),
        "saved_model": served.serve(images).numpy(),
    }.items():
        difference = np.abs(predictions - expected).max()
        print(f"  {folder / name}: {difference:.1e}")


if __name__ == "__main__":
    main(*sys.argv[1:])
