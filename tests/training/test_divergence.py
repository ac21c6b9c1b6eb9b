"""Numbers that are not finite end a run in a sentence that says where; no result of it is stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cl_bench.errors import Diverged
from tests.helpers.command import RUNS, TRIAL, Cli, stored
from tests.helpers.phases import always, features, learn, method
from tests.helpers.rows import small
from tests.helpers.tiny import cut
from tests.helpers.training import Spy, strategy_of, train

pytestmark = pytest.mark.usefixtures("one_thread")


def losing(self: Any, task: Any) -> list[Any]:
    """The loss is NaN in the third of four steps of the second epoch."""
    steps = iter(range(8))

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        value = nn.functional.cross_entropy(logits, labels)
        return value * float("nan") if next(steps) == 6 else value

    parameters = [{"params": list(task.model.head.parameters())}]
    return [self.phase(parameters, loss, task.model.head, batches=always(features(4)), epochs=2)]


def stepping(self: Any, task: Any) -> list[Any]:
    """The phase's own step, with a finite loss and an infinite update."""

    def step(batch: Any) -> Tensor:
        loss = (task.model.x**2).sum()

        def spoil() -> None:
            task.model.x.grad.fill_(float("inf"))

        batch.update(loss, adjust=spoil)
        return loss

    return [self.phase([{"params": [task.model.x]}], step=step, epochs=1)]


def closed(self: Any, task: Any, samples: Any) -> None:
    """A NaN that no gradient causes: the class mean of no images."""
    task.model.head.weight[task.classes[0]] = torch.zeros(32) / 0


@pytest.mark.parametrize(
    ("functions", "sentence"),
    [
        ({"phases": losing}, "phase 0 of Mine, task 0, epoch 1: the loss is nan from step 3 of 4 on; lower the"),
        ({"phases": stepping}, "phase 0 of Mine, task 0, epoch 0: x is not finite any more"),
        ({"after_task": closed}, "Mine, evaluation after task 0: the logits of 48 of 48 test images are not finite"),
    ],
    ids=["loss", "parameter", "logits"],
)
def test_the_sentence_says_where(functions: dict[str, Any], sentence: str) -> None:
    with pytest.raises(Diverged, match=f"^{sentence}"):
        learn(method(**functions)()).count_matrix(cut().test)


def test_the_steps_of_an_epoch_that_goes_on_are_counted_from_its_start() -> None:
    strategy = strategy_of(method(phases=losing)())

    def forget(strategy: Any) -> None:
        # As in a process that began the epoch with its second step.
        if strategy._run.done == 4:
            strategy._losses.clear()

    strategy.plugins.append(Spy(after_training_iteration=forget))
    with pytest.raises(Diverged, match="from step 3 of 4 on"):
        train(strategy, cut(), stages=1)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_rate_beyond_all_numbers(optimizer: str) -> None:
    """Adam's step does not even fit into a float."""
    with pytest.raises(Diverged, match=r"SDLoRA, .*task 0.*lower the learning rate"):
        train(strategy_of(small("sdlora", lr=1e38, optimizer=optimizer)), cut(), stages=1).count_matrix(cut().test)


def test_alignment_after_the_task_is_looked_at_too() -> None:
    with pytest.raises(Diverged, match="a phase after the task of LinearProbe, task 1, epoch 0"):
        train(strategy_of(small("linear[align=true,align_epochs=2]", align_lr=1e38)), cut(), stages=2)


def test_an_evaluation_of_avalanche_counts_nothing_either() -> None:
    strategy = learn(method(after_task=closed)())
    with pytest.raises(Diverged, match="Mine: the logits of 16 test images are not finite"):
        strategy.eval(cut().test)


def test_a_method_may_exclude_classes() -> None:
    """Logits of minus infinity are valid for some classes, but not for all."""

    def excluding(self: Any, task: Any, samples: Any) -> None:
        # No label of the first task but one.
        task.model.head.bias[list(task.classes[1:])] = float("-inf")

    strategy = learn(method(after_task=excluding)())
    counts = strategy.count_matrix(cut().test)
    assert set(counts.predicted[counts.task == 0].tolist()) == {0}
    with torch.no_grad():
        strategy.model.head.bias.fill_(float("-inf"))
    with pytest.raises(Diverged, match="not finite"):
        strategy.count_matrix(cut().test)


def test_other_runs_go_on_and_nothing_is_stored(cl_bench: Cli) -> None:
    rows = ("run", "--methods", "sdlora[lr=1e38,epochs=2],simplecil")
    done = cl_bench(*rows, "--benchmark", "icons-tune", "--jobs", "1", *TRIAL)
    assert done.code == 2 and "sdlora[epochs=2,lr=1e+38] seed 0 failed: phase 0 of SDLoRA, task 0, epoch" in done.err
    assert "sdlora" not in done.out and [record["label"] for record in stored()] == ["simplecil"]
    assert not list(Path(RUNS).rglob("*sdlora*"))


def test_a_candidate_of_a_search_that_diverges_has_failed_and_the_search_goes_on(cl_bench: Cli, tmp_path: Path) -> None:
    assert cl_bench("new-method", "fragile").code == 0
    source = tmp_path / "fragile.py"
    text = source.read_text().replace(
        "        loss = self.cross_entropy(",
        '        self = dataclasses.replace(self, lr=1e38) if self.schedule == "cosine" else self\n'
        "        loss = self.cross_entropy(",
    )
    source.write_text(text.replace("from dataclasses import", "import dataclasses\nfrom dataclasses import"))
    arguments = ("--methods", "fragile[epochs=1,batch_size=128]", "--method-file", "fragile.py", "--budget", "3")
    done = cl_bench("tune", *arguments, "--seeds", "100", "--validation", "0.05", "--out", "found.toml")
    assert done.code == 0, done.err
    assert "phase 0 of Fragile, task 0" in done.out and 'schedule = "constant"' in Path("found.toml").read_text()


def test_what_bench_timed_is_named_if_it_is_no_training(cl_bench: Cli) -> None:
    done = cl_bench("bench", "--methods", "linear[lr=1e38],simplecil", "--steps", "1", "--device", "cpu")
    assert done.code == 0, done.err
    assert "what was timed is no training" in " ".join(done.out.split()) and "simplecil" in done.out
