"""Feature maps for dense heads, found by the names of a network's layers."""

import math
import re

import keras
from keras.layers import Conv2D, DepthwiseConv2D

# Layers of a block. MobileNetV2's first block is named as in keras.applications.
BLOCK = re.compile(r"(expanded_conv|block_\d+)_\D")


def pyramid_outputs(model: keras.Model) -> dict[str, keras.KerasTensor]:
    """Returns the feature maps of a network, one per stride.

    `"P{n}"` is the output of the last block at stride `2**n`. The first is `"P2"`; the
    last is the output of the last block: `"P5"`, or `"P4"` or `"P3"` with an
    `output_stride` of 16 or 8.

    The feature maps are found by the names and strides of the layers, so a network may
    have been saved and loaded, cloned, or given another head. To build a model that
    shares its layers with the network, use
    `keras.Model(model.inputs, pyramid_outputs(model))`.

    Args:
        model: A model built by `MobileNetV2CA`, `MobileNeXtCA` or `EfficientNetCA`,
            or a functional model that starts with the layers of one.

    Returns:
        A dictionary from `"P2"`, `"P3"`, ... to symbolic tensors, `(N, H, W, C)`,
        or `(N, C, H, W)` with `"channels_first"`, the finest first.

    Raises:
        ValueError: If `model` isn't one of these.

    Example:

    >>> model = MobileNetV2CA(include_top=False, weights=None)
    >>> features = keras.Model(model.inputs, pyramid_outputs(model))
    >>> {name: x.shape for name, x in features(np.zeros((1, 64, 64, 3))).items()}
    {'P2': (1, 16, 16, 24), 'P3': (1, 8, 8, 32), 'P4': (1, 4, 4, 96),
     'P5': (1, 2, 2, 320)}
    """
    blocks, before = {}, []
    for layer in model.layers if isinstance(model, keras.Model) else []:
        if match := BLOCK.match(layer.name):
            blocks.setdefault(match[1], []).append(layer)
        elif not blocks:
            before.append(layer)
    stems = convolutions(before)
    if not stems or len(blocks) < 2:
        raise ValueError(
            "`model` must be a network of `keras_coordatt.applications`, whose blocks "
            "are layers with names such as 'block_1_depthwise'. "
            f"Received: {model if isinstance(model, keras.Model) else repr(model)}"
        )

    # Layers before `input_tensor` may be convolutions too; the stem is the last one.
    stride, feature_maps = stems[-1].strides[0], {}
    for block in blocks.values():
        stride *= math.prod(layer.strides[0] for layer in convolutions(block))
        feature_maps[stride] = block[-1].output
    return {f"P{int(math.log2(n))}": x for n, x in feature_maps.items() if n >= 4}


def convolutions(layers):
    return [x for x in layers if isinstance(x, (Conv2D, DepthwiseConv2D))]
