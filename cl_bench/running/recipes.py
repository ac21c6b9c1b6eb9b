"""Recipes: the source of hyper-parameters that the user does not set; they are resolved before a run gets its key.

There are four kinds: `tuned`, found by `cl-bench tune` on a stream that serves no evaluation; `published`, from the
literature, given in the method's own file; `own`, what the author of a method outside cl-bench wrote as its defaults;
and `unified`, the same training budget for every method, used otherwise.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cl_bench.contract.registry import MethodEntry
from cl_bench.errors import UserError, clipped, counted, unknown_name
from cl_bench.experiment import BUDGET, RECIPES_IN_WORDS, Scalar, Value, value_text
from cl_bench.files import parse_toml, read_text, write_atomically
from cl_bench.streams import Benchmark

HEADER = """\
# Hyper-parameters found by `cl-bench tune`, which replaces the entries of the rows it is run for.
#
# An entry applies to `method` on its `stream` and on benchmarks that are tuned on it, if the user's own options include
# all of `when`, and on its `backbone`, if it names one; the one with the most conditions wins. What the user sets wins
# over any recipe.
"""


KINDS = ("auto", "tuned", "published", "own", "unified")
"""What `--recipe` takes, with `published:NAME`."""


class Tuned(BaseModel):
    """The result of a search for one method.

    Attributes:
        method, when: the method, and the options that the user must have set for the entry to apply.
        stream: benchmark on which the search ran.
        backbone: backbone of the search if it was not the stream's own, and then the only one the entry applies to.
        values: the best hyper-parameters, training budget included.
        score: their average anytime accuracy on the validation part (fraction), mean over the seeds.
        trials: number of settings tried, each with every seed.
        seeds: seeds of the runs of a trial.
        minutes: total time of training and evaluation of all these runs.
        revision: revision of the method at the time of the search.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    method: str
    stream: str
    backbone: str = ""
    when: dict[str, Value] = {}
    values: dict[str, Value]
    score: float
    trials: int = Field(ge=0)
    seeds: list[int]
    minutes: float = Field(ge=0)
    revision: int | str


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    unified: dict[str, Scalar] = {}
    tuned: Annotated[list[Tuned], Field(fail_fast=True)] = []


@dataclass(frozen=True)
class Recipe:
    """Hyper-parameters for one method on one benchmark.

    Attributes:
        name: `tuned`, `published:NAME`, `own`, `own+unified` (a part of the budget is unified) or `unified`.
        values: the hyper-parameters that it sets.
        trials, minutes: cost of the search; 0 for recipes that no search has found.
        remark: a sentence that questions the recipe; empty if nothing is wrong.
    """

    name: str
    values: Mapping[str, Value] = field(default_factory=dict)
    trials: int = 0
    minutes: float = 0.0
    remark: str = ""


@cache
def _shipped() -> _File:
    return _File.model_validate(tomllib.loads((files("cl_bench") / "assets" / "recipes.toml").read_text()))


def read(path: Path) -> list[Tuned]:
    """The tuned recipes of a file.

    Raises:
        UserError: the file is unreadable, not TOML, empty or of another form; the entry and its field are named.
    """
    return _read(path).tuned


def _read(path: Path) -> _File:
    what = f"recipes file '{path}'"
    document = parse_toml(read_text(path, what), what)
    if not document:
        raise UserError(f"{what} holds no recipes; 'cl-bench tune' writes them, as '[[tuned]]' with their fields")
    try:
        return _File.model_validate(document)
    except ValidationError as error:
        raise UserError(f"{what} is not one that 'cl-bench tune' writes: {_fault(error)}") from error


def _fault(error: ValidationError) -> str:
    """A sentence about the first fault and its place.

    An unknown field comes before others: a misspelt field also causes a fault about the missing one.
    """
    faults = error.errors(include_url=False, include_input=False)
    first = next((fault for fault in faults if fault["type"] == "extra_forbidden"), faults[0])
    place = list(first["loc"])
    where = "the file"
    fields: Iterable[str] = _File.model_fields
    if len(place) > 1 and place[0] == "tuned":
        where, fields = f"entry {int(place[1]) + 1} of 'tuned'", Tuned.model_fields
        place = place[2:]
    name = clipped(".".join(map(str, place[:2])))
    if first["type"] == "extra_forbidden":
        return str(unknown_name(f"field of {where}", name, fields))
    if first["type"] == "missing":
        return f"{where} has no '{name}'"
    message = first["msg"]
    if len(place) > 1 and place[0] in ("values", "when", "unified"):
        # pydantic has one message for each type that a value may have.
        message = "expected a text, a number, true or false, or a list of these"
    return f"{where}: {name or 'it'}: {message[0].lower()}{message[1:]}"


