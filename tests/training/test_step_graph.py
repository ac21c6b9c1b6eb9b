"""Training steps from CUDA graphs give the numbers of computed steps, and are left out where they could not.

Without a GPU, a stand-in takes the place of the graph: it computes a step anew from copies of its inputs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from avalanche.core import SupervisedPlugin
from torch import Tensor

from cl_bench.contract.phase import Phase, StepBatch
from cl_bench.contract.task import Task
from cl_bench.models.vit import Execution
from cl_bench.training import step_graph
from cl_bench.training.step_graph import Computed, StepGraph
from cl_bench.training.strategy import ContinualStrategy
from tests.helpers.phases import method
from tests.helpers.rows import small
from tests.helpers.tiny import CLASSES, TASKS, cut, tiny_vit
from tests.helpers.training import same, snapshot, train

pytestmark = pytest.mark.usefixtures("one_thread")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ON, OFF = Execution(graphs=True), Execution()
READS = "the host reads a number from the device in every step"


class StandIn(step_graph.Captured):
    """Replays by computing again, from inputs at fixed places, with the results at fixed places."""

    @staticmethod
    def supports(device: torch.device) -> bool:
        return True

    @staticmethod
    @contextmanager
    def waits() -> Iterator[list[str]]:
        yield []

    def _captured(self, compute: Callable[[], Computed]) -> tuple[Computed, Callable[[], object]]:
        results = compute()

        def again() -> None:
            for place, value in zip(tensors(results), tensors(compute()), strict=True):
                place.copy_(value)

        return results, again


def tensors(computed: Computed) -> list[Tensor]:
    found = (*computed.outputs, computed.loss, computed.total, *computed.gradients)
    return [tensor for tensor in found if tensor is not None]


@pytest.fixture(autouse=True)
def captured(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Number of graphs captured since the test began."""
    if DEVICE.type != "cuda":
        monkeypatch.setattr(step_graph, "Captured", StandIn)
    before = StepGraph.captures
    return lambda: StepGraph.captures - before


class Watched(ContinualStrategy):
    """Keeps the graph of each phase."""

    def __init__(self, *, plugins: Any, execution: Execution) -> None:
        self.step_graphs: list[StepGraph] = []
        super().__init__(
            plugins=plugins,
            backbone=tiny_vit(),
            num_classes=CLASSES,
            num_tasks=TASKS,
            execution=execution,
            device=DEVICE,
        )

    def _before_training_epoch(self, **kwargs: Any) -> None:
        assert self.phase_run is not None
        if self.phase_run.graph not in self.step_graphs:
            self.step_graphs.append(self.phase_run.graph)
        super()._before_training_epoch(**kwargs)

    @property
    def refusals(self) -> set[str]:
        return {graph.refusal for graph in self.step_graphs}


def learned(*plugins: Any, execution: Execution = ON, stages: int = 1) -> Watched:
    strategy = Watched(plugins=plugins, execution=execution)
    train(strategy, cut(), stages=stages)
    return strategy


def equal(one: Watched, other: Watched) -> bool:
    """Whether two runs have the same bits: of the model and of the traced losses."""
    return same(snapshot(one.model), snapshot(other.model)) and one.traces == other.traces


# --- the same numbers --------------------------------------------------------------------------------------------


PAPER = "sdlora[norm=frobenius,normalise_current=true]"


@pytest.mark.parametrize("row", ["sdlora", PAPER, "coda", "l2p", "inflora", "olora", "finetune", "slca", "replay"])
def test_replayed_steps_give_the_bits_of_computed_ones(row: str, captured: Callable[[], int]) -> None:
    """In three tasks, whose last batches are padded and so computed; one graph is captured for each phase."""
    settings = {"epochs": 4, "batch_size": 8, "clip_norm": 1.0}
    on, off = (learned(small(row, **settings), execution=execution, stages=3) for execution in (ON, OFF))
    assert equal(on, off)
    assert on.refusals == {""} and captured() == len(on.step_graphs) >= 3
    # Of 4 epochs of 2 whole batches and a padded one, the first step may compile, the second is observed, and two are
    # compared.
    assert min(graph.replays for graph in on.step_graphs) == 4


def test_a_learning_rate_changes_from_epoch_to_epoch_while_steps_are_replayed() -> None:
    plugin = small("sdlora", epochs=4, batch_size=8, schedule="cosine", optimizer="adam")
    constant = small("sdlora", epochs=4, batch_size=8, optimizer="adam")
    on, off, other = learned(plugin), learned(plugin, execution=OFF), learned(constant)
    assert on.refusals == {""} and equal(on, off) and not equal(on, other)


