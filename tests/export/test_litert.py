"""LiteRT files in each precision, and their metadata."""

import keras
import numpy as np
import pytest
from backends import needs_tensorflow
from exports import (
    LABELS,
    SIZE,
    interpret,
    litert_description,
    network,
    pictures,
    tensors,
)
from keras import layers
from keras.applications import imagenet_utils
from networks import assert_near, calibrated, images, outputs

from keras_coordatt import CBAM, CoordinateAttention, SqueezeExcite, export
from keras_coordatt.applications import (
    EfficientNetCA,
    MobileNetV2CA,
    MobileNeXtCA,
)
from keras_coordatt.export import read_metadata
from keras_coordatt.preprocessing import RAW_PIXELS, PreprocessingRecord


@needs_tensorflow
def test_litert_float32_is_folded(model, x, tmp_path):
    report = export.litert(model, tmp_path / "it.tflite", images=x)
    assert report.agreement == 1
    given, _, interpreter = interpret(tmp_path / "it.tflite", x)
    assert_near(given, outputs(model, x), 1e-4)
    assert report.size == (tmp_path / "it.tflite").stat().st_size
    constants, computed = tensors(interpreter)
    # Two convolutions and two gates make feature maps: normalization would be one more.
    shapes = [tuple(tensor["shape"]) for tensor in computed]
    assert shapes.count((1, 15, 11, 48)) == 4
    # Of all rows and columns, hidden channels before and after hard-swish; normalization
    # would be one more, too.
    assert shapes.count((15 + 11, 8)) == 2
    # Sizes are known, not computed as integers.
    assert {tensor["dtype"] for tensor in computed} == {np.float32}
    # A kernel and a bias per layer, and nothing of normalization; the head's bias is 0.
    weights = sum(np.prod(x["shape"]) for x in constants if x["dtype"] == np.float32)
    kernels = [w for w in model.weights if w.name == "kernel"]
    assert weights == sum(np.prod(w.shape) for w in kernels) + 4 * 48 + 8


@needs_tensorflow
@pytest.mark.parametrize("precision", ["float16", "dynamic", "int8"])
def test_litert_in_less_precision(model, x, tmp_path, precision):
    ranges = {"representative": x} if precision == "int8" else {}
    path = tmp_path / "it.tflite"
    report = export.litert(model, path, precision=precision, **ranges)
    assert report.float_tensors == ()
    given, _, interpreter = interpret(path, x)
    spread = np.ptp(outputs(model, x), axis=0).max()
    limit = {"float16": 0.01, "dynamic": 0.1, "int8": 0.3}[precision]
    assert 0 < np.abs(given - outputs(model, x)).max() < limit * spread
    types = {
        "float16": np.float16,
        "dynamic": np.int8,
        "int8": np.int8,
    }
    kept = [x["dtype"] for x in interpreter.get_tensor_details()]
    assert types[precision] in kept
    assert read_metadata(path)["precision"] == precision


@needs_tensorflow
@pytest.mark.filterwarnings("ignore:.*less than 99%")
def test_every_attention_is_wholly_int8(x, tmp_path):
    attentions = (
        CoordinateAttention,
        lambda dtype: CoordinateAttention(axes="height", identity_init=True),
        lambda dtype: CoordinateAttention(axes="width"),
        lambda dtype: SqueezeExcite(reduction=4),
        lambda dtype: CBAM(reduction=4),
    )
    path = tmp_path / "it.tflite"
    report = export.litert(
        network(attentions), path, precision="int8", representative=x
    )
    assert report.float_tensors == ()
    _, operations, interpreter = interpret(path, x[:1])
    # Counted by name, as the name says it: conversions are at both ends, none between.
    assert operations["QUANTIZE"] == operations["DEQUANTIZE"] == 1
    ends = interpreter.get_input_details() + interpreter.get_output_details()
    ends = {tensor["index"] for tensor in ends}
    inside = [
        tensor["dtype"]
        for tensor in interpreter.get_tensor_details()
        if tensor["index"] not in ends
    ]
    assert len(inside) > 50
    assert set(inside) <= {np.int8, np.int32}


