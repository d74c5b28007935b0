"""`keras-coordatt demo`: a tour of the package in two minutes."""

import pathlib


def demo(output: pathlib.Path = pathlib.Path("runs/demo")) -> None:
    """Fine-tune the packaged network on digits, look at it, and export it.

    Nothing is downloaded. It takes about two minutes on two cores.

    Args:
        output: Folder for the pictures and models.
    """
    # Imports TensorFlow, which other commands do without.
    from keras_coordatt import demo as story

    story.main(output)
