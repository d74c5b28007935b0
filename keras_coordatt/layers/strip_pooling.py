"""Strip pooling and scaling of coordinate attention, with gradients for training.

Autodiff materializes one full-size gradient per mean and keeps the intermediate
product. These gradients broadcast instead, and keep only the input.
"""

import keras
from keras import ops
from keras.backend import standardize_dtype


def mean(x, axis, dtype: str):
    """Averages in a dtype that may have more bits than that of `x`."""
    if keras.config.backend() == "torch" and standardize_dtype(x.dtype) != dtype:
        import torch

        x = ops.convert_to_tensor(x)
        # On a GPU, this makes no converted copy of `x`.
        return torch.mean(x, axis, dtype=getattr(torch, dtype))
    return ops.mean(ops.cast(x, dtype), axis=axis)


def strip_mean(x, height: int, width: int, dtype: str):
    """Averages feature maps along their width and along their height.

    Args:
        x: Floating-point tensor of feature maps.
        height: Index of the height axis.
        width: Index of the width axis, which is `height + 1`.
        dtype: That of the means, which may have more bits than that of `x`.

    Returns:
        The means of all rows, then those of all columns, along the axis `height`.
    """

    @ops.custom_gradient
    def both(x):
        rows, columns = ops.shape(x)[height], ops.shape(x)[width]

        def gradient(*args, upstream=None):
            dy = args[0] if upstream is None else upstream
            before = (slice(None),) * height
            dy_rows = dy[*before, :rows] / ops.cast(columns, dy.dtype)
            dy_columns = dy[*before, rows:] / ops.cast(rows, dy.dtype)
            dx = ops.expand_dims(dy_rows, width) + ops.expand_dims(dy_columns, height)
            return ops.cast(dx, x.dtype)

        means = [mean(x, axis, dtype) for axis in (width, height)]
        return ops.concatenate(means, axis=height), gradient

    return both(ops.convert_to_tensor(x))


def strip_scale(x, rows, columns, height: int, width: int):
    """Multiplies feature maps by one gate per row and one per column.

    Args:
        x: Tensor of feature maps.
        rows: Gates of the rows, of length 1 along `width`.
        columns: Gates of the columns, of length 1 along `height`.
        height: Index of the height axis.
        width: Index of the width axis.

    Returns:
        The gated feature maps.
    """

    @ops.custom_gradient
    def gated(x, rows, columns):
        def gradient(*args, upstream=None):
            dy = args[0] if upstream is None else upstream
            product = dy * x
            return (
                dy * rows * columns,
                ops.sum(product * columns, axis=width, keepdims=True),
                ops.sum(product * rows, axis=height, keepdims=True),
            )

        return x * rows * columns, gradient

    return gated(x, rows, columns)
