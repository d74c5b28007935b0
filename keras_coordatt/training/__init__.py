"""Training for three tasks, with recipes, resumable from its state on disk."""

from keras_coordatt.training.distribution import distribute
from keras_coordatt.training.fine_tuning import fine_tune
from keras_coordatt.training.recipes import (
    RECIPES,
    Recipe,
    recipe,
    warmup_cosine,
    zero_init_residuals,
)
from keras_coordatt.training.trainer import Training, train

__all__ = [
    "RECIPES",
    "Recipe",
    "Training",
    "distribute",
    "fine_tune",
    "recipe",
    "train",
    "warmup_cosine",
    "zero_init_residuals",
]
