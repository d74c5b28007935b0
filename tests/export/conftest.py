import pytest
from backends import BACKEND
from exports import SIZE, network, pictures


@pytest.fixture
def onnxruntime():
    """ONNX Runtime, where ONNX can be written."""
    if BACKEND == "jax":
        pytest.skip("no ONNX")
    for name in ["onnx"] + ["tf2onnx"] * (BACKEND == "tensorflow"):
        pytest.importorskip(name)
    return pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def model():
    return network()


@pytest.fixture(scope="module")
def x():
    return pictures(12, *SIZE, seed=5)


@pytest.fixture
def path(name, tmp_path, request):
    if name.endswith(".onnx"):
        request.getfixturevalue("onnxruntime")
    return tmp_path / name
