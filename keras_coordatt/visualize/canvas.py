"""Empty figures, and legends."""

import functools
import io

from keras_coordatt.extras import check_matplotlib

# Side of a picture in a figure, in inches
SIDE = 1.6


@functools.cache
def _figure_class():
    check_matplotlib()
    import matplotlib.figure

    class Figure(matplotlib.figure.Figure):
        """A figure that notebooks display, even where nobody imported pyplot."""

        def _repr_png_(self):
            picture = io.BytesIO()
            self.savefig(picture, format="png", dpi=72)
            return picture.getvalue()

    return Figure


def subplots(rows, columns, size):
    """Returns a new figure and its axes, each of `size` inches."""
    # Without pyplot, which would keep every figure until it is closed
    figure = _figure_class()((columns * size[0], rows * size[1]), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def picture_grid(pictures, columns, side=SIDE):
    """Returns a new figure, and axes without ticks, one for each picture."""
    columns = min(columns, len(pictures))
    size = side, side * pictures.shape[1] / pictures.shape[2] + 0.25
    figure, axes = subplots(-(-len(pictures) // columns), columns, size)
    for axis in axes.flat:
        axis.axis("off")
    return figure, list(axes.flat[: len(pictures)])


def add_legend(parent, handles, labels, **options):
    """Adds a legend to a figure or axes, and returns it."""
    # Texts are set afterwards: matplotlib omits labels that begin with "_".
    legend = parent.legend(handles, [str(i) for i in range(len(labels))], **options)
    for text, label in zip(legend.get_texts(), labels):
        text.set_text(label)
    return legend
