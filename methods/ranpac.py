"""RanPAC: random projections and ridge regression on pre-trained features (McDonnell et al., NeurIPS 2023,
arXiv 2307.02251).

Checked against RanPAC/RanPAC @ 012927f. On the first task parameters beside the frozen backbone are trained with a
cosine head; then they are frozen, too. From there on nothing is trained: with features f(x), a fixed random W with
standard normal entries and h(x) = relu(f(x) W) in M dimensions, each task adds to

    G = sum h h^T,   Q = sum h y^T      (y one-hot),

and the classifier is the ridge solution (G + lambda I)^-1 Q. lambda in 10^-8 ... 10^8 is the one with the least squared
error on the last fifth of the current task's images, when it is fitted to the others.

G and Q are kept, and all equations solved, in float64: in float32 the choice of a small lambda is noise. All 17 fits
for that choice come from one eigendecomposition, of H^T H or, where there are fewer images than dimensions, of H H^T,
which gives the same. Left out: visual prompt tuning (used for two data sets that are not here), and dropout.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from cl_bench.contract.gradient import GradientMethod
from cl_bench.contract.method import Traces
from cl_bench.contract.phase import Phase
from cl_bench.contract.schedules import Schedule
from cl_bench.contract.search import Choice, LogUniform, Range
from cl_bench.contract.task import Task
from cl_bench.data.samples import TaskSamples
from cl_bench.experiment import Value
from cl_bench.models.adapters import Adapters, ScaleShift
from cl_bench.models.base import FeatureModel
from cl_bench.models.heads import CosineHead, cosine
from cl_bench.models.prompts import check_blocks

RIDGES = tuple(10.0**power for power in range(-8, 9))
Adaptation = Literal["adapter", "ssf", "frozen"]


def validation_errors(H: Tensor, Y: Tensor) -> Tensor:
    """Mean squared errors [17] of ridge regression, for each lambda, on the last fifth of the rows, fitted on the rest.

    Args:
        H: projected features [n, M].
        Y: targets [n, C].
    """
    H, Y = H.double(), Y.double()
    fitted = int(0.8 * len(H))
    fit, held_out, target = H[:fitted], H[fitted:], Y[:fitted]
    if fitted < H.shape[1]:
        energy, U = torch.linalg.eigh(fit @ fit.T)
        left, right = held_out @ fit.T @ U, U.T @ target
    else:
        energy, U = torch.linalg.eigh(fit.T @ fit)
        left, right = held_out @ U, U.T @ (fit.T @ target)
    energy = energy.clamp_min(0)
    predictions = [(left / (energy + ridge)) @ right for ridge in RIDGES]
    return torch.stack([(prediction - Y[fitted:]).square().mean() for prediction in predictions])


def choose_ridge(H: Tensor, Y: Tensor) -> float:
    """The lambda with the smallest validation error; 1 if there are too few rows to hold some out."""
    return RIDGES[int(validation_errors(H, Y).argmin())] if len(H) > 1 else 1.0


class RidgeHead(nn.Module):
    """Features [B, d] -> logits [B, C]: h = relu(f W) times the ridge solution, or the cosine of both (PILOT's head).

    Buffers: `projection` W [d, M] (of size 0: none, h = f), `gram` G [M, M] and `moments` Q [M, C] in float64, `weight`
    [M, C], and `ridge`, the lambda of the last solution.
    """

    projection: Tensor
    gram: Tensor
    moments: Tensor
    weight: Tensor
    ridge: Tensor

    def __init__(self, dim: int, num_classes: int, projection: int, kind: Literal["linear", "cosine"]) -> None:
        super().__init__()
        self.kind = kind
        size = projection or dim
        self.register_buffer("projection", torch.randn(dim, projection))
        self.register_buffer("gram", torch.zeros(size, size, dtype=torch.float64))
        self.register_buffer("moments", torch.zeros(size, num_classes, dtype=torch.float64))
        self.register_buffer("weight", torch.zeros(size, num_classes))
        self.register_buffer("ridge", torch.ones((), dtype=torch.float64))

    def project(self, features: Tensor) -> Tensor:
        """h(x) [B, M]."""
        return (features @ self.projection).relu() if self.projection.shape[1] else features

    def update(self, H: Tensor, Y: Tensor) -> None:
        """Add a task's projected features [n, M] and one-hot targets [n, C]; choose lambda on them."""
        self.gram += H.double().T @ H.double()
        self.moments += H.double().T @ Y.double()
        self.ridge.fill_(choose_ridge(H, Y))

    def solve(self) -> None:
        """The ridge solution with the current lambda."""
        system = self.gram + self.ridge * torch.eye(len(self.gram), dtype=self.gram.dtype, device=self.gram.device)
        factor, failed = torch.linalg.cholesky_ex(system)
        # With a lambda below the rounding of G the system need not be positive definite any more.
        solution = torch.linalg.solve(system, self.moments) if failed else torch.cholesky_solve(self.moments, factor)
        self.weight.copy_(solution)

    def forward(self, features: Tensor) -> Tensor:
        H = self.project(features)
        return cosine(H, self.weight.T) if self.kind == "cosine" else H @ self.weight


class RanPACModel(FeatureModel):
    """A backbone, what adapts it to the first task, and the ridge head; `first` is the head of the first task."""

    head: RidgeHead

    def __init__(
        self,
        backbone: VisionTransformer,
        num_classes: int,
        adaptation: Adaptation,
        width: int,
        projection: int,
        kind: Literal["linear", "cosine"] = "linear",
    ) -> None:
        dim = int(backbone.num_features)
        super().__init__(backbone.requires_grad_(False), RidgeHead(dim, num_classes, projection, kind))
        self.adapter: Adapters | ScaleShift | None = None
        if adaptation != "frozen":
            self.adapter = Adapters(backbone, width) if adaptation == "adapter" else ScaleShift(backbone)
            self.first = CosineHead(dim, num_classes)

    def features(self, images: Tensor) -> Tensor:
        if self.adapter is None:
            return super().features(images)
        return self.adapter.features(self.vit, images)


_PAPER: Mapping[str, Value] = {
    "epochs": 20, "batch_size": 48, "optimizer": "sgd", "lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4,
    "schedule": "cosine", "projection": 10_000,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class RanPAC(GradientMethod):
    """Hyper-parameters; the defaults are the released ones for CIFAR-100. The optimiser's are for the first task only.

    Attributes:
        adaptation: parameters trained on the first task: bottleneck adapters parallel to the MLPs (`adapter`), scales
            and shifts of all channels (`ssf`), or none (`frozen`).
        width: width of the bottleneck adapters.
        projection: dimension M of the random projection; 0 applies the ridge regression to the features themselves.
        head: `linear`, or `cosine` similarity of projected features and ridge solution (PILOT).
    """

    paper: ClassVar[str] = "RanPAC (NeurIPS 2023, arXiv 2307.02251)"
    citations: ClassVar[tuple[str, ...]] = ("mcdonnell2023ranpac",)
    cited_with: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "adaptation=adapter": ("chen2022adaptformer",),
        "adaptation=ssf": ("lian2022ssf",),
    }
    stores: ClassVar[str] = "second moments of projected features"
    published: ClassVar[Mapping[str, Mapping[str, Value]]] = {
        "cifar100": {**_PAPER, "adaptation": "adapter"},
        "imagenet-r": {**_PAPER, "adaptation": "ssf"},
        "imagenet-a": {**_PAPER, "adaptation": "ssf"},
        "cub200": {**_PAPER, "adaptation": "adapter"},
        "domainnet": {**_PAPER, "adaptation": "adapter"},
    }
    space: ClassVar[Mapping[str, Range]] = {
        "lr": LogUniform(1e-3, 0.3),
        "schedule": Choice("constant", "cosine"),
        "adaptation": Choice("adapter", "ssf"),
    }

    adaptation: Adaptation = "adapter"
    width: PositiveInt = 64
    projection: NonNegativeInt = 10_000
    head: Literal["linear", "cosine"] = "linear"
    batch_size: PositiveInt = 48
    weight_decay: NonNegativeFloat = 5e-4
    schedule: Schedule = "cosine"

    def build(self, backbone: VisionTransformer, num_classes: int) -> FeatureModel:
        if self.adaptation == "adapter":
            check_blocks(backbone, range(len(backbone.blocks)), "ranpac's blocks")
        return RanPACModel(backbone, num_classes, self.adaptation, self.width, self.projection, self.head)

    def storage(self, backbone: VisionTransformer, num_classes: int, classes: Sequence[int]) -> dict[str, int]:
        dim = int(backbone.num_features)
        size = self.projection or dim
        adapters = {
            "adapter": len(backbone.blocks) * (2 * dim * self.width + self.width + dim),
            "ssf": 2 * sum(layer.weight.shape[0] for layer in ScaleShift.layers_of(backbone).values()),
            "frozen": 0,
        }[self.adaptation]
        return {
            "adapter": adapters,
            "first head": (num_classes * dim + 1) * (self.adaptation != "frozen"),
            "projection": dim * self.projection,
            "second moments": size * size + 2 * size * num_classes + 1,
        }

    def phases(self, task: Task) -> list[Phase]:
        model = task.model
        if task.index or model.adapter is None:
            return []
        parameters = [*model.adapter.parameters(), *model.first.parameters()]
        return [
            self.phase(
                [{"params": parameters}],
                self.cross_entropy(task),
                lambda images: model.first(model.features(images)),
            )
        ]

    def after_task(self, task: Task, images: TaskSamples) -> None:
        head = task.model.head
        features, labels = images.collect(task.model.features)
        order = torch.randperm(len(labels), generator=task.generator("validation")).to(labels.device)
        head.update(head.project(features[order]), nn.functional.one_hot(labels[order], task.num_classes))
        head.solve()

    def traces(self, task: Task) -> Traces:
        """The lambda of each stage."""
        return {"ridge": [{"stage": task.index, "value": float(task.model.head.ridge)}]}
