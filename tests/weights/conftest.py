"""A MobileNetV2CA of three blocks, and the official state dict for it."""

import numpy as np
import pytest

from keras_coordatt import MobileNetV2CA
from keras_coordatt.applications import mobilenet_v2_ca


@pytest.fixture
def short(monkeypatch):
    """MobileNetV2CA with its first blocks only, to be built in no time."""
    monkeypatch.setattr(mobilenet_v2_ca, "STAGES", ((1, 16, 1, 1), (6, 24, 2, 2)))

    def build(**arguments):
        defaults = {"input_shape": (32, 32, 3), "alpha": 0.25, "classes": 3}
        return MobileNetV2CA(**{**defaults, "weights": None, **arguments})

    return build


@pytest.fixture
def short_state():
    """Gives a state dict for `short`, with the names of the official code."""

    def state_dict(alpha=0.25, classes=3):
        stem, first, second = {0.25: (8, 8, 8), 1.0: (32, 16, 24)}[alpha]
        shapes = {}

        def conv(name, outputs, inputs, size=1):
            shapes[f"{name}.weight"] = (outputs, inputs, size, size)

        def norm(name, channels):
            for part in ("weight", "bias", "running_mean", "running_var"):
                shapes[f"{name}.{part}"] = (channels,)

        conv("features.0.0", stem, 3, 3)
        norm("features.0.1", stem)
        conv("features.1.conv.0", stem, 1, 3)
        norm("features.1.conv.1", stem)
        conv("features.1.conv.3", first, stem)
        norm("features.1.conv.4", first)
        for i, inputs in [(2, first), (3, second)]:
            block, expanded = f"features.{i}.conv", inputs * 6
            conv(f"{block}.0", expanded, inputs)
            norm(f"{block}.1", expanded)
            conv(f"{block}.3", expanded, 1, 3)
            norm(f"{block}.4", expanded)
            conv(f"{block}.6.conv1", 8, expanded)
            shapes[f"{block}.6.conv1.bias"] = (8,)
            norm(f"{block}.6.bn1", 8)
            for gate in ("conv2", "conv3"):
                conv(f"{block}.6.{gate}", expanded, 8)
                shapes[f"{block}.6.{gate}.bias"] = (expanded,)
            conv(f"{block}.7", second, expanded)
            norm(f"{block}.8", second)
        conv("conv.0", 1280, second)
        norm("conv.1", 1280)
        shapes["classifier.1.weight"] = (classes, 1280)
        shapes["classifier.1.bias"] = (classes,)

        rng = np.random.default_rng(0)
        return {
            name: rng.uniform(0.5, 1.5, shape).astype("float32")
            for name, shape in shapes.items()
        }

    return state_dict


@pytest.fixture
def save_torch():
    """Saves a state dict of arrays as PyTorch would."""
    torch = pytest.importorskip("torch")

    def save(state, path, wrap=lambda state: state, **arguments):
        state = {name: torch.tensor(array) for name, array in state.items()}
        torch.save(wrap(state), path, **arguments)
        return path

    return save
