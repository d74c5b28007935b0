"""Trains in processes that are killed at random times, until one ends by itself.

    python killed.py DATA OUT KILLS SEED

Prints how many processes were killed. All are forked from this one, which has imported
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


def child(data, out):
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    tf.config.run_functions_eagerly(True)
    changes = {
        "image_size": 32,
        "batch_size": 4,
        "epochs": 12,
        "head_epochs": 4,
        "ema": 0.9,
        "rand_augment": 0.5,
        "mixup": 0.2,
        "zero_init": False,
        "patience": 11,
    }
    options = {"deterministic": True, "verbose": False, "recipe": "scratch"}
    train(None, data, out, build=conftest.tiny, changes=changes, **options)


def main(data, out, kills, seed):
    draw = random.Random(int(seed))
    killed, longest = 0, 20.0
    while True:
        pid = os.fork()
        if not pid:
            status = 1
            try:
                child(data, out)
                status = 0
            finally:
                os._exit(status)
        start = time.monotonic()
        if killed < int(kills):
            # Wait until it trains, then a random time of up to about two epochs.
            state, seen = pathlib.Path(out) / ".training" / "state.json", None
            before = state.stat().st_mtime_ns if state.exists() else None
            while time.monotonic() - start < longest:
                seen = state.stat().st_mtime_ns if state.exists() else None
                if seen != before and draw.random() < 0.9:
                    break
                time.sleep(0.01)
            time.sleep(draw.uniform(0, 1.0))
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        if os.WIFSIGNALED(status):
            killed += 1
        else:
            print(killed)
            return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
