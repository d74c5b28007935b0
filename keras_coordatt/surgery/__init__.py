"""Inserts attention into trained networks, and fuses its extra factor for deployment.

A functional model is read as the list of its calls, and rebuilt from copies of its
layers with some of the calls changed.
"""

from keras_coordatt.surgery.fuse import fuse_attention
from keras_coordatt.surgery.insert import insert_attention

__all__ = ["fuse_attention", "insert_attention"]
