"""Exported files give what the Keras model gives, and say how to use them."""

import collections
import functools
import json
import warnings
import zipfile

import keras
import numpy as np
import pytest
from backends import BACKEND, needs_tensorflow
from keras import layers
from keras.applications import imagenet_utils
from networks import assert_near, images, lively, outputs

from keras_coordatt import CBAM, CoordinateAttention, SqueezeExcite, export
from keras_coordatt.applications import (
    EfficientNetCA,
    MobileNetV2CA,
    MobileNeXtCA,
    mobilenet_v2_ca,
)
from keras_coordatt.cli import main
from keras_coordatt.detection import SSDLite
from keras_coordatt.export import Preprocessing, read_metadata
from keras_coordatt.export._litert import PRECISIONS
from keras_coordatt.preprocessing import IMAGENET, RAW_PIXELS, PreprocessingRecord
from keras_coordatt.segmentation import DeepLabV3

needs_saved_model = pytest.mark.skipif(BACKEND == "torch", reason="no SavedModel")
SIZE = (32, 24)
LABELS = ["ant", "bee", "cat", "dog", "elk"]


@pytest.fixture
def onnxruntime():
    """ONNX Runtime, where ONNX can be written."""
    if BACKEND == "jax":
        pytest.skip("no ONNX")
    for name in ["onnx"] + ["tf2onnx"] * (BACKEND == "tensorflow"):
        pytest.importorskip(name)
    return pytest.importorskip("onnxruntime")


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
    lively(model, pictures(8, *[side or 32 for side in size]))
    # Classes that are told apart.
    head = model.get_layer("predictions")
    kernel, bias = head.get_weights()
    head.set_weights([5 * (kernel - kernel.mean(1, keepdims=True)), 0 * bias])
    return model


def pictures(*shape, seed=0):
    """Normalized images that differ in colour too, as noise does not."""
    colour = np.random.default_rng(seed).normal(size=(shape[0], 1, 1, 3))
    return (images(*shape, 3, seed=seed) + 2 * colour).astype("float32")


@pytest.fixture(scope="module")
def model():
    return network()


@pytest.fixture(scope="module")
def x():
    return pictures(12, *SIZE, seed=5)


def interpret(path, x):
    """What a LiteRT file gives for images one by one, and its operations."""
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


def run_lite(path, x):
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(str(path)).get_signature_runner()
    parts = [runner(image=image[None]) for image in x]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


# SavedModel


@needs_saved_model
def test_a_saved_model_takes_inputs_and_images(model, x, tmp_path):
    import tensorflow as tf

    report = export.saved_model(model, tmp_path / "it", labels=LABELS)
    assert report.path == tmp_path / "it"
    assert report.difference["predictions"] < 1e-5
    loaded = tf.saved_model.load(str(tmp_path / "it"))
    assert_near(loaded.serve(x).numpy(), outputs(model, x), 1e-4)
    assert set(loaded.signatures) == {"serve", "serving_default", "serve_images"}

    # Images of the model's size are only normalized.
    pictures = np.random.default_rng(0).integers(0, 256, (3, *SIZE, 3), "uint8")
    normal = imagenet_utils.preprocess_input(
        pictures.astype("float32"), data_format="channels_last", mode="torch"
    )
    served = loaded.serve_images(pictures).numpy()
    assert_near(served, outputs(model, normal), 1e-4)
    # Twice as large, with each pixel four times, they are the same to a rounding.
    nearest = Preprocessing(interpolation="nearest", antialias=False)
    export.saved_model(model, tmp_path / "it", preprocessing=nearest)
    loaded = tf.saved_model.load(str(tmp_path / "it"))
    larger = pictures.repeat(2, axis=1).repeat(2, axis=2)
    np.testing.assert_allclose(loaded.serve_images(larger), served, atol=1e-6)


@needs_saved_model
def test_images_are_resized_as_for_training(model, tmp_path):
    import tensorflow as tf

    from keras_coordatt.applications.mobilenet_v2_ca import preprocess_input
    from keras_coordatt.data import load_classification

    export.saved_model(model, tmp_path / "it")
    loaded = tf.saved_model.load(str(tmp_path / "it"))
    read = {
        size: next(
            iter(
                load_classification(
                    "digits/classification", "test", size, 4, preprocess=preprocess
                )
            )
        )[0].numpy()
        for size, preprocess in (((50, 61), None), (SIZE, None))
    }
    small = tf.image.resize(read[50, 61], SIZE, antialias=True).numpy().round()
    expected = outputs(model, preprocess_input(small))
    served = loaded.serve_images(read[50, 61].astype("uint8"))
    np.testing.assert_allclose(served, expected, atol=1e-6)


