"""Comparisons of attentions at the same training budget, for the three tasks.

The command is `keras-coordatt compare`.
"""

from keras_coordatt.comparison.report import curves, latency, picture, table
from keras_coordatt.comparison.runs import ATTENTIONS, compare, read_runs

__all__ = [
    "ATTENTIONS",
    "compare",
    "curves",
    "latency",
    "picture",
    "read_runs",
    "table",
]
