"""From options to stored runs: the common part of the command line and `cl_bench.run`."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from cl_bench import grammar
from cl_bench.errors import UserError
from cl_bench.options import ExecutionOptions, RunOptions, options_of
from cl_bench.running.imports import quiet_imports
from cl_bench.running.signals import stop_block_on_signal
from cl_bench.store import DamagedRecord, RunRecord, Store

if TYPE_CHECKING:
    import torch

    from cl_bench.running.executors import Outcome, RemoteExecutor
    from cl_bench.running.plan import PlannedRun
    from cl_bench.running.progress import RunProgress
    from cl_bench.running.trackers import LogConfig

_MOST_LINES, _MOST_NAMES = 30, 8
"""Limits of what is printed about hyper-parameters at the start of a sweep."""

# Functions import torch and avalanche only when they need them, so that bad input is refused at once.


def wanted_options(fields: Mapping[str, Any], suite: str | None) -> list[RunOptions]:
    """The options of every grid of runs.

    Args:
        fields: fields of `RunOptions` (see `RunOptions.of`); with a suite, they replace its own.
        suite: name or file of a suite.

    Raises:
        UserError: neither or both of methods and suite are given, the suite does not exist, or an option is invalid.
    """
    if ("methods" in fields) == (suite is not None):
        raise UserError("say what to run: --methods 'sdlora,coda', or --suite NAME or FILE, and not both")
    if suite is None:
        return [RunOptions.of(fields)]
    from cl_bench.running.suites import find

    if "checkpoint" in fields:
        raise UserError("--checkpoint applies to a single backbone; replace --suite by --methods and --backbone")
    return [options.changed(fields) for options in find(suite).runs]


@dataclass(frozen=True)
class Sweep:
    """Planned runs, their store, and how missing runs are carried out.

    Attributes:
        planned: all runs, stored or not.
        device: device of the runs; on other hosts, the one on which they will probably execute.
        how: options of execution.
        remote: executor on other hosts; None: runs execute in processes of this host.
        log: what runs log to; None: nothing.
    """

    planned: Sequence[PlannedRun]
    store: Store
    device: torch.device
    how: ExecutionOptions
    remote: RemoteExecutor | None
    log: LogConfig | None = None

    @classmethod
    def of(
        cls,
        wanted: Sequence[RunOptions],
        how: ExecutionOptions,
        loading: Callable[[], AbstractContextManager[None]] = quiet_imports,
    ) -> Sweep:
        """Plan all runs without starting any.

        Args:
            loading: context manager entered around imports that take seconds.

        Raises:
            UserError: an option is unknown, ill-typed or impossible, or the results folder cannot be written.
        """
        remote = _remote_executor(how)
        store = Store(how.folder)
        log = None
        if not how.dry_run:
            store.check_writable()
            log = _log_config(how)
        with loading():
            from cl_bench.running.device import pick_device, resolve_precision
            from cl_bench.running.plan import plan_options
        device = remote.likely_device() if remote else pick_device(how.device)
        with _preserve_random_state():
            planned = plan_options(wanted, partial(resolve_precision, device=device), dry=how.dry_run)
        return cls(planned, store, device, how, remote, log)

    def missing(self, on_damaged: Callable[[str], None]) -> list[PlannedRun]:
        """The runs to carry out: those that are not stored, or all with `force`.

        Args:
            on_damaged: called with a sentence for each stored result that is damaged and therefore computed again.
        """
        if self.how.force:
            return list(self.planned)
        return [run for run in self.planned if self._find(run, on_damaged) is None]

    def remarks(self) -> list[str]:
        """Remarks on the data of all runs and on how the input was understood, without duplicates."""
        from cl_bench import streams

        there = [run for run in self.planned if "data" not in run.lacks]
        needed = dict.fromkeys((run.experiment.benchmark, run.data) for run in there)
        of_data = [text for name, data in needed for text in streams.find(name, data).remarks()]
        return [*dict.fromkeys(text for run in self.planned for text in run.remarks), *of_data]

    def hyperparameters(self) -> list[str]:
        """Source of each row's hyper-parameters and its training budget; one line per group of rows that share them."""
        from cl_bench.running.recipes import described

        several = len({run.experiment.benchmark for run in self.planned}) > 1
        groups: dict[str, dict[str, None]] = {}
        for run in self.planned:
            name = f"{run.label} on {run.experiment.benchmark}" if several else run.label
            groups.setdefault(described(run.recipe, run.experiment.hyperparameters), {})[name] = None
        lines = [f"{_some(list(names))}: {text}" for text, names in groups.items()]
        return [*lines[:_MOST_LINES], *([f"and {len(lines) - _MOST_LINES} more"] if lines[_MOST_LINES:] else [])]

    def decode(self, runs: Sequence[PlannedRun], on_progress: Callable[[int, int], None]) -> None:
        """Decode the images that these runs read in decoded form, unless they are decoded already.

        Other hosts do this themselves.

        Args:
            on_progress: called with the numbers of decoded images and of all images.
        """
        from cl_bench import streams

        if self.remote is None:
            needed = dict.fromkeys((run.experiment.benchmark, run.experiment.storage, run.data) for run in runs)
            for name, storage, data in needed:
                streams.find(name, data).source(storage, on_progress)

    def carry_out(self, runs: Sequence[PlannedRun], progress: RunProgress) -> list[Outcome]:
        """Carry out these runs and store their records; with `fail_fast`, stop at the first failure.

        Ctrl-C, SIGTERM and SIGHUP stop all runs; their checkpoints stay, so that the next sweep resumes them.
        """
        from cl_bench.running.executors import local_executor
        from cl_bench.running.runner import Settings

        how = self.how
        settings = Settings(
            how.checkpoint_every, how.force, how.compile, how.deterministic, how.force, self.log, how.cuda_graphs
        )
        executor = self.remote or local_executor(self.planned, self.device, how.jobs)
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
        """The records of those planned runs that are stored."""
        stored = (self._find(run, lambda sentence: None) for run in self.planned)
        return [record for record in stored if record is not None]

    def _find(self, run: PlannedRun, on_damaged: Callable[[str], None]) -> RunRecord | None:
        try:
            return self.store.find(run.experiment)
        except DamagedRecord as error:
            on_damaged(f"a stored result is damaged and will be computed again: {error}")
            return None


