"""From a TFDS data set to batches on every Keras backend: what the loaders share."""

from __future__ import annotations

import dataclasses
import math
import numbers
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf

from keras_coordatt.validation import check_choice, check_positive_int

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

# Bytes of decoded examples that one pipeline may keep, to cache or to shuffle.
_MEMORY = 256 * 2**20


@dataclasses.dataclass
class Batches:
    """How a split becomes batches: the arguments that the three loaders share.

    They are those of `load_classification`, and are checked here.

    Raises:
        ValueError: If one is invalid.
    """

    split: str | tfds.core.ReadInstruction
    image_size: int | tuple[int, int]
    batch_size: int
    augment: Callable | None
    preprocess: Callable | None
    shuffle: bool
    seed: int | None

    def __post_init__(self):
        import tensorflow_datasets as tfds

        self.image_size = _height_and_width(self.image_size)
        self.batch_size = check_positive_int("batch_size", self.batch_size)
        if not isinstance(self.split, str | tfds.core.ReadInstruction):
            raise ValueError(
                f"`split` must be one TFDS split. Received: {self.split!r}"
            )
        for argument in ("augment", "preprocess"):
            function = getattr(self, argument)
            if function is not None and not callable(function):
                raise ValueError(
                    f"`{argument}` must be callable. Received: {function!r}"
                )
        check_choice("shuffle", self.shuffle, (True, False))
        if not isinstance(self.seed, numbers.Integral | None):
            raise ValueError(
                f"`seed` must be None or an integer. Received: {self.seed!r}"
            )

    def load(
        self, builder: tfds.core.DatasetBuilder, read: Callable, finish: Callable
    ) -> tf.data.Dataset:
        """Reads, resizes, caches, shuffles, batches, augments and preprocesses.

        Args:
            builder: The builder, with its data ready.
            read: A function of an example that gives the target, which is kept beside
                the resized image: tensors of a known shape.
            finish: A function of a batch of images, float32 in Keras's data format, and
                of their targets. It gives both as the model takes them, augmented by
                `apply`, before the images are preprocessed.

        Returns:
            A `tf.data.Dataset` of batches of images and targets.
        """
        import tensorflow_datasets as tfds

        # tfds refuses to reorder the files of an ordered data set, and ImageFolder,
        # whose files lie in a shuffled order already, would reorder them without our
        # seed.
        ordered = builder.info.disable_shuffling or isinstance(
            builder, tfds.ImageFolder
        )
        dataset = builder.as_dataset(
            split=self.split,
            shuffle_files=self.shuffle and not ordered,
            # The images are cached below, once resized.
            read_config=tfds.ReadConfig(shuffle_seed=self.seed, try_autocache=False),
        )
        dataset = dataset.map(
            lambda example: (resize(example["image"], self.image_size), read(example)),
            num_parallel_calls=tf.data.AUTOTUNE,
        )
        example = sum(
            math.prod(tensor.shape) * tensor.dtype.size
            for tensor in tf.nest.flatten(dataset.element_spec)
        )
        room = max(1, _MEMORY // example)
        if 0 < dataset.cardinality() <= room:
            dataset = dataset.cache()
        if self.shuffle:
            dataset = dataset.shuffle(room, seed=self.seed)

        # Keras's layers and `preprocess_input` expect it too.
        channels_first = keras.config.image_data_format() == "channels_first"

        def finish_batch(images, target):
            images = tf.cast(images, "float32")
            if channels_first:
                images = tf.transpose(images, (0, 3, 1, 2))
            images, target = finish(images, target)
            # Under a mixed precision policy, a layer gives half precision.
            images = tf.cast(images, "float32")
            if self.preprocess is not None:
                images = self.preprocess(images)
            return images, target

        # In parallel, batches would draw an augmentation's random numbers in any order.
        in_turn = self.augment is not None and self.seed is not None
        dataset = dataset.batch(self.batch_size).map(
            finish_batch, num_parallel_calls=None if in_turn else tf.data.AUTOTUNE
        )
        return dataset.prefetch(tf.data.AUTOTUNE)

    def apply(self, data: Any) -> Any:
        """Augments a batch, if it is to be augmented.

        Args:
            data: The images, or the dict that Keras's layers take.

        Returns:
            The same, augmented.
        """
        if self.augment is None:
            return data
        if isinstance(self.augment, keras.Layer):
            return self.augment(data, training=True)
        return self.augment(data)


def layers_of(augment: Callable | None) -> Iterator[keras.Layer]:
    """Gives the Keras layers of an augmentation, also those within a `Pipeline`.

    Args:
        augment: As in `load_classification`.

    Yields:
        Each layer.
    """
    for layer in getattr(augment, "layers", [augment]):
        if layer is not augment and hasattr(layer, "layers"):
            yield from layers_of(layer)
        elif isinstance(layer, keras.Layer):
            yield layer


def prepare_builder(
    name: str | tfds.core.DatasetBuilder,
    data_dir: str | os.PathLike | None,
    needs: str,
    fits: Callable[[dict], bool],
) -> tfds.core.DatasetBuilder:
    """Gives the TFDS builder of a data set for a task, with its data ready.

    Args:
        name: As in `load_classification`.
        data_dir: As in `load_classification`.
        needs: The features that the task needs, in words.
        fits: Tells whether a dict of TFDS features has them.

    Returns:
        The builder.

    Raises:
        ValueError: If the data set does not have them.
    """
    import tensorflow_datasets as tfds

    from keras_coordatt.data import digits  # noqa: F401, registers "digits"

    if isinstance(name, str):
        builder = tfds.builder(name, data_dir=data_dir)
    elif isinstance(name, tfds.core.DatasetBuilder):
        builder = name
    else:
        raise ValueError(f"`name` must be a TFDS name or a builder. Received: {name!r}")
    # Before a download, which may be long.
    features = dict(builder.info.features.items())
    if "image" not in features or not fits(features):
        raise ValueError(
            f"`name` must be a data set with an 'image' and {needs}. "
            f"Received: {builder.info.full_name} with {features}"
        )
    if builder is not name:
        try:
            builder.download_and_prepare()
        except OSError:
            # Did another process prepare the same data meanwhile? TFDS renames a
            # finished folder to its place, which fails where there is one.
            builder = tfds.builder(name, data_dir=data_dir)
            if not builder.is_prepared():
                raise
    return builder


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


def _height_and_width(image_size: int | tuple[int, int]) -> tuple[int, int]:
    size = image_size if isinstance(image_size, tuple | list) else (image_size,) * 2
    if len(size) != 2:
        raise ValueError(
            "`image_size` must be an integer or a pair (height, width). "
            f"Received: {image_size!r}"
        )
    return tuple(check_positive_int("image_size", side) for side in size)
