"""Precision, compilation, concurrent runs and `cl-bench bench`, through their options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from cl_bench.contract import registry
from cl_bench.experiment import Limits
from cl_bench.running import executors, plan, runner
from cl_bench.running.device import resolve_precision
from cl_bench.running.progress import RunProgress
from cl_bench.running.runner import Settings
from cl_bench.store import Store
from cl_bench.studies import bench
from tests.helpers import logs
from tests.helpers.command import TRIAL, Cli

CPU = torch.device("cpu")


def records(folder: Path) -> list[Any]:
    def damaged(error: Exception) -> None:
        raise error

    return list(Store(folder).records(damaged))


def test_precision_is_part_of_a_run_and_how_it_is_carried_out_is_not(cl_bench: Cli) -> None:
    run = ["run", "--methods", "simplecil", "--results", "r", *TRIAL]
    assert cl_bench(*run, "--precision", "bf16").code == 0
    assert cl_bench(*run, "--precision", "fp32", "--deterministic").code == 0
    by_precision = {record.experiment.precision: record for record in records(Path("r"))}
    assert set(by_precision) == {"fp32", "bf16"}
    assert by_precision["bf16"].key != by_precision["fp32"].key
    assert by_precision["bf16"].flops_per_image == by_precision["fp32"].flops_per_image
    assert by_precision["fp32"].environment["deterministic"] is True
    assert by_precision["bf16"].environment["compiled"] is False
    again = cl_bench(*run, "--precision", "fp32", "--no-compile")
    assert again.code == 0 and "0 run(s) computed" in again.err


def test_auto_is_what_this_machine_is_fast_at(cl_bench: Cli) -> None:
    assert cl_bench("run", "--methods", "simplecil", "--device", "cpu", *TRIAL).code == 0
    (record,) = records(Path("results/runs"))
    assert record.experiment.precision == resolve_precision("auto", CPU)


def test_an_unknown_precision_is_refused(cl_bench: Cli) -> None:
    outcome = cl_bench("run", "--methods", "simplecil", "--precision", "fp16")
    assert outcome.code == 2 and "fp16" in outcome.err and "bf16" in outcome.err


def test_bf16_predicts_what_fp32_predicts() -> None:
    """With nearest means, where no training amplifies the rounding."""
    predicted = []
    for precision in ("fp32", "bf16"):
        limits = Limits(tasks=2, train_per_class=5, test_per_class=10)
        (run,) = plan.plan([plan.RunSpec(method=registry.find("simplecil"), precision=precision, limits=limits)])
        predicted.append(runner.execute(run, CPU, RunProgress())[1]["predicted"])
    assert np.mean(predicted[0] == predicted[1]) > 0.98


# --- concurrent runs -------------------------------------------------------------------------------------------


@pytest.fixture
def broken(cl_bench: Cli) -> str:
    """A method file that fails in its first step."""
    assert cl_bench("new-method", "broken").code == 0
    path = Path("broken.py")
    source = path.read_text()
    marker = "        loss = self.cross_entropy"
    assert marker in source
    path.write_text(source.replace(marker, '        raise RuntimeError("no luck today")\n' + marker))
    return str(path)


def test_runs_side_by_side_give_the_same_and_failures_are_told_of(cl_bench: Cli, broken: str) -> None:
    """Concurrent and consecutive runs on one thread each give the same bits; one that fails affects no other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for jobs in ("1", "2"):
            command = ["run", "--method-file", broken, "--methods", "broken,sdlora,simplecil"]
            settings = ["--set", "sdlora.epochs=1", "--set", "sdlora.batch_size=8"]
            outcome = cl_bench(*command, *settings, *TRIAL, "--jobs", jobs, "--results", f"r{jobs}", "--log", "csv")
            assert outcome.code == 1 and "broken seed 0 failed: RuntimeError: no luck today" in outcome.err
            assert "task 2/2" in outcome.err and "2 run(s) computed" in outcome.err
    finally:
        torch.set_num_threads(threads)
    one, two = ({record.label: record for record in records(Path(f"r{jobs}"))} for jobs in "12")
    assert set(one) == set(two) == {"sdlora[batch_size=8,epochs=1]", "simplecil"}
    for label, record in one.items():
        assert record.correct == two[label].correct
        stored = [Store(Path(f"r{jobs}")).arrays(each) for jobs, each in (("1", record), ("2", two[label]))]
        for name, array in stored[0].items():
            np.testing.assert_array_equal(array, stored[1][name])
        logged = [logs.repeatable(logs.read(Path(f"r{jobs}/logs"))[record.key]) for jobs in "12"]
        assert len(logged[0]) > 1
        pd.testing.assert_frame_equal(*logged)


