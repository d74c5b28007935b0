"""Export as a TensorFlow SavedModel."""

import json
import os
import pathlib
from collections.abc import Iterable, Sequence

import keras
import numpy as np

from keras_coordatt.export.inference import check_suppression, for_inference
from keras_coordatt.export.metadata import describe
from keras_coordatt.export.model_input import ImageInput, check_backend, check_folder
from keras_coordatt.export.pictures import draw_pictures
from keras_coordatt.export.verify import Reference, Report, to_numpy
from keras_coordatt.files import atomic_folder
from keras_coordatt.preprocessing import Preprocessing
from keras_coordatt.validation import check_path


def saved_model(
    model: keras.Model,
    path: str | os.PathLike,
    *,
    images: np.ndarray | Iterable | None = None,
    labels: Sequence[str] | None = None,
    preprocessing: Preprocessing | None = None,
) -> Report:
    """Exports a model as a TensorFlow SavedModel.

    The signature `serve` (also called `serving_default`, as with `model.export`) takes
    the model's input. The signature `serve_images` takes a batch of uint8 RGB images of
    any height and width, `(N, H, W, 3)`, and prepares them: it resizes them to the
    model's size, rounds to whole values as `keras_coordatt.data` does, and normalizes.
    A model that takes any size gets the images in their original size. Both signatures
    return the model's outputs at inference.

    Works on the TensorFlow and the JAX backend.

    Args:
        model: A functional or Sequential model of one image input.
        path: The folder to write. An existing SavedModel is replaced.
        images: Inputs to compare on, as an array or batches: for a detector, images
            with objects. Defaults to drawn pictures.
        labels: Names of the classes, in order. Defaults to those recorded on the model.
        preprocessing: A `Preprocessing`. Defaults to `preprocessing_of(model)`. If that
            is `None`, there is no `serve_images`, and the report says so.

    Returns:
        A `Report`.

    Raises:
        ValueError: If an argument is invalid, the backend can't write SavedModels, or
            the outputs of the file differ from the model's. Nothing is written then.

    Example:

    >>> saved_model(model, "flowers", labels=["daisy", "rose"])
    >>> served = tf.saved_model.load("flowers")
    >>> served.serve_images(np.zeros((1, 480, 640, 3), "uint8")).shape
    (1, 2)
    """
    check_backend("A SavedModel", ("tensorflow", "jax"))
    import tensorflow as tf

    path = check_folder(pathlib.Path(check_path("path", path)))
    image = ImageInput(model, preprocessing)
    metadata = describe("saved_model", model, image, labels)
    check_replaceable(path)
    if keras.config.backend() == "jax":
        check_suppression(model, "TensorFlow cannot read JAX's `top_k` in a SavedModel")
    if images is not None:
        images = image.read("images", images)
    reference = Reference(model, image, images)
    with atomic_folder(path) as temporary:
        archive = keras.export.ExportArchive()
        spec = keras.InputSpec(shape=(None, *model.input_shape[1:]), dtype=image.dtype)
        serve = archive.track_and_add_endpoint("serve", for_inference(model), [spec])
        if image.preprocessing:
            uint8 = tf.TensorSpec((None, None, None, image.channels), "uint8")

            @tf.function(input_signature=[uint8])
            def serve_images(images):
                return serve(image.preprocess(images))

            archive.add_endpoint("serve_images", serve_images)
        # A served model is not trained, and JAX has no gradients for images of any size.
        options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
        archive.write_out(str(temporary), options, verbose=False)
        # TensorFlow Serving leaves this folder to the users.
        extra = temporary / "assets.extra"
        extra.mkdir()
        (extra / "metadata.json").write_text(json.dumps(metadata, indent=1), "utf-8")

        try:
            loaded = tf.saved_model.load(str(temporary))
            difference = reference.compare(
                to_numpy(loaded.serve(reference.inputs)), "serve"
            )
            if image.preprocessing:
                _check_serve_images(model, image, loaded)
        except tf.errors.OpError as error:
            raise ValueError(
                f"TensorFlow cannot run {model.name!r} as Keras's "
                f"{keras.config.backend()} backend writes it: {error}"
            ) from error
        size = sum(x.stat().st_size for x in temporary.rglob("*") if x.is_file())
    return Report(
        path,
        size,
        len(reference.inputs),
        difference,
        preprocessing=image.preprocessing,
        detections=reference.detections,
    )


def _check_serve_images(model, image, loaded):
    """Compares `serve_images` with the model and `Preprocessing.normalize`."""
    pictures = image.pictures()
    reference = Reference(model, image, image.normalize(pictures))
    reference.compare(to_numpy(loaded.serve_images(pictures)), "serve_images")
    if image.size is not None:
        pictures = draw_pictures(2, 50, 75, image.channels)
        reference = Reference(model, image, np.asarray(image.preprocess(pictures)))
        reference.compare(to_numpy(loaded.serve_images(pictures)), "serve_images")


def check_replaceable(path):
    if path.exists() and not (path / "saved_model.pb").exists():
        raise ValueError(
            f"`path` exists and is not a SavedModel. Received: {os.fspath(path)!r}"
        )
