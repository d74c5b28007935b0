"""The notebooks run, from first to last cell, on one epoch of small images."""

import pathlib

import nbformat
import pytest
from backends import needs_tensorflow
from nbclient import NotebookClient

FOLDER = pathlib.Path(__file__).parent.parent / "notebooks"


@needs_tensorflow
@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda p: p.stem)
def test_notebook(path, monkeypatch, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    (parameters,) = [
        cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])
    ]
    # To trace a step takes longer than to run it line by line.
    parameters.source = f"""
tf.config.run_functions_eagerly(True)
SIZE, EPOCHS, FOLDER = 32, 1, pathlib.Path({str(tmp_path)!r})
"""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": FOLDER}}
    ).execute()
    text = "".join(
        output.get("text", "")
        for cell in notebook.cells
        for output in cell.get("outputs", [])
    )
    assert "test accuracy" in text and "saved_model: largest difference" in text
    shown = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert len(shown) >= 5


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda p: p.stem)
def test_outputs_name_no_machine(path):
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            assert output.output_type != "error"
            for text in (
                output.get("text", ""),
                output.get("data", {}).get("text/plain", ""),
            ):
                assert not any(
                    name in text for name in ("/home/", "/Users/", "/tmp/", "C:\\")
                )
