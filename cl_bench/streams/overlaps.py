"""Classes that Tiny ImageNet shares with CIFAR-100: excluded from pre-training, and used as a tuning stream."""

from __future__ import annotations

from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from cl_bench.errors import UserError

OVERLAPS: Traversable = files("cl_bench") / "assets" / "tinyimagenet_cifar100_overlap.tsv"
"""List of shared classes, made for this project by comparing the class names of both data sets one by one."""


def read_overlaps(path: Traversable | Path = OVERLAPS) -> dict[str, str]:
    """By WordNet id: `strict` (a class of CIFAR-100) or `near` (close to one).

    Raises:
        UserError: a line does not consist of an id, a name and one of these two marks.
    """
    marks = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            continue
        fields = line.split("\t")
        if len(fields) != 3 or fields[2] not in ("strict", "near"):
            raise UserError(f"'{path}' has the line '{line}', expected id, name and strict or near, between tabs")
        marks[fields[0]] = fields[2]
    return marks


def shared_classes() -> frozenset[str]:
    """WordNet ids of the Tiny ImageNet classes that are also classes of CIFAR-100."""
    return frozenset(name for name, mark in read_overlaps().items() if mark == "strict")
