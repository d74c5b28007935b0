"""Files and folders are replaced atomically."""

import os

import pytest
from backends import once

from keras_coordatt.files import atomic_file, atomic_folder

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
