"""Verifies published weights, as a maintainer with a connection does before a release."""

import itertools
import os

import keras
import numpy as np

from keras_coordatt.applications import BUILDERS
from keras_coordatt.validation import check_choice
from keras_coordatt.weights.cache import cached_weights
from keras_coordatt.weights.catalog import CATALOG, IMAGENET_CLASSES, Record

BATCH_SIZE = 32


def verify_weights(name: str, data: str | os.PathLike | None = None) -> dict:
    """Downloads published weights, loads them, and measures their accuracy.

    Args:
        name: A name in the catalog.
        data: Images to measure the accuracy on, as in `load_classification`: a folder
            of the classes, or a TFDS name. The split "validation" is used, or else
            "test". The classes must be named like the labels in the catalog, or by
            WordNet's identifiers, as in ImageNet's own folders. Defaults to `None`: no
            accuracy is measured.

    Returns:
        A dict with the keys `name`, `file` (the path), `parameters`, `published_top1`
        and, with `data`, `top1` in percent, `split`, and `images`, their number.

    Raises:
        OSError: If the file can't be downloaded.
        ValueError: If the file isn't the published one or doesn't fit the network, or
            the classes in `data` have other names.

    Example:

    >>> verify_weights("mobilenetv2_ca_cifar10")["parameters"]
    846226
    """
    record = CATALOG[check_choice("name", name, CATALOG)]
    path = cached_weights(name)
    model = BUILDERS[record.network](
        weights=record.weights, classes=record.classes, **record.arguments
    )
    report = {
        "name": name,
        "file": str(path),
        "parameters": model.count_params(),
        "published_top1": record.top1,
    }
    if data is not None:
        report |= _measured(model, record, data)
    return report


def _measured(model: keras.Model, record: Record, data) -> dict:
    # Imported here, as it needs TensorFlow.
    from keras_coordatt.data import class_names, open_data, splits

    builder = open_data(data, "classification")
    outputs = _outputs(class_names(builder), record)
    names = list(splits(builder))
    split = next((s for s in ("validation", "test") if s in names), names[0])
    examples = iter(builder.as_dataset(split=split).as_numpy_iterator())
    right = total = 0
    while batch := list(itertools.islice(examples, BATCH_SIZE)):
        images = [keras.ops.convert_to_numpy(_input(x, record)) for x in batch]
        best = model.predict_on_batch(np.concatenate(images)).argmax(axis=-1)
        right += sum(best == [outputs[x["label"]] for x in batch])
        total += len(batch)
    return {"top1": 100 * float(right) / total, "split": split, "images": total}


def _input(example, record):
    image = example["image"]
    return record.transform(np.broadcast_to(image, (1, *image.shape[:2], 3)))


def _outputs(names, record):
    """Returns which output of the network each class of a data set is."""
    known = {label: i for i, label in enumerate(record.labels)}
    if record.classes == len(IMAGENET_CLASSES):
        known |= {identifier: i for i, (identifier, _) in enumerate(IMAGENET_CLASSES)}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(
            f"The classes of `data` must be called as in {record.dataset}, such as "
            f"{list(known)[-1]!r}. Received: {', '.join(unknown[:5])}"
        )
    return [known[name] for name in names]
