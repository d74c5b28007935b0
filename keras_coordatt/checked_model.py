"""Models that check their training targets, on every backend alike."""

import inspect
import itertools
import sys
import types
from collections.abc import Callable

import keras
import numpy as np


class CheckedModel(keras.Model):
    """Model that checks the targets that are passed to `fit`.

    Subclasses implement `check_targets`.
    """

    def check_targets(self, y) -> None:
        """Checks targets, complete or of one batch.

        Args:
            y: Arrays or tensors, in the structure that was passed to `fit`.

        Raises:
            ValueError: If the model can't be trained on them.
        """
        raise NotImplementedError

    def fit(self, x=None, y=None, *args, **kwargs):
        """Trains the model, after checking the targets.

        Arrays are checked before the first step, and so is the first batch of a
        generator, a `keras.utils.PyDataset` or another iterable. Each batch of a
        `tf.data.Dataset` is checked before its step. The same holds for
        `validation_data`. Without this check, some targets that no model can learn, such
        as labels counted from 1, would train without an error on some backends.

        Args:
            x, y, *args, **kwargs: Same as in `keras.Model.fit`.

        Returns:
            Same as `keras.Model.fit`.

        Raises:
            ValueError: If the model can't be trained on the targets.
        """
        arguments = inspect.signature(super().fit).bind(x, y, *args, **kwargs).arguments
        problems = []

        def check(targets):
            try:
                self.check_targets(targets)
            except ValueError as error:
                problems.append(error)
                raise

        if y is not None:
            check(y)
        elif x is not None:
            arguments["x"] = check_batches(x, check)
        validation = arguments.get("validation_data")
        if isinstance(validation, (tuple, list)):
            check(validation[1])
        elif validation is not None:
            arguments["validation_data"] = check_batches(validation, check)
        state = self._arrays_on_jax()
        try:
            return super().fit(**arguments)
        except Exception:
            if not problems:
                raise
            # If the error came before the first step, Keras holds JAX's arrays outside
            # of the variables: put them back. A step deletes these arrays and leaves
            # newer ones in the variables.
            if not any(array.is_deleted() for _, array in state):
                for variable, array in state:
                    variable.assign(array)
            # TensorFlow raised an error of its own.
            raise problems[0] from None

    def _arrays_on_jax(self):
        """Returns all variables with their arrays, on JAX."""
        if keras.config.backend() != "jax":
            return []
        optimizer = getattr(self.optimizer, "variables", [])
        variables = (*self.variables, *optimizer, *self.metrics_variables)
        return [(variable, variable.value) for variable in variables]


@keras.saving.register_keras_serializable("keras_coordatt")
class Functional(CheckedModel):
    """Functional model that checks integer labels at the start of `fit`.

    The networks and `DeepLabV3` are such models. With Keras's sparse categorical
    cross-entropy, labels must be integers from 0 to the number of classes less 1, or
    the loss's `ignore_class`. With other losses, targets are not checked.

    The name is that of Keras's class, because Keras names the weights of a nested model
    in a file by it: those of earlier versions still fit.
    """

    def check_targets(self, y):
        losses, targets = keras.tree.flatten(self.loss), keras.tree.flatten(y)
        if not len(losses) == len(targets) == len(self.outputs) == 1:
            return
        loss = keras.losses.get(losses[0])
        if (
            isinstance(loss, keras.losses.SparseCategoricalCrossentropy)
            or loss is keras.losses.sparse_categorical_crossentropy
        ):
            data_format = getattr(self.layers[-1], "data_format", None)
            axis = 1 if data_format == "channels_first" else -1
            classes = self.outputs[0].shape[axis]
            check_labels(targets[0], classes, getattr(loss, "ignore_class", None))


def check_labels(labels, classes: int, ignored: int | None = None) -> None:
    """Checks integer labels of a classifier or a segmenter.

    Args:
        labels: Array or tensor of numbers.
        classes: Number of classes.
        ignored: A further label, of what doesn't count.

    Raises:
        ValueError: If a label isn't an integer from 0 to `classes - 1`, nor `ignored`.
    """
    labels = np.asarray(keras.ops.convert_to_numpy(labels))
    good = (labels >= 0) & (labels < classes)
    if not np.issubdtype(labels.dtype, np.integer):
        good &= labels == np.floor(labels)
    if ignored is not None:
        good |= labels == ignored
    if not good.all():
        found = ", ".join(map(str, np.unique(labels[~good])[:5].tolist()))
        other = "" if ignored is None else f", or {ignored}, which is ignored"
        raise ValueError(
            f"`y` must be integers from 0 to {classes - 1}, as the model has {classes} "
            f"classes{other}. Received: {found}"
        )


def check_batches(data, check: Callable):
    """Checks the targets in batches of any kind that `keras.Model.fit` takes.

    Args:
        data: A `tf.data.Dataset`, of which each batch is checked when it is read;
            or a `keras.utils.PyDataset`, a generator or another iterable, of which the
            first batch is checked at once.
        check: Function of a batch's targets that raises an error.

    Returns:
        The same batches.
    """
    tf = sys.modules.get("tensorflow")
    if tf and isinstance(data, tf.data.Dataset):
        return _check_dataset(tf, data, check)
    if tf and isinstance(data, tf.distribute.DistributedDataset):
        return data
    first, batches = [], data
    if isinstance(data, keras.utils.PyDataset):
        first = [data[0]]
    elif hasattr(data, "__iter__"):
        iterator = iter(data)
        first = list(itertools.islice(iterator, 1))
        if isinstance(data, types.GeneratorType):
            batches = (batch for batch in itertools.chain(first, iterator))
    for batch in first:
        check(keras.utils.unpack_x_y_sample_weight(batch)[1])
    return batches


def _check_dataset(tf, dataset, check):
    """Checks batches as they pass: a batch read beforehand would be missing from a
    cache, and would draw random numbers from a pipeline's augmentation."""

    def check_batch(*batch):
        y = keras.utils.unpack_x_y_sample_weight(batch)[1]
        if y is None:
            return batch if len(batch) > 1 else batch[0]
        leaves = tf.nest.flatten(y)

        def run(*values):
            check(tf.nest.pack_sequence_as(y, values))

        done = tf.numpy_function(run, leaves, [])
        with tf.control_dependencies([done]):
            return tf.nest.map_structure(tf.identity, batch)

    return dataset.map(check_batch)
