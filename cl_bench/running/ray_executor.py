"""Runs as Ray tasks: on all GPUs or cores of this host, or on the hosts of a Ray cluster.

Imported by the workers too, so torch and the rest of cl-bench are imported where they are used.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import math
import os
import re
import secrets
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cl_bench import __version__
from cl_bench.errors import UserError
from cl_bench.running.transport import Parcel, Show

if TYPE_CHECKING:
    import torch

    from cl_bench.running import runner
    from cl_bench.running.executors import Outcome
    from cl_bench.running.plan import PlannedRun
    from cl_bench.running.runner import Settings
    from cl_bench.store import Arrays, Store

RETRIES = 5
"""So often a run begins again when its worker or host has died; each time it goes on from its checkpoint."""
LOOK = 5
"""Seconds between two looks at the hosts of the cluster."""
CONNECT = 5
"""Seconds for a TCP connection to a cluster."""
OBJECTS = 256 * 2**20
"""Bytes of shared memory for what travels between processes of this host: records and predictions, no images."""
SEES = 10
"""Seconds after which a file must be visible on all hosts of a shared folder."""


@dataclass(frozen=True)
class OnRay:
    """Each run is a Ray task.

    Attributes:
        device: `auto`, `cpu` or `cuda`; auto: GPUs, if there are any.
        address: of a running cluster, `auto` or `HOST:PORT`; None: one is started on this host, and ended.
        gpus: of a task; None: 1 or 0, by the device.
        cpus: of a task: its torch threads.
        collect: results come back through Ray; else the workers write into the store, a folder that all hosts share.
    """

    device: str = "auto"
    address: str | None = None
    gpus: float | None = None
    cpus: int = 1
    collect: bool = False

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            UserError: one of them is impossible, or Ray is not installed.
        """
        if importlib.util.find_spec("ray") is None:
            raise UserError("--executor ray needs Ray, which is not installed; pip install 'cl-bench[ray]'")
        if self.device not in ("auto", "cpu", "cuda"):
            raise UserError(
                f"--device '{self.device}' does not go with --executor ray, which hands out the GPUs; "
                "expected auto, cpu or cuda"
            )
        if self.address is not None and self.address != "auto":
            _parse(self.address)
        if self.gpus is not None and not 0 <= self.gpus <= 1:
            raise UserError(f"--gpus-per-run {self.gpus:g}: a run uses one GPU or a share of it, so expected 0 to 1")
        if self.device == "cpu" and self.gpus:
            raise UserError(f"--gpus-per-run {self.gpus:g} and --device cpu contradict each other; leave one out")
        if self.device == "cuda" and self.gpus == 0:
            raise UserError("--gpus-per-run 0 and --device cuda contradict each other; leave one out")

    def __call__(
        self, runs: Sequence[PlannedRun], store: Store, settings: Settings, progress: runner.Progress
    ) -> Generator[Outcome, None, None]:
        """Carry the runs out.

        Raises:
            UserError: the cluster cannot be reached, or no host of it has room for a run.
        """
        if runs:
            parcels = [Parcel.of(run) for run in runs]
            with _cluster(self.address) as ray, _token(store, self.collect) as token:
                gpus = self._room(ray)
                order = _Order(
                    version=__version__,
                    folder=str(Path.cwd()),
                    variables={name: value for name, value in os.environ.items() if name.startswith("CL_BENCH_")},
                    store=None if self.collect else str(store.root.absolute()),
                    token=token,
                    device="cuda" if gpus else "cpu",
                    threads=self.cpus,
                    settings=settings,
                )
                yield from _Sweep(ray, order, self.cpus, gpus, store, progress).outcomes(runs, parcels)

    def guess(self) -> torch.device:
        """Where runs will probably execute, without asking the cluster."""
        import torch

        gpu = self.device == "cuda" or self.gpus or (self.device == "auto" and torch.cuda.is_available())
        return torch.device("cuda" if gpu and self.gpus != 0 else "cpu")

    def _room(self, ray: Any) -> float:
        """The GPUs of a task."""
        hosts = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        gpus = self.gpus
        if gpus is None:
            wanted = self.device == "cuda" or (self.device == "auto" and any(host.get("GPU", 0) >= 1 for host in hosts))
            gpus = 1.0 if wanted else 0.0
        if not any(_fits(host, self.cpus, gpus) for host in hosts):
            listed = ", ".join(f"{host.get('CPU', 0):g} CPUs and {host.get('GPU', 0):g} GPUs" for host in hosts)
            raise UserError(
                f"no host has the {self.cpus} CPUs and {gpus:g} GPUs that a run asks for; there are: {listed}. "
                "Lower --cpus-per-run or --gpus-per-run, or try --device cpu"
            )
        return gpus


