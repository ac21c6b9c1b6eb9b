"""What a run logs: the numbers of its record, each once, also if it was killed in between; and what goes wrong."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
from importlib.util import find_spec
from multiprocessing.process import BaseProcess
from pathlib import Path

import pandas as pd
import pytest

from cl_bench.running import trackers
from tests.helpers import SOAK, gate, logs, processes
from tests.helpers.command import TRIAL, Cli, assert_refused, stored

LOGS = Path("results/runs/logs")
TRACKERS = ["csv", "tensorboard", "wandb", *(["mlflow"] if SOAK and find_spec("mlflow") else [])]
RUN = ["run", *TRIAL, "--device", "cpu", "--jobs", "1", "--log", ",".join(TRACKERS), *gate.GATED]
METHOD = "gated[batch_size=8,epochs=2]"
"""Eight steps in each of two tasks."""

pytestmark = pytest.mark.usefixtures("one_thread")


def start(folder: Path) -> BaseProcess:
    """Start the run; nothing of it leaves the folder."""
    environment = {name: str(folder / "wandb") for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR")}
    return processes.start(folder, *RUN, METHOD, environment={**environment, "WANDB_MODE": "offline"})


def csv_of(folder: Path) -> pd.DataFrame:
    (logged,) = logs.read(folder / LOGS).values()
    return logged


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was not interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    gate.lay(folder)
    process = start(folder)
    process.join()
    assert process.exitcode == 0, (folder / "log").read_text()
    return folder


def test_the_log_has_the_numbers_of_the_record(whole: Path) -> None:
    (record,) = stored(whole / "results/runs")
    logged = csv_of(whole)
    (about,) = (whole / LOGS / "csv").glob("*.json")
    facts = json.loads(about.read_text())
    assert facts["key"] == record["key"] and facts["label"] == record["label"] == METHOD
    assert facts["hyperparameters"]["epochs"] == 2 and facts["environment"] == record["environment"]

    assert list(logged.index) == list(range(1, len(logged) + 1))
    epochs = logged["epoch_loss/phase0"].dropna()
    traced = record["traces"]["loss"]
    assert list(epochs) == [row["loss"] for row in traced] and len(epochs) == 4
    assert list(logged["epoch"][epochs.index]) == [row["epoch"] for row in traced]
    assert list(logged["task"][epochs.index]) == [row["stage"] for row in traced]
    steps = logged["loss/phase0"].dropna()
    assert len(steps) == 2 * sum(math.ceil(samples / 2 / 8) for samples in record["train_samples"])
    assert (logged["lr/phase0"].dropna() > 0).all() and len(logged["lr/phase0"].dropna()) == len(steps)

    stages = logged[logged["test/acc"].notna()]
    accuracy = [
        [h / n for h, n in zip(row, record["total"], strict=True) if h is not None] for row in record["correct"]
    ]
    assert list(stages["test/acc_task_0"]) == [row[0] for row in accuracy]
    assert stages["test/acc_task_1"].iloc[1] == accuracy[1][1] and math.isnan(stages["test/acc_task_1"].iloc[0])
    assert stages["test/acc"].iloc[1] == pytest.approx(sum(h for h in record["correct"][1]) / sum(record["total"]))
    assert stages["test/forgetting"].iloc[1] == pytest.approx(accuracy[0][0] - accuracy[1][0])
    assert list(stages["time/train_seconds"]) == record["train_seconds"]
    assert list(stages["model/trainable"]) == record["trainable"]
    assert (stages["memory/peak_bytes"] > 10**6).all() and logged["time/seconds"].is_monotonic_increasing


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_every_tracker_has_the_same_rows(whole: Path, resumed: Path, name: str) -> None:
    """Also after a resumed run: what was logged twice is found when the logs are read."""
    if name not in TRACKERS:
        pytest.skip("MLflow takes ten seconds, or is not installed")
    for folder in (whole, resumed):
        read = {"tensorboard": logs.tensorboard, "wandb": logs.wandb, "mlflow": logs.mlflow}
        logged, expected = read[name](folder / LOGS / name), csv_of(folder)
        # TensorBoard has single precision.
        pd.testing.assert_frame_equal(
            logs.repeatable(logged), logs.repeatable(expected), check_dtype=False, check_like=True, check_names=False
        )
        # MLflow keeps the rows of the killed process, whose time the resumed one takes again.
        assert name == "mlflow" or logged["time/seconds"].is_monotonic_increasing


def killed_and_resumed(folder: Path) -> None:
    """Kill a run in the middle of its second task, whose first steps it has logged, and let it resume."""
    gate.lay(folder, "1.4")
    process = start(folder)
    gate.wait(lambda: gate.reached(folder, "1.4"), process.is_alive, folder / "log")
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    gate.open_gates(folder)
    again = start(folder)
    again.join()
    assert again.exitcode == 0 and "resumes after task 1/2" in (folder / "log").read_text()


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was killed and resumed."""
    folder = tmp_path_factory.mktemp("resumed")
    killed_and_resumed(folder)
    return folder


