"""Cost of each attention: speed, size and memory, side by side.

All networks are timed in turns within one run, so that the machine is the same for all,
and the result is the ratio to the same network without attention. The command is
`keras-coordatt benchmark`.
"""

from keras_coordatt.benchmark.measure import (
    MODELS,
    benchmark,
    interleaved,
    multiply_adds,
)
from keras_coordatt.benchmark.references import (
    REFERENCES,
    PassesOnly,
    PlainPort,
    build_times,
    check_official,
    official_rows,
)
from keras_coordatt.benchmark.report import latency_picture, picture, table
from keras_coordatt.benchmark.runtimes import MEASURES, Measure
from keras_coordatt.benchmark.scaling import measure_processes, scaling_table

__all__ = [
    "MEASURES",
    "MODELS",
    "REFERENCES",
    "Measure",
    "PassesOnly",
    "PlainPort",
    "benchmark",
    "build_times",
    "check_official",
    "interleaved",
    "latency_picture",
    "measure_processes",
    "multiply_adds",
    "official_rows",
    "picture",
    "scaling_table",
    "table",
]
