"""A file is loaded completely, or the network does not change."""

import json
import sys
import types
import warnings
import zipfile

import h5py
import keras
import numpy as np
import pytest
from keras import ops

from keras_coordatt import CoordinateAttention, MobileNetV2CA
from keras_coordatt.weights import load_weights, save_safetensors

SUFFIXES = [".keras", ".weights.h5", ".h5", ".pth", ".safetensors"]
KERAS = SUFFIXES[:3]
EACH = pytest.mark.parametrize("suffix", SUFFIXES)


@pytest.fixture(autouse=True)
def channels_last():
    before = keras.config.image_data_format()
    keras.config.set_image_data_format("channels_last")
    yield
    keras.config.set_image_data_format(before)


def tiny(
    channels=3,
    width=8,
    attention=True,
    classes=3,
    include_top=True,
    weights=None,
    skip_mismatch=False,
    **ca,
):
    """A network of four layers, whose names are those of MobileNetV2CA."""
    image = keras.Input((9, 7, channels))
    x = keras.layers.Conv2D(width, 3, use_bias=False, name="Conv1")(image)
    x = keras.layers.BatchNormalization(name="bn_Conv1")(x)
    if attention:
        ca = {"reduction": 4, "name": "block_1_attention", **ca}
        x = CoordinateAttention(**ca)(x)
    if include_top:
        x = keras.layers.GlobalAveragePooling2D(name="avg_pool")(x)
        x = keras.layers.Dropout(0.1, name="top_dropout")(x)
        x = keras.layers.Dense(classes, name="predictions")(x)
    model = keras.Model(image, x, name="tiny")
    if weights is not None:
        load_weights(model, weights, skip_mismatch)
    return model


def randomized(model, seed=0):
    """Sets every weight to values that no initializer draws."""
    rng = np.random.default_rng(seed)
    model.set_weights([rng.uniform(0.5, 1.5, w.shape) for w in model.weights])
    return model


@pytest.fixture
def save(tmp_path, save_torch):
    """Saves a network by the suffix, some formats by the code of others."""

    def save(model, suffix, name="file"):
        path = tmp_path / f"{name}{suffix}"
        if suffix == ".pth":
            from keras_coordatt.weights.official import official_state

            save_torch(official_state(model), path)
        elif suffix == ".safetensors":
            save_safetensors(model, path)
        elif suffix == ".weights.h5":
            model.save_weights(path)
        else:
            model.save(path)
        return path

    return save


def weights_of(model):
    """Every weight in float32, by its path."""
    return {
        w.path: np.array(ops.convert_to_numpy(ops.cast(w, "float32")))
        for w in model.weights
    }


def assert_same(after, before):
    assert after.keys() == before.keys()
    for name in before:
        np.testing.assert_array_equal(after[name], before[name], err_msg=name)


@pytest.fixture
def refuses():
    """Asserts that a file is refused for a reason, and the network as it was."""

    def check(model, path, message, error=ValueError):
        before = weights_of(model)
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            with pytest.raises(error, match=message) as caught:
                load_weights(model, path)
        assert path.name in str(caught.value)
        assert_same(weights_of(model), before)

    return check


# What fits


@EACH
def test_every_format_there_and_back(save, suffix):
    model = randomized(tiny())
    path = save(model, suffix)
    for given in (path, str(path)):
        other = tiny()
        with warnings.catch_warnings():
            warnings.filterwarnings("error", category=UserWarning)
            load_weights(other, given)
        assert_same(weights_of(other), weights_of(model))
    assert_same(weights_of(tiny(weights=path)), weights_of(model))


@pytest.mark.parametrize("suffix", KERAS)
def test_keras_loads_the_same(save, suffix):
    path = save(randomized(tiny()), suffix)
    ours, theirs = tiny(), tiny()
    load_weights(ours, path)
    theirs.load_weights(path)
    assert_same(weights_of(ours), weights_of(theirs))


@pytest.mark.parametrize("suffix", KERAS)
def test_an_optimizer_keeps_its_state(save, suffix):
    trained = randomized(tiny())
    trained.compile("adam", "sparse_categorical_crossentropy")
    trained.optimizer.build(trained.trainable_variables)
    path = save(trained, suffix)
    model = tiny()
    model.compile("adam", "sparse_categorical_crossentropy")
    model.optimizer.build(model.trainable_variables)
    model.optimizer.iterations.assign(3)
    load_weights(model, path)
    assert_same(weights_of(model), weights_of(trained))
    assert int(ops.convert_to_numpy(model.optimizer.iterations)) == 3
    load_weights(tiny(), path)


