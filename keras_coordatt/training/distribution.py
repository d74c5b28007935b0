"""Training on several devices and machines, by the engine of each Keras backend."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import threading
from collections.abc import Iterator

import keras

from keras_coordatt.distribution import Devices, current, gather, using
from keras_coordatt.layers.freezing import nested_layers
from keras_coordatt.training import watch
from keras_coordatt.validation import check_positive_int

# Seconds in which all processes must have started.
PATIENCE = 300
_PREFIX = "KERAS_DISTRIBUTION_"
# Variables of Slurm and Open MPI, from which JAX finds the other processes.
_LAUNCHERS = ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")


@contextlib.contextmanager
def distribute(
    devices: int | str = "auto",
    *,
    coordinator: str | None = None,
    processes: int | None = None,
    process_id: int | None = None,
) -> Iterator[Devices]:
    """Distributes the models that are built inside the `with` block.

    Every batch is shared by all devices. The engine is Keras's own:
    `keras.distribution.DataParallel` on JAX, and `tf.distribute.MirroredStrategy` on
    TensorFlow, which has one process only. Batch normalization sees the batch of all
    devices; on TensorFlow, only with `synchronized=True`, which `train` sets.

    On JAX, several processes, also on several machines, train together. Each calls this
    before any computation, with the same arguments but `process_id`. Arguments that are
    left out are read from `KERAS_DISTRIBUTION_JOB_ADDRESSES`,
    `KERAS_DISTRIBUTION_NUM_PROCESSES` and `KERAS_DISTRIBUTION_PROCESS_ID`, or from the
    environment of Slurm or Open MPI. If a process dies or hangs, the others end within
    a minute, with a message; so does one after five minutes if others don't come.

    Batches must be of a static size that the devices divide: `load_classification` and
    the other loaders have `steps` for training, `pad_remainder` for evaluation, and
    `shard=(devices.process, devices.processes)`, with the `batch_size` of one process.

    Args:
        devices: Number of devices of each process, or `"auto"` for all of them.
        coordinator: `HOST:PORT` at which the first process is reached by the others,
            with any free port.
        processes: Number of processes.
        process_id: Number of this process, from 0.

    Yields:
        The `Devices`, with `replicas`, `processes` and `process`.

    Raises:
        ValueError: If an argument is invalid, or the backend can't do it.
        RuntimeError: If JAX was used before.

    Example:

    >>> with distribute() as devices:
    ...     model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> devices.replicas, devices.processes
    (1, 1)
    """
    arguments = devices, coordinator, processes, process_id
    with open_devices(*arguments) as found, found.scope():
        yield found


@contextlib.contextmanager
def open_devices(devices, coordinator, processes, process_id):
    """Opens devices as `distribute` does, but distributes only what `scope` builds.

    If all arguments are `None`, and so are Keras's variables, the current devices remain.
    """
    announced = current().processes == 1 and f"{_PREFIX}NUM_PROCESSES" in os.environ
    arguments = devices, coordinator, processes, process_id
    given = any(argument is not None for argument in arguments)
    if not given and not announced:
        yield current()
        return
    devices = "auto" if devices is None else devices
    if not isinstance(devices, str) or devices != "auto":
        check_positive_int("devices", devices)
    job = _job(coordinator, processes, process_id)
    backend = keras.config.backend()
    if job is not None and backend != "jax":
        raise ValueError(
            f"Several processes need the JAX backend: on {backend}, Keras "
            f"{keras.__version__} has no engine for them (TensorFlow's "
            "MultiWorkerMirroredStrategy fails in `fit`, keras issue 20585). "
            "Set KERAS_BACKEND=jax"
        )
    if backend == "tensorflow":
        with using(_mirrored(devices)) as found:
            yield found
    elif backend == "jax" and job is not None:
        with _processes(job, devices) as found:
            yield found
    else:
        with using(_data_parallel(devices)) as found:
            yield found


def _job(coordinator, processes, process_id) -> dict | None:
    """Returns JAX's arguments for several processes, or `None` for one."""
    port = coordinator.rpartition(":")[2] if isinstance(coordinator, str) else ""
    if coordinator is not None and not port.isdigit():
        raise ValueError(f"`coordinator` must be HOST:PORT. Received: {coordinator!r}")
    if processes is not None:
        check_positive_int("processes", processes)
    if process_id is not None:
        check_positive_int("process_id", process_id, zero=True)
    given = {
        "coordinator_address": coordinator or os.environ.get(f"{_PREFIX}JOB_ADDRESSES"),
        "num_processes": processes or _integer(f"{_PREFIX}NUM_PROCESSES"),
        "process_id": _integer(f"{_PREFIX}PROCESS_ID")
        if process_id is None
        else process_id,
    }
    if all(value is None for value in given.values()):
        launched = any((_integer(name) or 1) > 1 for name in _LAUNCHERS)
        return {} if launched or _is_initialized() else None
    if any(value is None for value in given.values()):
        raise ValueError(
            "`coordinator`, `processes` and `process_id` must be given together. "
            f"Received: {coordinator=}, {processes=}, {process_id=}, and {_PREFIX}* "
            f"{[name for name in os.environ if name.startswith(_PREFIX)]}"
        )
    if not 0 <= given["process_id"] < given["num_processes"]:
        raise ValueError(
            "`process_id` must be from 0 to `processes` - 1. "
            f"Received: {given['process_id']} of {given['num_processes']}"
        )
    if given["num_processes"] == 1:
        return None
    # Keras's variable may list all addresses; JAX needs the first.
    given["coordinator_address"] = given["coordinator_address"].split(",")[0]
    return given


