"""Optimizers of a recipe."""

import keras

from keras_coordatt.training.recipes import Recipe, warmup_cosine

_CLASSES = {
    "sgd": keras.optimizers.SGD,
    "adamw": keras.optimizers.AdamW,
    "lamb": keras.optimizers.Lamb,
}
# Parameters of normalizations, and biases
_WITHOUT_DECAY = ("gamma", "beta", "bias")


def make_optimizer(
    recipe: Recipe, learning_rate: float, steps: int, variables: list
) -> keras.Optimizer:
    """Returns the optimizer of one phase of a training.

    Args:
        recipe: The recipe.
        learning_rate: Highest learning rate.
        steps: Number of steps of the phase.
        variables: Trainable variables of the model.

    Returns:
        An optimizer with a schedule of its own.
    """
    arguments = {
        "learning_rate": warmup_cosine(steps, learning_rate, recipe.warmup),
        "clipnorm": recipe.clip_norm or None,
    }
    if recipe.optimizer == "sgd":
        arguments |= {"momentum": 0.9, "nesterov": True}
    elif recipe.weight_decay:
        arguments["weight_decay"] = recipe.weight_decay
    if recipe.ema:
        arguments |= {"use_ema": True, "ema_momentum": recipe.ema}
    if recipe.gradient_accumulation > 1:
        arguments["gradient_accumulation_steps"] = recipe.gradient_accumulation
    make = _CLASSES[recipe.optimizer]
    if recipe.optimizer == "adamw" and not recipe.weight_decay:
        # AdamW would trace the schedule for every variable, to decay it by zero.
        make = keras.optimizers.Adam
    optimizer = make(**arguments)
    if arguments.get("weight_decay"):
        optimizer.exclude_from_weight_decay(var_names=_WITHOUT_DECAY)
    # If `fit` did it, TensorFlow would trace the step twice, which takes a minute.
    optimizer.build(variables)
    return optimizer


def set_weight_penalty(model: keras.Model, recipe: Recipe) -> None:
    """Adds SGD's weight decay to a model, as an L2 penalty on its kernels.

    Keras's `weight_decay` is decoupled from the momentum, so it decays ten times less
    than PyTorch's, which the paper used. Weights with a regularizer keep it.
    """
    if recipe.optimizer == "sgd" and recipe.weight_decay:
        for weight in model.trainable_weights:
            if weight.name not in _WITHOUT_DECAY and weight.regularizer is None:
                weight.regularizer = keras.regularizers.L2(recipe.weight_decay / 2)