@pytest.mark.parametrize("suffix", KERAS)
def test_frozen_layers_take_their_weights(save, suffix):
    # Legacy files keep the weights of a layer in an order that freezing changes.
    frozen = randomized(tiny())
    frozen.get_layer("bn_Conv1").trainable = False
    path = save(frozen, suffix)
    assert_same(weights_of(tiny(weights=path)), weights_of(frozen))


@pytest.mark.parametrize(
    "suffix, policy",
    [
        (".keras", "bfloat16"),
        (".weights.h5", "bfloat16"),
        (".weights.h5", "mixed_bfloat16"),
        (".h5", "float16"),
        (".safetensors", "float16"),
    ],
)
def test_half_precision(save, suffix, policy):
    def build():
        keras.config.set_dtype_policy(policy)
        try:
            return tiny()
        finally:
            keras.config.set_dtype_policy("float32")

    half = randomized(build())
    path = save(half, suffix)
    loaded = tiny(weights=path)
    assert str(loaded.weights[0].dtype) == "float32"
    assert_same(weights_of(loaded), weights_of(half))
    again = build()
    load_weights(again, save(randomized(tiny()), suffix, "whole"))
    assert again.weights[0].dtype == half.weights[0].dtype


@pytest.mark.parametrize("suffix", [".keras", ".weights.h5"])
def test_layers_that_keras_named(save, suffix):
    # Their names differ between two networks of the same architecture.
    def build():
        return tiny(name=None)

    model = randomized(build())
    other = build()
    load_weights(other, save(model, suffix))
    for a, b in zip(other.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_files_of_keras_2(save):
    model = randomized(tiny())
    path = save(model, ".h5")
    with h5py.File(path, "r+") as file:
        paths = []
        file["model_weights"].visit(paths.append)
        for name in paths:
            if isinstance(file["model_weights"][name], h5py.Dataset):
                file.move(f"model_weights/{name}", f"model_weights/{name}:0")
        for name in list(file["model_weights"]):  # only weights, as save_weights did
            file.move(f"model_weights/{name}", name)
        del file["model_weights"]
    assert_same(weights_of(tiny(weights=path)), weights_of(model))


# Adapted weights


@EACH
def test_other_classes(save, suffix):
    path = save(randomized(tiny()), suffix)
    model = tiny(classes=5)
    before = weights_of(model)
    with pytest.warns(UserWarning, match="3 outputs, the network's 5") as caught:
        load_weights(model, path, skip_mismatch=True)
    assert len([w for w in caught if w.category is UserWarning]) == 1
    after, source = weights_of(model), weights_of(randomized(tiny()))
    for name in after:
        expected = before if name.startswith("predictions") else source
        if "seed" not in name:
            np.testing.assert_array_equal(after[name], expected[name])


@EACH
def test_no_classifier(save, suffix):
    source = randomized(tiny())
    path = save(source, suffix)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", category=UserWarning)
        model = tiny(include_top=False, weights=path)
    expected = weights_of(source)
    for name, array in weights_of(model).items():
        np.testing.assert_array_equal(array, expected[name])


@EACH
def test_gray_images(save, suffix):
    # On gray images, it has the outputs of the network for colors.
    source = randomized(tiny())
    path = save(source, suffix)
    with pytest.warns(UserWarning, match="the network's for 1.*sum the first"):
        gray = tiny(channels=1, weights=path, skip_mismatch=True)
    x = np.random.default_rng(0).normal(size=(2, 9, 7, 1)).astype("float32")
    expected = source.predict(np.repeat(x, 3, -1), verbose=0)
    np.testing.assert_allclose(gray.predict(x, verbose=0), expected, atol=1e-5)


@EACH
def test_four_channels(save, suffix):
    source = randomized(tiny())
    path = save(source, suffix)
    with pytest.warns(UserWarning, match="the network's for 4.*repeat.*3/4"):
        model = tiny(channels=4, weights=path, skip_mismatch=True)
    (kernel,) = source.get_layer("Conv1").get_weights()
    expected = np.stack([kernel[:, :, c] for c in (0, 1, 2, 0)], 2) * 0.75
    (given,) = model.get_layer("Conv1").get_weights()
    np.testing.assert_allclose(given, expected, rtol=1e-6)


@EACH
def test_nothing_is_adapted_by_default(save, refuses, suffix):
    path = save(tiny(), suffix)
    for other, name in [
        ({"classes": 5}, "(predictions|classifier)"),
        ({"channels": 1}, "(Conv1|features.0.0)"),
    ]:
        message = f"pass `skip_mismatch=True` to(.|\\n)*misshapen: .*{name}"
        refuses(tiny(**other), path, message)


# Mismatches


@EACH
@pytest.mark.parametrize(
    "other, message",
    [
        ({"attention": False}, "unexpected: .*(block_1_attention|features.2.conv)"),
        ({"axes": "height"}, "unexpected: .*(width_gate|conv3)"),
        ({"width": 16}, "misshapen: .*(Conv1|features.0.0)"),
        ({"min_channels": 16}, "misshapen: .*(attention|features.2.conv)"),
    ],
)
def test_another_architecture(save, refuses, suffix, other, message):
    refuses(tiny(**other), save(tiny(), suffix), message)
    model = tiny()
    if other == {"attention": False}:
        refuses(
            model, save(tiny(**other), suffix), "missing: .*(attention|features.2.conv)"
        )


@pytest.mark.parametrize("suffix", KERAS)
def test_the_gate_of_a_row_is_not_that_of_a_column(save, refuses, suffix):
    # Keras's own .weights.h5 can't tell them apart: their class is the same.
    path = save(tiny(axes="height"), suffix)
    refuses(tiny(axes="width"), path, "missing: .*width_gate")


@pytest.mark.parametrize("suffix", KERAS)
def test_another_network_altogether(save, refuses, suffix):
    layers = [keras.Input((4,)), keras.layers.Dense(2, name="only")]
    refuses(tiny(), save(keras.Sequential(layers), suffix), "of another architecture")


@EACH
def test_truncated(save, refuses, suffix):
    model, path = tiny(), save(tiny(), suffix)
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    for length in [0, 1, 8, *rng.integers(9, len(data), 3), len(data) - 1]:
        path.write_bytes(data[:length])
        refuses(model, path, "Cannot read")


@EACH
def test_something_else(tmp_path, refuses, suffix):
    path = tmp_path / f"page{suffix}"
    path.write_bytes(b"<!DOCTYPE html><html><body>Not Found</body></html>" * 10)
    refuses(tiny(), path, "Cannot read")


def changed(path, values):
    """Rewrites one number of every kind of file, where a format has no checksum."""
    data = path.read_bytes()
    stored = values.tobytes()
    assert data.count(stored) == 1
    return data, data.index(stored)


@pytest.mark.parametrize("suffix", [".keras", ".pth"])
def test_tampered(save, refuses, suffix):
    # Zip archives have checksums; .h5 and .safetensors have none, and the catalog's
    # hash is there for them.
    model = randomized(tiny())
    path = save(model, suffix)
    kernel = model.get_layer("Conv1").get_weights()[0]
    stored = (
        kernel
        if suffix == ".keras"
        else np.ascontiguousarray(kernel.transpose(3, 2, 0, 1))
    )
    data, start = changed(path, stored)
    path.write_bytes(data[:start] + b"\0" + data[start + 1 :])
    refuses(tiny(), path, "Cannot read.*CRC")


@EACH
def test_not_finite(save, refuses, suffix):
    source = randomized(tiny())
    norm = source.get_layer("bn_Conv1")
    weights = norm.get_weights()
    weights[3][[2, 5]] = np.nan, np.inf
    norm.set_weights(weights)
    refuses(tiny(), save(source, suffix), r"not finite: .*, 2 of 8 values are NaN")


@EACH
def test_not_finite_where_it_is_not_used(save, suffix):
    source = randomized(tiny())
    source.get_layer("predictions").set_weights(
        [np.full((8, 3), np.nan), np.full(3, np.nan)]
    )
    path = save(source, suffix)
    with pytest.warns(UserWarning, match="keep the network's own"):
        load_weights(tiny(classes=4), path, skip_mismatch=True)


def rewritten(path, change):
    """Changes every array in a file, where the format has no checksum."""
    suffix = "".join(path.suffixes)
    if suffix == ".safetensors":
        from safetensors.numpy import load_file, save_file

        arrays = load_file(path)
        save_file({k: np.ascontiguousarray(change(v)) for k, v in arrays.items()}, path)
    elif suffix == ".pth":
        torch = pytest.importorskip("torch")
        state = torch.load(path)
        torch.save({k: torch.tensor(change(v.numpy())) for k, v in state.items()}, path)
    elif suffix == ".keras":
        with zipfile.ZipFile(path) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        h5 = path.with_suffix(".weights.h5")
        h5.write_bytes(parts["model.weights.h5"])
        parts["model.weights.h5"] = rewritten(h5, change).read_bytes()
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in parts.items():
                archive.writestr(name, content)
    else:
        with h5py.File(path, "r+") as file:
            names = []
            file.visit(names.append)
            for name in names:
                if isinstance(file[name], h5py.Dataset):
                    array, attributes = file[name][()], dict(file[name].attrs)
                    del file[name]
                    file[name] = change(array)
                    file[name].attrs.update(attributes)
    return path


def floats(change):
    return lambda array: change(array) if array.dtype.kind == "f" else array


@EACH
def test_wrong_kind_of_number(save, refuses, suffix):
    path = rewritten(save(tiny(), suffix), floats(lambda array: array.astype("int32")))
    refuses(tiny(), path, "not floating-point: .*, dtype int32")


@pytest.mark.parametrize(
    "suffix, dtype", [(".keras", ">f4"), (".weights.h5", "<f2"), (".h5", ">f8")]
)
def test_right_byte_order(save, suffix, dtype):
    model = randomized(tiny())
    model.set_weights([w.astype("f2") for w in model.get_weights()])
    path = rewritten(save(model, suffix), floats(lambda array: array.astype(dtype)))
    assert_same(weights_of(tiny(weights=path)), weights_of(model))


# Malicious files


def h5_of(path, change):
    with h5py.File(path, "r+") as file:
        change(file)
    return path


KERNEL = "layers/conv2d/vars/0"


@pytest.mark.parametrize("shape", [(3, 3, 3, 8), (2**20, 2**12)])
def test_datasets_that_grow(save, refuses, shape):
    # Zeros to be: 16 GB of them take no space in a compressed file.
    def change(file):
        del file[KERNEL]
        file.create_dataset(
            KERNEL,
            shape,
            "f4",
            chunks=(2,) * len(shape),
            compression="gzip",
        )

    path = h5_of(save(tiny(), ".weights.h5"), change)
    if shape == (3, 3, 3, 8):  # a small one may be compressed
        load_weights(tiny(), path)
    else:
        refuses(tiny(), path, r"claims 17179869184 bytes, and 0 are stored")


def test_archives_that_grow(save, refuses, tmp_path):
    path = tmp_path / "bomb.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.weights.h5", bytes(2**25))
    refuses(tiny(), path, "claim 33554432 bytes, and the archive has .* not unpacked")


