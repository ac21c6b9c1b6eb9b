"""The driver's side of a sweep on Slurm: one array of jobs, each of which executes one run."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import subprocess
import time
import uuid
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cl_bench.errors import UserError, first_line
from cl_bench.running.pool import MAX_RETRIES
from cl_bench.running.remote import SweepConfig, check_device, marker_file
from cl_bench.running.slurm_worker import SlurmTask, read_events
from cl_bench.running.transport import PackedRun, ProgressReplay

if TYPE_CHECKING:
    import torch

    from cl_bench.running.executors import Outcome
    from cl_bench.running.plan import PlannedRun
    from cl_bench.running.progress import RunProgress
    from cl_bench.running.runner import Settings
    from cl_bench.store import Store

FOLDER = ".slurm"
"""Folder in the results folder with the logs and messages of jobs."""
ARRAY_SIZE = 1000
"""Jobs of one array; Slurm's own limit (MaxArraySize) is 1001 unless it is configured."""
MAX_TIMEOUTS = 100
"""Times that a job is queued again because it reached its time limit."""
POLL_INTERVAL = 1.0
"""Seconds between looks at the files of jobs."""
QUEUE_INTERVAL = 10.0
"""Seconds between questions to Slurm's controller, which serves many users."""
RESULT_TIMEOUT = 60.0
"""Seconds within which the result of an ended job must be visible on a shared disk."""
_WAITING = frozenset({
    "PENDING", "RUNNING", "SUSPENDED", "COMPLETING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD",
    "RESIZING", "SIGNALING", "SPECIAL_EXIT", "STAGE_OUT", "STOPPED", "RESV_DEL_HOLD",
})  # fmt: skip
"""States of jobs that have not ended for good."""
_FATAL = {
    "OUT_OF_MEMORY": "its job ran out of memory; ask for more with --slurm mem=32G",
    "TIMEOUT": "its job reached its time limit; raise --time, or lower --checkpoint-every",
    "CANCELLED": "its job was cancelled",
    "DEADLINE": "its job reached its deadline",
}
"""Ends that would come again if the run were submitted again."""


