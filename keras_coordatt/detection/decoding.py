"""Conversion of offsets and logits to boxes and scores, before suppression."""

import keras
from keras import ops

from keras_coordatt.detection.default_boxes import decode, default_boxes


@keras.saving.register_keras_serializable("keras_coordatt")
class DecodeDetections(keras.layers.Layer):
    """Converts the outputs of an SSD to boxes and scores.

    Args:
        map_sizes, box_shapes, image_size: Same as in `default_boxes`.
        **kwargs: `name`, `dtype`.

    Call arguments:
        inputs: A dict of `"boxes"`, offsets `(N, A, 4)`, and `"classes"`, logits
            `(N, A, classes + 1)` with the background first.

    Returns:
        A dict of `"boxes"`, `(N, A, 4)`, `"rel_xyxy"`, clipped to the image, and
        `"scores"`, `(N, A, classes)`, in [0, 1]; both float32 under any policy.
    """

    def __init__(self, map_sizes, box_shapes, image_size, **kwargs):
        # In half precision, boxes would be off by up to half a pixel.
        super().__init__(autocast=False, **kwargs)
        self.map_sizes = map_sizes
        self.box_shapes = box_shapes
        self.image_size = image_size

    def call(self, inputs):
        offsets, logits = (
            ops.cast(inputs[name], "float32") for name in ("boxes", "classes")
        )
        boxes = default_boxes(self.map_sizes, self.box_shapes, self.image_size)
        return {
            "boxes": ops.clip(decode(offsets, boxes), 0.0, 1.0),
            "scores": ops.softmax(logits)[..., 1:],
        }

    def get_config(self):
        return {
            **super().get_config(),
            "map_sizes": self.map_sizes,
            "box_shapes": self.box_shapes,
            "image_size": self.image_size,
        }