@needs_saved_model
def test_a_saved_model_replaces_only_its_like(model, tmp_path):
    export.saved_model(model, tmp_path / "it", labels=LABELS)
    export.saved_model(model, tmp_path / "it")
    assert read_metadata(tmp_path / "it")["labels"] is None
    assert [path.name for path in tmp_path.iterdir()] == ["it"]

    other = tmp_path / "letters"
    other.mkdir()
    (other / "dear.txt").write_text("dear")
    with pytest.raises(ValueError, match="is not a SavedModel"):
        export.saved_model(model, other)
    assert [path.name for path in other.iterdir()] == ["dear.txt"]


# LiteRT


@needs_tensorflow
def test_litert_float32_is_folded(model, x, tmp_path):
    report = export.litert(model, tmp_path / "it.tflite", images=x)
    assert report.agreement == 1
    given, operations, _ = interpret(tmp_path / "it.tflite", x)
    assert_near(given, outputs(model, x), 1e-4)
    assert report.size == (tmp_path / "it.tflite").stat().st_size
    assert operations["MUL"] == 2  # a gate each: no normalization is left
    assert operations["ADD"] == operations["SUB"] == 0
    assert operations["SHAPE"] == 0
    # One for both axes, one a gate, and the classifier.
    assert operations["FULLY_CONNECTED"] == 4
    assert operations["HARD_SWISH"] == 1
    assert operations["LOGISTIC"] == 2


@needs_tensorflow
@pytest.mark.parametrize("precision", PRECISIONS[1:])
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
    assert operations["HARD_SWISH"] == 3  # of coordinate attention's three kinds


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
    # The inside is int8: uint8 is shifted at both ends.
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
    shape = (32, 32, 3)
    model = build(input_shape=shape, alpha=0.25, weights=None, classes=5)
    x = images(4, *shape)
    lively(model, x)
    export.litert(model, tmp_path / "it.tflite", labels=LABELS)
    given, _, _ = interpret(tmp_path / "it.tflite", x)
    assert_near(given, outputs(model, x), 1e-4)


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


@needs_tensorflow
@pytest.mark.parametrize("rescaling", [False, True])
def test_litert_metadata_is_as_its_schema_says(model, tmp_path, rescaling):
    if rescaling:
        image = keras.Input((*SIZE, 3))
        x = PreprocessingRecord(RAW_PIXELS)(image)
        body = keras.Model(model.layers[1].output, model.outputs)
        model = keras.Model(image, body(layers.Rescaling(1 / 64, -2)(x)))
    export.litert(model, tmp_path / "it.tflite", labels=LABELS)
    # Model: 4 buffers, 6 metadata; Metadata: 0 name, 1 buffer; Buffer: 0 data.
    file = Table.root((tmp_path / "it.tflite").read_bytes())
    entry = next(x for x in file.tables(6) if x.string(0) == "TFLITE_METADATA")
    data = file.tables(4)[entry.value(1, "<u4")].vector(0, "u1")[0].tobytes()
    assert data[4:8] == b"M001"
    # ModelMetadata: 0 name, 3 subgraphs; SubGraphMetadata: 2 inputs, 3 outputs.
    described = Table.root(data)
    assert described.string(0) == model.name
    (graph,) = described.tables(3)
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


# ONNX


def test_onnx_takes_any_batch(model, x, tmp_path, onnxruntime):
    path = tmp_path / "it.onnx"
    export.onnx(model, path, labels=LABELS)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["batch", *SIZE, 3]
    for n in (1, 3):
        (given,) = session.run(["predictions"], {"image": x[:n]})
        np.testing.assert_allclose(given, outputs(model, x[:n]), atol=1e-5)
    props = session.get_modelmeta().custom_metadata_map
    assert json.loads(props["labels"]) == LABELS


# Every format

FORMATS = {
    "saved_model": pytest.param(export.saved_model, "it", marks=needs_saved_model),
    "litert": pytest.param(export.litert, "it.tflite", marks=needs_tensorflow),
    "onnx": pytest.param(export.onnx, "it.onnx"),
}
each_format = pytest.mark.parametrize("write, name", FORMATS.values(), ids=FORMATS)


@pytest.fixture
def path(name, tmp_path, request):
    if name.endswith(".onnx"):
        request.getfixturevalue("onnxruntime")
    return tmp_path / name