def test_the_same_command_takes_the_same_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of concurrent runs depends on cores and memory, and not on how many runs are stored already."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        runs = plan.plan([plan.RunSpec(method=registry.find("simplecil"), seed=seed) for seed in range(3)])
        found = executors.local_executor(runs, CPU, None)
        assert isinstance(found, executors.ConcurrentExecutor) and found.jobs == 2
        assert executors.local_executor(runs[:1], CPU, None) == executors.SequentialExecutor(CPU)
        assert executors.local_executor(runs, torch.device("cuda"), None) == executors.SequentialExecutor(
            torch.device("cuda")
        )
        large = plan.plan(
            plan.RunSpec(
                method=registry.find("finetune"),
                options={"batch_size": 100_000},
                seed=seed,
                backbone="vit_base_patch16_224",
                pretrained=False,
            )
            for seed in (0, 1)
        )
        assert executors.local_executor(large, CPU, None) == executors.SequentialExecutor(CPU)
    finally:
        torch.set_num_threads(threads)


def test_jobs_are_for_this_host(cl_bench: Cli) -> None:
    outcome = cl_bench("run", "--methods", "simplecil", "--jobs", "2", "--executor", "ray")
    assert outcome.code == 2 and "--jobs" in outcome.err


# --- bench -----------------------------------------------------------------------------------------------------


@pytest.fixture
def one_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time a single group; no test judges times."""
    monkeypatch.setattr(bench, "GROUPS", 1)


def test_bench_measures_what_bounds_a_machine(cl_bench: Cli, one_group: None) -> None:
    outcome = cl_bench("bench", "--methods", "sdlora,simplecil", "--steps", "1", "--task", "2", "--json")
    assert outcome.code == 0, outcome.err
    document = json.loads(outcome.out)
    trained, frozen = document["rows"]
    assert document["ceiling"] > 1e9 and document["device"].startswith("CPU")
    assert trained["label"] == "sdlora" and trained["batch"] > 0
    assert trained["rate"] == pytest.approx(trained["batch"] / trained["step"])
    assert trained["headroom"] == pytest.approx(trained["data"] / trained["rate"])
    # Necessary FLOPs per step, from the measured share, for a ViT of 5.4 million weights and 17 tokens.
    flops = trained["share"] * document["ceiling"] * trained["step"] / trained["batch"]
    assert 2 * 2 * 5.3e6 * 17 < flops < 2 * 2 * 5.3e6 * 17 * 1.3
    assert frozen["step"] is None and frozen["prediction"] > 0
    assert not Path("results").exists()


def test_bench_prints_a_table(cl_bench: Cli, one_group: None) -> None:
    outcome = cl_bench("bench", "--methods", "simplecil", "--steps", "1", "--precision", "fp32")
    assert outcome.code == 0, outcome.err
    assert "fp32" in outcome.out and "simplecil" in outcome.out and "predicted" in outcome.out


def test_bench_refuses_a_task_that_is_not_there(cl_bench: Cli) -> None:
    outcome = cl_bench("bench", "--methods", "sdlora", "--task", "11")
    assert outcome.code == 2 and "11" in outcome.err and "10 tasks" in outcome.err


def test_counts_are_the_same_twice_on_one_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    (run,) = plan.plan([plan.RunSpec(method=registry.find("l2p"), options={"epochs": 1}, precision="bf16")])
    first, second = (
        runner.execute(run, torch.device("cuda"), RunProgress(), settings=Settings(deterministic=True))[1]
        for _ in range(2)
    )
    np.testing.assert_array_equal(first["predicted"], second["predicted"])
