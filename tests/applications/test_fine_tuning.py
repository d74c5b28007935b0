"""Fine-tuning as Keras's guide shows it, tested for learning."""

import keras
import numpy as np
import pytest
from backends import BACKEND
from keras import ops
from networks import calibrated, outputs

from keras_coordatt import EfficientNetCA, MobileNetV2CA, MobileNeXtCA

SHAPE = (32, 32, 3)


def pictures(number, seed):
    """Noise that is brighter on the left (class 0) or on the right (class 1)."""
    rng = np.random.default_rng(seed)
    labels = np.arange(number) % 2
    slope = np.linspace(1, -1, SHAPE[1])[:, None]
    light = np.where(labels[:, None, None, None], -slope, slope)
    return (light + rng.normal(0, 0.05, (number, *SHAPE))).astype("float32"), labels


def norms(base):
    """All batch normalization, that inside of attention too."""
    layers = [getattr(layer, "norm", layer) for layer in base.layers]
    return [x for x in layers if isinstance(x, keras.layers.BatchNormalization)]


def build(family):
    if family == "MobileNetV2CA":
        return MobileNetV2CA(SHAPE, 0.25, include_top=False, weights=None)
    if family == "MobileNeXtCA":
        return MobileNeXtCA(SHAPE, 0.25, include_top=False)
    return EfficientNetCA("b0", SHAPE, include_top=False)


# Compiling a training step takes long; PyTorch doesn't, and TensorFlow needn't.
FAMILIES = ["MobileNetV2CA", "MobileNeXtCA", "EfficientNetCA"]


@pytest.mark.parametrize("family", FAMILIES if BACKEND == "torch" else FAMILIES[:1])
def test_fine_tuning(family):
    keras.utils.set_random_seed(0)
    x, labels = pictures(32, seed=1)
    new_x, new_labels = pictures(32, seed=2)
    base = calibrated(build(family), x)
    inputs = keras.Input(SHAPE)
    features = keras.layers.GlobalAveragePooling2D()(base(inputs, training=False))
    features = keras.layers.BatchNormalization(momentum=0.5)(features)
    model = keras.Model(inputs, keras.layers.Dense(2)(features))

    def train(learning_rate, epochs):
        model.compile(
            keras.optimizers.Adam(learning_rate),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            run_eagerly=BACKEND != "jax",
        )
        model.fit(x, labels, batch_size=len(x), epochs=epochs, verbose=0)

    def loss_and_accuracy():
        logits = outputs(model, new_x)
        correct = logits[np.arange(len(new_x)), new_labels]
        loss = np.mean(np.logaddexp(*logits.T) - correct)
        return loss, np.mean(logits.argmax(1) == new_labels)

    def values(weights):
        return [ops.convert_to_numpy(w) for w in weights]

    # With the base frozen, the new layers learn, and nothing else changes.
    base.trainable = False
    assert len(model.trainable_weights) == 4
    pretrained = base.get_weights()
    start, _ = loss_and_accuracy()
    train(learning_rate=3e-3, epochs=16)
    frozen, accuracy = loss_and_accuracy()
    assert frozen < start / 2
    assert accuracy > 0.8
    for now, then in zip(base.get_weights(), pretrained, strict=True):
        np.testing.assert_array_equal(now, then)

    # Then everything does, gently, but not the statistics of batch normalization. In
    # Keras 3, fit overrides the `training=False` of a call in a functional model, so
    # what keeps them is that their layers stay frozen.
    base.trainable = True
    for norm in norms(base):
        norm.trainable = False
    pretrained = values(base.trainable_weights), values(base.non_trainable_weights)
    assert len(pretrained[1]) == 4 * len(norms(base))
    train(learning_rate=1e-5, epochs=6)
    unfrozen, accuracy = loss_and_accuracy()
    assert unfrozen < 0.75 * frozen
    assert accuracy > 0.8
    for now, then in zip(values(base.trainable_weights), pretrained[0], strict=True):
        assert np.any(now != then)
    for now, then in zip(
        values(base.non_trainable_weights), pretrained[1], strict=True
    ):
        np.testing.assert_array_equal(now, then)
