"""Sweeps on Ray: on a real cluster of two nodes, one of which is killed, and on this host alone."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from cl_bench import __version__
from cl_bench.data import cache, decoding
from cl_bench.running.runner import Settings
from cl_bench.running.transport import PackedRun
from cl_bench.streams import catalogue
from tests.helpers import ROOT, frail, gate, logs, processes, trees
from tests.helpers.command import RUNS, TRIAL, Outcome, Result, results

pytest.importorskip("ray", reason="Ray is not installed: pip install 'cl-bench[ray]'")

from cl_bench.running import ray_worker, remote  # noqa: E402

RUN = ["run", "--benchmark", "icons-tune", "--device", "cpu"]
SWEEP = [
    *RUN,
    *TRIAL,
    "--checkpoint-every",
    "0",
    *gate.GATED,
    "gated[epochs=1,batch_size=8],simplecil",
    "--seeds",
    "0-2",
]
COUNTS = ("key", "stages", "correct", "correct_task_aware", "total", "trainable", "stored", "train_samples", "traces")


@dataclass
class Processes:
    """Processes started by a test, each in a session of its own, to which all its children belong."""

    environment: dict[str, str]
    sessions: list[int] = field(default_factory=list)

    def start(self, folder: Path, log: Path, *command: str) -> subprocess.Popen[bytes]:
        with log.open("ab") as out:
            process = subprocess.Popen(
                command,
                cwd=folder,
                env=self.environment,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        self.sessions.append(process.pid)
        return process

    def drive(self, folder: Path, *arguments: str, **variables: str) -> BaseProcess:
        """Start `cl-bench ARGUMENTS` in a session of its own, with its output in the file `log` of the folder."""
        process = processes.start(folder, *arguments, environment=self.environment | variables)
        assert process.pid is not None
        self.sessions.append(process.pid)
        return process

    def kill(self, sessions: Collection[int]) -> None:
        while pids := processes.in_sessions(sessions):
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)


@dataclass
class Cluster:
    """Two nodes of one CPU each.

    Attributes:
        second: session of the processes of the second one.
    """

    address: str
    second: int
    processes: Processes


@pytest.fixture(scope="module")
def short() -> Iterator[Path]:
    """A folder whose path is short enough for sockets below it."""
    folder = Path(tempfile.mkdtemp(prefix="cb-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def ended(short: Path) -> Iterator[Processes]:
    """A starter of processes, all of which are ended after the test."""
    own = {
        "COLUMNS": "200",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_health_check_period_ms": "1000",
        # Seconds that parts of Ray have to start, generous for a busy machine.
        "RAY_raylet_start_wait_time_s": "600",
        "TMPDIR": str(short),
    }
    found = Processes(os.environ | own)
    try:
        yield found
    finally:
        found.kill(found.sessions)


@pytest.fixture(scope="module")
def cluster(short: Path) -> Iterator[Cluster]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    ray = str(Path(sys.executable).with_name("ray"))
    node = ["--num-cpus=1", "--num-gpus=0", "--object-store-memory=100000000", "--block"]
    with ended(short) as started:
        head_log, second_log = short / "head.log", short / "second.log"
        head = ["--head", f"--port={address.rpartition(':')[2]}", "--include-dashboard=false"]
        first = started.start(short, head_log, ray, "start", *head, f"--temp-dir={short / 'h'}", *node)
        gate.wait(lambda: "runtime started" in head_log.read_text(), lambda: first.poll() is None, head_log)
        second = started.start(short, second_log, ray, "start", f"--address={address}", *node)
        gate.wait(lambda: "runtime started" in second_log.read_text(), lambda: second.poll() is None, second_log)
        yield Cluster(address, second.pid, started)


def records(folder: Path) -> dict[str, Result]:
    """Records and their arrays by key; asserts that the store holds nothing else."""
    found = results(folder)
    store = folder / RUNS
    left = [path for path in store.rglob("*") if path.is_file()]
    assert len(left) == 2 * len(found), left
    return found


def test_every_run_ends_once_though_a_node_is_killed(
    cluster: Cluster, cl_bench: Callable[..., Outcome], tmp_path: Path
) -> None:
    away = tmp_path / "away"
    log = away / "log"
    gate.lay(away, 1)
    gate.lay(tmp_path)
    ray = ("--executor", "ray", "--address", cluster.address, "--log", "csv", "--log-dir", "logs")
    driver = cluster.processes.drive(away, *SWEEP, *ray)
    checkpoints = away / "results" / "runs" / ".checkpoints"
    # Each node has room for one run, so two checkpoints mean that both nodes wait in the middle of a run.
    gate.wait(lambda: len(list(checkpoints.glob("*.safetensors"))) == 2, driver.is_alive, log)
    # A living driver touches the file by which workers recognise the folder, so that nobody prunes it.
    (marker,) = away.glob("results/runs/.shared-*")
    os.utime(marker, (0, 0))
    gate.wait(lambda: marker.stat().st_mtime > 0, driver.is_alive, log)
    cluster.processes.kill([cluster.second])
    gate.open_gates(away)
    driver.join()
    text = log.read_text()
    assert driver.exitcode == 0, text
    assert "it starts again (retry 1 of 5)" in text and "6 run(s) computed" in text, text

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    outcome = cl_bench(*SWEEP, "--log", "csv", "--log-dir", "logs")
    torch.set_num_threads(threads)
    assert outcome.code == 0, outcome.err
    here, there = records(tmp_path), records(away)
    assert here.keys() == there.keys() and len(here) == 6
    for key, (record, arrays) in here.items():
        other, other_arrays = there[key]
        assert {name: record[name] for name in COUNTS} == {name: other[name] for name in COUNTS}
        assert other["environment"]["threads"] == 1
        for name, values in arrays.items():
            np.testing.assert_array_equal(values, other_arrays[name], err_msg=name)
        logged = [logs.repeatable(logs.read(folder / "logs")[key]) for folder in (tmp_path, away)]
        pd.testing.assert_frame_equal(*logged)
    assert sorted(record["sessions"] for record, _ in there.values()) == [1, 1, 1, 1, 1, 2]


def test_results_come_back_through_ray_and_a_dead_worker_is_replaced(cluster: Cluster, tmp_path: Path) -> None:
    """The root of the images and the cache are relative paths, which the environment of the cluster does not name."""
    for domain in catalogue.find("pacs").domains:
        for name in ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person"):
            for number in range(5):
                trees.save(tmp_path / "sets" / "pacs" / domain / name / f"{number}.jpg")
    (tmp_path / "frail.py").write_text(frail.METHOD)
    driver = cluster.processes.drive(
        tmp_path,
        *("run", "--benchmark", "pacs", "--root", "sets", *TRIAL, "--backbone", "vit_tiny_patch8_32.icons"),
        *("--method-file", "frail.py", "--methods", "frail[action=live|fail|starve|die]", "--device", "cpu"),
        *("--executor", "ray", "--address", cluster.address, "--collect"),
        CL_BENCH_CACHE="decoded",
    )
    driver.join()
    text = (tmp_path / "log").read_text()
    assert driver.exitcode == 1, text
    assert "frail[action=fail] seed 0 failed: RuntimeError: it had to come to this" in text, text
    assert "frail[action=die] seed 0: its worker or host died; it starts again" in text, text
    lacking = "out of memory (no room for 99 bytes), although no other run was executing"
    assert f"frail[action=starve] seed 0 failed: {lacking}" in text, text
    found = [record for record, _ in records(tmp_path).values()]
    assert sorted(record["label"] for record in found) == ["frail[action=die]", "frail[action=live]"]
    assert {record["experiment"]["benchmark"] for record in found} == {"pacs"}
    assert list((tmp_path / "decoded").glob("pacs-train-*.images"))


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_ended_on_this_host_alone_nothing_goes_on(how: signal.Signals, short: Path, tmp_path: Path) -> None:
    with ended(short) as started:
        before = set(short.glob("cl-bench-*"))
        driver = started.drive(tmp_path, *RUN, *TRIAL, "--methods", "simplecil", "--seeds", "0-3", "--executor", "ray")
        assert driver.pid is not None
        session = driver.pid
        at_work = b"ray::run_task"
        gate.wait(
            lambda: any(processes.command_of(pid).startswith(at_work) for pid in processes.in_sessions([session])),
            driver.is_alive,
            tmp_path / "log",
        )
        assert len(processes.in_sessions([session])) > 4, (
            "Ray's processes and the workers are in the session of the driver"
        )
        os.kill(session, how)
        driver.join()
        log = (tmp_path / "log").read_text()
        assert driver.exitcode == (143 if how == signal.SIGTERM else -how), log
        while processes.in_sessions([session]) or set(short.glob("cl-bench-*")) != before:
            time.sleep(0.05)
    store = tmp_path / "results" / "runs"
    assert not list(store.glob("*.json"))
    assert len(list(store.glob(".shared-*"))) == (how == signal.SIGKILL)
    assert ("interrupted; finished results are stored" in log) == (how == signal.SIGTERM)


CONFIG = remote.SweepConfig(
    version=__version__,
    folder="",
    cache=None,
    store="",
    marker=".shared-0",
    device="cpu",
    threads=1,
    settings=Settings(),
)


def test_a_host_that_does_not_see_the_store_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "SHARED_FILE_TIMEOUT", 0)
    config = replace(CONFIG, folder=str(tmp_path), store=str(tmp_path))
    result = ray_worker.run_task(config, PackedRun(b"", None), ray_worker.Attempt(0, 0), None)
    assert result.code == 2 and "add --collect" in result.failure


@pytest.mark.usefixtures("one_thread")
def test_a_worker_has_the_limit_of_pixels_of_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(cache.VARIABLE, raising=False)
    for of_the_host, of_the_driver, limit in (("5", "7", 7), ("5", None, 178_956_970), ("", "7", 7)):
        monkeypatch.setenv(decoding.LIMIT_VARIABLE, of_the_host)
        config = replace(CONFIG, folder=str(tmp_path), store=None, max_pixels=of_the_driver)
        # An empty run cannot be unpacked, but before that the worker sets the limit.
        with pytest.raises(EOFError):
            ray_worker.run_task(config, PackedRun(b"", None), ray_worker.Attempt(0, 0), None)
        assert decoding.max_pixels() == limit


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--executor", "cloud"], "--executor 'cloud' is unknown; expected here, ray or slurm"),
        (["--address", "auto"], "--address is for --executor ray"),
        (["--collect"], "--collect is for --executor ray"),
        (["--executor", "ray", "--address", "there"], "--address 'there' is not an address; expected auto or HOST:"),
        (["--executor", "ray", "--gpus-per-run", "2"], "expected 0 to 1"),
        (["--executor", "ray", "--device", "cuda:1"], "--device 'cuda:1' does not go with --executor ray"),
        (["--executor", "ray", "--device", "cpu", "--gpus-per-run", "0.5"], "contradict each other"),
        (["--executor", "ray", "--address", "127.0.0.1:1"], "nothing answers there"),
    ],
)
def test_wrong_options_end_in_a_sentence(options: list[str], words: str, cl_bench: Callable[..., Outcome]) -> None:
    outcome = cl_bench("run", "--benchmark", "icons-tune", *TRIAL, "--methods", "simplecil", *options)
    assert outcome.code == 2
    # Where the options could be checked only at the start, the recipes of the rows were already said.
    assert words in outcome.err.splitlines()[-1] and outcome.err.count("error:") == 1, outcome.err


def test_without_ray_a_sentence_says_what_to_install(
    cl_bench: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    outcome = cl_bench("run", "--methods", "simplecil", "--executor", "ray")
    assert outcome.code == 2
    assert "pip install 'cl-bench[ray]'" in outcome.err
