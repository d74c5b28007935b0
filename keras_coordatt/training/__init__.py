"""Training from scratch, in a few hundred steps or many, with backups."""

from keras_coordatt.training.backup import Backup
from keras_coordatt.training.classifier import OPTIMIZERS, train_classifier
from keras_coordatt.training.recipes import warmup_cosine, zero_init_residuals

__all__ = [
    "OPTIMIZERS",
    "Backup",
    "train_classifier",
    "warmup_cosine",
    "zero_init_residuals",
]