def test_a_method_learns_also_from_what_a_plugin_does_between_steps() -> None:
    """A plugin that only looks after each step sees the logits of that step, and may keep them."""

    class Keeps(SupervisedPlugin):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.logits: list[Tensor] = []

        def after_training_iteration(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
            self.logits.append(strategy.mb_output.detach())

    kept = [Keeps(), Keeps()]
    settings = {"epochs": 4, "batch_size": 8}
    on, off = (
        learned(small("sdlora", **settings), plugin, execution=e) for plugin, e in zip(kept, (ON, OFF), strict=True)
    )
    assert on.refusals == {""} and equal(on, off)
    assert all(torch.equal(a, b) for a, b in zip(kept[0].logits, kept[1].logits, strict=True))


def test_a_plugin_that_keeps_the_losses_breaks_nothing(captured: Callable[[], int]) -> None:
    """Each keeps the autograd graph of its step alive, beside which no step can be captured; the next run is fine."""

    class KeepsLosses(SupervisedPlugin):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.losses: list[Tensor] = []

        def after_training_iteration(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
            self.losses.append(strategy.loss)

    settings = {"epochs": 4, "batch_size": 8}
    kept = KeepsLosses()
    on, off = (learned(small("sdlora", **settings), *plugins, execution=e) for plugins, e in (([kept], ON), ([], OFF)))
    assert equal(on, off)
    before = captured()
    assert learned(small("sdlora", **settings)).refusals == {""} and captured() == before + 1


# --- what is not replayed ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("hook", ["before_training_iteration", "before_forward", "before_backward", "after_backward"])
def test_a_plugin_that_may_touch_a_step_is_served_by_computed_steps(hook: str, captured: Callable[[], int]) -> None:
    """Its hooks find what Avalanche promises: here it scales the loss, the images or the gradients."""
    calls = []

    def touch(self: Any, strategy: Any, *args: Any, **kwargs: Any) -> None:
        calls.append(hook)

    plugin = type("Touches", (SupervisedPlugin,), {hook: touch})()
    strategy = learned(small("sdlora", epochs=2, batch_size=8), plugin)
    assert strategy.refusals == {f"Touches defines {hook}"} and not captured() and len(calls) == 6


def test_graphs_can_be_switched_off(captured: Callable[[], int]) -> None:
    strategy = learned(small("sdlora", epochs=2, batch_size=8), execution=OFF)
    assert strategy.refusals == {"they are switched off"} and not captured()


def trains(loss: Callable[[Any, Task], Callable[[Tensor, Tensor], Tensor]], **more: Any) -> Any:
    """A method that trains its head for 4 epochs of 2 whole batches and a padded one, by this loss."""

    def phases(self: Any, task: Task) -> list[Phase]:
        trained = [{"params": task.model.head.parameters()}]
        return [self.phase(trained, loss(self, task), epochs=4, batch_size=8, **more)]

    return method(phases=phases)


def test_a_loss_with_a_number_of_its_own_is_computed(captured: Callable[[], int]) -> None:
    """Here a number grows from call to call, which a graph would not see."""

    def growing(self: Any, task: Task) -> Callable[[Tensor, Tensor], Tensor]:
        count, cross_entropy = itertools.count(1), self.cross_entropy(task)
        return lambda logits, labels: next(count) * cross_entropy(logits, labels)

    kind = trains(growing)
    strategy = learned(kind())
    (graph,) = strategy.step_graphs
    assert "other numbers" in graph.refusal and not graph.replays


def test_a_phase_with_steps_of_its_own_is_computed() -> None:
    def phases(self: Any, task: Task) -> list[Phase]:
        cross_entropy = self.cross_entropy(task)

        def step(batch: StepBatch) -> Tensor:
            loss = cross_entropy(task.model(batch.inputs), batch.labels).mean()
            batch.update(loss)
            return loss

        return [self.phase([{"params": task.model.head.parameters()}], step=step, epochs=2, batch_size=8)]

    assert learned(method(phases=phases)()).refusals == {"the phase takes steps of its own"}


def test_a_tensor_that_is_replaced_between_steps_is_seen() -> None:
    """`after_step` replaces a buffer of the loss: the replayed graph would go on with the old one."""

    def results(execution: Execution) -> Watched:
        def phases(self: Any, task: Task) -> list[Phase]:
            model, cross_entropy = task.model, self.cross_entropy(task)

            def after_step(step: int, steps: int) -> None:
                model.decided = torch.full_like(model.decided, float(step > 4))

            def loss(logits: Tensor, labels: Tensor) -> Tensor:
                return cross_entropy(logits, labels) * (1 + model.decided)

            trained = [{"params": model.head.parameters()}]
            return [self.phase(trained, loss, epochs=4, batch_size=8, after_step=after_step)]

        return learned(method(phases=phases)(), execution=execution)

    on, off = results(ON), results(OFF)
    assert on.refusals == {"'decided' was replaced by another tensor; change it in place"} and equal(on, off)


@pytest.mark.skipif(DEVICE.type != "cuda", reason="only a GPU makes the host wait")
def test_a_loss_that_reads_a_number_from_the_device_is_computed(captured: Callable[[], int]) -> None:
    def reading(self: Any, task: Task) -> Callable[[Tensor, Tensor], Tensor]:
        cross_entropy = self.cross_entropy(task)
        return lambda logits, labels: cross_entropy(logits, labels) * float(logits.detach().abs().max() > 0)

    assert learned(trains(reading)()).refusals == {READS}
    assert not captured()
