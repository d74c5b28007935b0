"""Text is read in any common encoding; files and folders are replaced atomically."""

import os
import signal

import pytest
from backends import once

from keras_coordatt.files import atomic_file, atomic_folder, exclusive_lock, read_text

pytestmark = once


def test_a_file_is_replaced_only_when_it_is_written(tmp_path):
    path = tmp_path / "scores.json"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_file(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    with atomic_file(path) as temporary:
        assert temporary.suffix == ".json"
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["scores.json"]


def test_a_folder_is_replaced_only_when_it_is_written(tmp_path):
    path = tmp_path / "model"
    for text in ("first", "second"):
        with atomic_folder(path) as temporary:
            temporary.mkdir()
            (temporary / text).write_text(text)
        assert os.listdir(path) == [text]
    with pytest.raises(RuntimeError), atomic_folder(path) as temporary:
        temporary.mkdir()
        raise RuntimeError
    with pytest.raises(FileNotFoundError), atomic_folder(path):
        pass  # nothing was written, so the old folder goes back
    assert os.listdir(path) == ["second"]
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize("atomic", [atomic_file, atomic_folder])
def test_created_folders_stay_only_on_success(tmp_path, atomic):
    path = tmp_path / "runs" / "first" / "model"
    with pytest.raises(RuntimeError), atomic(path):
        raise RuntimeError
    assert not os.listdir(tmp_path)
    with pytest.raises(RuntimeError), atomic(path):
        (tmp_path / "runs" / "notes").touch()  # of somebody else
        raise RuntimeError
    assert os.listdir(tmp_path / "runs") == ["notes"]
    with atomic(path) as temporary:
        temporary.mkdir()
    assert path.exists()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_text(tmp_path, encoding):
    (tmp_path / "labels.txt").write_bytes("straße\r\n写真".encode(encoding))
    assert read_text(tmp_path / "labels.txt").splitlines() == ["straße", "写真"]


def test_text_in_another_encoding(tmp_path):
    (tmp_path / "labels.txt").write_bytes("straße".encode("latin-1"))
    with pytest.raises(ValueError, match=r"labels\.txt must be saved as UTF-8"):
        read_text(tmp_path / "labels.txt")


def test_a_lock_is_for_one_and_leaves_nothing(tmp_path):
    path = tmp_path / "runs" / "out" / ".lock"
    with exclusive_lock(path):
        with pytest.raises(BlockingIOError), exclusive_lock(path):
            pass
        assert path.exists()
    assert os.listdir(tmp_path) == []
    # Without a place for it, there is no lock.
    (tmp_path / "file").touch()
    with exclusive_lock(tmp_path / "file" / "out" / ".lock"):
        pass
    assert os.listdir(tmp_path) == ["file"]


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    path = tmp_path / "out" / ".lock"
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        with exclusive_lock(path):
            os.write(write, b"locked")
            signal.pause()
    try:
        assert os.read(read, 6) == b"locked"
        with pytest.raises(BlockingIOError), exclusive_lock(path):
            pass
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert path.exists()
    with exclusive_lock(path):
        pass
    assert not path.exists()
