"""Helpers for tests of exports: a network, its images, runtimes."""

import collections

import keras
import numpy as np
import pytest
from backends import BACKEND, needs_tensorflow
from keras import layers
from networks import calibrated, images

from keras_coordatt import CoordinateAttention, export
from keras_coordatt.preprocessing import IMAGENET, PreprocessingRecord

needs_saved_model = pytest.mark.skipif(BACKEND == "torch", reason="no SavedModel")
SIZE = (32, 24)
LABELS = ["ant", "bee", "cat", "dog", "elk"]


def network(attentions=(CoordinateAttention,), size=SIZE, dtype=None):
    """A block of MobileNetV2 with a head."""
    image = keras.Input((*size, 3))
    x = PreprocessingRecord(IMAGENET)(image)
    x = layers.Conv2D(48, 3, strides=2, use_bias=False, dtype=dtype)(x)
    x = layers.BatchNormalization(dtype=dtype)(x)
    x = layers.DepthwiseConv2D(3, padding="same", dtype=dtype, name="depthwise")(x)
    x = layers.ReLU(6.0, dtype=dtype)(x)
    for attention in attentions:
        x = attention(dtype=dtype)(x)
    x = layers.GlobalAveragePooling2D(dtype=dtype)(x)
    x = layers.Dropout(0.1, dtype=dtype)(x)
    x = layers.Dense(5, "softmax", dtype=dtype, name="predictions")(x)
    model = keras.Model(image, x, name="small")
    calibrated(model, pictures(8, *[side or 32 for side in size]))
    # Classes that are told apart.
    head = model.get_layer("predictions")
    kernel, bias = head.get_weights()
    head.set_weights([5 * (kernel - kernel.mean(1, keepdims=True)), 0 * bias])
    return model


def pictures(*shape, seed=0):
    """Normalized images that differ in color too, as noise does not."""
    color = np.random.default_rng(seed).normal(size=(shape[0], 1, 1, 3))
    return (images(*shape, 3, seed=seed) + 2 * color).astype("float32")


def interpret(path, x):
    """Returns the outputs of a LiteRT file for images one by one, and its operations."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    # The delegate would hide the operations.
    kind = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = Interpreter(str(path), experimental_op_resolver_type=kind)
    interpreter.allocate_tensors()
    (given,), (taken,) = (
        interpreter.get_input_details(),
        interpreter.get_output_details(),
    )
    results = []
    for image in x:
        interpreter.set_tensor(given["index"], image[None].astype(given["dtype"]))
        interpreter.invoke()
        results.append(interpreter.get_tensor(taken["index"]))
    operations = [x["op_name"] for x in interpreter._get_ops_details()]
    results = np.concatenate(results) if results else None
    return results, collections.Counter(operations), interpreter


def tensors(interpreter):
    """Returns the constants of a LiteRT file, and the tensors that operations make."""
    operations = interpreter._get_ops_details()
    made = {index for operation in operations for index in operation["outputs"]}
    given = {tensor["index"] for tensor in interpreter.get_input_details()}
    # Nameless tensors are the kernels' scratch memory.
    named = [x for x in interpreter.get_tensor_details() if x["name"]]
    constants = [x for x in named if x["index"] not in made | given]
    return constants, [x for x in named if x["index"] in made]


def run_lite(path, x, batch_size=1):
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(str(path)).get_signature_runner()
    batches = np.split(x, len(x) // batch_size)
    parts = [runner(image=batch) for batch in batches]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


class Table:
    """Reads a flatbuffer without its schema, field by field."""

    def __init__(self, data, position):
        self.data, self.at = data, position

    @classmethod
    def root(cls, data):
        return cls(data, np.frombuffer(data, "<u4", 1)[0])

    def field(self, slot):
        vtable = self.at - np.frombuffer(self.data, "<i4", 1, self.at)[0]
        offset = np.frombuffer(self.data, "<u2", 1, vtable + 4 + 2 * slot)[0]
        return self.at + offset

    def has(self, slot):
        return self.field(slot) != self.at

    def value(self, slot, dtype):
        return np.frombuffer(self.data, dtype, 1, self.field(slot))[0]

    def vector(self, slot, dtype):
        start = self.field(slot)
        start += np.frombuffer(self.data, "<u4", 1, start)[0]
        length = np.frombuffer(self.data, "<u4", 1, start)[0]
        return np.frombuffer(self.data, dtype, length, start + 4), start + 4

    def string(self, slot):
        return self.vector(slot, "u1")[0].tobytes().decode()

    def table(self, slot):
        return Table(self.data, self.field(slot) + self.value(slot, "<u4"))

    def tables(self, slot):
        offsets, start = self.vector(slot, "<u4")
        return [Table(self.data, start + 4 * i + x) for i, x in enumerate(offsets)]


def litert_description(path):
    """The metadata of a LiteRT file: of the file, and of its only graph."""
    # Model: 2 subgraphs, 4 buffers, 6 metadata; Metadata: 0 name, 1 buffer; Buffer: 0
    # data.
    file = Table.root(path.read_bytes())
    assert len(file.tables(2)) == 1
    entry = next(x for x in file.tables(6) if x.string(0) == "TFLITE_METADATA")
    data = file.tables(4)[entry.value(1, "<u4")].vector(0, "u1")[0].tobytes()
    assert data[4:8] == b"M001"
    # ModelMetadata: 0 name, 3 subgraphs
    (graph,) = (file := Table.root(data)).tables(3)
    return file, graph


FORMATS = {
    "saved_model": pytest.param(export.saved_model, "it", marks=needs_saved_model),
    "litert": pytest.param(export.litert, "it.tflite", marks=needs_tensorflow),
    "onnx": pytest.param(export.onnx, "it.onnx"),
}
each_format = pytest.mark.parametrize("write, name", FORMATS.values(), ids=FORMATS)
