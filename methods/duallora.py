"""After DualLoRA: an orthogonal and a residual low-rank update side by side (Chen et al., arXiv 2411.00623).

There is no official code, and the equations of the paper were not at hand: only its abstracts (v1 and v2, withdrawn in
2025, and v3 and v4) are followed. All formulas and constants below are ours; no number of the paper can be compared.

Per block, every task t keeps an orthonormal basis Omega_t [d, m_t] of attention inputs that earlier bases
Psi_{t-1} = [Omega_0, ..., Omega_{t-1}] do not span: before it is learned, leading eigenvectors of C = E[x x^T] without
Psi_{t-1} are added while [Psi_{t-1}, Omega_t] holds less than the share `threshold` of tr C, at least one of them and
at most `basis_max`. Two directions per task change a projection W:

    h(x) = W x + sum_s B^O_s A^O_s x + sum_s eps_s B^R_s A^R_s x
    A^O_s = Ao_s (I - Psi_{s-1} Psi_{s-1}^T)    orthogonal: changes nothing that earlier tasks use, with any optimiser
    A^R_s = Ar_s Omega_s Omega_s^T              residual: reacts to the task's own basis, so residuals do not interact
    eps_s = ||Omega_s^T phi|| / ||phi||         dynamic memory: what the image has to do with task s

where phi is the class token in the attention's input. In training, the task's own eps is 1 (`train_gate`); no gradient
flows through eps. The mean of ||Omega_s^T phi|| / ||phi|| over the blocks predicts the task of an image; logits of its
classes are raised by the confidence, the softmax of these means divided by `temperature` (`calibration`).
The recorded update of the weights (table `updates`) is that of the orthogonal directions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from cl_bench.contract.method import Traces
from cl_bench.contract.phase import Phase
from cl_bench.contract.search import Choice, LogUniform, Range
from cl_bench.contract.task import Task
from cl_bench.data.samples import TaskSamples
from cl_bench.errors import UserError
from cl_bench.models.lora import LoRABank, LoRAModel

from .inclora import IncLoRA

Gate = Literal["norm-share", "cosine-max", "excess", "softmax", "one"]
# Shapes in the pass grow by so many tasks at a time, so that it is rarely compiled anew.
_TASKS = 10


def leading(covariance: Tensor, memory: Tensor, threshold: float, most: int) -> Tensor:
    """New directions Omega [d, m] of a second moment C [d, d], orthonormal and orthogonal to a memory Psi [d, n].

    Args:
        covariance: C.
        memory: Psi, with orthonormal columns (or columns of 0).
        threshold: share of tr C that both together should hold.
        most: bound on m, which is at least 1.
    """
    outside = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device) - memory @ memory.T
    energy, U = torch.linalg.eigh(outside @ covariance @ outside)
    energy, U = energy.flip(0).clamp_min(0), U.flip(1)
    held = (memory.T @ covariance @ memory).trace() + torch.cat([energy.new_zeros(1), energy.cumsum(0)[:-1]])
    wanted = int((held < threshold * covariance.trace()).sum())
    basis = outside @ U[:, : min(max(wanted, 1), most)]
    return torch.linalg.qr(basis)[0]


def similarity(phi: Tensor, bases: Tensor, gate: Gate) -> Tensor:
    """What images have to do with the tasks, [B, T] in [0, 1].

    Args:
        phi: feature of each image, [B, d].
        bases: Omega of each task, [T, d, m]; columns may be 0.
        gate: `cosine-max`: max_j |cos(phi, omega_j)|; all others: ||Omega^T phi|| / ||phi||.
    """
    inside = torch.einsum("bd,tdm->btm", phi, bases)
    size = inside.abs().amax(dim=2) if gate == "cosine-max" else inside.norm(dim=2)
    return size / phi.norm(dim=1, keepdim=True).clamp_min(torch.finfo(phi.dtype).tiny)


def gates(similar: Tensor, bases: Tensor, gate: Gate, temperature: float) -> Tensor:
    """eps [B, T] of the similarities [B, T] of images and tasks."""
    if gate == "one":
        return torch.ones_like(similar)
    columns = bases.abs().sum(dim=1).gt(0).sum(dim=1)
    if gate == "excess":
        # A random phi has the squared share m / d.
        return (similar - (columns / bases.shape[1]).sqrt()).clamp_min(0)
    if gate == "softmax":
        return (similar / temperature).masked_fill(columns == 0, float("-inf")).softmax(dim=1)
    return similar


@cache
def branch(targets: tuple[str, ...], gate: Gate, temperature: float) -> Callable[..., Any]:
    """The residual directions of a block as a branch of the pass; one function for all blocks and models."""

    def residual(x: Tensor, down: Tensor, up: Tensor, bases: Tensor, open_: Tensor, *phi: Tensor) -> Any:
        similar = similarity((phi[0] if phi else x[:, 0]).detach(), bases, gate)
        eps = torch.where(open_, 1.0, gates(similar, bases, gate, temperature))
        ranks = eps.repeat_interleave(down.shape[1] // eps.shape[1], dim=1, output_size=down.shape[1])
        added = {target: (x @ down[place].T * ranks[:, None]) @ up[place].T for place, target in enumerate(targets)}
        return added.get("q"), added.get("k"), added.get("v"), similar

    return residual


class DualBank(LoRABank):
    """Per task, an orthogonal and a residual direction and the task's basis [L, d, m], filled up with columns of 0.

    `factors` are those of the orthogonal direction, which depends on the bases of the tasks before it.
    """

    parts = ("A", "B", "residual_A", "residual_B", "bases")
    residual_A: nn.ParameterList
    residual_B: nn.ParameterList
    bases: nn.ParameterList
    ranks: tuple[int, int]

    def start(self, A: Tensor, B: Tensor, generator: torch.Generator) -> Sequence[Tensor]:
        rank = self.ranks[0]
        return A[:, :, :rank], B[..., :rank], A[:, :, rank:], B[..., rank:], A.new_zeros(self.blocks, self.dim, 0)

    def memory(self, k: int) -> Tensor:
        """Psi_{k-1} [L, d, n]: the bases of the first k tasks."""
        return torch.cat([self.A[0].new_zeros(self.blocks, self.dim, 0), *list(self.bases)[:k]], dim=2).detach()

    def factors(self, k: int) -> tuple[Tensor, Tensor]:
        memory = self.memory(k)[:, None]
        A, B = self.A[k], self.B[k]
        A = A - A @ memory @ memory.transpose(2, 3)
        return A, B if self.scale is None else B * self.scale

    def residuals(self) -> tuple[Tensor, Tensor, Tensor]:
        """A^R [T, L, P, r, d], B^R [T, L, P, d, r] and Omega [T, L, d, m] of all tasks."""
        bases = torch.stack(list(self.bases)).detach()
        A = torch.stack(list(self.residual_A)) @ bases[:, :, None] @ bases[:, :, None].transpose(3, 4)
        B = torch.stack(list(self.residual_B))
        return A, B if self.scale is None else B * self.scale, bases


class DualLoRAModel(LoRAModel):
    """Weights changed by the orthogonal directions, and a branch with the gated residual ones in every block.

    Attributes:
        task_of: the last task with each class, int64 [num_classes]; -1: not seen.
    """

    bank: DualBank
    task_of: Tensor

    def __init__(self, method: DualLoRA, backbone: VisionTransformer, num_classes: int) -> None:
        rank = max(method.rank, method.rank_residual)
        super().__init__(backbone, num_classes, method.targets, rank, method.alpha, DualBank)
        self.bank.ranks = method.rank, method.rank_residual
        self.method = method
        self.register_buffer("task_of", torch.full((num_classes,), -1))

    def branches(self, images: Tensor) -> dict[int, Any]:
        """The residual directions, by block number; see `ViT.tokens`."""
        method = self.method
        A, B, bases = self.bank.residuals()
        count, blocks = len(bases), range(self.bank.blocks)
        more = -count % _TASKS
        # [L, P, R, d] and [L, P, d, R], the ranks of one task after those of the other.
        down = nn.functional.pad(A.permute(1, 2, 0, 3, 4), (0, 0, 0, 0, 0, more)).flatten(2, 3)
        up = nn.functional.pad(B.permute(1, 2, 3, 0, 4), (0, 0, 0, more)).flatten(3)
        bases = nn.functional.pad(bases.transpose(0, 1), (0, 0, 0, 0, 0, more))
        open_ = torch.zeros(count + more, dtype=torch.bool, device=bases.device)
        if self.training and method.train_gate == "one":
            open_[count - 1 :] = True
        phi: list[tuple[Tensor, ...]] = [()] * len(blocks)
        if method.gate_feature == "frozen":
            with torch.no_grad():
                phi = [(x[:, 0],) for x in self.vit.attention_inputs(images)]
        function = branch(self.bank.targets, method.gate, method.temperature)
        shared = zip(down.unbind(), up.unbind(), bases.unbind(), strict=True)
        return {number: (function, (*tensors, open_), phi[number]) for number, tensors in enumerate(shared)}

    def features(self, images: Tensor) -> Tensor:
        if not len(self.bank):
            return self.vit.features(images)
        return self.vit.features(images, weights=self.weights(), qkv=self.branches(images))

    def inputs(self, images: Tensor) -> list[Tensor]:
        """Inputs of the attention of all blocks, L times [B, tokens, d]."""
        if self.method.design_with == "frozen" or not len(self.bank):
            return self.vit.attention_inputs(images)
        return self.vit.attention_inputs(images, weights=self.weights(), qkv=self.branches(images))

    def calibrated(self, logits: Tensor, scores: Tensor) -> Tensor:
        """Logits [B, num_classes], those of the predicted task's classes raised; scores are [B, T]."""
        confidence, task = (scores / self.method.temperature).softmax(dim=1).max(dim=1)
        raised = (task[:, None] == self.task_of) * confidence[:, None]
        if self.method.calibration == "add":
            return logits + self.method.beta * raised
        return logits * (1 + raised)

    def forward(self, images: Tensor) -> Tensor:
        if self.training or self.method.calibration == "off" or not len(self.bank):
            return super().forward(images)
        features, similar = self.vit.features_and_readings(images, weights=self.weights(), qkv=self.branches(images))
        scores = torch.stack(list(similar.values())).mean(dim=0)[:, : len(self.bank)]
        return self.calibrated(self.classify(features), scores)

    def merged(self, update: Tensor | None = None) -> nn.Module:
        """The model itself: the residual directions depend on the image, so they cannot be folded into weights."""
        return self


