"""InfLoRA against numbers from its authors' code."""

from __future__ import annotations

from collections import defaultdict
from functools import cache
from typing import Any

import pytest

from tests import golden
from tests.golden import inflora

FIXTURE = golden.Fixture.load(golden.FOLDER / "inflora.npz")


@cache
def results() -> dict[str, list[golden.Check]]:
    """The checks of each quantity: several where it is judged in several ways."""
    found = defaultdict(list)
    for check in golden.worst(inflora.checks(FIXTURE)):
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
        ({"targets": ("q", "v")}, {"t0/fwd/features": 1e-2}),
        ({"loss": "all"}, {"t1/train/losses": 1e-2}),
        ({"momentum": 0.0}, {"t0/train/deltaW_t": 1e-1}),
        ({"schedule": "constant"}, {"t0/train/deltaW_t": 1e-2}),
        ({"memory": "plain"}, {"t3/memory/mode": 1.0}),
        ({"lamb": 0.9}, {"t0/memory/threshold": 1e-2, "t0/memory/dim": 1.0}),
    ],
    ids=str,
)
def test_wrong_variants_are_caught(options: dict[str, Any], caught: dict[str, float]) -> None:
    suite = inflora.Suite.of(FIXTURE, "d64")
    found = {check.name: check for check in golden.worst(inflora.trained(suite, **options))}
    for name, least in caught.items():
        check = found[f"d64/{name}"]
        assert not check.passed and check.error > least, check
