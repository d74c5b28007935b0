"""Networks of few blocks, state dicts for them, and a server of published files."""

import dataclasses
import functools
import hashlib
import http.server
import threading

import numpy as np
import pytest

from keras_coordatt import MobileNetV2CA
from keras_coordatt.applications import efficientnet_ca, mobilenet_v2_ca, mobilenext_ca
from keras_coordatt.weights import CATALOG


@pytest.fixture
def short_stages(monkeypatch):
    """Leaves the first stages of every network."""
    stages = ((1, 16, 1, 1), (6, 24, 2, 2))
    monkeypatch.setattr(mobilenet_v2_ca, "STAGES", stages)
    stages = ((2, 96, 1, 2), (6, 96, 2, 1), (6, 144, 2, 2))
    monkeypatch.setattr(mobilenext_ca, "STAGES", stages)
    stages = ((1, 16, 3, 1, 1), (6, 24, 3, 2, 2))
    monkeypatch.setattr(efficientnet_ca, "STAGES", stages)


@pytest.fixture
def short(short_stages):
    """MobileNetV2CA with its first blocks only, which is built quickly."""

    def build(**arguments):
        defaults = {"input_shape": (32, 32, 3), "alpha": 0.25, "classes": 3}
        return MobileNetV2CA(**{**defaults, "weights": None, **arguments})

    return build


@pytest.fixture
def short_state():
    """Returns a state dict for `short`, with the names of the official code."""

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


class Server(http.server.ThreadingHTTPServer):
    """Serves files by name; `answers` lists the requests and their status."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {}
        self.answers = []
        self.pause, self.halfway = None, threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        content, length = self.server.files.get(self.path, (None, None))
        status = 404 if content is None else 200
        self.server.answers.append((self.path, status))
        self.send_response(status)
        if content is not None and length != "unknown":
            self.send_header("Content-Length", str(length or len(content)))
        self.end_headers()
        content = content or b"Not Found"
        if self.server.pause:  # halfway
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            self.server.halfway.set()
            self.server.pause.wait()
            self.server.pause = None
            return
        self.wfile.write(content)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with Server() as server:
        threading.Thread(
            target=functools.partial(server.serve_forever, poll_interval=0.01),
            daemon=True,
        ).start()
        yield server
        server.shutdown()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of models, in the place of the user's."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    return tmp_path / "keras" / "models"


def git_blob(data):
    return "git:" + hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


HASHES = {"git": git_blob, "md5": lambda data: "md5:" + hashlib.md5(data).hexdigest()}


@pytest.fixture
def publish(server, cache, monkeypatch):
    """Publishes a file under a name of the catalog, on the local server."""

    def publish(name, data):
        record = CATALOG[name]
        path = f"/{record.filename}"
        server.files[path] = (data, None)
        hashed = HASHES[record.hash.partition(":")[0]](data)
        record = dataclasses.replace(record, url=server.url + path, hash=hashed)
        monkeypatch.setitem(CATALOG, name, record)
        return record

    return publish
