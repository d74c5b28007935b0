"""Networks trained as users train them, without the shortcuts of the other tests.

`make test-as-users` runs this file: graph mode on TensorFlow, optimized XLA on JAX, and
the initial weights that the builders draw.
"""

import keras
import numpy as np
import pytest
from backends import BACKEND
from networks import outputs

from keras_coordatt import (
    CoordinateAttention,
    EfficientNetCA,
    MobileNetV2CA,
    MobileNeXtCA,
)
from keras_coordatt.training import zero_init_residuals
from keras_coordatt.weights import load_torch

BUILDERS = {
    "mobilenet_v2_ca": lambda **k: MobileNetV2CA(alpha=0.25, weights=None, **k),
    "mobilenext_ca": lambda **k: MobileNeXtCA(alpha=0.25, **k),
    "efficientnet_ca": lambda **k: EfficientNetCA("b0", **k),
}


def stripes(count, seed):
    """Images of horizontal and vertical stripes, and their labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count)
    waves = np.sin(np.arange(64) * np.pi / 4 + rng.uniform(0, 6, (count, 1)))
    images = np.where(labels[:, None, None] == 0, waves[:, :, None], waves[:, None, :])
    images = images[..., None] + rng.normal(scale=0.3, size=(count, 64, 64, 3))
    return images.astype("float32"), labels


# MobileNeXt has the same layers as MobileNetV2, and XLA compiles each for half a minute.
@pytest.mark.parametrize(
    "name", [name for name in BUILDERS if (BACKEND, name) != ("jax", "mobilenext_ca")]
)
def test_fit_predict_save(name, tmp_path):
    keras.utils.set_random_seed(0)
    model = BUILDERS[name](
        input_shape=(64, 64, 3), classes=2, classifier_activation=None
    )
    # Same as in `train` from scratch.
    zero_init_residuals(model)
    # Logits: of probabilities, Keras's loss clips a confident mistake, without a gradient.
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss)
    # A network that cannot learn one batch by heart has wrong gradients.
    images, labels = stripes(16, 0)
    losses = model.fit(images, labels, 16, epochs=24, verbose=0).history["loss"]
    # The median, as EfficientNet drops whole branches at random.
    assert np.median(losses[-8:]) < losses[0] / 10

    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    x = stripes(8, 1)[0]
    np.testing.assert_allclose(
        loaded.predict(x, verbose=0), model.predict(x, verbose=0), rtol=1e-5, atol=1e-5
    )


def claimed_variances(model, name):
    """Yields each kernel with its kind and the variance that the builder claims."""
    efficient = name == "efficientnet_ca"
    for layer in model.layers:
        if isinstance(layer, keras.layers.DepthwiseConv2D):
            height, width, channels, _ = layer.kernel.shape
            # In PyTorch, of the MobileNets' authors, the fan-out is that of all groups
            # together; in TensorFlow, of EfficientNet's, that of one.
            fan_out = height * width * (1 if efficient else channels)
            yield "depthwise", layer.kernel, 2 / fan_out
        elif isinstance(layer, keras.layers.Conv2D):
            height, width, _, filters = layer.kernel.shape
            yield "convolution", layer.kernel, 2 / (height * width * filters)
        elif isinstance(layer, CoordinateAttention):
            for part in (layer.shared, *layer.gates.values()):
                yield "attention", part.kernel, 2 / part.kernel.shape[1]
        elif isinstance(layer, keras.layers.Dense):
            # Uniform up to 1 / sqrt(classes), or normal as in the MobileNets' code
            classes = layer.kernel.shape[1]
            yield "classifier", layer.kernel, 1 / 3 / classes if efficient else 0.01**2


@pytest.mark.skipif(BACKEND == "jax", reason="XLA compiles each shape, for minutes")
@pytest.mark.parametrize("name", BUILDERS)
def test_initial_distributions(name):
    """All kernels of a kind have the variance that the builder claims."""
    keras.utils.set_random_seed(0)
    model = BUILDERS[name](input_shape=(64, 64, 3), classes=1000)
    found = {}
    for kind, kernel, variance in claimed_variances(model, name):
        values = keras.ops.convert_to_numpy(kernel).ravel() / variance**0.5
        found.setdefault(kind, []).append(values)
        if values.size > 5000:
            assert abs(np.var(values) - 1) < 0.1, kernel.path
    assert found.keys() == {"convolution", "depthwise", "attention", "classifier"}
    for kind, values in found.items():
        values = np.concatenate(values)
        # Five standard errors of the variance of as many normal values
        assert abs(np.var(values) - 1) < 5 * (2 / values.size) ** 0.5, kind
        assert abs(np.mean(values)) < 5 / values.size**0.5, kind
        uniform = name == "efficientnet_ca" and kind == "classifier"
        assert (np.abs(values).max() <= 3**0.5 + 1e-6) == uniform, kind


def test_official_network(golden):
    """Optimized numerics agree with the official code."""
    with np.load(golden("mbv2_ca_w025_c10_io.npz")) as file:
        x, logits = file["input_nchw"].transpose(0, 2, 3, 1), file["logits"]
    model = MobileNetV2CA(
        x.shape[1:], 0.25, weights=None, classes=10, classifier_activation=None
    )
    load_torch(model, golden("mbv2_ca_w025_c10.pth"))
    limit = 1e-4 * np.abs(logits).max()
    np.testing.assert_allclose(outputs(model, x), logits, atol=limit)
    np.testing.assert_allclose(model.predict(x, verbose=0), logits, atol=limit)
