"""Whether a run is compiled if the user leaves it open: costs and savings, graphs of earlier runs, checkpoints."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from cl_bench.contract import registry
from cl_bench.experiment import Environment, Limits
from cl_bench.models.vit import Execution
from cl_bench.running import compile_choice, plan
from cl_bench.running.compile_choice import Work, choose, of_run, work_of
from cl_bench.running.device import environment_of
from cl_bench.running.progress_bars import RunBars, run_bars
from cl_bench.running.runner import flops_of, strategy_of, stream_of
from cl_bench.training import checkpoint as files
from cl_bench.training.checkpoint import Checkpoint, Facts

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
TASKS, PER_CLASS = 2, 3

SMALL = Work(blocks=12, steps=20, step_tflop=0.3, views=20, batches=4, batch_tflop=0.6)
PAPER = Work(blocks=12, steps=16000, step_tflop=4.5, views=16000, batches=400, batch_tflop=9.0)


def planned(method: str = "linear", seed: int = 0, precision: Any = "fp32", **options: Any) -> plan.PlannedRun:
    options = {"epochs": 2, "batch_size": 4, **options} if method == "linear" else options
    limits = Limits(tasks=TASKS, train_per_class=PER_CLASS, test_per_class=2)
    spec = plan.RunSpec(method=registry.find(method), options=options, benchmark="icons-tune", limits=limits)
    (run,) = plan.plan([replace(spec, seed=seed, precision=precision)])
    return run


@pytest.fixture(scope="module")
def environment() -> Environment:
    return environment_of(CPU)


def test_a_run_is_compiled_if_that_saves_more_than_it_costs() -> None:
    assert choose(PAPER, cached=False).compiled and choose(PAPER, cached=True).compiled
    small = choose(SMALL, cached=False)
    assert not small.compiled and not choose(SMALL, cached=True).compiled
    assert f"{SMALL.cost(False):.0f} s" in small.why and "--compile" in small.why
    between = [n for n in range(0, 16000, 40) if choose(replace(PAPER, steps=n, views=n), cached=True).compiled]
    fresh = [n for n in between if choose(replace(PAPER, steps=n, views=n), cached=False).compiled]
    assert 0 < len(fresh) < len(between), "graphs of an earlier run lower the number of steps that pay"
    assert fresh == between[-len(fresh) :], "and more steps pay more"


def test_only_what_a_run_does_is_paid_and_saved() -> None:
    prototypes = replace(PAPER, steps=0, views=0)
    assert 0 < prototypes.cost(False) < PAPER.cost(False)
    assert 0 < prototypes.saved() < PAPER.saved()
    assert replace(prototypes, batches=0).cost(False) == replace(prototypes, batches=0).saved() == 0
    assert replace(PAPER, blocks=24).cost(True) > PAPER.cost(True)
    assert replace(PAPER, step_tflop=9.0).saved() > PAPER.saved()


def test_the_work_is_that_of_the_run() -> None:
    run = planned()
    stream = stream_of(run)
    work = work_of(run, stream)
    steps = 2 * sum(math.ceil(len(experience.dataset) / 4) for experience in stream.train)
    assert (work.steps, work.views, work.batches) == (steps, steps, TASKS)
    counted = flops_of(strategy_of(run, stream, CPU, Execution()), stream) / 1e12
    # Biases count as weights in the one, the patch embedding and the head in the other.
    assert work.step_tflop / 4 == pytest.approx(counted, rel=0.05)
    assert work.batch_tflop == pytest.approx(64 * work.step_tflop)
    without = work_of(planned("simplecil"), stream)
    assert (without.steps, without.views, without.batches) == (0, 0, 2 * TASKS)


def test_graphs_are_expected_where_a_run_like_this_one_was_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: Environment
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))

    def cached(run: plan.PlannedRun) -> bool:
        return compile_choice.graphs_cached(run, environment)

    assert not cached(planned())
    compile_choice.remember_graphs(planned(), environment)
    assert cached(planned()) and cached(planned(seed=1)) and cached(planned(lr=0.5, epochs=1))
    for other in (planned(batch_size=8), planned(precision="bf16"), planned("simplecil")):
        assert not cached(other)
    assert not compile_choice.graphs_cached(planned(), environment | {"torch": "another"})
    shutil.rmtree(tmp_path)
    assert not cached(planned()), "the note goes with torch's cache"
    (tmp_path / "file").touch()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "file" / "cache"))
    compile_choice.remember_graphs(planned(), environment)
    assert not cached(planned()), "a cache that cannot be written stops no run"


@pytest.mark.parametrize("compiled", [True, False])
def test_a_run_resumes_as_it_began(compiled: bool, tmp_path: Path, environment: Environment) -> None:
    run = planned()
    path = tmp_path / "checkpoint"
    files.write(path, Checkpoint(Facts(key=run.experiment.key, environment={"compiled": compiled})))
    choice = of_run(run, stream_of(run), environment, path)
    assert choice.compiled is compiled and "checkpoint" in choice.why
    path.write_bytes(b"damaged")
    assert of_run(run, stream_of(run), environment, path) == of_run(run, stream_of(run), environment, None)


def test_a_choice_is_said_once_in_a_sweep() -> None:
    lines: list[str] = []
    view = RunBars(run_bars(Console(file=None)), 2, lines.append, lines.append)
    for each in (view.for_concurrent_run(), view.for_concurrent_run()):
        each.note("sdlora: compiled")
    assert lines == ["sdlora: compiled"]
