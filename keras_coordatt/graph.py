"""Functional and `Sequential` models, read as lists of calls."""

import dataclasses

import keras
from keras import layers


@dataclasses.dataclass(eq=False)
class Call:
    op: keras.Operation
    inputs: list
    outputs: list


class StandIn(keras.Operation):
    """Gives the shapes of an operation, whose own record of calls stays as it is."""

    def __init__(self, op):
        super().__init__(name=op.name)
        self.op = op

    def compute_output_spec(self, *args, **kwargs):
        return self.op.compute_output_spec(*args, **kwargs)


class Graph:
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
            self.model, clone_function=StandIn, call_function=self._record
        )
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
        """Inputs like the model's, of the same names."""
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
        """The layers, without inputs and bare operations, each once."""
        ops = {id(call.op): call.op for call in self.calls}
        return [op for op in ops.values() if isinstance(op, layers.Layer)]

    def data_format(self, op):
        """The data format of a layer, or else of the first that has one."""
        formats = (getattr(x, "data_format", None) for x in (op, *self.own_layers()))
        return next(filter(None, formats), keras.config.image_data_format())


def tensors(args, kwargs):
    leaves = keras.tree.flatten((args, kwargs))
    return [x for x in leaves if isinstance(x, keras.KerasTensor)]


def is_network(op):
    return isinstance(op, keras.Model) and isinstance(
        op, (keras.Function, keras.Sequential)
    )


def read_graphs(model):
    """The graphs of a model and of those nested in it, by the models' ids."""
    if not is_network(model) or not model.built:
        raise ValueError(
            "`model` must be a functional model, or a Sequential one that knows its "
            f"input shape. Received: {model!r}"
        )
    graphs, rest = {}, [model]
    while rest:
        network = rest.pop(0)
        if id(network) not in graphs:
            graphs[id(network)] = graph = Graph(network)
            rest += [op for op in graph.own_layers() if is_network(op)]
    return graphs
