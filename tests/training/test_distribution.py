"""Several devices and processes train as one, and end when one of them dies."""

import csv
import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from backends import BACKEND, as_users, needs_tensorflow

from keras_coordatt.data import load_classification
from keras_coordatt.training import distribute

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent.parent
RUNS = ["devices-0", "two-0", "two-1", "four-0", "four-3"]
needs_jax = pytest.mark.skipif(BACKEND != "jax", reason="JAX only")


def environment():
    paths = [ROOT, HERE, HERE.parent]
    paths += filter(None, [os.environ.get("PYTHONPATH")])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}


def run_script(name, *arguments):
    """Runs a file of this folder, and returns what it prints."""
    done = subprocess.run(
        [sys.executable, HERE / name, *arguments],
        env=environment(),
        capture_output=True,
        check=False,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """What `distributed.py` measured, for each run and process."""
    folder = tmp_path_factory.mktemp("distributed")
    run_script("distributed.py", folder / "data", folder)
    return {path.stem: dict(np.load(path)) for path in folder.glob("*.npz")}


@pytest.mark.parametrize("shards", [1, 2, 4])
def test_every_image_once(image_folder, shards):
    """12 images on batches of 8, as each of the processes reads them."""
    options = {"batch_size": 8 // shards, "one_hot": True}
    plain = load_classification(image_folder, "train", 32, one_hot=True)
    expected = np.concatenate([x for x, _ in plain.as_numpy_iterator()])
    parts = [
        list(
            load_classification(
                image_folder,
                "train",
                32,
                shard=(i, shards),
                pad_remainder=True,
                **options,
            ).as_numpy_iterator()
        )
        for i in range(shards)
    ]
    weights = np.array([[w for *_, w in part] for part in parts])
    assert weights.shape == (shards, 2, 8 // shards)
    # Keras's mean of two batches of 8 is that of the 12 images.
    assert weights.sum() == pytest.approx(16)
    images = np.array([[x for x, *_ in part] for part in parts])
    real = [images[i % shards][weights[i % shards] > 0][i // shards] for i in range(12)]
    np.testing.assert_array_equal(real, expected)


def test_steps_are_of_one_size(image_folder):
    batches = load_classification(image_folder, "train", 32, 5, steps=4)
    assert len(batches) == 4
    images = np.concatenate([x for x, _ in batches.as_numpy_iterator()])
    assert len(images) == 20
    np.testing.assert_array_equal(images[12:], images[:8])


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"shard": (2, 2)}, r"`shard` must be.*\(2, 2\)"),
        ({"shard": 2}, "`shard` must be.*2"),
        ({"steps": 0}, "`steps` must be.*Received: 0$"),
        ({"pad_remainder": 1}, "`pad_remainder` must be.*Received: 1$"),
        ({"pad_remainder": True, "shuffle": True}, "`pad_remainder` is for evaluation"),
    ],
)
def test_wrong_arguments_of_loaders(image_folder, arguments, message):
    with pytest.raises(ValueError, match=message):
        load_classification(image_folder, "train", 32, **arguments)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"devices": 0}, "`devices` must be.*Received: 0$"),
        ({"devices": 9}, "`devices` must be.*9"),
        ({"coordinator": "here"}, "`coordinator` must be HOST:PORT.*here"),
        (
            {"coordinator": "h:1", "processes": 2},
            "must be given together.*process_id=None",
        ),
        (
            {"coordinator": "h:1", "processes": 2, "process_id": 2},
            "`process_id` must be from 0.*Received: 2 of 2",
        ),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message), distribute(**arguments):
        pass


