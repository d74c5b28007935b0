"""Coordinate attention's passes over the feature map, while training.

Automatic differentiation spreads the gradient of each mean over a map of its own, and
then adds up the maps; and it keeps the map between the two multiplications. With these
gradients, rows and columns are added to the map as they are, and no map is kept but the
input.
"""

from keras import ops


def mean(x, height: int, width: int):
    """Averages a map along its width and along its height.

    Args:
        x: A batch of feature maps, in floating point.
        height: The index of its height axis.
        width: The index of its width axis, the next one.

    Returns:
        The means of all rows and then those of all columns, along the axis `height`.
    """

    @ops.custom_gradient
    def both(x):
        rows, columns = ops.shape(x)[height], ops.shape(x)[width]

        def gradient(*args, upstream=None):
            dy = args[0] if upstream is None else upstream
            before = (slice(None),) * height
            dy_rows = dy[*before, :rows] / ops.cast(columns, dy.dtype)
            dy_columns = dy[*before, rows:] / ops.cast(rows, dy.dtype)
            return ops.expand_dims(dy_rows, width) + ops.expand_dims(dy_columns, height)

        means = [ops.mean(x, axis=width), ops.mean(x, axis=height)]
        return ops.concatenate(means, axis=height), gradient

    return both(x)


def multiply(x, rows, columns, height: int, width: int):
    """Multiplies a map by a gate a row and a gate a column.

    Args:
        x: A batch of feature maps.
        rows: The gates of its rows, of length 1 along `width`.
        columns: The gates of its columns, of length 1 along `height`.
        height: The index of its height axis.
        width: The index of its width axis.

    Returns:
        The gated map.
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
