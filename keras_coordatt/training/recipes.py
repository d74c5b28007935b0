"""Recipes: all values of a training, by name."""

import dataclasses
import numbers
from collections.abc import Mapping
from typing import Any

import keras

from keras_coordatt.validation import (
    check_choice,
    check_fraction,
    check_mapping,
    check_number,
    check_positive_int,
    check_type,
    height_and_width,
)

OPTIMIZERS = ("sgd", "adamw", "lamb")
AUGMENTATIONS = ("none", "light", "strong")
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All values of a training. `recipe` returns the three predefined recipes by name.

    Attributes:
        name: Name of the recipe that the values started from.
        image_size: Height and width of the images in pixels, or both as a pair.
        epochs: Number of epochs, with those of the head.
        batch_size: Images per step, at least 2 for batch normalization.
        optimizer: `"sgd"` with Nesterov momentum 0.9, `"adamw"` or `"lamb"`.
        learning_rate: Highest learning rate, at the end of the warmup. Then it follows
            a cosine down to zero. It is not changed by the number of devices.
        head_epochs: Epochs at the start in which only the head is trained.
        head_learning_rate: Highest learning rate of these epochs.
        steps_per_epoch: Steps per epoch, or `None` for all batches.
        warmup: Fraction of the steps of a phase in which the learning rate rises.
        weight_decay: For `"sgd"`, an L2 penalty in the loss, as in PyTorch; otherwise
            decoupled. Normalizations and biases don't decay.
        freeze_batch_norm: Whether the batch normalization of a pretrained network stays
            at its statistics.
        zero_init: Whether residual blocks start as the identity.
        augmentation: `"none"`; `"light"`, flips, and for classification shifts by up to
            a tenth; or `"strong"`: for classification Inception's crop, for detection
            SSD's photometric change, expansion and crop, for segmentation scale and
            crop, each with flips.
        rand_augment: Strength of RandAugment in (0, 1], for classification; 0 for none.
        mixup: `alpha` of MixUp, for classification; 0 for none.
        cutmix: `factor` of CutMix, for classification; 0 for none.
        erasing: Fraction of images of which a part is erased, for classification.
        label_smoothing: Label smoothing in [0, 1), for classification.
        class_weights: Whether rare classes count more, for classification.
        ema: Momentum of the exponential moving average of the weights, which is then
            validated and saved; 0 for none.
        precision: Dtype policy: `"float32"`, `"mixed_bfloat16"` or `"mixed_float16"`.
        gradient_accumulation: Steps over which gradients are accumulated.
        clip_norm: Highest norm of each gradient; 0 for none.
        patience: Epochs without a better validation metric after which training stops;
            0 for never.
        base_batch_size: Batch size for which the learning rates are meant: they are
            multiplied by `batch_size / base_batch_size`. `None` to use them as they are.

    Raises:
        ValueError: If a value is out of its range.

    Example:

    >>> dataclasses.replace(recipe("paper", "classification"), epochs=90).epochs
    90
    """

    name: str
    image_size: int | tuple[int, int]
    epochs: int
    batch_size: int
    optimizer: str
    learning_rate: float
    head_epochs: int = 0
    head_learning_rate: float = 1e-3
    steps_per_epoch: int | None = None
    warmup: float = 0.1
    weight_decay: float = 0.0
    freeze_batch_norm: bool = False
    zero_init: bool = False
    augmentation: str = "light"
    rand_augment: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    erasing: float = 0.0
    label_smoothing: float = 0.0
    class_weights: bool = False
    ema: float = 0.0
    precision: str = "float32"
    gradient_accumulation: int = 1
    clip_norm: float = 0.0
    patience: int = 0
    base_batch_size: int | None = None

    def __post_init__(self):
        def checked(names, check, *arguments, **options):
            # Python's numbers, as JSON can't hold NumPy's. The class is frozen.
            for name in names:
                value = check(name, getattr(self, name), *arguments, **options)
                object.__setattr__(self, name, value)

        # JSON turns tuples into lists.
        is_pair = isinstance(self.image_size, tuple | list)
        size = height_and_width(self.image_size)
        object.__setattr__(self, "image_size", size if is_pair else size[0])
        checked(("epochs", "gradient_accumulation", "batch_size"), check_positive_int)
        for name in ("steps_per_epoch", "base_batch_size"):
            if getattr(self, name) is not None:
                checked((name,), check_positive_int)
        checked(("head_epochs", "patience"), check_positive_int, zero=True)
        if self.head_epochs >= self.epochs:
            raise ValueError(
                "`head_epochs` must be fewer than `epochs`. "
                f"Received: head_epochs={self.head_epochs}, epochs={self.epochs}"
            )
        if self.batch_size < 2:
            raise ValueError(
                "`batch_size` must be at least 2: batch normalization can't train on "
                f"one image. Received: {self.batch_size}"
            )
        checked(("learning_rate", "head_learning_rate"), check_number, 0)
        positive = ("weight_decay", "mixup", "clip_norm")
        checked(positive, check_number, 0, closed=True)
        below_one = ("warmup", "label_smoothing", "ema")
        checked(below_one, check_number, 0, 1, closed=True)
        checked(("rand_augment", "cutmix", "erasing"), check_fraction)
        switches = ("freeze_batch_norm", "zero_init", "class_weights")
        checked(switches, check_choice, (True, False))
        checked(("optimizer",), check_choice, OPTIMIZERS)
        checked(("augmentation",), check_choice, AUGMENTATIONS)
        checked(("precision",), check_choice, PRECISIONS)


_IMAGE_SIZES = {"classification": 224, "detection": 320, "segmentation": 256}

_RECIPES: dict[str, dict[str, Any]] = {
    "fine-tune": {
        "epochs": 20,
        "head_epochs": 4,
        "head_learning_rate": 3e-3,
        "batch_size": 32,
        "optimizer": "adamw",
        "learning_rate": 5e-4,
        "weight_decay": 1e-2,
        "freeze_batch_norm": True,
        "patience": 10,
    },
    "scratch": {
        "epochs": 16,
        "batch_size": 64,
        "optimizer": "sgd",
        "learning_rate": 0.05,
        "zero_init": True,
    },
    "paper": {
        "epochs": 200,
        "batch_size": 256,
        "optimizer": "sgd",
        "learning_rate": 0.05,
        "warmup": 0.025,
        "weight_decay": 4e-5,
        "augmentation": "strong",
    },
}
# Dense tasks learn from few images, each with many examples.
_DENSE: dict[str, dict[str, Any]] = {
    "fine-tune": {"epochs": 40, "augmentation": "strong", "batch_size": 16},
    "scratch": {
        "epochs": 60,
        "optimizer": "adamw",
        "learning_rate": 2e-3,
        "batch_size": 16,
        "augmentation": "strong",
    },
    # The paper's learning rate for SSDLite; that of DeepLab for segmentation.
    "paper": {"learning_rate": 0.01, "batch_size": 32},
}
_TASKS: dict[str, dict[str, dict[str, Any]]] = {
    "classification": {"fine-tune": {"label_smoothing": 0.1}},
    "detection": _DENSE,
    "segmentation": {**_DENSE, "paper": {"learning_rate": 0.007, "batch_size": 16}},
}
RECIPES = tuple(_RECIPES)
# Learning rates and weight decays of the optimizers, relative to AdamW's. SGD with
# momentum 0.9 then decays as much per step as AdamW: 4e-5 is 250 times less than 1e-2.
_RATES = {"sgd": 25.0, "adamw": 1.0, "lamb": 2.5}
_DECAYS = {"sgd": 1 / 250, "adamw": 1.0, "lamb": 1.0}


def recipe(name: str, task: str, changes: Mapping | None = None) -> Recipe:
    """Returns a recipe by its name.

    - `"fine-tune"`: for pretrained weights. First the head, with all else frozen; then
      the whole network at a lower rate, with batch normalization at its statistics.
    - `"scratch"`: learns in a few hundred steps. SGD for classification, AdamW for
      detection and segmentation; residual blocks start as the identity.
    - `"paper"`: SGD, cosine schedule after a warmup, a weight decay of 4e-5, 200 epochs.

    Args:
        name: `"fine-tune"`, `"scratch"` or `"paper"`.
        task: `"classification"`, `"detection"` or `"segmentation"`.
        changes: Dict of the values to change, by the names of `Recipe`'s attributes.
            `head_epochs` changes in proportion to `epochs` unless it is given, and the
            learning rates and the weight decay with the optimizer.

    Returns:
        A `Recipe`.

    Raises:
        ValueError: If there is no such recipe, task or value.

    Example:

    >>> recipe("scratch", "classification", {"epochs": 30}).learning_rate
    0.05
    """
    check_choice("name", name, RECIPES)
    check_choice("task", task, tuple(_TASKS))
    changes = check_changes(changes)
    values = {"image_size": _IMAGE_SIZES[task], **_RECIPES[name]}
    values |= _TASKS[task].get(name, {})
    if task != "classification":
        for key in ("rand_augment", "mixup", "cutmix", "erasing", "label_smoothing"):
            if changes.get(key):
                raise ValueError(
                    f"`{key}` is for classification. Received: {changes[key]!r} "
                    f"for {task}"
                )
        if changes.get("class_weights"):
            raise ValueError(f"`class_weights` is for classification, not for {task}")
    epochs = changes.get("epochs")
    if isinstance(epochs, numbers.Integral):
        # Scale the head's epochs too, so that `epochs` can be changed alone.
        head_epochs = values.get("head_epochs", 0)
        values["head_epochs"] = head_epochs * max(epochs, 0) // values["epochs"]
    values |= _for_optimizer(values, changes.get("optimizer"))
    return Recipe(name=name, **{**values, **changes})


def check_changes(changes: Mapping | None) -> dict:
    """Returns the changes of a recipe as a dict, if a recipe has these values."""
    changes = {} if changes is None else dict(check_mapping("changes", changes))
    known = [field.name for field in dataclasses.fields(Recipe)][1:]
    for key in changes:
        if key not in known:
            raise ValueError(
                f"`{key}` is not a value of a recipe. It has: {', '.join(known)}. "
                f"Received: `changes={changes}`"
            )
    return changes


def _for_optimizer(values, optimizer):
    """Returns learning rates and weight decay for another optimizer."""
    before = values["optimizer"]
    if optimizer not in OPTIMIZERS or optimizer == before:
        return {}
    rate = _RATES[optimizer] / _RATES[before]
    decay = _DECAYS[optimizer] / _DECAYS[before]
    factors = {
        "learning_rate": rate,
        "head_learning_rate": rate,
        "weight_decay": decay,
    }
    # Without the rounding errors of the factors.
    return {
        name: float(f"{values[name] * factor:.4g}")
        for name, factor in factors.items()
        if name in values
    }


def zero_init_residuals(model: keras.Model) -> None:
    """Initializes every residual block as the identity.

    Sets the scale of the last normalization in each residual branch to zero, so that
    a deep network starts as the shallow network of its blocks without a residual, and
    the first steps aren't lost in the noise of the other blocks.

    Args:
        model: A network from a builder of this package, before it is trained.

    Raises:
        TypeError: If `model` is something else.
        ValueError: If `model` has no residual blocks, or one whose last normalization
            isn't known by its name.

    Example:

    >>> model = MobileNetV2CA((64, 64, 3), weights=None, classes=10)
    >>> zero_init_residuals(model)

    Reference:
        [Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour](
        https://arxiv.org/abs/1706.02677), section 5.1
    """
    check_type("model", model, keras.Model, "a keras.Model")
    # A list, because all processes must assign variables in the same order.
    names = [layer.name for layer in model.layers]
    blocks = [name.removesuffix("add") for name in names if name.endswith("add")]
    # The linear last layer of an inverted residual or sandglass block.
    ends = [
        f"{block}{end}"
        for block in blocks
        for end in ("project_BN", "depthwise_2_BN")
        if f"{block}{end}" in names
    ]
    if not blocks or len(ends) != len(blocks):
        raise ValueError(
            "`model` must have residual blocks with layers that are named "
            "block_3_project_BN or block_3_depthwise_2_BN, and block_3_add. "
            f"Received: {model.name}"
        )
    for name in ends:
        gamma = model.get_layer(name).gamma
        gamma.assign(keras.ops.zeros(gamma.shape, gamma.dtype))


def warmup_cosine(
    steps: int, learning_rate: float, warmup: float = 0.1
) -> keras.optimizers.schedules.LearningRateSchedule:
    """Builds a learning rate schedule: linear warmup, then cosine decay to zero.

    Args:
        steps: Positive integer, number of steps of the training.
        learning_rate: Positive number, the highest learning rate.
        warmup: Fraction of the steps spent on warmup, in [0, 1). Defaults to 0.1.

    Returns:
        A schedule for any Keras optimizer.

    Raises:
        ValueError: If an argument is out of its range.

    Example:

    >>> optimizer = keras.optimizers.AdamW(warmup_cosine(1000, 3e-3))
    """
    steps = check_positive_int("steps", steps)
    learning_rate = check_number("learning_rate", learning_rate, 0)
    warmup_steps = round(steps * check_number("warmup", warmup, 0, 1, closed=True))
    if not warmup_steps:
        return keras.optimizers.schedules.CosineDecay(learning_rate, steps)
    return keras.optimizers.schedules.CosineDecay(
        learning_rate / 100,
        steps - warmup_steps,
        warmup_target=learning_rate,
        warmup_steps=warmup_steps,
    )
