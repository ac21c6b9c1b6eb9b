"""Sweeps on Ray: on a real cluster of two nodes, one of which is killed, and on this host alone."""

from __future__ import annotations

import json
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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cl_bench import __version__
from cl_bench.running.runner import Settings
from cl_bench.running.transport import PackedRun
from cl_bench.streams import catalogue
from tests.helpers import ROOT, gate, trees
from tests.helpers.command import TRIAL, Outcome

pytest.importorskip("ray", reason="Ray is not installed: pip install 'cl-bench[ray]'")

from cl_bench.running import ray_worker  # noqa: E402

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
METHOD = """
from __future__ import annotations
import os
from dataclasses import dataclass
from pathlib import Path
from cl_bench.contract.method import Method
from cl_bench.contract.phase import Phase
from cl_bench.contract.task import Task
from cl_bench.methods.simplecil import SimpleCIL

@dataclass(frozen=True, kw_only=True, eq=False)
class Frail(SimpleCIL):
    action: str = "live"

    def phases(self, task: Task) -> list[Phase]:
        if self.action == "fail":
            raise RuntimeError("it had to come to this")
        if self.action == "die" and not Path("died").exists():
            Path("died").touch()
            os._exit(1)
        return super().phases(task)
"""


@dataclass
class Processes:
    """Processes that a test has started, each with a session of its own, in which all that it starts itself stays."""

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
                # A background job starts with SIGINT ignored, and Python leaves that as it is.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
        self.sessions.append(process.pid)
        return process

    def alive(self, sessions: Collection[int]) -> list[int]:
        """Process ids."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                state, _, _, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
            except OSError:
                continue
            if state != "Z" and int(session) in sessions:
                found.append(int(entry.name))
        return found

    def kill(self, sessions: Collection[int]) -> None:
        while pids := self.alive(sessions):
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
    """A folder with a path so short that sockets can lie below it."""
    folder = Path(tempfile.mkdtemp(prefix="cb-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def processes(short: Path) -> Iterator[Processes]:
    with ended(short) as found:
        yield found


@contextmanager
def ended(short: Path) -> Iterator[Processes]:
    """Processes to be; whatever happens, none is left at the end."""
    own = {
        "COLUMNS": "200",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_health_check_period_ms": "1000",
        # Seconds in which parts of Ray must start, however busy the machine is.
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
    with ended(short) as processes:
        head_log, second_log = short / "head.log", short / "second.log"
        head = ["--head", f"--port={address.rpartition(':')[2]}", "--include-dashboard=false"]
        first = processes.start(short, head_log, ray, "start", *head, f"--temp-dir={short / 'h'}", *node)
        wait(lambda: "runtime started" in head_log.read_text(), first, head_log)
        second = processes.start(short, second_log, ray, "start", f"--address={address}", *node)
        wait(lambda: "runtime started" in second_log.read_text(), second, second_log)
        yield Cluster(address, second.pid, processes)


def wait(ready: Callable[[], Any], process: subprocess.Popen[bytes], log: Path) -> None:
    gate.wait(ready, lambda: process.poll() is None, log)


def records(folder: Path) -> dict[str, tuple[dict[str, Any], dict[str, np.ndarray]]]:
    """By key: records and their arrays; there is one npz for each JSON, and nothing else."""
    store = folder / "results" / "runs"
    found = {}
    for path in store.glob("*.json"):
        (packed,) = store.glob(f"{path.stem}-*.npz")
        with np.load(packed) as arrays:
            record = json.loads(path.read_text())
            found[record["key"]] = record, dict(arrays)
    left = [path for path in store.rglob("*") if path.is_file()]
    assert len(left) == 2 * len(found), left
    return found


def test_every_run_ends_once_though_a_node_is_killed(
    cluster: Cluster, cl_bench: Callable[..., Outcome], tmp_path: Path
) -> None:
    away, log = tmp_path / "away", tmp_path / "log"
    gate.lay(away, 1)
    gate.lay(tmp_path)
    command = [sys.executable, "-m", "cl_bench", *SWEEP, "--executor", "ray", "--address", cluster.address]
    driver = cluster.processes.start(away, log, *command)
    checkpoints = away / "results" / "runs" / ".checkpoints"
    # Each node has room for one run, so with two checkpoints both are in the middle of one, where they wait.
    wait(lambda: len(list(checkpoints.glob("*.safetensors"))) == 2, driver, log)
    cluster.processes.kill([cluster.second])
    gate.open_gates(away)
    assert driver.wait() == 0, log.read_text()
    text = log.read_text()
    assert "it begins again (1 of 5 times)" in text and "6 run(s) computed" in text, text

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    outcome = cl_bench(*SWEEP)
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
    assert sorted(record["sessions"] for record, _ in there.values()) == [1, 1, 1, 1, 1, 2]


def test_results_come_back_through_ray_and_a_dead_worker_is_replaced(cluster: Cluster, tmp_path: Path) -> None:
    folder, log = tmp_path / "driver", tmp_path / "log"
    folder.mkdir()
    (folder / "frail.py").write_text(METHOD)
    command = [*RUN, *TRIAL, "--method-file", "frail.py", "--methods", "frail[action=live|fail|die]", "--collect"]
    ray = ["--executor", "ray", "--address", cluster.address]
    driver = cluster.processes.start(folder, log, sys.executable, "-m", "cl_bench", *command, *ray)
    assert driver.wait() == 1, log.read_text()
    text = log.read_text()
    assert "frail[action=fail] seed 0 failed: RuntimeError: it had to come to this" in text, text
    assert "frail[action=die] seed 0: its worker or host died; it begins again" in text, text
    assert sorted(record["label"] for record, _ in records(folder).values()) == [
        "frail[action=die]",
        "frail[action=live]",
    ]


def test_workers_read_data_below_the_root_and_keep_images_in_the_cache_of_the_driver(
    cluster: Cluster, tmp_path: Path
) -> None:
    """Both are relative paths, and nothing in the environment of the cluster names them."""
    for domain in catalogue.find("pacs").domains:
        for name in ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person"):
            for number in range(5):
                trees.save(tmp_path / "sets" / "pacs" / domain / name / f"{number}.jpg")
    log = tmp_path / "log"
    command = ["run", "--benchmark", "pacs", "--backbone", "vit_tiny_patch8_32.icons", "--device", "cpu"]
    data = ["--root", "sets", *TRIAL, "--methods", "simplecil"]
    ray = ["--executor", "ray", "--address", cluster.address]
    python = ["/usr/bin/env", "CL_BENCH_CACHE=decoded", sys.executable]
    driver = cluster.processes.start(tmp_path, log, *python, "-m", "cl_bench", *command, *data, *ray)
    assert driver.wait() == 0, log.read_text()
    ((record, _),) = records(tmp_path).values()
    assert record["experiment"]["benchmark"] == "pacs"
    assert list((tmp_path / "decoded").glob("pacs-train-*.images"))


def test_interrupted_on_this_host_alone_nothing_goes_on(processes: Processes, short: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    gate.lay(tmp_path, 1)
    command = [*RUN, *TRIAL, *gate.GATED, "gated[epochs=1,batch_size=8]", "--seeds", "0-3", "--executor", "ray"]
    before = set(short.glob("cl-bench-*"))
    driver = processes.start(tmp_path, log, sys.executable, "-m", "cl_bench", *command, "--checkpoint-every", "0")
    checkpoints = tmp_path / "results" / "runs" / ".checkpoints"
    wait(lambda: list(checkpoints.glob("*.safetensors")), driver, log)
    assert len(processes.alive([driver.pid])) > 4, "Ray's processes and the workers are in the session of the driver"
    os.killpg(driver.pid, signal.SIGINT)
    assert driver.wait() == 130, log.read_text()
    while processes.alive([driver.pid]):
        time.sleep(0.05)
    assert "interrupted; what was finished is stored" in log.read_text()
    assert set(short.glob("cl-bench-*")) == before
    assert not list(checkpoints.parent.glob("*.json")) and not list(checkpoints.parent.glob(".shared-*"))


def test_a_host_that_does_not_see_the_store_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_worker, "SHARED_FILE_TIMEOUT", 0)
    config = ray_worker.SweepConfig(
        version=__version__,
        folder=str(tmp_path),
        cache=None,
        store=str(tmp_path),
        marker=".shared-0",
        device="cpu",
        threads=1,
        settings=Settings(),
    )
    result = ray_worker.run_task(config, PackedRun(b"", None), ray_worker.Attempt(0, 0), None)
    assert result.code == 2 and "add --collect" in result.failure


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--executor", "cloud"], "--executor 'cloud' is unknown; expected here or ray"),
        (["--address", "auto"], "--address is for --executor ray"),
        (["--collect"], "--collect is for --executor ray"),
        (["--executor", "ray", "--address", "there"], "--address 'there' is none; expected auto or HOST:PORT"),
        (["--executor", "ray", "--gpus-per-run", "2"], "expected 0 to 1"),
        (["--executor", "ray", "--device", "cuda:1"], "--device 'cuda:1' does not go with --executor ray"),
        (["--executor", "ray", "--device", "cpu", "--gpus-per-run", "0.5"], "contradict each other"),
        (["--executor", "ray", "--address", "127.0.0.1:1"], "nothing answers there"),
    ],
)
def test_wrong_options_end_in_a_sentence(options: list[str], words: str, cl_bench: Callable[..., Outcome]) -> None:
    outcome = cl_bench("run", "--benchmark", "icons-tune", *TRIAL, "--methods", "simplecil", *options)
    assert outcome.code == 2
    assert words in outcome.err and outcome.err.count("\n") == 1, outcome.err


def test_without_ray_a_sentence_says_what_to_install(
    cl_bench: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    outcome = cl_bench("run", "--methods", "simplecil", "--executor", "ray")
    assert outcome.code == 2
    assert "pip install 'cl-bench[ray]'" in outcome.err
