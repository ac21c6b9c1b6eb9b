"""From options to stored runs: what the command line and `cl_bench.run` have in common."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from cl_bench.errors import UserError
from cl_bench.options import ExecutionOptions, RunOptions, options_of
from cl_bench.running.imports import quiet_imports
from cl_bench.running.signals import stop_block_on_signal
from cl_bench.store import DamagedRecord, RunRecord, Store

if TYPE_CHECKING:
    import torch

    from cl_bench.running.executors import Outcome
    from cl_bench.running.plan import PlannedRun
    from cl_bench.running.progress import RunProgress
    from cl_bench.running.ray_executor import RayExecutor

# torch and avalanche are imported by the functions that need them: bad input ends before that.


def wanted_options(fields: Mapping[str, Any], suite: str | None) -> list[RunOptions]:
    """The options of every grid of runs.

    Args:
        fields: fields of `RunOptions` (see `RunOptions.of`); with a suite, they replace its own.
        suite: name or file of a suite.

    Raises:
        UserError: neither methods nor a suite, or both; no such suite; an option that cannot be read.
    """
    if ("methods" in fields) == (suite is not None):
        raise UserError("say what to run: --methods 'sdlora,coda', or --suite NAME or FILE, and not both")
    if suite is None:
        return [RunOptions.of(fields)]
    from cl_bench.running.suites import find

    if "checkpoint" in fields:
        raise UserError("--checkpoint is for one backbone; name that and the methods instead of a suite")
    return [options.changed(fields) for options in find(suite).runs]


@dataclass(frozen=True)
class Sweep:
    """Planned runs with the store that they belong to, and how those that are missing are carried out.

    Attributes:
        device: of the runs; with Ray, the one that they will probably have.
    """

    planned: Sequence[PlannedRun]
    store: Store
    device: torch.device
    how: ExecutionOptions
    ray_executor: RayExecutor | None

    @classmethod
    def of(
        cls,
        wanted: Sequence[RunOptions],
        how: ExecutionOptions,
        loading: Callable[[], AbstractContextManager[None]] = quiet_imports,
    ) -> Sweep:
        """Plan all runs; none of them begins.

        Args:
            loading: entered around imports that take seconds.

        Raises:
            UserError: anything unknown, ill-typed or impossible, or the results folder cannot be written.
        """
        ray_executor = _ray_executor(how)
        store = Store(how.results)
        if not how.dry_run:
            store.check_writable()
        with loading():
            from cl_bench.running.device import pick_device, resolve_precision
            from cl_bench.running.plan import plan_options
        device = ray_executor.likely_device() if ray_executor else pick_device(how.device)
        with _preserve_random_state():
            planned = plan_options(wanted, partial(resolve_precision, device=device))
        return cls(planned, store, device, how, ray_executor)

    def missing(self, on_damaged: Callable[[str], None]) -> list[PlannedRun]:
        """The runs that are to be carried out: those that are not stored; with `force`, all.

        Args:
            on_damaged: called with a sentence for each stored result that cannot be trusted, so that it is missing.
        """
        if self.how.force:
            return list(self.planned)
        return [run for run in self.planned if self._find(run, on_damaged) is None]

    def remarks(self) -> list[str]:
        """What the user should know of the data of all runs and how the input was understood, each once."""
        from cl_bench import streams

        needed = dict.fromkeys((run.experiment.benchmark, run.data) for run in self.planned)
        of_data = [text for name, data in needed for text in streams.find(name, data).remarks()]
        return [*dict.fromkeys(text for run in self.planned for text in run.remarks), *of_data]

    def decode(self, runs: Sequence[PlannedRun], on_progress: Callable[[int, int], None]) -> None:
        """Decode once what these runs keep decoded, unless that was done before; hosts of Ray do so themselves.

        Args:
            on_progress: called with the images that are done, and how many there are.
        """
        from cl_bench import streams

        if self.ray_executor is None:
            needed = dict.fromkeys((run.experiment.benchmark, run.experiment.storage, run.data) for run in runs)
            for name, storage, data in needed:
                streams.find(name, data).source(storage, on_progress)

    def carry_out(self, runs: Sequence[PlannedRun], progress: RunProgress) -> list[Outcome]:
        """Carry out these runs and store their records; with `fail_fast` up to the first that fails.

        Ctrl-C, SIGTERM and SIGHUP end them all: their checkpoints stay, and the next sweep goes on from there.
        """
        from cl_bench.running.executors import local_executor
        from cl_bench.running.runner import Settings

        how = self.how
        settings = Settings(how.checkpoint_every, how.force, how.compile, how.deterministic, replace=how.force)
        executor = self.ray_executor or local_executor(self.planned, self.device, how.jobs)
        outcomes = []
        with (
            stop_block_on_signal(),
            _preserve_random_state(),
            closing(executor(runs, self.store, settings, progress)) as ended,
        ):
            for outcome in ended:
                outcomes.append(outcome)
                if outcome.failure and how.fail_fast:
                    break
        return outcomes

    def records(self) -> list[RunRecord]:
        """The records of the planned runs, as far as they are stored."""
        found = (self._find(run, lambda sentence: None) for run in self.planned)
        return [record for record in found if record is not None]

    def _find(self, run: PlannedRun, on_damaged: Callable[[str], None]) -> RunRecord | None:
        try:
            return self.store.find(run.experiment)
        except DamagedRecord as error:
            on_damaged(f"computing again, the stored result is damaged: {error}")
            return None


@contextmanager
def _preserve_random_state() -> Iterator[None]:
    """Leave the global random generators as they were: they are the caller's."""
    import numpy as np
    import torch

    # GPUs that the caller does not use stay untouched: their runs may be those of other processes.
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    of_numpy, of_python = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(gpus):
        try:
            yield
        finally:
            np.random.set_state(of_numpy)
            random.setstate(of_python)


def _ray_executor(how: ExecutionOptions) -> RayExecutor | None:
    """The Ray executor, if it is asked for.

    Raises:
        UserError: no such executor, or options that are not for this one.
    """
    if how.executor == "ray":
        from cl_bench.running.ray_executor import RayExecutor

        if how.jobs:
            raise UserError("--jobs is for this host alone; with --executor ray, see --cpus-per-run and --gpus-per-run")
        return RayExecutor(how.device, how.address, how.gpus_per_run, how.cpus_per_run or 1, how.collect)
    if how.executor != "here":
        raise UserError(f"--executor '{how.executor}' is unknown; expected here or ray")
    for name in ("address", "gpus_per_run", "cpus_per_run", "collect"):
        if name in how.given():
            raise UserError(f"{options_of(ExecutionOptions)[name].flag} is for --executor ray")
    return None