@dataclass(frozen=True)
class SlurmExecutor:
    """Executor that carries out each run as a job of a Slurm array, submitted by submitit.

    Attributes:
        device: `auto`, `cpu` or `cuda`; `auto`: a GPU for each run, if the partition has any.
        partition: Slurm's partition; None: its default.
        minutes: time limit of a job; shortly before, the job is queued again and resumes.
        gpus: GPUs of a job; None: 1 or 0, depending on the device.
        cpus: cores of a job, and its torch threads.
        at_once: maximum number of jobs that run at once; None: no limit.
        options: other options of `sbatch`, by name without dashes.
        cluster: `local` executes the jobs as processes of this host, to try the mechanism without Slurm.
    """

    device: str = "auto"
    partition: str | None = None
    minutes: int = 1440
    gpus: float | None = None
    cpus: int = 1
    at_once: int | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    cluster: Literal["slurm", "local"] = "slurm"

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            UserError: an option is impossible, submitit is not installed, or this host cannot submit jobs.
        """
        if importlib.util.find_spec("submitit") is None:
            raise UserError("--executor slurm needs submitit, which is not installed; pip install 'cl-bench[slurm]'")
        if self.gpus is not None and self.gpus not in (0, 1):
            raise UserError(
                f"--gpus-per-run {self.gpus:g}: with --executor slurm a run takes a whole GPU (1) or none (0)"
            )
        check_device("slurm", self.device, self.gpus)
        if self.cluster == "slurm" and shutil.which("sbatch") is None:
            raise UserError(
                "--executor slurm: there is no Slurm on this host ('sbatch' is not found); "
                "type the command on a login node, or use --executor here or ray"
            )

    def __call__(
        self, runs: Sequence[PlannedRun], store: Store, settings: Settings, progress: RunProgress
    ) -> Generator[Outcome, None, None]:
        """Submit the runs, and yield the outcome of each as its job ends; closing the generator cancels all jobs.

        Raises:
            UserError: Slurm refuses the jobs.
        """
        if not runs:
            return
        packed = [PackedRun.pack(run) for run in runs]
        with marker_file(store) as marker:
            device = "cuda" if self._gpus_per_job else "cpu"
            config = SweepConfig.of(store, marker, device, self.cpus, settings)
            folder = store.root.absolute() / FOLDER / uuid.uuid4().hex[:12]
            folder.mkdir(parents=True)
            tasks = [SlurmTask(config, one, folder / f"{index}.events") for index, one in enumerate(packed)]
            yield from _Sweep(self._submitter(folder), folder, self.cluster, progress).outcomes(runs, tasks)
            with contextlib.suppress(OSError):
                folder.parent.rmdir()

    def likely_device(self) -> torch.device:
        """The device on which runs will execute."""
        import torch

        return torch.device("cuda" if self._gpus_per_job else "cpu")

    @cached_property
    def _gpus_per_job(self) -> int:
        """Number of GPUs of a job: 0 or 1."""
        if self.gpus is not None:
            return int(self.gpus)
        if self.device != "auto":
            return int(self.device == "cuda")
        if self.cluster == "local":
            return 0
        chosen = () if self.partition is None else ("--partition", self.partition)
        return int("gpu" in (_ask("sinfo", "--noheader", "--format=%G", *chosen) or ""))

    def _submitter(self, folder: Path) -> Any:
        """submitit's executor with the options of all jobs."""
        import submitit

        submitter = submitit.AutoExecutor(folder, cluster=self.cluster, slurm_max_num_timeout=MAX_TIMEOUTS)
        options: dict[str, Any] = {"timeout_min": self.minutes, "cpus_per_task": self.cpus}
        if gpus := self._gpus_per_job:
            options["gpus_per_node"] = gpus
        if self.cluster == "slurm":
            options["name"] = "cl-bench"
            options["slurm_array_parallelism"] = self.at_once or ARRAY_SIZE
            options["slurm_additional_parameters"] = {"requeue": True, **self.options}
            if self.partition is not None:
                options["slurm_partition"] = self.partition
        submitter.update_parameters(**options)
        return submitter


