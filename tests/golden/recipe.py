"""What the golden files of prompt and prototype methods have in common: random tensors, and a small network."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from cl_bench.contract.method import Method
from cl_bench.contract.phase import Phase
from cl_bench.contract.task import Task
from tests.golden import Check, Fixture, normal, quantity, tiny_vit

INPUTS = r"^meta\.(?!class_counts)|(^|\.)labels$"
PRECISIONS = {torch.float64: 1e-6, torch.float32: 5e-5}
"""Of what is stored in fp64: to compute in, and the tolerance."""
CANCELS = 0.01
"""Least scale of what is small only if it happens to cancel: losses, and gradients of biases."""
GELUS: dict[str, Callable[[], nn.Module]] = {"erf": nn.GELU, "tanh": partial(nn.GELU, approximate="tanh")}
HEADS = 4
_SCALES = {
    "attn.qkv.weight": 0.2,
    "attn.proj.weight": 0.15,
    "mlp.fc1.weight": 0.15,
    "mlp.fc2.weight": 0.08,
    "patch_embed.proj.weight": 0.05,
    "cls_token": 0.5,
    "pos_embed": 0.5,
    ".bias": 0.02,
}


@dataclass(frozen=True)
class Part:
    """Keys of a file that begin alike.

    Attributes:
        start: what they begin with.
        dtype: to compute in, if what is stored is in fp64.
    """

    fixture: Fixture
    start: str
    dtype: torch.dtype | None = None

    def __contains__(self, key: str) -> bool:
        return self.start + key in self.fixture

    def compare(self, key: str, value: Any) -> Iterator[Check]:
        """Compare with a stored array, if it is there."""
        single = 1e-4 if "grad" in key else 2e-5
        tolerance = single if self.dtype is None else PRECISIONS[self.dtype]
        floor = CANCELS if re.search(r"(bias|loss|ce|sim)$", key) else 0.0
        return self.fixture.compare(self.start + key, value, tolerance, self.variant, floor=floor)

    def equal(self, key: str, value: Any) -> Iterator[Check]:
        """Compare indices."""
        return self.fixture.equal(self.start + key, value, self.variant)

    def labels(self, order: Tensor) -> Tensor:
        """Stored labels of the batch, in another order."""
        return torch.from_numpy(self.fixture[f"{self.start}labels"]).long()[order]

    def untouched(self, key: str, model: nn.Module, phase: Phase) -> Iterator[Check]:
        """Parameters that a phase does not train must not get a gradient."""
        if key in self:
            trained = {id(parameter) for parameter in phase.trainable()}
            gradients = [p.grad for p in model.parameters() if id(p) not in trained and p.grad is not None]
            found = max((float(gradient.abs().max()) for gradient in gradients), default=0.0)
            yield Check(f"{quantity(self.start + key)} [of all others]", found, 0.0, self.start + key)

    @property
    def variant(self) -> str:
        """What names of quantities get if there are several precisions."""
        return "" if self.dtype is None else f" [{str(self.dtype).removeprefix('torch.')}]"


def gradient(parameter: nn.Parameter) -> Tensor:
    """What a backward pass left: zeros if it never got there."""
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


@contextmanager
def normals(draw: Callable[..., Tensor]) -> Iterator[None]:
    """All normal numbers that are drawn meanwhile come from `draw(*shape, generator)`."""
    with mock.patch.object(torch, "randn", draw):
        yield


class Recipe:
    """The random tensors of a file; the probe of their stream is verified."""

    def __init__(self, fixture: Fixture) -> None:
        self.fixture = fixture
        fixture.verify("meta.crc_probe", self("probe", (4,)))

    def __call__(self, name: str, shape: Sequence[int], scale: float = 1.0, shift: float = 0.0) -> Tensor:
        return normal(self.fixture.prefix + name, tuple(shape), scale, shift)

    def stacked(self, names: Sequence[str], shape: Sequence[int], scale: float = 1.0) -> Tensor:
        """Several tensors of one shape."""
        return torch.stack([self(name, shape, scale) for name in names])

    def vit(self, dim: int, depth: int, gelu: str = "erf") -> VisionTransformer:
        """The small ViT, whose weights come from their names."""

        def weight(name: str, shape: tuple[int, ...]) -> Tensor:
            if "norm" in name and name.endswith(".weight"):
                return self(f"vit.{name}", shape, 0.1, 1.0)
            return self(f"vit.{name}", shape, next(s for ending, s in _SCALES.items() if name.endswith(ending)))

        return tiny_vit(dim, depth, HEADS, weight, act_layer=GELUS[gelu])


class Network(Recipe):
    """A small ViT, of which the file holds the sum of all weights, a head, and images.

    Sizes come from the file as far as they can be seen there (not the number of attention heads, which is 4), and
    else from the recipe.

    Args:
        fixture: the file.
        images: name of the images.
        part: what the keys of one part of the file begin with.
    """

    def __init__(self, fixture: Fixture, images: str, part: str = "") -> None:
        super().__init__(fixture)
        self.dim = fixture.size(
            r".*(query|feature|tokens_out|cls_out|gs_new.*|prompt_[KV].*|grad(?!.*bias).*)$", -1, 64
        )
        self.classes = fixture.size(r".*logits$", -1, fixture.size(r".*head\.(weight|bias)$", 0, 10))
        self.depth = self._depth()
        per_image = r"(query|feature|logits|labels|topk_idx|(similarity|test\.slot)(\.\d+)?|_out)$"
        batch = fixture.size(rf"{part}.*{per_image}", 0, 5)
        self.images = self(f"{images}.images", (batch, 3, 32, 32))
        self.order = torch.arange(batch)
        self.shuffled = torch.from_numpy(fixture["meta.perm"]) if fixture.any(r".*\.perm\.") else self.order

    def _depth(self) -> int:
        """Number of blocks with which the sum is that of the file.

        Raises:
            Unusable: there is none, so the random stream is not the one of the file.
        """
        if "meta.vit_abs_sum" not in self.fixture.data:
            return 6
        for most in (6, 12):
            totals = self._sums(most)
            stored = self.fixture["meta.vit_abs_sum"]
            fitting = [depth for depth in (6, *totals) if np.isclose(totals[depth], stored, rtol=1e-10, atol=0)]
            if fitting:
                return fitting[0]
        self.fixture.verify("meta.vit_abs_sum", totals[most], 1e-10)
        return most

    def _sums(self, most: int) -> dict[int, float]:
        """Sum of the absolute weights of ViTs of 1 to `most` blocks; those of a block do not depend on the depth."""
        outside, blocks = 0.0, [0.0] * most
        for name, value in self.vit(self.dim, most).state_dict().items():
            total, part = float(value.double().abs().sum()), name.split(".")
            if part[0] == "blocks":
                blocks[int(part[1])] += total
            else:
                outside += total
        return {depth: outside + sum(blocks[:depth]) for depth in range(1, most + 1)}

    @torch.no_grad()
    def model(self, method: Method, gelu: str = "erf") -> Any:
        """The method's model on the backbone, with the recipe's head."""
        model: Any = method.build(self.vit(self.dim, self.depth, gelu), self.classes)
        model.head.weight.copy_(self("head.weight", (self.classes, self.dim), 0.2))
        model.head.bias.copy_(self("head.bias", (self.classes,), 0.02))
        return model

    def width(self, labels: Mapping[str, int | None], tasks: int | None = None) -> int:
        """Classes per task: what the sizes or the gradients of biases tell, if the labels agree, or else the labels.

        Args:
            labels: key of each batch's labels, and its task, if the file tells that.
            tasks: how many there are, if the file tells that.
        """
        batches = [(self.fixture[key], task) for key, task in labels.items() if key in self.fixture]

        def fits(width: int) -> bool:
            owners = [(found // width, found[0] // width if task is None else task) for found, task in batches]
            return self.classes % width == 0 and all(bool((found == task).all()) for found, task in owners)

        biases = [value for key, value in self.fixture.data.items() if key.endswith("grad.head.bias")]
        rows = min((np.count_nonzero(bias) for bias in biases), default=2)
        guesses = [self.classes // tasks] if tasks else []
        candidates = [*guesses, rows, *range(2, self.classes + 1)]
        return next((n for n in candidates if n and fits(n)), self.classes)

    def task(self, model: Any, t: int, width: int, num_tasks: int | None = None) -> Task:
        """A task of so many classes."""
        classes = tuple(range(t * width, (t + 1) * width))
        return Task(t, classes, tuple(range((t + 1) * width)), self.classes, num_tasks, model, ())
