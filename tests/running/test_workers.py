"""Worker processes: their GPUs, deaths, lack of memory, and that none outlives its parent."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from cl_bench.errors import UserError
from cl_bench.running import memory, pool
from cl_bench.running.pool import TaskFailed, WorkerPool
from cl_bench.running.progress_bars import RunBars, run_bars
from cl_bench.running.transport import ProgressReplay
from cl_bench.running.workers import current_retry, pick_worker_gpu, send_event
from tests.helpers import ROOT, gate, processes
from tests.helpers.command import TRIAL, Cli, stored

SWEEP = [
    *("run", "--benchmark", "icons-tune", "--device", "cpu", *TRIAL, "--checkpoint-every", "0", "--seeds", "0-1"),
    *(*gate.GATED, "gated[epochs=1,batch_size=8]"),
]


@dataclass
class Pool:
    """A pool of two workers, its warnings, and an empty folder."""

    workers: WorkerPool
    warnings: list[str]
    folder: Path

    def submit(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Future[Any]:
        return self.workers.submit(function, *arguments, **{"name": function.__name__, **named})


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """One pool for all tests of this module, since each worker takes seconds to import torch."""
    warnings: list[str] = []
    with WorkerPool(2, 1, warnings.append) as workers:
        yield Pool(workers, warnings, tmp_path_factory.mktemp("pool"))


def meet(folder: Path, name: str) -> None:
    """Wait until two workers have called this."""
    (folder / f"{name}-{os.getpid()}").touch()
    while len(list(folder.glob(f"{name}-*"))) < 2:
        time.sleep(0.01)


def gpu_of_two(folder: Path) -> int | None:
    # So that each of the two workers carries out this task once.
    meet(folder, "gpu")
    with pytest.MonkeyPatch.context() as patch:
        # The number of GPUs is the one fact that a machine without GPUs cannot show.
        patch.setattr(torch.cuda, "device_count", lambda: 2)
        return pick_worker_gpu(torch.device("cuda")).index


def refuse() -> None:
    raise UserError("no such thing")


def be_killed(folder: Path) -> int:
    if current_retry() == 0:
        meet(folder, "killed")
        send_event("dying")
        os.kill(os.getpid(), signal.SIGKILL)
    (folder / "tried-again").touch()
    return current_retry()


def outlive(folder: Path) -> int:
    """Work while another worker dies, until that one has been replaced."""
    meet(folder, "killed")
    while not (folder / "tried-again").exists():
        time.sleep(0.01)
    return current_retry()


def take_memory(folder: Path, name: str, tries: int) -> int:
    """Run out of memory in the first `tries` attempts; in the first one, another worker does so at the same time."""
    if current_retry() == 0:
        meet(folder, "memory")
    if current_retry() < tries:
        allocator = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes.")
        # One task raises MemoryError with a sentence, as a run does; the other one the allocator's own error.
        raise MemoryError(memory.describe(allocator)) if name == "modest" else allocator
    return current_retry()


def test_workers_share_the_gpus_evenly(two: Pool) -> None:
    gpus = [two.submit(gpu_of_two, two.folder).result for _ in range(2)]
    assert {gpu() for gpu in gpus} == {0, 1}


@pytest.mark.parametrize("named", ["cpu", "cuda:1"])
def test_a_named_device_is_kept(named: str) -> None:
    assert pick_worker_gpu(torch.device(named)) == torch.device(named)


def test_an_error_of_a_task_is_raised_where_its_result_is_asked_for(two: Pool) -> None:
    with pytest.raises(UserError, match="no such thing"):
        two.submit(refuse).result()


def test_a_worker_that_dies_is_replaced_and_the_others_go_on(two: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    two.warnings.clear()
    reports: list[tuple[Any, ...]] = []
    dead = two.submit(be_killed, two.folder, name="lora", on_report=lambda *values: reports.append(values))
    living = two.submit(outlive, two.folder)
    assert (dead.result(), living.result()) == (1, 0)
    assert reports == [(0, "dying")]
    assert two.warnings == ["lora: its worker process was ended by SIGKILL; it starts again (retry 1 of 5)"]

    monkeypatch.setattr(pool, "MAX_RETRIES", 0)
    with pytest.raises(TaskFailed, match="its worker process ended with exit code 3, 1 times"):
        two.submit(os._exit, 3).result()


def test_a_task_that_lacked_memory_is_retried_with_fewer_at_once(two: Pool) -> None:
    two.warnings.clear()
    modest = two.submit(take_memory, two.folder, "modest", 1, name="modest")
    greedy = two.submit(take_memory, two.folder, "greedy", 2, name="greedy")
    assert modest.result() == 1
    with pytest.raises(TaskFailed) as failed:
        greedy.result()
    reason = "out of memory (DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes.)"
    assert str(failed.value) == f"{reason}, although no other run was executing"
    assert sorted(two.warnings) == [f"{name}: {reason}; it starts again alone" for name in ("greedy", "modest")]


def test_a_run_whose_worker_died_before_it_began_is_shown_when_it_begins() -> None:
    lines: list[str] = []
    bars = RunBars(run_bars(Console(file=io.StringIO())), 1, lines.append, lines.append)
    replay = ProgressReplay(SimpleNamespace(name="lora seed 3"), bars)
    replay.apply(1, "start", 100)
    replay.apply(1, "advance", 60)
    replay.apply(2, "start", 100)
    replay.apply(2, "stage", 0, 3, 0.5, 7.0)
    (bar,) = bars.bars.tasks
    assert bar.completed == 0
    assert lines == ["[1/1] lora seed 3 task 1/3: 50.0 % after 7 s"]


BUSY = """
from pathlib import Path
from cl_bench.running.pool import WorkerPool

