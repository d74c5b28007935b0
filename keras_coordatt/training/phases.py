"""Phases of a training: the head alone, then all layers."""

import dataclasses
from collections.abc import Sequence

import keras

from keras_coordatt.graph import is_network, last_activation, last_layers
from keras_coordatt.layers import freeze_batch_norm
from keras_coordatt.layers.freezing import nested_layers
from keras_coordatt.training.optimizers import set_weight_penalty
from keras_coordatt.training.recipes import Recipe


@dataclasses.dataclass(frozen=True)
class Phase:
    """Epochs with one optimizer and the same layers trained.

    Attributes:
        name: `"head"` or `"all"`.
        first: Number of complete epochs before the phase.
        last: Number of complete epochs after it.
        learning_rate: Highest learning rate.
    """

    name: str
    first: int
    last: int
    learning_rate: float

    def set_trainable(
        self, model: keras.Model, head: Sequence[keras.Layer], recipe: Recipe
    ) -> None:
        """Sets which layers are trained in this phase."""
        # One by one: with TensorFlow, `model.trainable = True` reaches no layer after `fit`.
        for layer in nested_layers(model):
            layer.trainable = True
        in_head = {id(layer) for top in head for layer in nested_layers(top)}
        base = [
            layer
            for layer in nested_layers(model)
            if id(layer) not in in_head and not isinstance(layer, keras.Model)
        ]
        if self.name == "head":
            for layer in base:
                layer.trainable = False
        elif recipe.freeze_batch_norm:
            for layer in base:
                if isinstance(layer, keras.layers.BatchNormalization):
                    freeze_batch_norm(layer)
        set_weight_penalty(model, recipe)


def phases(recipe: Recipe) -> list[Phase]:
    """Returns the phases of a recipe in their order."""
    found = []
    scale = recipe.batch_size / (recipe.base_batch_size or recipe.batch_size)
    if recipe.head_epochs:
        rate = scale * recipe.head_learning_rate
        found.append(Phase("head", 0, recipe.head_epochs, rate))
    rate = scale * recipe.learning_rate
    all_layers = Phase("all", recipe.head_epochs, recipe.epochs, rate)
    return [*found, all_layers]


def find_head(model: keras.Model, task: str) -> list[keras.Layer]:
    """Returns the layers that are trained first.

    Args:
        model: Model for the task.
        task: `"classification"`, `"detection"` or `"segmentation"`.

    Returns:
        A list of layers.
    """
    if task == "detection":
        backbone = {id(layer) for layer in model.backbone.layers}
        return [layer for layer in model.layers if id(layer) not in backbone]
    decoder = [
        layer
        for layer in nested_layers(model)
        if layer.weights
        and (layer.name.startswith("aspp_") or layer.name == "predictions")
    ]
    if task == "segmentation" and decoder:
        return decoder
    if is_network(model):
        return last_layers(model)
    return [layer for layer in model.layers if layer.weights][-1:]


def ends_in_logits(model: keras.Model) -> bool | None:
    """Returns whether a classifier ends in logits; `None` if neither in a softmax.

    Also `None` if its end can't be read.
    """
    if not is_network(model):
        return None
    ends = {keras.activations.linear: True, keras.activations.softmax: False}
    return ends.get(last_activation(model))
