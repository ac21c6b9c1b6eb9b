"""Statistics of each class's features: a Gaussian per class and task, to draw features of old tasks from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from cl_bench.models.growing import Growing
from cl_bench.randomness import Key, generator, permutation

Covariance = Literal["full", "variance", "shared"]
RIDGE = 1e-4
"""Added to the diagonal of every covariance (SLCA, HiDe-Prompt)."""


class ClassStatistics(Growing):
    """Mean and covariance of the features of each class seen, in the order in which they came. A class that several
    tasks bring (from different domains) has several: their mixture describes it.

    Kept are `labels` and `tasks` [n], `counts` [n], `means` [n, d] and `factors`: L with covariance L L^T, the
    Cholesky factors [n, d, d] (`full`), standard deviations [n, d] (`variance`), or one factor of the covariance
    pooled over classes [1, d, d] (`shared`).

    Args:
        dim: d.
        covariance: what is kept of each class's covariance.
    """

    labels: Tensor
    tasks: Tensor
    counts: Tensor
    means: Tensor
    factors: Tensor

    def __init__(self, dim: int, covariance: Covariance = "full") -> None:
        super().__init__()
        self.covariance = covariance
        for name in ("labels", "tasks", "counts"):
            self.register_buffer(name, torch.zeros(0, dtype=torch.int64))
        self.register_buffer("means", torch.zeros(0, dim))
        self.register_buffer("factors", torch.zeros(0, dim) if covariance == "variance" else torch.zeros(0, dim, dim))

    def __len__(self) -> int:
        """Number of Gaussians: of classes, where no class comes twice."""
        return len(self.labels)

    @torch.no_grad()
    def update(self, features: Tensor, labels: Tensor, task: int) -> None:
        """Add the classes of a task from all features [n, d] of its training images.

        Covariances are unbiased, plus 1e-4 on the diagonal; of a class with one image only that remains.
        """
        classes = labels.unique()
        parts = [features[labels == label].double() for label in classes]
        counts = torch.tensor([len(part) for part in parts], device=features.device)
        means = torch.stack([part.mean(dim=0) for part in parts])
        scatters = [(part - mean).T @ (part - mean) for part, mean in zip(parts, means, strict=True)]
        if self.covariance == "shared":
            pooled = torch.stack(scatters).sum(dim=0)
            if len(self):
                old = self.factors[0].double()
                pooled = pooled + (old @ old.T - self._ridge(old)) * (self.counts - 1).sum()
            freedom = (counts - 1).sum() + (self.counts - 1).sum()
            self.factors = self._factor(pooled / freedom.clamp_min(1))[None]
        else:
            of_class = [scatter / max(len(part) - 1, 1) for scatter, part in zip(scatters, parts, strict=True)]
            self.factors = torch.cat([self.factors, torch.stack([self._factor(each) for each in of_class])])
        self.labels = torch.cat([self.labels, classes])
        self.tasks = torch.cat([self.tasks, torch.full_like(classes, task)])
        self.counts = torch.cat([self.counts, counts])
        self.means = torch.cat([self.means, means.to(self.means.dtype)])

    def by_task(self) -> list[list[int]]:
        """The labels of each task, in the order of the tasks."""
        return [self.labels[self.tasks == task].tolist() for task in self.tasks.unique()]

    def draw(self, noise: Tensor, shrink: float = 0.0) -> Tensor:
        """Features [n, m, d] of all classes from standard normals [n, m, d].

        Args:
            shrink: by how much the means of the oldest classes are pulled to 0: those of task k, of t + 1 tasks, are
                multiplied with 1 - shrink (t - k) / (t + 1) (SLCA: 0.1).
        """
        ages = (self.tasks.max() - self.tasks) / (self.tasks.max() + 1)
        means = self.means * (1 - shrink * ages)[:, None]
        if self.covariance == "variance":
            return means[:, None] + noise * self.factors[:, None]
        return means[:, None] + noise @ self.factors.transpose(1, 2)

    def batches(self, per_class: int, key: Key, shrink: float = 0.0) -> Iterator[tuple[Tensor, Tensor, int]]:
        """One epoch of drawn features, `per_class` of each class, shuffled: (features, labels, all valid) in batches of
        `per_class`."""
        noise = torch.randn(len(self), per_class, self.means.shape[1], generator=generator((*key, "noise")))
        drawn = self.draw(noise.to(self.means), shrink).flatten(0, 1)
        labels = self.labels.repeat_interleave(per_class)
        order = torch.from_numpy(permutation((*key, "order"), len(labels))).to(labels.device)
        for chosen in order.split(per_class):
            yield drawn[chosen], labels[chosen], len(chosen)

    @staticmethod
    def numbers(covariance: Covariance, dim: int, classes: Sequence[int]) -> int:
        """How many numbers are kept of so many classes in each task."""
        n = sum(classes)
        return n * (3 + dim) + {"full": n * dim * dim, "variance": n * dim, "shared": dim * dim}[covariance]

    def _factor(self, covariance: Tensor) -> Tensor:
        ridged = covariance + self._ridge(covariance)
        factor = ridged.diagonal().sqrt() if self.covariance == "variance" else torch.linalg.cholesky(ridged)
        return factor.to(self.means.dtype)

    @staticmethod
    def _ridge(like: Tensor) -> Tensor:
        return RIDGE * torch.eye(len(like), dtype=like.dtype, device=like.device)
