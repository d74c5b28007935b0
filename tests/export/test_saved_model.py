"""SavedModels take inputs and images, and replace only their like."""

import numpy as np
import pytest
from exports import LABELS, SIZE, needs_saved_model, network
from keras.applications import imagenet_utils
from networks import assert_near, outputs

from keras_coordatt import export
from keras_coordatt.export import Preprocessing, read_metadata


@needs_saved_model
def test_a_saved_model_takes_inputs_and_images(model, x, tmp_path):
    import tensorflow as tf

    report = export.saved_model(model, tmp_path / "it", labels=LABELS)
    assert report.path == tmp_path / "it"
    assert report.difference["predictions"] < 1e-5
    loaded = tf.saved_model.load(str(tmp_path / "it"))
    assert_near(loaded.serve(x).numpy(), outputs(model, x), 1e-4)
    assert set(loaded.signatures) == {"serve", "serving_default", "serve_images"}

    # Images of the model's size are only normalized.
    pictures = np.random.default_rng(0).integers(0, 256, (3, *SIZE, 3), "uint8")
    normal = imagenet_utils.preprocess_input(
        pictures.astype("float32"), data_format="channels_last", mode="torch"
    )
    served = loaded.serve_images(pictures).numpy()
    assert_near(served, outputs(model, normal), 1e-4)
    # Twice as large, with each pixel four times, they are the same to a rounding.
    nearest = Preprocessing(interpolation="nearest", antialias=False)
    export.saved_model(model, tmp_path / "it", preprocessing=nearest)
    loaded = tf.saved_model.load(str(tmp_path / "it"))
    larger = pictures.repeat(2, axis=1).repeat(2, axis=2)
    np.testing.assert_allclose(loaded.serve_images(larger), served, atol=1e-6)


@needs_saved_model
def test_images_are_resized_as_for_training(model, tmp_path):
    import tensorflow as tf

    from keras_coordatt.applications.mobilenet_v2_ca import preprocess_input
    from keras_coordatt.data import load_classification

    export.saved_model(model, tmp_path / "it")
    loaded = tf.saved_model.load(str(tmp_path / "it"))
    read = {
        size: next(
            iter(
                load_classification(
                    "digits/classification", "test", size, 4, preprocess=preprocess
                )
            )
        )[0].numpy()
        for size, preprocess in (((50, 61), None), (SIZE, None))
    }
    small = tf.image.resize(read[50, 61], SIZE, antialias=True).numpy().round()
    expected = outputs(model, preprocess_input(small))
    served = loaded.serve_images(read[50, 61].astype("uint8"))
    np.testing.assert_allclose(served, expected, atol=1e-6)


@needs_saved_model
def test_a_saved_model_replaces_only_its_like(model, tmp_path):
    export.saved_model(model, tmp_path / "it", labels=LABELS)
    export.saved_model(model, tmp_path / "it")
    assert read_metadata(tmp_path / "it")["labels"] is None
    assert [path.name for path in tmp_path.iterdir()] == ["it"]

    other = tmp_path / "letters"
    other.mkdir()
    (other / "dear.txt").write_text("dear")
    with pytest.raises(ValueError, match="is not a SavedModel"):
        export.saved_model(model, other)
    assert [path.name for path in other.iterdir()] == ["dear.txt"]


@needs_saved_model
def test_a_mixed_precision_saved_model(x, tmp_path):
    model = network(dtype="mixed_float16")
    report = export.saved_model(model, tmp_path / "it")
    assert report.difference["predictions"] < 0.01
