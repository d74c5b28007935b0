"""Attention maps (the gates of attention layers) and Grad-CAM."""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence

import keras
import numpy as np
from keras import ops

from keras_coordatt.graph import data_format_of
from keras_coordatt.layers.freezing import nested_layers
from keras_coordatt.validation import check_array

# Where each kind of gate is constant, as a shape that broadcasts over (N, H, W, C)
BROADCAST = {
    "height": lambda gate: gate[:, :, None, :],
    "width": lambda gate: gate[:, None, :, :],
    "channel": lambda gate: gate[:, None, None, :],
    "position": lambda gate: gate[:, :, :, None],
}
SQUASHING = ("softmax", "sigmoid")


def attention_maps(
    model: keras.Model, images: np.ndarray | keras.KerasTensor
) -> dict[str, dict[str, np.ndarray]]:
    """Returns the gates of every attention layer, and their product over the image.

    The gates are not estimated: they are the factors by which the layer multiplies its
    input, so that `output == input * product`. Layers inside nested models and other
    layers are found too.

    Args:
        model: A built model with `CoordinateAttention`, `SqueezeExcite` or `CBAM`, or
            with layers of your own that have a `compute_gates` like theirs.
        images: Inputs of the model as in `model.predict`, in one batch. Products have
            the size of feature maps, so pass a few images at a time.

    Returns:
        One dict per attention layer, by the layer's name, in the order of their calls.
        Each holds NumPy arrays, channels last whatever the layer's data format:

        - `"height"`, `(N, H, C)`, one gate per row, and `"width"`, `(N, W, C)`, one
          gate per column, of coordinate attention;
        - `"channel"`, `(N, C)`, of squeeze-and-excitation and CBAM;
        - `"position"`, `(N, H, W)`, of CBAM;
        - `"product"`, `(N, H, W, C)`, the product of the above.

        The later calls of a layer that is called several times, and layers of the same
        name in different nested models, have `_1`, `_2`, ... appended to their name.

    Raises:
        TypeError: If `model` isn't a Keras model.
        ValueError: If `model` isn't built or has no attention layer.

    Example:

    >>> maps = attention_maps(model, images)
    >>> maps["block_2_attention"]["product"].mean(axis=-1)  # (N, H, W)
    """
    layers = [x for x in _layers_of(model) if hasattr(x, "compute_gates")]
    if not layers:
        raise ValueError(
            "`model` must have attention layers, such as CoordinateAttention. "
            f"Received: {model!r}, which has none"
        )
    maps = {}

    def record(layer, call, inputs, *args, **kwargs):
        gates = {key: _array(x) for key, x in layer.compute_gates(inputs).items()}
        shape = inputs.shape
        if layer.data_format == "channels_first":
            shape = shape[0], *shape[2:], shape[1]
        product = np.ones(tuple(shape), "float32")
        for key, gate in gates.items():
            product *= BROADCAST[key](gate)
        maps[_unused(layer.name, maps)] = {**gates, "product": product}
        return call(inputs, *args, **kwargs)

    with _intercepted(layers, record):
        _run(model, images)
    return maps


def grad_cam(
    model: keras.Model,
    images: np.ndarray | keras.KerasTensor,
    layer: str | keras.Layer | None = None,
    class_index: int | Sequence[int] | None = None,
) -> np.ndarray:
    """Computes Grad-CAM: which positions of a feature map speak for a class.

    The feature map's channels are summed, each weighted by the mean of the gradient of
    the class's score over the positions, and negative sums become 0. The score is the
    one before the softmax or sigmoid of the last layer.

    Args:
        model: A built classifier with one output, `(N, classes)`. It may be nested,
            retrofitted by `insert_attention`, or a subclass.
        images: Inputs of the model as in `model.predict`, in one batch.
        layer: The layer, or its name, whose output is the feature map. Layers of nested
            models are found by name too. Defaults to the last one that returns a
            feature map of more than one position.
        class_index: Class to explain, or one per image. Defaults to each image's class
            with the highest score.

    Returns:
        NumPy array `(N, H, W)` of numbers from 0, of the feature map's size. They aren't
        normalized, so that images can be compared; `overlay` scales each.

    Raises:
        TypeError: If `model` isn't a Keras model.
        ValueError: If `model` isn't built or doesn't have such an output, no layer or
            several match `layer`, it is called several times or returns no feature
            map, or `class_index` is out of range.

    Example:

    >>> heat = grad_cam(model, preprocess_input(pictures))
    >>> overlay(pictures, heat)

    Reference:
        [Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
        Localization](https://arxiv.org/abs/1610.02391) (ICCV 2017)
    """
    layers = _layers_of(model)
    calls = []

    def record(layer, call, *args, **kwargs):
        x = call(*args, **kwargs)
        calls.append((layer, x))
        return x

    with _intercepted(layers, record):
        probabilities = _run(model, images)
    if not ops.is_tensor(probabilities) or len(probabilities.shape) != 2:
        raise ValueError(
            "`model` must have one output of shape (N, classes). For another, explain "
            "`keras.Model(model.input, score)`. "
            f"Received: {model!r}, which returns {_shapes(probabilities)}"
        )
    layer, features = _feature_map(calls, layers, layer)
    channels_first = data_format_of(layer, layers) == "channels_first"
    classes = _classes(class_index, _array(probabilities))

    with _without_squashing([x for x, _ in calls if not isinstance(x, keras.Model)]):

        def total(offset):
            """Returns the sum of the scores, with `offset` added to the feature map."""

            def add(layer, call, *args, **kwargs):
                return call(*args, **kwargs) + offset

            with _intercepted([layer], add):
                scores = model(images, training=False)
            chosen = ops.one_hot(classes, scores.shape[-1], dtype=scores.dtype)
            return ops.sum(scores * chosen)

        # The images don't depend on each other, so one gradient serves them all.
        gradient = _array(_gradient(total, ops.zeros_like(features)))
    features = _array(features)
    if channels_first:
        features, gradient = (np.moveaxis(x, 1, -1) for x in (features, gradient))
    weights = gradient.mean(axis=(1, 2), keepdims=True)
    return np.maximum((features * weights).sum(axis=-1), 0)


