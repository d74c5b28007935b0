"""Augmentation of training images for each task.

Keras's layers where possible; the crops are functions of a batch. A crop is a region
in coordinates of the image, from 0 to 1, and extends beyond it to shrink the image. The
random numbers of each epoch start from a seed, so that an epoch can be repeated.
"""

import math

import keras
import tensorflow as tf
from keras import layers

from keras_coordatt.data import IGNORED
from keras_coordatt.layers.freezing import nested_layers
from keras_coordatt.preprocessing import IMAGENET
from keras_coordatt.training.recipes import Recipe
from keras_coordatt.validation import height_and_width

# SSD draws the minimum overlap of a crop with an object; 1 stands for no crop.
_SSD_OVERLAPS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
_SSD_CANDIDATES = 50
_LARGEST_EXPANSION = 4.0
# Images are loaded larger by this factor where they are cropped.
LOADED_FOR_CROP = 8 / 7


class Augmentation:
    """The augmentation of a recipe for a task.

    Args:
        task: `"classification"`, `"detection"` or `"segmentation"`.
        recipe: The recipe.

    Attributes:
        augment: The loaders' argument of this name.
    """

    def __init__(self, task: str, recipe: Recipe):
        self._generator = tf.random.Generator.from_seed(0)
        self._size = height_and_width(recipe.image_size)
        steps = {
            "classification": self._classification,
            "detection": self._detection,
            "segmentation": self._segmentation,
        }
        self.augment = keras.layers.Pipeline(steps[task](recipe))
        if not self.augment.layers:
            self.augment = None
        elif task == "segmentation":
            # A function gets masks as they are, without the layers' second channel.
            (self.augment,) = self.augment.layers

    def reseed(self, seed: int) -> None:
        """Restarts all random numbers from a seed."""
        self._generator.reset_from_seed(seed)
        if isinstance(self.augment, keras.layers.Pipeline):
            for layer in self.augment.layers:
                if isinstance(layer, keras.Layer):
                    reseed(layer, seed)

    def _classification(self, recipe):
        steps = []
        if recipe.augmentation == "strong":
            steps.append(self._inception_crop)
        if recipe.augmentation != "none":
            steps.append(layers.RandomFlip("horizontal", seed=0))
        if recipe.augmentation == "light":
            steps.append(layers.RandomTranslation(0.1, 0.1, seed=0))
        if recipe.rand_augment:
            steps.append(layers.RandAugment(factor=recipe.rand_augment, seed=0))
        if recipe.erasing:
            steps.append(layers.RandomErasing(factor=recipe.erasing, seed=0))
        mixing = {"seed": 0, "dtype": "float32"}
        if recipe.mixup:
            steps.append(layers.MixUp(recipe.mixup, **mixing))
        if recipe.cutmix:
            steps.append(layers.CutMix(recipe.cutmix, **mixing))
        return steps

    def _detection(self, recipe):
        flip = layers.RandomFlip("horizontal", seed=0, bounding_box_format="rel_xyxy")
        if recipe.augmentation == "none":
            return []
        if recipe.augmentation == "light":
            return [flip]
        colors = layers.RandomColorJitter(
            brightness_factor=0.125,
            contrast_factor=0.5,
            saturation_factor=0.5,
            hue_factor=0.05,
            seed=0,
        )
        return [colors, self._ssd_crop, flip]

    def _segmentation(self, recipe):
        if recipe.augmentation == "none":
            return []
        return [self._scale_and_flip if recipe.augmentation == "strong" else self._flip]

    def _uniform(self, *shape, low=0.0, high=1.0):
        return self._generator.uniform(shape, low, high)

    def _inception_crop(self, images):
        """Crops 8 % to 100 % of the area, at an aspect ratio from 3/4 to 4/3."""
        count = tf.shape(images)[0]
        area = self._uniform(count, low=0.08)
        ratio = tf.exp(self._uniform(count, low=math.log(3 / 4), high=math.log(4 / 3)))
        width = tf.minimum(tf.sqrt(area * ratio), 1.0)
        height = tf.minimum(tf.sqrt(area / ratio), 1.0)
        left = self._uniform(count) * (1 - width)
        top = self._uniform(count) * (1 - height)
        region = tf.stack([left, top, left + width, top + height], -1)
        return crop(images, region, self._size)

    def _ssd_crop(self, data):
        """Shrinks every second image, then crops around objects, as SSD does."""
        images, objects = data["images"], data["bounding_boxes"]
        boxes = tf.cast(objects["boxes"], "float32")
        labels = tf.cast(objects["labels"], "float32")
        count = tf.shape(images)[0]
        scale = self._uniform(count, low=1.0, high=_LARGEST_EXPANSION)
        scale = tf.where(self._uniform(count) < 0.5, scale, 1.0)
        left, top = (-self._uniform(count) * (scale - 1) for _ in range(2))
        canvas = tf.stack([left, top, left + scale, top + scale], -1)
        boxes = inside(canvas[:, None], boxes)
        window = self._ssd_window(boxes, labels >= 0)
        boxes = inside(window[:, None], boxes)
        center = (boxes[..., :2] + boxes[..., 2:]) / 2
        kept = tf.reduce_all((center > 0) & (center < 1), -1) & (labels >= 0)
        # The window is part of the canvas.
        sides = tf.tile(canvas[:, 2:] - canvas[:, :2], (1, 2))
        region = tf.tile(canvas[:, :2], (1, 2)) + window * sides
        return {
            "images": crop(images, region, self._size),
            "bounding_boxes": {
                "boxes": tf.where(kept[..., None], tf.clip_by_value(boxes, 0, 1), 0),
                "labels": tf.where(kept, labels, -1),
            },
        }

    def _ssd_window(self, boxes, exists):
        """Draws one window per image that overlaps an object enough, or all of it."""
        count = tf.shape(boxes)[0]
        shape = (count, _SSD_CANDIDATES)
        width, height = (self._uniform(*shape, low=0.3) for _ in range(2))
        left = self._uniform(*shape) * (1 - width)
        top = self._uniform(*shape) * (1 - height)
        windows = tf.stack([left, top, left + width, top + height], -1)
        overlap = tf.gather(
            _SSD_OVERLAPS,
            self._generator.uniform((count,), 0, len(_SSD_OVERLAPS), "int32"),
        )
        overlaps = tf.where(exists[:, None], _iou(windows, boxes), -1.0)
        center = ((boxes[..., :2] + boxes[..., 2:]) / 2)[:, None]
        holds = tf.reduce_all(
            (center > windows[:, :, None, :2]) & (center < windows[:, :, None, 2:]), -1
        )
        good = (width < 2 * height) & (height < 2 * width)
        good &= tf.reduce_any(holds & exists[:, None], -1)
        good &= tf.reduce_max(overlaps, -1) >= overlap[:, None]
        first = tf.argmax(tf.cast(good, "int32"), axis=1)
        chosen = tf.gather(windows, first, batch_dims=1)
        use = tf.reduce_any(good, -1) & (overlap < 1)
        return tf.where(use[:, None], chosen, (0.0, 0.0, 1.0, 1.0))

    def _scale_and_flip(self, data):
        """Scales images and masks by a factor from 0.5 to 2, crops and flips them."""
        count = tf.shape(data["images"])[0]
        side = tf.exp(self._uniform(count, low=-math.log(2), high=math.log(2)))
        left, top = (self._uniform(count) * (1 - side) for _ in range(2))
        region = tf.stack([left, top, left + side, top + side], -1)
        masks = data["segmentation_masks"]
        # -1 where the region extends beyond the image.
        cut = crop(masks, region, self._size, "nearest", fill=-1.0)
        cut = tf.where(cut < 0, tf.cast(IGNORED, "float32"), cut)
        return self._flip(
            {
                "images": crop(data["images"], region, self._size),
                "segmentation_masks": tf.cast(cut, masks.dtype),
            }
        )

    def _flip(self, data):
        flipped = self._uniform(tf.shape(data["images"])[0]) < 0.5
        axis = 3 if _channels_first() else 2
        return {
            name: tf.where(flipped[:, None, None, None], tf.reverse(x, [axis]), x)
            for name, x in data.items()
        }


