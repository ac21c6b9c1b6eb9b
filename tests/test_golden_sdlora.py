"""SD-LoRA and SD-LoRA-KD against numbers from the authors' code and from the paper's formulas."""

from __future__ import annotations

from collections import defaultdict
from functools import cache
from typing import Any

import pytest

from tests import golden
from tests.golden import sdlora

FIXTURE = golden.Fixture.load(golden.FOLDER / "sdlora.npz")


@cache
def results() -> dict[str, list[golden.Check]]:
    """The checks of each quantity: several where it is computed in several ways."""
    found = defaultdict(list)
    for check in golden.worst(sdlora.checks(FIXTURE)):
        found[check.name.partition(" [")[0]].append(check)
    return found


@pytest.mark.parametrize("quantity", FIXTURE.quantities())
def test_quantity(quantity: str) -> None:
    assert results()[quantity], "nothing was compared"
    for check in results()[quantity]:
        assert check.passed, check


def test_every_key_is_used() -> None:
    assert results() and FIXTURE.unused() == []


@pytest.mark.parametrize(
    ("options", "caught"),
    [
        ({"norm": "frobenius"}, {"features": 1e-2, "deltaW": 1e-2}),
        ({"targets": ("k", "v")}, {"features": 1e-2}),
        ({"loss": "all"}, {"loss": 1e-1, "grad_B": 1e-1}),
        ({"normalise_current": True}, {"features": 1e-1}),
        ({"momentum": 0.0}, {"after3/B": 1e-1}),
        ({"magnitudes": "current"}, {"after3/alpha_prev": 0.5}),
    ],
    ids=str,
)
def test_wrong_variants_are_caught(options: dict[str, Any], caught: dict[str, float]) -> None:
    suite = sdlora.Suite.of(FIXTURE, "d64")
    found = {check.name: check for check in golden.worst(sdlora.released(suite, 3, "mid", **options))}
    for name, least in caught.items():
        check = found[f"d64/t3/mid/{name}"]
        assert not check.passed and check.error > least, check