def _layers_of(model):
    if not isinstance(model, keras.Model):
        raise TypeError(f"`model` must be a keras.Model. Received: {model!r}")
    if not model.built:
        raise ValueError(f"`model` must be built first. Received: {model!r}")
    return nested_layers(model)[1:]


def _run(model, images):
    """Calls the model, and names `images` where it doesn't take them."""
    shapes = keras.tree.map_structure(lambda x: check_array("images", x).shape, images)
    try:
        return model(images, training=False)
    except ValueError as error:
        raise ValueError(
            f"`images` must be a batch of the model's inputs. Received: shape={shapes}. "
            f"{error}"
        ) from error


@contextlib.contextmanager
def _intercepted(layers: Sequence[keras.Layer], function: Callable) -> Iterator[None]:
    """Calls `function(layer, call, *args)` wherever a layer's `call(*args)` is called.

    Of a quantized layer, Keras calls `quantized_call` instead.

    Unlike a model that ends at a layer, this also reaches layers in nested models and
    in models that aren't functional, and sees the calls as they happen.
    """

    def bind(layer, name):
        call = getattr(layer, name)
        return lambda *args, **kwargs: function(layer, call, *args, **kwargs)

    names = [
        "quantized_call" if getattr(x, "quantization_mode", None) else "call"
        for x in layers
    ]
    # Bypasses `__setattr__`, in which Keras and PyTorch track a layer's attributes
    for layer, name in zip(layers, names):
        vars(layer)[name] = bind(layer, name)
    try:
        yield
    finally:
        for layer, name in zip(layers, names):
            del vars(layer)[name]


@contextlib.contextmanager
def _without_squashing(called):
    """Leaves out the softmax or sigmoid with which the last layer ends."""
    last = called[-1] if called else None
    name = getattr(getattr(last, "activation", None), "__name__", None)
    if isinstance(last, keras.layers.Softmax):
        with _intercepted([last], lambda layer, call, x, *args, **kwargs: x):
            yield
    elif name in SQUASHING:
        activation = last.activation
        vars(last)["activation"] = keras.activations.linear
        try:
            yield
        finally:
            vars(last)["activation"] = activation
    else:
        yield


def _gradient(function, x):
    """Returns the gradient of a scalar function at a tensor."""
    backend = keras.config.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(x)
            y = function(x)
        return tape.gradient(y, x)
    if backend == "jax":
        import jax

        def stateless(x):
            with keras.StatelessScope():
                return function(x)

        return jax.grad(stateless)(x)
    if backend == "torch":
        import torch

        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(function(x), x)
        return gradient
    raise ValueError(f"grad_cam has no gradients on the backend {backend!r}")


def _feature_map(calls, layers, wanted):
    """Returns the layer that was asked for, and its output."""
    if wanted is None:
        found = [call for call in calls if _is_feature_map(call[1])]
        if not found:
            raise ValueError("`model` must have a layer that returns a feature map")
        # After the global average, MobileNetV3 classifies by 1x1 convolutions.
        wide = [call for call in found if _positions(*call, layers) > 1]
        wanted = (wide or found)[-1][0]
    name = wanted if isinstance(wanted, str) else None
    same = [x for x in layers if x is wanted or x.name == name]
    if len(same) != 1:
        names = ", ".join(dict.fromkeys(x.name for x, y in calls if _is_feature_map(y)))
        raise ValueError(
            f"`layer` must be a layer of the model, or the name of one. {len(same)} "
            f"layers match. Received: {wanted!r}. Feature maps come from: {names}"
        )
    outputs = [x for layer, x in calls if layer is same[0]]
    if len(outputs) != 1 or not _is_feature_map(outputs[0]):
        raise ValueError(
            "`layer` must be called once and return one feature map. Received: "
            f"{same[0].name!r}, which returns {[_shapes(x) for x in outputs]}"
        )
    return same[0], outputs[0]


def _is_feature_map(x):
    return ops.is_tensor(x) and len(x.shape) == 4 and "float" in _dtype(x)


def _positions(layer, x, layers):
    """Returns the number of positions of a layer's feature map."""
    channels_first = data_format_of(layer, layers) == "channels_first"
    return math.prod(x.shape[2:] if channels_first else x.shape[1:3])


def _dtype(x):
    return keras.backend.standardize_dtype(x.dtype)


def _shapes(outputs):
    return keras.tree.map_structure(lambda x: tuple(x.shape), outputs)


def _classes(class_index, scores):
    """Returns one class per image."""
    count, classes = scores.shape
    if class_index is None:
        return scores.argmax(axis=-1).astype("int32")
    index = np.asarray(class_index)
    if (
        index.dtype.kind not in "iu"
        or index.shape not in ((), (count,))
        or not np.all((index >= 0) & (index < classes))
    ):
        raise ValueError(
            f"`class_index` must be an integer from 0 to {classes - 1}, or one for each "
            f"of the {count} images. Received: {class_index!r}"
        )
    return np.broadcast_to(index, (count,)).astype("int32")


def _unused(name, taken):
    """Returns the name, with a number appended if it is already taken."""
    if name not in taken:
        return name
    return next(
        x for i in range(1, len(taken) + 1) if (x := f"{name}_{i}") not in taken
    )


def _array(x):
    return ops.convert_to_numpy(ops.cast(x, "float32"))
