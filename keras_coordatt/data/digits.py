"""Real handwritten digits as small TFDS data sets, built without any download.

`digits/classification` has one digit per image, `digits/scenes` has several, with
boxes and a mask. Both are drawn from the 1,797 digits of 8 x 8 pixels in
`digits.npz`: the test set of "Optical Recognition of Handwritten Digits" by
E. Alpaydin and C. Kaynak (UCI Machine Learning Repository, 1998,
https://doi.org/10.24432/C50P49, CC BY 4.0), the same as in
scikit-learn's `load_digits`. They are enlarged, colored and put on backgrounds.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds

_DESCRIPTION = """
1,797 real handwritten digits, drawn in random sizes, positions and colors.

The digits are in the order of the 14 forms that they were written on: every form has
the same 130 labels, except that up to eight are missing and, in one form, one differs.
`train` is the first ten forms and `test` the last four, so no form is in both. UCI says
that 13 writers filled in the forms but not who filled in which, so a split between
forms is as close to a split between writers as the data allow.
"""

_CITATION = """
@misc{alpaydin1998optical,
  author = {Alpaydin, E. and Kaynak, C.},
  title = {Optical Recognition of Handwritten Digits},
  year = {1998},
  howpublished = {UCI Machine Learning Repository},
  doi = {10.24432/C50P49},
  note = {CC BY 4.0}
}
"""

# The eleventh form starts at 1287.
_DIGITS = {"train": range(1287), "test": range(1287, 1797)}
_SCENES = {"train": range(1000), "test": range(1000, 1250)}


class Digits(tfds.core.GeneratorBasedBuilder):
    """Handwritten digits, to classify or to find in cluttered scenes.

    `digits/classification`: `image` (32, 32, 3), `label`, and `index`, the digit's
    position in the source. Examples keep the source's order, form after form:
    `train[:1157]` has nine forms and `train[1157:]` the tenth, so the latter is a
    validation split that shares no form with the former.

    `digits/scenes`: `image` (128, 128, 3) with two to six digits of different sizes,
    `objects` with `bbox` and `label`, `segmentation_mask` (128, 128, 1) with 0 for
    background and 1 + digit for ink, and `indices`, the digits' positions in the
    source. Boxes are tight around the mask and never overlap. Test scenes have test
    digits only.

    Each image depends only on its config, split and index: every build is the same.

    Example:

    >>> import tensorflow_datasets as tfds
    >>> from keras_coordatt.data import digits  # registers "digits"
    >>> scenes = tfds.load("digits/scenes", split="train")
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "Initial release."}
    BUILDER_CONFIGS: ClassVar = [
        tfds.core.BuilderConfig(
            name="classification",
            description="One digit on a plain background, 32 x 32.",
        ),
        tfds.core.BuilderConfig(
            name="scenes",
            description="Two to six digits on a cluttered background, 128 x 128.",
        ),
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        label = tfds.features.ClassLabel(num_classes=10)
        if self.builder_config.name == "classification":
            features = {
                "image": tfds.features.Image(shape=(32, 32, 3)),
                "label": label,
                "index": np.int32,
            }
            supervised_keys = ("image", "label")
        else:
            features = {
                "image": tfds.features.Image(shape=(128, 128, 3)),
                "objects": tfds.features.Sequence(
                    {"bbox": tfds.features.BBoxFeature(), "label": label}
                ),
                "segmentation_mask": tfds.features.Image(
                    shape=(128, 128, 1), use_colormap=True
                ),
                "indices": tfds.features.Sequence(np.int32),
            }
            supervised_keys = None
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=supervised_keys,
            homepage="https://archive.ics.uci.edu/dataset/80",
            citation=_CITATION,
            license="CC BY 4.0",
            # Only the order of the single digits has a meaning.
            disable_shuffling=self.builder_config.name == "classification",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        return {split: self._generate_examples(split) for split in _DIGITS}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict]]:
        images, labels = load_arrays()
        if self.builder_config.name == "classification":
            for index in _DIGITS[split]:
                rng = np.random.default_rng([0, _DIGITS[split].start, index])
                yield (
                    index,
                    {
                        "image": _draw_digit(rng, images[index]),
                        "label": labels[index],
                        "index": index,
                    },
                )
        else:
            for index in _SCENES[split]:
                rng = np.random.default_rng([1, _SCENES[split].start, index])
                yield index, _draw_scene(rng, images, labels, _DIGITS[split])


def load_arrays() -> tuple[np.ndarray, np.ndarray]:
    """Returns the digits as they were published.

    Returns:
        Images, uint8 from 0 to 16 of shape `(1797, 8, 8)`, and labels, uint8 of
        shape `(1797,)`.

    Example:

    >>> images, labels = load_arrays()
    >>> images.shape, labels.shape
    ((1797, 8, 8), (1797,))
    """
    with np.load(Path(__file__).with_name("digits.npz")) as arrays:
        return arrays["images"], arrays["labels"]


