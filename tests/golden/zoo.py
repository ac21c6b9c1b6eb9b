"""What the golden files of variants of LoRA have in common: one task on a tiny ViT, with factors on q and v.

The recipe draws every parameter of the adapter from a name. A replay passes them to the bank of the method, then judges
the forward pass, the gradients at the start and some steps of the method's own phase on the one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from cl_bench.contract.task import Task
from cl_bench.methods.inclora import IncLoRA
from cl_bench.models.lora import LoRAModel
from tests.golden import Check, Fixture, lora, normal, train

INPUTS = lora.INPUTS
START, GRADIENT = 1e-5, 1e-4
"""Tolerances of the forward pass and of gradients and weight updates, before the first step."""
Layout = Mapping[str, Callable[[Tensor], Tensor]]
"""File name of each of a direction's parameters, in the order of the bank's parts -> its layout in the file."""


def same(parameter: Tensor) -> Tensor:
    """The layout of the bank, [L, P, ...]."""
    return parameter


def transposed(parameter: Tensor) -> Tensor:
    """The matrix of every projection transposed."""
    return parameter.transpose(2, 3)


class Suite(lora.Suite):
    """One size of network with the images and labels of its one task."""

    letters = "qv"
    tasks = ()

    def __init__(self, fixture: Fixture, name: str) -> None:
        super().__init__(fixture, name)
        fixture.checksum(f"{name}/images_checksum", self.images(), 1e-10)
        self.labels = torch.from_numpy(fixture[f"{name}/labels"]).long()

    def images(self, t: int = 0) -> Tensor:
        return normal(f"{self.path}/images", (self.number("bs"), 3, 32, 32), 0.5)

    def injected(self, name: str, shape: tuple[int, ...], scale: float) -> Tensor:
        """The recipe's values of a parameter of all projections, [L, P, *shape]."""
        drawn = [normal(f"{self.path}/{place}.{name}", shape, scale) for _, _, place in self.projections()]
        return torch.stack(drawn).unflatten(0, (-1, len(self.letters)))

    def factors(self) -> tuple[Tensor, Tensor]:
        """The recipe's factors of plain LoRA, A [L, P, r, D] and B [L, P, D, r]."""
        rank, dim = self.number("r"), self.number("D")
        return self.injected("A", (rank, dim), dim**-0.5), self.injected("B", (dim, rank), 0.1)

    @torch.no_grad()
    def fill(self, head: nn.Linear, tasks: int = 1) -> None:
        classes, dim = self.number("C"), self.number("D")
        head.weight.copy_(normal(f"{self.path}/head/weight", (classes, dim), dim**-0.5))
        head.bias.copy_(normal(f"{self.path}/head/bias", (classes,), 0.1))


class Case:
    """A method's model with the recipe's parameters, the task, and the phase that trains it.

    Args:
        suite: network, images and labels.
        key: where its arrays are stored: the suite's name, with the case's name if cases have names.
        method: method with the hyper-parameters of the file.
        parameters: of the one direction, in the order of the bank's parts, [L, P, ...].
        layout: how the file names and stores them.
    """

    def __init__(self, suite: Suite, key: str, method: IncLoRA, parameters: Sequence[Tensor], layout: Layout) -> None:
        self.suite, self.fixture, self.key, self.method, self.layout = suite, suite.fixture, key, method, layout
        classes = suite.number("C")
        model = method.build(suite.vit(), classes)
        assert isinstance(model, LoRAModel)
        model.bank.append(*parameters)
        suite.fill(model.head)
        self.model = model
        self.images, self.labels = suite.images(), suite.labels
        every = tuple(range(classes))
        self.task = Task(0, every, every, classes, None, model, ())
        (self.phase,) = method.phases(self.task)

    # --- values ------------------------------------------------------------------------------------------------

    def parts(self) -> dict[str, Tensor]:
        """Copies of the direction's parameters by their names in the file, [L, P, ...] in its layout."""
        return self.laid_out(self.model.bank.direction(-1))

    def gradients(self) -> dict[str, Tensor]:
        """Gradients of the direction's parameters, likewise."""
        parameters = self.model.bank.direction(-1)
        return self.laid_out([torch.zeros_like(p) if p.grad is None else p.grad for p in parameters])

    def head(self) -> dict[str, Tensor]:
        """Copies of the head's parameters by their names in the file."""
        return {f"head_{name}": p.detach().double().clone() for name, p in self.model.head.named_parameters()}

    def laid_out(self, values: Sequence[Tensor]) -> dict[str, Tensor]:
        """Values of the shapes of the direction's parameters, by their names in the file."""
        pairs = zip(self.layout.items(), values, strict=True)
        return {name: view(value.detach().double()).clone() for (name, view), value in pairs}

    @torch.no_grad()
    def update(self) -> Tensor:
        """What is added to the weights of all projections, [L, P, D, D]."""
        return self.model.eval().update().double()

    # --- comparisons -------------------------------------------------------------------------------------------

    def compare(self, name: str, value: Any, tolerance: float, **options: Any) -> Iterator[Check]:
        """Compare one array of the case (see `Fixture.compare`)."""
        yield from self.fixture.compare(f"{self.key}/{name}", value, tolerance, **options)

    def compare_all(
        self,
        place: str,
        values: Mapping[str, Tensor],
        tolerance: float,
        start: Mapping[str, Tensor] | None = None,
        variant: str = "",
    ) -> Iterator[Check]:
        """Compare arrays of all projections, stored as PLACE/NAME/PROJECTION (without PLACE if it is empty).

        Args:
            place: folder in the case: `grad`, `after`, ...
            values: [L, P, ...] by name.
            tolerance: of the scaled maximum error.
            start: compare the changes from these values instead.
            variant: added to the quantities' names.
        """
        folder = f"{self.key}/{place}".rstrip("/")
        for name, value in values.items():
            for block, p, projection in self.suite.projections():
                base = None if start is None else start[name][block, p]
                key = f"{folder}/{name}/{projection}"
                yield from self.fixture.compare(key, value[block, p], tolerance, variant, start=base)

    def start(self) -> Iterator[Check]:
        """Features, logits, losses, the weight update, and gradients, which are left in the parameters."""
        features = self.model.features(self.images)
        logits = self.model.head(features)
        loss = self.phase.loss(logits, self.labels).mean()  # type: ignore[misc]
        loss.backward()
        ce = self.method.cross_entropy(self.task)(logits, self.labels).mean()
        for name, value in {"features": features, "logits": logits, "ce": ce, "loss": loss}.items():
            yield from self.compare(name, value, START)
        yield from self.compare_all("", {"deltaW": self.update()}, GRADIENT)
        found = [parameter.grad for parameter in self.phase.trainable() if parameter.grad is not None]
        yield from self.compare("grad_norm", torch.stack([gradient.norm() for gradient in found]).norm(), GRADIENT)
        yield from self.compare_all("grad", self.gradients(), GRADIENT)
        for name, parameter in self.model.head.named_parameters():
            yield from self.compare(f"grad/head_{name}", parameter.grad, GRADIENT)

    def train(self, steps: int) -> Tensor:
        """Take steps of the phase on the one batch; returns the loss before each."""
        return train(replace(self.phase, epochs=steps), self.model, lambda epoch: [(self.images, self.labels)])
