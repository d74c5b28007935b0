"""Export as a TensorFlow SavedModel."""

import json
import os
import pathlib
from collections.abc import Sequence

import keras
import numpy as np

from keras_coordatt.export.metadata import describe
from keras_coordatt.export.model_input import (
    RANDOM_IMAGES,
    ImageInput,
    check_backend,
    check_folder,
    is_mixed,
)
from keras_coordatt.export.verify import (
    Report,
    check_outputs,
    reference_outputs,
    to_numpy,
)
from keras_coordatt.files import atomic_folder
from keras_coordatt.preprocessing import Preprocessing


def saved_model(
    model: keras.Model,
    path: str | os.PathLike,
    *,
    labels: Sequence[str] | None = None,
    preprocessing: Preprocessing | None = None,
) -> Report:
    """Exports a model as a TensorFlow SavedModel.

    It has two signatures, `serve` (also `serving_default`, as with `model.export`),
    which takes what the model takes, and `serve_images`, which takes a batch of uint8
    RGB images of any height and width, `(N, H, W, 3)`. Both give what the model gives.
    The images are resized, to whole values as in `keras_coordatt.data`, and normalized;
    a model that takes any size gets them in theirs.

    Works on the TensorFlow and the JAX backend.

    Args:
        model: A `keras.Model` of one image input.
        path: The folder to write. A SavedModel that is there is replaced.
        labels: The names of the classes, in order. Defaults to none.
        preprocessing: A `Preprocessing`. Defaults to `preprocessing_of(model)`, for
            3 channels. Without any, as for other numbers of channels, there is no
            `serve_images`.

    Returns:
        A `Report`.

    Raises:
        ValueError: if an argument is invalid, the backend can't write SavedModels, or
            the file does not give what the model gives. Nothing is written then.

    Example:

    >>> saved_model(model, "flowers", labels=["daisy", "rose"])
    >>> served = tf.saved_model.load("flowers")
    >>> served.serve_images(np.zeros((1, 480, 640, 3), "uint8")).shape
    (1, 2)
    """
    check_backend("A SavedModel", ("tensorflow", "jax"))
    import tensorflow as tf

    path = check_folder(pathlib.Path(path))
    image = ImageInput(model, preprocessing)
    metadata = describe("saved_model", model, image, labels)
    _check_replaceable(path)
    with atomic_folder(path) as fresh:
        archive = keras.export.ExportArchive()
        spec = keras.InputSpec(shape=(None, *model.input_shape[1:]), dtype="float32")
        serve = archive.track_and_add_endpoint("serve", model, [spec])
        if image.preprocessing:

            @tf.function(
                input_signature=[
                    tf.TensorSpec((None, None, None, image.channels), "uint8")
                ]
            )
            def serve_images(images):
                return serve(image.preprocess(images))

            archive.add_endpoint("serve_images", serve_images)
        # Nobody trains what is served, and JAX has no gradients for images of any size.
        options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
        archive.write_out(str(fresh), options, verbose=False)
        # TensorFlow Serving leaves this folder to the users.
        extra = fresh / "assets.extra"
        extra.mkdir()
        (extra / "metadata.json").write_text(json.dumps(metadata, indent=1))

        try:
            loaded = tf.saved_model.load(str(fresh))
            difference = _check_served(model, image, loaded)
        except tf.errors.OpError as error:
            raise ValueError(
                f"TensorFlow cannot run {model.name!r} as Keras's "
                f"{keras.config.backend()} backend writes it: {error}"
            ) from error
        size = sum(file.stat().st_size for file in fresh.rglob("*") if file.is_file())
    return Report(path, size, RANDOM_IMAGES, difference)


def _check_served(model, image, loaded):
    """The largest differences of a loaded SavedModel by output."""
    # Half precision is rounded in other places when it is compiled.
    precision = "float16" if is_mixed(model) else "float32"
    x = image.random()
    names, reference = reference_outputs(model, x)
    difference = check_outputs(
        names, to_numpy(loaded.serve(x)), reference, "serve", precision
    )
    if image.preprocessing:
        x = _pictures(image)
        names, reference = reference_outputs(model, np.asarray(image.preprocess(x)))
        given = to_numpy(loaded.serve_images(x))
        check_outputs(names, given, reference, "serve_images", precision)
    return difference


def _pictures(image):
    rng = np.random.default_rng(0)
    size = (50, 75) if image.size else (64, 64)
    return rng.integers(0, 256, (2, *size, image.channels), "uint8")


def _check_replaceable(path):
    if path.exists() and not (path / "saved_model.pb").exists():
        raise ValueError(
            f"`path` is there, and is no SavedModel. Received: {os.fspath(path)!r}"
        )