def _some(names: Sequence[str]) -> str:
    """The first names, and the number of the others."""
    more = f" and {len(names) - _MOST_NAMES:,} more" if len(names) > _MOST_NAMES else ""
    return f"{', '.join(names[:_MOST_NAMES])}{more}"


@contextmanager
def _preserve_random_state() -> Iterator[None]:
    """Restore the global random generators after the block, since they belong to the caller."""
    import numpy as np
    import torch

    # GPUs that the caller has not used stay untouched: other processes may be running on them.
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    of_numpy, of_python = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(gpus):
        try:
            yield
        finally:
            np.random.set_state(of_numpy)
            random.setstate(of_python)


def _log_config(how: ExecutionOptions) -> LogConfig | None:
    """What runs log to, if the options ask for it; else None.

    Raises:
        UserError: a tracker cannot log (see `trackers.prepare`), or options contradict each other.
    """
    if not how.log:
        if how.log_dir is not None:
            raise UserError("--log-dir is for --log; name a tracker, e.g. --log csv")
        return None
    if how.collect and how.log_dir is None:
        raise UserError("--log with --collect needs --log-dir, a folder on the disk of each host")
    from cl_bench.running import trackers

    return trackers.prepare(how.log, how.log_dir or how.folder / "logs")


_EXECUTORS_OF = {
    "address": ("ray",),
    "gpus_per_run": ("ray", "slurm"),
    "cpus_per_run": ("ray", "slurm"),
    "collect": ("ray",),
    "partition": ("slurm",),
    "time": ("slurm",),
    "slurm": ("slurm",),
}
"""The executors to which an option of execution applies; all others apply everywhere."""


def _remote_executor(how: ExecutionOptions) -> RemoteExecutor | None:
    """The executor on other hosts, if the options ask for one; else None.

    Raises:
        UserError: the executor is unknown, or options are given that do not apply to it.
    """
    if how.executor not in ("here", "ray", "slurm"):
        raise UserError(f"--executor '{how.executor}' is unknown; expected here, ray or slurm")
    for name, executors in _EXECUTORS_OF.items():
        if name in how.given() and how.executor not in executors:
            raise UserError(f"{options_of(ExecutionOptions)[name].flag} is for --executor {' or '.join(executors)}")
    if how.executor == "ray":
        from cl_bench.running.ray_executor import RayExecutor

        if how.jobs:
            raise UserError("--jobs is for this host alone; with --executor ray, see --cpus-per-run and --gpus-per-run")
        return RayExecutor(how.device, how.address, how.gpus_per_run, how.cpus_per_run or 1, how.collect)
    if how.executor == "slurm":
        from cl_bench.running.slurm_executor import SlurmExecutor

        if how.jobs == "auto":
            raise UserError("--jobs auto is for this host alone; with --executor slurm, give a number or leave it out")
        return SlurmExecutor(
            device=how.device,
            partition=how.partition,
            minutes=how.time,
            gpus=how.gpus_per_run,
            cpus=how.cpus_per_run or 1,
            at_once=how.jobs,
            options=dict(grammar.parse_pair(pair, "--slurm") for pair in how.slurm),
        )
    return None
