import keras
import numpy as np
import pytest
from backends import BACKEND, gradient
from keras import ops
from networks import assert_near, images, outputs

from keras_coordatt import MobileNetV2CA
from keras_coordatt.layers import atrous
from keras_coordatt.segmentation import DeepLabV3


def convolutions(shape, **arguments):
    """Keras's layer and ours, with the same weights."""
    theirs, ours = (
        cls(5, **{"kernel_size": 3, "padding": "same", **arguments})
        for cls in (keras.layers.Conv2D, atrous.Conv2D)
    )
    theirs.build(shape)
    ours.build(shape)
    rng = np.random.default_rng(0)
    values = [rng.normal(size=w.shape) for w in theirs.get_weights()]
    theirs.set_weights(values)
    ours.set_weights(values)
    return theirs, ours


@pytest.mark.parametrize(
    "arguments",
    [
        *({"dilation_rate": rate} for rate in (1, 3, 4, 5, 6, 9, (5, 3), (3, 9))),
        {"dilation_rate": 7, "kernel_size": (5, 3), "activation": "relu"},
        # The middle of these is not at a position of the output.
        {"dilation_rate": 6, "kernel_size": 2},
        {"strides": 2, "kernel_size": 5},
        {"dilation_rate": 2, "padding": "valid"},
    ],
    ids=str,
)
def test_equals_kerass_own(arguments):
    shape = (2, 5, 6, 3)
    theirs, ours = convolutions(shape, data_format="channels_last", **arguments)
    x = images(*shape)
    expected = outputs(theirs, x)
    assert_near(outputs(ours, x), expected, 1e-6)
    weight = ops.convert_to_tensor(images(*expected.shape, seed=1))
    grad = gradient(lambda x: ours(x) * weight, x)
    assert_near(grad, gradient(lambda x: theirs(x) * weight, x), 1e-6)

    def kernel_gradient(layer):
        images, kernel = ops.convert_to_tensor(x), layer.get_weights()[0]
        return gradient(lambda k: layer.convolution_op(images, k) * weight, kernel)

    assert_near(kernel_gradient(ours), kernel_gradient(theirs), 1e-6)


@pytest.mark.parametrize("rate, rows, columns", [(5, [1], [0, 1, 2]), (6, [1], [1])])
def test_what_falls_on_padding_only_is_not_read(rate, rows, columns):
    shape = (1, 5, 6, 3)
    _, ours = convolutions(shape, dilation_rate=rate, data_format="channels_last")
    kernel, bias = ours.get_weights()
    read = np.full(kernel.shape, np.nan)
    read[np.ix_(rows, columns)] = kernel[np.ix_(rows, columns)]
    ours.set_weights([read, bias])
    assert np.isfinite(outputs(ours, images(*shape))).all()


@pytest.mark.skipif(BACKEND == "tensorflow", reason="channels_last only on its CPU")
@pytest.mark.parametrize("rate", [4, 5, 6])
def test_channels_first(rate):
    theirs, ours = convolutions(
        (2, 3, 5, 6), dilation_rate=rate, data_format="channels_first"
    )
    x = images(2, 3, 5, 6)
    assert_near(outputs(ours, x), outputs(theirs, x), 1e-6)


def test_images_of_any_size():
    shape = (None, None, None, 3)
    theirs, ours = convolutions(shape, dilation_rate=4, data_format="channels_last")
    inputs = keras.Input(shape[1:])
    theirs, ours = (keras.Model(inputs, layer(inputs)) for layer in (theirs, ours))
    for side in (3, 7):
        x = images(2, side, 5, 3)
        expected = theirs.predict(x, verbose=0)
        assert_near(ours.predict(x, verbose=0), expected, 1e-6)


def test_weights_fit_models_with_kerass_own(tmp_path, monkeypatch):
    def segmenter():
        backbone = MobileNetV2CA(
            (32, 48, 3), alpha=0.25, weights=None, include_top=False, output_stride=16
        )
        return DeepLabV3(backbone, 2, filters=4)

    ours = segmenter()
    monkeypatch.setattr(atrous, "Conv2D", keras.layers.Conv2D)
    theirs = segmenter()
    assert type(ours.get_layer("aspp_1")) is not type(theirs.get_layer("aspp_1"))
    theirs.save_weights(tmp_path / "theirs.weights.h5")
    ours.load_weights(tmp_path / "theirs.weights.h5")
    for w, expected in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_array_equal(w, expected)
