"""Official weights: all of them are loaded, or none."""

import re

import keras
import numpy as np
import pytest
from backends import once
from keras import ops

from keras_coordatt import CoordinateAttention, MobileNetV2CA, MobileNeXtCA
from keras_coordatt.weights import load_torch
from keras_coordatt.weights.official import official_state
from keras_coordatt.weights.torch_checkpoint import read_checkpoint

GOLDEN_LAYER = "coordatt_c16_7x11_r4.npz"
GOLDEN_NETWORK = "mbv2_ca_w025_c10.pth"


def layer_state(golden):
    arrays = np.load(golden(GOLDEN_LAYER))
    return {
        name.removeprefix("state/"): arrays[name]
        for name in arrays.files
        if name.startswith("state/")
    }


def built_layer(channels=16, reduction=4, **arguments):
    layer = CoordinateAttention(reduction, data_format="channels_last", **arguments)
    layer.build((None, None, None, channels))
    return layer


def aligned(array):
    """A copy where JAX sees no need for one."""
    raw = np.empty(array.nbytes + 64, "u1")
    start = -raw.ctypes.data % 64
    copy = raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def weights_of(target):
    return {w.path: ops.convert_to_numpy(w.value).copy() for w in target.weights}


def assert_unchanged(target, before):
    after = weights_of(target)
    assert list(after) == list(before)
    for name in before:
        np.testing.assert_array_equal(after[name], before[name], err_msg=name)


def kernel(array):
    """PyTorch's kernel in Keras's layout: written out, axis by axis."""
    out, inputs, height, width = array.shape
    ours = np.empty((height, width, inputs, out), array.dtype)
    for o in range(out):
        for i in range(inputs):
            ours[:, :, i, o] = array[o, i]
    return ours


# Names


def test_every_weight_of_a_network_has_a_name(short, short_state):
    model, state = short(), short_state()
    load_torch(model, state)
    get = {layer.name: layer.get_weights() for layer in model.layers}
    equal = np.testing.assert_array_equal
    equal(get["Conv1"][0], kernel(state["features.0.0.weight"]))
    for i, part in enumerate(["weight", "bias", "running_mean", "running_var"]):
        equal(get["bn_Conv1"][i], state[f"features.0.1.{part}"])
        equal(get["block_2_project_BN"][i], state[f"features.3.conv.8.{part}"])
        equal(get["Conv_1_bn"][i], state[f"conv.1.{part}"])
    depthwise = kernel(state["features.2.conv.3.weight"]).transpose(0, 1, 3, 2)
    equal(get["block_1_depthwise"][0], depthwise)
    equal(get["block_1_expand"][0], kernel(state["features.2.conv.0.weight"]))
    equal(get["expanded_conv_project"][0], kernel(state["features.1.conv.3.weight"]))
    equal(get["predictions"][0], state["classifier.1.weight"].T)
    equal(get["predictions"][1], state["classifier.1.bias"])
    attention = model.get_layer("block_2_attention")
    for axis, name in [("height", "conv2"), ("width", "conv3")]:
        gate_kernel, bias = attention.gates[axis].get_weights()
        equal(gate_kernel, state[f"features.3.conv.6.{name}.weight"][:, :, 0, 0].T)
        equal(bias, state[f"features.3.conv.6.{name}.bias"])
    assert sum(array.size for array in state.values()) == model.count_params()


@pytest.mark.parametrize(
    "builder, alpha, name",
    [
        (MobileNetV2CA, 0.25, "mbv2_plain_w025_c10"),
        (MobileNeXtCA, 0.35, "mnext_w035_c10"),
    ],
)
def test_networks_without_attention(golden, builder, alpha, name, assert_within):
    # Made with d-li14/mobilenetv2.pytorch and houqb/ssdlite-pytorch-mobilenext
    path, io = golden(f"{name}.pth"), np.load(golden(f"{name}_io.npz"))
    model = builder(
        (64, 96, 3),
        alpha,
        classes=10,
        classifier_activation=None,
        weights=path,
        attention=None,
    )
    logits = ops.convert_to_numpy(model(io["input_nchw"].transpose(0, 2, 3, 1)))
    difference = np.abs(logits - io["logits"]).max() / np.abs(io["logits"]).max()
    assert_within(f"logits, {name}", float(difference), 1e-4)
    # And back, name by name in the same order.
    theirs, ours = read_checkpoint(path), official_state(model)
    assert list(ours) == list(theirs)
    for key, array in theirs.items():
        if not key.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(ours[key], array, err_msg=key)


