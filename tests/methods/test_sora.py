"""SoRA: the threshold on its gates, what closes them, and the row that is LoRA itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cl_bench.contract.task import Task
from cl_bench.errors import UserError
from cl_bench.methods.seqlora import SeqLoRA
from cl_bench.methods.sora import SoRA, thresholded
from tests.helpers import SOAK
from tests.helpers.command import TRIAL, Cli, assert_refused
from tests.helpers.phases import carry_out
from tests.helpers.tiny import cut, tiny_vit
from tests.helpers.training import all_images, same, strategy_of, train

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL: dict[str, Any] = {"rank": 3, "epochs": 2, "batch_size": 16, "lr": 0.01}
GIVEN = [0.9, 1.0, 1.1, 1.5, 1.9, 2.0, 2.1, 3.0]
RELEASED = [0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 1.1, 2.0]
SOFT = [0.0, 0.0, 0.1, 0.5, 0.9, 1.0, 1.1, 2.0]


def started(**options: Any) -> tuple[SoRA, Task]:
    """A method, and a task whose model has one direction at its start."""
    method = SoRA(**SMALL | options)
    model: Any = method.build(tiny_vit(), 4)
    model.grow(method.rank, torch.Generator().manual_seed(1))
    return method, Task(0, (0, 1, 2, 3), (0, 1, 2, 3), 4, None, model, ())


@pytest.mark.parametrize(("rule", "expected"), [("released", RELEASED), ("soft", SOFT)])
def test_thresholds_by_hand(rule: Any, expected: list[float]) -> None:
    for sign in (1, -1):
        found = thresholded(sign * torch.tensor(GIVEN), 1.0, rule)
        torch.testing.assert_close(found, sign * torch.tensor(expected))


def test_without_penalty_threshold_and_learned_gates_it_is_lora_to_the_bit() -> None:
    off = {"gate_penalty": 0, "threshold": 0, "gate_lr": 0, "gate_start": "ones"}
    lora, gated = (
        train(strategy_of(method), cut(), stages=2).model
        for method in (SeqLoRA(alpha=6, optimizer="adamw", **SMALL), SoRA(alpha=6, **off, **SMALL))
    )
    assert bool(lora.update().any()) and torch.equal(gated.update(), lora.update())
    assert torch.equal(gated.head.weight, lora.head.weight)


@pytest.mark.parametrize(("unit", "expected"), [("step", 0.2), ("lr", 0.299)])
def test_a_step_without_a_gradient_thresholds_alone(unit: str, expected: float) -> None:
    """Gates of 3 xi, xi = 0.1, go to 2 xi; or by xi times the learning rate of 0.01."""
    method, task = started(threshold=0.1, threshold_unit=unit, weight_decay=0.5)
    phase, gate = method.phases(task)[0], task.model.bank.gate[0]
    optimizer = phase.optimizer(phase.parameters)
    with torch.no_grad():
        gate.fill_(0.3)
        for parameter in phase.trainable():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        assert phase.after_step is not None
        phase.after_step(1, 10)
    torch.testing.assert_close(gate.detach(), torch.full_like(gate, expected))


def test_gates_start_from_a_normal_distribution_after_the_factors() -> None:
    bank = started(rank=32)[1].model.bank.requires_grad_(False)
    lora: Any = SeqLoRA(**SMALL | {"rank": 32}).build(tiny_vit(), 4)
    lora.grow(32, torch.Generator().manual_seed(1))
    assert torch.equal(bank.A[0], lora.bank.A[0])
    assert abs(float(bank.gate[0].mean())) < 0.3 and 0.8 < float(bank.gate[0].std()) < 1.2


@pytest.mark.parametrize(("mean", "expected"), [(True, 2 * 0.5), (False, 2 * 0.5 * 12)])
def test_the_penalty_takes_the_mean_or_the_sum_of_all_gates(mean: bool, expected: float) -> None:
    method, task = started(gate_penalty=2.0, penalty_mean=mean)
    with torch.no_grad():
        task.model.bank.gate[0].fill_(-0.5)
    assert float(method.penalty(task)) == pytest.approx(expected)  # type: ignore[arg-type]


def test_gates_close_in_growing_phases_and_closed_ranks_do_nothing() -> None:
    options = {"gate_penalty": 0.1, "threshold": 0.01, "sparsify": (0.05, 0.2), "sparsify_epochs": 1}
    strategy = train(strategy_of(SoRA(**SMALL | {"rank": 8} | options)), cut(), stages=2)
    model = strategy.model.eval()
    gates = model.bank.gate[0].detach()
    assert bool((gates == 0).any()) and float(gates[gates != 0].abs().min()) >= 0.2
    rows = strategy.traces["gates"]
    assert [(row["stage"], row["block"]) for row in rows] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    for block in (0, 1):
        assert rows[2 + block]["closed"] == pytest.approx(float((gates[block] == 0).float().mean()))
        assert rows[2 + block]["size"] == pytest.approx(float(gates[block].abs().mean()))
    with torch.no_grad():
        before = model(all_images())
        model.bank.A[0][gates == 0] = torch.randn(int((gates == 0).sum()), 32)
        assert torch.equal(model(all_images()), before)
        model.bank.A[0][gates != 0] += 0.1
        assert not torch.allclose(model(all_images()), before)


def test_a_run_resumes_inside_any_of_its_phases_to_the_same_bits(tmp_path: Path) -> None:
    options = {"threshold": 1.0, "threshold_unit": "lr", "sparsify": (4.0,), "sparsify_epochs": 2}
    options |= {"rank": 2, "epochs": 2, "batch_size": 12, "lr": 0.01, "schedule": "cosine"}
    whole = carry_out(SoRA, tmp_path / "whole", **options)
    killed = carry_out(SoRA, tmp_path / "killed", steps=1 if SOAK else 3, **options)
    assert killed.sessions > 2 and same(killed.model, whole.model)
    assert killed.record.traces == whole.record.traces


def test_a_threshold_that_closes_every_gate_is_refused_in_the_first_step() -> None:
    with pytest.raises(UserError, match="threshold of 50 leaves no rank: it closes all 12 gates in the first step"):
        train(strategy_of(SoRA(**SMALL, threshold=50)), cut(), stages=1)


def test_gates_that_a_sequence_closes_stay_closed_without_an_error() -> None:
    model = train(strategy_of(SoRA(**SMALL | {"lr": 0.3}, gate_penalty=1e3, threshold=0.7)), cut(), stages=2).model
    assert not model.bank.gate[0].any()


@pytest.mark.parametrize(
    ("options", "fragments"),
    [
        ("threshold=-1", ["sora.threshold", "greater than or equal to 0"]),
        ("sparsify=0.1+-1", ["sora.sparsify", "greater than or equal to 0"]),
    ],
)
def test_bad_options_end_in_one_sentence(cl_bench: Cli, options: str, fragments: list[str]) -> None:
    assert_refused(cl_bench("run", "--methods", f"sora[{options}]", *TRIAL), *fragments)