@each_format
def test_metadata_is_read_back(model, path, write):
    how = Preprocessing((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bicubic", antialias=False)
    write(model, path, labels=LABELS, preprocessing=how)
    found = read_metadata(path)
    assert found["labels"] == LABELS
    assert found["name"] == "small"
    assert found["preprocessing"] == {
        "input_size": list(SIZE),
        "color": "RGB",
        "data_format": "channels_last",
        "interpolation": "bicubic",
        "antialias": False,
        "scale": 255,
        "mean": [0.1, 0.2, 0.3],
        "std": [0.4, 0.5, 0.6],
    }
    assert found["versions"]["keras"] == keras.__version__
    if path.suffix == ".tflite":
        with zipfile.ZipFile(path) as archive:
            assert archive.read("labels.txt").decode().split() == LABELS


@each_format
def test_several_outputs_keep_their_names(path, write, x):
    image = keras.Input((*SIZE, 3))
    map = CoordinateAttention()(layers.Conv2D(8, 3)(image))
    flat = layers.GlobalAveragePooling2D()(map)
    scores, box = layers.Dense(3, name="scores")(flat), layers.Dense(4)(flat)
    # Not in the order of the alphabet.
    model = keras.Model(image, {"scores": scores, "map": map, "box": box})
    lively(model, x)
    report = write(model, path, labels=LABELS)
    assert set(report.difference) == {"scores", "map", "box"}
    if path.suffix == ".tflite":
        given = run_lite(path, x[:1])
    elif path.suffix == ".onnx":
        import onnxruntime

        names = ["box", "scores", "map"]
        session = onnxruntime.InferenceSession(path)
        given = dict(zip(names, session.run(names, {"image": x[:1]})))
    else:
        import tensorflow as tf

        loaded = tf.saved_model.load(str(path))
        given = loaded.serve(x[:1])
    for key, value in model(x[:1]).items():
        np.testing.assert_allclose(
            given[key], keras.ops.convert_to_numpy(value), atol=1e-4
        )


@functools.cache
def dense_network(task):
    """A network that gives more than scores of classes, and the names of that."""
    stride = 16 if task == "segmentation" else 32
    # JAX takes forever to compile for images of any size.
    size = None if task == "segmentation" and BACKEND != "jax" else 64
    stages = [(6 if i else 1, 8 * i + 8, 1, min(i, 1) + 1) for i in range(5)]
    with pytest.MonkeyPatch.context() as patch:
        # A block a stage, as what takes time is their number.
        patch.setattr(mobilenet_v2_ca, "STAGES", stages)
        backbone = MobileNetV2CA(
            (size, size, 3), include_top=False, weights=None, output_stride=stride
        )
    if task == "segmentation":
        return lively(DeepLabV3(backbone, 5, filters=16), scenes()), {"logits"}
    model = lively(SSDLite(backbone, 5), scenes())
    if task == "detection":
        return model, {"boxes", "classes"}
    return model.detector(suppress=False), {"boxes", "scores"}


def scenes():
    return pictures(4, 64, 64, seed=3)


@each_format
@pytest.mark.parametrize("task", ["segmentation", "detections"])
def test_dense_networks(path, write, task):
    model, names = dense_network(task)
    x = scenes()
    size = {} if path.suffix == "" else {"image_size": 64}
    report = write(model, path, labels=LABELS, **size)
    assert report.difference.keys() == names
    # `write` compares on noise: here it is pictures.
    if path.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path)
        given = dict(zip(names, session.run([*names], {"image": x})))
    elif path.suffix == ".tflite":
        given = run_lite(path, x)
    else:
        import tensorflow as tf

        loaded = tf.saved_model.load(str(path))
        given = loaded.serve(x)
    expected = model(x, training=False)
    if task == "segmentation":
        expected = {"logits": expected}
        given = given if isinstance(given, dict) else {"logits": given}
    for name in names:
        theirs = keras.ops.convert_to_numpy(expected[name])
        assert_near(np.asarray(given[name]), theirs, 1e-4)


@needs_tensorflow
@pytest.mark.parametrize("task", ["segmentation", "detection"])
def test_dense_networks_are_wholly_int8(tmp_path, task):
    model, names = dense_network(task)
    path = tmp_path / "it.tflite"
    x = scenes()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*the top-1 class is")
        report = export.litert(
            model, path, precision="int8", representative=x, image_size=64
        )
    assert report.difference.keys() == names
    assert report.float_tensors == ()
    if task == "segmentation":
        ours, theirs = run_lite(path, x)["logits"], outputs(model, x)
        assert report.agreement == np.mean(ours.argmax(3) == theirs.argmax(3))
    else:
        assert report.agreement is None


@each_format
def test_a_list_of_outputs(path, write, x):
    image = keras.Input((*SIZE, 3))
    flat = layers.GlobalAveragePooling2D()(layers.Conv2D(8, 3)(image))
    model = keras.Model(image, [layers.Dense(n, name=f"d{n}")(flat) for n in (3, 2)])
    report = write(lively(model, x), path)
    assert list(report.difference) == ["d3", "d2"]


class Broken(layers.Layer):
    """Gives something else once it is compiled."""

    def call(self, x):
        if BACKEND == "tensorflow":
            import tensorflow as tf

            compiled = not tf.executing_eagerly()
        elif BACKEND == "jax":
            import jax

            compiled = isinstance(x, jax.core.Tracer)
        else:
            import torch

            compiled = torch.jit.is_tracing()
        return x * 1.01 if compiled else x


@each_format
def test_a_difference_is_an_error_and_leaves_nothing(path, write, x, model):
    image = keras.Input((*SIZE, 3))
    flat = layers.GlobalAveragePooling2D()(layers.Conv2D(8, 3)(image))
    broken = lively(keras.Model(image, Broken(name="broken")(flat)), x)
    with pytest.raises(ValueError, match="largest difference of 'broken' is 0"):
        write(broken, path)
    assert list(path.parent.iterdir()) == []

    write(model, path, labels=LABELS)
    with pytest.raises(ValueError, match="largest difference"):
        write(broken, path)
    assert [x.name for x in path.parent.iterdir()] == [path.name]
    assert read_metadata(path)["labels"] == LABELS


@each_format
def test_a_network_that_takes_bytes_says_so(path, write):
    image = keras.Input((*SIZE, 3))
    x = layers.Rescaling(1 / 127.5, -1)(PreprocessingRecord(RAW_PIXELS)(image))
    flat = layers.GlobalAveragePooling2D()(layers.Conv2D(8, 3)(x))
    model = keras.Model(image, layers.Dense(3)(flat))
    write(model, path)
    how = read_metadata(path)["preprocessing"]
    bytes_ = np.arange(256) / how["scale"]
    for mean, std in zip(how["mean"], how["std"]):
        np.testing.assert_allclose((bytes_ - mean) / std, np.arange(256), atol=1e-4)
    if path.name == "it":
        import tensorflow as tf

        pictures = np.random.default_rng(0).integers(0, 256, (2, *SIZE, 3), "uint8")
        loaded = tf.saved_model.load(str(path))
        served = loaded.serve_images(pictures)
        np.testing.assert_allclose(served, outputs(model, pictures), atol=1e-4)


@needs_saved_model
def test_a_mixed_precision_saved_model(x, tmp_path):
    model = network(dtype="mixed_float16")
    report = export.saved_model(model, tmp_path / "it")
    assert report.difference["predictions"] < 0.01


# What goes wrong


def test_other_backends_are_told_what_to_do(model, tmp_path):
    can = {
        "tensorflow": {"saved_model", "litert", "onnx"},
        "jax": {"saved_model"},
        "torch": {"onnx"},
    }[BACKEND]
    for name in {"saved_model", "litert", "onnx"} - can:
        with pytest.raises(ValueError, match="KERAS_BACKEND=tensorflow"):
            getattr(export, name)(model, tmp_path / "it")
    assert list(tmp_path.iterdir()) == []


@needs_tensorflow
@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"path": "it.lite"}, "`path` must end in .tflite"),
        ({"precision": "int4"}, "`precision` must be one of"),
        ({"precision": "int8"}, "`representative` is needed"),
        ({"representative": np.zeros((1, *SIZE, 3))}, "`representative` is needed"),
        ({"inference_type": "int8"}, "`inference_type` is float32 unless"),
        ({"inference_type": "int4"}, "`inference_type` must be one of"),
        ({"batch_size": 0}, "`batch_size` must be a positive integer"),
        ({"images": np.zeros((1, 9, 9, 3))}, r"`images` must be images \(N, 32, 24, 3"),
        ({"images": np.zeros((0, *SIZE, 3))}, "`images` must be images"),
        ({"images": []}, "Received: none"),
        ({"image_size": 64}, "`image_size` must be the model's"),
        ({"labels": ["one"]}, "`labels` must be strings, one per class, 5 of them"),
        ({"labels": [1, 2, 3, 4, 5]}, "`labels` must be strings"),
        ({"preprocessing": Preprocessing((0.5,), (0.5,))}, "the 3 channels"),
        ({"model": "it.keras"}, "`model` must be a keras.Model"),
    ],
)
def test_arguments_are_checked(model, tmp_path, arguments, message):
    arguments = {"model": model, "path": "it.tflite", **arguments}
    arguments["path"] = tmp_path / arguments["path"]
    with pytest.raises(ValueError, match=message):
        export.litert(**arguments)
    assert list(tmp_path.iterdir()) == []


