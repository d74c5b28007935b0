"""ONNX files of networks with attention, as ONNX Runtime runs them."""

import collections

import keras
import numpy as np
import pytest
from backends import needs_tensorflow
from keras import layers
from networks import calibrated, images, outputs

from keras_coordatt import CoordinateAttention, export
from keras_coordatt.layers import CBAM, SqueezeExcite

ATTENTIONS = {"coordinate": CoordinateAttention, "se": SqueezeExcite, "cbam": CBAM}


@needs_tensorflow
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_gates_are_repeated_for_any_batch(attention, tmp_path, onnxruntime):
    import onnx

    image = keras.Input((12, 8, 3))
    x = layers.Conv2D(32, 3, padding="same", activation="relu")(image)
    x = ATTENTIONS[attention]()(x)
    model = keras.Model(image, layers.Conv2D(16, 1, name="map")(x))
    x = images(5, 12, 8, 3)
    calibrated(model, x)
    path = tmp_path / "it.onnx"
    export.onnx(model, path)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    session = onnxruntime.InferenceSession(
        path, options, providers=["CPUExecutionProvider"]
    )
    for n in (1, 5):
        (given,) = session.run(["map"], {"image": x[:n]})
        np.testing.assert_allclose(given, outputs(model, x[:n]), rtol=1e-5, atol=1e-5)

    graph = onnx.shape_inference.infer_shapes(onnx.load(path)).graph
    shapes = {
        value.name: [
            x.dim_param or x.dim_value for x in value.type.tensor_type.shape.dim
        ]
        for value in (*graph.input, *graph.value_info, *graph.output)
    }
    # ONNX Runtime multiplies blocks of channels if it knows that their shapes are equal.
    full = ["batch", 32, 12, 8]
    factors = [
        [shapes[name] for name in node.input]
        for node in graph.node
        if node.op_type == "Mul" and shapes[node.output[0]] == full
    ]
    assert factors == [[full, full]] * (2 if attention == "coordinate" else 1)
    # Convolution kernels alone: matrix products would need another layout.
    assert {len(x.dims) for x in graph.initializer if len(x.dims) > 1} == {4}
    if attention != "coordinate":
        return
    # Where ONNX Runtime computes on blocks of channels, feature maps stay in them: only
    # the output is reordered. Counted by name, as these are the cost to avoid.
    graph = onnx.load(options.optimized_model_filepath).graph
    kinds = collections.Counter(node.op_type for node in graph.node)
    assert kinds["ReorderInput"] == 0 and kinds["ReorderOutput"] <= 1
