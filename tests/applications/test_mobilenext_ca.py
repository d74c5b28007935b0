import keras
import numpy as np
import pytest
from keras import ops
from networks import assert_near, calibrated, copy_weights, count, images, outputs

from keras_coordatt import MobileNeXtCA
from keras_coordatt.applications import mobilenext_names

# The network at alpha 1, block for block, as the authors' detection code gives it:
# input, narrow and output channels, stride, and which parts there are: D the first
# depthwise convolution, A attention, d the last depthwise convolution, + the residual.
BLOCKS = [
    (32, 16, 96, 2, "Dd"),
    (96, 32, 144, 1, "DAd"),
    (144, 32, 192, 2, "d"),
    (192, 32, 192, 1, "DAd+"),
    (192, 32, 192, 1, "DAd+"),
    (192, 48, 288, 2, "d"),
    (288, 48, 288, 1, "DAd+"),
    (288, 48, 288, 1, "DAd+"),
    (288, 64, 384, 1, ""),
    (384, 64, 384, 1, "DAd+"),
    (384, 64, 384, 1, "DAd+"),
    (384, 64, 384, 1, "DAd+"),
    (384, 96, 576, 2, "d"),
    (576, 96, 576, 1, "DAd+"),
    (576, 96, 576, 1, "DAd+"),
    (576, 96, 576, 1, "DAd+"),
    (576, 160, 960, 1, ""),
    (960, 160, 960, 1, "DAd+"),
    (960, 160, 960, 1, "DAd+"),
    (960, 208, 1280, 1, "DAd"),
]


class Reference:
    """The network in NumPy, from the table above, with a model's weights."""

    def __init__(self, model):
        self.layers = {layer.name: layer for layer in model.layers if layer.weights}

    def weights(self, name):
        return self.layers.pop(name).get_weights()

    def norm(self, x, name):
        gamma, beta, mean, variance = self.weights(name)
        return (x - mean) / np.sqrt(variance + 1e-5) * gamma + beta

    def windows(self, x, stride):
        """The nine positions of a 3x3 kernel."""
        _, h, w, _ = x.shape
        x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        return {
            (i, j): x[:, i : i + h : stride, j : j + w : stride]
            for i in range(3)
            for j in range(3)
        }

    def depthwise(self, x, stride, name):
        (kernel,) = self.weights(name)
        places = self.windows(x, stride).items()
        return self.norm(sum(x * kernel[i][..., 0] for i, x in places), f"{name}_BN")

    def pointwise(self, x, channels, name):
        (kernel,) = self.weights(name)
        assert kernel.shape == (1, 1, x.shape[3], channels)
        return self.norm(x @ kernel[0, 0], f"{name}_BN")

    def block(self, x, prefix, channels, narrow, out, stride, parts):
        assert x.shape[3] == channels
        y = x
        if "D" in parts:
            y = self.depthwise(y, 1, f"{prefix}_depthwise").clip(0, 6)
        if "A" in parts:
            attention = self.layers.pop(f"{prefix}_attention")
            y = ops.convert_to_numpy(attention(y.astype("float32")))
        y = self.pointwise(y, narrow, f"{prefix}_reduce")
        y = self.pointwise(y, out, f"{prefix}_expand").clip(0, 6)
        if "d" in parts:
            y = self.depthwise(y, stride, f"{prefix}_depthwise_2")
        return x + y if "+" in parts else y

    def __call__(self, x):
        (kernel,) = self.weights("Conv1")
        x = sum(x @ kernel[i] for i, x in self.windows(x, 2).items())
        x = self.norm(x, "bn_Conv1").clip(0, 6)
        for i, row in enumerate(BLOCKS):
            x = self.block(x, f"block_{i}", *row)
        kernel, bias = self.weights("predictions")
        return x, x.mean((1, 2)) @ kernel + bias


def test_follows_the_table(assert_within):
    x = images(4, 64, 32, 3)
    model = MobileNeXtCA((64, 32, 3), classes=3, classifier_activation=None)
    calibrated(model, x)
    last = model.get_layer("block_19_depthwise_2_BN").output
    taps = keras.Model(model.input, [last, model.output])
    reference = Reference(model)
    for name, ours, theirs in zip(
        ("features", "logits"), taps(x, training=False), reference(x), strict=True
    ):
        difference = np.abs(ops.convert_to_numpy(ours) - theirs).max()
        difference /= np.ptp(theirs, axis=0).max()
        assert_within(f"MobileNeXtCA against NumPy: {name}", difference, 1e-4)
    # Every layer with weights had its turn.
    assert not reference.layers