def test_an_archive_of_something_else(refuses, tmp_path):
    path = tmp_path / "other.keras"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.txt", "no weights")
    refuses(tiny(), path, r"holds no model\.weights\.h5.*data\.txt")


@pytest.mark.parametrize("kind", ["soft", "external", "virtual", "outside"])
def test_h5_files_that_point_elsewhere(save, refuses, tmp_path, kind):
    other = save(tiny(), ".weights.h5", "other")

    def change(file):
        del file[KERNEL]
        if kind == "soft":
            file[KERNEL] = h5py.SoftLink("/layers/dense/vars/0")
        elif kind == "external":
            file[KERNEL] = h5py.ExternalLink(str(other), KERNEL)
        elif kind == "virtual":
            layout = h5py.VirtualLayout((3, 3, 3, 8), "f4")
            layout[:] = h5py.VirtualSource(str(other), KERNEL, (3, 3, 3, 8))
            file.create_virtual_dataset(KERNEL, layout)
        else:
            secret = tmp_path / "secret"
            secret.write_bytes(bytes(864))
            file.create_dataset(
                KERNEL, (3, 3, 3, 8), "f4", external=[(str(secret), 0, 864)]
            )

    path = h5_of(save(tiny(), ".weights.h5"), change)
    refuses(tiny(), path, "(not followed|another file, which is not read)")


