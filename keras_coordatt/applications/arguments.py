"""Arguments that every builder takes: checks, the image input, the weights."""

import os
import pathlib

import keras

from keras_coordatt import weights as weights_lib
from keras_coordatt.applications.blocks import (
    channel_axis,
    image_entrance,
    spatial_size,
)
from keras_coordatt.preprocessing import record_layers
from keras_coordatt.validation import (
    MAX_CHANNELS,
    MAX_CLASSES,
    MAX_SIZE,
    check_choice,
    check_positive_int,
)
from keras_coordatt.weights.by_name import find_published, is_plain, names_of
from keras_coordatt.weights.loading import is_on_hub

MIN_SIZE = 32


def network_input(
    network: str,
    *,
    input_shape,
    input_tensor,
    include_top,
    weights,
    pooling,
    classes,
    classifier_activation,
    include_preprocessing,
    skip_mismatch,
    default_size: int,
    arguments: dict,
):
    """Checks the arguments that every builder takes, and builds the network's input.

    Args:
        network: Name of the builder in the catalog of weights.
        input_shape, input_tensor, include_top, weights, pooling, classes,
            classifier_activation, include_preprocessing, skip_mismatch: Same as in
            `MobileNetV2CA`.
        default_size: Height and width if neither `input_shape` nor published weights,
            which know the size they were trained at, set them.
        arguments: Arguments of the builder by which published weights are chosen.

    Returns:
        `(inputs, x)`: the inputs of the model, and the image after preprocessing.

    Raises:
        ValueError: If an argument is out of its range or contradicts another.
    """
    check_choice("include_preprocessing", include_preprocessing, (True, False))
    check_choice("skip_mismatch", skip_mismatch, (True, False))
    _check_head(include_top, pooling, classes, classifier_activation)
    published = find_published(network, weights, arguments)
    if published is not None:
        record = weights_lib.CATALOG[published]
        _check_classes(record, weights, include_top, classes, skip_mismatch)
        default_size = record.input_size
    elif weights is not None:
        check_weights_path(weights, names_of(network))
    size = default_size if include_top else None
    inputs, image = _image_input(input_shape, input_tensor, size)
    return inputs, image_entrance(image, include_preprocessing)


def _check_head(include_top, pooling, classes, classifier_activation):
    check_choice("include_top", include_top, (True, False))
    check_positive_int("classes", classes, MAX_CLASSES)
    check_choice("pooling", pooling, (None, "avg", "max"))
    if include_top:
        try:
            keras.activations.get(classifier_activation)
        except (TypeError, ValueError):
            raise ValueError(
                "`classifier_activation` must be the name of a Keras activation, a "
                f"function, or None. Received: {classifier_activation!r}"
            ) from None


def _check_classes(record, weights, include_top, classes, skip_mismatch):
    # Before the file is downloaded
    if include_top and classes != record.classes and not skip_mismatch:
        raise ValueError(
            f'`weights="{weights}"` has a classifier of {record.classes} classes: pass '
            f"`classes={record.classes}`, or `skip_mismatch=True` to keep the network's "
            f"own classifier. Received: classes={classes}"
        )


def check_weights_path(weights, names=()):
    """Checks that `weights` is a file of a kind that can be loaded."""
    if is_on_hub(weights) and weights.endswith(weights_lib.FILE_TYPES):
        return
    is_path = isinstance(weights, (str, os.PathLike))
    path = pathlib.Path(weights) if is_path else None
    if path is None or not (
        path.is_file() and path.name.endswith(weights_lib.FILE_TYPES)
    ):
        raise ValueError(
            f"`weights` must be None, {''.join(f'{name!r}, ' for name in names)}or the "
            'path of an existing file, or "hf://user/repository/file", that ends in one '
            f"of {weights_lib.FILE_TYPES}. Received: {weights!r}"
        )


def _image_input(input_shape, input_tensor, size):
    # The model's inputs and the image differ if `input_tensor` is the output of layers.
    if input_tensor is not None:
        if not keras.utils.is_keras_tensor(input_tensor):
            raise ValueError(
                "`input_tensor` must be a Keras tensor, such as the output of "
                f"`keras.Input` or of a layer. Received: {type(input_tensor)}"
            )
        shape = tuple(input_tensor.shape[1:])
        if input_shape is not None and tuple(input_shape) != shape:
            raise ValueError(
                f"`input_shape` must be that of `input_tensor`, {shape}. "
                f"Received: input_shape={input_shape}"
            )
        _check_image_shape("input_tensor.shape[1:]", shape)
        inputs = keras.utils.get_source_inputs(input_tensor)
        return inputs[0] if len(inputs) == 1 else inputs, input_tensor

    if input_shape is None:
        input_shape = [size, size]
        input_shape.insert(channel_axis() - 1, 3)
    _check_image_shape("input_shape", input_shape)
    image = keras.Input(shape=tuple(input_shape))
    return image, image


def _check_image_shape(name, shape):
    """Checks an image's shape, without the batch axis."""
    try:
        sizes = list(shape)
        channels = sizes.pop(channel_axis() - 1)
        rank = len(sizes) + 1
    except (TypeError, IndexError):
        rank = None
    if rank != 3:
        raise ValueError(
            f"`{name}` must have three entries, "
            f"{'(C, H, W)' if channel_axis() == 1 else '(H, W, C)'}. Received: {shape}"
        )
    check_positive_int(f"{name}[{channel_axis() - 1}]", channels, MAX_CHANNELS)
    for size in sizes:
        if size is not None and check_positive_int(name, size, MAX_SIZE) < MIN_SIZE:
            raise ValueError(
                f"`{name}` must have a height and a width of at least {MIN_SIZE}, "
                f"or None. Received: {shape}"
            )


def load_named_weights(model, network, weights, arguments, input_tensor, skip_mismatch):
    """Loads the weights that the `weights` argument names.

    Args:
        model: The new network.
        network: Name of the builder in the catalog of weights.
        weights: The builder's `weights` argument.
        arguments: Same as in `network_input`.
        input_tensor: The builder's `input_tensor` argument.
        skip_mismatch: The builder's `skip_mismatch` argument.
    """
    if weights is None:
        return
    load, path = weights_lib.load_weights, weights
    name = find_published(network, weights, arguments)
    if name is not None:
        path = weights_lib.cached_weights(name)
    if is_plain(weights):
        load = weights_lib.load_without_attention
    if input_tensor is None or any(input_tensor is x for x in model.inputs):
        load(model, path, skip_mismatch)
    else:
        # The file may or may not include the layers before `input_tensor`.
        try:
            load(model, path, skip_mismatch)
        except ValueError:
            part = keras.Model(input_tensor, model.output, name=model.name)
            load(part, path, skip_mismatch)
    if name is not None:
        _record_labels(model, weights_lib.CATALOG[name])


def _record_labels(model, published):
    """Records the names of the classes, if the model has the published classifier."""
    # Imported here, as it reads models of every task.
    from keras_coordatt.record import set_record

    own = getattr(model.layers[-1], "units", None) == published.classes
    if not own or None in (record_layers(model) or [None]):
        return
    size = (published.input_size,) * 2
    own_size = spatial_size(model.inputs[0])
    set_record(
        model,
        task="classification",
        labels=published.labels,
        image_size=size if {*own_size} <= {None, *size} else None,
    )
