"""Training speed by number of processes, and the cost of their communication.

All processes run on this machine, on the JAX backend. Each trains on a batch of the same
size, so that with as many cores the images per second would grow with the processes.
"""

import multiprocessing
import socket
import statistics
from collections.abc import Callable, Iterable

import keras
import numpy as np

from keras_coordatt.applications import MobileNetV2CA
from keras_coordatt.benchmark.measure import count_trainable, interleaved
from keras_coordatt.benchmark.report import check_rows
from keras_coordatt.validation import check_positive_int

# Width multipliers of the networks whose gradients are exchanged.
ALPHAS = (0.25, 0.5, 1.0, 1.4)
CLASSES = 1000


def measure_processes(
    counts: Iterable[int],
    *,
    image_size: int = 224,
    alpha: float = 1.0,
    batch_size: int = 8,
    rounds: int = 20,
) -> list[dict]:
    """Trains MobileNetV2CA in several processes of this machine.

    A script that calls it needs `if __name__ == "__main__":`, as with any use of
    `multiprocessing`.

    Args:
        counts: Numbers of processes.
        image_size: Height and width of the images, in pixels.
        alpha: Width multiplier of the network that is trained.
        batch_size: Images per step of each process.
        rounds: Number of steps that are timed.

    Returns:
        One dict per number of processes, with `processes`, the median `seconds` of a
        step, the images `per_second` of all processes, and `exchanges`: a dict for each
        of some networks, with `alpha`, the trainable `parameters`, and the median
        `seconds` in which the processes add up as many float32 numbers.

    Raises:
        ValueError: If an argument is invalid, or the backend isn't JAX.
        ChildProcessError: If a process fails.
    """
    counts = [check_positive_int("processes", count) for count in counts]
    for name, value in (
        ("image_size", image_size),
        ("batch_size", batch_size),
        ("rounds", rounds),
    ):
        check_positive_int(name, value)
    if keras.config.backend() != "jax":
        raise ValueError(
            "`processes` needs the JAX backend: set KERAS_BACKEND=jax. "
            f"Received: {keras.config.backend()}"
        )
    arguments = image_size, alpha, batch_size, rounds
    return [_measure(count, *arguments) for count in counts]


def _measure(count, *arguments):
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    with socket.socket() as server:
        server.bind(("localhost", 0))
        port = server.getsockname()[1]
    workers = [
        context.Process(target=_work, args=(results, count, i, port, *arguments))
        for i in range(count)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if any(worker.exitcode for worker in workers):
        raise ChildProcessError(
            f"Training with {count} processes failed, with the errors above"
        )
    return results.get()


def _work(results, count, process, port, image_size, alpha, batch_size, rounds):
    from keras_coordatt.training import distribute

    cluster = {}
    if count > 1:
        cluster = {"coordinator": f"localhost:{port}", "processes": count}
        cluster["process_id"] = process
    # All processes must start from the same weights.
    keras.utils.set_random_seed(0)
    with distribute(**cluster) as devices:
        model = MobileNetV2CA(
            (image_size, image_size, 3), alpha=alpha, weights=None, classes=CLASSES
        )
        model.compile("sgd", "sparse_categorical_crossentropy")
        rng = np.random.default_rng(process)
        images = rng.normal(size=(batch_size, *model.input_shape[1:]))
        batch = images.astype("float32"), np.zeros(batch_size, "int32")
        step = _median(lambda: model.train_on_batch(*batch), rounds)
        exchanges = []
        for width in ALPHAS if count > 1 else ():
            network = MobileNetV2CA(
                (32, 32, 3), alpha=width, weights=None, classes=CLASSES
            )
            size = count_trainable(network)  # one gradient for each
            seconds = _median(_exchange(size), rounds)
            exchanges.append({"alpha": width, "parameters": size, "seconds": seconds})
        if devices.first:
            results.put(
                {
                    "processes": count,
                    "seconds": step,
                    "per_second": count * batch_size / step,
                    "exchanges": exchanges,
                }
            )


def _exchange(size: int) -> Callable:
    """Returns a function that adds up arrays of all processes, as for gradients."""
    import jax
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    mesh = Mesh(np.array(jax.devices()), ("process",))
    split, everywhere = (
        NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("process",), ())
    )
    own = np.ones((jax.local_device_count(), size), "float32")
    values = jax.make_array_from_process_local_data(split, own)
    add = jax.jit(lambda x: x.sum(0), out_shardings=everywhere)
    return lambda: add(values).block_until_ready()


def _median(function, rounds):
    return statistics.median(interleaved({"it": function}, rounds)["it"])


def scaling_table(rows: list[dict]) -> str:
    """Formats measurements as two Markdown tables.

    Args:
        rows: Return value of `measure_processes`.

    Returns:
        The tables, the second one only if there were several processes.

    Raises:
        ValueError: If `rows` aren't such measurements.
    """
    check_rows(rows, "processes", "measure_processes")
    lines = ["| processes | time per step | images per second |", "|---|---|---|"]
    for row in rows:
        first = row["per_second"] / rows[0]["per_second"]
        lines.append(
            f"| {row['processes']} | {1000 * row['seconds']:.0f} ms | "
            f"{row['per_second']:.1f}, × {first:.2f} |"
        )
    several = [row for row in rows if row["exchanges"]]
    if several:
        titles = [f"{row['processes']} processes" for row in several]
        lines += [
            "",
            "Sum of the gradients of all processes, per step:",
            "",
            f"| width | parameters | {' | '.join(titles)} |",
            "|---" * (2 + len(several)) + "|",
        ]
    for i in range(len(several and ALPHAS)):
        found = [row["exchanges"][i] for row in several]
        times = " | ".join(f"{1000 * x['seconds']:.1f} ms" for x in found)
        lines.append(f"| {found[0]['alpha']} | {found[0]['parameters']:,} | {times} |")
    return "\n".join(lines)
