"""Plain attention from identity-initialized attention, once it is trained."""

import collections
import dataclasses

import keras
from keras import layers

from keras_coordatt.graph import read_graphs
from keras_coordatt.layers import CoordinateAttention, atrous
from keras_coordatt.layers.batch_normalization import BatchNormalization
from keras_coordatt.surgery.rebuild import copy_layer, rebuild

# Layers by their effect on a positive factor of their inputs. Subclasses don't count,
# since they may compute something else.
LINEAR = (
    atrous.Conv2D,
    layers.Conv2D,
    layers.Dense,
    layers.DepthwiseConv2D,
    layers.SeparableConv2D,
)
NORMS = (layers.BatchNormalization, BatchNormalization)
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


def fuse_attention(model: keras.Model) -> keras.Model:
    """Removes the extra factor of identity-initialized gates, for deployment.

    With `identity_init=True` a gate of `CoordinateAttention` is twice a sigmoid, which
    costs one more operation per gate than in the plain layer. The new model has plain
    layers with the same weights, and the factor, 4 for two gates, is multiplied into
    the weights of the next layers (convolutions, dense layers, batch normalization;
    also across pooling, padding, dropout, ReLU and squeeze-and-excitation), or else of
    the previous one. It is a power of two, so nothing is rounded: the outputs are the
    same unless a number leaves the range of the floating-point type.

    Where no layer can take the factor, for example between a ReLU6 and an output of the
    model, or where the attention is quantized or has LoRA weights, it stays as it is.
    Batch statistics, weight decay and constraints differ from those of the old model,
    so fuse after training.

    Args:
        model: A functional model, or a `Sequential` model that knows its input
            shape. It isn't changed.

    Returns:
        A functional `keras.Model` of new layers, not compiled, with the same layer
        names.

    Raises:
        ValueError: If `model` is neither.

    Example:

    >>> backbone = keras.applications.MobileNetV2((96, 96, 3), weights=None)
    >>> model = fuse_attention(insert_attention(backbone))
    >>> model.get_layer("block_1_depthwise_attention").identity_init
    False
    """
    graphs = read_graphs(model)
    counts = collections.Counter(
        id(op) for graph in graphs.values() for op in graph.own_layers()
    )
    several = {key for key, count in counts.items() if count > 1}
    plans = [_plan(graph, several) for graph in graphs.values()]
    fused = set().union(*(plan.fused for plan in plans))

    def copy(op):
        if id(op) in fused:
            return op.from_config({**op.get_config(), "identity_init": False})
        return copy_layer(op)

    new, copies = rebuild(model, graphs, {}, copy)
    for plan in plans:
        for key, read in plan.read.items():
            _scale(copies[key][1], 2.0**read, 2.0 ** plan.written.get(key, 0))
    return new


def _kind(op):
    # Kernels that are quantized, or sums with LoRA's, can't be scaled.
    parts = [op, *op.sublayers()] if type(op) is CoordinateAttention else [op]
    if any(
        getattr(part, "lora_enabled", False) or getattr(part, "quantization_mode", None)
        for part in parts
    ):
        return "other"
    if type(op) is CoordinateAttention:
        return "attention"
    if type(op) is layers.Multiply:
        return "product"
    if type(op) in LINEAR or (type(op) in NORMS and op.scale):
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
    """Which layers take the factors.

    Attributes:
        fused: Ids of the attention layers that become plain.
        read: Dict from a layer's id to the power of two that its input lacks.
        written: Dict from a layer's id to the power of two by which its output grows.
        clash: Ids of the attention layers whose factors no layer can take.
    """

    fused: set
    read: dict
    written: dict
    clash: set


def _plan(graph, fixed):
    """Finds layers that take as many of the factors as possible.

    Args:
        graph: One of `read_graphs(model)`.
        fixed: Ids of layers whose weights must not change.

    Returns:
        A `_Plan` without a clash.
    """
    # Dict from an attention layer's id to the previous layer that takes its factor, or
    # None for the next layers, which are tried first.
    takers = {
        id(op): None
        for op in graph.own_layers()
        if _kind(op) == "attention" and op.identity_init and id(op) not in fixed
    }
    while (plan := _follow(graph, fixed, takers)).clash:
        for key in plan.clash:
            taker = _scalable_source(graph, key) if takers[key] is None else None
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

    # Dict from a tensor's id to the power of two that it lacks, and the attention layers
    # that cause it.
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
            # A layer that is called several times must lack the same each time.
            read_causes[key] = read_causes.get(key, set()) | cause
            if plan.read.setdefault(key, power) != power:
                plan.clash |= read_causes[key]
        elif kind == "other":
            plan.clash |= cause

        if kind in ("linear", "other"):
            power, cause = -plan.written.get(key, 0), causes.get(key, set())
        elif key in takers:
            # Each gate is now a sigmoid instead of twice a sigmoid.
            power, cause = power + gates[key], cause | {key}
        for x in call.outputs:
            lack[id(x)] = (power, cause) if power else nothing
    for x in graph.outputs:
        plan.clash |= lack.get(x, nothing)[1]
    return plan


def _scale(layer, read, written):
    """Scales weights for an input that lacks `read` and an output times `written`."""
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


def _scalable_source(graph, key):
    """Returns the layer before an attention layer, given by id, whose output can take a
    factor; None if there is none."""
    calls = [call for call in graph.calls if id(call.op) == key]
    x = calls[0].inputs[0]
    while len(calls) == 1 and (call := graph.producer.get(id(x))):
        kind = _kind(call.op)
        activation = getattr(call.op, "activation", keras.activations.linear)
        if kind == "linear" and activation is keras.activations.linear:
            return call.op
        if kind != "homogeneous":
            return None
        x = call.inputs[0]
    return None
