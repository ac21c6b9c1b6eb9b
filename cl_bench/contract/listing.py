"""Facts about methods for listings: from their source where it shows them, otherwise from the imported class."""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING

from cl_bench.contract import reading
from cl_bench.contract.facts import FACTS as FACTS
from cl_bench.contract.facts import MethodFacts as MethodFacts
from cl_bench.contract.sources import ENTRY_POINTS, check_file_name, names
from cl_bench.errors import UserError

if TYPE_CHECKING:
    from cl_bench.contract.registry import MethodEntry


def of_file(path: Path) -> MethodFacts:
    """Facts of a user's method file, which is imported only if its source does not show them.

    Raises:
        UserError: see `registry.load_file`.
    """
    check_file_name(path)
    if (facts := reading.of_file(path)) is not None:
        return facts
    from cl_bench.contract import registry

    return of_class(registry.load_file(path))


def of_installed(name: str) -> MethodFacts:
    """Facts of one installed method. It is imported only if its source does not show them.

    Raises:
        UserError: see `registry.find`.
    """
    if (facts := reading.of_installed(name, entry_points(group=ENTRY_POINTS))) is not None:
        return facts
    from cl_bench.contract import registry

    return of_class(registry.find(name))


def installed() -> tuple[list[MethodFacts], list[UserError]]:
    """Facts of all installed methods in the order of their names, and one error for each method that cannot be used."""
    found, errors = [], []
    for name in names():
        try:
            found.append(of_installed(name))
        except UserError as error:
            errors.append(error)
    return found, errors


def of_class(entry: MethodEntry) -> MethodFacts:
    """Facts of a method that is imported."""
    facts = {fact: getattr(entry.cls, fact) for fact in FACTS}
    for base in reversed(entry.cls.__mro__):
        facts = reading.joined(facts, {"cited_with": vars(base).get("cited_with", {})})
    return MethodFacts(entry.name, **facts, defaults=entry.defaults)
