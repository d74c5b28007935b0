import keras
import pytest

from keras_coordatt import CBAM, CoordinateAttention, SqueezeExcite


@pytest.mark.parametrize("attention", [CoordinateAttention, SqueezeExcite, CBAM])
def test_a_frozen_layer_stays_frozen_when_it_is_made_anew(attention, tmp_path):
    image = keras.Input((4, 4, 8))
    x = attention(name="attention")(image)
    model = keras.Model(image, keras.layers.Dense(2, name="head")(x))
    everything = len(model.trainable_weights)
    model.get_layer("attention").trainable = False
    assert len(model.trainable_weights) == 2 < everything

    path = tmp_path / "it.keras"
    model.save(path)
    for copy in (keras.models.load_model(path), keras.models.clone_model(model)):
        assert len(copy.trainable_weights) == 2
        copy.get_layer("attention").trainable = True
        assert len(copy.trainable_weights) == everything
