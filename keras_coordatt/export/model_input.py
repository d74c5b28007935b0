"""The model that is exported: its image input, and checks of the arguments."""

import os
import pathlib
from collections.abc import Iterable

import keras
import numpy as np

from keras_coordatt.applications.blocks import channel_axis
from keras_coordatt.preprocessing import RAW_PIXELS, preprocessing_of
from keras_coordatt.validation import check_positive_int

RANDOM_IMAGES = 4


class ImageInput:
    """The image input of a model, and what is to be done with images for it."""

    def __init__(self, model, preprocessing, image_size=None, fixed=False):
        if not isinstance(model, keras.Model):
            raise ValueError(f"`model` must be a keras.Model. Received: {model!r}")
        inputs = keras.tree.flatten(model.inputs)
        if len(inputs) != 1 or len(inputs[0].shape) != 4:
            raise ValueError(
                "`model` must have one input, a batch of images. "
                f"Received: inputs={inputs}"
            )
        axis = channel_axis()
        sizes = list(inputs[0].shape[1:])
        self.channels = sizes.pop(axis - 1)
        if image_size is not None:
            given = image_size if isinstance(image_size, tuple) else (image_size,) * 2
            given = tuple(check_positive_int("image_size", side) for side in given)
            if any(own not in (None, new) for own, new in zip(sizes, given)):
                raise ValueError(
                    f"`image_size` must be the model's, {tuple(sizes)}. "
                    f"Received: {image_size!r}"
                )
            sizes = given
        self.size = None if None in sizes else tuple(sizes)
        if fixed and self.size is None:
            raise ValueError(
                "`image_size` must be given, as the model takes images of any size and "
                f"the file can't. Received: {image_size!r}"
            )
        self.shape = (*sizes[: axis - 1], self.channels, *sizes[axis - 1 :])

        if preprocessing is None and self.channels == 3:
            preprocessing = preprocessing_of(model)
        if preprocessing and len(preprocessing.mean) != self.channels:
            raise ValueError(
                f"`preprocessing` must be for the {self.channels} channels of the "
                f"model. Received: {preprocessing}"
            )
        self.preprocessing = preprocessing

    def preprocess(self, images):
        """Makes the input of uint8 images `(N, H, W, C)`, by TensorFlow."""
        import tensorflow as tf

        how = self.preprocessing
        x = tf.cast(images, "float32")
        if self.size is not None:
            x = tf.image.resize(
                x, self.size, how.interpolation, antialias=how.antialias
            )
            # Bicubic interpolation and Lanczos's overshoot.
            x = tf.clip_by_value(tf.round(x), 0, 255)
        return how.normalize(
            tf.transpose(x, (0, 3, 1, 2)) if channel_axis() == 1 else x
        )

    def random(self):
        """Random inputs, of the size that they would have."""
        rng = np.random.default_rng(0)
        shape = [64 if side is None else side for side in self.shape]
        if self.preprocessing == RAW_PIXELS:
            return rng.uniform(0, 255, (RANDOM_IMAGES, *shape)).astype("float32")
        return rng.normal(size=(RANDOM_IMAGES, *shape)).astype("float32")

    def read(self, name, data):
        """Reads images from an array or from batches, and checks their shape."""
        if hasattr(data, "ndim") or not isinstance(data, Iterable):
            batches = [data]
        else:
            batches = [x[0] if isinstance(x, (tuple, list)) else x for x in data]
        batches = [np.asarray(x, "float32") for x in batches]
        wrong = [x.shape for x in batches if x.shape[1:] != self.shape]
        if wrong or not sum(map(len, batches)):
            raise ValueError(
                f"`{name}` must be images (N, {str(self.shape)[1:]}, or batches of "
                f"them. Received: {wrong[0] if wrong else 'none'}"
            )
        return np.concatenate(batches)


def in_float32(model):
    """The model, or if some of it computes in half precision, a copy that doesn't."""
    if not is_mixed(model):
        return model

    def clone(layer):
        return type(layer).from_config({**layer.get_config(), "dtype": "float32"})

    copy = keras.models.clone_model(model, clone_function=clone, recursive=True)
    copy.set_weights(model.get_weights())
    return copy


def is_mixed(model):
    return any(layer.compute_dtype != "float32" for layer in _layers(model))


def _layers(model):
    """The layers, with those of nested models."""
    for layer in model.layers:
        yield from _layers(layer) if isinstance(layer, keras.Model) else [layer]


def check_backend(what, backends):
    if keras.config.backend() not in backends:
        raise ValueError(
            f"{what} is written from Keras's {' or '.join(backends)} backend. Save the "
            "model as .keras, and export that with KERAS_BACKEND=tensorflow: "
            "`keras-coordatt export model.keras OUT`. "
            f"Received: {keras.config.backend()}"
        )


def check_suffix(path, ending):
    path = pathlib.Path(path)
    if path.suffix != ending:
        raise ValueError(f"`path` must end in {ending}. Received: {os.fspath(path)!r}")
    return check_folder(path)


def check_folder(path):
    if not path.parent.is_dir():
        raise ValueError(
            f"`path` must be in a folder that is there. Received: {os.fspath(path)!r}"
        )
    return path
