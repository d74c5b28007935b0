"""Copies of functional models in which some calls are changed."""

import keras
from keras import layers

from keras_coordatt.graph import is_network
from keras_coordatt.layers.freezing import nested_layers


def copy_layer(op):
    if isinstance(op, layers.Lambda):
        # safe_mode=False: the config was built in this process, so it is trusted.
        return op.from_config(op.get_config(), safe_mode=False)
    return op.from_config(op.get_config())


def rebuild(model, graphs, edits, copy=copy_layer):
    """Builds a model from copies of its layers.

    Args:
        model: The model.
        graphs: Result of `read_graphs(model)`.
        edits: Dict from calls to their replacements: functions of the copied operation
            and the call's arguments.
        copy: Function from an operation, other than a model, to its copy.

    Returns:
        `(model, copies)`, with pairs of an operation and its copy by `id(operation)`.
    """
    copies = {}

    def copy_once(op):
        if id(op) not in copies:
            graph = graphs.get(id(op))
            if graph is None:
                new = copy(op)
            elif isinstance(op, keras.Sequential) and not edits.keys() & graph.calls:
                # Keep the input layer, whose sizes may be unknown.
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
        if isinstance(old, layers.Layer) and not is_network(old) and new.built:
            _copy_state(old, new)
    return built, copies


def _copy_state(old, new):
    olds, news = nested_layers(old), nested_layers(new)
    if [type(x) for x in olds] == [type(x) for x in news]:
        # Containers first, since setting `trainable` sets it on all that is inside.
        for source, target in zip(olds, news):
            target.trainable = source.trainable
    sources, targets = old.variables, new.variables
    if [x.name for x in sources] != [x.name for x in targets]:
        # A layer quantized after it was built has them in another order than its copy.
        sources, targets = (sorted(x, key=lambda y: y.path) for x in (sources, targets))
    for source, target in zip(sources, targets, strict=True):
        # A copy, since training on JAX donates the arrays of its model.
        target.assign(keras.ops.copy(source))
        target.trainable = source.trainable
    if hasattr(new, "finalize_state"):
        # Normalization computes its constants from its variables.
        new.finalize_state()
