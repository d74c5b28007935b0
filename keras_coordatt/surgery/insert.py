"""Inserts attention into models, also in place of squeeze-and-excitation."""

import itertools
import re
from collections.abc import Callable

import keras
from keras import layers

from keras_coordatt.graph import read_graphs, tensors
from keras_coordatt.layers import CoordinateAttention, SqueezeExcite
from keras_coordatt.surgery.rebuild import rebuild
from keras_coordatt.validation import call_factory, check_choice

DEPTHWISE = (layers.DepthwiseConv2D, layers.SeparableConv2D)
NORMALIZATIONS = (
    layers.BatchNormalization,
    layers.GroupNormalization,
    layers.LayerNormalization,
)
ACTIVATIONS = (
    layers.Activation,
    layers.ELU,
    layers.LeakyReLU,
    layers.PReLU,
    layers.ReLU,
)
# A call such as `keras.ops.relu` on a symbolic tensor is an operation of class Relu.
ACTIVATION_OPS = {name.replace("_", "") for name in dir(keras.activations)}


def insert_attention(
    model: keras.Model,
    after: str | re.Pattern | Callable = "depthwise",
    layer: Callable | None = None,
    *,
    replace: str | None = None,
) -> keras.Model:
    """Inserts attention into a trained functional model without changing its outputs.

    The attention is inserted after each layer that `after` selects, and after the
    normalization and activation that follow it. By default it is coordinate attention
    whose gates start at exactly 1, so until it is trained, each layer of the new model
    returns exactly what it returns in the old one. A compiler may round differently in
    another graph: where attention stands between a normalization and a residual sum,
    as in Xception and NASNet, TensorFlow's `predict` sums in another order, and the
    outputs differ by about 1e-7 of the largest value.

    The new model consists of new layers with copies of the weights, so training one
    model doesn't affect the other. Layers keep their names; an attention layer is
    called `<matched layer>_attention`, or takes the name of the `SqueezeExcite` layer
    that it replaces. Frozen layers stay frozen, and so do layers inside other layers,
    but new attention is trainable, even in a frozen nested model. The new model is a
    plain `keras.Model` and isn't compiled; the state of an optimizer isn't copied. An
    output after which attention is inserted is named after the attention. With
    `layer=None` or another registered layer, the model is saved and loaded as `.keras`
    without custom objects.

    Nested models, functional or `Sequential`, are searched and copied too, and stay
    nested. A layer that is called several times, or shared by several models, gets one
    attention layer, called equally often. If two matches would get their attention at
    the same place, such as a convolution and its normalization, one is inserted, named
    after the first match.

    Args:
        model: A functional model, or a `Sequential` model that knows its input
            shape.
        after: `"depthwise"` (each `DepthwiseConv2D`, `SeparableConv2D`, and `Conv2D`
            with one group per channel); a regular expression, searched in the names of
            layers; or a predicate, a function from a layer to a bool. Defaults to
            `"depthwise"`.
        layer: Function that returns a layer, such as a layer's class, called with
            `name=` if it takes one. Outputs stay the same only if the layer starts as
            the identity. Defaults to `CoordinateAttention` with
            `identity_init=True`, in the matched layer's precision and data format.
        replace: `None`, or `"squeeze_excite"`: the attention replaces each
            squeeze-and-excitation, that is each product of a feature map and gates
            that two convolutions or dense layers compute from its global average.
            `after` must keep its default then. The outputs change, since the old gates
            are removed, so train the network.

    Returns:
        A functional `keras.Model`, without the methods of a subclass such as `SSDLite`.
        For a detector, insert the attention into the backbone and build a new head.

    Raises:
        ValueError: If an argument is none of the above, if nothing matched (the error
            lists the layers), or if a matched layer doesn't return a feature map.
        TypeError: If `layer` returns something other than a Keras layer.

    Example:

    >>> backbone = keras.applications.MobileNetV2((96, 96, 3), weights=None)
    >>> model = insert_attention(backbone, after=r"block_\\d+_depthwise$")
    >>> model.get_layer("block_1_depthwise_attention").identity_init
    True

    Reference:
        [Coordinate Attention for Efficient Mobile Network Design](
        https://arxiv.org/abs/2103.02907) (CVPR 2021)
    """
    check_choice("replace", replace, (None, "squeeze_excite"))
    matches = _matcher(after)
    if replace and after != "depthwise":
        raise ValueError(
            f"`after` must keep its default with `replace`. Received: after={after!r}"
        )
    if layer is not None and (not callable(layer) or isinstance(layer, layers.Layer)):
        raise ValueError(
            "`layer` must be None or a function that returns a layer. "
            f"Received: {layer!r}"
        )

    graphs = read_graphs(model)
    edits, attentions = {}, {}
    for graph in graphs.values():
        if replace:
            edits |= _edits_for_squeeze_excite(graph, layer, attentions)
        else:
            edits |= _edits_behind(graph, matches, layer, attentions)
    if not edits:
        names = [op.name for graph in graphs.values() for op in graph.own_layers()]
        problem = f"`after` matched no layer of the model. Received: {after!r}"
        if replace:
            problem = f"`replace` found no {replace} in the model"
        raise ValueError(f"{problem}. Its layers are: {', '.join(names)}")
    return rebuild(model, graphs, edits)[0]


