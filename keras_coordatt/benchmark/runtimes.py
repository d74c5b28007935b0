"""Ways to run a network: the table of what `keras-coordatt benchmark` times."""

import contextlib
import dataclasses
import functools
import os
import pathlib
import tempfile
import warnings
from collections.abc import Callable, Iterator

import keras
import numpy as np


@dataclasses.dataclass(frozen=True)
class Measure:
    """One way to run a network.

    Attributes:
        title: Name in the table.
        prepare: Takes a model, and returns a function without arguments to be timed.
            Raises an `ImportError` if the runtime is not installed.
        images: Number of images that the function processes.
        calls: Number of calls per timing.
        starts: How often the function is prepared anew in the course of the rounds.
        backend: For a measure that is timed in a process of its own, with one thread,
            the Keras backend there.
    """

    title: str
    prepare: Callable
    images: int
    calls: int
    starts: int = 1
    backend: str | None = None


@contextlib.contextmanager
def single_thread(backend: str) -> Iterator[None]:
    """Lets processes started inside use a backend on the CPU with one thread."""
    names = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")
    settings = {
        "KERAS_BACKEND": backend,
        "CUDA_VISIBLE_DEVICES": "-1",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false "
        "intra_op_parallelism_threads=1",
        **dict.fromkeys(names, "1"),
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def noise(shape, images: int = 8) -> np.ndarray:
    """Returns images for a network with the input shape `(N, H, W, C)`."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(images, *shape[1:])).astype("float32")


def concrete_function(model, batch_size):
    import tensorflow as tf

    signature = tf.TensorSpec((batch_size, *model.input_shape[1:]), "float32")
    run = tf.function(lambda images: model(images, training=False))
    return run.get_concrete_function(signature)


@functools.cache  # several measures run the same file
def exported(model, kind: str) -> bytes:
    """Returns the content of an exported file.

    Args:
        model: The network.
        kind: `"float32"` or `"int8"` for LiteRT, or `"onnx"`.

    Returns:
        The bytes of the file.
    """
    from keras_coordatt.export import litert, onnx

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        # The classes of an untrained network needn't agree.
        warnings.filterwarnings("ignore", ".*the top-1 class is")
        # Of images that batch normalization is calibrated for: others give a random
        # network outputs so large that rounding alone makes them differ.
        images = noise(model.input_shape)
        if kind == "onnx":
            path = pathlib.Path(folder) / "model.onnx"
            onnx(model, path, images=images)
        else:
            path = pathlib.Path(folder) / "model.tflite"
            ranges = images if kind == "int8" else None
            litert(model, path, precision=kind, representative=ranges, images=images)
        return path.read_bytes()


def onnx_run(content: bytes, images: np.ndarray) -> Callable:
    """Returns a function that runs an ONNX file on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        content, options, providers=["CPUExecutionProvider"]
    )
    (image,) = session.get_inputs()
    return lambda: session.run(None, {image.name: images})


def _litert(precision, threads):
    def prepare(model):
        from ai_edge_litert.interpreter import Interpreter

        content = exported(model, precision)
        interpreter = Interpreter(model_content=content, num_threads=threads)
        interpreter.allocate_tensors()
        (image,) = interpreter.get_input_details()
        interpreter.set_tensor(image["index"], noise(model.input_shape, 1))
        return interpreter.invoke

    title = f"LiteRT {precision}, {_threads(threads)}"
    # An interpreter is some percent faster or slower depending on where its memory lies.
    return Measure(title, prepare, 1, 5, starts=5)


def _onnx(batch_size):
    def prepare(model):
        return onnx_run(exported(model, "onnx"), noise(model.input_shape, batch_size))

    return _inference("ONNX Runtime", prepare, batch_size)


def _openvino(batch_size):
    def prepare(model):
        import openvino

        core = openvino.Core()
        # Keras's own export to OpenVINO would miss our lowering of the layer.
        network = core.read_model(exported(model, "onnx"))
        # By default it computes in bfloat16 where the processor can.
        settings = {
            "INFERENCE_NUM_THREADS": 1,
            "INFERENCE_PRECISION_HINT": "f32",
        }
        compiled = core.compile_model(network, "CPU", settings)
        images = noise(model.input_shape, batch_size)
        return lambda: compiled(images)

    return _inference("OpenVINO", prepare, batch_size)


def _graph(batch_size, backend=None):
    def prepare(model):
        import tensorflow as tf

        images = tf.constant(noise(model.input_shape, batch_size))
        graph = concrete_function(model, batch_size)
        return lambda: graph(images)

    return _inference("TF graph", prepare, batch_size, backend)


def _jax(batch_size):
    def prepare(model):
        import jax

        images = jax.numpy.asarray(noise(model.input_shape, batch_size))
        weights = [
            [v.value for v in variables]
            for variables in (model.trainable_variables, model.non_trainable_variables)
        ]
        call = jax.jit(lambda *given: model.stateless_call(*given, training=False)[0])
        return lambda: jax.block_until_ready(call(*weights, images))

    return _inference("JAX jit", prepare, batch_size, "jax")


def _torch(batch_size):
    def prepare(model):
        import torch

        images = torch.from_numpy(noise(model.input_shape, batch_size))

        def run():
            with torch.inference_mode():
                model(images, training=False)

        return run

    return _inference("Keras on PyTorch", prepare, batch_size, "torch")


def _inference(name, prepare, batch_size, backend=None):
    threads = "all cores" if name == "TF graph" and not backend else _threads(1)
    title = f"{name}, batch {batch_size}, {threads}"
    calls = 5 if batch_size == 1 else 1
    return Measure(title, prepare, batch_size, calls, backend=backend)


def _threads(number):
    return "1 thread" if number == 1 else f"{number} threads"


def _training(batch_size):
    def prepare(model):
        model = keras.models.clone_model(model)
        model.compile("sgd", "sparse_categorical_crossentropy")
        images = keras.random.normal((batch_size, *model.input_shape[1:]))
        labels = np.zeros(batch_size, "int32")
        return lambda: model.train_on_batch(images, labels)

    return Measure(f"training step, batch {batch_size}", prepare, batch_size, 1)


MEASURES = {
    "litert_float32_1": _litert("float32", 1),
    "litert_float32_2": _litert("float32", 2),
    "litert_int8_1": _litert("int8", 1),
    "litert_int8_2": _litert("int8", 2),
    "onnx_1": _onnx(1),
    "onnx_16": _onnx(16),
    "openvino_1": _openvino(1),
    "openvino_16": _openvino(16),
    "graph_1": _graph(1),
    "graph_16": _graph(16),
    "graph_1_thread_1": _graph(1, "tensorflow"),
    "graph_16_thread_1": _graph(16, "tensorflow"),
    "jax_1": _jax(1),
    "keras_torch_1": _torch(1),
    "train_32": _training(32),
}
# Inference in this process, which needs the TensorFlow backend
INFERENCE = tuple(
    name
    for name, measure in MEASURES.items()
    if not name.startswith("train") and not measure.backend
)
