"""Frozen batch normalization, and the search for layers inside other layers."""

import keras


def freeze_batch_norm(model: keras.Layer) -> int:
    """Freezes every batch normalization of a model, wherever it stands.

    A loop over `model.layers`, as in Keras's guide to fine-tuning, misses the layers
    of nested models and those inside other layers, such as `norm` in
    `CoordinateAttention`. Frozen batch normalization normalizes by its moving
    statistics, which stay as they are. Saving, cloning, `insert_attention` and
    `fuse_attention` keep it frozen.

    Setting `trainable = True` on a layer or model thaws all that it contains, so thaw
    first, then freeze, then compile.

    Args:
        model: A built model or layer.

    Returns:
        The number of layers that are now frozen.

    Raises:
        TypeError: If `model` isn't a Keras layer or model.
        ValueError: If `model` isn't built, so that its layers may not exist yet.

    Example:

    >>> model = MobileNetV2CA((64, 64, 3), weights=None)
    >>> freeze_batch_norm(model)
    68
    """
    if not isinstance(model, keras.Layer):
        raise TypeError(f"`model` must be a Keras layer or model. Received: {model!r}")
    if not model.built:
        raise ValueError(f"`model` must be built first. Received: {model!r}")
    norms = [
        layer
        for layer in nested_layers(model)
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    for norm in norms:
        norm.trainable = False
    return len(norms)


def nested_layers(layer: keras.Layer) -> list:
    """Returns a layer and all layers inside it, each once, containers first."""
    found, queue = {}, [layer]
    while queue:
        layer = queue.pop(0)
        if id(layer) not in found:
            found[id(layer)] = layer
            # Keras's own list of a layer's layers is private.
            queue += _layers_in(list(vars(layer).values()))
    return list(found.values())


def _layers_in(value):
    if isinstance(value, keras.Layer):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [layer for item in value for layer in _layers_in(item)]
    return []
