"""Arguments that every builder takes: checks, the image input, the weights."""

import os
import pathlib

import keras

from keras_coordatt import weights as weights_lib
from keras_coordatt.applications.blocks import channel_axis, image_entrance
from keras_coordatt.validation import check_choice, check_positive_int

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
    received: dict,
):
    """Checks the arguments that every builder takes, and makes the network's input.

    Args:
        network: Name of the builder in the catalog of weights.
        default_size: Height and width if neither `input_shape` nor published weights,
            which know the size they were trained at, set them.
        received: Arguments for some values of which there are published weights.

    Returns:
        `(inputs, x)`: the inputs of the model, and the image after preprocessing.

    Raises:
        ValueError: If an argument is out of its range or contradicts another.
    """
    check_choice("include_preprocessing", include_preprocessing, (True, False))
    check_choice("skip_mismatch", skip_mismatch, (True, False))
    _check_head(include_top, pooling, classes, classifier_activation)
    if weights is not None:
        _check_weights(
            network,
            include_top,
            weights,
            classes,
            classifier_activation,
            skip_mismatch,
            received,
        )
    inputs, image = _image_input(
        input_shape, input_tensor, include_top, network, weights, default_size
    )
    return inputs, image_entrance(image, include_preprocessing)


def _check_head(include_top, pooling, classes, classifier_activation):
    check_positive_int("classes", classes)
    check_choice("pooling", pooling, (None, "avg", "max"))
    if include_top:
        try:
            keras.activations.get(classifier_activation)
        except (TypeError, ValueError):
            raise ValueError(
                "`classifier_activation` must be the name of a Keras activation, a "
                f"function, or None. Received: {classifier_activation!r}"
            ) from None


def _check_weights(
    network,
    include_top,
    weights,
    classes,
    classifier_activation,
    skip_mismatch,
    received,
):
    published = weights_lib.published(network)
    if weights == "imagenet" and weights not in published:
        raise ValueError(
            "`weights` must be None or the path of a file, as no ImageNet weights of "
            "this network are published. Received: 'imagenet'"
        )
    record = _record(network, weights)
    if record is None:
        check_weights_path(weights, tuple(published))
        return
    argument = f'`weights="{weights}"`'
    same_head = include_top and classes == record.classes
    if include_top and not same_head and not skip_mismatch:
        raise ValueError(
            f"{argument} with `include_top=True` needs `classes={record.classes}`, or "
            "`skip_mismatch=True` to keep the network's own classifier. "
            f"Received: classes={classes!r}"
        )
    if same_head and classifier_activation not in (None, "softmax"):
        raise ValueError(
            f"{argument} with `include_top=True` needs "
            '`classifier_activation="softmax"` or `None`. '
            f"Received: classifier_activation={classifier_activation!r}"
        )
    if received != record.arguments:
        raise ValueError(
            f"{argument} is published for {record.arguments} only; "
            f"pass `weights=None` for another network. Received: {received}"
        )


def _record(network, weights):
    """The record of published weights, or None."""
    published = weights_lib.published(network)
    is_name = isinstance(weights, str) and weights in published
    return weights_lib.CATALOG[published[weights]] if is_name else None


def check_weights_path(weights, names=()):
    """Checks that `weights` is a file of a kind that can be loaded."""
    is_path = isinstance(weights, (str, os.PathLike))
    path = pathlib.Path(weights) if is_path else None
    if path is None or not path.is_file() or path.suffix not in weights_lib.FILE_TYPES:
        raise ValueError(
            f"`weights` must be None, {''.join(f'{name!r}, ' for name in names)}or the "
            "path of an existing file that ends in one of "
            f"{weights_lib.FILE_TYPES}. Received: {weights!r}"
        )


def _image_input(
    input_shape, input_tensor, include_top, network, weights, default_size
):
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
        record = _record(network, weights)
        size = record.input_size if record else default_size
        size = size if include_top else None
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
    check_positive_int(f"{name}[{channel_axis() - 1}]", channels)
    for size in sizes:
        if size is not None and check_positive_int(name, size) < MIN_SIZE:
            raise ValueError(
                f"`{name}` must have a height and a width of at least {MIN_SIZE}, "
                f"or None. Received: {shape}"
            )


def load_weights(model, weights, network, builder, input_tensor, skip_mismatch):
    """Loads the weights that the `weights` argument names.

    Args:
        network: Name of the builder in the catalog of weights.
        builder: The builder.
    """
    if weights is None:
        return
    if record := _record(network, weights):
        arguments = {**record.arguments, "classes": record.classes, "weights": None}
        name = weights_lib.published(network)[weights]
        weights = weights_lib.cached_weights(name, lambda: builder(**arguments))
    if input_tensor is not None and not any(input_tensor is x for x in model.inputs):
        # The file is of the whole model, or of the network without the layers before.
        try:
            return weights_lib.load_weights(model, weights, skip_mismatch)
        except ValueError:
            model = keras.Model(input_tensor, model.output, name=model.name)
    weights_lib.load_weights(model, weights, skip_mismatch)
