"""The notebooks run in Jupyter as they are, and show what they explain."""

import pathlib
import time

import nbformat
import pytest
from backends import as_users, needs_tensorflow

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOKS = sorted(ROOT.glob("notebooks/*.ipynb"))
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
# Outputs must not contain paths of a machine.
PATHS = ("/home/", "/Users/", "/root/", "/tmp/", "/work/", "C:\\")


def read(path):
    return nbformat.read(path, as_version=4)


@needs_tensorflow
@as_users
@each_notebook
def test_notebook_as_users(path, tmp_path, monkeypatch):
    from nbclient import NotebookClient

    for name in ("notebooks", "runs"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    resources = {"metadata": {"path": str(tmp_path / "notebooks")}}
    start = time.perf_counter()
    NotebookClient(read(path), timeout=600, resources=resources).execute()
    # Printed for the reader: limits would fail on busy machines.
    print(f"{path.stem}: {time.perf_counter() - start:.0f} s")


@each_notebook
def test_outputs_are_there_and_name_no_machine(path):
    notebook = read(path)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in cells) == 1
    outputs = [output for cell in cells for output in cell.outputs]
    assert not any(output.output_type == "error" for output in outputs)
    texts = [
        x.get("text", "") + str(x.get("data", {}).get("text/plain")) for x in outputs
    ]
    assert not [text for text in texts if any(name in text for name in PATHS)]
    pictures = [x for x in outputs if "image/png" in x.get("data", {})]
    assert len(pictures) >= 2
    # Nothing that a figure shows stands there as the name of its class.
    assert not any("<Figure" in text for text in texts)
    # A cell that draws is followed by an explanation of the figure.
    for cell, after in zip(notebook.cells, [*notebook.cells[1:], None]):
        drawn = [x for x in cell.get("outputs", []) if "image/png" in x.get("data", {})]
        assert not drawn or (after is not None and after.cell_type == "markdown")
