"""Mixed precision: int8 with the layers that it harms in float32."""

import itertools

import keras
import known_models
import numpy as np
import pytest
from backends import needs_tensorflow
from keras import layers
from known_models import COLORS, picture

from keras_coordatt import export
from keras_coordatt.export.litert_mixed import smallest_stretch
from keras_coordatt.preprocessing import IMAGENET


@pytest.mark.parametrize("count", [1, 2, 7])
def test_the_smallest_stretch_is_found(count):
    for low, high in itertools.combinations(range(count + 1), 2):
        tried = []

        def agrees(start, end, low=low, high=high, tried=tried):
            tried.append((start, end))
            return start <= low and high <= end

        assert smallest_stretch(count, agrees) == (low, high)
        assert len(tried) <= 1 + 2 * np.ceil(np.log2(count + 1))
    assert smallest_stretch(count, lambda start, end: True) == (0, 0)


def network_that_int8_ruins():
    """Between two of its layers, one channel is 500 times as large as the others."""
    model = known_models.segmenter()
    up, down = (layers.DepthwiseConv2D(1, use_bias=False, name=x) for x in "ud")
    x = layers.AveragePooling2D(2)(up(model.output))
    x = layers.Softmax()(layers.GlobalAveragePooling2D()(down(x)))
    factor = np.array([500, 1, 1], "float32").reshape(1, 1, 3, 1)
    up.set_weights([factor])
    down.set_weights([1 / factor])
    return keras.Model(model.input, x)


@needs_tensorflow
def test_layers_that_int8_harms_stay_in_float32(tmp_path):
    model = network_that_int8_ruins()
    pictures = [
        picture(background, [(x, 0, 0), (y, 1, 1), (z, 1, 2)])
        for background, x, y, z in itertools.product(COLORS, repeat=4)
    ]
    images = IMAGENET.normalize(np.stack(pictures).astype("float32"))
    path = tmp_path / "it.tflite"
    settings = {"representative": images}
    with pytest.raises(ValueError, match='differ from the Keras.*`precision="mixed"`'):
        export.litert(model, path, precision="int8", **settings)
    assert not path.exists()
    report = export.litert(model, path, precision="mixed", **settings)
    assert report.agreement >= 0.99
    tensors = " ".join(report.float_tensors)
    assert "u_1/depthwise" in tensors
    assert "predictions" not in tensors  # comes before, and is int8
    assert export.read_metadata(path)["precision"] == "mixed"
    with pytest.raises(ValueError, match="`representative` is needed"):
        export.litert(model, path, precision="mixed")
    raw = keras.Model(model.input, model.get_layer("u").output[:, :4])
    with pytest.raises(ValueError, match="mixed.*scores of classes"):
        export.litert(raw, path, precision="mixed", **settings)