def test_a_group_in_itself(save, refuses):
    def change(file):
        file["layers/loop"] = file["layers"]

    path = h5_of(save(tiny(), ".weights.h5"), change)
    load_weights(tiny(), path)


def test_h5_without_numbers(save, refuses):
    for value, message in [(h5py.Empty("f4"), "holds nothing"), ("text", "misshapen")]:

        def change(file, value=value):
            del file[KERNEL]
            file[KERNEL] = value

        refuses(tiny(), h5_of(save(tiny(), ".weights.h5"), change), message)


def test_configurations_are_not_executed(save, tmp_path):
    # A lambda in a configuration is code, and so may a custom object's module be.
    canary = tmp_path / "canary"
    layer = keras.layers.Lambda(lambda x: x, name="lambda_layer")
    code = layer.get_config()
    path = save(tiny(), ".keras")
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(parts["config.json"])
    config["config"]["layers"].append(
        {"module": "os", "class_name": "system", "config": f"touch {canary}"}
    )
    config["module"], config["class_name"] = "subprocess", "getoutput"
    parts["config.json"] = json.dumps(config | {"lambda": str(code)}).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    load_weights(tiny(), path)
    assert not canary.exists()

    legacy = save(tiny(), ".h5")
    with h5py.File(legacy, "r+") as file:
        file.attrs["model_config"] = json.dumps(config)
    load_weights(tiny(), legacy)
    assert not canary.exists()


