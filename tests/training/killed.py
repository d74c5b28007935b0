"""Trains in processes that are killed at random times, until one ends by itself.

    python killed.py DATA OUT KILLS SEED

Trains without kills into OUT/whole and with them into OUT/killed, and prints how many
processes were killed in each. All are forked from this one, which has imported
everything and computed nothing, so that none has to start anew.
"""

import os
import pathlib
import random
import signal
import sys
import time

import conftest  # the one beside this file
import tensorflow as tf

from keras_coordatt.training import train, trainer  # noqa: F401

# A process is killed after as many seconds, even before its first epoch.
LONGEST = 60
# Enough for 3 kills, each after 2 epochs at most
EPOCHS = 7


def child(data, out):
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    tf.config.run_functions_eagerly(True)
    changes = {
        "image_size": 32,
        "batch_size": 4,
        "epochs": EPOCHS,
        "head_epochs": 2,
        "ema": 0.9,
        "rand_augment": 0.5,
        "mixup": 0.2,
        "zero_init": False,
        "patience": EPOCHS,
    }
    options = {"deterministic": True, "verbose": False, "recipe": "scratch"}
    train(None, data, out, build=conftest.tiny, changes=changes, **options)


def train_and_kill(data, out, kills, draw):
    """Returns the number of killed processes, when one has ended by itself."""
    state = out / ".training" / "state.json"
    killed = 0
    while True:
        before = last_change(state)
        pid = os.fork()
        if not pid:
            status = 1
            try:
                child(data, out)
                status = 0
            finally:
                os._exit(status)
        if killed < kills:
            # Usually after an epoch, so that kills are spread over the training.
            wait_for_change(state, before, LONGEST)
            wait_for_change(state, last_change(state), draw.uniform(0, 1))
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        if os.WIFEXITED(status):
            if os.waitstatus_to_exitcode(status):
                sys.exit("A training failed")
            return killed
        killed += 1


def wait_for_change(path, before, seconds):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and last_change(path) == before:
        time.sleep(0.01)


def last_change(path):
    return path.stat().st_mtime_ns if path.exists() else None


def main(data, out, kills, seed):
    draw = random.Random(int(seed))
    for name, count in (("whole", 0), ("killed", int(kills))):
        print(train_and_kill(data, pathlib.Path(out) / name, count, draw), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
