"""Networks trained as users train them, without the shortcuts of the other tests.

`make test-as-users` runs this file: graph mode on TensorFlow, optimized XLA on JAX, and
the initial weights that the builders draw.
"""

import keras
import numpy as np
import pytest
from networks import outputs

from keras_coordatt import EfficientNetCA, MobileNetV2CA, MobileNeXtCA
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


@pytest.mark.parametrize("name", BUILDERS)
def test_fit_predict_save(name, tmp_path):
    keras.utils.set_random_seed(0)
    model = BUILDERS[name](
        input_shape=(64, 64, 3), classes=2, classifier_activation=None
    )
    # As `train` does from scratch.
    zero_init_residuals(model)
    # Of a probability, Keras's loss clips a confident mistake, which then has no gradient.
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


@pytest.mark.parametrize("name", BUILDERS)
def test_initial_distributions(name):
    """Large kernels have the variance that their initializer claims, 2 / fan-out."""
    keras.utils.set_random_seed(0)
    model = BUILDERS[name](input_shape=(64, 64, 3), classes=1000)
    checked = 0
    for layer in model.layers:
        if type(layer) is not keras.layers.Conv2D or np.prod(layer.kernel.shape) < 5000:
            continue
        height, width, _, filters = layer.kernel.shape
        variance = np.var(keras.ops.convert_to_numpy(layer.kernel))
        expected = 2 / (height * width * filters)
        assert abs(variance / expected - 1) < 0.1, layer.name
        checked += 1
    assert checked > 3


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
