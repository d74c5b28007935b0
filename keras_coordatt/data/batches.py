"""Batches of images and targets, shared by the loaders, for every Keras backend."""

import dataclasses
import math
import numbers
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from keras_coordatt.data.folder import Folder
from keras_coordatt.validation import check_choice, check_positive_int, height_and_width

# Bytes of decoded examples that a pipeline may hold in its cache, and in the shuffle
# buffer of a data set that is too large for it. The buffer is filled in every epoch.
_CACHE = 2**30
_BUFFER = 2**28


@dataclasses.dataclass
class Batches:
    """The arguments that the loaders share, which turn a split into batches.

    Attributes:
        split, image_size, batch_size, augment, preprocess, shuffle, drop_remainder,
            seed, shard, steps, pad_remainder: Same as in `load_classification`.

    Raises:
        ValueError: If one is invalid.
    """

    split: str | tfds.core.ReadInstruction
    image_size: int | tuple[int, int]
    batch_size: int
    augment: Callable | None
    preprocess: Callable | None
    shuffle: bool
    drop_remainder: bool
    seed: int | None
    shard: tuple[int, int]
    steps: int | None
    pad_remainder: bool

    def __post_init__(self):
        self.image_size = height_and_width(self.image_size)
        self.batch_size = check_positive_int("batch_size", self.batch_size)
        if not isinstance(self.split, str | tfds.core.ReadInstruction):
            raise ValueError(
                f"`split` must be one TFDS split. Received: {self.split!r}"
            )
        if isinstance(self.split, str):
            try:
                tfds.core.ReadInstruction.from_spec(self.split)
            except ValueError as error:
                raise ValueError(f"`split` is unreadable: {error}") from error
        for argument in ("augment", "preprocess"):
            function = getattr(self, argument)
            if function is not None and not callable(function):
                raise ValueError(
                    f"`{argument}` must be callable. Received: {function!r}"
                )
        check_choice("shuffle", self.shuffle, (True, False))
        check_choice("drop_remainder", self.drop_remainder, (True, False))
        if not isinstance(self.seed, numbers.Integral | tf.Variable | None):
            raise ValueError(
                f"`seed` must be None or an integer. Received: {self.seed!r}"
            )
        _check_shard(self.shard)
        if self.steps is not None:
            check_positive_int("steps", self.steps)
        check_choice("pad_remainder", self.pad_remainder, (True, False))
        if self.pad_remainder and (self.shuffle or self.drop_remainder or self.steps):
            raise ValueError(
                "`pad_remainder` is for evaluation: `shuffle`, `drop_remainder` and "
                f"`steps` must be left out. Received: {self.shuffle}, "
                f"{self.drop_remainder}, {self.steps}"
            )

    def load(
        self,
        builder: tfds.core.DatasetBuilder,
        read: Callable,
        finish: Callable,
        padding,
        dense: bool = False,
    ) -> tf.data.Dataset:
        """Reads, resizes, caches, shuffles, batches, augments and preprocesses.

        Args:
            builder: The builder, with its data ready.
            read: A function of an example that returns the target, which is kept beside
                the resized image: tensors of a known shape.
            finish: A function of a batch of images, float32 in Keras's data format, and
                of their targets. It augments both and returns them as the model takes
                them, before the images are preprocessed.
            padding: The target of an image that doesn't count, in the same structure.
            dense: Whether the loss of a batch is a mean over its boxes or pixels that
                count, rather than over its images.

        Returns:
            A `tf.data.Dataset` of batches of images and targets, and of weights with
            `pad_remainder`.

        Raises:
            ValueError: If `drop_remainder` leaves no batch.
        """
        # TFDS refuses to reorder the files of an ordered data set, and ImageFolder, whose
        # files are in shuffled order already, would reorder them without our seed.
        ordered = builder.info.disable_shuffling or isinstance(
            builder, tfds.ImageFolder
        )
        seed = None if self.seed is None else int(self.seed)
        size = height_and_width(self.image_size)
        dataset, total = open_shard(
            builder,
            self.split,
            self.shard,
            shuffle_files=self.shuffle and not ordered,
            # The images are cached below, after they are resized.
            read_config=tfds.ReadConfig(shuffle_seed=seed, try_autocache=False),
        )
        if self.drop_remainder and 0 <= dataset.cardinality() < self.batch_size:
            raise ValueError(
                "`drop_remainder` leaves no batch, as `split` has fewer images than "
                f"`batch_size`. Received: {int(dataset.cardinality())} images, "
                f"batch_size={self.batch_size}"
            )
        dataset = dataset.map(
            lambda example: (resize(example["image"], size), read(example)),
            num_parallel_calls=tf.data.AUTOTUNE,
        )
        example_bytes = sum(
            math.prod(tensor.shape) * tensor.dtype.size
            for tensor in tf.nest.flatten(dataset.element_spec)
        )
        room = max(1, _BUFFER // example_bytes)
        if 0 < dataset.cardinality() <= _CACHE // example_bytes:
            # A shuffle buffer takes no more memory: it has references to the cache.
            room = max(room, int(dataset.cardinality()))
            dataset = dataset.cache()
        if self.shuffle:
            dataset = _shuffle(dataset, room, self.seed)
        if self.steps is not None:
            dataset = dataset.repeat()
        weights = None
        if self.pad_remainder:
            dataset, weights = self._pad(dataset, total, padding, dense)

        # Keras's layers and `preprocess_input` expect the global data format.
        channels_first = keras.config.image_data_format() == "channels_first"

        def finish_batch(images, target):
            images = tf.cast(images, "float32")
            if channels_first:
                images = tf.transpose(images, (0, 3, 1, 2))
            images, target = finish(images, target)
            # Under a mixed precision policy, layers return half precision.
            images = tf.cast(images, "float32")
            if self.preprocess is not None:
                images = self.preprocess(images)
            return images, target

        # In parallel, batches would draw the random numbers in any order.
        in_turn = self.augment is not None and self.seed is not None
        static = self.drop_remainder or self.pad_remainder or self.steps is not None
        dataset = dataset.batch(self.batch_size, static).map(
            finish_batch, num_parallel_calls=None if in_turn else tf.data.AUTOTUNE
        )
        if self.steps is not None:
            dataset = dataset.take(self.steps)
        if weights is not None:
            dataset = tf.data.Dataset.zip(dataset, weights).map(
                lambda batch, weight: (*batch, weight)
            )
        return dataset.prefetch(tf.data.AUTOTUNE)

    def _pad(self, dataset, total, padding, dense):
        """Fills up the last batch, and returns the weights, a dataset of batches.

        All shards get as many batches. Keras weights the losses of all batches alike,
        full or not: with these weights, its mean is that over the real images.
        """
        if total < 0:
            raise ValueError(
                f"`pad_remainder` needs a split of known size. Received: {self.split!r}"
            )
        index, shards = self.shard
        steps = -(-total // (self.batch_size * shards))
        length = steps * self.batch_size
        image, target = dataset.element_spec
        nothing = (
            tf.zeros(image.shape, image.dtype),
            tf.nest.map_structure(
                lambda spec, value: tf.fill(spec.shape, tf.cast(value, spec.dtype)),
                target,
                padding,
            ),
        )
        filled = dataset.concatenate(tf.data.Dataset.from_tensors(nothing).repeat())
        filled = filled.take(length)
        filled = filled.apply(tf.data.experimental.assert_cardinality(length))
        real = np.array(
            [np.arange(length) < _shard_size(total, i, shards) for i in range(shards)]
        ).reshape(shards, steps, self.batch_size)
        weights = real[index] * (length * shards / max(total, 1))
        if dense:
            weights *= real.mean((0, 2))[:, None]
        weights = weights.astype("float32")
        if isinstance(target, tf.TensorSpec):
            # Keras doesn't broadcast the weights of images to the pixels of masks.
            weights = weights.reshape(*weights.shape, *([1] * target.shape.rank))
        return filled, tf.data.Dataset.from_tensor_slices(weights)


def _shard_size(total: int, index: int, shards: int) -> int:
    return total // shards + (index < total % shards)


def _check_shard(shard):
    good = isinstance(shard, tuple | list) and len(shard) == 2
    good = good and all(isinstance(x, int) for x in shard)
    if not good or not 0 <= shard[0] < shard[1]:
        raise ValueError(
            "`shard` must be a pair of a number from 0 and the number of shards. "
            f"Received: {shard!r}"
        )


def open_shard(builder, split, shard, **options):
    """Returns a shard of a split, and the split's size. No other images are read."""
    index, shards = shard
    dataset = builder.as_dataset(split=split, **options)
    total = int(dataset.cardinality())
    if shards == 1:
        return dataset, total
    if isinstance(builder, Folder):
        context = tf.distribute.InputContext(shards, index)
        config = options.pop("read_config", tfds.ReadConfig())
        options["read_config"] = dataclasses.replace(config, input_context=context)
        return builder.as_dataset(split=split, **options), total
    if isinstance(builder, tfds.ImageFolder):
        return dataset.shard(shards, index), total
    part = tfds.even_splits(split, shards)[index]
    return builder.as_dataset(split=part, **options), total


def _shuffle(dataset, room, seed):
    if not isinstance(seed, tf.Variable):
        return dataset.shuffle(room, seed=seed)

    def shuffled_once(_):
        # Otherwise the order would also depend on the global seed.
        tf.compat.v1.set_random_seed(1)
        return dataset.shuffle(
            room, seed=seed.read_value(), reshuffle_each_iteration=False
        )

    # The variable is read whenever an iteration begins.
    shuffled = tf.data.Dataset.from_tensors(0).flat_map(shuffled_once)
    count = dataset.cardinality()
    if count < 0:
        return shuffled
    return shuffled.apply(tf.data.experimental.assert_cardinality(count))


def check_labels(labels: tf.Tensor, num_classes: int, low: int = 0) -> tf.Tensor:
    """Checks labels within a `tf.data` pipeline, on every backend.

    Args:
        labels: Integers.
        num_classes: The number of classes.
        low: The lowest value that is allowed.

    Returns:
        The labels. Reading them raises `tf.errors.InvalidArgumentError` if one is out of
        range.
    """
    fits = tf.reduce_all((labels >= low) & (labels < num_classes))
    message = f"Labels must be integers from 0 to {num_classes - 1}. Received:"
    with tf.control_dependencies([tf.debugging.Assert(fits, [message, labels])]):
        return tf.identity(labels)


def resize(
    image: tf.Tensor, size: tuple[int, int], method: str = "bilinear"
) -> tf.Tensor:
    """Resizes an image or a mask, which keeps its dtype.

    Args:
        image: Of shape `(height, width, channels)`.
        size: The new height and width.
        method: `"bilinear"`, with antialiasing, or `"nearest"`, for classes.

    Returns:
        The image, of shape `(*size, channels)`.
    """
    if image.shape[:2] == size:
        return image
    resized = tf.image.resize(image, size, method, antialias=method == "bilinear")
    if image.dtype.is_integer:
        # A quarter of the memory of float32, to cache and to shuffle.
        resized = tf.cast(tf.round(resized), image.dtype)
    return resized
