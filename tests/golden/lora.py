"""What the golden files of LoRA methods have in common: suites, each with a size of network, and its recipes."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Sequence
from functools import cache
from typing import ClassVar, Self

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from tests.golden import Fixture, normal, tiny_vit

INPUTS = r"^cfg/|/(images_)?checksum|/labels$|/(mid|init)/alpha_\w+$"


@cache
def _drawn(path: str, dim: int, depth: int, heads: int) -> VisionTransformer:
    """A backbone whose random streams begin with a path; drawing its weights takes longer than copying them."""

    def weight(name: str, shape: tuple[int, ...]) -> Tensor:
        full = f"{path}/{name}"
        if name.endswith(".bias"):
            return normal(full, shape, 0.02)
        if name.split(".")[-2:-1] in (["norm"], ["norm1"], ["norm2"]):
            return normal(full, shape, 0.1, 1.0)
        if name in ("cls_token", "pos_embed"):
            return normal(full, shape, 0.2)
        return normal(full, shape, 1 / math.sqrt(math.prod(shape[1:])))

    return tiny_vit(dim, depth, heads, weight)


class Suite:
    """One size of network with its backbone; the checksums of its weights and images are verified.

    Attributes:
        letters: of the updated projections.
    """

    letters: ClassVar[str]

    def __init__(self, fixture: Fixture, name: str) -> None:
        self.fixture = fixture
        self.name = name
        self.backbone = self.vit()
        for t in self.tasks:
            fixture.checksum(f"{name}/t{t}/images_checksum", self.images(t), 1e-9)

    @classmethod
    def all(cls, fixture: Fixture) -> list[Self]:
        """Those with a backbone, in the order of the file."""
        return [cls(fixture, key.split("/")[1]) for key in fixture.data if re.fullmatch(r"cfg/[^/]+/D", key)]

    @property
    def tasks(self) -> Sequence[int]:
        """The tasks t of which something may be stored."""
        raise NotImplementedError

    def images(self, t: int) -> Tensor:
        """All images of a task."""
        raise NotImplementedError

    def number(self, name: str) -> int:
        """An integer parameter of the suite."""
        return int(self.fixture[f"cfg/{self.name}/{name}"])

    def real(self, name: str) -> float:
        """A real parameter of the suite."""
        return float(self.fixture[f"cfg/{self.name}/{name}"])

    @property
    def path(self) -> str:
        """What the names of its random streams start with."""
        return f"{self.fixture.prefix}/{self.name}"

    def vit(self) -> VisionTransformer:
        """The backbone, with the checksums of its weights verified."""
        vit = copy.deepcopy(_drawn(f"{self.path}/vit", self.number("D"), self.number("depth"), self.number("heads")))
        for name, value in vit.state_dict().items():
            self.fixture.checksum(f"{self.name}/checksum/{name}", value, 1e-10)
        return vit

    @torch.no_grad()
    def fill(self, head: nn.Linear, tasks: int) -> None:
        """Fill a head with the recipe's rows of the first tasks."""
        classes, dim = self.number("C"), self.number("D")
        names = [f"{self.path}/head/task{k}" for k in range(tasks)]
        head.weight.copy_(torch.cat([normal(f"{name}/weight", (classes, dim), dim**-0.5) for name in names]))
        head.bias.copy_(torch.cat([normal(f"{name}/bias", (classes,), 0.1) for name in names]))

    def blocks(self) -> list[tuple[int, str]]:
        """Every block and its name."""
        return [(block, f"blocks.{block}") for block in range(self.number("depth"))]

    def projections(self) -> list[tuple[int, int, str]]:
        """Block, position in the bank, and name of every updated projection."""
        return [
            (block, p, f"{name}.{letter}") for block, name in self.blocks() for p, letter in enumerate(self.letters)
        ]
