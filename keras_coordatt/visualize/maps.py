"""Attention maps (the gates of attention layers) and Grad-CAM."""

import collections
import contextlib
import math
from collections.abc import Callable, Iterator, Sequence

import keras
import numpy as np
from keras import ops

from keras_coordatt.graph import data_format_of, is_network, last_activations
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
    nested = _layers_of(model)
    layers = [x for x in nested if hasattr(x, "compute_gates")]
    if not layers:
        raise ValueError(
            "`model` must have attention layers, such as CoordinateAttention. "
            f"Received: {model!r}, which has none"
        )
    calls = []

    def record(layer, call, inputs, *args, **kwargs):
        gates = {key: _array(x) for key, x in layer.compute_gates(inputs).items()}
        calls.append((layer, inputs.shape, gates))
        return call(inputs, *args, **kwargs)

    with _intercepted(layers, record):
        _run(model, images)
    maps = {}
    for layer, shape, gates in calls:
        if not gates.keys() <= BROADCAST.keys():
            raise ValueError(
                "`model` must have layers whose `compute_gates` returns gates among "
                f"{list(BROADCAST)}. Received: {layer!r}, which returns {list(gates)}"
            )
        if data_format_of(layer, nested) == "channels_first":
            shape = shape[0], *shape[2:], shape[1]
        product = np.ones(tuple(shape), "float32")
        for key, gate in gates.items():
            product *= BROADCAST[key](gate)
        maps[_unused(layer.name, maps)] = {**gates, "product": product}
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
    one before the softmax or sigmoid in which the model ends.

    Args:
        model: A built classifier with one output, `(N, classes)`. It may be nested,
            retrofitted by `insert_attention`, or a subclass. Its softmax or sigmoid
            must be a layer, a layer's `activation`, or an operation of a functional
            model. A softmax inside other code is an error; a sigmoid there isn't
            noticed, and its probability is explained instead of the score.
        images: Inputs of the model as in `model.predict`, in one batch.
        layer: The layer, or its name, whose output is the feature map. Layers of nested
            models are found by name too. Defaults to the last one that is called once and
            returns a feature map of more than one position.
        class_index: Class to explain, or one per image. Defaults to each image's class
            with the highest score.

    Returns:
        NumPy array `(N, H, W)` of numbers from 0, of the feature map's size. They aren't
        normalized, so that images can be compared; `overlay` scales each.

    Raises:
        TypeError: If `model` isn't a Keras model.
        ValueError: If `model` isn't built or doesn't have such an output, no layer or
            several match `layer`, it is called several times, returns no feature map or
            doesn't lead to the output, or `class_index` is out of range.

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

    with _intercepted([*layers, *_operations([model, *layers])], record):
        outputs = _run(model, images)
    if not ops.is_tensor(outputs) or len(outputs.shape) != 2:
        raise ValueError(
            "`model` must have one output of shape (N, classes). For another, pass "
            "`keras.Model(model.input, score)`, and a layer before `score` as `layer`. "
            f"Received: {model!r}, which returns {_shapes(outputs)}"
        )
    outputs = _array(outputs)
    squashing = _last_squashing(model, images, calls, outputs)
    chosen, features = _feature_map(calls, layers, layer)
    channels_first = data_format_of(chosen, layers) == "channels_first"
    classes = _classes(class_index, outputs)

    with _left_out(*squashing):

        def total(offset):
            """Returns the sum of the scores, with `offset` added to the feature map."""

            def add(layer, call, *args, **kwargs):
                return call(*args, **kwargs) + offset

            with _intercepted([chosen], add):
                scores = model(images, training=False)
            explained = ops.one_hot(classes, scores.shape[-1], dtype=scores.dtype)
            return ops.sum(scores * explained)

        # The images don't depend on each other, so one gradient serves them all.
        gradient = _gradient(total, ops.zeros_like(features))
    if gradient is None:
        raise ValueError(
            "`layer` must lead to the output of the model, which doesn't depend on "
            f"{chosen.name!r}: pass another layer. Received: {layer!r}"
        )
    gradient = _array(gradient)
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
    shapes = []
    for x in keras.tree.flatten(images):
        shapes.append(check_array("images", x).shape)
        # Not all of the numbers: a nested list has millions.
        if not shapes[-1]:
            raise ValueError(
                "`images` must be an array, or a list or dict of one array per input. "
                f"Received: numbers in a {type(images).__name__}"
            )
    sizes = {shape[0] for shape in shapes}
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(
            "`images` must have one image or more, and as many for each input. "
            f"Received: shapes={shapes}"
        )
    try:
        return model(images, training=False)
    except ValueError as error:
        raise ValueError(
            f"`images` must be a batch of the model's inputs. Received: shapes={shapes}. "
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
    with contextlib.ExitStack() as stack:
        for layer, name in zip(layers, names):
            stack.enter_context(_replaced(layer, name, bind(layer, name)))
        yield


@contextlib.contextmanager
def _replaced(layer, name, value):
    """Replaces an attribute of a layer, and then puts back what was there before."""
    # Bypasses `__setattr__`, in which Keras and PyTorch track a layer's attributes
    attributes = vars(layer)
    own = {name: attributes[name]} if name in attributes else {}
    attributes[name] = value
    try:
        yield
    finally:
        del attributes[name]
        attributes.update(own)


def _operations(models):
    """Returns each softmax and sigmoid of `keras.ops` in the graphs of models."""
    found = {
        id(op): op
        for model in models
        if isinstance(model, keras.Function)
        for op in model.operations
        if not isinstance(op, keras.Layer) and _squashing(op)
    }
    return list(found.values())


def _squashing(op):
    """Returns the name of the softmax or sigmoid in which an operation ends, if any."""
    function = getattr(op, "activation", getattr(op, "function", None))
    # Layers and operations such as Softmax are activations themselves.
    name = getattr(function, "__name__", type(op).__name__.lower())
    return name if name in SQUASHING else None


def _last_squashing(model, images, calls, outputs):
    """Returns the operations in whose softmax or sigmoid the model ends."""
    # Not all of `calls`: operations may follow that keep numbers, such as a reshape.
    found = {
        id(op): op
        for op, x in reversed(calls)
        if _squashing(op)
        and ops.is_tensor(x)
        and np.array_equal(_array(x).ravel(), outputs.ravel(), equal_nan=True)
    }
    for op in found.values():
        with _left_out(op):
            scores = model(images, training=False)
        expected = _array(getattr(ops, _squashing(op))(ops.cast(scores, "float32")))
        # Otherwise what follows changes scores, such as a `clip` of probabilities.
        if np.allclose(expected, outputs, atol=1e-2, equal_nan=True):
            return [op]
    probable = np.all((outputs >= 0) & (outputs <= 1))
    if probable and not found and is_network(model):
        # A mean may follow, of positions or of several networks.
        activation, last = last_activations(model)
        if getattr(activation, "__name__", None) in SQUASHING:
            return last
    if found or (probable and np.allclose(outputs.sum(axis=1), 1, 0, 1e-3)):
        raise ValueError(
            "`model` must return scores, or end in a softmax or sigmoid that can be left "
            'out, such as `Dense(activation="softmax")`. Pass a model that returns what '
            f"comes before it. Received: {model!r}, which returns probabilities"
        )
    return []


@contextlib.contextmanager
def _left_out(*operations):
    """Leaves out the softmax or sigmoid in which operations end."""
    with contextlib.ExitStack() as stack:
        for op in operations:
            stack.enter_context(
                _replaced(op, "activation", keras.activations.linear)
                if hasattr(op, "activation")
                else _intercepted([op], lambda op, call, x, *args, **kwargs: x)
            )
        yield


def _gradient(function, x):
    """Returns a scalar function's gradient at 0s, `None` if it doesn't depend on them."""
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

        gradient = jax.grad(stateless)(x)
        # JAX returns 0s in both cases, but NaN only spreads to what depends on it.
        if gradient.any() or jax.numpy.isnan(stateless(x + math.nan)):
            return gradient
        return None
    if backend == "torch":
        import torch

        with torch.enable_grad():
            x = x.detach().requires_grad_()
            y = function(x)
            if not y.requires_grad:
                return None
            return torch.autograd.grad(y, x, allow_unused=True)[0]
    raise ValueError(f"grad_cam has no gradients on the backend {backend!r}")


def _feature_map(calls, layers, wanted):
    """Returns the layer that was asked for, and its output."""
    count = collections.Counter(id(x) for x, _ in calls)
    found = [
        (x, y)
        for x, y in calls
        if isinstance(x, keras.Layer) and _is_feature_map(y) and count[id(x)] == 1
    ]
    if wanted is None:
        if not found:
            raise ValueError(
                "`model` must have a layer that is called once and returns a feature map"
            )
        # After the global average, MobileNetV3 classifies by 1x1 convolutions.
        wide = [call for call in found if _positions(*call, layers) > 1]
        wanted = (wide or found)[-1][0]
    name = wanted if isinstance(wanted, str) else None
    same = [x for x in layers if x is wanted or x.name == name]
    if len(same) != 1:
        names = ", ".join(dict.fromkeys(x.name for x, _ in found))
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
