"""Files are compared with the model that was given, on pictures of known content."""

import keras
import numpy as np
import pytest
from backends import BACKEND, needs_tensorflow
from keras import layers
from networks import outputs

from keras_coordatt import export
from keras_coordatt.cli import main
from keras_coordatt.export.inference import in_float32
from keras_coordatt.export.pictures import draw_pictures
from keras_coordatt.layers.freezing import nested_layers
from keras_coordatt.preprocessing import IMAGENET, RAW_PIXELS, PreprocessingRecord

SIZE = (32, 24)
needs_saved_model = pytest.mark.skipif(BACKEND == "torch", reason="no SavedModel")
needs_onnx = pytest.mark.skipif(BACKEND == "jax", reason="no ONNX")


def classify(x, dtype=None):
    """Scores that depend on colors."""
    x = layers.Conv2D(8, 3, strides=2, activation="relu", dtype=dtype)(x)
    return layers.Dense(4, name="scores")(layers.GlobalAveragePooling2D()(x))


def image(dtype=None):
    return keras.Input((*SIZE, 3), dtype=dtype)


def write(model, folder, **options):
    """Writes the formats that the backend has, and runs them on pictures."""
    results = {}
    if BACKEND == "tensorflow":
        export.litert(model, folder / "it.tflite", **options)
    if BACKEND != "jax":
        pytest.importorskip("onnxruntime")
        export.onnx(model, folder / "it.onnx", **options)
    if BACKEND != "torch":
        results["saved_model"] = export.saved_model(model, folder / "it", **options)
    return results


# Copies


def adapted_network(mixed):
    """A network whose normalization has its statistics from data, in half precision."""
    keras.utils.set_random_seed(0)
    with pytest.MonkeyPatch.context():
        before = keras.config.dtype_policy()
        keras.config.set_dtype_policy("mixed_float16" if mixed else "float32")
        try:
            normalization = layers.Normalization()
            normalization.adapt(draw_pictures(8, *SIZE, 3).astype("float32"))
            x = normalization(inputs := image())
            # The operators are operations in the graph, not layers.
            x = x * 2.0 + layers.Conv2D(3, 3, padding="same")(x)
            return keras.Model(inputs, classify(x))
        finally:
            keras.config.set_dtype_policy(before)


def test_a_float32_copy_normalizes_as_the_model_does():
    model = adapted_network(mixed=True)
    copy = in_float32(model)
    assert {x.compute_dtype for x in nested_layers(copy) if x.built} == {"float32"}
    x = draw_pictures(4, *SIZE, 3, seed=1).astype("float32")
    expected = outputs(model, x)
    limit = 0.01 * np.abs(expected).max()
    np.testing.assert_allclose(outputs(copy, x), expected, atol=limit)


def test_normalization_and_operators_in_every_format(tmp_path):
    for mixed in (False, True):
        write(adapted_network(mixed), tmp_path)


@needs_tensorflow
def test_the_reference_is_the_given_model(tmp_path, monkeypatch):
    model = adapted_network(mixed=True)
    wrong = in_float32(model)
    wrong.set_weights([1.5 * x for x in wrong.get_weights()])
    monkeypatch.setattr("keras_coordatt.export._litert.in_float32", lambda x: wrong)
    with pytest.raises(
        ValueError, match="The outputs of .* differ from the Keras model's"
    ):
        export.litert(model, tmp_path / "it.tflite")
    assert list(tmp_path.iterdir()) == []


# Preprocessing


def behind_resizing():
    inputs = keras.Input((50, 40, 3))
    return keras.Model(inputs, recorded()(layers.Resizing(*SIZE)(inputs)))


def recorded(record=RAW_PIXELS):
    inputs = image()
    x = PreprocessingRecord(record)(inputs)
    x = layers.Rescaling(1 / 127.5, -1)(x) if record == RAW_PIXELS else x
    return keras.Model(inputs, classify(x))


def wrapped(*before):
    inputs = x = image()
    for layer in before:
        x = layer(x)
    return keras.Model(inputs, recorded()(x))


KNOWN = {
    "nested": (lambda: wrapped(), RAW_PIXELS),
    "flipped": (lambda: wrapped(layers.RandomFlip()), RAW_PIXELS),
    "sequential": (lambda: keras.Sequential([recorded()]), RAW_PIXELS),
    "resized": (behind_resizing, RAW_PIXELS),
    "imagenet": (lambda: recorded(IMAGENET), IMAGENET),
    "rescaled before": (lambda: wrapped(layers.Rescaling(2.0)), None),
    "normalized before": (
        lambda: wrapped(layers.Normalization(mean=1.0, variance=2.0)),
        None,
    ),
    "foreign": (lambda: keras.Model(inputs := image(), classify(inputs)), None),
}


