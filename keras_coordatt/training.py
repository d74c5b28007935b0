"""What makes a network learn from scratch in a few hundred steps."""

import keras

from keras_coordatt.validation import check_number, check_positive_int


def zero_init_residuals(model: keras.Model) -> None:
    """Makes every residual block start as the identity.

    The last normalization of each residual branch gets a scale of zero, so that a
    deep network starts as the shallow one of its blocks without a residual, and its
    first steps are not lost in the noise of the others.

    Args:
        model: A network of `MobileNetV2CA` or `EfficientNetCA`, before it is trained.

    Raises:
        ValueError: if `model` has no residual block with a linear projection.

    Example:

    >>> model = MobileNetV2CA((64, 64, 3), weights=None, classes=10)
    >>> zero_init_residuals(model)

    Reference:
        [Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour](
        https://arxiv.org/abs/1706.02677), section 5.1
    """
    names = {layer.name for layer in model.layers}
    projections = [
        name.removesuffix("add") + "project_BN"
        for name in names
        if name.endswith("add")
    ]
    if not projections or not names.issuperset(projections):
        raise ValueError(
            "`model` must have residual blocks that end in a projection, with layers "
            f"named block_3_project_BN and block_3_add. Received: {model.name}"
        )
    for name in projections:
        gamma = model.get_layer(name).gamma
        gamma.assign(keras.ops.zeros(gamma.shape, gamma.dtype))


def warmup_cosine(
    steps: int, learning_rate: float, warmup: float = 0.1
) -> keras.optimizers.schedules.LearningRateSchedule:
    """A learning rate that rises, and then falls along a cosine to zero.

    Args:
        steps: Positive integer, the steps of the whole training.
        learning_rate: Positive number, the highest rate.
        warmup: The part of the steps in which it rises, in (0, 1). Defaults to 0.1.

    Returns:
        A schedule for any Keras optimizer.

    Raises:
        ValueError: if an argument is out of its range.

    Example:

    >>> optimizer = keras.optimizers.AdamW(warmup_cosine(1000, 3e-3))
    """
    steps = check_positive_int("steps", steps)
    learning_rate = check_number("learning_rate", learning_rate, 0)
    rising = round(steps * check_number("warmup", warmup, 0, 1))
    return keras.optimizers.schedules.CosineDecay(
        learning_rate / 100,
        steps - rising,
        warmup_target=learning_rate,
        warmup_steps=rising,
    )
