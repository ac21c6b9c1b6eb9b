"""The search for hyper-parameters: the same budget for every method, on a stream that is not evaluated on.

Every row (a method with the options that name it) is an optuna study over the method's declared `space`. A setting is
scored by average anytime accuracy on a validation part of the training images, averaged over the seeds: final accuracy
alone would prefer a plain finetune so slow that it hardly learns anything. Runs are stored as any others, so an
interrupted search goes on where it was.
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
"""Settings that a study asks for before it is told how they did: fixed, so that `jobs` changes no result."""


@dataclass(frozen=True)
class TuningTarget:
    """What is tuned: a method with what the user set, which is not searched.

    Attributes:
        options: name the row: its recipe holds where they are set as well.
        fixed: go into the recipe instead.
    """

    entry: MethodEntry
    options: Mapping[str, Value]
    fixed: Mapping[str, Value] = field(default_factory=dict)

    @classmethod
    def of(cls, entry: MethodEntry, options: Mapping[str, Any], fixed: Mapping[str, Any] | None = None) -> TuningTarget:
        """A row from options as the user typed them.

        Raises:
            UserError: an unknown or ill-typed option.
        """
        fixed = {name: value for name, value in (fixed or {}).items() if name not in options}
        values = entry.configure({**fixed, **options}).values()
        return cls(entry, {name: values[name] for name in options}, {name: values[name] for name in fixed})

    def budget(self) -> dict[str, Value]:
        """The unified budget, but for what the user set, with the fixed values."""
        unified = {name: value for name, value in recipes.budget(self.entry).items() if name not in self.options}
        return unified | dict(self.fixed)

    @property
    def space(self) -> dict[str, LogUniform | Uniform | Choice]:
        """What is searched."""
        options = self.entry.configure({**self.fixed, **self.options}).values()
        return {
            name: values
            for name, values in resolved(self.entry.cls.space, options).items()
            if name not in self.options and name not in self.fixed
        }

    @property
    def label(self) -> str:
        """As in tables."""
        listed = ",".join(f"{name}={value}" for name, value in self.options.items())
        return f"{self.entry.name}[{listed}]" if listed else self.entry.name


@dataclass(frozen=True)
class Search:
    """How the search is done.

    Attributes:
        data: where its images are and how they are read.
        stream: benchmark whose training images are split into a training and a validation part.
        budget: settings per row.
        seeds: each setting is run once with each.
        validation: share of the training images held out.
        store: folder of the runs.
        device: as in `--device`.
        jobs: processes side by side; 1: in this one.
        method_files: files that define some of the methods.
        backbone: None: the stream's own.
        precision: of the backbone.
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
    """One setting of a row, and how it did.

    Attributes:
        values: all hyper-parameters that the search sets, budget included.
        score: mean average anytime accuracy (fraction), or None if a run failed.
        seconds: of all its runs.
        failure: why it failed.
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


def search(
    rows: Sequence[TuningTarget],
    how: Search,
    on_run: Callable[[], None] = lambda: None,
    on_warning: Callable[[str], None] = lambda text: None,
) -> list[list[Trial]]:
    """Carry out the search; for each row its trials in order.

    Args:
        on_run: called after every run.
        on_warning: called with a sentence where a worker process has died, from another thread.

    Raises:
        UserError: a row with nothing to search, or one whose options leave nothing; a stream of which a task has no
            image to be validated on.
    """
    import optuna

    from cl_bench.running.runner import stream_of

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    for row in rows:
        if not row.space:
            raise UserError(f"'{row.label}' has nothing to tune; leave it out (its search space: none)")
    studies = [_study(row) for row in rows]
    for seed in how.seeds:
        # A stream that cannot be validated on ends the search before any training.
        stream_of(_planned(rows[0].entry, rows[0].options, seed, how))
    trials: list[list[Trial]] = [[] for _ in rows]
    with _workers(how, on_warning) as submit:
        for start in range(0, how.budget, ROUND):
            suggested = []
            for row, study in zip(rows, studies, strict=True):
                for _ in range(min(ROUND, how.budget - start)):
                    trial = study.ask()
                    values = {**row.budget(), **_suggest(trial, row)}
                    options = {**row.options, **values}
                    runs = [submit(row.entry.name, options, seed, how) for seed in how.seeds]
                    for run in runs:
                        run.add_done_callback(lambda _: on_run())
                    suggested.append((study, trial, values, runs, trials[rows.index(row)]))
            for study, trial, values, runs, done in suggested:
                outcomes = [_outcome(run) for run in runs]
                failure = next((outcome.failure for outcome in outcomes if outcome.failure), "")
                score = None if failure else sum(outcome.score for outcome in outcomes) / len(outcomes)
                done.append(Trial(values, score, sum(outcome.seconds for outcome in outcomes), failure))
                study.tell(trial, score, state=optuna.trial.TrialState.FAIL if score is None else None)
    return trials


def best(row: TuningTarget, trials: Sequence[Trial], how: Search) -> Tuned:
    """The recipe that a row's trials give.

    Raises:
        UserError: every trial failed.
    """
    scored = [trial for trial in trials if trial.score is not None]
    if not scored:
        raise UserError(f"every trial of '{row.label}' failed, the last one with: {trials[-1].failure}")
    chosen = max(scored, key=lambda trial: trial.score or 0.0)
    return Tuned(
        method=row.entry.name,
        stream=how.stream,
        backbone=how.backbone or "",
        when=dict(row.options),
        values={name: _rounded(value) for name, value in chosen.values.items()},
        score=round(chosen.score or 0.0, 5),
        trials=len(trials),
        seeds=list(how.seeds),
        minutes=round(sum(trial.seconds for trial in trials) / 60, 2),
        revision=row.entry.revision,
    )


def _study(row: TuningTarget) -> optuna.Study:
    import optuna

    seed = zlib.crc32(row.label.encode())
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=2 * ROUND, constant_liar=True)
    return optuna.create_study(direction="maximize", sampler=sampler)


def _suggest(trial: optuna.Trial, row: TuningTarget) -> dict[str, Value]:
    values: dict[str, Value] = {}
    for name, space in row.space.items():
        if isinstance(space, Choice):
            values[name] = trial.suggest_categorical(name, space.values)
        else:
            log = isinstance(space, LogUniform)
            # Rounded before it is used, so that the recipe is what was run.
            values[name] = _rounded(trial.suggest_float(name, space.low, space.high, log=log))
    return values


def _rounded(value: Any) -> Any:
    """Three significant digits: nobody can tell finer learning rates apart."""
    return float(f"{value:.3g}") if isinstance(value, float) else value


@contextmanager
def _workers(how: Search, on_warning: Callable[[str], None]) -> Iterator[Callable[..., Future[_Outcome]]]:
    """What carries `_run` out: in processes of their own, or one after the other in this one."""
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
    """One run, computed or from the store."""
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
            # The pool tries it again with fewer side by side.
            raise
        return _Outcome(0.0, 0.0, f"{type(error).__name__}: {error}")
    return _Outcome(metrics.aaa(record.correct, record.total), record.seconds)
