"""Forms of a model that converters can read."""

import keras

from keras_coordatt.detection import NonMaxSuppression
from keras_coordatt.export.detections import DETECTIONS
from keras_coordatt.graph import is_network
from keras_coordatt.layers.freezing import nested_layers


def for_inference(model):
    """Wraps a model so that it always runs with `training=False`.

    Exporters call without `training`, and augmentation layers would then change images.
    """
    (image,) = model.inputs
    inputs = keras.Input(batch_shape=image.shape, dtype=image.dtype, name="image")
    return keras.Model(inputs, model(inputs, training=False), name=model.name)


def half_precision(model):
    """Returns `"float16"` or `"bfloat16"` if some layer computes in it, else `None`."""
    found = {getattr(layer, "compute_dtype", None) for layer in _layers_in(model)}
    return next((x for x in ("bfloat16", "float16") if x in found), None)


def in_float32(model):
    """Returns the model, or a float32 copy if it computes in half precision."""
    if half_precision(model) is None:
        return model

    def clone(operation):
        config = operation.get_config()
        # Operations of keras.ops in the graph have no type of their own.
        if isinstance(operation, keras.layers.Layer):
            config["dtype"] = "float32"
        return type(operation).from_config(config)

    copy = keras.models.clone_model(model, clone_function=clone, recursive=True)
    copy.set_weights(model.get_weights())
    for layer in _layers_in(copy):
        # `Normalization` computes with values derived from its weights.
        if hasattr(layer, "finalize_state"):
            layer.finalize_state()
    return copy


def suppression_of(model):
    """Returns the model's layer of non-maximum suppression, or `None`."""
    found = (x for x in _layers_in(model) if isinstance(x, NonMaxSuppression))
    return next(found, None)


def check_suppression(model, problem):
    """Refuses a model with non-maximum suppression inside."""
    if suppression_of(model) is not None:
        raise ValueError(
            f"{problem}. Export the detector without it, "
            "`model.detector(suppress=False)`, and suppress overlapping boxes in the "
            "application; or export it from the TensorFlow backend. "
            f"Received: {model.name}"
        )


def split_suppression(model):
    """Separates the suppression at the end of a detector from its network.

    Args:
        model: A functional model.

    Returns:
        `(network, suppression)`: a model with the same layers that ends before the
        suppression, and the `NonMaxSuppression` layer; or `(model, None)` if the
        outputs of the model aren't those of such a layer, under the same names.
    """
    layers = (x for x in model.layers if isinstance(x, NonMaxSuppression))
    layer = next(layers, None)
    if layer is None:
        return model, None
    outputs = model.output
    named = isinstance(outputs, dict) and outputs.keys() == DETECTIONS
    if not named or _ids(outputs) != _ids(layer.output):
        return model, None
    boxes, scores = keras.tree.flatten(layer.input)
    inputs = {"boxes": boxes, "scores": scores}
    return keras.Model(model.input, inputs, name=model.name), layer


def _ids(outputs):
    return [id(x) for x in keras.tree.flatten(outputs)]


def _layers_in(model):
    """Returns the layers at all depths, without models, whose dtype no layer takes."""
    return [layer for layer in nested_layers(model) if not is_network(layer)]


def constant_function(model, shape, dtype, names, finish=None):
    """Returns a concrete TensorFlow function of the model, without variables.

    Converters fold constants, batch normalization into convolutions among them.

    Args:
        model: A `keras.Model`, on the TensorFlow backend.
        shape: Shape of the input, with the batch axis.
        dtype: Type of the input.
        names: Names of the outputs.
        finish: Function from the model's outputs to a dict of those of the function,
            instead of `names`.

    Returns:
        A concrete function from `image` to a dict of the outputs.
    """
    import tensorflow as tf

    trainable, others = (
        [variable.numpy() for variable in variables]
        for variables in (model.trainable_variables, model.non_trainable_variables)
    )

    @tf.function(input_signature=[tf.TensorSpec(shape, dtype, name="image")])
    def serve(image):
        # Made here, they are part of the graph; from outside, they would be inputs.
        state = ([tf.constant(x) for x in values] for values in (trainable, others))
        outputs, _ = model.stateless_call(*state, image, training=False)
        if finish is not None:
            return finish(outputs)
        return dict(zip(names, keras.tree.flatten(outputs), strict=True))

    return serve.get_concrete_function()
