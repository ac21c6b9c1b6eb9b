"""InfLoRA: interference-free low-rank adaptation (Liang & Li, CVPR 2024, arXiv 2404.00228).

Checked against liangyanshuo/InfLoRA @ e08b00e. Every task adds a direction B_t A_t to k and v of every block (names as
in the code; the paper swaps A and B). A_t is designed before training and fixed, B_t starts at 0 and is trained with
the task's head. With C = E[x x^T] the second moment of the attention's inputs x over the task's tokens:

    A_t = (top r left singular vectors of C restricted to what old tasks do not use)^T / sqrt(3)

so that the new direction hardly sees old inputs (A_t x_old ~ 0) while it sees the new ones as well as it can. What old
tasks use is kept per block by DualGPM: a basis M that spans the old inputs (`remove`: C - M M^T C), or, once that is
more than half of the space, a basis of its complement (`retain`: M M^T C). After each task M grows (or its complement
shrinks) until it holds a share lamb + (lame - lamb) t / T of the energy of C, hence the number of tasks T.

Where the released code is followed to the letter: energy is that of C, itself a second moment; the first task keeps
one direction less than the threshold asks for; the cosine schedule lags one epoch. Where not: it labels a first basis
of d/2 directions and more `retain` although it holds the leading directions, and stops above d/2; here the same
rule holds for all tasks. Where the restricted C has a rank below r, the missing rows of A_t are 0, not arbitrary. The
heads per task are rows of one head: the masked loss never touches the others'. For DomainNet the code uses plain
gradient projection memory (`memory=plain`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from cl_bench.contract import schedules
from cl_bench.contract.lora_method import LoRAMethod
from cl_bench.contract.method import Traces
from cl_bench.contract.phase import Phase
from cl_bench.contract.schedules import Schedule
from cl_bench.contract.search import Choice, LogUniform, Range
from cl_bench.contract.task import Task
from cl_bench.data.samples import TaskSamples
from cl_bench.experiment import Value
from cl_bench.models.base import FeatureModel
from cl_bench.models.lora import LoRABank, LoRAModel, Target, attention_covariances

Mode = Literal["remove", "retain"]
Share = Annotated[float, Field(ge=0, le=1)]


def restrict(covariance: Tensor, basis: Tensor, mode: Mode) -> Tensor:
    """C - M M^T C (`remove`) or M M^T C (`retain`): C [d, d] without what old tasks use; M [d, m]."""
    inside = basis @ (basis.T @ covariance)
    return inside if mode == "retain" else covariance - inside


def principal(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Left singular vectors [d, d] and squared singular values [d] of a matrix [d, n], the largest first.

    By the symmetric eigenproblem, several times faster than an SVD; in float64 that loses nothing that is used here.
    """
    energy, U = torch.linalg.eigh(matrix @ matrix.T)
    return U.flip(1), energy.flip(0).clamp_min(0)


def design(restricted: Tensor, rank: int) -> Tensor:
    """A [r, d]: the leading left singular vectors of a restricted second moment, divided by sqrt(3)."""
    U, energy = principal(restricted)
    present = (energy[:rank] > 1e-12 * energy[0].clamp_min(torch.finfo(U.dtype).tiny)).to(U.dtype)
    return (U[:, :rank] * present).T / math.sqrt(3)


