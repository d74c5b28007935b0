"""`keras-coordatt convert`: weights of a network in another format."""

import pathlib

from keras_coordatt.applications.network_file import OUTPUTS, read_network, save_network
from keras_coordatt.cli.options import (
    Attention,
    check_outputs,
    network_arguments,
)


def convert(
    source: pathlib.Path,
    output: pathlib.Path,
    *,
    alpha: float | None = None,
    classes: int | None = None,
    attention: Attention | None = None,
    reduction: int | None = None,
    top: bool = True,
) -> None:
    """Convert weights of a network to another format.

    The network is read from IN: from the configuration in a `.keras` or legacy `.h5`
    file, or from the names and shapes in a file with the PyTorch names of this package's
    networks. A `.weights.h5` file has neither: it must be of a MobileNetV2CA, which the
    options describe.

    Args:
        source: `.keras`, `.h5`, `.weights.h5`, `.pth`, `.pt` or `.safetensors` file.
        output: File to write: `.keras`, `.weights.h5` or `.safetensors`.
        alpha: Width multiplier of the network, if IN doesn't specify it.
        classes: Number of classes, if IN doesn't specify it.
        attention: Attention of the network, if IN doesn't specify it.
        reduction: Reduction of the attention, if IN doesn't specify it.
        top: Whether the network has its classifier.
    """
    if not str(output).endswith(OUTPUTS):
        raise ValueError(f"OUT must end in one of {OUTPUTS}. Received: {output}")
    check_outputs([("OUT", output)], [source])
    arguments = network_arguments(alpha, classes, attention, reduction, top)
    model = read_network(source, **arguments)
    save_network(model, output)
    print(f"{output}: {model.count_params():,} parameters, from {source}")