@pytest.mark.parametrize(
    "attention, expected, published, rounding",
    [
        (None, 3_535_416, 3.5e6, 0.05e6),
        ("se", 3_913_460, 3.89e6, 0.005e6),
        ("coordinate", 4_107_480, 4.09e6, 0.005e6),
    ],
)
def test_trainable_parameters(attention, expected, published, rounding):
    model = MobileNeXtCA(attention=attention)
    assert count(model) == expected
    assert abs(count(model) - published) <= max(0.01 * published, rounding)


def test_layer_names():
    model = MobileNeXtCA((32, 32, 3), 0.25, include_top=False)
    expected = ["preprocessing_record", "Conv1_pad", "Conv1", "bn_Conv1", "Conv1_relu"]
    for i, (_, _, _, stride, parts) in enumerate(BLOCKS):
        names = ["reduce", "reduce_BN", "expand", "expand_BN", "expand_relu"]
        if "A" in parts:
            names = ["attention", *names]
        if "D" in parts:
            names = ["depthwise", "depthwise_BN", "depthwise_relu", *names]
        if "d" in parts:
            names += ["pad_2"] * (stride == 2) + ["depthwise_2", "depthwise_2_BN"]
        if "+" in parts:
            names += ["add"]
        expected += [f"block_{i}_{name}" for name in names]
    assert [layer.name for layer in model.layers[1:]] == expected


@pytest.mark.parametrize(
    "alpha, widths",
    [
        (0.5, (16, 48, 72, 96, 144, 192, 288, 480, 1280)),
        (1.4, (48, 136, 200, 272, 400, 536, 808, 1344, 1792)),
    ],
)
def test_widths(alpha, widths):
    model = MobileNeXtCA((32, 32, 3), alpha, include_top=False)
    stem = model.get_layer("Conv1").filters
    ends = [model.get_layer(f"block_{i}_expand") for i in (0, 1, 4, 7, 11, 15, 18, 19)]
    assert (stem, *(layer.filters for layer in ends)) == widths


def test_a_width_that_stays_the_same_still_has_its_stride():
    # At so small an alpha the first stages all have 8 channels.
    model = MobileNeXtCA((64, 64, 3), 0.05, include_top=False)
    assert model.output_shape == (None, 2, 2, 1280)


@pytest.mark.parametrize("output_stride", [16, 8])
def test_dilation_gives_the_strided_features_and_those_between(output_stride):
    # Without attention, which averages over the feature map.
    arguments = {"alpha": 0.25, "include_top": False, "attention": None}
    x = images(2, 96, 64, 3)
    strided = calibrated(MobileNeXtCA((96, 64, 3), **arguments), x)
    dense = MobileNeXtCA((96, 64, 3), output_stride=output_stride, **arguments)
    copy_weights(strided, dense)
    step = 32 // output_stride
    assert_near(outputs(dense, x)[:, ::step, ::step], outputs(strided, x), 1e-5)


@pytest.mark.parametrize("alpha", [0, -1, "wide", None, float("nan"), float("inf")])
def test_wrong_alpha(alpha):
    with pytest.raises(ValueError, match=f"`alpha`.*Received: {alpha!r}"):
        MobileNeXtCA(alpha=alpha)


@pytest.mark.parametrize(
    "wide, narrow, features, alpha",
    [
        (*BLOCKS[-1][:3], 1.0),
        (240, 208, 1280, 0.25),
        (1344, 304, 1792, 1.4),
        # Of widths that contradict each other, some would be a large network's.
        (9600, 208, 1280, None),
        (960, 208, 12800, None),
        (9600, 1, 12800, None),
    ],
)
def test_the_width_is_known_by_shapes(wide, narrow, features, alpha):
    for attention in (0, 1):
        shapes = {
            f"features.20.conv.{3 + attention}.weight": (narrow, wide, 1, 1),
            f"features.20.conv.{5 + attention}.weight": (features, narrow, 1, 1),
        }
        if alpha is None:
            with pytest.raises(ValueError, match=f"no `alpha` gives .*{wide} channels"):
                mobilenext_names.size_of(shapes)
        else:
            assert mobilenext_names.size_of(shapes) == ({"alpha": alpha}, features)
