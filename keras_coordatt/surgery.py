"""Attention put into finished networks, and its extra cost taken out again.

A functional model is read as the list of its calls, and built anew from copies of
its layers, with some of the calls changed.
"""

import collections
import dataclasses
import itertools
import re
from collections.abc import Callable

import keras
from keras import layers

from keras_coordatt.layers import CoordinateAttention, SqueezeExcite
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
    """Puts attention into a trained functional model, which keeps its outputs.

    The attention stands behind each layer that `after` names: behind its
    normalization and activation where they follow, so where the channels are
    expanded and not behind the projection. By default it is coordinate attention
    whose gates start at exactly 1, so until it is trained the new model gives the
    outputs of the old one, layer by layer to the last bit. A compiler may round
    otherwise in another graph: where attention stands between a normalization and
    a residual sum, as in Xception and NASNet, TensorFlow's `predict` sums in another
    order, with a difference of about 1e-7 of the largest value.

    The new model is made of new layers with copies of the weights: `model` stays as
    it is, and training one leaves the other alone. It has the old layers' names,
    and `<matched layer>_attention` for the new ones, of which one that replaces a
    `SqueezeExcite` layer has its name. What was frozen is frozen, but
    the attention is not, even in a frozen nested model. The new model is a plain
    `keras.Model` and is not compiled, whether or not `model` was: compile it; an
    optimizer's state belongs to the weights of the old model and is not taken over.
    An output behind which attention stands is called after the attention. With
    `layer=None` or another registered layer it is saved and loaded as `.keras`
    without custom objects.

    Nested models, functional or `Sequential`, are searched and copied too, and stay
    nested. A layer that is called several times, and one that several models share,
    gets one attention, called as often. Two matches with the same place behind
    them, such as a convolution and its normalization, get one attention, named
    after the first.

    Args:
        model: A functional model, or a `Sequential` model that knows its input
            shape.
        after: `"depthwise"` (each `DepthwiseConv2D`, `SeparableConv2D`, and `Conv2D`
            with a group a channel); a regular expression to be found in the names
            of layers; or a predicate, a function from a layer to whether attention
            stands behind it. Defaults to `"depthwise"`.
        layer: Function that gives a layer, such as a layer's class, called with
            `name=` if it takes one. Outputs stay the same only if it is the
            identity at first. Defaults to `CoordinateAttention` with
            `identity_init=True`, in the matched layer's precision and data format.
        replace: `None`, or `"squeeze_excite"`: the attention takes the place of each
            squeeze-and-excitation, that is each product of a map and of what two
            convolutions or dense layers make of its global average. `after` must
            keep its default then. Outputs do not stay the same, since the gates of
            the squeeze-and-excitation are gone: train the network.

    Returns:
        A functional `keras.Model`, without the methods of a class of your own or of
        `SSDLite`: put the attention into its backbone, and that under a new head.

    Raises:
        ValueError: if an argument is none of the above, nothing matched (the error
            lists the layers), or what matched is no map.
        TypeError: if `layer` gives something else than a Keras layer.

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
            "`layer` must be None or a function that gives a layer. "
            f"Received: {layer!r}"
        )

    graphs = _read(model)
    edits, attentions = {}, {}
    for graph in graphs.values():
        if replace:
            edits |= _edits_for_squeeze_excite(graph, layer, attentions)
        else:
            edits |= _edits_behind(graph, matches, layer, attentions)
    if not edits:
        names = [op.name for graph in graphs.values() for op in graph.own_layers()]
        raise ValueError(
            (
                f"`replace` found no {replace} in the model. "
                if replace
                else f"`after` matched no layer of the model. Received: {after!r}. "
            )
            + f"Its layers are: {', '.join(names)}"
        )
    return _rebuild(model, graphs, edits)[0]


def fuse_attention(model: keras.Model) -> keras.Model:
    """Takes the extra factor of identity-initialised gates out, for deployment.

    With `identity_init=True` a gate of `CoordinateAttention` is twice a sigmoid, an
    operation a gate more than the plain layer. The new model has plain layers with
    the same weights, and the factor, 4 for two gates, is multiplied into the
    weights of what follows (convolutions, dense layers, batch normalization; also
    behind pooling, padding, dropout, ReLU and squeeze-and-excitation), or else of
    what stands before. It is a power of two, so nothing is rounded: the outputs are
    the same unless a number leaves the range of the floating-point type.

    Where there is no such place, for example between a ReLU6 and an output of the
    model, the layer stays as it is. Batch statistics, weight decay and constraints
    are not those of the old model, so fuse after training.

    Args:
        model: A functional model, or a `Sequential` model that knows its input
            shape. It stays as it is.

    Returns:
        A functional `keras.Model` of new layers, not compiled, with the same layer
        names.

    Raises:
        ValueError: if `model` is neither.

    Example:

    >>> backbone = keras.applications.MobileNetV2((96, 96, 3), weights=None)
    >>> model = fuse_attention(insert_attention(backbone))
    >>> model.get_layer("block_1_depthwise_attention").identity_init
    False
    """
    graphs = _read(model)
    counts = collections.Counter(
        id(op) for graph in graphs.values() for op in graph.own_layers()
    )
    several = {key for key, count in counts.items() if count > 1}
    plans = [_plan(graph, several) for graph in graphs.values()]
    fused = set().union(*(plan.fused for plan in plans))

    def copy(op):
        if id(op) in fused:
            return op.from_config({**op.get_config(), "identity_init": False})
        return _copy(op)

    new, copies = _rebuild(model, graphs, {}, copy)
    for plan in plans:
        for key, read in plan.read.items():
            _scale(copies[key][1], 2.0**read, 2.0 ** plan.written.get(key, 0))
    return new


def _matcher(after):
    """Turns `after` into a predicate."""
    if isinstance(after, str) and after == "depthwise":
        return _is_depthwise
    if isinstance(after, (str, re.Pattern)):
        try:
            pattern = re.compile(after)
        except re.error as error:
            raise ValueError(
                f"`after` is no regular expression: {error}. Received: {after!r}"
            ) from error
        return lambda op: pattern.search(op.name)
    if callable(after) and not isinstance(after, layers.Layer):
        return after
    raise ValueError(
        '`after` must be "depthwise", a regular expression or a predicate. '
        f"Received: {after!r}"
    )


def _is_depthwise(op):
    """Whether it convolves each channel by itself."""
    grouped = isinstance(op, layers.Conv2D) and op.groups > 1
    return isinstance(op, DEPTHWISE) or (grouped and op.kernel.shape[2] == 1)


def _edits_behind(graph, matches, factory, attentions):
    """The calls behind which attention stands, each with the call that adds it."""
    matched = {id(op) for op in graph.own_layers() if matches(op)}
    edits = {}
    for call in graph.calls:
        end = graph.end_of_unit(call)
        if id(call.op) not in matched or end in edits:
            continue
        if len(end.outputs) != 1 or len(end.outputs[0].shape) != 4:
            raise ValueError(
                "Attention stands behind layers that give a map, of shape (N, H, W, "
                f"C). `after` matched {call.op.name!r}, which gives "
                f"{[tuple(x.shape) for x in end.outputs]}"
            )
        name = f"{call.op.name}_attention"
        attention = _attention(graph, call.op, name, call.op, factory, attentions)
        edits[end] = _behind(attention)
    return edits


def _behind(attention):
    return lambda op, *args, **kwargs: attention(op(*args, **kwargs))


def _edits_for_squeeze_excite(graph, factory, attentions):
    """The products that attention replaces, and the gates that then go."""
    edits = {}
    for call in graph.calls:
        found = graph.squeeze_excite(call)
        if found is not None:
            index, like, gate = found
            is_layer = isinstance(call.op, SqueezeExcite)
            name = call.op.name if is_layer else f"{call.op.name}_attention"
            attention = _attention(graph, call.op, name, like, factory, attentions)
            edits[call] = _instead(attention, index)
            edits |= dict.fromkeys(gate, _left_out)
    return edits


def _instead(attention, index):
    return lambda op, *args, **kwargs: attention(_tensors(args, kwargs)[index])


def _left_out(op, *args, **kwargs):
    """Stands for a call that nothing reads any more."""
    x = _tensors(args, kwargs)[0]
    return keras.KerasTensor(x.shape, x.dtype)


def _attention(graph, matched, name, like, factory, attentions):
    """The attention for `matched`, by default in the ways of the layer `like`."""
    if id(matched) not in attentions:
        attentions[id(matched)] = _new_attention(graph, matched, name, like, factory)
    return attentions[id(matched)]


def _new_attention(graph, matched, name, like, factory):
    if any(name == op.name and op is not matched for op in graph.own_layers()):
        raise ValueError(f"`model` already has a layer {name!r}")
    if factory is not None:
        return call_factory("layer", factory, name)
    return CoordinateAttention(
        identity_init=True,
        data_format=graph.data_format(like),
        dtype=like.dtype_policy,
        name=name,
    )


# Fusing

# By what it does to a positive factor of its inputs. No subclasses: they may do
# something else.
LINEAR = (
    layers.Conv2D,
    layers.Dense,
    layers.DepthwiseConv2D,
    layers.SeparableConv2D,
)
HOMOGENEOUS = (
    layers.AveragePooling2D,
    layers.Cropping2D,
    layers.Dropout,
    layers.Flatten,
    layers.GlobalAveragePooling2D,
    layers.GlobalMaxPooling2D,
    layers.Identity,
    layers.LeakyReLU,
    layers.MaxPooling2D,
    layers.PReLU,
    layers.Reshape,
    layers.ZeroPadding2D,
    # If all the inputs have the factor.
    layers.Add,
    layers.Average,
    layers.Concatenate,
)


def _kind(op):
    if getattr(op, "lora_enabled", False) or getattr(op, "quantization_mode", None):
        return "other"
    if type(op) is CoordinateAttention:
        return "attention"
    if type(op) is layers.Multiply:
        return "product"
    if type(op) in LINEAR or (type(op) is layers.BatchNormalization and op.scale):
        return "linear"
    homogeneous = type(op) in HOMOGENEOUS
    if type(op) is layers.ReLU:
        homogeneous = op.max_value is None and op.threshold == 0
    elif type(op) is layers.Activation:
        homogeneous = op.activation in (
            keras.activations.linear,
            keras.activations.relu,
        )
    return "homogeneous" if homogeneous else "other"


@dataclasses.dataclass
class _Plan:
    """Where the factors go.

    Attributes:
        fused: The ids of the attention layers that become plain.
        read: By a layer's id, the power of two that its input lacks.
        written: By a layer's id, the power of two by which its output grows.
        clash: The ids of the attention layers whose factors found no place.
    """

    fused: set
    read: dict
    written: dict
    clash: set


def _plan(graph, fixed):
    """Finds a place for as many factors as can be.

    Args:
        fixed: The ids of layers whose weights must stay.
    """
    # By attention layer: the layer before it that takes the factor, or None for what
    # stands behind. That is tried first.
    takers = {
        id(op): None
        for op in graph.own_layers()
        if _kind(op) == "attention" and op.identity_init and id(op) not in fixed
    }
    while (plan := _follow(graph, fixed, takers)).clash:
        for key in plan.clash:
            taker = graph.scalable_source(key) if takers[key] is None else None
            if taker is None or id(taker) in fixed:
                del takers[key]
            else:
                takers[key] = taker
    return plan


def _follow(graph, fixed, takers):
    """Follows the factors of the attention layers `takers` through the graph."""
    plan = _Plan(fused=set(takers), read={}, written={}, clash=set())
    gates = {id(op): len(op.gates) for op in graph.own_layers() if id(op) in takers}
    causes = {}
    for key, taker in takers.items():
        if taker is not None:
            plan.written[id(taker)] = plan.written.get(id(taker), 0) + gates[key]
            causes.setdefault(id(taker), set()).add(key)

    # By tensor: the power of two that it lacks, and the attention layers that are the
    # cause.
    nothing = 0, set()
    lack, read_causes = {}, {}
    for call in graph.calls:
        key = id(call.op)
        kind = "other" if key in fixed else _kind(call.op)
        inputs = [lack.get(id(x), nothing) for x in call.inputs] or [nothing]
        power = inputs[0][0]
        cause = set().union(*(cause for _, cause in inputs))

        if kind == "product":
            power = sum(power for power, _ in inputs)
        elif any(other != power for other, _ in inputs):
            plan.clash |= cause
        if kind in ("linear", "attention"):
            # A layer that is called again must read the same there.
            read_causes[key] = read_causes.get(key, set()) | cause
            if plan.read.setdefault(key, power) != power:
                plan.clash |= read_causes[key]
        elif kind == "other":
            plan.clash |= cause

        if kind in ("linear", "other"):
            power, cause = -plan.written.get(key, 0), causes.get(key, set())
        elif key in takers:
            # Each gate is a sigmoid now, which was twice one.
            power, cause = power + gates[key], cause | {key}
        for x in call.outputs:
            lack[id(x)] = (power, cause) if power else nothing
    for x in graph.outputs:
        plan.clash |= lack.get(x, nothing)[1]
    return plan


def _scale(layer, read, written):
    """Lets a layer read what lacks a factor, and write what has one in addition."""
    if isinstance(layer, CoordinateAttention):
        _multiply(layer.shared.kernel, read)
        return
    if isinstance(layer, layers.BatchNormalization):
        _multiply(layer.moving_mean, 1 / read)
        kernel, bias = layer.gamma, layer.beta
    elif isinstance(layer, layers.SeparableConv2D):
        kernel, bias = layer.depthwise_kernel, layer.bias
    else:
        kernel, bias = layer.kernel, layer.bias
    _multiply(kernel, read * written)
    if bias is not None:
        _multiply(bias, written)


def _multiply(variable, factor):
    variable.assign(variable * factor)


# Reading


@dataclasses.dataclass(eq=False)
class _Call:
    op: keras.Operation
    inputs: list
    outputs: list


class _StandIn(keras.Operation):
    """Gives the shapes of an operation, whose own record of calls stays as it is."""

    def __init__(self, op):
        super().__init__(name=op.name)
        self.op = op

    def compute_output_spec(self, *args, **kwargs):
        return self.op.compute_output_spec(*args, **kwargs)


class _Graph:
    """The calls of a functional or `Sequential` model, in the order of a run."""

    def __init__(self, model):
        if isinstance(model, keras.Sequential):
            struct = model.inputs[0], model.outputs[0]
        else:
            struct = model.input, model.output
        # The same graph as a plain model, which is not compiled.
        self.model = keras.Model(*struct, name=model.name)
        self.calls = []
        copy = keras.models.clone_model(
            self.model, clone_function=_StandIn, call_function=self._record
        )
        self.outputs = {id(x) for x in copy.outputs}
        self.producer = {id(x): call for call in self.calls for x in call.outputs}
        self.readers = {}
        for call in self.calls:
            for x in call.inputs:
                self.readers.setdefault(id(x), []).append(call)

    def _record(self, stand_in, *args, **kwargs):
        outputs = stand_in(*args, **kwargs)
        call = _Call(stand_in.op, _tensors(args, kwargs), keras.tree.flatten(outputs))
        self.calls.append(call)
        return outputs

    def new_inputs(self):
        """Inputs like the model's, of the same names."""
        inputs = {
            id(layer.output): layer
            for layer in self.model.layers
            if isinstance(layer, layers.InputLayer)
        }
        return keras.tree.map_structure(
            lambda x: _copy(inputs[id(x)]).output, self.model.input
        )

    def own_layers(self):
        """The layers, without inputs and bare operations, each once."""
        ops = {id(call.op): call.op for call in self.calls}
        return [op for op in ops.values() if isinstance(op, layers.Layer)]

    def data_format(self, op):
        """The data format of a layer, or else of the first that has one."""
        formats = (getattr(x, "data_format", None) for x in (op, *self.own_layers()))
        return next(filter(None, formats), keras.config.image_data_format())

    def end_of_unit(self, call):
        """The last call of a layer, its normalization and its activation."""
        seen = {_role(call.op)}
        if getattr(call.op, "activation", keras.activations.linear) not in (
            None,
            keras.activations.linear,
        ):
            seen.add("activation")
        while True:
            readers = [r for x in call.outputs for r in self.readers.get(id(x), [])]
            if len(readers) != 1 or any(id(x) in self.outputs for x in call.outputs):
                return call
            role = _role(readers[0].op)
            if role is None or role in seen or len(readers[0].inputs) != 1:
                return call
            seen.add(role)
            call = readers[0]

    def squeeze_excite(self, product):
        """The index of the map among the factors of a squeeze-and-excitation, a layer
        of it, and the calls that make the gate. None if the call is none."""
        if isinstance(product.op, SqueezeExcite):
            return 0, product.op, []
        if type(product.op).__name__ != "Multiply" or len(product.inputs) != 2:
            return None
        for index, (x, gate) in enumerate(itertools.permutations(product.inputs)):
            calls = self._between(x, gate)
            own = {id(y) for call in calls for y in call.outputs}
            readers = [r for y in own for r in self.readers.get(y, [])]
            pools = [call.op for call in calls if any(y is x for y in call.inputs)]
            kernels = [
                call
                for call in calls
                if isinstance(call.op, (layers.Conv2D, layers.Dense))
            ]
            if (
                len(kernels) == 2
                and len(x.shape) == 4
                and all(_averages(op, self.data_format(op)) for op in pools)
                and all(reader is product or reader in calls for reader in readers)
                and not own & self.outputs
            ):
                return index, kernels[0].op, calls
        return None

    def scalable_source(self, key):
        """The layer before an attention layer, given by id, that can write its map
        larger; None if there is none."""
        calls = [call for call in self.calls if id(call.op) == key]
        x = calls[0].inputs[0]
        while len(calls) == 1 and (call := self.producer.get(id(x))):
            kind = _kind(call.op)
            activation = getattr(call.op, "activation", keras.activations.linear)
            if kind == "linear" and activation is keras.activations.linear:
                return call.op
            if kind != "homogeneous":
                return None
            x = call.inputs[0]
        return None

    def _between(self, x, y):
        """The calls that make `y` of `x` alone, last call first; none if there
        are no such calls."""
        calls, rest = [], [y]
        while rest:
            y = rest.pop()
            if y is x:
                continue
            call = self.producer.get(id(y))
            if call is None:
                return []
            if call not in calls:
                calls.append(call)
                rest += call.inputs
        return calls


