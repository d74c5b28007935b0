"""Trainings that are interrupted at any moment, and continue as if they were not."""

import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
from backends import BACKEND, once

from keras_coordatt.training import train


class Killed(BaseException):
    """Ends a training as a signal does."""


@once
def test_interrupted_at_any_write(
    eager, image_folder, tmp_path, monkeypatch, build, quick
):
    changes = {**quick, "epochs": 3, "head_epochs": 1, "ema": 0.9}
    arguments = {"build": build, "changes": changes, "verbose": False, "seed": 3}
    expected_run = train(None, image_folder, tmp_path / "whole", **arguments)

    replace, left = os.replace, 0

    def interrupted(source, target):
        nonlocal left
        left -= 1
        if left == 0:
            raise Killed
        replace(source, target)
        if left == 1 and attempt % 2:
            raise Killed

    monkeypatch.setattr(os, "replace", interrupted)
    done, attempt = None, 0
    while done is None:
        attempt += 1
        # The first attempts have no complete epoch, the next are in all its writes.
        left = attempt + 1
        try:
            done = train(None, image_folder, tmp_path / "out", **arguments)
        except Killed:
            pass
    assert attempt > 4
    assert [row["epoch"] for row in done.report["history"]] == [1, 2, 3]
    for expected, row in zip(expected_run.report["history"], done.report["history"]):
        assert row.pop("phase") == expected.pop("phase")
        assert row == pytest.approx(expected, rel=1e-3, abs=1e-5)
    assert not (tmp_path / "out" / ".training").exists()
    for name in ("best.keras", "last.keras"):
        weights, expected = (
            keras.saving.load_model(tmp_path / folder / name).get_weights()
            for folder in ("out", "whole")
        )
        for a, b in zip(weights, expected):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="one backend is enough")
def test_killed_at_random(image_folder, tmp_path):
    """Kills the process; with determinism the history is the same to the last bit."""
    here = pathlib.Path(__file__).parent
    root = here.parent.parent
    paths = [root, here, here.parent, *filter(None, [os.environ.get("PYTHONPATH")])]
    command = [sys.executable, str(here / "killed.py"), str(image_folder)]
    done = subprocess.run(
        [*command, str(tmp_path), "3", "0"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))},
        capture_output=True,
        check=False,
        text=True,
        timeout=540,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["0", "3"]
    killed, expected = (
        (tmp_path / name / "history.csv").read_text() for name in ("killed", "whole")
    )
    assert killed == expected
    assert len(expected.splitlines()) == 1 + 7


def test_stopped_in_its_first_epoch(image_folder, tmp_path, monkeypatch, build, quick):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(keras.Model, "fit", stopped)
    with pytest.raises(KeyboardInterrupt, match="nothing is left behind"):
        train(None, image_folder, tmp_path / "out", build=build, changes=quick)
    assert [path.name for path in tmp_path.iterdir()] == ["images"]
