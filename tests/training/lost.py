"""Trains in two processes of which one is lost, for `test_distribution.py`.

    python lost.py DATA OUT

Prints a line of JSON per attempt: statuses of the processes, the seconds after which the
remaining one ended, and its last line. All processes are forked from this one.
"""

import json
import os
import pathlib
import signal
import sys
import time

import conftest  # the one beside this file
from distributed import fork, free_port

from keras_coordatt.training import distribution, train, trainer, watch  # noqa: F401

EPOCHS = 12
# Number of processes, and the signal to one of them after an epoch: `None` never starts
ATTEMPTS = [
    (2, signal.SIGKILL, 0),  # which also holds JAX's and our connections
    (1, signal.SIGKILL, 0),
    (2, signal.SIGSTOP, 1),
    (2, None, 0),
    (2, None, 1),
    (2, None, None),
]


def child(data, out, log, processes, process, port):
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 2)
    # A stopped process counts as lost after as many seconds.
    watch.LIMIT = 8
    distribution.PATIENCE = 6
    cluster = {}
    if processes > 1:
        cluster = {"coordinator": f"localhost:{port}", "processes": processes}
        cluster["process_id"] = process
    changes = {"image_size": 32, "batch_size": 4, "epochs": EPOCHS, "zero_init": False}
    build = conftest.tiny
    options = {"verbose": False, "recipe": "scratch", "build": build, **cluster}
    train(None, data, out, changes=changes, **options)


def attempt(data, out, processes, number, victim):
    """Returns what the processes did."""
    state = out / ".training" / "state.json"
    before, port = last_change(state), free_port()
    logs = [out.with_name(f"{out.name}-{i}.log") for i in range(processes)]
    absent = victim if number is None else None
    children = {
        i: fork(child, data, out, logs[i], processes, i, port)
        for i in range(processes)
        if i != absent
    }
    start = time.monotonic()
    if number is not None:
        while last_change(state) == before and time.monotonic() < start + 300:
            time.sleep(0.05)
        start = time.monotonic()
        os.kill(children[victim], number)
    statuses = {}
    for i in sorted(children, key=lambda i: i == victim):
        if i == victim:  # A stopped process ends only now.
            os.kill(children[i], signal.SIGKILL)
        _, status = os.waitpid(children[i], 0)
        statuses[i] = os.waitstatus_to_exitcode(status), time.monotonic() - start
    lines = [logs[i].read_text(errors="replace").splitlines() for i in children]
    errors = {i: x[-1] if x else "" for i, x in zip(children, lines)}
    return {"statuses": statuses, "errors": errors}


def last_change(path):
    return path.stat().st_mtime_ns if path.exists() else None


def main(data, out):
    os.environ.setdefault("XLA_FLAGS", "")
    for processes, number, victim in ATTEMPTS:
        found = attempt(data, pathlib.Path(out), processes, number, victim)
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
