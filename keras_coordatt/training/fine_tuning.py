"""Fine-tunes a model on batches: the head first, then all layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Sized
from typing import TYPE_CHECKING

import keras

from keras_coordatt.detection import SSDLite, evaluate_detections
from keras_coordatt.graph import input_and_output
from keras_coordatt.layers.freezing import nested_layers
from keras_coordatt.record import IGNORED, METRICS
from keras_coordatt.training.averaging import averaged
from keras_coordatt.training.history import (
    best_epoch,
    check_loss,
    number_or_none,
    stops_early,
)
from keras_coordatt.training.optimizers import make_optimizer
from keras_coordatt.training.phases import ends_in_logits, find_head, phases
from keras_coordatt.training.recipes import check_changes
from keras_coordatt.training.recipes import recipe as named_recipe
from keras_coordatt.validation import check_type

if TYPE_CHECKING:
    import tensorflow as tf

# Values of a recipe that the given batches and model determine.
_NOT_HERE = (
    "image_size",
    "batch_size",
    "steps_per_epoch",
    "zero_init",
    "augmentation",
    "rand_augment",
    "mixup",
    "cutmix",
    "erasing",
    "class_weights",
    "precision",
)


def fine_tune(
    model: keras.Model,
    train: tf.data.Dataset | keras.utils.PyDataset,
    validation: tf.data.Dataset | keras.utils.PyDataset | None = None,
    *,
    head: Sequence[keras.Layer] | None = None,
    loss: str | keras.losses.Loss | Callable | None = None,
    changes: Mapping | None = None,
    verbose: int | str = "auto",
) -> dict[str, list[float]]:
    """Fine-tunes a pretrained model on batches, in two phases.

    First only the head is trained, and all else is frozen. Then all layers are trained
    at a lower rate, while the batch normalization outside of the head stays at its
    statistics. `train` does the same from a folder of pictures.

    With `validation`, the model ends with the weights of the best epoch by accuracy,
    average precision or mean IoU. Layers that were frozen before are so again afterwards,
    and SGD's weight decay, an L2 penalty in the loss, is removed.

    Args:
        model: A classifier, an `SSDLite` or a segmenter such as `DeepLabV3`.
        train: Training batches of known number, such as from
            `keras_coordatt.data.load_classification`.
        validation: Validation batches. Defaults to none.
        head: Layers to train first. Defaults to the last layer with weights of a
            classifier, also in a nested model, and to everything but the backbone of
            the others.
        loss: A Keras loss. Defaults to cross-entropy, for integer or one-hot labels, of
            a softmax or of logits, by what the model ends in; `SSDLite` has its own.
        changes: Dict of values to change in the recipe `"fine-tune"`, such as
            `{"epochs": 5, "learning_rate": 1e-4}`. See `Recipe`.
        verbose: Same as in `model.fit`.

    Returns:
        Dict from the name of each measure to its values, one per epoch.

    Raises:
        TypeError: If an argument is of another kind.
        ValueError: If an argument is invalid.
        FloatingPointError: If the loss becomes NaN or infinite.

    Example:

    >>> model = MobileNetV2CA(
    ...     (64, 64, 3), alpha=0.5, weights="cifar10", classes=2, skip_mismatch=True
    ... )
    >>> changes = {"epochs": 2, "head_epochs": 1}
    >>> history = fine_tune(model, train, test, changes=changes)
    >>> len(history["val_accuracy"])
    2
    """
    task = _task_of(model)
    changes = check_changes(changes)
    for name in changes:
        if name in _NOT_HERE:
            raise ValueError(
                f"`changes` can't have {name!r} here: the batches and the model are "
                f"given. Received: {changes}"
            )
    recipe = named_recipe("fine-tune", task, changes)
    check_type("head", head, Sequence | None, "a list of layers")
    head = find_head(model, task) if head is None else list(head)
    in_model = {id(layer) for layer in nested_layers(model)}
    if not head or any(id(layer) not in in_model for layer in head):
        raise ValueError(f"`head` must be layers of the model. Received: {head}")
    if not isinstance(train, Sized):
        raise TypeError(f"`train` must be batches of known number. Received: {train!r}")
    steps = len(train)
    compiled = (
        {}
        if task == "detection"
        else _compile_arguments(model, task, train, loss, recipe.label_smoothing)
    )
    smoothed = isinstance(compiled.get("loss"), keras.losses.CategoricalCrossentropy)
    if changes.get("label_smoothing") and (loss is not None or not smoothed):
        raise ValueError(
            "`label_smoothing` is for one-hot labels and the default loss. "
            f"Received: `changes={changes}`"
        )
    flags = [(layer, layer.trainable) for layer in nested_layers(model)]
    regularizers = [(weight, weight.regularizer) for weight in model.weights]
    epochs = _Epochs(task, validation, recipe)
    history: dict[str, list[float]] = {}
    try:
        for phase in phases(recipe):
            phase.set_trainable(model, head, recipe)
            length = (phase.last - phase.first) * steps
            optimizer = make_optimizer(
                recipe, phase.learning_rate, length, model.trainable_variables
            )
            model.compile(optimizer, **compiled)
            done = model.fit(
                train,
                validation_data=validation,
                epochs=phase.last,
                initial_epoch=phase.first,
                callbacks=[epochs],
                verbose=verbose,
            )
            for name, values in done.history.items():
                history.setdefault(name, []).extend(values)
        epochs.load_best(model)
    finally:
        for layer, trainable in flags:
            layer.trainable = trainable
        for weight, regularizer in regularizers:
            weight.regularizer = regularizer
        if model.compiled:
            # Functions that were compiled before still have the penalties.
            model.compile(model.optimizer, **compiled)
    return history


class _Epochs(keras.callbacks.Callback):
    """Measures every epoch, keeps the weights of the best one, and stops early."""

    def __init__(self, task, validation, recipe):
        super().__init__()
        self.task, self.validation, self.recipe = task, validation, recipe
        self.rows: list[dict] = []
        self.weights = None

    def on_train_batch_end(self, batch, logs=None):
        check_loss(logs["loss"], batch, self.rows)

    def on_epoch_end(self, epoch, logs=None):
        with averaged(self.model):
            if self.validation is not None and self.task == "detection":
                found = evaluate_detections(self.model, self.validation)
                logs.update({f"val_{name}": found[name] for name in METRICS[self.task]})
            values = {name: number_or_none(value) for name, value in logs.items()}
            self.rows.append({"epoch": epoch + 1, **values})
            metric = f"val_{METRICS[self.task][0]}"
            if best_epoch(self.rows, metric) == epoch + 1:
                self.weights = self.model.get_weights()
        if stops_early(self.rows, metric, self.recipe):
            self.model.stop_training = True

    def load_best(self, model):
        model.set_weights(self.weights)


def _task_of(model):
    if isinstance(model, SSDLite):
        return "detection"
    ranks = {2: "classification", 4: "segmentation"}
    _, output = input_and_output(model)
    rank = None if isinstance(output, (dict, list)) else len(output.shape)
    if rank not in ranks:
        raise ValueError(
            "`model` must be an SSDLite, or have one output of rank 2 (classes) or 4 "
            f"(masks). Received: {model.name} with {output}"
        )
    return ranks[rank]


def _compile_arguments(model, task, train, loss, smoothing):
    losses = keras.losses
    output = input_and_output(model)[1]
    logits = ends_in_logits(model)
    if loss is None and (logits is None or output.shape[-1] == 1):
        raise ValueError(
            "`loss` must be given: its default is for a model that has an output for "
            "each class and ends in a softmax or in logits. "
            f"Received: {model.name}, of output shape {output.shape}"
        )
    if task == "segmentation":
        if keras.config.image_data_format() == "channels_first":
            raise ValueError(
                "Keras's loss needs the classes on the last axis: `fine_tune` can't "
                "train segmenters in channels_first; `train` can"
            )
        metric = keras.metrics.MeanIoU(
            output.shape[-1],
            ignore_class=IGNORED,
            sparse_y_pred=False,
            name="mean_iou",
        )
        if loss is None:
            loss = losses.SparseCategoricalCrossentropy(logits, ignore_class=IGNORED)
        return {"loss": loss, "metrics": [metric]}
    batch = next(iter(train), None)
    labels = batch[1] if isinstance(batch, tuple | list) and len(batch) > 1 else None
    if not hasattr(labels, "shape"):
        raise ValueError(
            f"`train` must be batches of images and labels. Received: {train!r}"
        )
    if loss is None and len(labels.shape) == 2 and labels.shape[-1] > 1:
        loss = losses.CategoricalCrossentropy(logits, label_smoothing=smoothing)
    elif loss is None:
        loss = losses.SparseCategoricalCrossentropy(logits)
    return {"loss": loss, "metrics": ["accuracy"]}