def _role(op):
    if isinstance(op, NORMALIZATIONS):
        return "normalization"
    if isinstance(op, ACTIVATIONS):
        return "activation"
    is_layer = isinstance(op, layers.Layer)
    if not is_layer and type(op).__name__.lower() in ACTIVATION_OPS:
        return "activation"
    return None


def _averages(op, data_format):
    """Whether it averages a map over height and width."""
    if type(op).__name__ == "Mean":  # `keras.ops.mean`
        axes = {2, 3} if data_format == "channels_first" else {1, 2}
        return {axis % 4 for axis in getattr(op, "axis", None) or ()} == axes
    return isinstance(op, layers.GlobalAveragePooling2D)


def _tensors(args, kwargs):
    leaves = keras.tree.flatten((args, kwargs))
    return [x for x in leaves if isinstance(x, keras.KerasTensor)]


def _is_network(op):
    return isinstance(op, keras.Model) and isinstance(
        op, (keras.Function, keras.Sequential)
    )


def _read(model):
    """The graphs of a model and of those nested in it, by the models' ids."""
    if not _is_network(model) or not model.built:
        raise ValueError(
            "`model` must be a functional model, or a Sequential one that knows its "
            f"input shape. Received: {model!r}"
        )
    graphs, rest = {}, [model]
    while rest:
        network = rest.pop(0)
        if id(network) not in graphs:
            graphs[id(network)] = graph = _Graph(network)
            rest += [op for op in graph.own_layers() if _is_network(op)]
    return graphs