@needs_tensorflow
@pytest.mark.parametrize("kind", ["int8", "uint8"])
def test_int8_in_and_out(model, x, tmp_path, kind):
    path = tmp_path / "it.tflite"
    # The batches are not full, and have labels.
    batches = [(x[:5], np.zeros(5)), (x[5:], np.zeros(7))]
    export.litert(
        model,
        path,
        precision="int8",
        representative=batches,
        inference_type=kind,
        labels=LABELS,
    )
    _, operations, interpreter = interpret(path, x[:0])
    # The inside is int8: only uint8 is converted, by the operation of this name.
    assert operations["QUANTIZE"] == {"int8": 0, "uint8": 2}[kind]
    assert operations["DEQUANTIZE"] == 0
    (given,), (taken,) = (
        interpreter.get_input_details(),
        interpreter.get_output_details(),
    )
    assert given["dtype"] == taken["dtype"] == np.dtype(kind)
    scale, zero = given["quantization"]
    quantized = np.clip(
        np.round(x / scale) + zero, *((-128, 127), (0, 255))[kind == "uint8"]
    )
    results, _, _ = interpret(path, quantized)
    scale, zero = taken["quantization"]
    spread = np.ptp(outputs(model, x), axis=0).max()
    difference = (results.astype("float32") - zero) * scale - outputs(model, x)
    assert np.abs(difference).max() < 0.3 * spread


@needs_tensorflow
def test_low_agreement_is_told_by_layer(tmp_path):
    model, x = network(), pictures(60, *SIZE, seed=5)
    # One channel is so large that int8 leaves nothing of the others.
    layer = model.get_layer("depthwise")
    kernel, bias = layer.get_weights()
    kernel[..., 0, 0] *= 0
    bias[0] = 1e3
    layer.set_weights([kernel, bias])
    relu = next(x for x in model.layers if isinstance(x, layers.ReLU))
    relu.max_value = None
    path = tmp_path / "it.tflite"
    with pytest.warns(UserWarning, match="less than 99%"):
        report = export.litert(model, path, precision="int8", representative=x)
    assert path.exists()
    assert report.agreement < 0.99
    # It is lost in the layer whose range it widens, in the order of the layers.
    shares = {error.layer: error.share for error in report.layers}
    assert list(shares)[-1].startswith("PartitionedCall")
    (first, *_) = (layer for layer, share in shares.items() if share > 0.5)
    assert first.startswith("re_lu")
    assert all(error.rms > 0 for error in report.layers[1:])
    assert f"{report.agreement:.2%}" in str(report)
    assert first in str(report)


@needs_tensorflow
def test_litert_in_batches_of_a_model_of_any_size(x, tmp_path):
    model = network(size=(None, None))
    path = tmp_path / "it.tflite"
    with pytest.raises(ValueError, match="`image_size` must be given"):
        export.litert(model, path)
    report = export.litert(model, path, image_size=SIZE, batch_size=5, images=x)
    assert report.agreement == 1
    assert report.images == len(x)
    assert read_metadata(path)["preprocessing"]["input_size"] == list(SIZE)
    _, _, interpreter = interpret(path, x[:0])
    assert interpreter.get_input_details()[0]["shape"].tolist() == [5, *SIZE, 3]


@needs_tensorflow
def test_a_mixed_precision_model_becomes_float32(x, tmp_path):
    model = network(dtype="mixed_float16")
    export.litert(model, tmp_path / "it.tflite")
    given, _, interpreter = interpret(tmp_path / "it.tflite", x)
    kept = {tensor["dtype"] for tensor in interpreter.get_tensor_details()}
    assert np.float16 not in kept
    assert 0 < np.abs(given - outputs(model, x)).max() < 0.01


