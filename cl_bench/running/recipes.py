"""Recipes: where hyper-parameters come from that the user does not set, resolved to numbers before a run gets its key.

Three kinds: `tuned`, found by `cl-bench tune` on a stream that is not evaluated on; `published`, from the literature,
in the method's own file; `unified`, the same budget for every method, for everything else.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import BaseModel, ConfigDict, ValidationError

from cl_bench.contract.registry import MethodEntry
from cl_bench.errors import UserError, unknown_name
from cl_bench.experiment import Scalar, Value
from cl_bench.files import write_atomically
from cl_bench.streams import Benchmark

HEADER = """\
# Hyper-parameters found by `cl-bench tune`, which replaces the entries of the rows it is run for.
#
# An entry applies to `method` on its `stream` and on benchmarks that are tuned on it, if the user's own options include
# all of `when`, and on its `backbone`, if it names one; the one with the most conditions wins. What the user sets wins
# over any recipe.
"""


class Tuned(BaseModel):
    """One row's result of a search.

    Attributes:
        method, when: the row: a method and the options that the user must have set.
        stream: what the search ran on.
        backbone: on which, if it was not the stream's own; the entry then applies to runs on it only.
        values: the hyper-parameters found, budget included.
        score: mean average anytime accuracy on the validation part, over the seeds.
        trials: settings tried; `seeds` runs each.
        minutes: of training and evaluation in all of these runs together.
        revision: of the method that was tuned.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str
    stream: str
    backbone: str = ""
    when: dict[str, Value] = {}
    values: dict[str, Value]
    score: float
    trials: int
    seeds: list[int]
    minutes: float
    revision: int | str


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    unified: dict[str, Scalar] = {}
    tuned: list[Tuned] = []


@dataclass(frozen=True)
class Recipe:
    """Hyper-parameters for one method on one benchmark.

    Attributes:
        name: `tuned`, `published:NAME` or `unified`.
        trials, minutes: what finding it has cost; 0 where nothing was searched here.
    """

    name: str
    values: Mapping[str, Value] = field(default_factory=dict)
    trials: int = 0
    minutes: float = 0.0


@cache
def _shipped() -> _File:
    return _File.model_validate(tomllib.loads((files("cl_bench") / "assets" / "recipes.toml").read_text()))


def read(path: Path) -> list[Tuned]:
    """The tuned recipes of a file.

    Raises:
        UserError: unreadable, no TOML, or not of this form.
    """
    try:
        return _File.model_validate(tomllib.loads(path.read_text(encoding="utf-8"))).tuned
    except OSError as error:
        raise UserError(f"recipes file '{path}' cannot be read ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"recipes file '{path}' is no TOML: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(
            f"recipes file '{path}' is not one that 'cl-bench tune' writes: {where}: {first['msg']}"
        ) from error


def write(path: Path, found: Sequence[Tuned]) -> None:
    """Put search results into a recipes file; other entries of an existing file stay.

    Raises:
        UserError: the file exists and is no recipes file, or cannot be written.
    """
    old = read(path) if path.exists() else []
    rows = [(new.method, new.stream, new.backbone, new.when) for new in found]
    kept = [entry for entry in old if (entry.method, entry.stream, entry.backbone, entry.when) not in rows]
    document: dict[str, Any] = {}
    if path.exists() and (unified := tomllib.loads(path.read_text(encoding="utf-8")).get("unified")):
        document["unified"] = unified
    document["tuned"] = [
        entry.model_dump(exclude_defaults=True)
        for entry in sorted([*kept, *found], key=lambda e: (e.stream, e.backbone, e.method, str(e.when)))
    ]
    try:
        write_atomically(path, (HEADER + "\n" + tomli_w.dumps(document)).encode())
    except OSError as error:
        raise UserError(f"recipes file '{path}' cannot be written ({error.strerror})") from error


def budget(found: MethodEntry) -> dict[str, Value]:
    """The unified budget, as far as the method has such hyper-parameters."""
    return {name: value for name, value in _shipped().unified.items() if name in found.defaults}


def choose(
    found: MethodEntry,
    benchmark: Benchmark,
    options: Mapping[str, Value],
    asked: str = "auto",
    own: Sequence[Tuned] = (),
    backbones: Sequence[str] = (),
) -> Recipe:
    """The recipe for a method on a benchmark.

    Args:
        options: the user's own (validated) options, which tuned recipes may depend on.
        asked: `tuned`, `published`, `published:NAME`, `unified`, or `auto`: the first of these that there is.
        own: tuned recipes of the user, which come before the shipped ones.
        backbones: whose tuned recipes hold for the one that runs, itself first; empty: the benchmark's own.

    Raises:
        UserError: there is none of the kind asked for.
    """
    kind, _, name = asked.partition(":")
    if kind not in ("auto", "tuned", "published", "unified") or (name and kind != "published"):
        raise UserError(f"--recipe '{asked}' is unknown; expected auto, tuned, published, published:NAME or unified")
    if kind in ("auto", "tuned"):
        held = [*(backbones or [benchmark.backbone]), ""]
        for entries in (own, _shipped().tuned):
            fitting = [
                entry
                for entry in entries
                if entry.method == found.name
                and entry.stream in (benchmark.name, benchmark.tuned_on)
                and entry.backbone in held
                and all(options.get(key) == value for key, value in entry.when.items())
            ]
            if fitting:
                best = min(
                    fitting,
                    key=lambda e: (-len(e.when), e.stream != benchmark.name, held.index(e.backbone)),
                )
                return Recipe("tuned", best.values, best.trials, best.minutes)
        if kind == "tuned" and found.defaults:
            raise UserError(
                f"there is no tuned recipe for '{found.name}' on {benchmark.name}; "
                f"'cl-bench tune --methods {found.name} --stream {benchmark.tuned_on or benchmark.name}' finds one"
            )
    published = found.cls.published
    wanted = name or benchmark.name
    if kind == "published" and found.defaults:
        if not published:
            raise UserError(f"'{found.name}' names no published recipe; take --recipe tuned or unified")
        if wanted not in published:
            hint = "Take one of them with --recipe published:NAME."
            raise unknown_name(f"published recipe of '{found.name}'", wanted, published, hint)
    if kind in ("auto", "published") and wanted in published:
        return Recipe(f"published:{wanted}", published[wanted])
    return Recipe("unified", budget(found))
