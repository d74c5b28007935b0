"""A process that is killed at any moment of a backup leaves a complete epoch."""

import os
import pathlib

import keras
import numpy as np
import pytest
from backends import once

from keras_coordatt.training.backup import Backup

pytestmark = once


def model(value):
    """A model whose weights and optimizer are of the epoch `value`."""
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)
    for variable in (*model.variables, *model.optimizer.variables):
        variable.assign(np.full(variable.shape, value))
    return model


def save_and_die(folder, step):
    """Saves epoch 2, killed before a step that changes what is on disk.

    Of the file that it was writing, half is there.

    Args:
        folder: Folder of the state.
        step: Number of the step.
    """
    steps = iter(range(step))

    def dying(function):
        def call(path, *arguments, **kwargs):
            if next(steps, None) is None:
                if function is os.replace:
                    os.truncate(path, os.path.getsize(path) // 2)
                os._exit(9)
            return function(path, *arguments, **kwargs)

        return call

    os.replace = dying(os.replace)
    pathlib.Path.unlink = dying(pathlib.Path.unlink)
    pathlib.Path.write_text = dying(pathlib.Path.write_text)
    backup, new = Backup(folder, {}), model(2)
    new.save_weights = dying(new.save_weights)
    backup.save(new, {"epoch": 2}, best=new)
    os._exit(0)


def test_killed_at_every_step(tmp_path):
    rows, status, step = [], 9, 0
    while status:
        folder = tmp_path / str(step)
        first = model(1)
        Backup(folder, {}).save(first, {"epoch": 1}, best=first)
        pid = os.fork()
        if pid == 0:
            save_and_die(folder, step)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert status in (0, 9)
        backup = Backup(folder, {})
        epoch = backup.rows[-1]["epoch"]
        rows.append(epoch)
        backup.load_best(loaded := model(0), epoch)
        assert all((w == epoch).all() for w in loaded.get_weights())
        backup.load(loaded := model(0))
        for variable in (*loaded.variables, *loaded.optimizer.variables):
            assert (keras.ops.convert_to_numpy(variable) == epoch).all()
        # It continues from there.
        new = model(3)
        backup.save(new, {"epoch": 3}, best=new)
        assert len(list(folder.glob("*.h5"))) == 2
        step += 1
    # Killed before and after the state says that epoch 2 is complete
    assert rows == sorted(rows) and set(rows) == {1, 2} and step > 6


def test_the_state_of_scaled_losses_loads_again(tmp_path, recwarn):
    saved = model(3)
    saved.compile(keras.optimizers.LossScaleOptimizer(saved.optimizer), "mse")
    saved.optimizer.build(saved.trainable_variables)
    backup = Backup(tmp_path, {})
    backup.save(saved, {"epoch": 1}, best=None)
    variables = len(saved.optimizer.variables)
    backup.load(saved)
    assert len(saved.optimizer.variables) == variables
    assert not [x for x in recwarn if "Skipping variable loading" in str(x.message)]


def test_time_of_all_calls_but_not_between_them(tmp_path, monkeypatch):
    clock = iter([0, 60, 1000, 1005])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    first = Backup(tmp_path, {})
    first.save(model(1), {"epoch": 1}, best=None)
    assert Backup(tmp_path, {}).seconds == 65


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"settings": {}}', '{"settings": {}, "rows": []}', '{"rows": 3}'],
)
def test_a_damaged_state_is_named(tmp_path, content):
    (tmp_path / "state.json").write_text(content)
    with pytest.raises(ValueError, match=r"Cannot read .*state.json.*Delete .* start"):
        Backup(tmp_path, {})
