import keras
import numpy as np
import pytest
from backends import gradient, needs_tensorflow
from keras import ops
from networks import images

from keras_coordatt import CBAM, CoordinateAttention, EfficientNetCA, MobileNetV2CA
from keras_coordatt.layers.batch_normalization import BatchNormalization
from keras_coordatt.layers.freezing import nested_layers


def layers(**arguments):
    """Keras's layer and ours, with the same weights."""
    rng = np.random.default_rng(0)
    pair = []
    for cls in (keras.layers.BatchNormalization, BatchNormalization):
        layer = cls(momentum=0.9, epsilon=1e-5, **arguments)
        layer.build((None, 3, 3, 3))
        pair.append(layer)
    values = [rng.uniform(0.5, 1.5, w.shape) for w in pair[0].get_weights()]
    for layer in pair:
        layer.set_weights(values)
    return pair


@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize("shape", [(4, 3, 3, 3), (1, 3, 3, 3)])
@pytest.mark.parametrize("training", [True, False])
def test_equals_kerass_own(axis, shape, training):
    theirs, ours = layers(axis=axis)
    x = images(*shape)
    expected = ops.convert_to_numpy(theirs(x, training=training))
    y = ops.convert_to_numpy(ours(x, training=training))
    np.testing.assert_array_equal(y, expected)
    for w, expected in zip(ours.get_weights(), theirs.get_weights()):
        np.testing.assert_array_equal(w, expected)


def test_one_value_per_channel_is_normalized_by_the_moving_statistics():
    theirs, ours = layers()
    x = images(1, 1, 1, 3)
    before = ours.get_weights()
    y = ops.convert_to_numpy(ours(x, training=True))
    np.testing.assert_allclose(y, ops.convert_to_numpy(theirs(x)), rtol=1e-6)
    assert all(map(np.array_equal, before, ours.get_weights()))
    # It passes a gradient, which normalization by its own statistics doesn't.
    assert abs(gradient(lambda x: ours(x, training=True), x)).min() > 0.1


@needs_tensorflow
@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_graph_for_any_batch_size(jit_compile):
    import tensorflow as tf

    theirs, ours = layers()
    call = tf.function(
        lambda x: ours(x, training=True),
        input_signature=[tf.TensorSpec((None, 1, 1, 3))],
        jit_compile=jit_compile,
    )
    for count in (4, 1, 2):
        x = images(count, 1, 1, 3, seed=count)
        expected = theirs(x, training=count > 1).numpy()
        np.testing.assert_allclose(call(x).numpy(), expected, rtol=1e-4, atol=1e-5)
        for w, expected in zip(ours.get_weights(), theirs.get_weights()):
            np.testing.assert_allclose(w, expected, rtol=1e-6)


def test_files_fit_kerass_own_layer(tmp_path):
    def network(cls):
        return keras.Sequential([keras.Input((1, 1, 3)), cls(), cls()])

    theirs, ours = network(keras.layers.BatchNormalization), network(BatchNormalization)
    rng = np.random.default_rng(0)
    theirs.set_weights([rng.uniform(1, 2, w.shape) for w in theirs.get_weights()])
    theirs.save_weights(tmp_path / "theirs.weights.h5")
    ours.load_weights(tmp_path / "theirs.weights.h5")
    assert all(map(np.array_equal, ours.get_weights(), theirs.get_weights()))
    ours.save(tmp_path / "ours.keras")
    loaded = keras.saving.load_model(tmp_path / "ours.keras")
    assert {type(layer) for layer in loaded.layers} == {BatchNormalization}
    assert all(map(np.array_equal, loaded.get_weights(), theirs.get_weights()))


@pytest.mark.parametrize(
    "layer",
    [
        CoordinateAttention(),
        CoordinateAttention(axes="height"),
        CBAM(reduction=1),
    ],
    ids=["coordinate", "height", "cbam"],
)
def test_attention_on_one_position(layer):
    x = images(4, 1, 1, 8)
    layer(x, training=True)
    before = layer.get_weights()
    one = ops.convert_to_numpy(layer(x[:1], training=True))
    np.testing.assert_allclose(one, ops.convert_to_numpy(layer(x[:1])), rtol=1e-5)
    assert all(map(np.array_equal, before, layer.get_weights()))


def test_every_normalization_of_a_network_is_safe():
    """At 32 pixels, the last blocks of the networks see one position per image."""
    for network in (
        MobileNetV2CA((32, 32, 3), 0.25, weights=None, classes=2),
        EfficientNetCA("b0", (32, 32, 3), classes=2, attention="cbam"),
    ):
        kinds = {
            type(layer)
            for layer in nested_layers(network)
            if isinstance(layer, keras.layers.BatchNormalization)
        }
        assert kinds == {BatchNormalization}
