"""The driver's side of a sweep on Ray: runs execute on all GPUs or cores of this host or of a cluster."""

from __future__ import annotations

import contextlib
import importlib.util
import math
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from cl_bench.errors import UserError
from cl_bench.running.pool import MAX_RETRIES
from cl_bench.running.ray_cluster import connect, has_resources, parse_address
from cl_bench.running.ray_worker import Attempt, Mailbox, run_task
from cl_bench.running.remote import SweepConfig, check_device, marker_file
from cl_bench.running.transport import PackedRun, ProgressReplay

if TYPE_CHECKING:
    import torch

    from cl_bench.running.executors import Outcome
    from cl_bench.running.plan import PlannedRun
    from cl_bench.running.progress import RunProgress
    from cl_bench.running.runner import Settings
    from cl_bench.store import Store

HOST_CHECK_INTERVAL = 5
"""Seconds between checks for hosts that have left the cluster."""


@dataclass(frozen=True)
class RayExecutor:
    """Executor that carries out each run as a Ray task.

    Attributes:
        device: `auto`, `cpu` or `cuda`; `auto`: GPUs, if there are any.
        address: address of a running cluster, `auto` or `HOST:PORT`; None: start a cluster on this host and end it.
        gpus: GPUs of a task, at most 1; None: 1 or 0, depending on the device.
        cpus: CPUs of a task, each used by one torch thread.
        collect: return results through Ray; otherwise workers write into the store, a folder that all hosts share.
    """

    device: str = "auto"
    address: str | None = None
    gpus: float | None = None
    cpus: int = 1
    collect: bool = False

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            UserError: an option is impossible, or Ray is not installed.
        """
        if importlib.util.find_spec("ray") is None:
            raise UserError("--executor ray needs Ray, which is not installed; pip install 'cl-bench[ray]'")
        if self.address is not None and self.address != "auto":
            parse_address(self.address)
        if self.gpus is not None and not 0 <= self.gpus <= 1:
            raise UserError(f"--gpus-per-run {self.gpus:g}: a run uses one GPU or a share of it, so expected 0 to 1")
        check_device("ray", self.device, self.gpus)

    def __call__(
        self, runs: Sequence[PlannedRun], store: Store, settings: Settings, progress: RunProgress
    ) -> Generator[Outcome, None, None]:
        """Execute the runs, in any order, and yield the outcome of each.

        Raises:
            UserError: the cluster cannot be reached, or none of its hosts has room for a run.
        """
        if not runs:
            return
        packed = [PackedRun.pack(run) for run in runs]
        shared = contextlib.nullcontext("") if self.collect else marker_file(store)
        with connect(self.address) as ray, shared as marker:
            gpus = self._gpus_per_task(ray)
            device = "cuda" if gpus else "cpu"
            config = SweepConfig.of(store, marker, device, self.cpus, settings, collect=self.collect)
            yield from _Sweep(ray, config, self.cpus, gpus, store, progress).outcomes(runs, packed)

    def likely_device(self) -> torch.device:
        """The device on which runs will probably execute, guessed without asking the cluster."""
        import torch

        gpu = self.device == "cuda" or self.gpus or (self.device == "auto" and torch.cuda.is_available())
        return torch.device("cuda" if gpu and self.gpus != 0 else "cpu")

    def _gpus_per_task(self, ray: Any) -> float:
        """Number of GPUs of a task on this cluster.

        Raises:
            UserError: no host has room for a task.
        """
        hosts = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        gpus = self.gpus
        if gpus is None:
            wanted = self.device == "cuda" or (self.device == "auto" and any(host.get("GPU", 0) >= 1 for host in hosts))
            gpus = 1.0 if wanted else 0.0
        if not any(has_resources(host, self.cpus, gpus) for host in hosts):
            listed = ", ".join(f"{host.get('CPU', 0):g} CPUs and {host.get('GPU', 0):g} GPUs" for host in hosts)
            raise UserError(
                f"no host has the {self.cpus} CPUs and {gpus:g} GPUs that a run asks for; there are: {listed}. "
                "Lower --cpus-per-run or --gpus-per-run, or try --device cpu"
            )
        return gpus


class _Sweep:
    """The tasks of a sweep on a connected cluster."""

    def __init__(
        self, ray: Any, config: SweepConfig, cpus: int, gpus: float, store: Store, progress: RunProgress
    ) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self.ray, self.store, self.progress = ray, store, progress
        self.cpus, self.gpus = cpus, gpus
        this_host = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self.marker = store.root / config.marker if config.marker else None
        self.mailbox = ray.remote(Mailbox).options(num_cpus=0, scheduling_strategy=this_host).remote()
        # Without Ray's own retries, about which users would get no warning.
        self.task = ray.remote(max_retries=0)(run_task)
        self.config = ray.put(config)
        self.alive: set[str] = set()
        self.last_host_check = -math.inf
        self.has_room = True

    def outcomes(self, runs: Sequence[PlannedRun], packed: Sequence[PackedRun]) -> Generator[Outcome, None, None]:
        """Outcomes of the runs as they end; closing the generator cancels all pending tasks."""
        replays = [ProgressReplay(run, self.progress) for run in runs]
        pending: dict[Any, Attempt] = {}

        def submit(attempt: Attempt) -> None:
            task = self.task.options(**self._resources(attempt))
            pending[task.remote(self.config, packed[attempt.run], attempt, self.mailbox)] = attempt

        try:
            for index in range(len(runs)):
                submit(Attempt(index, 0))
            while pending:
                done, _ = self.ray.wait(list(pending), timeout=1)
                self._replay_events(replays)
                self._check_hosts()
                for task in done:
                    attempt = pending.pop(task)
                    outcome = self._outcome(runs[attempt.run], task, attempt)
                    if isinstance(outcome, Attempt):
                        submit(outcome)
                    else:
                        yield outcome
        finally:
            with contextlib.suppress(self.ray.exceptions.RayError):
                for task in pending:
                    self.ray.cancel(task, force=True)
                self.ray.kill(self.mailbox)

    def _resources(self, attempt: Attempt) -> dict[str, float]:
        """Resources that Ray reserves for an attempt; after a lack of memory, more than it needs, so that fewer run."""
        if attempt.share == 1:
            return {"num_cpus": self.cpus, "num_gpus": self.gpus}
        most = max((node["Resources"].get("CPU", 0) for node in self.ray.nodes() if node["Alive"]), default=0)
        cpus = max(self.cpus, min(self.cpus * attempt.share, int(most)))
        return {"num_cpus": cpus, "num_gpus": min(1.0, self.gpus * attempt.share)}

    def _outcome(self, run: PlannedRun, task: Any, attempt: Attempt) -> Outcome | Attempt:
        """The outcome of an ended task, or the next attempt if its worker or host died or ran out of memory."""
        from cl_bench.running.executors import Outcome
        from cl_bench.store import RunRecord

        errors = self.ray.exceptions
        try:
            result = self.ray.get(task)
        except errors.RayTaskError as error:
            return Outcome(run, f"its worker fails: {str(error).strip().splitlines()[-1]}", 1)
        except errors.OutOfMemoryError:
            return self._with_more_room(run, attempt, "out of memory (Ray has ended its worker)")
        except errors.RayError as error:
            reason = "its worker or host died"
            if attempt.retry < MAX_RETRIES:
                self.progress.warn(
                    f"{run.name}: {reason}; it starts again (retry {attempt.retry + 1} of {MAX_RETRIES})"
                )
                return replace(attempt, retry=attempt.retry + 1)
            return Outcome(run, f"{reason}, {MAX_RETRIES + 1} times: {str(error).strip().splitlines()[0]}", 1)
        if result.out_of_memory:
            return self._with_more_room(run, attempt, result.failure)
        if result.record:
            try:
                self.store.write(RunRecord.model_validate_json(result.record), result.arrays)
            except (OSError, UserError) as error:
                return Outcome(run, str(error), 2)
        return Outcome(run, result.failure, result.code)

    def _with_more_room(self, run: PlannedRun, attempt: Attempt, reason: str) -> Outcome | Attempt:
        """The next attempt, with fewer concurrent runs, or the failure of a run that had a whole host for itself."""
        from cl_bench.running.executors import Outcome

        wider = replace(attempt, retry=attempt.retry + 1, share=2 * attempt.share)
        if self._resources(wider) == self._resources(attempt):
            return Outcome(run, f"{reason}, although no other run was executing", 1)
        self.progress.warn(f"{run.name}: {reason}; it starts again with fewer concurrent runs")
        return wider

    def _replay_events(self, replays: Sequence[ProgressReplay]) -> None:
        """Apply all progress events that workers have sent since the last call."""
        with contextlib.suppress(self.ray.exceptions.RayError):
            for attempt, event, *values in self.ray.get(self.mailbox.take.remote(), timeout=10):
                replays[attempt.run].apply(attempt.retry, event, *values)

    def _check_hosts(self) -> None:
        """Warn of hosts that have left the cluster, and if no remaining host has room for a run."""
        if time.monotonic() - self.last_host_check < HOST_CHECK_INTERVAL:
            return
        self.last_host_check = time.monotonic()
        if self.marker is not None:
            # Keeps the marker young: an old one was left behind by a driver that was killed.
            with contextlib.suppress(OSError):
                self.marker.touch()
        hosts = {node["NodeID"]: node for node in self.ray.nodes()}
        for name in sorted(self.alive):
            if not hosts[name]["Alive"]:
                self.progress.warn(f"host {hosts[name]['NodeManagerAddress']} has left the cluster")
        self.alive = {name for name, node in hosts.items() if node["Alive"]}
        has_room = any(has_resources(hosts[name]["Resources"], self.cpus, self.gpus) for name in self.alive)
        if self.has_room and not has_room:
            self.progress.warn(
                "no remaining host has room for a run; waiting for one to join (Ctrl-C ends the command)"
            )
        self.has_room = has_room
