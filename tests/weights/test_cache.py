"""Published weights, from a local server in the place of the published one."""

import dataclasses
import functools
import hashlib
import http.server
import json
import os
import pathlib
import subprocess
import sys
import threading
import time

import keras
import numpy as np
import pytest

from keras_coordatt import MobileNetV2CA
from keras_coordatt.weights import CATALOG, cached_weights, load_torch
from keras_coordatt.weights import cache as cache_module
from keras_coordatt.weights.cache import cache_dir, check_file

ROOT = pathlib.Path(__file__).parents[2]
NAME = "mobilenetv2_ca_imagenet"


class Server(http.server.ThreadingHTTPServer):
    """Serves files by name; `answers` lists what was asked for, and the status."""

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


@pytest.fixture
def published(short_state, save_torch, server, cache, monkeypatch, tmp_path):
    """A checkpoint for the network of `short`, published on the local server."""
    data = save_torch(short_state(), tmp_path / "published.pth").read_bytes()
    publish(monkeypatch, server, data)
    return data


def publish(monkeypatch, server, data, path="/mbv2_ca.pth", **changes):
    server.files[path] = (data, None)
    record = dataclasses.replace(
        CATALOG[NAME],
        url=server.url + path,
        **{"hash": f"git:{git_blob(data)}", "size": None, **changes},
    )
    monkeypatch.setitem(CATALOG, NAME, record)


def git_blob(data):
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


def files_in(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


@pytest.fixture
def assert_is_published(short, short_state):
    def check(path):
        ours, expected = short(), short()
        ours.load_weights(path)
        load_torch(expected, short_state())
        for a, b in zip(ours.get_weights(), expected.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)

    return check


@pytest.mark.parametrize(
    "hash",
    [
        # `printf 'what is up, doc?' | git hash-object --stdin`, from the Pro Git book
        "git:bd9dbf5aae1a3862dd1526723246b20206e5fc37",
        "sha256:" + hashlib.sha256(b"what is up, doc?").hexdigest(),
    ],
)
def test_hashes(tmp_path, hash):
    path = tmp_path / "file"
    path.write_bytes(b"what is up, doc?")
    record = dataclasses.replace(CATALOG[NAME], hash=hash, size=16)
    check_file(path, record, "it")
    with pytest.raises(
        ValueError, match=f"it is not the published file.*{hash}, 17 bytes"
    ):
        check_file(path, dataclasses.replace(record, size=17), "it")
    path.write_bytes(b"what is up, dog?")
    with pytest.raises(ValueError, match=f"Expected: {hash}, 16 bytes"):
        check_file(path, record, "it")


# The way of the file


def test_downloads_checks_converts_and_keeps(
    published, server, cache, short, assert_is_published
):
    path = cached_weights(NAME, short)
    assert server.answers == [("/mbv2_ca.pth", 200)]
    assert pathlib.Path(path).parent == cache
    assert files_in(cache) == [pathlib.Path(path).name]
    assert_is_published(path)

    server.shutdown()
    server.server_close()
    assert cached_weights(NAME, short) == path
    assert len(server.answers) == 1
    assert_is_published(path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: b"<html>Sign in to the network</html>",
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda data: bytes(len(data)),
    ],
    ids=["empty", "html", "last byte", "half", "zeros"],
)
def test_a_converted_file_that_is_damaged_is_made_anew(
    published, server, cache, short, assert_is_published, damage
):
    path = pathlib.Path(cached_weights(NAME, short))
    path.write_bytes(damage(path.read_bytes()))
    assert cached_weights(NAME, short) == str(path)
    assert files_in(cache) == [path.name]
    assert len(server.answers) == 2
    assert_is_published(path)

    cached_weights(NAME, short)
    assert len(server.answers) == 2, "the good one is kept"


def test_a_file_put_there_by_hand(published, server, cache, short, assert_is_published):
    cache.mkdir(parents=True)
    (cache / "mbv2_ca.pth").write_bytes(published)
    path = cached_weights(NAME, short)
    assert server.answers == []
    assert_is_published(path)
    assert (cache / "mbv2_ca.pth").read_bytes() == published


