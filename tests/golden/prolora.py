"""PRoLoRA's golden file, replayed: rotated chunks, and steps of SGD on them."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil
from typing import Any

import torch
from torch import Tensor

from cl_bench.methods.prolora import PRoLoRA, PRoLoRABank
from tests.golden import Check, Fixture, Kind, zoo
from tests.golden.zoo import Case, Suite

_CLOSE = 1e-4
_LAYOUT = {"A0": zoo.same, "B0": zoo.same, "Au": zoo.same, "BuT": zoo.transposed}


def checks(fixture: Fixture, **options: Any) -> Iterator[Check]:
    """All comparisons; options change the method."""
    for suite in Suite.all(fixture):
        yield from _suite(suite, **options)


def _suite(suite: Suite, **options: Any) -> Iterator[Check]:
    u, m, n, rank, dim = (suite.number(name) for name in ("u", "m", "n", "r", "D"))
    settings = {"rank": rank, "unshared": u, "share_a": m, "share_b": n, "alpha": suite.real("alpha")}
    settings |= {"optimizer": "sgd", "momentum": 0.9, "lr": suite.real("lr")}
    method = PRoLoRA(**{**settings, **options})  # type: ignore[arg-type]
    shared = rank - u
    parameters = [
        suite.injected("A0", (shared, ceil(dim / m)), dim**-0.5),
        suite.injected("B0", (ceil(dim / n), shared), 0.1),
        suite.injected("Au", (u, dim), dim**-0.5),
        suite.injected("Bu", (dim, u), 0.1),
    ]
    case = Case(suite, suite.name, method, parameters, _LAYOUT)
    bank = case.model.bank
    assert isinstance(bank, PRoLoRABank)
    yield from suite.fixture.equal(f"{suite.name}/stride", bank.strides)
    yield from suite.fixture.equal(f"{suite.name}/chunk", bank.chunks)
    yield from suite.fixture.equal(
        f"{suite.name}/trainable_adapter", sum(parameter.numel() for parameter in bank.direction(0))
    )
    # Largest absolute values of random draws, which come close to their bound.
    yield from case.compare("init_max_abs", _started(method, suite), 0.2)
    A, B = bank.factors(0)
    yield from case.compare("expanded/A", A[0, 0], zoo.GRADIENT)
    yield from case.compare("expanded/B", B[0, 0] / bank.scale, zoo.GRADIENT)
    yield from case.start()
    before = case.parts()
    yield from case.compare("losses_steps", case.train(suite.number("steps")), _CLOSE)
    yield from case.compare_all("after", case.parts(), _CLOSE, start=before)
    yield from case.compare("after/logits", case.model(case.images), _CLOSE)


def _started(method: PRoLoRA, suite: Suite) -> list[float]:
    """Largest absolute value of A_0, A_u, B_0 and B_u as the method starts them."""
    bank = method.bank(suite.backbone, method.targets, method.rank, method.alpha)
    bank.grow(method.rank, torch.Generator().manual_seed(0), torch.device("cpu"))
    A, B, A_u, B_u = bank.direction(0)
    return [_largest(parameter) for parameter in (A, A_u, B, B_u)]


def _largest(values: Tensor) -> float:
    return float(values.detach().abs().max()) if values.numel() else 0.0


KIND = Kind(r"[^/]+/expanded/A", zoo.INPUTS, checks)
