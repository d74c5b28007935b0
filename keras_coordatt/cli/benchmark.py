"""Measure speed, size and memory relative to no attention.

All networks are timed in turns within one run.
"""

import argparse
import importlib.util
import json as json_module
import pathlib
import statistics

from keras_coordatt import benchmark
from keras_coordatt.cli.options import attention
from keras_coordatt.files import atomic_file


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--models",
        nargs="+",
        default=["MobileNetV2CA"],
        help=f"of {', '.join(benchmark.MODELS)}",
    )
    parser.add_argument(
        "--attentions",
        nargs="+",
        default=["se", "coordinate"],
        type=attention,
        help="compared with none, which is always measured",
    )
    parser.add_argument(
        "--image-size", type=int, default=224, help="height and width in pixels"
    )
    parser.add_argument("--alpha", type=float, default=1.0, help="width multiplier")
    parser.add_argument(
        "--measures", nargs="+", default=list(benchmark.MEASURES), help="what to time"
    )
    parser.add_argument(
        "--rounds", type=int, default=20, help="how often each network is timed"
    )
    parser.add_argument(
        "--memory",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="measure peak memory, in one process per network (on by default)",
    )
    parser.add_argument(
        "--references",
        action="store_true",
        help="add the layer as it is usually written, and its memory passes alone",
    )
    parser.add_argument(
        "--build", action="store_true", help="time building the networks, too"
    )
    parser.add_argument(
        "--official",
        type=pathlib.Path,
        help="folder of your copy of the authors' code, to time it, too",
    )
    parser.add_argument("--json", type=pathlib.Path, help="file for the figures")
    parser.add_argument("--picture", type=pathlib.Path, help="file for a picture")


def run(
    models: list[str],
    attentions: list[str | None],
    measures: list[str],
    references: bool,
    build: bool,
    official: pathlib.Path | None,
    json: pathlib.Path | None,
    picture: pathlib.Path | None,
    **options,
) -> None:
    # Fail before the measurements, which take minutes, rather than after.
    if official:
        benchmark.check_official(official)
    if picture and importlib.util.find_spec("matplotlib") is None:
        raise ValueError("--picture needs matplotlib: pip install matplotlib")
    for path in (json, picture):
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)

    extra = benchmark.REFERENCES if references else None
    rows = benchmark.benchmark(
        models, attentions, measures=measures, extra=extra, **options
    )
    print(benchmark.table(rows))
    official_rows = []
    if official:
        official_rows = benchmark.official_rows(official)
        print(f"\n{benchmark.table(official_rows)}")
    if build:
        for name, ratios in benchmark.build_times().items():
            print(
                f"\n{name}: built in {statistics.median(ratios):.2f} times what "
                f"Keras's plain network takes ({min(ratios):.2f} to {max(ratios):.2f})"
            )
    if json:
        with atomic_file(json) as temporary:
            figures = json_module.dumps(rows + official_rows, indent=1)
            temporary.write_text(f"{figures}\n", encoding="utf-8")
    if picture:
        with atomic_file(picture) as temporary:
            benchmark.picture(rows, temporary, measures[0])