@dataclass(frozen=True, kw_only=True, eq=False)
class DualLoRA(IncLoRA):
    """Hyper-parameters; all defaults are our choice.

    Attributes:
        rank: rank of the orthogonal direction of each task.
        rank_residual: rank of the residual direction of each task; 0: none.
        basis_from: C is that of class tokens (`cls`) or of all tokens (`tokens`).
        basis_samples: images of the task from which C is estimated; none: all.
        threshold: share of tr C that the bases should hold.
        basis_max: bound on the dimension of a task's basis.
        design_with: C is that of the network as it is (`current`) or as pre-trained (`frozen`).
        gate: eps, from the `norm-share` above; the greatest cosine with a basis vector (`cosine-max`); what exceeds the
            share of a random phi (`excess`); a `softmax` over the tasks; or always 1 (`one`).
        gate_feature: phi is the block's own input (`own`), or that of the pre-trained ViT, by one more pass (`frozen`).
        train_gate: the task's own eps in training is 1 (`one`) or as in prediction (`own`).
        calibration: logits of the predicted task are multiplied by 1 + c (`scale`) or increased by beta c (`add`), with
            c the confidence; or no task is predicted (`off`).
        beta: see `calibration`.
        temperature: of the confidence, and of the `softmax` gate.
    """

    paper: ClassVar[str] = "after DualLoRA (arXiv 2411.00623; no official code)"
    citations: ClassVar[tuple[str, ...]] = ("chen2024duallora",)
    stores: ClassVar[str] = "a basis of inputs per task and block"
    space: ClassVar[Mapping[str, Range]] = {"lr": LogUniform(1e-4, 0.1), "schedule": Choice("constant", "cosine")}

    rank: PositiveInt = 10
    rank_residual: NonNegativeInt = 10
    targets: tuple[Literal["q", "k", "v"], ...] = ("q", "v")
    boundary: Literal["stack"] = "stack"
    basis_from: Literal["cls", "tokens"] = "cls"
    basis_samples: PositiveInt | None = 256
    threshold: Annotated[float, Field(gt=0, le=1)] = 0.95
    basis_max: PositiveInt = 8
    design_with: Literal["current", "frozen"] = "current"
    gate: Gate = "norm-share"
    gate_feature: Literal["own", "frozen"] = "own"
    train_gate: Literal["one", "own"] = "one"
    calibration: Literal["scale", "add", "off"] = "scale"
    beta: NonNegativeFloat = 1.0
    temperature: PositiveFloat = 0.1
    optimizer: Literal["sgd", "adam", "adamw"] = "adamw"
    lr: PositiveFloat = 1e-3

    def check_backbone(self, backbone: VisionTransformer, num_tasks: int) -> None:
        if num_tasks * self.basis_max > backbone.embed_dim:
            raise UserError(
                f"after DualLoRA, the bases of {num_tasks} tasks with up to {self.basis_max} directions each do not "
                f"fit into the backbone's width {backbone.embed_dim}: choose basis_max of at most "
                f"{max(backbone.embed_dim // num_tasks, 1)}"
            )

    def passes(self, tasks: int) -> int:
        return 2 if self.gate_feature == "frozen" else 1

    def model(self, backbone: VisionTransformer, num_classes: int) -> LoRAModel:
        return DualLoRAModel(self, backbone, num_classes)

    def storage(self, backbone: VisionTransformer, num_classes: int, classes: Sequence[int]) -> dict[str, int]:
        dim, blocks, tasks = int(backbone.embed_dim), len(backbone.blocks), len(classes)
        return {
            "orthogonal": tasks * LoRABank.numbers(backbone, self.targets, self.rank),
            "residual": tasks * LoRABank.numbers(backbone, self.targets, self.rank_residual),
            "bases": tasks * blocks * dim * self.basis_max,
            "classes": num_classes,
            "head": num_classes * (dim + 1),
        }

    @torch.no_grad()
    def before_task(self, task: Task, images: TaskSamples) -> None:
        model, bank = task.model, task.model.bank
        covariances = self.covariances(model, images)
        memory = bank.memory(len(bank)).double() if len(bank) else covariances[:, :, :0]
        model.grow(self.rank + self.rank_residual, task.generator("direction"))
        most = min(self.basis_max, bank.dim)
        basis = torch.zeros(bank.blocks, bank.dim, most, dtype=torch.float64, device=covariances.device)
        for number, covariance in enumerate(covariances):
            found = leading(covariance, memory[number], self.threshold, most)
            basis[number, :, : found.shape[1]] = found
        bank.bases[-1] = nn.Parameter(basis.to(bank.A[0].dtype))
        model.task_of[list(task.classes)] = task.index

    def covariances(self, model: DualLoRAModel, images: TaskSamples) -> Tensor:
        """C [L, d, d] in fp64 of the task's first images in a random order."""
        left = self.basis_samples or len(images)
        total = torch.zeros(model.bank.blocks, model.bank.dim, model.bank.dim, dtype=torch.float64, device=model.device)
        count = 0
        for batch, _ in images.batches(augmented=True, shuffled=True):
            for number, x in enumerate(model.inputs(batch)):
                rows = (x[:left, :1] if self.basis_from == "cls" else x[:left]).flatten(0, 1).double()
                total[number] += rows.T @ rows
            count += len(rows)
            left -= len(batch)
            if left <= 0:
                break
        return total / count

    def phases(self, task: Task) -> list[Phase]:
        *factors, _ = task.model.bank.direction(-1)
        trained = [*(factor for factor in factors if factor.numel()), *task.model.head.parameters()]
        return [self.phase([{"params": trained}], self.objective(task))]

    @torch.no_grad()
    def traces(self, task: Task) -> Traces:
        """Table `bases`: what the memory holds and what the task has learned, by block.

        `basis` is the dimension of the task's basis, `used` the share of the inputs' space that all bases span, and
        `orthogonal` and `residual` are the norms of the task's two updates over all projections.
        """
        bank = task.model.bank
        A, B, bases = bank.residuals()
        residual = (B[-1] @ A[-1]).flatten(1).norm(dim=1)
        down, up = bank.factors(len(bank) - 1)
        orthogonal = (up @ down).flatten(1).norm(dim=1)
        columns = bases.abs().sum(dim=2).gt(0).sum(dim=2)
        return {
            "bases": [
                {
                    "stage": task.index,
                    "block": block,
                    "basis": int(columns[-1, block]),
                    "used": float(columns[:, block].sum()) / bank.dim,
                    "orthogonal": float(orthogonal[block]),
                    "residual": float(residual[block]),
                }
                for block in range(bank.blocks)
            ]
        }