@pytest.mark.parametrize("attention", ["coordinate", None])
@pytest.mark.parametrize("classifier", ["classifier", "classifier.1", "classifier.0"])
def test_either_name_of_the_classifier(short, attention, classifier):
    model, other = short(attention=attention), short(attention=attention)
    source = {
        re.sub(r"classifier(\.1)?(?=\.[wb])", classifier, name): array
        for name, array in official_state(model).items()
    }
    assert f"{classifier}.weight" in source
    load_torch(other, source)
    for a, b in zip(other.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    # A classifier of two layers is another.
    source["classifier.3.weight"] = source[f"{classifier}.weight"]
    with pytest.raises(ValueError, match=r"unexpected: classifier"):
        load_torch(other, source)


@pytest.mark.parametrize("names", [("conv2", "conv3"), ("conv_h", "conv_w")])
@pytest.mark.parametrize("axes", ["both", "height", "width"])
def test_either_name_of_the_gates(golden, names, axes):
    state = layer_state(golden)
    height, width = names
    state = {
        name.replace("conv_h.", f"{height}.").replace("conv_w.", f"{width}."): array
        for name, array in state.items()
    }
    other = {"both": (), "height": (width,), "width": (height,)}[axes]
    state = {k: v for k, v in state.items() if k.split(".")[0] not in other}
    layer = built_layer(axes=axes)
    load_torch(layer, state)
    for axis, name in [("height", height), ("width", width)]:
        if axis in layer.gates:
            expected = state[f"{name}.weight"][:, :, 0, 0].T
            np.testing.assert_array_equal(layer.gates[axis].get_weights()[0], expected)


def test_network_with_the_layers_own_names(short, short_state):
    state = short_state()
    renamed = {
        name.replace(".conv2.", ".conv_h.").replace(".conv3.", ".conv_w."): array
        for name, array in state.items()
    }
    assert renamed.keys() != state.keys()
    one, two = short(), short()
    load_torch(one, state)
    load_torch(two, renamed)
    for a, b in zip(one.get_weights(), two.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "prefix", ["", "module.", "_orig_mod.module.", "model.net.", "model.backbone."]
)
@pytest.mark.parametrize("key", [None, "state_dict", "model_state_dict", "model"])
def test_wrapped_and_prefixed_mappings(golden, prefix, key):
    state = {prefix + name: array for name, array in layer_state(golden).items()}
    layer, expected = built_layer(), built_layer()
    load_torch(layer, state if key is None else {key: state, "epoch": 7})
    load_torch(expected, layer_state(golden))
    assert_unchanged(
        layer, {w.path: v for w, v in zip(layer.weights, expected.get_weights())}
    )


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_precisions_of_the_source(golden, dtype):
    state = {k: v.astype(dtype) for k, v in layer_state(golden).items()}
    layer = built_layer()
    load_torch(layer, state)
    assert {str(w.dtype) for w in layer.weights} == {"float32"}
    bias = ops.convert_to_numpy(layer.shared.bias)
    np.testing.assert_array_equal(bias, state["conv1.bias"].astype("float32"))


def test_bfloat16_of_ml_dtypes(golden):
    # NumPy's own kind for it is "V", void.
    ml_dtypes = pytest.importorskip("ml_dtypes")
    state = {k: v.astype(ml_dtypes.bfloat16) for k, v in layer_state(golden).items()}
    layer = built_layer()
    load_torch(layer, state)
    bias = ops.convert_to_numpy(layer.shared.bias)
    np.testing.assert_array_equal(bias, state["conv1.bias"].astype("float32"))


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_precisions_of_the_target(golden, policy):
    layer = built_layer(dtype=policy)
    load_torch(layer, layer_state(golden))
    bias = ops.convert_to_numpy(layer.shared.bias)
    np.testing.assert_array_equal(bias, layer_state(golden)["conv1.bias"])


def test_tensors_of_pytorch(golden):
    torch = pytest.importorskip("torch")
    state = {
        k: torch.nn.Parameter(torch.tensor(v)) for k, v in layer_state(golden).items()
    }
    state["bn1.num_batches_tracked"] = torch.tensor(12)
    state["conv1.bias"] = state["conv1.bias"].bfloat16()
    layer = built_layer()
    load_torch(layer, state)
    expected = layer_state(golden)
    bias = ops.convert_to_numpy(layer.shared.bias)
    np.testing.assert_allclose(bias, expected["conv1.bias"], rtol=1e-2)
    mean = ops.convert_to_numpy(layer.norm.moving_mean)
    np.testing.assert_array_equal(mean, expected["bn1.running_mean"])


def test_weights_are_a_copy(golden):
    # JAX would keep the caller's own memory, and change with it.
    state = {name: aligned(array) for name, array in layer_state(golden).items()}
    layer = built_layer()
    load_torch(layer, state)
    before = weights_of(layer)
    for array in state.values():
        array[...] = 7
    assert_unchanged(layer, before)


def test_channels_first_takes_the_same_weights(golden):
    layer = CoordinateAttention(4, data_format="channels_first")
    layer.build((None, 16, None, None))
    load_torch(layer, layer_state(golden))
    expected = built_layer()
    load_torch(expected, layer_state(golden))
    for a, b in zip(layer.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


# Mismatches


def damaged(state, damages):
    state = dict(state)
    for name, damage in damages.items():
        if damage is None:
            del state[name]
        else:
            state[name] = damage
    return state


@pytest.mark.parametrize("seed", range(5))
def test_every_entry_that_does_not_fit_is_named(short, short_state, seed):
    rng = np.random.default_rng(seed)
    model, state = short(), short_state()
    before = weights_of(model)
    names = [str(n) for n in rng.permutation(list(state))]
    missing, misshapen, integral = names[:3], names[3:6], names[6:8]
    unexpected = [f"features.{i}.conv.6.alpha" for i in range(2)]
    source = damaged(
        state,
        dict.fromkeys(missing)
        | {name: np.append(state[name], 0.0) for name in misshapen}
        | {name: state[name].astype("int64") for name in integral}
        | {name: np.ones((2, 5)) for name in unexpected},
    )
    with pytest.raises(ValueError, match="no weight was changed") as caught:
        load_torch(model, source)
    lines = [line.strip() for line in str(caught.value).splitlines()[1:]]
    expected = [f"missing: {n}, shape {state[n].shape}" for n in missing]
    expected += [
        f"misshapen: {n}, shape ({state[n].size + 1},), expected {state[n].shape}"
        for n in misshapen
    ]
    expected += [f"not floating-point: {n}, dtype int64" for n in integral]
    expected += [f"unexpected: {n}, shape (2, 5)" for n in unexpected]
    assert sorted(lines) == sorted(expected)
    assert_unchanged(model, before)


def test_each_entry_is_needed(short, short_state):
    model, state = short(), short_state()
    before = weights_of(model)
    for name in state:
        with pytest.raises(ValueError, match=f"missing: {re.escape(name)}, "):
            load_torch(model, damaged(state, {name: None}))
    assert_unchanged(model, before)


def test_equal_sizes_are_not_equal_shapes(short, short_state):
    # A transposed kernel would fit by its size alone.
    model, state = short(), short_state()
    before = weights_of(model)
    name = "features.2.conv.0.weight"
    swapped = state[name].reshape(8, 48, 1, 1)
    with pytest.raises(ValueError, match=r"misshapen: .*\(8, 48, 1, 1\), expected"):
        load_torch(model, damaged(state, {name: swapped}))
    assert_unchanged(model, before)


def test_another_network(short, golden):
    model = short()
    before = weights_of(model)
    with pytest.raises(ValueError, match=r"unexpected: features\.4\.conv\.0\.weight"):
        load_torch(model, golden(GOLDEN_NETWORK))
    assert_unchanged(model, before)
    with pytest.raises(ValueError, match="missing: features.0.0.weight"):
        load_torch(model, {})
    assert_unchanged(model, before)


@pytest.mark.parametrize("suffix", ["", "_legacy"], ids=["zip", "legacy"])
def test_truncated_file_changes_nothing(short, golden, tmp_path, suffix):
    model = short()
    before = weights_of(model)
    data = golden(f"mbv2_ca_w025_c10{suffix}.pth").read_bytes()
    path = tmp_path / "truncated.pth"
    for length in (0, 1, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match=r"Cannot read .*truncated\.pth"):
            load_torch(model, path)
    assert_unchanged(model, before)


@pytest.mark.parametrize(
    "target, message",
    [
        (lambda: "a model", "Received: <class 'str'>"),
        (lambda: keras.layers.Dense(2), "Received: .*Dense"),
    ],
)
def test_wrong_target(target, message):
    with pytest.raises(TypeError, match=f"`target` must be .*{message}"):
        load_torch(target(), {})


def test_names_that_become_one():
    with pytest.raises(ValueError, match=r"more than one \['1'\]"):
        load_torch(built_layer(), {1: np.ones(3), "1": np.ones(3)})


@pytest.mark.parametrize("source", [3, None, [1.0], np.ones(3)])
def test_wrong_source(source):
    with pytest.raises(TypeError, match="`source` must be .*Received"):
        load_torch(built_layer(), source)


def test_target_without_official_names():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="head")])
    with pytest.raises(
        ValueError, match="MobileNetV2CA, MobileNeXtCA and EfficientNetCA.*head"
    ):
        load_torch(model, {})
    with pytest.raises(ValueError, match="must be built.*my_attention"):
        load_torch(CoordinateAttention(name="my_attention"), {})


