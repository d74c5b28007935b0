"""Synthetic test pictures, to compare files with models on."""

import numpy as np


def draw_pictures(count: int, height: int, width: int, channels: int, seed: int = 0):
    """Draws boxes and discs on shaded backgrounds.

    Unlike noise, such pictures differ from each other in color and in content, so that
    the outputs of a network do too.

    Args:
        count: Number of pictures.
        height, width, channels: Their size.
        seed: Seed of the random generator.

    Returns:
        An array `(count, height, width, channels)` of uint8.
    """
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    pictures = []
    for _ in range(count):
        corner, slope = rng.uniform(0, 255, (2, channels))
        picture = corner + (slope - corner) * (x + y)[..., None] / 2
        for shape in range(rng.integers(2, 6)):
            left, top = rng.uniform(-0.1, 0.8, 2)
            w, h = rng.uniform(0.1, 0.6, 2)
            u, v = (x - left) / w - 0.5, (y - top) / h - 0.5
            if shape % 2:
                inside = np.hypot(u, v) < 0.5
            else:
                inside = np.maximum(abs(u), abs(v)) < 0.5
            picture[inside] = rng.uniform(0, 255, channels)
        pictures.append(picture + rng.normal(0, 4, picture.shape))
    return np.clip(np.round(pictures), 0, 255).astype("uint8")