@each_format
def test_a_folder_that_is_not_there(model, path, write):
    missing = path.parent / "missing" / path.name
    with pytest.raises(
        ValueError, match="`path` must be in an existing folder.*missing"
    ):
        write(model, missing)
    assert not missing.parent.exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"std": (1, 1, 0)}, "`std`"),
        ({"mean": (1,)}, "`mean` and `std`"),
        ({"interpolation": "best"}, "`interpolation` must be one of"),
        ({"antialias": 1}, "`antialias` must be one of"),
    ],
)
def test_preprocessing_is_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        Preprocessing(**arguments)


def test_a_model_without_an_image_is_refused(tmp_path):
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2)])
    with pytest.raises(ValueError, match="one input, a batch of images"):
        {"tensorflow": export.litert, "jax": export.saved_model, "torch": export.onnx}[
            BACKEND
        ](
            model,
            tmp_path
            / {"tensorflow": "a.tflite", "jax": "a", "torch": "a.onnx"}[BACKEND],
        )


def test_a_file_without_metadata(tmp_path):
    for name in ("a.tflite", "a.onnx", "a"):
        with pytest.raises(FileNotFoundError):
            read_metadata(tmp_path / name)
    (tmp_path / "a.tflite").write_bytes(b"TFL3")
    (tmp_path / "a").mkdir()
    for name in ("a.tflite", "a"):
        with pytest.raises(ValueError, match="no metadata of keras_coordatt"):
            read_metadata(tmp_path / name)


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
    map = layers.GlobalAveragePooling2D()(layers.Conv2D(8, 3)(image))
    dead = layers.Dense(4, "relu", name="dead")(map)
    model = keras.Model(image, layers.Dense(3)(dead))
    kernel, bias = model.get_layer("dead").get_weights()
    model.get_layer("dead").set_weights([kernel, bias - 100])
    with pytest.raises(ValueError, match="an activation is 0 for all images"):
        export.litert(model, tmp_path / "it.tflite", precision="int8", representative=x)
    assert list(tmp_path.iterdir()) == []