def test_identity_gates_are_refused(golden):
    layer = built_layer(identity_init=True)
    before = weights_of(layer)
    with pytest.raises(ValueError, match="identity_init=True"):
        load_torch(layer, layer_state(golden))
    assert_unchanged(layer, before)


def test_a_classifier_beside_a_prefixed_backbone(short, short_state):
    state = short_state()
    source = {
        name if name.startswith("classifier.") else f"backbone.{name}": array
        for name, array in state.items()
    }
    one, two = short(), short()
    load_torch(one, source)
    load_torch(two, state)
    for a, b in zip(one.get_weights(), two.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("change", ["int8", pytest.param("int4", marks=once), "lora"])
def test_quantized_kernels_are_refused(short, short_state, change):
    model = short()
    if change == "lora":
        model.get_layer("predictions").enable_lora(2)
    else:
        model.quantize(change)
    before = weights_of(model)
    for use in (official_state, lambda model: load_torch(model, short_state())):
        with pytest.raises(ValueError, match="`target` must not be quantized"):
            use(model)
    assert_unchanged(model, before)


def test_golden_file_has_the_expected_content(golden, short_state):
    # The names of the official code, on which everything above relies.
    names = list(read_checkpoint(golden(GOLDEN_NETWORK)))
    ours = [name for name in short_state() if not name.startswith("features.3.")]
    assert set(ours) <= set(names)


def test_values_beyond_float16_are_refused():
    image = keras.Input((8, 8, 3))
    conv = keras.layers.Conv2D(4, 3, use_bias=False, name="Conv1", dtype="float16")
    norm = keras.layers.BatchNormalization(name="bn_Conv1", dtype="float16")
    stem = keras.Model(image, norm(conv(image)))
    arrays = official_state(stem)
    load_torch(stem, arrays)
    arrays["features.0.1.running_var"] = np.array([1, 1, 1, 1e5], "float32")
    with pytest.raises(ValueError, match="running_var, 1 of 4 .* in float16"):
        load_torch(stem, arrays)
