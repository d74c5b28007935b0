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

    Raises:
        ValueError: If the model isn't functional, nor `Sequential` and built.
    """
    check_network(model)
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


def check_network(model):
    """Checks that the graph of a user's `model` can be read."""
    if not is_network(model) or not model.built:
        raise ValueError(
            f"`model` must be functional, or Sequential and built. Received: {model!r}"
        )


def read_graphs(model):
    """Returns the graphs of a model and of all nested models, keyed by `id(model)`.

    Raises:
        ValueError: If the model isn't functional, nor `Sequential` and built.
    """
    check_network(model)
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


# By the names of their classes, since operations of `keras.ops` have no public class:
# what keeps probabilities probabilities, and what only turns logits into other logits.
_KEEP_SCORES = {
    *("Activation", "Identity", "Cast", "Dropout", "SpatialDropout2D"),
    *("Flatten", "Reshape", "Permute", "Transpose", "Squeeze", "ExpandDims"),
    *("Resize", "Resizing", "ResizeLike", "UpSampling2D", "CenterCrop", "Cropping2D"),
    *("Average", "Mean", "AveragePooling2D", "GlobalAveragePooling2D"),
}
_KEEP_LOGITS = {
    *("Add", "Subtract", "Multiply", "Divide", "TrueDivide", "Rescaling"),
    *("Concatenate", "GetItem", "BatchNormalization", "LayerNormalization"),
}


def last_activation(model):
    """Returns the activation in which a model's output ends, such as a softmax.

    Operations that keep probabilities may follow it, such as `Flatten`. It is linear if
    there is none, and `None` if it can't be told: of a model of several outputs, or after
    an operation or a layer that isn't known.
    """
    return last_activations(model)[0]


def last_activations(model):
    """Returns `last_activation`, and the operations that compute it.

    They are several where the output is a mean, such as of the branches of an ensemble.
    """
    graph = Graph(model)
    linear = keras.activations.linear

    def ends_in(tensor_id):
        call = graph.producer.get(tensor_id)
        if call is None:
            return linear, []
        op, name = call.op, type(call.op).__name__
        found = [op]
        if is_network(op):
            activation, found = last_activations(op)
        elif hasattr(op, "activation"):
            activation = op.activation
        else:
            # Layers and operations such as Softmax are activations themselves.
            known = name in _KEEP_SCORES | _KEEP_LOGITS
            activation = getattr(
                keras.activations, name.lower(), linear if known else None
            )
        if activation is not linear or getattr(op, "weights", None):
            return activation, found
        ends = [ends_in(id(x)) for x in call.inputs] or [(None, [])]
        before, *others = {activation for activation, _ in ends}
        kept = name in _KEEP_SCORES or before is linear
        found = [op for _, operations in ends for op in operations]
        return before if kept and not others else None, found

    return ends_in(*graph.outputs) if len(graph.outputs) == 1 else (None, [])
