"""Functional and `Sequential` models, read as lists of calls."""

import dataclasses

import keras
from keras import layers


@dataclasses.dataclass(eq=False)
class Call:
    """One call of an operation, with the symbolic tensors it reads and returns."""

    op: keras.Operation
    inputs: list
    outputs: list


class StandIn(keras.Operation):
    """Stands in for an operation when shapes are computed, without adding nodes to it."""

    def __init__(self, op):
        super().__init__(name=op.name)
        self.op = op

    def compute_output_spec(self, *args, **kwargs):
        return self.op.compute_output_spec(*args, **kwargs)


def input_and_output(model):
    """Returns a model's input and its output: tensors, or structures of tensors.

    Keras's own attributes are missing from a `Sequential` that `build` was called on.
    """
    if isinstance(model, keras.Sequential):
        return model.inputs[0], model.outputs[0]
    return model.input, model.output


class Graph:
    """The calls of a functional or `Sequential` model, in execution order."""

    def __init__(self, model):
        # The same graph as a plain model, since a subclass may not be cloned.
        self.model = keras.Model(*input_and_output(model), name=model.name)
        self.calls = []
        copy = keras.models.clone_model(
            self.model, clone_function=StandIn, call_function=self._record
        )
        self.inputs = copy.inputs
        self.outputs = {id(x) for x in copy.outputs}
        self.producer = {id(x): call for call in self.calls for x in call.outputs}
        self.readers = {}
        for call in self.calls:
            for x in call.inputs:
                self.readers.setdefault(id(x), []).append(call)

    def _record(self, stand_in, *args, **kwargs):
        outputs = stand_in(*args, **kwargs)
        call = Call(stand_in.op, tensors(args, kwargs), keras.tree.flatten(outputs))
        self.calls.append(call)
        return outputs

    def new_inputs(self):
        """Returns new inputs with the shapes, dtypes and names of the model's."""
        inputs = {
            id(layer.output): layer
            for layer in self.model.layers
            if isinstance(layer, layers.InputLayer)
        }
        return keras.tree.map_structure(
            lambda x: layers.InputLayer.from_config(inputs[id(x)].get_config()).output,
            self.model.input,
        )

    def own_layers(self):
        """Returns the layers, each once, without input layers and `keras.ops`."""
        ops = {id(call.op): call.op for call in self.calls}
        return [op for op in ops.values() if isinstance(op, layers.Layer)]

    def data_format(self, op):
        """Returns a layer's data format, or else that of the first layer with one."""
        return data_format_of(op, self.own_layers())


def data_format_of(layer, layers):
    """Returns a layer's data format, or else that of the first of `layers` with one."""
    formats = (getattr(x, "data_format", None) for x in (layer, *layers))
    return next(filter(None, formats), keras.config.image_data_format())


def tensors(args, kwargs):
    """Returns the symbolic tensors among the arguments of a call."""
    leaves = keras.tree.flatten((args, kwargs))
    return [x for x in leaves if isinstance(x, keras.KerasTensor)]


def is_network(op):
    """Returns whether an operation is a model whose graph can be read."""
    return isinstance(op, keras.Model) and isinstance(
        op, (keras.Function, keras.Sequential)
    )


def read_graphs(model):
    """Returns the graphs of a model and of all nested models, keyed by `id(model)`.

    Raises:
        ValueError: If the model isn't functional, nor `Sequential` and built.
    """
    if not is_network(model) or not model.built:
        raise ValueError(
            "`model` must be a functional model, or a Sequential one that knows its "
            f"input shape. Received: {model!r}"
        )
    graphs, queue = {}, [model]
    while queue:
        network = queue.pop(0)
        if id(network) not in graphs:
            graphs[id(network)] = graph = Graph(network)
            queue += [op for op in graph.own_layers() if is_network(op)]
    return graphs


def last_layers(model):
    """Returns the last layers with weights before the outputs, of nested models too."""
    graph = Graph(model)
    found, visited = {}, set()
    queue = list(graph.outputs)
    while queue:
        call = graph.producer.get(queue.pop())
        if call is None or id(call) in visited:
            continue
        visited.add(id(call))
        if is_network(call.op):
            last = last_layers(call.op)
        else:
            last = [call.op] if getattr(call.op, "weights", None) else []
        found |= {id(layer): layer for layer in last}
        if not last:
            queue += map(id, call.inputs)
    return list(found.values())


def last_activation(model):
    """Returns the activation in which a model's output ends, such as a softmax.

    Operations without weights may follow it, such as `Flatten`. It is linear if there is
    none, and `None` for a model of several outputs.
    """
    graph = Graph(model)
    linear = keras.activations.linear
    if len(graph.outputs) != 1:
        return None
    call = graph.producer.get(*graph.outputs)
    while call is not None:
        if is_network(call.op):
            activation = last_activation(call.op)
        else:
            # Layers and operations such as Softmax are activations themselves.
            own = getattr(keras.activations, type(call.op).__name__.lower(), linear)
            activation = getattr(call.op, "activation", own)
        if activation is not linear or getattr(call.op, "weights", None):
            return activation
        call = graph.producer.get(id(call.inputs[0])) if call.inputs else None
    return linear