def _draw_digit(rng: np.random.Generator, digit: np.ndarray) -> np.ndarray:
    side = int(rng.integers(18, 28, endpoint=True))
    top, left = rng.integers(0, 32 - side, size=2, endpoint=True)
    image = np.broadcast_to(_dark(rng), (32, 32, 3)).copy()
    _paint(image[top : top + side, left : left + side], _ink(digit, side), _light(rng))
    return _photograph(rng, image)


def _draw_scene(
    rng: np.random.Generator, images: np.ndarray, labels: np.ndarray, digits: range
) -> dict:
    size = 128
    image = _clutter(rng, size)
    mask = np.zeros((size, size, 1), np.uint8)
    indices = rng.choice(digits, rng.integers(2, 6, endpoint=True), replace=False)
    objects = []
    for index, (top, left, side) in zip(
        indices, _squares(rng, size, len(indices)), strict=True
    ):
        window = np.s_[top : top + side, left : left + side]
        ink, label = _ink(images[index], side), int(labels[index])
        _paint(image[window], ink, _light(rng))
        solid = ink > 0.5
        mask[window][solid] = 1 + label
        ys, xs = np.nonzero(solid)
        objects.append(
            {
                "bbox": tfds.features.BBox(
                    ymin=(top + ys.min()) / size,
                    xmin=(left + xs.min()) / size,
                    ymax=(top + ys.max() + 1) / size,
                    xmax=(left + xs.max() + 1) / size,
                ),
                "label": label,
            }
        )
    return {
        "image": _photograph(rng, image),
        "objects": objects,
        "segmentation_mask": mask,
        "indices": indices,
    }


def _ink(digit: np.ndarray, side: int) -> np.ndarray:
    """Enlarges a digit to (side, side): 1 where ink covers the pixel, otherwise 0."""
    scale = len(digit) / side
    positions = (np.arange(side) + 0.5) * scale - 0.5
    # Linear interpolation as a matrix, with zeros outside the digit.
    weights = np.maximum(0, 1 - np.abs(positions[:, None] - np.arange(len(digit))))
    gray = weights @ (digit / 16) @ weights.T
    # More contrast than the source, as enlarging blurs the edges. Rounded, so that the
    # last bit of a float never decides whether a pixel is ink.
    return np.round(np.clip(2 * gray - 0.4, 0, 1), 6)


def _squares(
    rng: np.random.Generator, size: int, count: int
) -> list[tuple[int, int, int]]:
    """Draws squares that do not overlap, as (top, left, side)."""
    places = []
    while len(places) < count:
        side = int(rng.integers(16, 56, endpoint=True))
        top, left = rng.integers(0, size - side, size=2, endpoint=True).tolist()
        if all(
            top + side <= y or y + s <= top or left + side <= x or x + s <= left
            for y, x, s in places
        ):
            places.append((top, left, side))
    return places


def _clutter(rng: np.random.Generator, size: int) -> np.ndarray:
    """Draws dark blobs and lines on a gradient."""
    y, x = (axis / size for axis in np.ogrid[:size, :size])
    image = sum(
        (vertical * horizontal)[..., None] * _dark(rng)
        for vertical in (1 - y, y)
        for horizontal in (1 - x, x)
    )
    for _ in range(rng.integers(4, 8, endpoint=True)):
        (top, left), (height, width) = rng.random(2), rng.uniform(0.03, 0.15, 2)
        blob = ((y - top) / height) ** 2 + ((x - left) / width) ** 2 < 1
        image[blob] = _dark(rng)
    for _ in range(rng.integers(6, 12, endpoint=True)):
        (top, left), (down, right) = rng.random(2), rng.uniform(-0.6, 0.6, 2)
        # The nearest point of the segment, as a fraction of its length.
        along = (y - top) * down + (x - left) * right
        along = np.clip(along / (down**2 + right**2), 0, 1)
        distance = (y - top - along * down) ** 2 + (x - left - along * right) ** 2
        image[distance < rng.uniform(0.005, 0.02) ** 2] = _dark(rng)
    return image


# In every channel, dark and light colors differ by at least 60.
def _dark(rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(0, 100, 3)


def _light(rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(160, 250, 3)


def _paint(image: np.ndarray, alpha: np.ndarray, color: np.ndarray) -> None:
    image += alpha[..., None] * (color - image)


def _photograph(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    noisy = image + rng.normal(0, 8, image.shape)
    return np.clip(np.round(noisy), 0, 255).astype(np.uint8)
