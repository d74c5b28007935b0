"""The exponential moving average of the weights of a compiled model."""

import contextlib
from collections.abc import Iterator

import keras


@contextlib.contextmanager
def averaged(model: keras.Model) -> Iterator[None]:
    """Swaps in the moving average of the weights of a compiled model, if it has one."""
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    if not optimizer.use_ema:
        yield
        return
    swap = keras.callbacks.SwapEMAWeights()
    swap.set_model(model)
    swap.on_test_begin()
    try:
        yield
    finally:
        swap.on_test_end()


class AveragedValidation(keras.callbacks.SwapEMAWeights):
    """Validates the moving average, and leaves the weights themselves in the model."""

    def on_train_end(self, logs=None):
        """Keeps the weights, which `SwapEMAWeights` would replace by the average."""