def _matcher(after):
    """Turns `after` into a predicate."""
    if isinstance(after, str) and after == "depthwise":
        return _is_depthwise
    if isinstance(after, (str, re.Pattern)):
        try:
            pattern = re.compile(after)
        except re.error as error:
            raise ValueError(
                f"`after` is not a valid regular expression: {error}. Received: {after!r}"
            ) from error
        return lambda op: pattern.search(op.name)
    if callable(after) and not isinstance(after, layers.Layer):
        return after
    raise ValueError(
        '`after` must be "depthwise", a regular expression or a predicate. '
        f"Received: {after!r}"
    )


def _is_depthwise(op):
    """Returns whether it convolves each channel by itself."""
    grouped = isinstance(op, layers.Conv2D) and op.groups > 1
    return isinstance(op, DEPTHWISE) or (grouped and op.kernel.shape[2] == 1)


def _edits_behind(graph, matches, factory, attentions):
    """Returns a dict from calls to replacements that add attention after them."""
    matched = {id(op) for op in graph.own_layers() if matches(op)}
    edits = {}
    for call in graph.calls:
        end = _end_of_unit(graph, call)
        if id(call.op) not in matched or end in edits:
            continue
        if len(end.outputs) != 1 or len(end.outputs[0].shape) != 4:
            raise ValueError(
                "Attention needs a feature map of shape (N, H, W, C) or (N, C, H, W). "
                f"`after` matched {call.op.name!r}, which returns "
                f"{[tuple(x.shape) for x in end.outputs]}"
            )
        name = f"{call.op.name}_attention"
        attention = _attention(graph, call.op, name, call.op, factory, attentions)
        edits[end] = _behind(attention)
    return edits


def _behind(attention):
    return lambda op, *args, **kwargs: attention(op(*args, **kwargs))


def _edits_for_squeeze_excite(graph, factory, attentions):
    """Returns replacements for the gated products and for the calls of their gates."""
    edits = {}
    for call in graph.calls:
        found = _squeeze_excite(graph, call)
        if found is not None:
            index, like, gate = found
            is_layer = isinstance(call.op, SqueezeExcite)
            name = call.op.name if is_layer else f"{call.op.name}_attention"
            attention = _attention(graph, call.op, name, like, factory, attentions)
            edits[call] = _instead(attention, index)
            edits |= dict.fromkeys(gate, _left_out)
    return edits


def _instead(attention, index):
    return lambda op, *args, **kwargs: attention(tensors(args, kwargs)[index])


