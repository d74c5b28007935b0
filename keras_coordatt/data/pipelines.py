"""The old place of `open_images`."""

from keras_coordatt.data.classification import open_images

__all__ = ["open_images"]