def _fits(host: dict[str, float], cpus: int, gpus: float) -> bool:
    return host.get("CPU", 0) >= cpus and host.get("GPU", 0) >= gpus


# --- the cluster -----------------------------------------------------------------------------------------------


def _parse(address: str) -> tuple[str, int]:
    found = re.fullmatch(r"([^:/\s]+):(\d{1,5})", address)
    if not found or not 0 < int(found[2]) < 65536:
        raise UserError(f"--address '{address}' is none; expected auto or HOST:PORT, as 'ray start --head' prints it")
    return found[1], int(found[2])


@contextlib.contextmanager
def _cluster(address: str | None) -> Iterator[Any]:
    """Ray, connected to a cluster; one that is started here has ended with all its processes afterwards.

    Raises:
        UserError: the cluster cannot be reached.
    """
    if address is not None and address != "auto":
        host, port = _parse(address)
        try:
            socket.create_connection((host, port), CONNECT).close()
        except OSError as error:
            raise UserError(
                f"--address {address}: nothing answers there ({error.strerror or error}); start the cluster with "
                "'ray start --head', or leave --address out to use this host alone"
            ) from error
    # Read when Ray is imported. By default it tries for many minutes to reach what listens there but is no cluster.
    os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "1")
    folder: Path | None = None
    if address is None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # A token of our own: Ray would write one into the home folder.
        if "RAY_AUTH_MODE" not in os.environ:
            os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    try:
        try:
            if address is None:
                # Not in Ray's usual folder, where it would be found by --address auto. Paths of sockets must be short.
                short = tempfile.gettempdir() if len(tempfile.gettempdir()) < 30 else "/tmp"
                folder = Path(tempfile.mkdtemp(prefix="cl-bench-", dir=short))
                local = {"include_dashboard": False, "object_store_memory": OBJECTS, "_temp_dir": str(folder)}
                ray.init(address="local", **local, **quiet)
            else:
                ray.init(address=address, **quiet)
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(_unreachable(address, error)) from error
        yield ray
    finally:
        ray.shutdown()
        if folder is not None:
            _remove(folder)


def _remove(folder: Path) -> None:
    """Delete Ray's logs and sockets; processes of it may write for a moment after they have been told to end."""
    until = time.monotonic() + 60
    while folder.exists() and time.monotonic() < until:
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.1)


def _unreachable(address: str | None, error: BaseException) -> str:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    if address is None:
        return f"Ray does not start on this host: {reason}"
    cause: BaseException | None = error
    while cause is not None:
        if "uthentication" in str(cause):
            return (
                f"--address {address}: the cluster does not accept our token; set RAY_AUTH_MODE=token, and "
                "RAY_AUTH_TOKEN or ~/.ray/auth_token as on its hosts"
            )
        cause = cause.__cause__ or cause.__context__
    return f"--address {address}: no Ray cluster of which this host is a part ({reason}); see 'ray status'"


@contextlib.contextmanager
def _token(store: Store, collect: bool) -> Iterator[str]:
    """The name of a file in the store, by which workers know that it is the same folder for them; empty: none."""
    if collect:
        yield ""
        return
    store.check_writable()
    path = store.root / f".shared-{uuid.uuid4().hex}"
    path.touch()
    try:
        yield path.name
    finally:
        path.unlink(missing_ok=True)


