"""`keras-coordatt benchmark`: speed, size and memory of each attention."""

import json as json_module
import pathlib
import statistics
from typing import TYPE_CHECKING, Literal

from keras_coordatt import benchmark as measuring
from keras_coordatt.cli.options import Attention, check_outputs
from keras_coordatt.extras import check_matplotlib
from keras_coordatt.files import atomic_file

if TYPE_CHECKING:
    Model = str
else:
    Model = Literal[tuple(measuring.MODELS)]


def benchmark(
    *,
    models: tuple[Model, ...] = ("MobileNetV2CA",),
    attentions: tuple[Attention, ...] = ("se", "coordinate"),
    image_size: int = 224,
    alpha: float = 1.0,
    measures: tuple[str, ...] = tuple(measuring.MEASURES),
    rounds: int = 20,
    memory: bool = True,
    references: bool = False,
    build: bool = False,
    processes: tuple[int, ...] = (),
    official: pathlib.Path | None = None,
    json: pathlib.Path | None = None,
    picture: pathlib.Path | None = None,
    latency_picture: pathlib.Path | None = None,
) -> None:
    """Measure speed, size and memory relative to no attention.

    All networks are timed in turns within one run.

    Args:
        models: Networks, or SSDLite and DeepLabV3 on MobileNetV2CA.
        attentions: Compared with none, which is always measured.
        image_size: Height and width in pixels.
        alpha: Width multiplier.
        measures: What to time.
        rounds: How often each network is timed.
        memory: Measure peak memory, in one process per network.
        references: Add the layer as it is usually written, and its means and
            multiplications without the convolutions.
        build: Time building the networks, too.
        processes: Numbers of processes, such as `1 2 4`: instead of the comparison,
            measure how training of MobileNetV2CA scales with them on this machine, and
            the cost of their communication. JAX only.
        official: Folder of your copy of the authors' code, to time it, too.
        json: File for the measurements.
        picture: File for a picture of latency, by the first measure that all networks
            have, and parameters.
        latency_picture: File for a picture of the latency in every runtime, without
            the references.
    """
    # Fail before the measurements, which take minutes, rather than after.
    if official:
        measuring.check_official(official)
        if image_size != 224:
            raise ValueError(
                f"--official is for 224 pixels. Received: --image-size {image_size}"
            )
    check_outputs(
        [
            ("--json", json),
            ("--picture", picture),
            ("--latency-picture", latency_picture),
        ],
        [official],
    )
    pictures = picture or latency_picture
    if pictures:
        check_matplotlib()
    if processes and (pictures or official or references or build):
        raise ValueError(
            "--processes measures nothing else: leave out --picture, --latency-picture, "
            "--official, --references and --build"
        )

    if processes:
        scaling = measuring.measure_processes(
            processes, image_size=image_size, alpha=alpha, rounds=rounds
        )
        print(measuring.scaling_table(scaling))
        if json:
            _write_json(scaling, json)
        return
    extra = measuring.REFERENCES if references else None
    rows = measuring.benchmark(
        models,
        [None if name == "none" else name for name in attentions],
        image_size=image_size,
        alpha=alpha,
        measures=measures,
        rounds=rounds,
        memory=memory,
        extra=extra,
    )
    print(measuring.table(rows))
    if json:
        _write_json(rows, json)
    if official:
        official_rows = measuring.official_rows(official, rounds)
        print(f"\n{measuring.table(official_rows)}")
        if json:
            _write_json(rows + official_rows, json)
    if build:
        for name, ratios in measuring.build_times().items():
            print(
                f"\n{name}: built in {statistics.median(ratios):.2f} times what "
                f"Keras's plain network takes ({min(ratios):.2f} to {max(ratios):.2f})"
            )
    if picture:
        complete = [m for m in measures if all("seconds" in row[m] for row in rows)]
        if not complete:
            raise ValueError(
                "--picture needs a measure that all networks have. "
                f"Received: --measures {' '.join(measures)}"
            )
        with atomic_file(picture) as temporary:
            measuring.picture(rows, temporary, complete[0])
    if latency_picture:
        shown = [row for row in rows if row["attention"] not in measuring.REFERENCES]
        with atomic_file(latency_picture) as temporary:
            measuring.latency_picture(shown, temporary)


def _write_json(rows, path):
    with atomic_file(path) as temporary:
        figures = json_module.dumps(rows, indent=1)
        temporary.write_text(f"{figures}\n", encoding="utf-8")