class _Sweep:
    """The jobs of a sweep."""

    def __init__(self, submitter: Any, folder: Path, cluster: str, progress: RunProgress) -> None:
        self.submitter, self.folder, self.cluster, self.progress = submitter, folder, cluster, progress
        self.states: dict[str, str] = {}
        self.last_question = 0.0
        self.ended: dict[str, float] = {}
        """When jobs without a result were first seen to have ended, in seconds of the monotonic clock."""

    def outcomes(self, runs: Sequence[PlannedRun], tasks: Sequence[SlurmTask]) -> Generator[Outcome, None, None]:
        """Outcomes of the runs as their jobs end; closing the generator cancels the others."""
        replays = [ProgressReplay(run, self.progress) for run in runs]
        offsets = [0] * len(runs)
        pending: dict[int, tuple[SlurmTask, Any]] = {}
        failed = False
        try:
            for first in range(0, len(tasks), ARRAY_SIZE):
                part = tasks[first : first + ARRAY_SIZE]
                jobs = self._submit(part)
                pending |= {first + place: (task, jobs[place]) for place, task in enumerate(part)}
            self.progress.warn(_submitted(job.job_id for _, job in pending.values()))
            while pending:
                self._ask_states(job for _, job in pending.values())
                for index, (task, job) in list(pending.items()):
                    events, offsets[index] = read_events(task.events, offsets[index])
                    for retry, event, *values in events:
                        replays[index].apply(retry, event, *values)
                    outcome = self._outcome(runs[index], task, job)
                    if isinstance(outcome, SlurmTask):
                        pending[index] = (outcome, self._submit([outcome])[0])
                    elif outcome is not None:
                        del pending[index]
                        failed = failed or bool(outcome.failure)
                        yield outcome
                if pending:
                    time.sleep(POLL_INTERVAL)
            if not failed:
                shutil.rmtree(self.folder, ignore_errors=True)
        finally:
            self._cancel(job for _, job in pending.values())

    def _submit(self, tasks: Sequence[SlurmTask]) -> list[Any]:
        """Submit tasks as one array of jobs.

        Raises:
            UserError: Slurm refuses them.
        """
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        try:
            with self.submitter.batch():
                jobs = [self.submitter.submit(task) for task in tasks]
        except (FailedJobError, FailedSubmissionError, OSError, subprocess.SubprocessError) as error:
            raise UserError(
                f"Slurm refuses the jobs ({first_line(error)}); see --partition, --time and --slurm"
            ) from error
        return jobs

    def _ask_states(self, jobs: Iterable[Any]) -> None:
        """Renew the known states of these jobs, not more often than every `QUEUE_INTERVAL`."""
        if self.cluster == "local":
            self.states = {job.job_id: "RUNNING" if job.state == "RUNNING" else "FAILED" for job in jobs}
        elif time.monotonic() - self.last_question >= QUEUE_INTERVAL:
            self.last_question = time.monotonic()
            names = [job.job_id for job in jobs]
            arrays = ",".join(sorted({name.partition("_")[0] for name in names}))
            found = _ask("squeue", "--noheader", "--array", "--states=all", "--format=%i %T", "--jobs", arrays)
            if found is not None:
                # Slurm forgets a job some minutes after its end.
                states = dict(line.split() for line in found.splitlines())
                self.states = {name: states.get(name, "UNKNOWN") for name in names}

    def _outcome(self, run: PlannedRun, task: SlurmTask, job: Any) -> Outcome | SlurmTask | None:
        """The outcome of a job that has ended, the task to submit next if the job died, or None if it goes on."""
        from submitit.core.utils import UncompletedJobError

        from cl_bench.running.executors import Outcome

        if job.paths.result_pickle.exists():
            try:
                result = job.result()
            except UncompletedJobError as error:
                reason = str(error).strip().splitlines()[-1]
                return Outcome(run, f"its job fails: {reason} (log: {job.paths.stderr})", 1)
            return Outcome(run, result.failure, result.code)
        state = self.states.get(job.job_id, "PENDING")
        if state in _WAITING:
            self.ended.pop(job.job_id, None)
            return None
        if state in _FATAL:
            return Outcome(run, f"{_FATAL[state]} (log: {job.paths.stderr})", 1)
        since = self.ended.setdefault(job.job_id, time.monotonic())
        if time.monotonic() - since < (POLL_INTERVAL if state == "FAILED" else RESULT_TIMEOUT):
            return None
        reason = f"its job ended without a result ({state.lower().replace('_', ' ')})"
        if task.retry < MAX_RETRIES:
            self.progress.warn(f"{run.name}: {reason}; it starts again (retry {task.retry + 1} of {MAX_RETRIES})")
            return replace(task, retry=task.retry + 1)
        return Outcome(run, f"{reason}, {MAX_RETRIES + 1} times (log: {job.paths.stderr})", 1)

    def _cancel(self, jobs: Iterable[Any]) -> None:
        """Cancel jobs; each resumes from its checkpoint when the command is given again."""
        for job in jobs:
            with contextlib.suppress(OSError, subprocess.SubprocessError):
                job.cancel(check=False)


def _submitted(jobs: Iterable[str]) -> str:
    names = list(jobs)
    arrays = ", ".join(dict.fromkeys(name.partition("_")[0] for name in names))
    return f"submitted {len(names)} job(s) to Slurm: {arrays}"


def _ask(*command: str) -> str | None:
    """Output of a command of Slurm, empty if Slurm does not know the jobs; None if it does not answer."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    if done.returncode == 0 or "Invalid job id" in done.stderr:
        return done.stdout
    return None
