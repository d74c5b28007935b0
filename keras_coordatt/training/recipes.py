"""Recipes that let a network learn in a few hundred steps."""

import keras

from keras_coordatt.validation import check_number, check_positive_int


def zero_init_residuals(model: keras.Model) -> None:
    """Initializes every residual block as the identity.

    Sets the scale of the last normalization in each residual branch to zero, so that
    a deep network starts as the shallow network of its blocks without a residual, and
    the first steps aren't lost in the noise of the other blocks.

    Args:
        model: A network from a builder of this package, before it is trained.

    Raises:
        ValueError: If `model` has no residual blocks, or one whose last normalization
            isn't known by its name.

    Example:

    >>> model = MobileNetV2CA((64, 64, 3), weights=None, classes=10)
    >>> zero_init_residuals(model)

    Reference:
        [Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour](
        https://arxiv.org/abs/1706.02677), section 5.1
    """
    names = {layer.name for layer in model.layers}
    blocks = [name.removesuffix("add") for name in names if name.endswith("add")]
    # The linear last layer of an inverted residual or sandglass block.
    ends = {
        f"{block}{end}"
        for block in blocks
        for end in ("project_BN", "depthwise_2_BN")
        if f"{block}{end}" in names
    }
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
        warmup: Fraction of the steps spent on warmup, in (0, 1). Defaults to 0.1.

    Returns:
        A schedule for any Keras optimizer.

    Raises:
        ValueError: If an argument is out of its range.

    Example:

    >>> optimizer = keras.optimizers.AdamW(warmup_cosine(1000, 3e-3))
    """
    steps = check_positive_int("steps", steps)
    learning_rate = check_number("learning_rate", learning_rate, 0)
    warmup_steps = round(steps * check_number("warmup", warmup, 0, 1))
    return keras.optimizers.schedules.CosineDecay(
        learning_rate / 100,
        steps - warmup_steps,
        warmup_target=learning_rate,
        warmup_steps=warmup_steps,
    )
