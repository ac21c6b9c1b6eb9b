"""CLoRA: orthonormal subspaces that are drawn as asked, a penalty of known values, and rows that are LoRA itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from cl_bench.contract.task import Task
from cl_bench.methods.controlled_lora import CLoRA
from cl_bench.methods.inclora import IncLoRA
from tests.helpers.command import TRIAL, Cli, assert_refused
from tests.helpers.tiny import cut, tiny_vit
from tests.helpers.training import strategy_of, train

pytestmark = pytest.mark.usefixtures("one_thread")

NO_SAMPLES: Any = None
QUICK: dict[str, Any] = {"rank": 3, "epochs": 2, "batch_size": 16, "lr": 0.01}


def begun(method: CLoRA, index: int = 0, vit: VisionTransformer | None = None) -> Task:
    """A task right before its training, with a random up-projection."""
    task = Task(index, (0, 1), (0, 1), 2, None, method.build(vit or tiny_vit(), 2), (7, "task", index))
    method.before_task(replace(task, index=0), NO_SAMPLES)
    with torch.no_grad():
        task.model.bank.B[0].copy_(torch.randn(task.model.bank.B[0].shape, generator=torch.Generator().manual_seed(1)))
    return task


def subspaces(method: CLoRA, index: int = 0) -> list[Tensor]:
    task = begun(method, index)
    return [task.scratch["P_in"], task.scratch["P_out"]]


def test_a_penalty_by_hand() -> None:
    vit = VisionTransformer(img_size=32, patch_size=16, embed_dim=3, depth=1, num_heads=1, num_classes=0)
    method = CLoRA(rank=1, subspace=1, targets=("q",))
    task = begun(method, vit=vit)
    A, B = task.model.bank.direction(0)
    with torch.no_grad():
        A.copy_(torch.tensor([[3.0, 0.0, 4.0]]))
        B.copy_(torch.tensor([[0.0], [2.0], [0.0]]))
    task.scratch["P_in"] = torch.tensor([[[[1.0], [0.0], [0.0]]]])
    task.scratch["P_out"] = torch.tensor([[[[0.0], [1.0], [0.0]]]])
    penalty = method.penalty(task)
    penalty.backward()
    assert float(penalty.detach()) == 6.5
    assert torch.equal(A.grad, torch.tensor([[[[3.0, 0.0, 0.0]]]]))
    assert torch.equal(B.grad, torch.tensor([[[[0.0], [2.0], [0.0]]]]))
    assert float(replace(method, sides="input").penalty(task)) == 4.5
    assert float(replace(method, sides="output").penalty(task)) == 2.0
    assert method.traces(task)["control"] == [
        {"stage": 0, "block": 0, "target": "q", "input": pytest.approx(0.6), "output": 1.0, "penalty": 6.5}
    ]
    assert method.step_traces(task, 5)["penalty"] == [{"stage": 0, "step": 5, "penalty": 6.5}]


def test_in_the_whole_space_it_is_weight_decay() -> None:
    method = CLoRA(rank=3, subspace=32, control=0.7)
    task = begun(method)
    A, B = task.model.bank.direction(0)
    penalty = method.penalty(task)
    penalty.backward()
    torch.testing.assert_close(penalty, 0.35 * (A.square().sum() + B.square().sum()), rtol=1e-6, atol=0)
    for parameter in (A, B):
        torch.testing.assert_close(parameter.grad, 0.7 * parameter, rtol=1e-5, atol=1e-6)


def test_what_avoids_the_subspaces_costs_nothing() -> None:
    method = CLoRA(rank=3)
    task = begun(method)
    A, B = task.model.bank.direction(0)
    assert float(method.penalty(task)) > 1
    with torch.no_grad():
        P = task.scratch["P_in"]
        A.sub_(A @ P @ P.transpose(2, 3))
        B.zero_()
    assert float(method.penalty(task)) < 1e-10


@pytest.mark.parametrize(("subspace", "k"), [(None, 8), (5, 5), (32, 32)])
def test_subspaces_are_orthonormal(subspace: int | None, k: int) -> None:
    for P in subspaces(CLoRA(rank=3, subspace=subspace)):
        assert P.shape == (2, 2, 32, k)
        torch.testing.assert_close(P.transpose(2, 3) @ P, torch.eye(k).expand(2, 2, k, k), rtol=0, atol=1e-6)


def test_every_task_draws_its_subspaces_or_all_draw_the_same() -> None:
    for redraw, same in (("task", False), ("once", True)):
        method = CLoRA(rank=3, redraw=redraw)  # type: ignore[arg-type]
        first, again, later = (subspaces(method, index) for index in (0, 0, 1))
        assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))
        assert all(torch.equal(*pair) == same for pair in zip(first, later, strict=True))
        assert not torch.equal(*first) and not torch.equal(first[0][0, 0], first[0][0, 1])


def test_without_control_it_is_lora_to_the_bit() -> None:
    controlled, lora = (
        train(strategy_of(method), cut(), stages=2).model
        for method in (CLoRA(control=0, boundary="stack", **QUICK), IncLoRA(optimizer="adamw", **QUICK))
    )
    assert bool(lora.update().any()) and torch.equal(controlled.update(), lora.update())
    assert torch.equal(controlled.head.weight, lora.head.weight)


def test_control_keeps_the_direction_out_of_the_subspaces() -> None:
    """The share of a random direction is about a half, as k = d / 4."""
    shares = {}
    for control in (0.0, 1.0):
        strategy = strategy_of(CLoRA(control=control, **QUICK | {"epochs": 12}))
        train(strategy, cut(), stages=1)
        rows = strategy.traces["control"]
        shares[control] = sum(row["input"] for row in rows) / len(rows)
    assert 0.4 < shares[0.0] < 0.6 and shares[1.0] < 0.6 * shares[0.0]


def test_a_subspace_larger_than_the_width_is_refused_in_one_sentence(cl_bench: Cli) -> None:
    refused = cl_bench("run", "--methods", "controlled-lora[subspace=193]", *TRIAL)
    assert_refused(refused, "CLoRA", "dimension 193", "width 192", "at most 192")
