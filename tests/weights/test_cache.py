"""Published files, from a local server in the place of the published one."""

import dataclasses
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import threading
import time
from multiprocessing.pool import ThreadPool

import pytest
from backends import once

from keras_coordatt.weights import CATALOG, cached_weights
from keras_coordatt.weights.cache import cache_dir, check_file

pytestmark = once

ROOT = pathlib.Path(__file__).parents[2]
NAME = "mobilenetv2_ca_imagenet"
DATA = bytes(range(256)) * 400


def files_in(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize(
    "hash",
    [
        # `printf 'what is up, doc?' | git hash-object --stdin`, from the Pro Git book
        "git:bd9dbf5aae1a3862dd1526723246b20206e5fc37",
        "sha256:" + hashlib.sha256(b"what is up, doc?").hexdigest(),
        # `printf 'what is up, doc?' | md5sum`
        "md5:85d3b22486a86f117c680ae455c3f73f",
    ],
)
def test_hashes(tmp_path, hash):
    path = tmp_path / "file"
    path.write_bytes(b"what is up, doc?")
    record = dataclasses.replace(CATALOG[NAME], hash=hash)
    check_file(path, record, "it")
    path.write_bytes(b"what is up, dog?")
    with pytest.raises(ValueError, match=f"it is not the published.*Expected: {hash}"):
        check_file(path, record, "it")


def test_downloads_once(publish, server, cache):
    publish(NAME, DATA)
    path = cached_weights(NAME)
    assert path == cache / "mbv2_ca.pth"
    assert path.read_bytes() == DATA
    assert server.answers == [("/mbv2_ca.pth", 200)]
    assert files_in(cache) == ["mbv2_ca.pth"]

    server.shutdown()
    server.server_close()
    assert cached_weights(NAME) == path
    assert len(server.answers) == 1


def test_a_file_put_there_by_hand(publish, server, cache):
    publish(NAME, DATA)
    cache.mkdir(parents=True)
    (cache / "mbv2_ca.pth").write_bytes(DATA)
    assert cached_weights(NAME) == cache / "mbv2_ca.pth"
    (cache / "mbv2_ca.pth").write_bytes(DATA[:-1])
    with pytest.raises(ValueError, match=r"models/mbv2_ca\.pth.* not the published"):
        cached_weights(NAME)
    assert server.answers == []
    assert files_in(cache) == ["mbv2_ca.pth"]


def changed(data):
    data = bytearray(data)
    data[len(data) // 2] ^= 1
    return bytes(data)


@pytest.mark.parametrize(
    "damage, length, error",
    [
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
        *("half", "half, unknown length", "empty", "one bit", "longer"),
        *("html", "cut off", "404"),
    ],
)
def test_damaged_downloads(publish, server, cache, damage, length, error):
    record = publish(NAME, DATA)
    server.files["/mbv2_ca.pth"] = (damage(DATA), length)
    with pytest.raises(error) as caught:
        cached_weights(NAME)
    assert record.url in str(caught.value)
    if error is ValueError:
        assert record.hash in str(caught.value)
    assert not cache.exists(), "something was left"

    # Nothing of the failure stays in the way.
    server.files["/mbv2_ca.pth"] = (DATA, None)
    assert cached_weights(NAME).read_bytes() == DATA


def test_another_process_ends_meanwhile(publish, cache):
    publish(NAME, DATA)
    cache.mkdir(parents=True)
    # Its folder is listed and then gone, as this link's target is.
    (cache / ".mbv2_ca.pth-other").symlink_to(cache / "gone")
    assert cached_weights(NAME).read_bytes() == DATA


def test_offline(publish, server, cache):
    record = publish(NAME, DATA)
    server.shutdown()
    server.server_close()
    with pytest.raises(OSError, match="could not be downloaded") as caught:
        cached_weights(NAME)
    message = str(caught.value)
    assert record.url in message
    assert str(cache / "mbv2_ca.pth") in message
    assert "`weights=None`" in message
    assert not cache.exists()


def test_cache_is_where_keras_keeps_models(monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "models"
    monkeypatch.delenv("KERAS_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".keras" / "models"


PROCESS = """
import dataclasses, json, sys
from keras_coordatt.weights import CATALOG, cached_weights

changes = json.loads(sys.argv[1])
name = changes.pop("name")
CATALOG[name] = dataclasses.replace(CATALOG[name], **changes)
cached_weights(name)
"""


def test_some_at_once_and_one_who_is_killed(publish, server, cache):
    record = publish(NAME, DATA)
    changes = {"name": NAME, "url": record.url, "hash": record.hash}
    killed = subprocess.Popen(
        [sys.executable, "-c", PROCESS, json.dumps(changes)],
        env={**os.environ, "KERAS_BACKEND": "numpy"},  # imported the soonest
        cwd=ROOT,
    )
    # It is killed when half of the file is here.
    server.pause = threading.Event()
    try:
        assert server.halfway.wait(300)
        while not files_in(cache):  # until it has begun to write
            time.sleep(0.01)
    finally:
        killed.kill()
        killed.wait()
        server.pause.set()
    (left,) = cache.iterdir()
    assert left.name.startswith(".mbv2_ca.pth-")
    os.utime(left, (0, 0))  # as if days had passed

    with ThreadPool(4) as pool:
        paths = pool.map(cached_weights, [NAME] * 4)
    assert paths == [cache / "mbv2_ca.pth"] * 4
    assert [path.name for path in cache.iterdir()] == ["mbv2_ca.pth"]
    assert (cache / "mbv2_ca.pth").read_bytes() == DATA
