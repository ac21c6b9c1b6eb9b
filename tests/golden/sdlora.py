"""SD-LoRA's and SD-LoRA-KD's golden file, replayed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cl_bench.contract.task import Task
from cl_bench.methods.sdlora import SDLoRA, SDLoRAModel
from cl_bench.methods.sdlora_kd import SDLoRAKDModel
from tests.golden import Check, Fixture, Kind, lora, normal, train

_PAPER = {"norm": "frobenius", "normalise_current": True}


class Suite(lora.Suite):
    """One size of network; its recipes of images and of directions."""

    letters = "qv"

    @property
    def tasks(self) -> list[int]:
        return [int(t) for t in np.atleast_1d(self.fixture[f"cfg/{self.name}/tasks"])]

    def images(self, t: int) -> Tensor:
        return normal(f"{self.path}/t{t}/images", (self.number("bs"), 3, 32, 32), 0.5)

    def factors(self, folder: str, down: str = "A", up: str = "B") -> tuple[Tensor, Tensor]:
        """A direction of the recipe: A [L, P, r, D], B [L, P, D, r]."""
        rank, dim = self.number("r"), self.number("D")
        names = [f"{self.path}/{folder}/{name}" for _, _, name in self.projections()]
        A = torch.stack([normal(f"{name}.{down}", (rank, dim), dim**-0.5) for name in names])
        B = torch.stack([normal(f"{name}.{up}", (dim, rank), 0.1) for name in names])
        return A.unflatten(0, (-1, 2)), B.unflatten(0, (-1, 2))


class Case:
    """Our model in the state of one stored case, and the phase that trains it."""

    def __init__(self, suite: Suite, t: int, case: str, dtype: torch.dtype = torch.float32, **options: Any) -> None:
        fixture, rank, classes = suite.fixture, suite.number("r"), suite.number("C")
        method = SDLoRA(**{"rank": rank, "lr": 0.01, **options})
        total = (t + 1) * classes
        # Every case has its own backbone: weights are cast in place.
        model = method.build(suite.vit(), total).to(dtype)
        assert isinstance(model, SDLoRAModel)
        for k in range(t + 1):
            model.grow(rank, torch.Generator())
            A, B = suite.factors(f"task{k}")
            model.bank.A[k].data, model.bank.B[k].data = A.to(dtype), B.to(dtype)
        if case == "init":
            model.bank.B[t].data.zero_()
        key = f"{suite.name}/t{t}/{'mid' if case == 'paper64' else case}"
        alphas = [*np.atleast_1d(fixture[f"{key}/alpha_prev"]), fixture[f"{key}/alpha_cur"]]
        model.set_magnitudes([float(alpha) for alpha in alphas])
        suite.fill(model.head, t + 1)
        self.model = model.to(dtype)
        self.images = suite.images(t).to(dtype)
        self.labels = torch.from_numpy(fixture[f"{key}/labels"]).long()
        own, seen = tuple(range(t * classes, total)), tuple(range(total))
        self.phase = method.phases(Task(t, own, seen, total, None, model, ()))[0]

    def loss(self, logits: Tensor) -> Tensor:
        """The method's training loss."""
        return self.phase.loss(logits, self.labels).mean()

    def forward(self) -> dict[str, Tensor]:
        """Features, logits and loss, by the names of the file; gradients are left in the parameters."""
        features = self.model.features(self.images)
        logits = self.model.head(features)
        loss = self.loss(logits)
        loss.backward()
        return {"features": features, "logits": logits, "loss": loss}

    def factor_gradients(self) -> dict[str, Tensor | None]:
        """Of the current direction's factors [L, P, ...]."""
        return {"grad_A": self.model.bank.A[-1].grad, "grad_B": self.model.bank.B[-1].grad}

    def magnitude_gradients(self) -> dict[str, Tensor]:
        """Of the current and the earlier magnitudes."""
        gradients = torch.tensor([float(value.grad) for value in self.model.magnitudes], dtype=torch.float64)  # type: ignore[arg-type]
        return {"grad_alpha_cur": gradients[-1], "grad_alpha_prev": gradients[:-1]}

    def state(self) -> dict[str, Tensor]:
        """A copy of what is trained."""
        magnitudes = torch.stack(list(self.model.magnitudes))
        state = {
            "A": self.model.bank.A[-1],
            "B": self.model.bank.B[-1],
            "alpha_cur": magnitudes[-1],
            "alpha_prev": magnitudes[:-1],
            "head_weight": self.model.head.weight,
            "head_bias": self.model.head.bias,
        }
        return {name: value.detach().double().clone() for name, value in state.items()}


def checks(fixture: Fixture) -> Iterator[Check]:
    """All comparisons; checksums first."""
    for suite in Suite.all(fixture):
        for t in suite.tasks:
            for case in ("mid", "init"):
                yield from released(suite, t, case)
            yield from paper(suite, t)
        yield from distilled(suite)