# Other models


@pytest.mark.parametrize(
    "model, error, message",
    [
        (lambda: "m", TypeError, "Received: <class 'str'>"),
        (lambda: keras.layers.Dense(2), TypeError, "Received: .*Dense"),
        (
            lambda: keras.Sequential([keras.layers.Dense(2)], name="unbuilt"),
            ValueError,
            "before its weights .*Received: unbuilt",
        ),
    ],
)
@EACH
def test_wrong_model(save, suffix, model, error, message):
    path = save(tiny(), suffix)
    with pytest.raises(error, match=f"`model` must be .*{message}"):
        load_weights(model(), path)


# Paths


def test_unknown_suffix(tmp_path):
    path = tmp_path / "weights.onnx"
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"end in one of .*Received.*weights\.onnx"):
        load_weights(tiny(), path)


@EACH
def test_no_such_file(tmp_path, suffix):
    with pytest.raises(FileNotFoundError):
        load_weights(tiny(), tmp_path / f"none{suffix}")


# Files on the Hugging Face Hub


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Stands in for huggingface_hub; `asked` lists the downloads."""
    hub = types.ModuleType("huggingface_hub")
    hub.asked = []

    def hf_hub_download(repo_id, filename, *, revision=None, library_name=None):
        hub.asked.append((repo_id, filename, revision, library_name))
        if repo_id == "user/none":
            raise RuntimeError("404 Client Error")
        return str(tmp_path / filename.replace("/", "_"))

    hub.hf_hub_download = hf_hub_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    return hub


def test_files_on_the_hub(save, hub, tmp_path):
    source = randomized(tiny())
    save(source, ".safetensors").rename(tmp_path / "sub_it.safetensors")
    model = tiny(weights="hf://user/repository/sub/it.safetensors")
    assert_same(weights_of(model), weights_of(source))
    path = "hf://user/repository@v1/sub/it.safetensors"
    with pytest.warns(UserWarning, match="the network's 5"):
        tiny(classes=5, weights=path, skip_mismatch=True)
    assert hub.asked == [
        ("user/repository", "sub/it.safetensors", None, "keras"),
        ("user/repository", "sub/it.safetensors", "v1", "keras"),
    ]


def test_builders_take_files_on_the_hub(hub, tmp_path):
    source = MobileNetV2CA((32, 32, 3), 0.25, weights=None, classes=3)
    save_safetensors(source, tmp_path / "it.safetensors")
    weights = "hf://user/repository/it.safetensors"
    model = MobileNetV2CA((32, 32, 3), 0.25, weights=weights, classes=3)
    assert_same(weights_of(model), weights_of(source))
    with pytest.raises(ValueError, match="`weights` must be.*hf://user/repository/it"):
        MobileNetV2CA(weights="hf://user/repository/it.bin")


@pytest.mark.parametrize(
    "path, error, message",
    [
        ("hf://user/repository", ValueError, "must be .hf://user/repository/file"),
        ("hf://it.safetensors", ValueError, "Received: 'hf://it.safetensors'"),
        ("hf://user/none/it.keras", OSError, "user/none/it.keras could not be.*404"),
    ],
)
def test_no_file_on_the_hub(hub, path, error, message):
    with pytest.raises(error, match=message):
        load_weights(tiny(), path)


def test_without_a_hub(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(
        ImportError, match=r"needs huggingface_hub: pip install .*\[hf\]"
    ):
        load_weights(tiny(), "hf://user/repository/it.safetensors")


@EACH
def test_a_class_of_layers_that_only_the_file_has(save, suffix):
    full = randomized(tiny(attention=False))
    headless = tiny(attention=False, include_top=False)
    assert not any(isinstance(la, keras.layers.Dense) for la in headless.layers)
    load_weights(headless, save(full, suffix))
    kernel = full.get_layer("Conv1").get_weights()[0]
    np.testing.assert_array_equal(headless.get_layer("Conv1").get_weights()[0], kernel)
