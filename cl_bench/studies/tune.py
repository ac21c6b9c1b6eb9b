"""The search for hyper-parameters: the same budget for every method, on a stream that serves no evaluation.

Every target (a method with the options that the user sets) is an optuna study over the method's declared `space`. The
score of a setting is its average anytime accuracy on a validation part of the training images, averaged over the seeds;
final accuracy alone would prefer a fine-tuning so slow that it hardly learns anything. Runs are stored like any others,
so that an interrupted search continues where it stopped.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cl_bench import metrics
from cl_bench.contract import registry
from cl_bench.contract.registry import MethodEntry
from cl_bench.contract.search import Choice, LogUniform, Uniform, resolved
from cl_bench.errors import Diverged, UserError
from cl_bench.experiment import Limits, Precision, Value
from cl_bench.running import memory, recipes
from cl_bench.running.pool import TaskFailed, WorkerPool
from cl_bench.running.recipes import Tuned
from cl_bench.running.workers import pick_worker_gpu
from cl_bench.store import DamagedRecord, Store
from cl_bench.streams import DataConfig

if TYPE_CHECKING:
    import optuna

    from cl_bench.running.plan import PlannedRun

ROUND = 4
"""Settings that a study suggests before it gets their scores. Fixed, so that results do not depend on `jobs`."""


@dataclass(frozen=True)
class TuningTarget:
    """A method to tune, with hyper-parameters that the user sets and that are not searched.

    Attributes:
        entry: the method.
        options: part of the label; the recipe applies only to runs that set the same options.
        fixed: set in the recipe instead.
    """

    entry: MethodEntry
    options: Mapping[str, Value]
    fixed: Mapping[str, Value] = field(default_factory=dict)

    @classmethod
    def of(cls, entry: MethodEntry, options: Mapping[str, Any], fixed: Mapping[str, Any] | None = None) -> TuningTarget:
        """A target from options as the user typed them.

        Raises:
            UserError: an option is unknown or ill-typed.
        """
        fixed = {name: value for name, value in (fixed or {}).items() if name not in options}
        values = entry.configure({**fixed, **options}).values()
        return cls(entry, {name: values[name] for name in options}, {name: values[name] for name in fixed})

    def budget(self) -> dict[str, Value]:
        """The method's training budget (see `recipes.budget`) without the user's options, and the fixed values."""
        budget = {name: value for name, value in recipes.budget(self.entry).items() if name not in self.options}
        return budget | dict(self.fixed)

    @property
    def space(self) -> dict[str, LogUniform | Uniform | Choice]:
        """Search space of the hyper-parameters that the user does not set."""
        options = self.entry.configure({**self.fixed, **self.options}).values()
        return {
            name: values
            for name, values in resolved(self.entry.cls.space, options).items()
            if name not in self.options and name not in self.fixed
        }

    @property
    def label(self) -> str:
        """Name and options, as in tables."""
        listed = ",".join(f"{name}={value}" for name, value in self.options.items())
        return f"{self.entry.name}[{listed}]" if listed else self.entry.name


@dataclass(frozen=True)
class Search:
    """How the search is carried out.

    Attributes:
        stream: benchmark whose training images are split into a training and a validation part.
        data: where the images are and how they are read.
        budget: number of settings per target.
        seeds: seeds of the runs of each setting.
        validation: held-out share of the training images.
        store: folder in which runs are stored.
        device: as in `--device`.
        jobs: number of concurrent worker processes; 1: run in this process.
        method_files: files that define some of the methods.
        backbone: None: the stream's own.
        precision: precision of the backbone.
    """

    stream: str
    data: DataConfig
    budget: int
    seeds: Sequence[int]
    validation: float
    store: Path
    device: str = "auto"
    jobs: int = 1
    method_files: Sequence[Path] = ()
    backbone: str | None = None
    precision: Precision = "fp32"


@dataclass(frozen=True)
class Trial:
    """One setting of a target and its score.

    Attributes:
        values: all hyper-parameters that the search sets, training budget included.
        score: average anytime accuracy (fraction), mean over the seeds; None if a run failed.
        seconds: total time of its runs.
        failure: why a run failed; empty if none did.
    """

    values: Mapping[str, Value]
    score: float | None
    seconds: float
    failure: str = ""


@dataclass(frozen=True)
class _Outcome:
    score: float
    seconds: float
    failure: str = ""


def searchable(targets: Sequence[TuningTarget]) -> tuple[list[TuningTarget], str]:
    """The targets with hyper-parameters to search, and a sentence about the others; empty if there are none.

    Raises:
        UserError: no target has a hyper-parameter to search.
    """
    fit = [target for target in targets if target.space]
    rest = ", ".join(f"'{target.label}'" for target in targets if not target.space)
    reason = f"{rest} has nothing to tune (its search space is empty, or all of it is set)"
    if not fit:
        raise UserError(f"{reason}; name a method that declares a 'space'")
    return fit, f"{reason}, so it is left out" if rest else ""


def search(
    targets: Sequence[TuningTarget],
    how: Search,
    on_run: Callable[[], None] = lambda: None,
    on_warning: Callable[[str], None] = lambda text: None,
) -> list[list[Trial]]:
    """Carry out the search.

    Args:
        targets: see `searchable`.
        on_run: called after every run.
        on_warning: called from another thread with a sentence about each worker process that has died.

    Returns:
        The trials of each target, in order.

    Raises:
        UserError: a task of the stream has no validation images.
    """
    import optuna

    from cl_bench.running.runner import stream_of

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    studies = [_study(target) for target in targets]
    for seed in how.seeds:
        # Ends the search before any training if the stream has too few images to validate on.
        stream_of(_planned(targets[0].entry, targets[0].options, seed, how))
    trials: list[list[Trial]] = [[] for _ in targets]
    with _workers(how, on_warning) as submit:
        for start in range(0, how.budget, ROUND):
            suggested = []
            for target, study in zip(targets, studies, strict=True):
                for _ in range(min(ROUND, how.budget - start)):
                    trial = study.ask()
                    values = {**target.budget(), **_suggest(trial, target)}
                    options = {**target.options, **values}
                    runs = [submit(target.entry.name, options, seed, how) for seed in how.seeds]
                    for run in runs:
                        run.add_done_callback(lambda _: on_run())
                    suggested.append((study, trial, values, runs, trials[targets.index(target)]))
            for study, trial, values, runs, done in suggested:
                outcomes = [_outcome(run) for run in runs]
                failure = next((outcome.failure for outcome in outcomes if outcome.failure), "")
                score = None if failure else sum(outcome.score for outcome in outcomes) / len(outcomes)
                done.append(Trial(values, score, sum(outcome.seconds for outcome in outcomes), failure))
                study.tell(trial, score, state=optuna.trial.TrialState.FAIL if score is None else None)
    return trials


def best(target: TuningTarget, trials: Sequence[Trial], how: Search) -> Tuned:
    """The recipe of a target: its trial with the highest score.

    Raises:
        UserError: every trial failed.
    """
    scored = [trial for trial in trials if trial.score is not None]
    if not scored:
        raise UserError(f"every trial of '{target.label}' failed, the last one with: {trials[-1].failure}")
    chosen = max(scored, key=lambda trial: trial.score or 0.0)
    return Tuned(
        method=target.entry.name,
        stream=how.stream,
        backbone=how.backbone or "",
        when=dict(target.options),
        values={name: _rounded(value) for name, value in chosen.values.items()},
        score=round(chosen.score or 0.0, 5),
        trials=len(trials),
        seeds=list(how.seeds),
        minutes=round(sum(trial.seconds for trial in trials) / 60, 2),
        revision=target.entry.revision,
    )


def _study(target: TuningTarget) -> optuna.Study:
    import optuna

    seed = zlib.crc32(target.label.encode())
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=2 * ROUND, constant_liar=True)
    return optuna.create_study(direction="maximize", sampler=sampler)


def _suggest(trial: optuna.Trial, target: TuningTarget) -> dict[str, Value]:
    values: dict[str, Value] = {}
    for name, space in target.space.items():
        if isinstance(space, Choice):
            values[name] = trial.suggest_categorical(name, space.values)
        else:
            log = isinstance(space, LogUniform)
            # Rounded before the run, so that the recipe holds exactly the values that were tried.
            values[name] = _rounded(trial.suggest_float(name, space.low, space.high, log=log))
    return values


def _rounded(value: Any) -> Any:
    """Round a number to three significant digits; finer differences have no measurable effect."""
    return float(f"{value:.3g}") if isinstance(value, float) else value


@contextmanager
def _workers(how: Search, on_warning: Callable[[str], None]) -> Iterator[Callable[..., Future[_Outcome]]]:
    """A function that submits calls of `_run`: to worker processes, or to this process, one after the other."""
    if how.jobs > 1:
        with WorkerPool(how.jobs, 1, on_warning) as workers:
            yield lambda *arguments: workers.submit(_run, *arguments, name=f"{arguments[0]} seed {arguments[2]}")
        return

    def here(*arguments: Any) -> Future[_Outcome]:
        future: Future[_Outcome] = Future()
        future.set_result(_run(*arguments))
        return future

    yield here


def _outcome(run: Future[_Outcome]) -> _Outcome:
    try:
        return run.result()
    except TaskFailed as error:
        return _Outcome(0.0, 0.0, str(error))


def _planned(entry: MethodEntry, options: Mapping[str, Value], seed: int, how: Search) -> PlannedRun:
    from cl_bench.running import plan

    spec = plan.RunSpec(
        method=entry,
        options=options,
        seed=seed,
        benchmark=how.stream,
        data=how.data,
        backbone=how.backbone,
        precision=how.precision,
        limits=Limits(validation=how.validation),
    )
    (planned,) = plan.plan([spec])
    return planned


def _run(name: str, options: Mapping[str, Value], seed: int, how: Search) -> _Outcome:
    """One run, taken from the store or carried out."""
    from cl_bench.running import runner
    from cl_bench.running.device import pick_device

    planned = _planned(registry.lookup([name], how.method_files)[name], options, seed, how)
    store = Store(how.store)
    try:
        record = store.find(planned.experiment)
    except DamagedRecord:
        record = None
    try:
        record = record or runner.run(planned, store, pick_worker_gpu(pick_device(how.device)))
    except Diverged as error:
        return _Outcome(0.0, 0.0, str(error))
    except UserError:
        raise
    except Exception as error:
        if how.jobs > 1 and memory.is_exhausted(error):
            # The pool retries it with fewer concurrent runs.
            raise
        return _Outcome(0.0, 0.0, f"{type(error).__name__}: {error}")
    return _Outcome(metrics.aaa(record.correct, record.total), record.seconds)