@needs_saved_model
@pytest.mark.parametrize("name", KNOWN)
def test_images_are_prepared_only_as_recorded(name, tmp_path):
    import tensorflow as tf

    build, expected = KNOWN[name]
    model = build()
    if not model.built:
        model.build((None, *SIZE, 3))
    report = export.saved_model(model, tmp_path / "it")
    assert report.preprocessing == expected
    metadata = export.read_metadata(tmp_path / "it")
    loaded = tf.saved_model.load(str(tmp_path / "it"))
    if expected is None:
        assert metadata["preprocessing"] is None
        assert not hasattr(loaded, "serve_images")
        assert "preprocessing unknown" in str(report)
        return
    pictures = draw_pictures(3, *model.input_shape[1:], seed=2)
    mean, std = (np.array(metadata["preprocessing"][x]) for x in ("mean", "std"))
    prepared = ((pictures / 255 - mean) / std).astype("float32")
    served = np.asarray(loaded.serve_images(pictures))
    np.testing.assert_allclose(served, outputs(model, prepared), atol=1e-3)


@needs_saved_model
def test_arguments_override_the_record(tmp_path):
    import tensorflow as tf

    model = KNOWN["foreign"][0]()
    half = export.Preprocessing((0.5,) * 3, (0.5,) * 3)
    assert export.saved_model(model, tmp_path / "it", preprocessing=half)
    pictures = draw_pictures(3, *SIZE, 3)
    loaded = tf.saved_model.load(str(tmp_path / "it"))
    served = loaded.serve_images(pictures)
    expected = outputs(model, (pictures / 127.5 - 1).astype("float32"))
    np.testing.assert_allclose(served, expected, atol=1e-4)


# Inputs and layers of all kinds


def test_a_network_that_takes_bytes_by_type(tmp_path):
    inputs = image("uint8")
    x = PreprocessingRecord(RAW_PIXELS)(inputs)
    model = keras.Model(inputs, classify(layers.Rescaling(1 / 255)(x)))
    write(model, tmp_path)
    with pytest.raises(ValueError, match="because the model takes uint8"):
        write(model, tmp_path, preprocessing=IMAGENET)
    if BACKEND != "torch":
        import tensorflow as tf

        pictures = draw_pictures(3, *SIZE, 3)
        loaded = tf.saved_model.load(str(tmp_path / "it"))
        for serve in (loaded.serve, loaded.serve_images):
            given = np.asarray(serve(pictures))
            np.testing.assert_allclose(given, outputs(model, pictures), atol=1e-4)


def test_augmentation_and_grouped_convolution_in_every_format(tmp_path):
    inputs = image()
    x = layers.RandomContrast(0.5)(layers.RandomFlip()(inputs))
    x = layers.Conv2D(6, 3)(x)
    if BACKEND != "tensorflow":
        x = layers.Conv2D(6, 3, groups=2)(x)
    write(keras.Model(inputs, classify(x)), tmp_path)


@needs_onnx
def test_grouped_convolution_and_an_output_called_image_in_onnx(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    inputs = image()
    x = layers.Conv2D(6, 3)(inputs)
    model = keras.Model(inputs, layers.Conv2D(4, 3, groups=2, name="image")(x))
    export.onnx(model, tmp_path / "it.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "it.onnx")
    x = draw_pictures(2, *SIZE, 3).astype("float32")
    (given,) = session.run(["image_output"], {"image": x})
    np.testing.assert_allclose(given, outputs(model, x), atol=0.01)


@needs_tensorflow
def test_operations_missing_in_onnx_are_named(tmp_path):
    pytest.importorskip("tf2onnx")
    inputs = image()
    model = keras.Model(inputs, keras.ops.argmax(classify(inputs), -1))
    with pytest.raises(ValueError, match="ONNX cannot express .* export the model"):
        export.onnx(model, tmp_path / "it.onnx")
    assert list(tmp_path.iterdir()) == []


def test_subclassed_model_error_names_the_remedy(tmp_path):
    class Own(keras.Model):
        def call(self, x):
            return x

    write_one = {
        "tensorflow": export.litert,
        "jax": export.saved_model,
        "torch": export.onnx,
    }[BACKEND]
    name = {"tensorflow": "it.tflite", "jax": "it", "torch": "it.onnx"}[BACKEND]
    for model in (Own(), keras.Sequential([layers.Flatten()])):
        with pytest.raises(ValueError, match="Wrap another one: `image = keras.Input"):
            write_one(model, tmp_path / name)


# The command line


def command(*arguments):
    return main(["export", *map(str, arguments)])


NAME = {"tensorflow": "it.tflite", "jax": "it", "torch": "it.onnx"}[BACKEND]


def test_the_command_takes_preprocessing_that_is_not_recorded(tmp_path, capsys):
    if BACKEND == "torch":
        pytest.importorskip("onnxruntime")
    KNOWN["foreign"][0]().save(tmp_path / "it.keras")
    it = (tmp_path / "it.keras", tmp_path / NAME)
    assert command(*it) == 0
    assert "preprocessing unknown" in capsys.readouterr().out
    assert export.read_metadata(it[1])["preprocessing"] is None
    half = ["0.5", "0.5", "0.5"]
    for options in (["--preprocessing", "tf"], ["--mean", *half, "--std", *half]):
        assert command(*it, *options) == 0
        found = export.read_metadata(it[1])["preprocessing"]
        assert found["mean"] == found["std"] == [0.5, 0.5, 0.5]
    assert command(*it, "--mean", "0.5") == 1
    assert "Give --mean and --std together" in capsys.readouterr().err
