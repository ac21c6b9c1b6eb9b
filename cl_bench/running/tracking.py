"""What a run logs to its trackers (`--log`): thinned steps of training, and what is measured after each task."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from cl_bench import metrics
from cl_bench.errors import reason
from cl_bench.experiment import Environment, value_text
from cl_bench.running.plan import PlannedRun
from cl_bench.running.progress import RunProgress
from cl_bench.running.trackers import LogConfig
from cl_bench.running.trackers.tracker import RunFacts, Status, Tracker
from cl_bench.training.checkpoint import Stage
from cl_bench.training.loop import PhaseLoop

STEPS_LOGGED = 100
"""Approximate number of optimiser steps per phase that are logged; the last step of each epoch always is."""

_SETTINGS = ("method", "revision", "benchmark", "scenario", "num_tasks", "class_order", "backbone", "precision", "seed")
"""Fields of an experiment that trackers show."""
_METRICS = ("acc", "aaa", "forgetting")
"""The metrics that tables show."""


class Tracking:
    """Passes what one run measures to its trackers.

    A tracker that fails is left out from then on, with one warning: the run and the other trackers go on.

    Args:
        config: what runs log to; None: nothing.
    """

    def __init__(self, config: LogConfig | None, planned: PlannedRun, progress: RunProgress) -> None:
        self._config, self._planned, self._progress = config, planned, progress
        self._trackers: list[Tracker] = []

    @contextmanager
    def logging(self, environment: Environment, steps: int) -> Iterator[None]:
        """Log what is measured in this context.

        Args:
            environment: environment of this process.
            steps: number of the last step before the checkpoint from which the run resumes; 0: it does not resume.
        """
        if self._config is not None:
            facts = facts_of(self._planned, environment, steps)
            self._trackers = self._config.trackers()
            self._each(lambda tracker: tracker.start(facts))
        try:
            yield
        except BaseException as error:
            status: Status = "failed" if isinstance(error, Exception) else "interrupted"
            self._each(lambda tracker: tracker.finish(status))
            raise
        self._each(lambda tracker: tracker.finish("finished"))

    def step(self, loop: PhaseLoop, step: int, seconds: float) -> None:
        """Log a training step: loss, learning rates, position; at the end of an epoch also its mean loss.

        Args:
            step: number of this step in the run, from 1.
            seconds: time that the run has taken so far.
        """
        run = loop.phase_run
        if not self._trackers or run is None or loop.task is None:
            return
        total = run.phase.epochs * run.steps
        of_epoch = run.done % run.steps
        if run.done != 1 and of_epoch and run.done % max(1, total // STEPS_LOGGED):
            return
        # Phases have losses of different kinds, which one curve must not mix.
        phase = "after" if loop.position is None else f"phase{loop.position.phase}"
        values = {f"loss/{phase}": float(loop.loss.detach())}
        if not of_epoch:
            values[f"epoch_loss/{phase}"] = loop.mean_loss
        values |= {f"lr/{phase}{name}": rate for name, rate in run.rates().items()}
        values |= {"task": loop.task.index, "epoch": (run.done - 1) // run.steps, "time/seconds": seconds}
        self._log(step, values)

    def stage(self, stages: Sequence[Stage], total: Sequence[int], step: int, memory: int) -> None:
        """Log what was measured after the last of these stages: metrics up to it, accuracy per task, costs.

        Args:
            stages: all stages so far.
            total: number of test images of each task of the stream.
            step: number of this evaluation, counted as a step of the run.
            memory: peak memory in bytes.
        """
        if not self._trackers:
            return
        last = stages[-1]
        seen = [task for task, hits in enumerate(last.correct) if hits is not None]
        totals = [total[task] for task in seen]
        correct = [[stage.correct[task] for task in seen] for stage in stages]
        values: dict[str, float] = {f"test/{name}": metrics.value(name, correct, totals) for name in _METRICS}
        width = len(str(len(total) - 1))
        for task, accuracy in zip(seen, metrics.accuracy_matrix(correct, totals)[-1], strict=True):
            values[f"test/acc_task_{task:0{width}}"] = float(accuracy)
        seconds = sum(stage.train_seconds + stage.eval_seconds for stage in stages)
        values |= {"task": len(stages) - 1, "time/seconds": seconds, "time/train_seconds": last.train_seconds}
        values |= {"time/eval_seconds": last.eval_seconds, "memory/peak_bytes": memory}
        values |= {"model/trainable": last.trainable, "model/stored": last.stored}
        # A metric is NaN where it is undefined, such as forgetting after the first task.
        self._log(step, {name: value for name, value in values.items() if not math.isnan(value)})

    def _log(self, step: int, values: Mapping[str, float]) -> None:
        self._each(lambda tracker: tracker.log(step, values))

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for tracker in list(self._trackers):
            try:
                call(tracker)
            except Exception as error:
                self._trackers.remove(tracker)
                kind = tracker.folder.name
                self._progress.warn(
                    f"{self._planned.name}: logging to {kind} has failed ({reason(error)}); the run goes on without"
                )
                with suppress(Exception):
                    tracker.finish("failed")


def facts_of(planned: PlannedRun, environment: Environment, steps: int) -> RunFacts:
    """What trackers are told of a run (see `RunFacts`)."""
    experiment = planned.experiment

    def plain(value: Any) -> str | int | float | bool | None:
        return value_text(value) if isinstance(value, list | tuple) else value

    return RunFacts(
        name=f"{planned.name} {experiment.key[:8]}",
        key=experiment.key,
        label=planned.label,
        seed=experiment.seed,
        settings={name: getattr(experiment, name) for name in _SETTINGS} | {"recipe": planned.recipe.name},
        hyperparameters={name: plain(value) for name, value in experiment.hyperparameters.items()},
        environment=dict(environment),
        steps=steps,
    )
