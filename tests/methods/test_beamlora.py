"""BeamLoRA: scores of ranks, which are pruned, what replaces them, and the row that is LoRA itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cl_bench.contract.phase import ReachableOptimizer
from cl_bench.contract.task import Task
from cl_bench.methods.beamlora import BeamLoRA, kept_share, pruned
from cl_bench.methods.seqlora import SeqLoRA
from tests.golden import train as take
from tests.helpers import SOAK
from tests.helpers.command import TRIAL, Cli, assert_refused
from tests.helpers.phases import carry_out
from tests.helpers.tiny import cut, tiny_vit
from tests.helpers.training import all_images, distance, same, strategy_of, train

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL: dict[str, Any] = {"rank": 4, "epochs": 2, "batch_size": 16, "lr": 0.01}
State = dict[str, Tensor]


def trained(share: float, **options: Any) -> tuple[list[State], list[list[int]], BeamLoRA, Task]:
    """States before and after each `after_step` of 8 steps, T = 4; the ranks of block 0's first projection by score.

    Gates start with scores of about 2.1, 1, 0.6 and 0.3.
    """
    method = BeamLoRA(**SMALL | {"operations": 2, "share": share, "pruning_end": 1e9, "scope": "module"} | options)
    model: Any = method.build(tiny_vit(), 4)
    model.grow(method.rank, torch.Generator().manual_seed(1))
    task = Task(0, (0, 1, 2, 3), (0, 1, 2, 3), 4, None, model, ("beams",))
    gate = model.bank.gate[0]
    with torch.no_grad():
        gate.copy_(torch.tensor([0.02, 0.06, 0.0, -0.04]).expand_as(gate))
    (phase,) = method.phases(task)
    made, after_step = phase.optimizer, phase.after_step
    assert isinstance(made, ReachableOptimizer) and after_step is not None
    states: list[State] = []
    orders: list[list[int]] = []

    def state() -> State:
        parts = dict(zip("ABg", model.bank.direction(0), strict=True))
        moments = {f"{part} {name}": m for part, p in parts.items() for name, m in made.moments(p).items()}
        return {name: value.detach().clone() for name, value in (parts | moments).items()}

    def watched(step: int, steps: int) -> None:
        states.append(state())
        orders.append(model.bank.weights_of_ranks(0)[0, 0].argsort(descending=True).tolist())
        after_step(step, steps)
        states.append(state())

    generator = torch.Generator().manual_seed(2)
    images, labels = torch.randn(6, 1, 32, 32, generator=generator), torch.arange(6) % 4
    take(replace(phase, epochs=8, after_step=watched), model, lambda epoch: [(images, labels)])
    return states, orders, method, task


def changed(states: list[State], step: int) -> set[str]:
    before, after = states[2 * step - 2 : 2 * step]
    return {name for name in after if not torch.equal(before[name], after[name])}


def test_pruned_by_hand() -> None:
    """Running sums 2, 3, 3.6 and 4 against 3: a rank is pruned where the sum exceeds it."""
    scores = torch.tensor([[[0.6, 2.0, 0.4, 1.0]]])
    assert (
        pruned(scores, 0.75, "all").tolist()
        == pruned(scores, 0.75, "module").tolist()
        == [[[True, False, True, False]]]
    )
    assert not pruned(scores, 1.0, "all").any()


def test_scores_of_all_projections_share_one_list() -> None:
    scores = torch.tensor([[[1.5, 0.5], [1.0, 1.0]]])
    assert pruned(scores, 0.9, "all").tolist() == [[[False, True], [False, False]]]
    assert pruned(scores, 0.9, "module").tolist() == [[[False, True], [False, True]]]


def test_the_kept_share_rises_to_1() -> None:
    assert [kept_share(elapsed, 50, 0.95) for elapsed in (0, 25, 50, 51)] == pytest.approx([0.95, 0.975, 1, 1])


def test_without_learned_gates_it_is_lora_to_the_bit() -> None:
    lora, beams = (
        train(strategy_of(method), cut(), stages=2).model
        for method in (
            SeqLoRA(alpha=6, optimizer="adamw", **SMALL),
            BeamLoRA(alpha=6, operations=0, gate_lr=0, **SMALL),
        )
    )
    assert bool(lora.update().any()) and torch.equal(beams.update(), lora.update())


def test_a_constant_on_all_gates_changes_nothing() -> None:
    model = train(strategy_of(BeamLoRA(**SMALL)), cut(), stages=1).model.eval()
    assert float(model.bank.gate[0].std()) > 0.001
    with torch.no_grad():
        weights = model.bank.weights_of_ranks(0)
        torch.testing.assert_close(weights.sum(-1), torch.full_like(weights[..., 0], 4.0))
        before = model(all_images())
        model.bank.gate[0].add_(0.3)
        assert distance(model(all_images()), before) < 1e-5


@pytest.mark.parametrize("history", ["half", "current"])
def test_pruned_ranks_become_their_partners(history: str) -> None:
    """Two of four ranks are pruned after 4 of 8 steps, by the states after 2; nothing follows in the last 4."""
    states, orders, method, task = trained(0.85, gate_lr=0.001, history=history)
    assert [step for step in range(1, 9) if changed(states, step)] == [4]
    assert changed(states, 4) == {"A", "B", "g", "g exp_avg", "g exp_avg_sq"}
    before, after = states[6:8]
    source = states[3] if history == "half" else before
    best, lost = orders[3][:2], sorted(orders[3][2:])
    partners = [best[i] for i in method.order(task, 4, 0, 0, 2).tolist()]
    for rank, partner in zip(lost, partners, strict=True):
        assert torch.equal(after["A"][0, 0, rank], source["A"][0, 0, partner])
        assert torch.equal(after["B"][0, 0, :, rank], source["B"][0, 0, :, partner])
        mean = (before["g"][0, 0, rank] + before["g"][0, 0, partner]) / 2
        assert torch.equal(after["g"][0, 0, [rank, partner]], mean.expand(2))
        assert torch.equal(after["A"][0, 0, partner], before["A"][0, 0, partner])
        assert torch.equal(after["B"][0, 0, :, partner], before["B"][0, 0, :, partner])
    assert not after["g exp_avg"].any() and not after["g exp_avg_sq"].any()


def test_ranks_may_inherit_the_moments_of_their_partners() -> None:
    states, orders, method, task = trained(0.85, gate_lr=0.001, moments="inherit")
    best, lost = orders[3][:2], sorted(orders[3][2:])
    for rank, i in zip(lost, method.order(task, 4, 0, 0, 2).tolist(), strict=True):
        for name in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(states[7][f"A {name}"][0, 0, rank], states[3][f"A {name}"][0, 0, best[i]])
            assert torch.equal(states[7][f"B {name}"][0, 0, :, rank], states[3][f"B {name}"][0, 0, :, best[i]])


def test_without_pruned_ranks_only_moments_of_gates_change() -> None:
    assert changed(trained(1.0)[0], 4) == {"g exp_avg", "g exp_avg_sq"}
    assert changed(trained(1.0, optimizer="sgd")[0], 4) == {"g momentum_buffer"}


def test_partners_are_shuffled_anew_for_every_replacement() -> None:
    _, _, method, task = trained(1.0)
    orders = {(step, p): method.order(task, step, 0, p, 16).tolist() for step, p in ((4, 0), (8, 0), (4, 1))}
    assert all(sorted(order) == list(range(16)) for order in orders.values())
    assert len({tuple(order) for order in orders.values()}) == 3
    assert method.order(task, 4, 0, 0, 16).tolist() == orders[4, 0]


def test_traces_count_the_replaced_ranks() -> None:
    method = BeamLoRA(**SMALL | {"epochs": 4, "operations": 3, "share": 0.5, "scope": "module"})
    strategy = train(strategy_of(method), cut(), stages=2)
    rows = strategy.traces["beams"]
    assert [(row["stage"], row["block"]) for row in rows] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    # Two projections of four ranks: at most all of them in each of two replacements.
    assert all(0 < int(row["replaced"]) <= 16 for row in rows)
    scores = strategy.model.bank.weights_of_ranks(0).detach()
    for row, block in zip(rows[2:], scores, strict=True):
        assert row["largest"] == pytest.approx(float(block.amax(-1).mean()))
        assert row["smallest"] == pytest.approx(float(block.amin(-1).mean()))


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"] if SOAK else ["adamw"])
def test_a_run_killed_before_a_replacement_ends_with_the_same_bits(optimizer: str, tmp_path: Path) -> None:
    """Four steps a task: it is killed between the first, which is remembered, and the second, which replaces."""
    options = {"operations": 2, "share": 0.5, "moments": "inherit", "rank": 4, "lr": 0.01}
    options |= {"epochs": 4, "batch_size": 12, "optimizer": optimizer}
    whole = carry_out(BeamLoRA, tmp_path / "whole", **options)
    killed = carry_out(BeamLoRA, tmp_path / "killed", steps=1 if SOAK else 5, **options)
    assert any(int(row["replaced"]) for row in whole.record.traces["beams"])
    assert killed.sessions > 1 and same(killed.model, whole.model)
    assert killed.record.traces == whole.record.traces


@pytest.mark.parametrize(
    ("options", "fragments"),
    [
        ("share=0", ["beamlora.share", "greater than 0"]),
        ("share=1.1", ["beamlora.share", "less than or equal to 1"]),
        ("temperature=0", ["beamlora.temperature", "greater than 0"]),
    ],
)
def test_bad_options_end_in_one_sentence(cl_bench: Cli, options: str, fragments: list[str]) -> None:
    assert_refused(cl_bench("run", "--methods", f"beamlora[{options}]", *TRIAL), *fragments)