# --- what travels ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Order:
    """What is the same for all tasks.

    Attributes:
        version: of cl-bench.
        folder: the current one here, to which paths of data are relative.
        variables: of the environment: where data are and how they are read.
        store: path of the shared one; None: the result is handed back.
        token: name of a file in it.
    """

    version: str
    folder: str
    variables: dict[str, str]
    store: str | None
    token: str
    device: str
    threads: int
    settings: Settings


@dataclass(frozen=True)
class _Result:
    """How a task ended; record (JSON) and arrays only if they are to be handed back."""

    failure: str = ""
    code: int = 0
    record: str = ""
    arrays: Arrays = field(default_factory=dict)


class Mailbox:
    """What workers tell while runs go on, until it is fetched; an actor on the driver's host."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []

    def put(self, *event: Any) -> None:
        self.events.append(event)

    def take(self) -> list[tuple[Any, ...]]:
        taken, self.events = self.events, []
        return taken


# --- the worker's side -----------------------------------------------------------------------------------------


def work(order: _Order, parcel: Parcel, name: tuple[int, int], mailbox: Any) -> _Result:
    """Carry out one run in a Ray worker; after a worker's death it may be there already, and only the news was lost.

    Args:
        name: of the attempt, for the mailbox: number of the run, and how often it has begun.
    """
    host = socket.gethostname()
    if order.version != __version__:
        return _Result(f"host {host} has cl-bench {__version__}, and not {order.version}; install the same there", 2)
    if order.store is not None and not _sees(Path(order.store) / order.token):
        return _Result(f"host {host} does not see the results folder {order.store} of this one; add --collect", 2)
    for variable in [variable for variable in os.environ if variable.startswith("CL_BENCH_")]:
        del os.environ[variable]
    os.environ.update(order.variables)
    if Path(order.folder).is_dir():
        os.chdir(order.folder)
    import torch

    from cl_bench.running.executors import attempt
    from cl_bench.store import DamagedRecord, Store

    torch.set_num_threads(order.threads)
    try:
        run = parcel.unpack()
    except UserError as error:
        return _Result(f"host {host}: {error}", 2)
    # A run that begins again after a death goes on from the checkpoint that it has made itself.
    settings = replace(order.settings, fresh=order.settings.fresh and name[1] == 0)
    teller = _teller(name, mailbox)
    with contextlib.ExitStack() as stack:
        folder = order.store or stack.enter_context(tempfile.TemporaryDirectory(prefix="cl-bench-"))
        store = Store(folder)
        if name[1] > 0 and not order.settings.fresh:
            with contextlib.suppress(DamagedRecord):
                if store.find(run.experiment) is not None:
                    return _Result()
        outcome = attempt(run, store, torch.device(order.device), settings, teller)
        teller.close()
        if outcome.failure or order.store is not None:
            return _Result(outcome.failure, outcome.code)
        record = store.load(store.json_path(run.experiment))
        return _Result(record=record.model_dump_json(), arrays=store.arrays(record))


def _sees(path: Path) -> bool:
    """Whether a file is there, or will be soon: network folders take their time."""
    until = time.monotonic() + SEES
    while not path.exists():
        if time.monotonic() > until:
            return False
        time.sleep(0.5)
    return True


def _teller(name: tuple[int, int], mailbox: Any) -> Any:
    import ray

    from cl_bench.running.executors import Teller

    class Sender(Teller):
        """Into the mailbox in the cluster, images at most once a second."""

        def __init__(self) -> None:
            self.images = 0
            self.told = time.monotonic()
            self.last: Any = None

        def tell(self, kind: str, *values: Any) -> None:
            self.flush()
            self.last = mailbox.put.remote(name, kind, *values)

        def flush(self) -> None:
            if self.images:
                self.last = mailbox.put.remote(name, "advance", self.images)
            self.images, self.told = 0, time.monotonic()

        def advance(self, images: int) -> None:
            self.images += images
            if time.monotonic() - self.told > 1:
                self.flush()

        def close(self) -> None:
            """Wait until all has arrived; not for long, as it matters to the eye only."""
            self.flush()
            if self.last is not None:
                ray.wait([self.last], timeout=2)

    return Sender()


# --- the driver's side -----------------------------------------------------------------------------------------


class _Sweep:
    """Runs that go on in a cluster."""

    def __init__(
        self, ray: Any, order: _Order, cpus: int, gpus: float, store: Store, progress: runner.Progress
    ) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self.ray, self.store, self.progress = ray, store, progress
        self.cpus, self.gpus = cpus, gpus
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self.mailbox = ray.remote(Mailbox).options(num_cpus=0, scheduling_strategy=here).remote()
        # Ray's own retries do not tell us of them.
        self.task = ray.remote(work).options(num_cpus=cpus, num_gpus=gpus, max_retries=0)
        self.order = ray.put(order)
        self.alive: set[str] = set()
        self.looked = -math.inf
        self.room = True

    def outcomes(self, runs: Sequence[PlannedRun], parcels: Sequence[Parcel]) -> Generator[Outcome, None, None]:
        """As the runs end; those that have not are cancelled when the generator is closed."""
        shows = [Show(run, self.progress) for run in runs]
        going: dict[Any, tuple[int, int]] = {}

        def begin(number: int, attempt: int) -> None:
            name = (number, attempt)
            going[self.task.remote(self.order, parcels[number], name, self.mailbox)] = name

        try:
            for number in range(len(runs)):
                begin(number, 0)
            while going:
                done, _ = self.ray.wait(list(going), timeout=1)
                self._tell(shows)
                self._look()
                for task in done:
                    number, attempt = going.pop(task)
                    outcome = self._outcome(runs[number], task, attempt)
                    if outcome is None:
                        begin(number, attempt + 1)
                    else:
                        yield outcome
        finally:
            with contextlib.suppress(self.ray.exceptions.RayError):
                for task in going:
                    self.ray.cancel(task, force=True)
                self.ray.kill(self.mailbox)

    def _outcome(self, run: PlannedRun, task: Any, attempt: int) -> Outcome | None:
        """How a task ended; None: its worker or host died, and it is to begin again."""
        from cl_bench.running.executors import Outcome
        from cl_bench.store import RunRecord

        errors = self.ray.exceptions
        try:
            result = self.ray.get(task)
        except errors.RayTaskError as error:
            return Outcome(run, f"its worker fails: {str(error).strip().splitlines()[-1]}", 1)
        except errors.RayError as error:
            reason = "out of memory" if isinstance(error, errors.OutOfMemoryError) else "its worker or host died"
            if attempt < RETRIES:
                name = f"{run.label} seed {run.experiment.seed}"
                self.progress.warn(f"{name}: {reason}; it begins again ({attempt + 1} of {RETRIES} times)")
                return None
            return Outcome(run, f"{reason}, {RETRIES + 1} times: {str(error).strip().splitlines()[0]}", 1)
        if result.record:
            try:
                self.store.write(RunRecord.model_validate_json(result.record), result.arrays)
            except (OSError, UserError) as error:
                return Outcome(run, str(error), 2)
        return Outcome(run, result.failure, result.code)

    def _tell(self, shows: Sequence[Show]) -> None:
        with contextlib.suppress(self.ray.exceptions.RayError):
            for (number, attempt), kind, *values in self.ray.get(self.mailbox.take.remote(), timeout=10):
                shows[number].tell(attempt, kind, *values)

    def _look(self) -> None:
        """Tell of hosts that have gone."""
        if time.monotonic() - self.looked < LOOK:
            return
        self.looked = time.monotonic()
        hosts = {node["NodeID"]: node for node in self.ray.nodes()}
        for name in sorted(self.alive):
            if not hosts[name]["Alive"]:
                self.progress.warn(f"host {hosts[name]['NodeManagerAddress']} has left the cluster")
        self.alive = {name for name, node in hosts.items() if node["Alive"]}
        room = any(_fits(hosts[name]["Resources"], self.cpus, self.gpus) for name in self.alive)
        if self.room and not room:
            self.progress.warn("no host with room for a run is left; waiting for one to join (Ctrl-C ends it)")
        self.room = room
