import keras
from keras import ops

from keras_coordatt.validation import check_choice


@keras.saving.register_keras_serializable("keras_coordatt")
class ResizeLike(keras.layers.Layer):
    """Resizes a feature map bilinearly to the height and width of another.

    Unlike `keras.layers.Resizing` and `UpSampling2D`, it meets a size that is known
    only when the network runs, and one that is no multiple of the map's. Pixels are
    squares whose centers lie half a pixel inwards, as in TensorFlow 2, JAX, and PyTorch
    with `align_corners=False`; beyond the outer centers, the map goes on as it is there.

    Args:
        data_format: `"channels_last"` or `"channels_first"`. Defaults to
            `keras.config.image_data_format()`.
        **kwargs: `name`, `dtype`.

    Call arguments:
        inputs: `(x, like)`: the map, `(N, h, w, C)`, and a tensor `(N, H, W, ...)`
            whose height and width it gets; `(N, C, h, w)` and `(N, ..., H, W)` with
            `"channels_first"`.

    Output shape:
        `(N, H, W, C)`, or `(N, C, H, W)` with `"channels_first"`.

    Raises:
        ValueError: if `data_format` is unknown, or the inputs are not two maps.

    Example:

    >>> x, image = np.random.rand(1, 15, 19, 21), np.random.rand(1, 225, 301, 3)
    >>> ResizeLike()([x, image]).shape
    (1, 225, 301, 21)
    """

    def __init__(self, data_format: str | None = None, **kwargs):
        super().__init__(**kwargs)
        self.data_format = check_choice(
            "data_format",
            data_format or keras.config.image_data_format(),
            ("channels_last", "channels_first"),
        )
        first = self.data_format == "channels_first"
        self._spatial_axes = (2, 3) if first else (1, 2)

    def build(self, input_shape):
        if len(input_shape) != 2 or any(len(shape) != 4 for shape in input_shape):
            raise ValueError(
                "ResizeLike needs two inputs of rank 4, the map and what to make it "
                f"like. Received: input_shape={input_shape}"
            )

    def call(self, inputs):
        x, like = inputs
        axes = self._spatial_axes
        new = [ops.shape(like)[axis] for axis in axes]
        if None not in [y.shape[axis] for y in inputs for axis in axes]:
            return ops.image.resize(x, new, data_format=self.data_format)
        # Sizes that a graph of TensorFlow's doesn't know yet, `resize` refuses.
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