def reseed(layer: keras.Layer, seed: int) -> None:
    """Restarts the random numbers of a layer and of all layers in it from a seed.

    Args:
        layer: Layer or model.
        seed: Non-negative integer.
    """
    values = [x for part in nested_layers(layer) for x in vars(part).values()]
    # Layers in a `tf.data` pipeline have one generator per backend.
    values += [x for value in values if isinstance(value, dict) for x in value.values()]
    generators = [x for x in values if isinstance(x, keras.random.SeedGenerator)]
    for i, generator in enumerate({id(x): x for x in generators}.values()):
        generator.state.assign([seed % 2**32, i])


def crop(images, region, size, method="bilinear", fill=None):
    """Cuts a region out of each image, and resizes it.

    Args:
        images: Batch of images in Keras's data format.
        region: `(N, 4)`, `"rel_xyxy"`.
        size: Height and width.
        method: `"bilinear"` or `"nearest"`.
        fill: Value outside of the image. Defaults to ImageNet's mean.

    Returns:
        The images, float32.
    """
    images = tf.cast(images, "float32")
    if _channels_first():
        images = tf.transpose(images, (0, 2, 3, 1))
    offset = 255 * tf.constant(IMAGENET.mean) if fill is None else 0.0
    images = tf.image.crop_and_resize(
        images - offset,
        tf.gather(region, (1, 0, 3, 2), axis=1),
        tf.range(tf.shape(images)[0]),
        size,
        method,
        extrapolation_value=fill or 0.0,
    )
    images += offset
    return tf.transpose(images, (0, 3, 1, 2)) if _channels_first() else images


def inside(region, boxes):
    """Returns boxes relative to a region instead of the image."""
    origin, sides = region[..., :2], region[..., 2:] - region[..., :2]
    return (boxes - tf.concat([origin] * 2, -1)) / tf.concat([sides] * 2, -1)


def _iou(windows, boxes):
    windows, boxes = windows[:, :, None], boxes[:, None]
    low = tf.maximum(windows[..., :2], boxes[..., :2])
    high = tf.minimum(windows[..., 2:], boxes[..., 2:])
    overlap = tf.reduce_prod(tf.maximum(high - low, 0), -1)
    areas = [tf.reduce_prod(x[..., 2:] - x[..., :2], -1) for x in (windows, boxes)]
    return tf.math.divide_no_nan(overlap, areas[0] + areas[1] - overlap)


def _channels_first():
    return keras.config.image_data_format() == "channels_first"
