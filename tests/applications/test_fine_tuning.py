"""Fine-tuning as Keras's guide shows it, tested for learning."""

import keras
import numpy as np
import pytest
from networks import lively, outputs

from keras_coordatt import EfficientNetCA, MobileNetV2CA, MobileNeXtCA

SHAPE = (32, 32, 3)


def pictures(number, seed):
    """Noise that is brighter on the left (class 0) or on the right (class 1)."""
    rng = np.random.default_rng(seed)
    labels = np.arange(number) % 2
    slope = np.linspace(1, -1, SHAPE[1])[:, None]
    light = np.where(labels[:, None, None, None], -slope, slope)
    return (light + rng.normal(0, 0.1, (number, *SHAPE))).astype("float32"), labels


def norms(base):
    """All batch normalization, that inside of attention too."""
    layers = [getattr(layer, "norm", layer) for layer in base.layers]
    return [x for x in layers if isinstance(x, keras.layers.BatchNormalization)]


@pytest.mark.parametrize(
    "build",
    [
        lambda **arguments: MobileNetV2CA(alpha=0.25, weights=None, **arguments),
        lambda **arguments: MobileNeXtCA(alpha=0.25, **arguments),
        lambda **arguments: EfficientNetCA("b0", **arguments),
    ],
    ids=["MobileNetV2CA", "MobileNeXtCA", "EfficientNetCA"],
)
def test_fine_tuning(build):
    keras.utils.set_random_seed(0)
    x, labels = pictures(16, seed=1)
    new_x, new_labels = pictures(16, seed=2)
    base = lively(build(input_shape=SHAPE, include_top=False), x)
    inputs = keras.Input(SHAPE)
    features = keras.layers.GlobalAveragePooling2D()(base(inputs, training=False))
    features = keras.layers.BatchNormalization(momentum=0.5)(features)
    model = keras.Model(inputs, keras.layers.Dense(2)(features))

    def train(learning_rate, epochs):
        model.compile(
            keras.optimizers.Adam(learning_rate),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
        model.fit(x, labels, batch_size=len(x), epochs=epochs, verbose=0)

    def loss_and_accuracy():
        logits = outputs(model, new_x)
        correct = logits[np.arange(len(new_x)), new_labels]
        return (
            np.mean(np.logaddexp(*logits.T) - correct),
            np.mean(logits.argmax(1) == new_labels),
        )

    def statistics():
        moving = [w for w in base.non_trainable_weights if "moving_" in w.path]
        assert len(moving) > 100
        return [np.array(w) for w in moving]

    # With the base frozen, the new layer learns.
    base.trainable = False
    assert len(model.trainable_weights) == 4
    pretrained = base.get_weights()
    start, _ = loss_and_accuracy()
    train(learning_rate=1e-3, epochs=10)
    frozen, accuracy = loss_and_accuracy()
    print("frozen", start, frozen, accuracy)
    assert frozen < start / 2
    assert accuracy > 0.75
    for ours, theirs in zip(base.get_weights(), pretrained, strict=True):
        np.testing.assert_array_equal(ours, theirs)

    # Then everything does, gently; the statistics of batch normalization stay.
    base.trainable = True
    for norm in norms(base):
        norm.trainable = False
    before = statistics()
    train(learning_rate=1e-4, epochs=4)
    unfrozen, accuracy = loss_and_accuracy()
    print("unfrozen", unfrozen, accuracy)
    assert unfrozen < 0.8 * frozen
    assert accuracy > 0.75
    for ours, theirs in zip(statistics(), before, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for ours, theirs in zip(base.get_weights(), pretrained, strict=True):
        print(np.abs(ours - theirs).max())
