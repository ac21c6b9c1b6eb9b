"""Which methods a hyper-parameter given by `--set` or `--epochs` applies to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cl_bench.contract.registry import MethodEntry
from cl_bench.errors import unknown_name
from cl_bench.grammar import parse_settings


@dataclass(frozen=True)
class MethodSettings:
    """Hyper-parameters of several methods, as the user typed them.

    Attributes:
        options: text of each value by method and hyper-parameter.
        remarks: one sentence per unqualified value that some of the methods cannot take.
    """

    options: Mapping[str, Mapping[str, str]]
    remarks: tuple[str, ...] = ()


def settings_for(
    methods: Mapping[str, MethodEntry], texts: Sequence[str], others: Mapping[str, MethodEntry] | None = None
) -> MethodSettings:
    """Assign the values of `--set` (see `grammar.parse_settings`) to the methods that have these hyper-parameters.

    An unqualified value, `lr=0.1`, applies to every method with this hyper-parameter; a qualified one, `sdlora.lr=0.1`,
    to its method in any case.

    Args:
        others: further methods of the same command; a hyper-parameter that one of them has is no misspelling.

    Raises:
        UserError: a value cannot be parsed, or none of the methods has an unqualified hyper-parameter.
    """
    given = parse_settings(texts, list(methods))
    pairs = [tuple(part.strip() for part in text.partition("=")[::2]) for text in texts]
    keys = {key for key, _ in pairs}
    having = {name: entry.defaults for name, entry in methods.items()}
    known = {key for entry in [*methods.values(), *(others or {}).values()] for key in entry.defaults}
    remarks = []
    for key, value in pairs:
        if "." in key:
            continue
        if key not in known:
            whose = f"of '{next(iter(methods))}'" if len(methods) == 1 else "of these methods"
            raise unknown_name(f"hyper-parameter {whose}", key, known)
        lacking = [name for name in methods if key not in having[name] and f"{name}.{key}" not in keys]
        for name in lacking:
            given[name].pop(key, None)
        if lacking:
            which = f"{', '.join(lacking)}, which {'has' if len(lacking) == 1 else 'have'} no '{key}'"
            remarks.append(f"{key}={value} does not apply to {which}")
    return MethodSettings(given, tuple(dict.fromkeys(remarks)))