def _left_out(op, *args, **kwargs):
    """Replaces a call whose outputs are no longer read."""
    x = tensors(args, kwargs)[0]
    return keras.KerasTensor(x.shape, x.dtype)


def _attention(graph, matched, name, like, factory, attentions):
    """Returns the attention for `matched`, by default in `like`'s dtype and format."""
    if id(matched) not in attentions:
        attentions[id(matched)] = _new_attention(graph, matched, name, like, factory)
    return attentions[id(matched)]


def _new_attention(graph, matched, name, like, factory):
    if any(name == op.name and op is not matched for op in graph.own_layers()):
        raise ValueError(f"`model` already has a layer {name!r}")
    if factory is not None:
        return call_factory("layer", factory, name)
    policy = like.dtype_policy
    if isinstance(policy, keras.dtype_policies.QuantizedDTypePolicy):
        # The attention is to be trained, which quantized weights can't be.
        policy = policy.get_config()["source_name"]
    return CoordinateAttention(
        identity_init=True,
        data_format=graph.data_format(like),
        dtype=policy,
        name=name,
    )


def _end_of_unit(graph, call):
    """Returns the last call of a layer and its normalization and activation."""
    roles = {_role(call.op)}
    if getattr(call.op, "activation", keras.activations.linear) not in (
        None,
        keras.activations.linear,
    ):
        roles.add("activation")
    while True:
        readers = [r for x in call.outputs for r in graph.readers.get(id(x), [])]
        if len(readers) != 1 or any(id(x) in graph.outputs for x in call.outputs):
            return call
        role = _role(readers[0].op)
        if role is None or role in roles or len(readers[0].inputs) != 1:
            return call
        roles.add(role)
        call = readers[0]


def _role(op):
    if isinstance(op, NORMALIZATIONS):
        return "normalization"
    if isinstance(op, ACTIVATIONS):
        return "activation"
    is_layer = isinstance(op, layers.Layer)
    if not is_layer and type(op).__name__.lower() in ACTIVATION_OPS:
        return "activation"
    return None


def _squeeze_excite(graph, product):
    """Returns the index of the feature map among the factors of a squeeze-and-excitation,
    one of its layers, and the calls that compute the gate; None for another call."""
    if isinstance(product.op, SqueezeExcite):
        return 0, product.op, []
    if type(product.op).__name__ != "Multiply" or len(product.inputs) != 2:
        return None
    for index, (x, gate) in enumerate(itertools.permutations(product.inputs)):
        calls = _between(graph, x, gate)
        own = {id(y) for call in calls for y in call.outputs}
        readers = [r for y in own for r in graph.readers.get(y, [])]
        pools = [call.op for call in calls if any(y is x for y in call.inputs)]
        kernels = [
            call for call in calls if isinstance(call.op, (layers.Conv2D, layers.Dense))
        ]
        if (
            len(kernels) == 2
            and len(x.shape) == 4
            and all(_averages(op, graph.data_format(op)) for op in pools)
            and all(reader is product or reader in calls for reader in readers)
            and not own & graph.outputs
        ):
            return index, kernels[0].op, calls
    return None


def _between(graph, x, y):
    """Returns the calls that compute `y` from `x` alone, last call first, or `[]`."""
    calls, queue = [], [y]
    while queue:
        y = queue.pop()
        if y is x:
            continue
        call = graph.producer.get(id(y))
        if call is None:
            return []
        if call not in calls:
            calls.append(call)
            queue += call.inputs
    return calls


def _averages(op, data_format):
    """Returns whether it averages feature maps over height and width."""
    if type(op).__name__ == "Mean":  # `keras.ops.mean`
        axes = {2, 3} if data_format == "channels_first" else {1, 2}
        return {axis % 4 for axis in getattr(op, "axis", None) or ()} == axes
    return isinstance(op, layers.GlobalAveragePooling2D)