def released(suite: Suite, t: int, case: str, **options: Any) -> Iterator[Check]:
    """The released semantics: forward pass, gradients and three optimiser steps; options change the method."""
    fixture, key = suite.fixture, f"{suite.name}/t{t}/{case}"
    if f"{key}/labels" not in fixture:
        return
    c = Case(suite, t, case, **options)
    for name, value in c.forward().items():
        yield from fixture.compare(f"{key}/{name}", value, 1e-5)
    update = c.model.update()
    for block, p, name in suite.projections():
        yield from fixture.compare(f"{key}/deltaW/{name}", update[block, p], 1e-4)
        for letter, gradient in c.factor_gradients().items():
            yield from fixture.compare(f"{key}/{letter}/{name}", gradient[block, p], 1e-4)  # type: ignore[index]
    for name, value in c.magnitude_gradients().items():
        yield from fixture.compare(f"{key}/{name}", value, 1e-4)
    yield from fixture.compare(f"{key}/grad_head_weight", c.model.head.weight.grad, 1e-4)
    yield from fixture.compare(f"{key}/grad_head_bias", c.model.head.bias.grad, 1e-4)
    yield from _steps(suite, t, case, c)


def _steps(suite: Suite, t: int, case: str, c: Case) -> Iterator[Check]:
    """Three steps of the method's optimiser, judged by the change they make: raw values hardly move."""
    fixture, key = suite.fixture, f"{suite.name}/t{t}/{case}"
    before = c.state()
    losses = train(replace(c.phase, epochs=3), c.model, lambda epoch: [(c.images, c.labels)])
    after = c.state()
    yield from fixture.compare(f"{key}/losses_steps", losses, 1e-5)
    yield from fixture.compare(f"{key}/after3/logits", c.model(c.images), 1e-5)
    for letter, tolerance in (("A", 1e-3 if case == "mid" else 1e-1), ("B", 5e-4)):
        for block, p, name in suite.projections():
            start = before[letter][block, p]
            yield from fixture.compare(f"{key}/after3/{letter}/{name}", after[letter][block, p], tolerance, start=start)
    for name, tolerance in (("alpha_cur", 5e-3), ("alpha_prev", 5e-3), ("head_weight", 1e-4), ("head_bias", 1e-4)):
        yield from fixture.compare(f"{key}/after3/{name}", after[name], tolerance, start=before[name])


def paper(suite: Suite, t: int) -> Iterator[Check]:
    """The paper's rule, under both conventions for the gradient of the norm, in fp64 and fp32."""
    fixture, key = suite.fixture, f"{suite.name}/t{t}/paper64"
    if not fixture.any(f"{key}/"):
        return
    for dtype, tolerance, of_magnitude in ((torch.float64, 1e-10, 1e-10), (torch.float32, 1e-4, 1e-3)):
        variant = f" [{str(dtype).removeprefix('torch.')}]"
        for convention in ("through", "detach"):
            c = Case(suite, t, "paper64", dtype, **_PAPER, norm_gradient=convention)
            for name, value in c.forward().items():
                yield from fixture.compare(f"{key}/{name}", value, tolerance, variant)
            update = c.model.update()
            for block, p, name in suite.projections():
                yield from fixture.compare(f"{key}/deltaW/{name}", update[block, p], tolerance, variant)
                for letter, gradient in c.factor_gradients().items():
                    full = f"{key}/{convention}/{letter}/{name}"
                    yield from fixture.compare(full, gradient[block, p], tolerance, variant)  # type: ignore[index]
            for name, value in c.magnitude_gradients().items():
                yield from fixture.compare(f"{key}/{convention}/{name}", value, of_magnitude, variant)


def distilled(suite: Suite) -> Iterator[Check]:
    """The least squares of the knowledge-distillation variant, in fp64."""
    fixture, key = suite.fixture, f"{suite.name}/kd64"
    for case in ("generic", "nearspan"):
        if not fixture.any(f"{key}/{case}/"):
            continue
        model = SDLoRAKDModel(suite.backbone, 1, ("q", "v"), suite.number("r"))
        for k in range(3):
            A, B = suite.factors(f"task{k}")
            model.bank.append(A.double(), B.double())
        A, B = suite.factors("task3") if case == "generic" else _nearly_spanned(suite, model)
        model.bank.append(A.double(), B.double())
        each, joint = model.fit("projection"), model.fit("joint")
        values: dict[str, Any] = {
            "per_projection/coef": each.coefficients,
            "per_projection/gram": each.gram,
            "per_projection/rhs": each.rhs,
            "per_projection/residual_fro": each.residual,
            "per_projection/residual_rms": each.residual / each.entries**0.5,
            "joint/coef": joint.coefficients[0],
            "joint/residual_fro": joint.pooled("frobenius"),
            "joint/residual_rms": joint.pooled("rms"),
        }
        for name, value in values.items():
            yield from fixture.compare(f"{key}/{case}/{name}", value, 1e-9)


def _nearly_spanned(suite: Suite, model: SDLoRAKDModel) -> tuple[Tensor, Tensor]:
    """A direction of rank 3r, most of which the first two span."""
    A, B = suite.factors("kd", "An", "Bn")
    units = [model.bank.B[k].detach() / model.bank.norm(k, "frobenius").detach()[..., None, None] for k in (0, 1)]
    up = torch.cat([0.6 * units[0], -0.3 * units[1], 0.05 * B.double()], dim=3)
    return torch.cat([model.bank.A[0].detach(), model.bank.A[1].detach(), A.double()], dim=2), up


KIND = Kind(r"[^/]+/(t\d+/(mid|init|paper64)/(alpha_|deltaW|through|detach)|kd64/)", lora.INPUTS, checks)