def remember(covariance: Tensor, basis: Tensor, mode: Mode, threshold: float, dual: bool = True) -> tuple[Tensor, Mode]:
    """One update of the gradient projection memory after a task.

    Args:
        covariance: C [d, d] of the task just learned.
        basis, mode: M [d, m] and what it spans; m = 0 before the first task.
        threshold: share of C's energy (its squared singular values) that must count as used.
        dual: switch to a basis of the complement when more than half of the space is used (DualGPM).

    Returns:
        The new basis and mode.
    """
    U, energy = principal(restrict(covariance, basis, mode))
    shares = energy / covariance.square().sum()
    if basis.shape[1] == 0 and mode == "remove":
        count = max(int((shares.cumsum(0) < threshold).sum()), 1)
        basis = U[:, :count]
    elif mode == "remove":
        # What C has inside the old basis counts as held; directions are added while the share held is too small.
        held = 1 - shares.sum() + torch.cat([shares.new_zeros(1), shares.cumsum(0)[:-1]])
        basis = torch.cat([basis, U[:, : int((held < threshold).sum())]], dim=1)[:, : len(basis)]
    else:
        # Directions leave the complement while what it holds of C is too much.
        left = shares.sum() - torch.cat([shares.new_zeros(1), shares.cumsum(0)[:-1]])
        count = min(int((left >= 1 - threshold).sum()), basis.shape[1])
        basis = _complement(U[:, :count], basis)
    if dual and mode == "remove" and basis.shape[1] > len(basis) / 2:
        return _complement(basis, torch.eye(len(basis), dtype=basis.dtype, device=basis.device)), "retain"
    return basis, mode


def _complement(directions: Tensor, span: Tensor) -> Tensor:
    """An orthonormal basis of the part of `span` [d, m] that is orthogonal to `directions` [d, n] within it."""
    rest = span - directions @ (directions.T @ span)
    return principal(rest)[0][:, : span.shape[1] - directions.shape[1]]


@schedules.register("inflora")
def inflora(method: Any, epoch: int, epochs: int) -> float:
    """cos(99 pi e / (200 (E - 1))) one epoch late, by epoch: the first two epochs are at the base rate, as the released
    scheduler of CODA-Prompt and InfLoRA comes out, which sets itself back by one epoch when it is made."""
    return schedules.cos(99 * torch.pi * max(epoch - 1, 0) / (200 * max(epochs - 1, 1)))


class InfLoRAModel(LoRAModel):
    """`basis_l` [d, m_l] is the memory of block l; `retains` [L] says which of them span the complement."""

    retains: Tensor

    def __init__(self, backbone: VisionTransformer, num_classes: int, targets: tuple[Target, ...], rank: int) -> None:
        super().__init__(backbone, num_classes, targets, rank)
        self.head = nn.Linear(backbone.num_features, num_classes)
        for number in range(self.bank.blocks):
            self.register_buffer(f"basis_{number}", torch.zeros(self.bank.dim, 0))
        self.register_buffer("retains", torch.zeros(self.bank.blocks, dtype=torch.bool))

    def memory(self, number: int) -> tuple[Tensor, Mode]:
        """Basis (float64) and mode of a block."""
        return getattr(self, f"basis_{number}").double(), "retain" if self.retains[number] else "remove"

    def design(self, covariances: Tensor, rank: int) -> None:
        """Add a direction with designed A, the same for all projections of a block, and B = 0."""
        A = torch.stack([design(restrict(c, *self.memory(block)), rank) for block, c in enumerate(covariances)])
        A = A[:, None].expand(-1, len(self.bank.targets), -1, -1).to(self.head.weight.dtype).contiguous()
        self.bank.append(A, torch.zeros_like(A).transpose(2, 3).contiguous())

    def remember(self, covariances: Tensor, threshold: float, dual: bool = True) -> None:
        """Update the memory of every block."""
        for number, covariance in enumerate(covariances):
            basis, mode = remember(covariance, *self.memory(number), threshold, dual)
            setattr(self, f"basis_{number}", basis.to(self.head.weight.dtype))
            self.retains[number] = mode == "retain"


_ADAM: Mapping[str, Value] = {"batch_size": 128, "optimizer": "adam", "lr": 5e-4, "schedule": "inflora", "rank": 10}


