"""Forged checkpoints with a valid checksum, and checkpoints from another environment."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from cl_bench.contract import registry
from cl_bench.experiment import Limits, Session
from cl_bench.running import plan, runner
from cl_bench.running.progress import RunProgress
from cl_bench.running.runner import Settings
from cl_bench.store import Arrays, RunRecord, Store
from cl_bench.training import checkpoint as files
from cl_bench.training.checkpoint import Checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")


class Killed(BaseException):
    """Stands for the end of the process."""


class Watching(RunProgress):
    """Collects warnings, and ends the process at a step, or at the first warning, to save the time of the rest."""

    def __init__(self, steps: int = -1, at_warning: bool = False) -> None:
        self.steps, self.at_warning, self.warnings = steps, at_warning, list[str]()

    def advance(self, images: int) -> None:
        self.steps -= 1
        if self.steps == 0:
            raise Killed

    def warn(self, text: str) -> None:
        self.warnings.append(text)
        if self.at_warning:
            raise Killed


@cache
def planned() -> plan.PlannedRun:
    """Two tasks of three steps in each of two epochs."""
    options = {"epochs": 2, "batch_size": 4, "lr": 0.01}
    limits = Limits(tasks=2, train_per_class=3, test_per_class=2)
    (run,) = plan.plan(
        [plan.RunSpec(method=registry.find("linear"), options=options, benchmark="icons-tune", limits=limits)]
    )
    return run


def execute(path: Path | None, progress: RunProgress) -> tuple[RunRecord, Arrays]:
    return runner.execute(planned(), CPU, progress, path, Settings(checkpoint_every=0))


@pytest.fixture(scope="module")
def whole() -> RunRecord:
    return execute(None, RunProgress())[0]


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A checkpoint after the fifth step of the second task. The evaluation of the first is one more advance."""
    path = tmp_path_factory.mktemp("left") / "checkpoint"
    with pytest.raises(Killed):
        execute(path, Watching(6 + 1 + 5 + 1))
    return path.read_bytes()


@pytest.fixture
def path(tmp_path: Path, left: bytes) -> Path:
    path = tmp_path / "checkpoint"
    path.write_bytes(left)
    return path


def found(path: Path) -> Checkpoint:
    read = files.read(path, planned().experiment.key)
    assert read is not None
    return read


def same(one: RunRecord, other: RunRecord) -> bool:
    return (one.correct, one.correct_task_aware, one.traces) == (other.correct, other.correct_task_aware, other.traces)


def test_a_genuine_one_is_believed(path: Path, whole: RunRecord) -> None:
    facts = found(path).facts
    assert facts.position is not None and (facts.position.epoch, facts.position.step) == (1, 2)
    progress = Watching()
    record, _ = execute(path, progress)
    assert progress.warnings == [] and record.sessions == 2 and same(record, whole)
    (earlier,) = record.earlier_sessions
    assert earlier == Session(environment=record.environment, stages=1, phase=0, epoch=1) and record.mixed == {}


def at(name: str, value: Any) -> Callable[[Checkpoint], None]:
    return lambda forged: setattr(forged.facts.position, name, value)


def fact(name: str, value: Any) -> Callable[[Checkpoint], None]:
    return lambda forged: setattr(forged.facts, name, value)


def stage(name: str, value: Any) -> Callable[[Checkpoint], None]:
    return lambda forged: setattr(forged.facts.stages[0], name, value)


def tensor(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Checkpoint], None]:
    return lambda forged: forged.tensors.update({name: change(forged.tensors[name])})


def renamed(name: str, other: str) -> Callable[[Checkpoint], None]:
    return lambda forged: forged.tensors.update({other: forged.tensors.pop(name)})


def other_tasks(forged: Checkpoint) -> None:
    forged.facts.total += [8]
    forged.facts.stages[0].correct += [None]
    forged.facts.stages[0].correct_task_aware += [8]


def finished(forged: Checkpoint) -> None:
    forged.facts.stages *= 2
    for name in ("predicted", "predicted_task_aware"):
        forged.tensors[name] = forged.tensors[name].repeat(2, 1)


