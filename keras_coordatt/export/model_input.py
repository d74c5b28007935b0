"""The image input of the exported model, and checks of the arguments."""

import os
import pathlib
from collections.abc import Iterable

import keras
import numpy as np

from keras_coordatt.applications.blocks import channel_axis, spatial_size
from keras_coordatt.export.pictures import draw_pictures
from keras_coordatt.preprocessing import Preprocessing, preprocessing_of
from keras_coordatt.validation import check_image_size, check_path, check_type

# Test pictures per export, and their size if the model takes any.
PICTURES = 4
ANY_SIZE = 64


class ImageInput:
    """The image input of a model: its shape, its type, its preprocessing.

    Args:
        model: A functional or Sequential model of one image input.
        preprocessing: A `Preprocessing`, or `None` for the recorded one.
        image_size: Height and width, for a model that takes any.
        fixed: Whether the file needs a fixed size.

    Attributes:
        shape: Shape of one input, without the batch axis; `None` for any size.
        size: `(height, width)`, or `None` if the model takes any size.
        channels: Number of channels.
        dtype: Type that the model takes.
        preprocessing: A `Preprocessing`, or `None` if it is unknown.

    Raises:
        ValueError: If the model isn't one of a single image input, or another argument
            doesn't fit it.
    """

    def __init__(self, model, preprocessing, image_size=None, fixed=False):
        (image,) = _image_inputs(model)
        sizes = spatial_size(image)
        if image_size is not None:
            sizes = check_image_size(image_size, sizes)
        self.size = None if None in sizes else sizes
        if fixed and self.size is None:
            raise ValueError(
                "`image_size` must be given, as the model takes images of any size and "
                f"the file can't. Received: {image_size!r}"
            )
        self.channels = image.shape[channel_axis()]
        first = channel_axis() == 1
        self.shape = (self.channels, *sizes) if first else (*sizes, self.channels)
        self.dtype = keras.backend.standardize_dtype(image.dtype)
        self.takes_bytes = "int" in self.dtype
        if preprocessing is not None:
            self._check_preprocessing(preprocessing)
        else:
            preprocessing = preprocessing_of(model)
            if preprocessing and len(preprocessing.mean) != self.channels:
                preprocessing = None
        self.preprocessing = preprocessing

    def _check_preprocessing(self, preprocessing):
        what = "a Preprocessing or None"
        check_type("preprocessing", preprocessing, Preprocessing, what)
        if len(preprocessing.mean) != self.channels:
            raise ValueError(
                f"`preprocessing` must be for the {self.channels} channels of the "
                f"model. Received: {preprocessing}"
            )
        steps = np.arange(256.0).reshape(1, 256, 1, 1) * np.ones(self.channels)
        change = preprocessing.normalize(steps, "channels_last") - steps
        if self.takes_bytes and np.abs(change).max() > 1e-3:
            raise ValueError(
                f"`preprocessing` must leave the values in [0, 255] as they are, as in "
                f"`RAW_PIXELS`, because the model takes {self.dtype}. "
                f"Received: {preprocessing}"
            )

    def normalize(self, pictures):
        """Prepares uint8 pictures `(N, H, W, C)` with NumPy, without resizing."""
        x = np.moveaxis(pictures, -1, channel_axis())
        if self.takes_bytes:
            return x.astype(self.dtype)
        return self.preprocessing.normalize(x.astype("float32")).astype("float32")

    def preprocess(self, images):
        """Prepares uint8 images `(N, H, W, C)` of any size with TensorFlow."""
        import tensorflow as tf

        preprocessing = self.preprocessing
        x = tf.cast(images, "float32")
        if self.size is not None:
            x = preprocessing.resize(x, self.size)
        x = tf.transpose(x, (0, 3, 1, 2)) if channel_axis() == 1 else x
        return tf.cast(
            x if self.takes_bytes else preprocessing.normalize(x), self.dtype
        )

    def pictures(self, count=PICTURES):
        """Draws pictures of the model's size: uint8, `(N, H, W, C)`."""
        height, width = self.size or (ANY_SIZE, ANY_SIZE)
        return draw_pictures(count, height, width, self.channels)

    def test_inputs(self, count=PICTURES):
        """Prepares drawn pictures for the model, in groups to be compared apart.

        Where the preprocessing is unknown, one group has values in [-1, 1] and one has
        values in [0, 255].
        """
        pictures = self.pictures(count)
        if self.takes_bytes or self.preprocessing is not None:
            return [self.normalize(pictures)]
        x = np.moveaxis(pictures, -1, channel_axis()).astype("float32")
        return [x[::2] / 127.5 - 1, x[1::2]]

    def read(self, name, data):
        """Reads images from an array or from batches, and checks their shape."""
        if hasattr(data, "ndim") or not isinstance(data, Iterable):
            batches = [data]
        else:
            batches = [x[0] if isinstance(x, (tuple, list)) else x for x in data]
        what = f"`{name}` must be images (N, {str(self.shape)[1:]}, or batches of them"
        try:
            batches = [np.asarray(x, self.dtype) for x in batches]
        except (TypeError, ValueError) as error:
            raise ValueError(f"{what}. Received: {data!r}") from error
        wrong = [
            x.shape
            for x in batches
            if x.ndim != 4
            or any(own not in (None, n) for own, n in zip(self.shape, x.shape[1:]))
        ]
        if wrong or not sum(map(len, batches)):
            raise ValueError(f"{what}. Received: {wrong[0] if wrong else 'none'}")
        return np.concatenate(batches)


def _image_inputs(model):
    if not isinstance(model, keras.Model):
        raise ValueError(f"`model` must be a keras.Model. Received: {model!r}")
    if not isinstance(model, (keras.Function, keras.Sequential)) or not model.built:
        raise ValueError(
            "`model` must be functional, or Sequential and built, so that its input is "
            "known. Wrap another one: `image = keras.Input((224, 224, 3)); "
            f"keras.Model(image, model(image))`. Received: {model}"
        )
    inputs = keras.tree.flatten(model.inputs)
    if len(inputs) != 1 or len(inputs[0].shape) != 4:
        raise ValueError(
            f"`model` must have one input, a batch of images. Received: inputs={inputs}"
        )
    return inputs


def check_backend(what, backends):
    if keras.config.backend() not in backends:
        raise ValueError(
            f"{what} is written from Keras's {' or '.join(backends)} backend. Save the "
            "model as .keras, and export that with KERAS_BACKEND=tensorflow: "
            "`keras-coordatt export model.keras OUT`. "
            f"Received: {keras.config.backend()}"
        )


def check_suffix(path, suffix):
    path = pathlib.Path(check_path("path", path))
    if path.suffix != suffix:
        raise ValueError(f"`path` must end in {suffix}. Received: {os.fspath(path)!r}")
    return check_folder(path)


def check_folder(path):
    if not path.parent.is_dir():
        raise ValueError(
            f"`path` must be in an existing folder. Received: {os.fspath(path)!r}"
        )
    return path
