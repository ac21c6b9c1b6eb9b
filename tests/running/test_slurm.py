"""Sweeps on Slurm: on a real controller and node on loopback, and through submitit's processes of this host."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from cl_bench.options import ExecutionOptions, RunOptions
from tests.helpers import ROOT, frail, gate, processes, slurm
from tests.helpers.command import RUNS, TRIAL, Cli, assert_refused, results

pytest.importorskip("submitit", reason="submitit is not installed: pip install 'cl-bench[slurm]'")

from cl_bench.running.progress import RunProgress  # noqa: E402
from cl_bench.running.slurm_executor import SlurmExecutor  # noqa: E402
from cl_bench.running.sweep import Sweep  # noqa: E402

RUN = ["run", "--benchmark", "icons-tune", "--device", "cpu", *TRIAL]


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    if not slurm.is_installed():
        pytest.skip("Slurm is not installed, or its daemons cannot be started (root is needed): slurm-wlm, munge")
    with ExitStack() as stack:
        try:
            environment = stack.enter_context(slurm.cluster())
        except slurm.CannotStart as error:
            pytest.skip(f"Slurm does not start here: {error}")
        yield environment | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}


def ask(environment: dict[str, str], *command: str) -> list[str]:
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_a_preempted_job_resumes_and_a_dead_one_starts_again(cluster: dict[str, str], tmp_path: Path) -> None:
    gate.lay(tmp_path, 1)
    (tmp_path / "frail.py").write_text(frail.METHOD)
    driver = processes.start(
        tmp_path,
        *(*RUN, "--method-file", "frail.py", *gate.GATED, "gated[epochs=1,batch_size=8],frail[action=die|fail]"),
        *("--executor", "slurm", "--partition", "main", "--time", "0:30:00", "--slurm", "comment=a test"),
        environment=cluster,
    )
    log = tmp_path / "log"
    gate.wait(lambda: gate.reached(tmp_path, 1), driver.is_alive, log)
    (waiting,) = [job for job in ask(cluster, "squeue", "--noheader", "--array", "--format=%i") if job.endswith("_0")]
    assert ask(cluster, "squeue", "--noheader", "--format=%k", "--jobs", waiting) == ["a", "test"]
    gate.close(tmp_path, 1)
    ask(cluster, "scontrol", "requeue", waiting)
    gate.wait(lambda: gate.reached(tmp_path, 1), driver.is_alive, log)
    gate.open_gates(tmp_path)
    driver.join()
    text = log.read_text()
    assert driver.exitcode == 1, text
    assert "frail[action=fail] seed 0 failed: RuntimeError: it had to come to this" in text, text
    assert "frail[action=die] seed 0: its job ended without a result (failed); it starts again (retry 1 of 5)" in text
    assert "gated" in text and "task 2/2" in text, text
    found = {record["experiment"]["method"]: record for record, _ in results(tmp_path).values()}
    assert found.keys() == {"gated", "frail"}
    assert found["gated"]["sessions"] == 2, "the job that was queued again resumed from the checkpoint"
    assert list((tmp_path / RUNS / ".slurm").rglob("*_log.err")), "logs of a sweep with a failure stay"


def test_ctrl_c_cancels_all_jobs(cluster: dict[str, str], tmp_path: Path) -> None:
    gate.lay(tmp_path, 0)
    driver = processes.start(
        tmp_path, *RUN, *gate.GATED, "gated", "--seeds", "0-2", "--executor", "slurm", environment=cluster
    )
    gate.wait(lambda: gate.reached(tmp_path, 0), driver.is_alive, tmp_path / "log")
    assert driver.pid is not None
    os.kill(driver.pid, signal.SIGINT)
    driver.join()
    assert driver.exitcode == 130, (tmp_path / "log").read_text()
    gate.wait(lambda: not ask(cluster, "squeue", "--noheader"), lambda: True, tmp_path / "log")
    assert not list((tmp_path / RUNS).glob("*.json"))


def test_what_slurm_refuses_is_one_sentence(cluster: dict[str, str], tmp_path: Path) -> None:
    arguments = [*RUN, "--methods", "simplecil", "--executor", "slurm", "--partition", "nowhere"]
    driver = processes.start(tmp_path, *arguments, environment=cluster)
    driver.join()
    log = (tmp_path / "log").read_text()
    assert driver.exitcode == 2, log
    last = log.splitlines()[-1]
    assert "Slurm refuses the jobs" in log and "nowhere" in log and "--partition" in last, log


def test_processes_of_this_host_do_what_jobs_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cl_bench: Cli) -> None:
    """submitit's local executor, for hosts without Slurm; the records are those of runs in this process."""
    wanted = RunOptions.of(
        {
            "methods": "simplecil",
            "benchmark": "icons-tune",
            "limit_tasks": 2,
            "limit_train": 3,
            "limit_test": 2,
            "seeds": "0-1",
        }
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    stages: list[tuple[int, int]] = []

    class Progress(RunProgress):
        def stage(self, index: int, stages_: int, accuracy: float, seconds: float) -> None:
            stages.append((index, stages_))

    sweep = Sweep.of([wanted], ExecutionOptions.of({"device": "cpu", "results": "away"}))
    sweep = replace(sweep, remote=SlurmExecutor(device="cpu", cluster="local"))
    outcomes = sweep.carry_out(sweep.planned, Progress())
    assert [outcome.failure for outcome in outcomes] == ["", ""]
    assert sorted(stages) == [(0, 2), (0, 2), (1, 2), (1, 2)]
    assert not Path("away/.slurm").exists() and not list(Path("away").glob(".shared-*"))
    assert cl_bench(*RUN, "--methods", "simplecil", "--seeds", "0-1").code == 0
    here = {record["key"]: record["correct"] for record, _ in results(Path()).values()}
    assert here == {record.key: record.correct for record in sweep.records()}


@pytest.mark.parametrize(
    ("options", "fragments"),
    [
        (["--executor", "slurm", "--gpus-per-run", "0.5"], ["--gpus-per-run 0.5", "a whole GPU (1) or none (0)"]),
        (["--executor", "slurm", "--device", "cuda:1"], ["--device 'cuda:1'", "expected auto, cpu or cuda"]),
        (["--executor", "slurm", "--time", "tomorrow"], ["--time 'tomorrow'", "D-HH:MM:SS"]),
        (["--executor", "slurm", "--slurm", "account"], ["--slurm 'account'", "key=value"]),
        (["--executor", "slrum"], ["--executor 'slrum'", "expected here, ray or slurm"]),
        (["--partition", "main"], ["--partition is for --executor slurm"]),
        (["--executor", "ray", "--time", "60"], ["--time is for --executor slurm"]),
    ],
)
def test_impossible_options(options: list[str], fragments: list[str], cl_bench: Cli) -> None:
    assert_refused(cl_bench("run", "--methods", "simplecil", *options), *fragments)


def test_without_submitit_a_sentence_says_what_to_install(cl_bench: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert_refused(cl_bench("run", "--methods", "simplecil", "--executor", "slurm"), "pip install 'cl-bench[slurm]'")


def test_without_slurm_the_command_says_so(cl_bench: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert_refused(
        cl_bench("run", "--methods", "simplecil", "--executor", "slurm"), "there is no Slurm on this host", "'sbatch'"
    )


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("90", 90), ("1:30", 2), ("2:00:00", 120), ("1-0", 1440), ("1-12:00:00", 2160), ("1-00:30", 1470), ("0:01", 1)],
)
def test_times_are_read_as_slurm_reads_them(text: str, minutes: int) -> None:
    assert ExecutionOptions.of({"time": text}).time == minutes