def test_a_wrong_file_put_there_by_hand(published, server, cache, short):
    cache.mkdir(parents=True)
    (cache / "mbv2_ca.pth").write_bytes(published[:-1])
    with pytest.raises(
        ValueError, match=r"models/mbv2_ca\.pth is not the published file"
    ):
        cached_weights(NAME, short)
    assert server.answers == []
    assert files_in(cache) == ["mbv2_ca.pth"]


def changed(data):
    data = bytearray(data)
    data[len(data) // 2] ^= 1
    return bytes(data)


@pytest.mark.parametrize(
    "damage, length, error",
    [
        (lambda data: data[:-1], None, ValueError),
        (lambda data: data[: len(data) // 2], None, ValueError),
        (lambda data: data[: len(data) // 2], "unknown", ValueError),
        (lambda data: b"", None, ValueError),
        (changed, None, ValueError),
        (lambda data: data + b"\0", None, ValueError),
        (lambda data: b"<html>Sign in to the network</html>", None, ValueError),
        # Cut off, against the announced length
        (lambda data: data[:1000], 10_000_000, OSError),
        (lambda data: None, None, OSError),  # 404
    ],
    ids=[
        *("last byte", "half", "half, unknown length", "empty", "one bit", "longer"),
        *("html", "cut off", "404"),
    ],
)
def test_damaged_downloads(
    published, server, cache, short, assert_is_published, damage, length, error
):
    server.files["/mbv2_ca.pth"] = (damage(published), length)
    with pytest.raises(error) as caught:
        cached_weights(NAME, short)
    assert f"{server.url}/mbv2_ca.pth" in str(caught.value)
    if error is ValueError:
        assert git_blob(published) in str(caught.value)
        assert git_blob(damage(published)) in str(caught.value)
    assert [*cache.iterdir()] == [], "something was left half written"

    # Nothing of the failure stays in the way.
    server.files["/mbv2_ca.pth"] = (published, None)
    assert_is_published(cached_weights(NAME, short))


def test_a_size_that_is_known_is_checked_too(published, server, short, monkeypatch):
    publish(monkeypatch, server, published, size=len(published) + 1)
    with pytest.raises(ValueError, match=f"{len(published) + 1} bytes"):
        cached_weights(NAME, short)
    publish(monkeypatch, server, published, size=len(published))
    cached_weights(NAME, short)


def test_offline(published, server, cache, short):
    server.shutdown()
    server.server_close()
    with pytest.raises(OSError, match="could not be downloaded") as caught:
        cached_weights(NAME, short)
    message = str(caught.value)
    assert f"{server.url}/mbv2_ca.pth" in message
    assert str(cache / "mbv2_ca.pth") in message
    assert "`weights=None`" in message
    assert [*cache.iterdir()] == []


def test_a_good_file_of_another_network_is_not_kept(published, cache, short):
    with pytest.raises(ValueError, match="misshapen: classifier"):
        cached_weights(NAME, lambda: short(classes=7))
    assert [*cache.iterdir()] == []


def test_the_cache_is_in_full_precision_under_every_policy(
    published, short, assert_is_published
):
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float16")
    try:
        path = cached_weights(NAME, short)
        assert keras.config.dtype_policy().name == "float16"
    finally:
        keras.config.set_dtype_policy(policy)
    assert_is_published(path)


def test_cache_is_where_keras_keeps_models(monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "models"
    monkeypatch.delenv("KERAS_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".keras" / "models"


# The whole path, as a user goes it


@pytest.fixture
def official(short, short_state, save_torch, server, cache, monkeypatch, tmp_path):
    """A checkpoint for alpha 1.0 and 1000 classes, as DataParallel saves it."""
    path = save_torch(
        {f"module.{name}": array for name, array in short_state(1.0, 1000).items()},
        tmp_path / "official.pth",
        wrap=lambda state: {"state_dict": state, "epoch": 200},
    )
    publish(monkeypatch, server, path.read_bytes())
    return path


def test_imagenet_by_name(official, server, cache):
    small = {"input_shape": (32, 32, 3)}
    loaded = MobileNetV2CA(**small)
    assert len(server.answers) == 1
    expected = MobileNetV2CA(**small, weights=official)
    for a, b in zip(loaded.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)

    headless = MobileNetV2CA(include_top=False, weights="imagenet", **small)
    assert len(server.answers) == 1, "the second time needs no network"
    assert len(files_in(cache)) == 1
    for a, b in zip(headless.get_weights(), expected.get_weights(), strict=False):
        np.testing.assert_array_equal(a, b)


def test_imagenet_offline_says_what_to_do(official, server, cache):
    server.shutdown()
    server.server_close()
    with pytest.raises(OSError, match="weights=None") as caught:
        MobileNetV2CA(input_shape=(32, 32, 3))
    assert str(cache / "mbv2_ca.pth") in str(caught.value)


# Several processes

PROCESS = """
import json, sys
from keras_coordatt import MobileNetV2CA
from keras_coordatt.applications import mobilenet_v2_ca
from keras_coordatt.weights import CATALOG, cached_weights
import dataclasses

mobilenet_v2_ca.STAGES = ((1, 16, 1, 1), (6, 24, 2, 2))
changes = json.loads(sys.argv[1])
CATALOG[changes["name"]] = dataclasses.replace(
    CATALOG[changes["name"]], url=changes["url"], hash=changes["hash"]
)
print("ready", flush=True)
sys.stdin.readline()
print(cached_weights(changes["name"], lambda: MobileNetV2CA(
    (32, 32, 3), 0.25, weights=None, classes=3
)))
"""


@pytest.fixture
def start(published, server, cache):
    """Starts a process that asks for the weights once it is let go."""
    changes = {"name": NAME, "url": CATALOG[NAME].url, "hash": CATALOG[NAME].hash}
    processes = []

    def start():
        process = subprocess.Popen(
            [sys.executable, "-c", PROCESS, json.dumps(changes)],
            env={**os.environ, "KERAS_BACKEND": "numpy"},  # imported the soonest
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            pipe.close()


def test_several_processes_and_one_who_is_killed(
    start, published, server, cache, assert_is_published
):
    processes = [start() for _ in range(3)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"

    # The first is killed when half of the file is here.
    killed, *others = processes
    server.pause = threading.Event()
    killed.stdin.write("go\n")
    killed.stdin.flush()
    assert server.halfway.wait(60)
    while not files_in(cache):  # until it has begun to write
        time.sleep(0.01)
    killed.kill()
    killed.wait()
    server.pause.set()
    assert not [name for name in files_in(cache) if not name.startswith(".")]
    assert files_in(cache), "what it left is to be cleared away"

    # The others ask at once.
    server.answers.clear()
    for process in others:
        process.stdin.write("go\n")
        process.stdin.flush()
    paths = {process.communicate()[0].splitlines()[-1] for process in others}
    assert [process.returncode for process in others] == [0, 0]
    (path,) = paths
    assert files_in(cache) == [pathlib.Path(path).name]
    assert len(server.answers) == 1, "the second waits for the first"
    assert_is_published(path)


def test_without_locks_files_are_whole_too(
    published, server, cache, short, assert_is_published, monkeypatch
):
    monkeypatch.setattr(cache_module, "fcntl", None)  # as on Windows

    def build():
        # While this process converts, another one finishes.
        monkeypatch.setattr(cache_module, "_in_float32", lambda build: build())
        cached_weights(NAME, short)
        return short()

    monkeypatch.setattr(cache_module, "_in_float32", lambda _: build())
    path = cached_weights(NAME, short)
    assert len(server.answers) == 2
    assert files_in(cache) == [pathlib.Path(path).name]
    assert_is_published(path)