def test_a_resumed_run_logs_nothing_twice_and_leaves_nothing_out(whole: Path, resumed: Path) -> None:
    pd.testing.assert_frame_equal(logs.repeatable(csv_of(resumed)), logs.repeatable(csv_of(whole)))
    assert csv_of(resumed)["time/seconds"].is_monotonic_increasing


def test_a_repeated_run_starts_a_new_log(cl_bench: Cli) -> None:
    run = ["run", "--methods", "linear[epochs=1]", *TRIAL, "--log", "csv", "--log-dir", "mine"]
    first = cl_bench(*run)
    assert first.code == 0 and first.err.endswith(f"; logs: {Path('mine').absolute()}\n")
    (path,) = Path("mine/csv").glob("*.csv")
    rows = len(path.read_text().splitlines())
    assert cl_bench(*run, "--force").code == 0
    assert len(path.read_text().splitlines()) == rows and not LOGS.exists()
    again = cl_bench(*run)
    assert again.code == 0 and "logs:" not in again.err, "a stored run is not repeated, so nothing is logged"


SABOTAGE = """
from dataclasses import dataclass
from pathlib import Path

from cl_bench.contract.task import Task
from cl_bench.data.samples import TaskSamples
from cl_bench.methods.simplecil import SimpleCIL


@dataclass(frozen=True, kw_only=True, eq=False)
class Saboteur(SimpleCIL):
    \"\"\"The nearest class mean; before the second task, the file of the log becomes a folder.\"\"\"

    def before_task(self, task: Task, images: TaskSamples) -> None:
        super().before_task(task, images)
        if task.index == 1:
            (path,) = Path("logs/csv").glob("*.csv")
            path.unlink()
            path.mkdir()
"""


def test_a_tracker_that_fails_does_not_end_the_run(cl_bench: Cli) -> None:
    Path("saboteur.py").write_text(SABOTAGE)
    run = ["run", "--method-file", "saboteur.py", "--methods", "saboteur", *TRIAL]
    outcome = cl_bench(*run, "--log", "csv,tensorboard", "--log-dir", "logs")
    assert outcome.code == 0 and len(stored()) == 1
    warning = "warning: saboteur seed 0: logging to csv has failed (Is a directory); the run goes on without"
    assert outcome.err.count("logging to") == outcome.err.count(warning) == 1
    assert len(logs.tensorboard(Path("logs/tensorboard"))["test/acc"].dropna()) == 2


@pytest.mark.parametrize("package", ["tensorboard", "wandb", "mlflow"])
def test_a_missing_package_is_named_before_any_training(
    cl_bench: Cli, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    refused = cl_bench("run", "--methods", "simplecil", *TRIAL, "--log", f"csv,{package}")
    assert_refused(refused, f"{package}, which is not installed; pip install 'cl-bench[{package}]'")
    assert not LOGS.exists()


def test_wandb_without_a_login_is_refused_unless_it_is_offline(cl_bench: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_CONFIG_DIR", "config")
    Path("netrc").touch(0o600)
    monkeypatch.setenv("NETRC", "netrc")
    wanted = ["run", "--methods", "simplecil", *TRIAL, "--log", "wandb"]
    assert_refused(cl_bench(*wanted), "--log wandb finds no login for https://", "WANDB_MODE=offline")
    assert not stored()
    folder = Path("logs").absolute()
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert trackers.prepare(["wandb"], folder).settings["wandb"]["mode"] == "offline"
    monkeypatch.delenv("WANDB_MODE")
    Path("netrc").write_text("machine wandb.example login user password secret")
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example")
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    settings = trackers.prepare(["wandb"], folder).settings["wandb"]
    assert (settings["mode"], settings["project"], settings["base_url"]) == ("online", "mine", "https://wandb.example")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--log", "cvs"], "unknown tracker 'cvs'; known: csv, mlflow, tensorboard, wandb"),
        (["--log-dir", "x"], "--log-dir is for --log; name a tracker, e.g. --log csv"),
        (["--log", "csv", "--log-dir", "file"], "cannot be written"),
        (
            ["--log", "csv", "--executor", "ray", "--collect"],
            "--log with --collect needs --log-dir, a folder on the disk of each host",
        ),
    ],
)
def test_what_cannot_be_logged_is_refused_before_any_training(cl_bench: Cli, options: list[str], sentence: str) -> None:
    Path("file").write_text("")
    assert_refused(cl_bench("run", "--methods", "simplecil", *TRIAL, *options), sentence)
    assert not list(Path().rglob("*.json"))
