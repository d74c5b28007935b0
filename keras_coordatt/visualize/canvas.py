"""Empty figures."""

# Side of a picture in a figure, in inches
SIDE = 1.6


def subplots(rows, columns, size):
    """Returns a new figure and its axes, each of `size` inches."""
    try:
        import matplotlib.figure
    except ImportError as error:
        raise ImportError(
            "Figures need matplotlib: pip install 'keras_coordatt[figures]'"
        ) from error
    # Not by pyplot, which would keep every figure until it is closed
    figure = matplotlib.figure.Figure(
        (columns * size[0], rows * size[1]), layout="constrained"
    )
    return figure, figure.subplots(rows, columns, squeeze=False)


def picture_grid(pictures, columns, side=SIDE):
    """Returns a new figure, and axes without ticks, one for each picture."""
    columns = min(columns, len(pictures))
    size = side, side * pictures.shape[1] / pictures.shape[2] + 0.25
    figure, axes = subplots(-(-len(pictures) // columns), columns, size)
    for axis in axes.flat:
        axis.axis("off")
    return figure, list(axes.flat[: len(pictures)])