def work(name):
    Path(name).touch()
    # Never lets another thread of its process work.
    sum(range(10**15))

if __name__ == "__main__":
    import busy

    with WorkerPool(2, 1, print) as workers:
        for name in ("first", "second", "waiting"):
            workers.submit(busy.work, name, name=name)
"""


def test_workers_in_the_middle_of_a_task_end_with_their_parent(tmp_path: Path) -> None:
    (tmp_path / "busy.py").write_text(BUSY)
    parent = subprocess.Popen([sys.executable, "busy.py"], cwd=tmp_path, start_new_session=True)
    begun = [tmp_path / "first", tmp_path / "second"]
    gate.wait(lambda: all(path.exists() for path in begun), lambda: parent.poll() is None, tmp_path / "log")
    assert len(processes.in_sessions([parent.pid])) > 2
    parent.kill()
    parent.wait()
    while processes.in_sessions([parent.pid]):
        time.sleep(0.05)
    assert not (tmp_path / "waiting").exists()


def test_a_sweep_loses_nothing_by_a_killed_worker_and_ctrl_c_three_times(tmp_path: Path, cl_bench: Cli) -> None:
    away, here = tmp_path / "away", tmp_path / "here"
    gate.lay(away, 1)
    gate.lay(here)
    log = away / "log"
    command = [*SWEEP, "--jobs", "2"]
    with log.open("w") as out:
        # A background job starts with SIGINT ignored, and Python leaves that as it is.
        sweep = subprocess.Popen(
            [sys.executable, "-m", "cl_bench", *command],
            cwd=away,
            env=os.environ | {"COLUMNS": "200", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            stdout=out,
            stderr=out,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )

    def wait(ready: Callable[[], Any]) -> None:
        gate.wait(ready, lambda: sweep.poll() is None, log)

    store = away / "results" / "runs"
    # Both runs have started, and neither can end before the gate is open.
    wait(lambda: len(list(store.glob(".checkpoints/*.safetensors"))) == 2)
    os.kill(min(processes.workers_of(sweep.pid)), signal.SIGKILL)
    wait(lambda: "its worker process was ended by SIGKILL; it starts again (retry 1 of 5)" in log.read_text())
    for _ in range(3):
        sweep.send_signal(signal.SIGINT)
        time.sleep(0.02)
    assert sweep.wait() == 130, log.read_text()
    while processes.in_sessions([sweep.pid]):
        time.sleep(0.05)
    text = log.read_text()
    assert "interrupted" in text and "Traceback" not in text and "failed" not in text, text
    assert not list(store.glob("*.json"))

    gate.open_gates(away)
    for folder in (here, away):
        os.chdir(folder)
        outcome = cl_bench(*SWEEP, "--jobs", "1")
        assert outcome.code == 0, outcome.err
    for one, other in zip(stored(here / "results/runs"), stored(store), strict=True):
        assert (one["key"], one["correct"], one["sessions"]) == (other["key"], other["correct"], 1)
        assert other["sessions"] == 2