def _integer(name):
    value = os.environ.get(name)
    if value is None:
        return None
    if not value.isdigit():
        raise ValueError(f"{name} must be an integer. Received: {value!r}")
    return int(value)


def _is_initialized():
    """Returns whether a launcher, such as Ray's, has connected the processes."""
    if keras.config.backend() != "jax":
        return False
    import jax

    return jax.distributed.is_initialized()


def _mirrored(devices) -> Devices:
    import tensorflow as tf

    if "TF_CONFIG" in os.environ:
        raise ValueError(
            "TF_CONFIG asks for several processes, for which TensorFlow's engine fails "
            "in Keras 3 (keras issue 20585). Set KERAS_BACKEND=jax"
        )
    found = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices(
        "CPU"
    )
    names = [device.name for device in found]
    strategy = tf.distribute.MirroredStrategy(_first(devices, names))
    replicas = strategy.num_replicas_in_sync
    return Devices(replicas, scope=strategy.scope, synchronize=replicas > 1)


def _data_parallel(devices) -> Devices:
    try:
        names = keras.distribution.list_devices()
    except AttributeError as error:
        if devices in ("auto", 1):
            return Devices()
        raise ValueError(
            f"`devices` must be 1 on the {keras.config.backend()} backend: Keras "
            f"{keras.__version__} has no DataParallel for it. Received: {devices}"
        ) from error
    names = _first(devices, names)
    distribution = keras.distribution.DataParallel(devices=names)
    return Devices(len(names), scope=distribution.scope)


def _first(devices, names):
    if devices == "auto":
        return names
    if devices > len(names):
        raise ValueError(
            f"`devices` must be at most {len(names)}, which are visible: "
            f"{', '.join(names)}. Received: {devices}"
        )
    return names[:devices]


@contextlib.contextmanager
def _processes(job, devices):
    import jax

    if not jax.distributed.is_initialized():
        # It would keep SIGTERM from ending a process.
        jax.config.update("jax_enable_preemption_service", False)
        # Our limits are shorter than JAX's, because our messages are clearer. JAX counts
        # from the last heartbeat, which may be half of its limit ago.
        with _end_unless_all_come(job):
            jax.distributed.initialize(
                **job,
                initialization_timeout=PATIENCE + 60,
                heartbeat_timeout_seconds=2 * watch.LIMIT + 20,
            )
    by_process = [
        [f"{x.platform}:{x.id}" for x in jax.devices() if x.process_index == i]
        for i in range(jax.process_count())
    ]
    names = [name for local in by_process for name in _first(devices, local)]
    distribution = keras.distribution.DataParallel(
        devices=names, auto_shard_dataset=False
    )
    found = Devices(
        len(names), jax.process_count(), jax.process_index(), distribution.scope
    )
    with using(found):
        host = job.get("coordinator_address", "").rpartition(":")[0]
        watching = watch.Watch(found, host or None)
        try:
            yield found
        except BaseException:
            # JAX would wait for the others in a barrier at the end of the process, and
            # abort if they don't come.
            atexit.register(watch.end_process)
            watching.end(failed=True)
            raise
        watching.end()


@contextlib.contextmanager
def _end_unless_all_come(job):
    """Ends this process with a message if the others don't come.

    JAX would abort it then with a stack trace, which no `except` prevents.
    """
    if job:
        processes = f"{job['num_processes']} processes"
        check = (
            "that each runs with a process id of its own and the same coordinator, which "
            "is an address of the machine of process 0 that the others reach. "
            f"Received: {job}"
        )
    else:
        processes = "processes"
        check = "that all of them run, and reach the first one's machine"
    message = (
        f"after {PATIENCE} s, not all of the {processes} have found each other. "
        f"Check {check}"
    )
    timer = threading.Timer(PATIENCE, watch.end_process, [message])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def check_devices(batch_size: int, state) -> None:
    """Checks that the current devices can train together.

    Args:
        batch_size: Size of the batches that they share.
        state: What must be the same in all processes, such as the state on disk.

    Raises:
        ValueError: If not.
    """
    devices = current()
    if batch_size % devices.replicas:
        raise ValueError(
            f"`batch_size` must be a multiple of the {devices.replicas} devices. "
            f"Received: {batch_size}"
        )
    states = gather(json.dumps(state, sort_keys=True))
    for i, other in enumerate(states):
        if other != states[0]:
            raise ValueError(
                "All processes must have the same arguments, and the same `data` and "
                "`output`, such as on a shared file system. "
                f"Process {i} has {other}; process 0 has {states[0]}"
            )


def synchronize_batch_norm(model: keras.Model, devices: Devices) -> None:
    """Lets batch normalization average over all devices, where that isn't automatic."""
    if devices.synchronize:
        for layer in nested_layers(model):
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.synchronized = True