# Building


def _copy(op):
    if isinstance(op, layers.Lambda):
        # It comes from the caller, not from a file.
        return op.from_config(op.get_config(), safe_mode=False)
    return op.from_config(op.get_config())


def _rebuild(model, graphs, edits, copy=_copy):
    """Builds a model from copies of its layers.

    Args:
        graphs: What `_read(model)` gives.
        edits: For some of the calls, what to do in their place: a function of the
            copied operation and the call's arguments.
        copy: Function from an operation, other than a model, to its copy.

    Returns:
        `(model, copies)`, with the pairs of operations and copies.
    """
    copies = {}

    def copy_once(op):
        if id(op) not in copies:
            graph = graphs.get(id(op))
            if graph is None:
                new = copy(op)
            elif isinstance(op, keras.Sequential) and not edits.keys() & graph.calls:
                # With its input, whose sizes may be open.
                chain = [graph.new_inputs(), *map(copy_once, op.layers)]
                new = keras.Sequential(chain, name=op.name)
            else:
                new = build(graph)
            copies[id(op)] = op, new
        return copies[id(op)][1]

    def build(graph):
        calls = iter(graph.calls)

        def call(op, *args, **kwargs):
            edit = edits.get(next(calls))
            return edit(op, *args, **kwargs) if edit else op(*args, **kwargs)

        return keras.models.clone_model(
            graph.model,
            graph.new_inputs(),
            clone_function=copy_once,
            call_function=call,
        )

    built = build(graphs[id(model)])
    for old, new in copies.values():
        if isinstance(old, layers.Layer) and not _is_network(old) and new.built:
            _copy_state(old, new)
    return built, copies


def _copy_state(old, new):
    for source, target in zip(old.variables, new.variables, strict=True):
        # A copy, since JAX gives the arrays of one model away while it runs.
        target.assign(keras.ops.copy(source))
        target.trainable = source.trainable
    if hasattr(new, "finalize_state"):
        # Normalization derives what it uses from its variables.
        new.finalize_state()
