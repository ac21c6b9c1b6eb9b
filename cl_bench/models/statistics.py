"""Gaussians of each class's features, from which features of old tasks are drawn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from cl_bench.models.growing import Growing
from cl_bench.randomness import Key, generator, permutation

Covariance = Literal["full", "variance", "shared"]
RIDGE = 1e-4
"""Added to the diagonal of every covariance, as in SLCA and HiDe-Prompt."""


class ClassStatistics(Growing):
    """A Gaussian of the features of each class, in the order in which classes are added.

    A class that several tasks contain (in different domains) has one Gaussian per task; their mixture describes it.

    Args:
        dim: number d of features.
        covariance: `full`, `variance` (diagonal), or `shared` (pooled over all classes).

    Attributes:
        labels: label of each of the n Gaussians, int64 [n].
        tasks: task of each Gaussian, int64 [n].
        counts: number of images of each Gaussian, int64 [n].
        means: [n, d].
        factors: L with covariance L L^T: Cholesky factors [n, d, d] (`full`), standard deviations [n, d] (`variance`),
            or the Cholesky factor of the pooled covariance [1, d, d] (`shared`).
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
        """Number of Gaussians; the number of classes if no class occurs in two tasks."""
        return len(self.labels)

    @torch.no_grad()
    def update(self, features: Tensor, labels: Tensor, task: int) -> None:
        """Add a Gaussian for each class of a task.

        Covariances are unbiased, plus 1e-4 on the diagonal; a class with a single image has that diagonal alone.

        Args:
            features: features [n, d] of all training images of the task.
            labels: their labels [n].
            task: position of the task in the stream.
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

    def by_task(self) -> list[Tensor]:
        """Labels of each task, int64 [n], in the order of the tasks."""
        return [self.labels[self.tasks == task] for task in self.tasks.unique()]

    def draw(self, noise: Tensor, shrink: float = 0.0) -> Tensor:
        """Map standard normal noise to features of all Gaussians.

        Args:
            noise: standard normal numbers [n, m, d].
            shrink: how far the means of the oldest classes are pulled towards 0: with t + 1 tasks, means of task k are
                multiplied by 1 - shrink (t - k) / (t + 1) (SLCA: 0.1).

        Returns:
            m features of each of the n Gaussians, [n, m, d].
        """
        ages = (self.tasks.max() - self.tasks) / (self.tasks.max() + 1)
        means = self.means * (1 - shrink * ages)[:, None]
        if self.covariance == "variance":
            return means[:, None] + noise * self.factors[:, None]
        return means[:, None] + noise @ self.factors.transpose(1, 2)

    def batches(self, per_class: int, key: Key, shrink: float = 0.0) -> Iterator[tuple[Tensor, Tensor, int]]:
        """Draw one epoch of features in random order.

        Args:
            per_class: features drawn per Gaussian, and batch size.
            key: key of the random draws; equal keys give equal batches.
            shrink: see `draw`.

        Yields:
            Batches of (features [b, d], labels [b], b).
        """
        noise = torch.randn(len(self), per_class, self.means.shape[1], generator=generator((*key, "noise")))
        drawn = self.draw(noise.to(self.means), shrink).flatten(0, 1)
        labels = self.labels.repeat_interleave(per_class)
        order = torch.from_numpy(permutation((*key, "order"), len(labels))).to(labels.device)
        for chosen in order.split(per_class):
            yield drawn[chosen], labels[chosen], len(chosen)

    @staticmethod
    def numbers(covariance: Covariance, dim: int, classes: Sequence[int]) -> int:
        """Number of stored numbers.

        Args:
            covariance: see `ClassStatistics`.
            dim: number of features.
            classes: number of classes of each task.
        """
        n = sum(classes)
        return n * (3 + dim) + {"full": n * dim * dim, "variance": n * dim, "shared": dim * dim}[covariance]

    def _factor(self, covariance: Tensor) -> Tensor:
        """Factor of a covariance [d, d] with the ridge added, in the form in which it is stored."""
        ridged = covariance + self._ridge(covariance)
        factor = ridged.diagonal().sqrt() if self.covariance == "variance" else torch.linalg.cholesky(ridged)
        return factor.to(self.means.dtype)

    @staticmethod
    def _ridge(like: Tensor) -> Tensor:
        return RIDGE * torch.eye(len(like), dtype=like.dtype, device=like.device)