# The command line


def command(*arguments):
    return main(["export", *map(str, arguments)])


@pytest.fixture
def saved(model, tmp_path):
    model.save(tmp_path / "it.keras")
    return tmp_path / "it.keras"


@each_format
def test_exports_on_the_command_line(saved, path, write, name, capsys):
    (path.parent / "labels.txt").write_text("\n".join(LABELS))
    out = path.parent / "new" / name
    assert command(saved, out, "--labels", path.parent / "labels.txt") == 0
    assert capsys.readouterr().out.startswith(f"{out}: ")
    assert read_metadata(out)["labels"] == LABELS
    assert read_metadata(out)["format"] == write.__name__


@needs_tensorflow
def test_exports_int8_on_the_command_line(saved, tmp_path, capsys):
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for label in LABELS:
            folder = tmp_path / "data" / split / label
            folder.mkdir(parents=True)
            for i in range(3):
                image = rng.integers(0, 256, (40, 30, 3), "uint8")
                image = image // 4 + rng.integers(0, 190, (3,), "uint8")
                keras.utils.save_img(folder / f"{i}.png", image, scale=False)
    out = tmp_path / "it.tflite"
    data = ("--data", tmp_path / "data")
    assert command(saved, out, "--precision", "int8", *data) == 0
    assert "compared on 15 images\n" in capsys.readouterr().out
    found = read_metadata(out)
    assert found["labels"] == LABELS
    assert found["precision"] == "int8"


@pytest.mark.parametrize(
    "out, options, message",
    [
        ("it.tflite", ["--precision", "int8"], "--precision int8 needs --data"),
        ("it.onnx", ["--precision", "int8"], "--precision is for OUT"),
        ("it.h5", [], "OUT must end in .tflite or .onnx"),
    ],
)
def test_a_wrong_command_is_told(saved, tmp_path, capsys, out, options, message):
    assert command(saved, tmp_path / out, *options) == 1
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [saved]
