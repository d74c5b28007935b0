"""The three tasks: how each loads its data, builds its model, and is measured."""

import os
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from keras_coordatt.applications.blocks import channel_axis
from keras_coordatt.data import (
    load_classification,
    load_detection,
    load_segmentation,
)
from keras_coordatt.detection import SSDLite, evaluate_detections
from keras_coordatt.distribution import current, gather
from keras_coordatt.preprocessing import IMAGENET, Preprocessing
from keras_coordatt.record import IGNORED, METRICS
from keras_coordatt.segmentation import DeepLabV3
from keras_coordatt.training.augmentation import LOADED_FOR_CROP, Augmentation
from keras_coordatt.training.phases import ends_in_logits
from keras_coordatt.training.recipes import Recipe, zero_init_residuals
from keras_coordatt.validation import height_and_width


class Task:
    """A task with its data and recipe.

    Args:
        recipe: The recipe.
        builder: The data.
        splits: Dict from `"train"`, `"validation"` and `"test"`, as far as there are,
            to the builder's splits.
        labels: Names of the classes, or `None` for masks without.
        augmentation: The augmentation of the training images.
        seed: `tf.Variable` that determines the order of the training images.

    Attributes:
        name: Name of the task.
        metric: Name of the validation metric in the history.
        classes: Number of classes.
        preprocessing: How images are normalized. ImageNet's, until it is set to that of
            the network that is trained.
    """

    name: str
    load: Callable
    preprocessing: Preprocessing = IMAGENET

    @property
    def metric(self) -> str:
        return f"val_{METRICS[self.name][0]}"

    def __init__(
        self,
        recipe: Recipe,
        builder: tfds.core.DatasetBuilder,
        splits: dict[str, str],
        labels: list[str] | None,
        augmentation: Augmentation,
        seed: tf.Variable,
    ):
        self.recipe = recipe
        self.builder = builder
        self.splits = splits
        self.labels = labels
        self.augmentation = augmentation
        self.seed = seed
        self.classes = self._count_classes() if labels is None else len(labels)

    def batches(
        self, name: str, training: bool = False, pad: bool = True
    ) -> tf.data.Dataset | None:
        """Returns the batches of `"train"`, `"validation"` or `"test"`, if there are any.

        Each process has its own part of each batch.

        Args:
            name: One of these.
            training: Whether to shuffle and augment them.
            pad: Whether to fill up the last batch if several devices share it. The
                batches then have weights.

        Returns:
            A dataset of batches; `None` if the data have no such split.
        """
        if name not in self.splits:
            return None
        split, recipe, devices = self.splits[name], self.recipe, current()
        count = self.builder.info.splits[split].num_examples
        # At most the number of images, rounded up to a multiple of the devices
        most = -(-count // devices.replicas) * devices.replicas
        batch_size = min(recipe.batch_size, most)
        options = {
            "image_size": recipe.image_size,
            "batch_size": batch_size // devices.processes,
            "shard": (devices.process, devices.processes),
            "preprocess": self.preprocessing.normalize,
            **self.options(training),
        }
        if training:
            # The statistics of few images would harm batch normalization: the last
            # batch is filled up, or left out if it is less than half full. The order
            # differs in every epoch, so no image is left out for good.
            full, remainder = divmod(count, batch_size)
            options |= {
                "augment": self.augmentation.augment,
                "shuffle": True,
                "seed": self.seed,
                "steps": recipe.steps_per_epoch
                or max(1, full + (2 * remainder > batch_size)),
            }
        elif pad and devices.replicas > 1:
            options["pad_remainder"] = True
        return self.load(self.builder, split, **options)

    def options(self, training: bool) -> dict:
        """Returns further arguments of the loader."""
        return {}

    def build(self, build: Callable, weights: str | os.PathLike | None) -> keras.Model:
        """Builds the model, and loads weights for it."""
        raise NotImplementedError

    def compile(self, model: keras.Model, optimizer: keras.Optimizer) -> keras.Model:
        """Compiles a model, and returns the model to call `fit` on."""
        raise NotImplementedError

    def class_weights(self) -> dict[int, float] | None:
        """Returns the weight of each class in the loss."""
        return None

    def measure(self, model: keras.Model, batches: tf.data.Dataset) -> dict:
        """Returns metrics that `fit` doesn't compute."""
        return {}

    def _count_classes(self):
        raise ValueError("`data` must have names for its classes")

    def _input_shape(self):
        shape = list(height_and_width(self.recipe.image_size))
        shape.insert(channel_axis() - 1, 3)
        return tuple(shape)

    def _zero_init(self, network, weights):
        if self.recipe.zero_init and weights is None:
            try:
                zero_init_residuals(network)
            except ValueError as error:
                raise ValueError(
                    f"`zero_init` of the recipe is not for this network: {error}"
                ) from error
        return network

    def _build_on_backbone(self, head, build, weights, **options):
        """Builds a head on a network, from weights of the network or of both."""

        def make(backbone_weights, **arguments):
            network = build(
                input_shape=self._input_shape(),
                include_top=False,
                weights=backbone_weights,
                **options,
            )
            self._zero_init(network, weights)
            return head(network, self.classes, **arguments)

        if weights is None or not os.path.exists(weights):
            return make(weights)
        try:
            return make(None, weights=weights, skip_mismatch=True)
        except ValueError as error:
            try:
                return make(weights)
            except ValueError as other:
                raise ValueError(
                    "`weights` fit neither the model nor its backbone. "
                    f"As a model: {error} As a backbone: {other}"
                ) from other


class Classification(Task):
    name = "classification"
    load = staticmethod(load_classification)

    def options(self, training):
        options = {"one_hot": True}
        if training and self.recipe.augmentation == "strong":
            height, width = height_and_width(self.recipe.image_size)
            options["image_size"] = tuple(
                round(side * LOADED_FOR_CROP) for side in (height, width)
            )
        return options

    def build(self, build, weights):
        arguments = {"classes": self.classes, "weights": weights}
        if weights is not None:
            arguments["skip_mismatch"] = True
        model = build(input_shape=self._input_shape(), **arguments)
        if ends_in_logits(model) is None:
            raise ValueError(
                "`build` must return a classifier that ends in a softmax or in logits. "
                f"Received: {model.name}"
            )
        return self._zero_init(model, weights)

    def compile(self, model, optimizer):
        loss = keras.losses.CategoricalCrossentropy(
            from_logits=ends_in_logits(model),
            label_smoothing=self.recipe.label_smoothing,
        )
        weighted = current().replicas > 1
        metrics = "weighted_metrics" if weighted else "metrics"
        model.compile(optimizer, loss, **{metrics: ["accuracy"]})
        return model

    def class_weights(self):
        if not self.recipe.class_weights:
            return None
        batches = self.batches("train", pad=False)
        counts = sum(gather(sum(y.numpy().sum(0) for _, y in batches)))
        # At least 1: the weight of a class without images doesn't matter.
        weights = counts.sum() / (self.classes * np.maximum(counts, 1))
        return {i: float(weight) for i, weight in enumerate(weights)}


class Detection(Task):
    name = "detection"
    load = staticmethod(load_detection)

    def build(self, build, weights):
        return self._build_on_backbone(SSDLite, build, weights)

    def compile(self, model, optimizer):
        model.compile(optimizer)
        return model

    def measure(self, model, batches):
        found = evaluate_detections(model, batches)
        # NaN where there is no object
        return {f"val_{name}": found[name] for name in ("AP", "AP50")}


class Segmentation(Task):
    name = "segmentation"
    load = staticmethod(load_segmentation)

    def _count_classes(self):
        # Masks that are plain images don't record the number of classes.
        highest = 0
        for name in self.splits:
            for _, masks in self.batches(name, pad=False):
                values = masks.numpy()
                highest = max(highest, values[values != IGNORED].max(initial=0))
        return max(gather(int(highest))) + 1

    def build(self, build, weights):
        options = {}
        if "output_stride" not in getattr(build, "keywords", {}):
            options["output_stride"] = 16
        return self._build_on_backbone(DeepLabV3, build, weights, **options)

    def compile(self, model, optimizer):
        if keras.config.image_data_format() == "channels_first":
            # Keras's loss and metric need the classes on the last axis.
            classes_last = keras.layers.Permute((2, 3, 1))(model.output)
            model = keras.Model(model.input, classes_last, name=model.name)
        model.compile(
            optimizer,
            keras.losses.SparseCategoricalCrossentropy(
                from_logits=True, ignore_class=IGNORED
            ),
            metrics=[
                keras.metrics.MeanIoU(
                    self.classes,
                    ignore_class=IGNORED,
                    sparse_y_pred=False,
                    name="mean_iou",
                )
            ],
        )
        return model


TASKS = {task.name: task for task in (Classification, Detection, Segmentation)}