@dataclass(frozen=True, kw_only=True, eq=False)
class InfLoRA(LoRAMethod):
    """Hyper-parameters; the defaults are the released ones for CIFAR-100.

    Attributes:
        rank: rank r of every direction.
        targets: projections that are updated, among q, k and v, whose common input A is designed for.
        lamb, lame: threshold of the memory at the first task, and its value one task after the last.
        memory: `dual` gradient projection memory, or the `plain` memory of the DomainNet runs.
        head_lr: learning rate of the head if it differs from the others' (DomainNet).
    """

    paper: ClassVar[str] = "InfLoRA (CVPR 2024, arXiv 2404.00228)"
    citations: ClassVar[tuple[str, ...]] = ("liang2024inflora",)
    cited_with: ClassVar[Mapping[str, tuple[str, ...]]] = {"memory=plain": ("saha2021gpm",)}
    needs_num_tasks: ClassVar[bool] = True
    stores: ClassVar[str] = "a basis of old inputs per block"
    published: ClassVar[Mapping[str, Mapping[str, Value]]] = {
        "cifar100": {**_ADAM, "epochs": 20, "lamb": 0.95},
        "imagenet-r": {**_ADAM, "epochs": 50, "lamb": 0.98},
        "domainnet": {
            "epochs": 5, "batch_size": 128, "optimizer": "sgd", "lr": 0.005, "head_lr": 0.01, "schedule": "steps",
            "milestones": [4], "decay": 0.1, "rank": 30, "lamb": 0.95, "memory": "plain",
        },
    }  # fmt: skip
    space: ClassVar[Mapping[str, Range]] = {
        "lr": LogUniform(1e-4, 0.1),
        "schedule": Choice("constant", "cosine"),
        "lamb": Choice(0.9, 0.95, 0.98),
    }

    rank: PositiveInt = 10
    targets: tuple[Literal["q", "k", "v"], ...] = ("k", "v")
    lamb: Share = 0.95
    lame: Share = 1.0
    memory: Literal["dual", "plain"] = "dual"
    head_lr: PositiveFloat | None = None
    optimizer: Literal["sgd", "adam", "adamw"] = "adam"
    lr: PositiveFloat = 5e-4
    schedule: Schedule = "inflora"

    def threshold(self, index: int, num_tasks: int) -> float:
        """Share of a task's energy that must count as used after it; `index` from 0."""
        return self.lamb + (self.lame - self.lamb) * index / num_tasks

    def build(self, backbone: VisionTransformer, num_classes: int) -> FeatureModel:
        return InfLoRAModel(backbone, num_classes, self.targets, self.rank)

    def storage(self, backbone: VisionTransformer, num_classes: int, classes: Sequence[int]) -> dict[str, int]:
        dim, depth = int(backbone.embed_dim), len(backbone.blocks)
        # The dual memory turns into its complement at half of the space.
        columns = dim if self.memory == "plain" else dim // 2
        return {
            "directions": len(classes) * LoRABank.numbers(backbone, self.targets, self.rank),
            "memory": depth * (dim * columns + 1),
            "head": num_classes * (dim + 1),
        }

    def before_task(self, task: Task, images: TaskSamples) -> None:
        covariances, _ = attention_covariances(task.model, images.batches(augmented=True))
        task.model.design(covariances, self.rank)

    def phases(self, task: Task) -> list[Phase]:
        head = {"params": list(task.model.head.parameters()), "lr": self.head_lr or self.lr}
        return [self.phase([{"params": [task.model.bank.B[-1]]}, head], self.cross_entropy(task))]

    def after_task(self, task: Task, images: TaskSamples) -> None:
        assert task.num_tasks is not None
        covariances, _ = attention_covariances(task.model, images.batches(augmented=True))
        task.model.remember(covariances, self.threshold(task.index, task.num_tasks), dual=self.memory == "dual")

    def traces(self, task: Task) -> Traces:
        """How much each block's memory holds: directions, and whether they span old inputs or their complement."""
        memories = [task.model.memory(number) for number in range(task.model.bank.blocks)]
        return {
            "memory": [
                {"stage": task.index, "block": block, "mode": mode, "dim": basis.shape[1]}
                for block, (basis, mode) in enumerate(memories)
            ]
        }
