"""Trains a classifier from scratch."""

import functools
import os
import time
from collections.abc import Callable

import keras

from keras_coordatt.applications.blocks import channel_axis
from keras_coordatt.preprocessing import preprocess_input
from keras_coordatt.training.backup import Backup
from keras_coordatt.training.recipes import warmup_cosine, zero_init_residuals
from keras_coordatt.validation import check_choice, check_number, check_positive_int

OPTIMIZERS = {
    "sgd": functools.partial(keras.optimizers.SGD, momentum=0.9, nesterov=True),
    "lamb": keras.optimizers.Lamb,
}


def train_classifier(
    build: Callable[..., keras.Model],
    data: str | os.PathLike,
    *,
    image_size: int = 64,
    epochs: int = 16,
    steps_per_epoch: int | None = None,
    batch_size: int = 64,
    optimizer: str = "sgd",
    learning_rate: float = 0.05,
    seed: int = 0,
    backup_dir: str | os.PathLike | None = None,
    verbose: int = 2,
) -> tuple[keras.Model, dict]:
    """Trains an image classifier from scratch, and tests it once.

    The recipe is `warmup_cosine`, `zero_init_residuals`, horizontal flips, and
    translations by up to a tenth of the image. As far as the machine is deterministic,
    `seed` determines the initial weights, the order of the images and their
    augmentation. If the last batch would be a single image, it is left out, because its
    statistics would ruin batch normalization.

    Images are RGB. Sets the global seed of Keras.

    Args:
        build: A builder such as `MobileNetV2CA`, or a `functools.partial` of one. It is
            called with `input_shape`, `weights=None` and `classes`.
        data: A folder `train/<class>/*.jpg`, `test/<class>/*.jpg`, or a TFDS name such
            as `"cifar10"` with the splits `train` and `test`.
        image_size: Height and width of the images, in pixels. Defaults to 64.
        epochs: Number of epochs. Defaults to 16.
        steps_per_epoch: Steps per epoch. Defaults to the number of batches.
        batch_size: Images per step, at least 2. Defaults to 64.
        optimizer: `"sgd"`, with a Nesterov momentum of 0.9; or `"lamb"`, which learns
            more in the first few hundred steps (a learning rate of 1e-2 did well), but
            at such a rate forgets again over thousands. Defaults to `"sgd"`.
        learning_rate: The highest learning rate. Defaults to 0.05.
        seed: An integer. Defaults to 0.
        backup_dir: Folder for the state of the training, saved after each epoch. Called
            again with the same arguments after an interruption, even one in the middle
            of saving, the training continues after the last complete epoch, with
            another order of the images. The folder stays, for the caller to delete once
            the network is saved. Defaults to `None`: no backup.
        verbose: Same as in `model.fit`. Defaults to 2.

    Returns:
        The network, and a dict of its number of `parameters`, its test `accuracy` in
        [0, 1], and the `seconds` that this call trained.

    Raises:
        ValueError: If an argument is out of its range, the data can't be used,
            `build` returns a network without residual blocks, or `backup_dir` has a
            backup of another training.

    Example:

    >>> small = functools.partial(MobileNetV2CA, alpha=0.25)
    >>> model, report = train_classifier(small, "cifar10", epochs=16)
    >>> model.save("cifar10.keras")
    """
    from keras_coordatt.data import load_classification, open_data

    settings = {
        "build": _describe(build),
        "data": os.fspath(data),
        "image_size": image_size,
        "epochs": epochs,
        "steps_per_epoch": steps_per_epoch,
        "batch_size": batch_size,
        "optimizer": optimizer,
        "learning_rate": learning_rate,
        "seed": seed,
    }
    check_positive_int("image_size", image_size)
    check_positive_int("epochs", epochs)
    check_choice("optimizer", optimizer, tuple(OPTIMIZERS))
    check_number("learning_rate", learning_rate, 0)
    if steps_per_epoch is not None:
        check_positive_int("steps_per_epoch", steps_per_epoch)
    if check_positive_int("batch_size", batch_size) < 2:
        raise ValueError(
            "`batch_size` must be at least 2: batch normalization can't train on one "
            f"image. Received: {batch_size}"
        )
    backup = Backup(backup_dir, settings) if backup_dir else None
    if backup:
        backup.check()
    builder = open_data(data, "classification")
    keras.utils.set_random_seed(seed)
    augment = keras.layers.Pipeline(
        [
            keras.layers.RandomFlip("horizontal", seed=seed),
            keras.layers.RandomTranslation(0.1, 0.1, seed=seed),
        ]
    )
    shared = {
        "image_size": image_size,
        "batch_size": batch_size,
        "preprocess": preprocess_input,
    }
    count = builder.info.splits["train"].num_examples
    train = load_classification(
        builder,
        "train",
        augment=augment,
        shuffle=True,
        drop_remainder=count > batch_size and count % batch_size == 1,
        seed=seed,
        **shared,
    )
    test = load_classification(builder, "test", **shared)
    steps = len(train) if steps_per_epoch is None else steps_per_epoch

    input_shape = [image_size, image_size]
    input_shape.insert(channel_axis() - 1, 3)
    model = build(
        input_shape=tuple(input_shape),
        weights=None,
        classes=builder.info.features["label"].num_classes,
    )
    zero_init_residuals(model)
    model.compile(
        OPTIMIZERS[optimizer](warmup_cosine(epochs * steps, learning_rate)),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    initial_epoch = backup.restore(model, steps) if backup else 0
    start = time.perf_counter()
    model.fit(
        train.repeat(),
        steps_per_epoch=steps,
        epochs=epochs,
        initial_epoch=initial_epoch,
        callbacks=[backup] if backup else [],
        verbose=verbose,
    )
    seconds = time.perf_counter() - start
    return model, {
        "parameters": model.count_params(),
        "accuracy": model.evaluate(test, verbose=0, return_dict=True)["accuracy"],
        "seconds": round(seconds),
    }


def _describe(build):
    """The builder's name and arguments, to tell trainings apart."""
    if not isinstance(build, functools.partial):
        return getattr(build, "__name__", str(type(build)))
    arguments = {str(i): repr(x) for i, x in enumerate(build.args)}
    arguments |= {name: repr(x) for name, x in sorted(build.keywords.items())}
    return {"name": _describe(build.func), **arguments}
