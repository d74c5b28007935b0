import keras
import numpy as np
import pytest
from backends import gradient, needs_tensorflow
from keras import ops
from networks import images

from keras_coordatt.segmentation import ResizeLike

# From and to: more, fewer, no multiple, the same, and one pixel.
SIZES = [
    ((15, 19), (225, 301)),
    ((6, 4), (3, 7)),
    ((1, 1), (5, 4)),
    ((2, 3), (2, 3)),
    ((5, 3), (1, 1)),
]


def as_format(x, data_format):
    return x if data_format == "channels_last" else np.moveaxis(x, 3, 1)


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize("old, new", SIZES)
def test_bilinear_with_half_pixel_centers(old, new, data_format, bilinear):
    x = images(2, *old, 3)
    layer = ResizeLike(data_format=data_format)
    inputs = [as_format(y, data_format) for y in (x, np.zeros((2, *new, 1)))]
    y = ops.convert_to_numpy(layer(inputs))
    expected = as_format(bilinear(x, new), data_format)
    assert y.shape == expected.shape
    np.testing.assert_allclose(y, expected, atol=2e-5)
    shapes = [(None, *inputs[0].shape[1:]), (None, *inputs[1].shape[1:])]
    assert layer.compute_output_shape(shapes) == (None, *expected.shape[1:])


@pytest.mark.parametrize("old, new", SIZES[:2])
def test_as_pytorch(old, new):
    torch = pytest.importorskip("torch")
    x = images(2, *old, 3)
    expected = torch.nn.functional.interpolate(
        torch.tensor(x.transpose(0, 3, 1, 2)), new, mode="bilinear", align_corners=False
    )
    layer = ResizeLike(data_format="channels_last")
    y = ops.convert_to_numpy(layer([x, np.zeros((2, *new, 1))]))
    np.testing.assert_allclose(y, expected.numpy().transpose(0, 2, 3, 1), atol=2e-5)


@needs_tensorflow
@pytest.mark.parametrize("dtype, limit", [("float32", 2e-5), ("mixed_float16", 4e-3)])
@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_a_graph_for_any_size(data_format, dtype, limit, bilinear):
    import tensorflow as tf

    shape = (None, None, None, 3)
    if data_format == "channels_first":
        shape = (None, 3, None, None)
    layer = ResizeLike(data_format=data_format, dtype=dtype)
    function = tf.function(
        lambda x, like: layer([x, like]), input_signature=[tf.TensorSpec(shape)] * 2
    )
    for old, new in SIZES:
        x, like = images(2, *old, 3), images(2, *new, 3)
        y = function(*(as_format(y, data_format) for y in (x, like)))
        assert y.dtype == layer.compute_dtype
        expected = as_format(bilinear(x, new), data_format)
        np.testing.assert_allclose(y.numpy(), expected, atol=limit)


def test_gradient_is_the_transpose(bilinear):
    # <y, A x> = <A' y, x>, for any x and y.
    x, y = images(1, 3, 5, 2), images(1, 8, 7, 2, seed=1)
    like = ops.convert_to_tensor(y)
    layer = ResizeLike(data_format="channels_last")
    back = gradient(lambda x: layer([x, like]) * like, x)
    expected = (bilinear(x, (8, 7)) * y).sum()
    np.testing.assert_allclose((back * x).sum(), expected, rtol=1e-4)


def test_configuration():
    layer = ResizeLike(data_format="channels_first", name="bigger", dtype="float16")
    config = layer.get_config()
    assert config["data_format"] == "channels_first"
    assert ResizeLike.from_config(config).get_config() == config
    assert keras.saving.get_registered_name(ResizeLike) == "keras_coordatt>ResizeLike"
    y = layer([images(1, 2, 3, 3), images(1, 1, 6, 9)])
    assert tuple(y.shape) == (1, 2, 6, 9)
    assert keras.backend.standardize_dtype(y.dtype) == "float16"


def test_unknown_sizes_stay_unknown():
    inputs = [keras.Input((None, 4, 2)), keras.Input((None, None, 3))]
    y = ResizeLike(data_format="channels_last")(inputs)
    assert y.shape == (None, None, None, 2)


def test_wrong_arguments():
    with pytest.raises(ValueError, match="`data_format`.*'NHWC'"):
        ResizeLike(data_format="NHWC")
    for inputs in ([images(1, 2, 2, 1)], [images(1, 2, 2, 1), images(1, 2)]):
        with pytest.raises(ValueError, match="two inputs of rank 4.*Received"):
            ResizeLike()(inputs)
