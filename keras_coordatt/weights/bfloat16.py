"""bfloat16, which NumPy does not have."""

import numpy as np


def widen(bits: np.ndarray) -> np.ndarray:
    """Returns float32 from the 16 bits of bfloat16, which are its upper half."""
    return (bits.astype("u4") << 16).view("f4")
