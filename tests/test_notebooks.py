"""The notebooks run from the first to the last cell.

Here on one step with small images, without Jupyter; `make test-as-users` runs them in
Jupyter as they are.
"""

import ast
import os
import pathlib
import re
import time

import keras
import nbformat
import pytest
from backends import needs_tensorflow

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOKS = sorted(ROOT.glob("notebooks/*.ipynb"))
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
# Outputs must not contain paths of a machine.
PATHS = ("/home/", "/Users/", "/root/", "/tmp/", "/work/", "C:\\")


def read(path):
    return nbformat.read(path, as_version=4)


def code(notebook):
    """Returns the code cells, and the index of the one with the parameters."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    tagged = [
        i
        for i, cell in enumerate(cells)
        if "parameters" in cell.metadata.get("tags", [])
    ]
    assert len(tagged) == 1
    return cells, tagged[0]


def few(batches):
    """Returns one small batch of them."""
    return batches.unbatch().take(8).batch(8)


def shortened(source):
    source = re.sub(r'("image_size": SIZE)', r'\1, "batch_size": 429', source)
    source = re.sub(r"\.(fit|evaluate)\((\s*)(train|test)\b", r".\1(\2few(\3)", source)
    source = re.sub(r"validation_data=(\w+)", r"validation_data=few(\1)", source)
    return re.sub(r"(evaluate_detections\(\w+), (\w+)", r"\1, few(\2)", source)


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """The digits, built once for all notebooks."""
    return tmp_path_factory.mktemp("tfds")


@needs_tensorflow
@each_notebook
def test_notebook(path, eager, datasets, monkeypatch, tmp_path, capsys):
    pytest.importorskip("pycocotools")
    import matplotlib.pyplot as plt

    monkeypatch.setenv("TFDS_DATA_DIR", str(datasets))
    monkeypatch.setattr(plt, "show", lambda: plt.close("all"))
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    cells, parameters = code(read(path))
    variables = {"few": few}
    for i, cell in enumerate(cells):
        source = shortened(cell.source)
        if i == parameters:
            source = re.sub(r"^SIZE = \d+", "SIZE = 32", source, flags=re.MULTILINE)
            source = re.sub(r"EPOCHS = \d+", "EPOCHS = 1", source)
        value = run(source, variables)
        if hasattr(value, "_repr_png_"):
            assert value._repr_png_().startswith(b"\x89PNG")
    keras.backend.clear_session()


def run(source, variables):
    """Runs a cell, and returns the value of its last line, as Jupyter displays it."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), variables)  # noqa: S102 our own notebooks
    if last is not None:
        return eval(compile(ast.Expression(last.value), "cell", "eval"), variables)


@needs_tensorflow
@pytest.mark.skipif("AS_USERS" not in os.environ, reason="takes minutes")
@each_notebook
def test_notebook_as_users(path, tmp_path, monkeypatch):
    from nbclient import NotebookClient

    for name in ("notebooks", "runs"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    resources = {"metadata": {"path": str(tmp_path / "notebooks")}}
    start = time.perf_counter()
    NotebookClient(read(path), timeout=600, resources=resources).execute()
    print(f"{path.stem}: {time.perf_counter() - start:.0f} s")


@each_notebook
def test_outputs_are_there_and_name_no_machine(path):
    notebook = read(path)
    cells, _ = code(notebook)
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
        assert not drawn or after is not None