FORGED: dict[str, tuple[Callable[[Checkpoint], None], str]] = {
    "phase": (at("phase", 99), "phase 99 is beyond the 1 of LinearProbe"),
    "epoch": (at("epoch", 2), "step 2 of epoch 2 is beyond phase 0 of LinearProbe"),
    "step": (at("step", 4), "step 4 of epoch 1 is beyond phase 0 of LinearProbe, which has 2 epochs of 3 steps"),
    "negative step": (at("step", -1), "position.step: Input should be greater than or equal to 0"),
    "samples": (at("counted", 3), "3 samples are not those of 2 steps"),
    "seconds": (at("seconds", -1.0), "position.seconds"),
    "loss": (at("loss", float("nan")), "position.loss"),
    "sessions": (fact("sessions", -9), "sessions: Input should be greater than or equal to"),
    "other sessions": (fact("earlier_sessions", [Session(environment={}, stages=0)] * 2), "2 sessions are not the 0"),
    "seen": (fact("seen", [0, 1, 2]), "3 classes seen are not those of the tasks so far"),
    "trained": (fact("trained", ["backbone.none"]), "'backbone.none' is no parameter"),
    "trace": (fact("traces", {"loss": [{"loss": 10**400}]}), "traces.loss.0.loss"),
    "sizes": (fact("total", [8, 9]), "test sets of [8, 9] images, the stream has [8, 8]"),
    "tasks": (other_tasks, "test sets of [8, 8, 8] images"),
    "finished": (finished, "2 stages of 2 are done"),
    "hits": (stage("correct", [9, None]), "hits in task 1 after stage 1"),
    "hits of the future": (stage("correct", [1, 0]), "hits are not counted on the tasks that were learned"),
    "stage seconds": (stage("train_seconds", float("inf")), "stages.0.train_seconds"),
    "weights": (tensor("model.head.weight", lambda t: t.fill_(float("nan"))), "model.head.weight is not finite"),
    "shape": (tensor("model.head.weight", lambda t: t[:1]), "head.weight"),
    "momentum": (tensor("optimizer.0.momentum_buffer", lambda t: t[:1]), "state '0.momentum_buffer' is a tensor of"),
    "nan": (tensor("optimizer.0.momentum_buffer", lambda t: t * float("nan")), "momentum_buffer' is not finite"),
    "parameter": (renamed("optimizer.0.momentum_buffer", "optimizer.9.momentum_buffer"), "is of no parameter"),
    "predictions": (tensor("predicted", lambda t: (t + 1) % 3), "hits in task 1"),
    "labels": (tensor("label", lambda t: t.flip(0)), "its predictions do not fit the test images"),
    "images": (tensor("predicted", lambda t: t[:, :2]), "its predictions do not fit the test images"),
    "generator": (tensor("random.numpy.rest", lambda t: t + 10**9), "the state of numpy's generator is invalid"),
}


@pytest.mark.parametrize("forgery", FORGED)
def test_a_forged_one_is_named(path: Path, forgery: str) -> None:
    forge, reason = FORGED[forgery]
    forged = found(path)
    forge(forged)
    files.write(path, forged)
    progress = Watching(at_warning=True)
    with pytest.raises(Killed):
        execute(path, progress)
    (warning,) = progress.warnings
    assert warning.startswith(f"a checkpoint cannot be used, so the run starts from its beginning: {path}: ")
    assert reason in warning and "\n" not in warning


def test_the_run_starts_anew(path: Path, whole: RunRecord) -> None:
    """Even if the fault shows only after the model and the random generators have been restored."""
    forged = found(path)
    FORGED["generator"][0](forged)
    files.write(path, forged)
    record, _ = execute(path, Watching())
    assert record.sessions == 1 and record.earlier_sessions == [] and same(record, whole)


def test_numbers_that_are_not_finite_where_the_writer_had_none(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A method may have infinity in a buffer; the checkpoint names these buffers."""
    forged = found(path)
    forged.tensors["model.head.bias"][0] = float("inf")
    with monkeypatch.context() as patch:
        patch.setattr(files, "_infinite", lambda tensors: [])
        files.write(path, forged)
    with pytest.raises(files.UnusableCheckpoint, match="damaged, model.head.bias holds numbers that are not finite"):
        found(path)


def test_an_older_checkpoint_says_nothing_of_its_environment(path: Path, whole: RunRecord) -> None:
    older = found(path)
    older.facts = older.facts.model_copy(update={"environment": {}, "sessions": 3})
    files.write(path, older)
    progress = Watching()
    record, _ = execute(path, progress)
    assert progress.warnings == [] and same(record, whole)
    assert record.sessions == 4 and [s.processes for s in record.earlier_sessions] == [3] and record.mixed == {}


def test_another_environment_is_said_and_recorded(path: Path, whole: RunRecord, tmp_path: Path) -> None:
    """The record also shows which values of the environment differ, and in which sessions."""
    other = found(path)
    was = {**other.facts.environment, "threads": 7, "torch": "2.0"}
    earlier = [Session(environment=was, processes=2, stages=0, phase=0, epoch=0)]
    other.facts = other.facts.model_copy(update={"environment": was, "earlier_sessions": earlier, "sessions": 3})
    files.write(path, other)
    progress = Watching()
    record, arrays = execute(path, progress)
    (warning,) = progress.warnings
    assert warning == (
        "linear[batch_size=4,epochs=2,lr=0.01] seed 0 resumes in another environment than that of its checkpoint"
        f": torch {torch.__version__} (was 2.0), threads 1 (was 7)"
    )
    assert record.sessions == 4 and record.earlier_sessions == [
        Session(environment=was, processes=3, stages=1, phase=0, epoch=1)
    ]
    assert record.mixed == {"torch": ["2.0", torch.__version__], "threads": [7, 1]}
    Store(tmp_path / "runs").write(record, arrays)
    assert Store(tmp_path / "runs").find(record.experiment).mixed == record.mixed  # type: ignore[union-attr]
    assert same(record, whole)