@needs_tensorflow
def test_multi_worker_strategy(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", "{}")
    with pytest.raises(ValueError, match="20585.*KERAS_BACKEND=jax"), distribute():
        pass


@pytest.mark.skipif(BACKEND != "torch", reason="PyTorch only")
def test_torch_names_the_version():
    message = r"`devices` must be 1 .*Keras \d+\.\d+.* no DataParallel.*Received: 2"
    with pytest.raises(ValueError, match=message), distribute(2):
        pass


@pytest.mark.skipif(BACKEND == "jax", reason="JAX can")
def test_processes_need_jax(monkeypatch):
    for name, value in (
        ("JOB_ADDRESSES", "h:1"),
        ("NUM_PROCESSES", 2),
        ("PROCESS_ID", 0),
    ):
        monkeypatch.setenv(f"KERAS_DISTRIBUTION_{name}", str(value))
    with pytest.raises(ValueError, match="KERAS_BACKEND=jax"), distribute():
        pass


def test_one_device(build):
    with distribute(1) as devices:
        model = build((32, 32, 3))
        model.compile("sgd", "sparse_categorical_crossentropy")
        model.fit(np.zeros((4, 32, 32, 3)), np.zeros(4), verbose=0)
    assert (devices.replicas, devices.processes, devices.process) == (1, 1, 0)


@needs_jax
@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("task", ["classification", "detection", "segmentation"])
def test_same_as_one_process(runs, run, task):
    """The reference trains without our distribution, on batches that aren't padded."""
    names = [name for name in runs[run] if name.startswith(task)]
    assert len(names) > 10
    assert_equal(runs, run, names)
    losses = runs["one-0"][f"{task} losses"]
    assert len(losses) == 5 and np.ptp(losses) > 1e-4


@needs_tensorflow
def test_replicas_equal_one(runs):
    """SSDLite's own loss was counted once per replica."""
    assert {"detection losses", "detection metrics", "detection AP"} <= {*runs["one-0"]}
    assert_equal(runs, "devices-0", runs["one-0"])


def assert_equal(runs, run, names):
    for name in names:
        expected, found = runs["one-0"][name], runs[run][name]
        assert np.isfinite(expected).all()
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4, err_msg=name)


@needs_jax
@as_users
def test_two_terminals_as_users(image_folder, tmp_path):
    """Runs both blocks of the documentation as they are, with a smaller network.

    Python's hashes, and with them the order of sets, differ between the processes.
    """
    image_folder.rename(tmp_path / "photos")
    command = tmp_path / "bin" / "keras-coordatt"
    command.parent.mkdir()
    command.write_text(f"""#!{sys.executable}
import sys
import conftest
from keras_coordatt import applications
from keras_coordatt.cli import main
applications.MobileNetV2CA = lambda *args, attention, **named: conftest.residual(*args, **named)
sys.exit(main())
""")
    command.chmod(0o755)
    variables = environment()
    del variables["KERAS_BACKEND"]
    variables["PATH"] = f"{command.parent}{os.pathsep}{variables['PATH']}"
    page = (ROOT / "docs" / "machines.md").read_text()
    blocks = re.findall("```terminal\n(.*?)```", page, re.DOTALL)
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    options |= {"cwd": tmp_path}
    hashes = ("1", "2")
    terminals = []
    for block, seed in zip(blocks, hashes, strict=True):
        options["env"] = {**variables, "PYTHONHASHSEED": seed}
        terminals.append(subprocess.Popen(["bash", "-ec", block], **options))
    (first, errors), (second, _) = (x.communicate(timeout=600) for x in terminals)
    assert [x.returncode for x in terminals] == [0, 0], errors[-3000:]
    assert "epoch 16/16" in first and "runs/photos: best of epoch" in first
    assert "epoch" not in second and "best" not in second
    assert (tmp_path / "runs" / "photos" / "report.json").exists()


@needs_jax
def test_lost_processes(image_folder, tmp_path):
    """The other process ends with a message, and the same command continues."""
    lines = run_script("lost.py", image_folder, tmp_path / "out").splitlines()
    killed, alone, stopped, *absent, uninterrupted = (
        json.loads(line) for line in lines if line.startswith("{")
    )
    for found, lost in ((killed, "0"), (stopped, "1")):
        other = "1" if lost == "0" else "0"
        status, seconds = found["statuses"][other]
        assert (found["statuses"][lost][0], status) == (-9, 1)
        assert seconds < 30
        message = f"error: process {lost} of 2 has ended or does not answer"
        assert message in found["errors"][other]
    for found, other in zip(absent, "10", strict=True):
        assert found["statuses"].keys() == {other}
        status, seconds = found["statuses"][other]
        assert status == 1 and seconds < 30
        assert "not all of the 2 processes have found" in found["errors"][other]
    assert alone["statuses"]["0"][0] == -9  # and so it had an epoch more
    assert [status for status, _ in uninterrupted["statuses"].values()] == [0, 0]
    with open(tmp_path / "out" / "history.csv", encoding="utf-8") as file:
        assert [int(row["epoch"]) for row in csv.DictReader(file)] == [*range(1, 13)]
    assert (tmp_path / "out" / "report.json").exists()
    assert not (tmp_path / "out" / ".training").exists()
