"""The models of a training: how they are trained, kept and measured."""

import math
import sys
from collections.abc import Mapping

import keras

from keras_coordatt.distribution import alone, current, wait
from keras_coordatt.extras import has_matplotlib, install_hint
from keras_coordatt.preprocessing import preprocessing_of
from keras_coordatt.record import set_record
from keras_coordatt.training.averaging import AveragedValidation, averaged
from keras_coordatt.training.distribution import synchronize_batch_norm
from keras_coordatt.training.history import best_epoch, stops_early
from keras_coordatt.training.optimizers import make_optimizer
from keras_coordatt.training.output import BEST, LAST
from keras_coordatt.training.phases import find_head, phases
from keras_coordatt.validation import height_and_width

UNRECORDED = (
    "the network records no preprocessing: images are normalized by ImageNet's mean and "
    "standard deviation"
)


class Session:
    """Models of a training, and how they are trained.

    Args:
        job: The task.
        build, weights, seed, verbose: Same as in `train`.
        out: The output.
        backup: The state.
    """

    def __init__(self, job, build, weights, out, backup, seed, verbose):
        self.job, self.out, self.backup = job, out, backup
        self.seed, self.verbose = seed, verbose
        self.devices = current()
        with self.devices.scope():
            self.network = job.build(build, weights)
        preprocessing = preprocessing_of(self.network)
        if preprocessing is not None:
            job.preprocessing = preprocessing
        elif verbose:
            print(UNRECORDED, flush=True)
        synchronize_batch_norm(self.network, self.devices)
        with alone():
            # The best model, which is saved: never compiled, and nothing in it is frozen.
            self.twin = job.build(build, None)
            # A distributed network runs in all processes at once, on shared batches. To
            # measure images of one process, a copy of its own is needed.
            self.probe = self.network
            if self.devices.processes > 1:
                self.probe = job.build(build, None)
        # Recorded at the start, for the models of an unfinished training.
        record_training(self.twin, job, {})
        self.compiled = None
        out.check_names(self.twin)
        if self.devices.first:
            out.check_space(self.network.count_params())

    def fit(self, config: dict) -> None:
        """Trains the epochs that are not complete yet."""
        with self.devices.scope():
            self._fit(config)

    def _fit(self, config):
        from keras_coordatt.training.progress import Epochs

        job, backup = self.job, self.backup
        batches = job.batches("train", training=True)
        validation = job.batches("validation")
        class_weights = job.class_weights()
        terminal = self.verbose and sys.stdout.isatty()
        previous = None
        for phase in phases(job.recipe):
            done = len(backup.rows)
            if done < phase.last or phase.last == job.recipe.epochs:
                if previous is not None and done == phase.first:
                    # Load its weights instead of the average that `fit` leaves.
                    self._compile(previous, len(batches))
                    backup.load(self.compiled)
                self._compile(phase, len(batches))
                if done > phase.first:
                    backup.load(self.compiled)
                if done == phase.last or (
                    done and stops_early(backup.rows, job.metric, job.recipe)
                ):
                    return
                epochs = Epochs(
                    job,
                    self.network,
                    self.twin,
                    self.probe,
                    validation,
                    backup,
                    self.seed,
                    phase.name,
                    lambda best: self.out.publish(backup, self.twin, best, config),
                    quiet=not self.verbose or terminal,
                )
                averaging = [AveragedValidation()] if job.recipe.ema else []
                try:
                    self.compiled.fit(
                        batches,
                        validation_data=validation,
                        epochs=phase.last,
                        initial_epoch=done,
                        class_weight=class_weights,
                        shuffle=False,  # done already
                        callbacks=[*averaging, epochs],
                        verbose=int(terminal),
                    )
                except FloatingPointError as error:
                    raise FloatingPointError(f"{error}. {self._keep()}") from error
                except KeyboardInterrupt as stop:
                    done = len(backup.rows)
                    raise KeyboardInterrupt(
                        f"The same call continues after epoch {done}"
                        if done
                        else "No epoch was complete, so nothing is left behind"
                    ) from stop
            previous = phase

    def finish(self) -> dict:
        """Measures and saves the models, and returns the report."""
        job, backup = self.job, self.backup
        with self.devices.scope():
            backup.load(self.compiled)
            with averaged(self.compiled):
                self.twin.set_weights(self.network.get_weights())
        self.out.save(backup, self.twin, LAST)
        best = best_epoch(backup.rows, job.metric)
        backup.load_best(self.twin, best)
        split = next(
            name for name in ("test", "validation", "train") if name in job.splits
        )
        batches = job.batches(split)
        with self.devices.scope():
            self.network.set_weights(self.twin.get_weights())
            metrics = self.compiled.evaluate(batches, verbose=0, return_dict=True)
            if self.probe is not self.network:
                self.probe.set_weights(self.twin.get_weights())
        metrics |= {
            name.removeprefix("val_"): value
            for name, value in job.measure(self.probe, batches).items()
        }
        metrics = {name: float(x) for name, x in metrics.items() if math.isfinite(x)}
        record_training(self.twin, job, metrics)
        report = {
            "best_epoch": best,
            "split": split,
            "metrics": metrics,
            "parameters": self.twin.count_params(),
            "history": backup.rows,
        }
        self.out.save(backup, self.twin, BEST)
        if self.out.folder is not None:
            report["evaluation"] = self._evaluate(split)
        self.out.write_file(self.twin)
        return report

    def _evaluate(self, split):
        """Evaluates the best model on the original pictures, and draws figures."""
        from keras_coordatt.training.result import curves, evaluate_result

        evaluation, figures = evaluate_result(self.twin, self.job, split)
        if has_matplotlib() and self.devices.first:
            figures["curves.png"] = curves(self.backup.rows)
        elif self.verbose:
            print(f"No figures: {install_hint('figures')}", flush=True)
        for name, figure in figures.items():
            self.out.save_figure(self.backup, figure, name)
        return evaluation.as_dict()

    def _compile(self, phase, steps):
        head = find_head(self.network, self.job.name)
        phase.set_trainable(self.network, head, self.job.recipe)
        optimizer = make_optimizer(
            self.job.recipe,
            phase.learning_rate,
            (phase.last - phase.first) * steps,
            self.network.trainable_variables,
        )
        self.compiled = self.job.compile(self.network, optimizer)

    def _keep(self):
        """Saves the best model of a training that failed, and says where it is."""
        if not self.backup.rows:
            return "No epoch was complete, so nothing is left behind"
        best = best_epoch(self.backup.rows, self.job.metric)
        self.backup.load_best(self.twin, best)
        # Missing if the process was killed before it was written.
        self.out.save(self.backup, self.twin, BEST)
        self.out.write_file(self.twin)
        wait()  # Otherwise the others might end this process while it writes.
        path = self.out.file or (self.out.folder and self.out.folder / BEST)
        return f"The best model so far, of epoch {best}, is {path}"


def record_training(model: keras.Model, job, metrics: Mapping) -> None:
    """Records task, labels, image size and metrics on a model if it can hold a record."""
    # Models from builders of other packages can't hold a record.
    if preprocessing_of(model) is not None:
        set_record(
            model,
            task=job.name,
            labels=job.labels,
            image_size=height_and_width(job.recipe.image_size),
            metrics=metrics,
        )
