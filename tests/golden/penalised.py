"""Golden files of O-LoRA, N-LoRA and CLoRA, replayed: a new direction per task, a penalty on it, and AdamW."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cl_bench.contract.task import Task
from cl_bench.methods.controlled_lora import CLoRA
from cl_bench.methods.inclora import IncLoRA
from cl_bench.methods.nlora import NLoRA
from cl_bench.methods.olora import OLoRA
from cl_bench.models.lora import LoRAModel
from tests.golden import Check, Fixture, Kind, lora, sdlora, train

CASES = ("mid", "init", "scaled", "clipped")
_INPUTS = rf"{lora.INPUTS}|/scaling$|/P_(in|out)/"
_STEPS = 3
_FACTORS = {"input": "A", "output": "B"}


class Suite(sdlora.Suite):
    """One size of network, and what is stored of its projections."""

    def stacked(self, folder: str) -> Tensor:
        """Arrays of all projections in a folder of the suite, [L, P, ...]."""
        stored = [self.fixture[f"{self.name}/{folder}/{name}"] for _, _, name in self.projections()]
        return torch.stack([torch.from_numpy(array) for array in stored]).unflatten(0, (-1, len(self.letters)))


class Case:
    """Our model in the state of one stored case, and the phase that trains it."""

    def __init__(self, suite: Suite, t: int, case: str, method: IncLoRA) -> None:
        fixture, key, rank = suite.fixture, f"{suite.name}/t{t}/{case}", suite.number("r")
        own = suite.number("C")
        total = (t + 1) * own
        scaling = float(fixture[f"{key}/scaling"])
        method = replace(
            method,
            rank=rank,
            alpha=None if scaling == 1 else scaling * rank,
            clip_norm=1.0 if case == "clipped" else None,
        )
        model = method.build(suite.vit(), total)
        assert isinstance(model, LoRAModel)
        for k in range(t + 1):
            model.bank.append(*suite.factors(f"task{k}"))
        if case == "init":
            model.bank.B[t].data.zero_()
        suite.fill(model.head, t + 1)
        self.model, self.images = model, suite.images(t)
        self.labels = torch.from_numpy(fixture[f"{key}/labels"]).long()
        self.task = Task(t, tuple(range(t * own, total)), tuple(range(total)), total, None, model, ())
        for name in ("P_in", "P_out"):
            if fixture.any(f"{suite.name}/t{t}/{name}/"):
                self.task.scratch[name] = suite.stacked(f"t{t}/{name}")
        self.phase = method.phases(self.task)[0]
        self.cross_entropy = method.cross_entropy(self.task)

    def forward(self) -> dict[str, Tensor]:
        """Features, logits and losses, by the names of the file; gradients are left in the parameters."""
        features = self.model.features(self.images)
        logits = self.model.head(features)
        loss = self.phase.loss(logits, self.labels).mean()  # type: ignore[misc]
        loss.backward()
        ce = self.cross_entropy(logits, self.labels).mean()
        norm = torch.stack([_gradient(parameter).norm() for parameter in self.phase.trainable()]).norm()
        return {"features": features, "logits": logits, "ce": ce, "loss": loss, "grad_norm": norm}

    def state(self) -> dict[str, Tensor]:
        """A copy of what is trained: factors [L, P, ...] and the head."""
        A, B = self.model.bank.direction(-1)
        head = self.model.head
        state = {"A": A, "B": B, "head_weight": head.weight, "head_bias": head.bias}
        return {name: value.detach().double().clone() for name, value in state.items()}


def checks(fixture: Fixture, make: Callable[..., IncLoRA], **options: Any) -> Iterator[Check]:
    """All comparisons; options change the method."""
    for suite in Suite.all(fixture):
        method = make(suite, **{"lr": float(fixture["cfg/lr"]), "loss": "all"} | options)
        for t in suite.tasks:
            for case in CASES:
                if f"{suite.name}/t{t}/{case}/labels" in fixture:
                    yield from _released(suite, t, case, method)
            yield from _paper(suite, t)


def _released(suite: Suite, t: int, case: str, method: IncLoRA) -> Iterator[Check]:
    """The forward pass, gradients and three optimiser steps of the released program."""
    compare, key, c = suite.fixture.compare, f"{suite.name}/t{t}/{case}", Case(suite, t, case, method)
    for name, value in c.forward().items():
        yield from compare(f"{key}/{name}", value, 1e-4 if name == "grad_norm" else 1e-5)
    if isinstance(method, CLoRA):
        for side, terms in method.regulariser(c.task).items():
            for block, p, name in suite.projections():
                yield from compare(f"{key}/reg_{_FACTORS[side]}/{name}", terms[block, p], 1e-5)
    for letter, factor in zip("AB", c.model.bank.direction(-1), strict=True):
        # Without a penalty nothing reaches A from B = 0: where all is 0, errors are absolute.
        still = letter == "A" and case == "init"
        for block, p, name in suite.projections():
            stored = f"{key}/grad_{letter}/{name}"
            zero = still and stored in suite.fixture.data and not suite.fixture[stored].any()
            yield from compare(stored, _gradient(factor)[block, p], 1e-7 if zero else 1e-4, absolute=zero)
    for name, parameter in c.model.head.named_parameters():
        yield from compare(f"{key}/grad_head_{name}", parameter.grad, 1e-4)
    # Judged by the change: entries with a gradient near 0 move by whole steps of Adam or not at all.
    before = c.state()
    losses = train(replace(c.phase, epochs=_STEPS), c.model, lambda epoch: [(c.images, c.labels)])
    after = c.state()
    yield from compare(f"{key}/losses_steps", losses, 1e-5)
    yield from compare(f"{key}/after3/logits", c.model(c.images), 1e-4)
    for letter in "AB":
        for block, p, name in suite.projections():
            start = before[letter][block, p]
            yield from compare(f"{key}/after3/{letter}/{name}", after[letter][block, p], 5e-2, start=start)
    for name, tolerance in (("head_weight", 5e-2), ("head_bias", 1e-3)):
        yield from compare(f"{key}/after3/{name}", after[name], tolerance, start=before[name])


def _paper(suite: Suite, t: int) -> Iterator[Check]:
    """The absolute sum of B A, which N-LoRA's paper penalises, in fp64."""
    fixture, key, rank = suite.fixture, f"{suite.name}/t{t}/paper64", suite.number("r")
    if not fixture.any(f"{key}/"):
        return
    method = NLoRA(rank=rank, sparsity=1.0, product="BA")
    model = method.build(suite.vit(), 1)
    assert isinstance(model, LoRAModel)
    model.bank.append(*(factor.double() for factor in suite.factors(f"task{t}")))
    penalty = method.penalty(Task(t, (), (), 1, None, model, ()))
    penalty.backward()
    yield from fixture.compare(f"{key}/penalty", penalty, 1e-10)
    for letter, factor in zip("AB", model.bank.direction(-1), strict=True):
        for block, p, name in suite.projections():
            yield from fixture.compare(f"{key}/grad_{letter}/{name}", _gradient(factor)[block, p], 1e-10)


