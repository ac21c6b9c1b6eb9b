"""After DualLoRA: bases that are orthogonal, directions that respect them, gates and calibration of known values."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cl_bench.methods.duallora import DualBank, DualLoRA, gates, leading, similarity
from cl_bench.methods.inclora import IncLoRA
from cl_bench.training.strategy import ContinualStrategy
from tests.helpers.command import Cli, assert_refused
from tests.helpers.tiny import cut, tiny_vit
from tests.helpers.training import all_images, distance, strategy_of, train

pytestmark = pytest.mark.usefixtures("one_thread")

QUICK: dict[str, Any] = {"rank": 3, "rank_residual": 2, "basis_max": 4, "epochs": 2, "batch_size": 16, "lr": 0.01}
OMEGA = torch.tensor([[[1.0], [0.0], [0.0]], [[0.0], [0.6], [0.8]]])


@cache
def learned(**options: Any) -> ContinualStrategy:
    """A strategy that has learned three tasks; tests must not change the model."""
    return train(strategy_of(DualLoRA(**QUICK | options)), cut())


def test_directions_by_hand() -> None:
    bank = DualBank(tiny_vit(), ("q",), 1, None)
    bank.blocks, bank.dim = 1, 3
    for omega in OMEGA:
        A = torch.tensor([[[[1.0, 2.0, 3.0]]]])
        bank.append(A, torch.ones(1, 1, 3, 1), A.clone(), torch.ones(1, 1, 3, 1), omega[None])
    bank.append(A, torch.ones(1, 1, 3, 1), A.clone(), torch.ones(1, 1, 3, 1), omega[None])
    expected = [[1.0, 2.0, 3.0], [0.0, 2.0, 3.0], [0.0, -0.16, 0.12]]
    for k, row in enumerate(expected):
        torch.testing.assert_close(bank.factors(k)[0].flatten().detach(), torch.tensor(row))
    residual, _, _ = bank.residuals()
    torch.testing.assert_close(residual[1].flatten().detach(), torch.tensor([0.0, 2.16, 2.88]))


def test_gates_by_hand() -> None:
    phi = torch.tensor([[3.0, 4.0, 0.0]])
    similar = similarity(phi, OMEGA, "norm-share")
    torch.testing.assert_close(similar, torch.tensor([[0.6, 0.48]]))
    torch.testing.assert_close(similarity(phi, OMEGA, "cosine-max"), torch.tensor([[0.6, 0.48]]))
    assert torch.equal(gates(similar, OMEGA, "norm-share", 0.1), similar)
    assert torch.equal(gates(similar, OMEGA, "one", 0.1), torch.ones(1, 2))
    torch.testing.assert_close(gates(similar, OMEGA, "excess", 0.1), torch.tensor([[0.6 - 3**-0.5, 0.0]]))
    padded = nn.functional.pad(OMEGA, (0, 1, 0, 0, 0, 1))
    softmax = gates(nn.functional.pad(similar, (0, 1)), padded, "softmax", 0.1)
    torch.testing.assert_close(softmax, nn.functional.pad((similar / 0.1).softmax(dim=1), (0, 1)))


def test_bases_by_hand() -> None:
    C, nothing = torch.diag(torch.tensor([6.0, 3.0, 1.0])), torch.zeros(3, 0)
    span = leading(C, nothing, 0.85, 3)
    torch.testing.assert_close(span @ span.T, torch.diag(torch.tensor([1.0, 1.0, 0.0])), rtol=0, atol=1e-6)
    rest = leading(C, torch.eye(3)[:, :1], 0.85, 3)
    torch.testing.assert_close(rest.abs(), torch.tensor([[0.0], [1.0], [0.0]]), rtol=0, atol=1e-6)
    assert leading(C, nothing, 0.85, 1).shape == (3, 1)
    assert leading(C, torch.eye(3)[:, :2], 0.5, 3).shape == (3, 1), "at least one"


def test_bases_are_orthogonal_and_orthogonal_directions_ignore_earlier_ones() -> None:
    bank: Any = learned().model.bank
    psi = bank.memory(3)
    inner = psi.transpose(1, 2) @ psi
    assert float((inner - torch.diag_embed(inner.diagonal(dim1=1, dim2=2))).abs().max()) < 1e-5
    for k in (1, 2):
        A, B = bank.factors(k)
        update = (B @ A).detach()
        assert float((update @ bank.memory(k)[:, None]).abs().max()) < 1e-5 * float(update.abs().max())
        assert float((update @ bank.bases[k][:, None]).abs().max()) > 1e-3 * float(update.abs().max())


def test_in_the_whole_space_with_open_gates_it_is_one_lora() -> None:
    """Of the sum of both ranks, in the first task."""
    options = {"basis_max": 32, "threshold": 1.0, "basis_from": "tokens", "gate": "one", "calibration": "off"}
    model: Any = train(strategy_of(DualLoRA(**QUICK | options), num_tasks=1), cut(), stages=1).model.eval()
    lora: Any = IncLoRA(rank=5).build(tiny_vit(), model.head.out_features)
    A, B, residual_A, residual_B, bases = model.bank.direction(0)
    assert int(bases.abs().sum(dim=1).gt(0).sum()) == 64
    lora.bank.append(torch.cat([A, residual_A], dim=2).detach(), torch.cat([B, residual_B], dim=3).detach())
    lora.head.load_state_dict(model.head.state_dict())
    with torch.no_grad():
        assert distance(model(all_images()), lora.eval()(all_images())) < 1e-4
        assert float(model.bank.residuals()[1].abs().max()) > 1e-3


def test_without_a_residual_the_first_task_is_lora_to_the_bit() -> None:
    own, lora = (
        train(strategy_of(method), cut(), stages=1).model
        for method in (
            DualLoRA(**QUICK | {"rank_residual": 0}),
            IncLoRA(rank=3, optimizer="adamw", epochs=2, batch_size=16, lr=0.01),
        )
    )
    torch.testing.assert_close(own.update(), lora.update(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(own.head.weight, lora.head.weight, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gate": "excess", "gate_feature": "frozen", "design_with": "frozen"},
        {"gate": "softmax", "train_gate": "own"},
    ],
    ids=["default", "frozen", "softmax"],
)
def test_predictions_depend_on_the_image_alone(options: dict[str, Any]) -> None:
    model = learned(**options).model.eval()
    with torch.no_grad():
        together = model(all_images())
        alone = torch.cat([model(image[None]) for image in all_images()[:5]])
    assert distance(alone, together[:5]) < 1e-5


def test_calibration_raises_the_classes_of_one_task() -> None:
    model: Any = learned().model.eval()
    scores = torch.tensor([[0.2, 0.5, 0.1], [0.9, 0.1, 0.1]])
    confidence = (scores / 0.1).softmax(dim=1).amax(dim=1)
    ones: Tensor = torch.ones(2, model.head.out_features)
    found = model.calibrated(ones, scores)
    for row, task in enumerate((1, 0)):
        expected = torch.where(model.task_of == task, 1 + confidence[row], 1.0)
        torch.testing.assert_close(found[row], expected)


def test_bases_that_fill_the_width_are_refused_in_one_sentence(cl_bench: Cli) -> None:
    refused = cl_bench("run", "--methods", "duallora[basis_max=100]", "--limit-tasks", "2")
    assert_refused(refused, "tasks with up to 100 directions", "width 192", "basis_max of at most")
