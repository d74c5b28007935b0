"""Training from scratch, and what makes a network learn in a few hundred steps."""

import functools
import os
import time
from collections.abc import Callable

import keras

from keras_coordatt.applications.blocks import channel_axis
from keras_coordatt.preprocessing import preprocess_input
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
    """Trains a network from scratch to tell images apart, and tests it once.

    The recipe is `warmup_cosine`, `zero_init_residuals`, and images that are flipped
    from left to right and moved by up to a tenth. What is deterministic on the machine
    follows from `seed`: the starting weights, the order of the images and their
    augmentation.

    The images are RGB, and the state of Keras's random numbers is set.

    Args:
        build: A builder such as `MobileNetV2CA`, or a `functools.partial` of one. It is
            called with `input_shape`, `weights=None` and `classes`.
        data: A folder `train/<class>/*.jpg`, `test/<class>/*.jpg`, or a TFDS name such
            as `"cifar10"` with the splits `train` and `test`.
        image_size: Height and width of the images, in pixels. Defaults to 64.
        epochs: Passes over the images. Defaults to 16.
        steps_per_epoch: Steps that make an epoch. Defaults to as many as there are
            batches.
        batch_size: Images a step. Defaults to 64.
        optimizer: `"sgd"`, with a Nesterov momentum of 0.9; or `"lamb"`, which learns
            more in the first few hundred steps (a learning rate of 1e-2 did well), and
            at such a rate forgets again in thousands. Defaults to `"sgd"`.
        learning_rate: The highest learning rate. Defaults to 0.05.
        seed: An integer.
        backup_dir: A folder for the state of the training after each epoch; called
            again with it after an interruption, the training goes on from there, with
            another order of the images. It stays, for the caller to delete once the
            network is saved. Defaults to `None`: no backup.
        verbose: As of `model.fit`. Defaults to 2.

    Returns:
        The network, and a dict of its number of `parameters`, its test `accuracy` from
        0 to 1, and the `seconds` that this call trained.

    Raises:
        ValueError: if an argument is out of its range, or `build` gives a network
            without residual blocks.

    Example:

    >>> small = functools.partial(MobileNetV2CA, alpha=0.25)
    >>> model, report = train_classifier(small, "cifar10", epochs=16)
    >>> model.save("cifar10.keras")
    """
    from keras_coordatt.data import load_classification
    from keras_coordatt.data.classification import open_images

    check_positive_int("image_size", image_size)
    check_positive_int("epochs", epochs)
    check_choice("optimizer", optimizer, tuple(OPTIMIZERS))
    check_number("learning_rate", learning_rate, 0)
    if steps_per_epoch is not None:
        check_positive_int("steps_per_epoch", steps_per_epoch)
    check_positive_int("batch_size", batch_size)
    builder = open_images(data)
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
    train = load_classification(
        builder, "train", augment=augment, shuffle=True, seed=seed, **shared
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
    callbacks = []
    if backup_dir:
        # Kept, as what was trained is not saved yet.
        backup = keras.callbacks.BackupAndRestore(backup_dir, delete_checkpoint=False)
        callbacks.append(backup)
    start = time.perf_counter()
    model.fit(
        train.repeat(),
        steps_per_epoch=steps,
        epochs=epochs,
        callbacks=callbacks,
        verbose=verbose,
    )
    seconds = time.perf_counter() - start
    return model, {
        "parameters": model.count_params(),
        "accuracy": model.evaluate(test, verbose=0, return_dict=True)["accuracy"],
        "seconds": round(seconds),
    }


def zero_init_residuals(model: keras.Model) -> None:
    """Makes every residual block start as the identity.

    The last normalization of each residual branch gets a scale of zero, so that a
    deep network starts as the shallow one of its blocks without a residual, and its
    first steps are not lost in the noise of the others.

    Args:
        model: A network of one of our builders, before it is trained.

    Raises:
        ValueError: if `model` has no residual block that ends in a normalization
            whose name is known.

    Example:

    >>> model = MobileNetV2CA((64, 64, 3), weights=None, classes=10)
    >>> zero_init_residuals(model)

    Reference:
        [Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour](
        https://arxiv.org/abs/1706.02677), section 5.1
    """
    names = {layer.name for layer in model.layers}
    blocks = [name.removesuffix("add") for name in names if name.endswith("add")]
    # The linear end of an inverted residual, or of a sandglass block.
    ends = {
        f"{block}{end}"
        for block in blocks
        for end in ("project_BN", "depthwise_2_BN")
        if f"{block}{end}" in names
    }
    if not blocks or len(ends) != len(blocks):
        raise ValueError(
            "`model` must have residual blocks with layers that are named "
            "block_3_project_BN or block_3_depthwise_2_BN, and block_3_add. "
            f"Received: {model.name}"
        )
    for name in ends:
        gamma = model.get_layer(name).gamma
        gamma.assign(keras.ops.zeros(gamma.shape, gamma.dtype))


def warmup_cosine(
    steps: int, learning_rate: float, warmup: float = 0.1
) -> keras.optimizers.schedules.LearningRateSchedule:
    """A learning rate that rises, and then falls along a cosine to zero.

    Args:
        steps: Positive integer, the steps of the whole training.
        learning_rate: Positive number, the highest rate.
        warmup: The part of the steps in which it rises, in (0, 1). Defaults to 0.1.

    Returns:
        A schedule for any Keras optimizer.

    Raises:
        ValueError: if an argument is out of its range.

    Example:

    >>> optimizer = keras.optimizers.AdamW(warmup_cosine(1000, 3e-3))
    """
    steps = check_positive_int("steps", steps)
    learning_rate = check_number("learning_rate", learning_rate, 0)
    rising = round(steps * check_number("warmup", warmup, 0, 1))
    return keras.optimizers.schedules.CosineDecay(
        learning_rate / 100,
        steps - rising,
        warmup_target=learning_rate,
        warmup_steps=rising,
    )