def write(path: Path, results: Sequence[Tuned]) -> None:
    """Write search results into a recipes file, and keep its entries for other methods, streams and backbones.

    Raises:
        UserError: the file exists but is no recipes file, or it cannot be written.
    """
    old = _read(path) if path.exists() else _File()
    rows = [(new.method, new.stream, new.backbone, new.when) for new in results]
    others = [entry for entry in old.tuned if (entry.method, entry.stream, entry.backbone, entry.when) not in rows]
    document: dict[str, Any] = {}
    if old.unified:
        document["unified"] = old.unified
    document["tuned"] = [
        entry.model_dump(exclude_defaults=True)
        for entry in sorted([*others, *results], key=lambda e: (e.stream, e.backbone, e.method, str(e.when)))
    ]
    try:
        write_atomically(path, (HEADER + "\n" + tomli_w.dumps(document)).encode())
    except OSError as error:
        raise UserError(f"recipes file '{path}' cannot be written ({error.strerror})") from error


def unified(entry: MethodEntry) -> dict[str, Value]:
    """The unified training budget, restricted to hyper-parameters that the method has."""
    return {name: value for name, value in _shipped().unified.items() if name in entry.defaults}


def budget(entry: MethodEntry) -> dict[str, Value]:
    """The training budget of a method without a recipe: what its author states, and else the unified one."""
    stated = entry.stated
    return {name: stated.get(name, value) for name, value in unified(entry).items()}


def _own(entry: MethodEntry) -> Recipe:
    """The recipe of the method's own defaults; that of a method which states no part of its budget is `unified`."""
    shared, stated = unified(entry), entry.stated
    missing = [name for name in shared if name not in stated]
    name = "unified" if not stated or (shared and len(missing) == len(shared)) else "own+unified" if missing else "own"
    return Recipe(name, budget(entry))


def choose(
    entry: MethodEntry,
    benchmark: Benchmark,
    options: Mapping[str, Value],
    recipe: str = "auto",
    own: Sequence[Tuned] = (),
    backbones: Sequence[str] = (),
) -> Recipe:
    """The recipe for a method on a benchmark.

    Args:
        options: the user's own (validated) options, on which tuned recipes may depend.
        recipe: `tuned`, `published`, `published:NAME`, `own`, `unified`, or `auto`, the first of these that exists.
        own: tuned recipes of the user, which take precedence over the shipped ones.
        backbones: names of backbones whose tuned recipes apply to this run, in order of preference; empty: the
            benchmark's own.

    Raises:
        UserError: no recipe of the requested kind exists.
    """
    kind, _, name = recipe.partition(":")
    if kind not in KINDS or (name and kind != "published"):
        raise UserError(f"--recipe '{recipe}' is unknown; expected {', '.join(KINDS)} or published:NAME")
    if kind in ("auto", "tuned"):
        accepted = [*(backbones or [benchmark.backbone]), ""]
        for entries in (own, _shipped().tuned):
            fitting = [
                tuned
                for tuned in entries
                if tuned.method == entry.name
                and tuned.stream in (benchmark.name, benchmark.tuned_on)
                and tuned.backbone in accepted
                and all(options.get(key) == value for key, value in tuned.when.items())
            ]
            if fitting:
                best = min(
                    fitting,
                    key=lambda e: (-len(e.when), e.stream != benchmark.name, accepted.index(e.backbone)),
                )
                changed = best.revision != entry.revision and entries is own
                remark = _tuned_before(entry, best, benchmark) if changed else ""
                return Recipe("tuned", best.values, best.trials, best.minutes, remark)
        if kind == "tuned" and entry.defaults:
            search = _search(entry, benchmark)
            raise UserError(f"there is no tuned recipe for '{entry.name}' on {benchmark.name}; '{search}' finds one")
    published = entry.cls.published
    wanted = name or benchmark.name
    if kind == "published" and entry.defaults:
        if not published:
            raise UserError(f"'{entry.name}' names no published recipe; take --recipe tuned or unified")
        if wanted not in published:
            hint = "Take one of them with --recipe published:NAME."
            raise unknown_name(f"published recipe of '{entry.name}'", wanted, published, hint)
    if kind in ("auto", "published") and wanted in published:
        return Recipe(f"published:{wanted}", published[wanted])
    if kind == "own" and not entry.stated and entry.defaults:
        raise UserError(f"'{entry.name}' has no recipe 'own': it is for methods of your own; take --recipe auto")
    return Recipe("unified", unified(entry)) if kind == "unified" else _own(entry)


def _search(entry: MethodEntry, benchmark: Benchmark) -> str:
    """Command line that tunes a method for a benchmark."""
    return f"cl-bench tune {entry.in_command('--methods')} --stream {benchmark.tuned_on or benchmark.name}"


def _tuned_before(entry: MethodEntry, tuned: Tuned, benchmark: Benchmark) -> str:
    """A sentence about a recipe that was found for another version of the method."""
    return (
        f"the recipe of '{entry.name}' was tuned at its revision {tuned.revision}, and the method has changed since "
        f"(now {entry.revision}); '{_search(entry, benchmark)}' finds a new one"
    )


def described(recipe: Recipe, values: Mapping[str, Value]) -> str:
    """A recipe and the training budget of a run in words: `own defaults, epochs=30, batch_size=8, lr=0.005`."""
    if not values:
        return "no hyper-parameters"
    trials = [f"best of {counted(recipe.trials, 'setting')}"] if recipe.trials else []
    budgets = [f"{name}={value_text(values[name])}" for name in (*BUDGET, "lr") if name in values]
    return ", ".join([RECIPES_IN_WORDS.get(recipe.name, recipe.name), *trials, *budgets])