def _gradient(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def olora(suite: Suite, **options: Any) -> OLoRA:
    """O-LoRA with the weights of a file."""
    lambda_1, lambda_2 = _weights(suite)
    return OLoRA(**{"orthogonality": lambda_1, "shrinkage": lambda_2} | options)


def nlora(suite: Suite, **options: Any) -> NLoRA:
    """N-LoRA with the weight of a file, whose second weight is not used."""
    lambda_1, _ = _weights(suite)
    return NLoRA(**{"sparsity": lambda_1} | options)


def _weights(suite: Suite) -> list[float]:
    return [float(suite.fixture[f"cfg/lambda_{number}"]) for number in (1, 2)]


def clora(suite: Suite, **options: Any) -> CLoRA:
    """CLoRA with the weight of a file and the dimension of a suite."""
    settings = {"control": float(suite.fixture["cfg/lambda"]), "subspace": suite.number("k"), "boundary": "stack"}
    return CLoRA(**settings | options)


_KEYS = rf"[^/]+/t\d+/({'|'.join(CASES)})/scaling$"
OLORA = Kind(_KEYS, _INPUTS, partial(checks, make=olora))
CLORA = Kind(_KEYS, _INPUTS, partial(checks, make=clora))
NLORA = Kind(rf"{_KEYS}|[^/]+/t\d+/paper64/penalty$", _INPUTS, partial(checks, make=nlora))
