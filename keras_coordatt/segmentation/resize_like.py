"""Resizing to a size that is known only at run time."""

import keras
from keras import ops

from keras_coordatt.validation import check_choice


@keras.saving.register_keras_serializable("keras_coordatt")
class ResizeLike(keras.layers.Layer):
    """Resizes a feature map bilinearly to the height and width of another tensor.

    Unlike in `keras.layers.Resizing` and `UpSampling2D`, the size may be known only at
    run time, and need not be a multiple of the feature map's. Pixel centers are at half
    integers, as in TensorFlow 2, JAX, and PyTorch with `align_corners=False`; the edge
    values extend to the border.

    Args:
        data_format: `"channels_last"` or `"channels_first"`. Defaults to
            `keras.config.image_data_format()`.
        **kwargs: `name`, `dtype`.

    Call arguments:
        inputs: `(x, like)`: the feature map, `(N, h, w, C)`, and a tensor
            `(N, H, W, ...)` of the target height and width; `(N, C, h, w)` and
            `(N, ..., H, W)` with `"channels_first"`.

    Output shape:
        `(N, H, W, C)`, or `(N, C, H, W)` with `"channels_first"`.

    Raises:
        ValueError: If `data_format` is unknown, or the inputs are not two tensors of
            rank 4.

    Example:

    >>> x, image = np.random.rand(1, 15, 19, 21), np.random.rand(1, 225, 301, 3)
    >>> ResizeLike()([x, image]).shape
    (1, 225, 301, 21)
    """

    # Only the size of the second input matters: see `preprocessing.record_layers`.
    value_inputs = 1

    def __init__(self, data_format: str | None = None, **kwargs):
        super().__init__(**kwargs)
        self.data_format = check_choice(
            "data_format",
            keras.config.image_data_format() if data_format is None else data_format,
            ("channels_last", "channels_first"),
        )
        first = self.data_format == "channels_first"
        self._spatial_axes = (2, 3) if first else (1, 2)

    def build(self, input_shape):
        if len(input_shape) != 2 or any(len(shape) != 4 for shape in input_shape):
            raise ValueError(
                "ResizeLike needs two inputs of rank 4: the feature map, and a tensor "
                f"of the target size. Received: input_shape={input_shape}"
            )

    def call(self, inputs):
        x, like = inputs
        axes = self._spatial_axes
        new = [ops.shape(like)[axis] for axis in axes]
        if None not in [y.shape[axis] for y in inputs for axis in axes]:
            return ops.image.resize(x, new, data_format=self.data_format)
        # `resize` needs sizes that are known when a TensorFlow graph is traced.
        shape = list(ops.shape(x))
        old = [shape[axis] for axis in axes]
        for axis, side in zip(axes, new):
            shape[axis] = side
        new, old = (ops.cast(ops.stack(sides), "float32") for sides in (new, old))
        return ops.image.scale_and_translate(
            x, shape, new / old, ops.zeros(2), axes, "linear", antialias=False
        )

    def compute_output_shape(self, input_shape):
        shape, like = map(list, input_shape)
        for axis in self._spatial_axes:
            shape[axis] = like[axis]
        return tuple(shape)

    def get_config(self):
        return {**super().get_config(), "data_format": self.data_format}