@needs_tensorflow
@pytest.mark.parametrize(
    "build", [MobileNetV2CA, MobileNeXtCA, lambda alpha, **kw: EfficientNetCA(**kw)]
)
def test_every_builder(build, tmp_path):
    keras.utils.set_random_seed(0)
    shape = (32, 32, 3)
    model = build(input_shape=shape, alpha=0.25, weights=None, classes=5)
    x = images(4, *shape)
    calibrated(model, x)
    export.litert(model, tmp_path / "it.tflite", labels=LABELS)
    given, _, _ = interpret(tmp_path / "it.tflite", x)
    assert_near(given, outputs(model, x), 1e-4)


@needs_tensorflow
@pytest.mark.parametrize("rescaling", [False, True])
def test_litert_metadata_is_as_its_schema_says(model, tmp_path, rescaling):
    if rescaling:
        image = keras.Input((*SIZE, 3))
        x = PreprocessingRecord(RAW_PIXELS)(image)
        body = keras.Model(model.layers[1].output, model.outputs)
        model = keras.Model(image, body(layers.Rescaling(1 / 64, -2)(x)))
    export.litert(model, tmp_path / "it.tflite", labels=LABELS)
    file, graph = litert_description(tmp_path / "it.tflite")
    assert file.string(0) == model.name
    # SubGraphMetadata: 2 inputs, 3 outputs
    # TensorMetadata: 0 name, 3 content, 4 process units, 6 associated files.
    (image,), (scores,) = graph.tables(2), graph.tables(3)
    assert image.string(0) == "image"
    assert image.table(3).value(0, "u1") == 2  # ImageProperties
    properties = image.table(3).table(1)
    assert properties.value(0, "u1") == 1  # RGB
    width, height = (properties.table(1).value(i, "<u4") for i in (0, 1))
    assert (height, width) == SIZE
    (unit,) = image.tables(4)
    assert unit.value(0, "u1") == 1  # NormalizationOptions
    mean, std = (unit.table(1).vector(i, "<f4")[0] for i in (0, 1))
    for level in (0.0, 255.0):
        pixel = expected = np.full((1, 1, 3), level, "float32")
        if not rescaling:
            expected = imagenet_utils.preprocess_input(
                pixel.copy(), data_format="channels_last", mode="torch"
            )
        # One number is for all channels.
        np.testing.assert_allclose(((pixel - mean) / std), expected, rtol=1e-5)
    assert len(mean) == (1 if rescaling else 3)
    (labels,) = scores.tables(6)
    assert labels.string(0) == "labels.txt"
    assert labels.value(2, "u1") == 2  # TENSOR_AXIS_LABELS


@needs_tensorflow
def test_an_operation_that_int8_lacks(x, tmp_path):
    image = keras.Input((*SIZE, 3))
    flat = layers.GlobalAveragePooling2D()(image)
    model = keras.Model(image, keras.ops.erf(layers.Dense(3)(flat)))
    with pytest.raises(ValueError, match="LiteRT cannot express"):
        export.litert(model, tmp_path / "it.tflite", precision="int8", representative=x)
    assert list(tmp_path.iterdir()) == []


@needs_tensorflow
def test_an_activation_that_int8_cannot_scale(x, tmp_path):
    image = keras.Input((*SIZE, 3))
    pooled = layers.GlobalAveragePooling2D()(layers.Conv2D(8, 3)(image))
    dead = layers.Dense(4, "relu", name="dead")(pooled)
    model = keras.Model(image, layers.Dense(3)(dead))
    kernel, bias = model.get_layer("dead").get_weights()
    model.get_layer("dead").set_weights([kernel, bias - 100])
    with pytest.raises(ValueError, match="an activation is 0 for all images"):
        export.litert(model, tmp_path / "it.tflite", precision="int8", representative=x)
    assert list(tmp_path.iterdir()) == []
