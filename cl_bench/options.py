"""What a user may ask for: the one list of options, their types, defaults, help and parsing.

The command line, suite files, Python, `--dry-run` and the table in docs/sweeps.md are made from the two classes at the
end, `RunOptions` and `ExecutionOptions`: a field added there is an option everywhere.
"""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, Self, get_args

from cl_bench import grammar
from cl_bench.errors import UserError, clipped, unknown_name
from cl_bench.experiment import ImagesName, Limits, Precision, ProbeName, Scenario, Tasks
from cl_bench.grammar import (
    MethodSpec,
    number_between,
    one_of,
    parse_path,
    parse_text,
    parse_whole_number,
    parse_yes_or_no,
)

Panel = Literal["What to run", "Data", "Backbone", "Hyper-parameters", "Trial", "Where and how"]
"""Headings under which `--help` and the docs list the options, in this order."""


@dataclass(frozen=True)
class Option:
    """One option, as all its users need it.

    Attributes:
        panel: heading under which it is listed.
        help: one sentence.
        parse: reads one text.
        default: in words, where the value says too little; empty: none is shown.
        kind: `text`: takes one value. `list`: its values are joined into one list. `alternatives`: of several values,
            every one makes runs of its own. `flag`: on or off.
        metavar: what stands for the value in `--help`.
        no: the flag that sets it off, for flags that have one.
        flag: on the command line, with its dashes.
    """

    panel: Panel
    help: str
    parse: grammar.Parse
    default: str
    kind: Literal["text", "list", "alternatives", "flag"]
    metavar: str
    no: str
    flag: str = ""


def _option(
    panel: Panel,
    help_: str,
    parse: grammar.Parse,
    default: Any = None,
    *,
    shown: str = "",
    kind: Literal["text", "list", "alternatives", "flag"] = "text",
    metavar: str = "TEXT",
    no: str = "",
) -> Any:
    if not shown and default not in (None, False, MISSING) and not isinstance(default, tuple):
        shown = f"{default:g}" if isinstance(default, float) else str(default)
    option = Option(panel, help_, parse, shown, kind, metavar, no)
    return field(default=default, metadata={"option": option})


def _flag(panel: Panel, help_: str) -> Any:
    return _option(panel, help_, parse_yes_or_no, False, kind="flag")


# --- reading one value -----------------------------------------------------------------------------------------


def _methods(text: str, flag: str) -> tuple[MethodSpec, ...]:
    return tuple(grammar.parse_methods(text, flag))


def _seeds(text: str, flag: str) -> tuple[int, ...]:
    return tuple(grammar.parse_seeds(text, flag))


def _order(text: str, flag: str) -> str:
    """A named order, or the path of a file, which is read when the classes are known."""
    return text if grammar.is_order_file(text) else grammar.parse_order(text)


def _setting(text: str, flag: str) -> str:
    grammar.parse_pair(text, f"{flag} '{text}'")
    return text


# --- the list --------------------------------------------------------------------------------------------------


class _Options:
    """What both kinds of options can do; the fields of a subclass are the options."""

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """Options from texts, numbers, truth values, or lists of these, as a suite file or Python has them.

        Args:
            given: by field name; what is left out has its default.

        Raises:
            UserError: an option that does not exist, a value that cannot be read, or none where there must be one.
        """
        read = cls.read(given)
        for one in fields(cls):  # type: ignore[arg-type]
            if one.name not in read and one.default is MISSING:
                raise UserError(f"option '{one.name}' is missing; say what to run, e.g. {one.name}: sdlora")
        return cls(**read)

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """The values of these options, by name (see `of`)."""
        known = options_of(cls)
        for name in given:
            if name not in known:
                raise unknown_name("option", str(name), known)
        return {name: _read(known[name], value) for name, value in given.items()}

    def given(self) -> dict[str, Any]:
        """The options that differ from their defaults, by name."""
        return {
            one.name: getattr(self, one.name)
            for one in fields(self)  # type: ignore[arg-type]
            if getattr(self, one.name) != one.default
        }

    def flags(self, without: Iterable[str] = ()) -> tuple[str, ...]:
        """The options that differ from their defaults, as they are typed on the command line."""
        parts: list[str] = []
        for name, value in self.given().items():
            if name in without:
                continue
            option = options_of(type(self))[name]
            if option.kind == "flag":
                parts.append(option.flag if value else option.no)
                continue
            for text in _texts_of(name, value, option):
                parts += [option.flag, text]
        return tuple(parts)

    def command(self) -> str:
        """The command line that asks for the same."""
        return shlex.join(["cl-bench", "run", *self.flags()])


def _read(option: Option, value: Any) -> Any:
    several = list(value) if isinstance(value, list | tuple | range) else [value]
    texts = [_text(one, option) for one in several]
    if option.kind == "flag":
        return parse_yes_or_no(texts[0] if len(texts) == 1 else "", option.flag)
    if not texts:
        raise UserError(f"{option.flag} is an empty list; give a value or leave it out")
    if option.kind == "text":
        # Lists of seeds and the like are one value.
        return option.parse(",".join(texts), option.flag)
    read = [option.parse(text, option.flag) for text in texts]
    return tuple(itertools.chain(*read)) if option.parse is _methods else tuple(read)


def _text(value: Any, option: Option) -> str:
    if isinstance(value, bool) and option.parse is parse_yes_or_no:
        return "yes" if value else "no"
    if isinstance(value, str | float | Path) or (isinstance(value, int) and abs(value) < 10**18):
        return str(value).lower() if isinstance(value, bool) else str(value)
    shown = "nothing" if value is None else "too large a number" if isinstance(value, int) else clipped(repr(value))
    raise UserError(f"{option.flag} cannot be read ({shown}); expected a text, a number or a list of them")


def _texts_of(name: str, value: Any, option: Option) -> list[str]:
    """The texts that `_read` reads as this value."""
    if name == "methods":
        return [",".join(map(str, value))]
    if name == "seeds":
        return [grammar.format_seeds(value)]
    if name == "tasks":
        return [grammar.format_tasks(tasks) for tasks in value]
    several = value if option.kind in ("list", "alternatives") else [value]
    return [_text(one, option) if isinstance(one, bool) else f"{one}" for one in several]


@dataclass(frozen=True, kw_only=True)
class RunOptions(_Options):
    """Which runs are wanted. Of options with several values, all combinations run, each once."""

    methods: tuple[MethodSpec, ...] = _option(
        "What to run", "Names, with options: 'sdlora[rank=4|8],coda'.", _methods, MISSING, kind="alternatives"
    )
    seeds: tuple[int, ...] = _option(
        "What to run", "Each sets class order and training seed: 0-4 or 0,2.", _seeds, (0,), shown="0"
    )
    method_file: tuple[Path, ...] = _option(
        "What to run",
        "A file with a method of your own; its name is the method's.",
        parse_path,
        (),
        kind="list",
        metavar="FILE",
    )
    probe: ProbeName = _option(
        "What to run",
        "Measure besides: interpolation, accuracy between the weights of consecutive tasks (LoRA methods).",
        one_of("probe", *get_args(ProbeName)),
        "none",
    )
    benchmark: tuple[str, ...] = _option(
        "Data",
        "See 'cl-bench ls benchmarks'.",
        parse_text,
        ("icons-100",),
        shown="icons-100",
        kind="alternatives",
    )
    scenario: Scenario | None = _option(
        "Data",
        "class-incremental or domain-incremental.",
        one_of("scenario", *get_args(Scenario)),
        shown="the benchmark's",
    )
    tasks: tuple[Tasks, ...] = _option(
        "Data",
        "How many, or the classes of each: 10 or 40,30,30 or 50,5x10.",
        grammar.parse_tasks,
        (),
        shown="by benchmark",
        kind="alternatives",
    )
    order: str | None = _option(
        "Data", "Pin the order of classes (or domains): natural, permutation:K, a file.", _order, shown="by seed"
    )
    root: Path | None = _option(
        "Data", "Folder with the data sets.", parse_path, shown="CL_BENCH_DATA, else data/", metavar="FOLDER"
    )
    split_list: Path | None = _option(
        "Data",
        "Which images train and which test: text, CSV, JSON or YAML.",
        parse_path,
        shown="the data set's",
        metavar="FILE",
    )
    skip_bad: bool = _flag("Data", "Leave out images that cannot be decoded.")
    images: ImagesName = _option(
        "Data",
        "Files: decoded once (auto, resized) or whenever they are read (files).",
        one_of("way to keep images (--images)", *get_args(ImagesName)),
        "auto",
    )
    backbone: tuple[str, ...] = _option(
        "Backbone", "See 'cl-bench ls backbones'.", parse_text, (), shown="the benchmark's", kind="alternatives"
    )
    checkpoint: Path | None = _option(
        "Backbone",
        "File with its weights: safetensors, torch state dict, Google npz; FILE::NAME for one network of several.",
        parse_path,
        metavar="FILE",
    )
    pretrained: bool = _option("Backbone", "yes, or no: random weights.", parse_yes_or_no, True, shown="yes")
    normalise: str = _option(
        "Backbone",
        "Input: checkpoint (mean and std of its training) or none (in [0, 1]).",
        parse_text,
        "checkpoint",
    )
    size: int | None = _option(
        "Backbone", "Side of the input in pixels.", parse_whole_number, shown="the backbone's", metavar="N"
    )
    precision: Literal["auto"] | Precision = _option(
        "Backbone",
        "Of the backbone: fp32, bf16, or auto: bf16 where it is fast.",
        one_of("precision", "auto", *get_args(Precision)),
        "auto",
    )
    recipe: str = _option(
        "Hyper-parameters",
        "Where they come from: auto, tuned, published, published:imagenet-r, unified.",
        parse_text,
        "auto",
    )
    recipes: Path | None = _option("Hyper-parameters", "Tuned recipes of your own.", parse_path, metavar="FILE")
    set: tuple[str, ...] = _option(
        "Hyper-parameters", "One of them: lr=0.1 for all methods, sdlora.rank=8 for one.", _setting, (), kind="list"
    )
    epochs: int | None = _option("Hyper-parameters", "Same as --set epochs=N.", parse_whole_number, metavar="N")
    limit_tasks: int | None = _option("Trial", "Only the first tasks.", parse_whole_number, metavar="N")
    limit_train: int | None = _option("Trial", "Training images per class.", parse_whole_number, metavar="N")
    limit_test: int | None = _option("Trial", "Test images per class.", parse_whole_number, metavar="N")

    def __post_init__(self) -> None:
        grammar.parse_settings(self.settings, [spec.name for spec in self.methods])

    @property
    def settings(self) -> tuple[str, ...]:
        """Hyper-parameters as with `--set`, the epochs among them."""
        return self.set if self.epochs is None else (*self.set, f"epochs={self.epochs}")

    @property
    def limits(self) -> Limits:
        """The cuts of a trial."""
        return Limits(tasks=self.limit_tasks, train_per_class=self.limit_train, test_per_class=self.limit_test)

    def cells(self) -> list[RunOptions]:
        """The same with one benchmark, one number of tasks and one backbone at most each."""
        backbones: list[tuple[str, ...]] = [(name,) for name in self.backbone] or [()]
        tasks: list[tuple[Tasks, ...]] = [(cut,) for cut in self.tasks] or [()]
        return [
            replace(self, benchmark=(benchmark,), backbone=backbone, tasks=cut)
            for benchmark, backbone, cut in itertools.product(self.benchmark, backbones, tasks)
        ]

    def changed(self, given: Mapping[str, Any]) -> RunOptions:
        """With these in place of its own. On another benchmark, the recipe, backbone, normalisation and scenario do not
        hold unless they are given again; hyper-parameters replace all that were set.

        Args:
            given: as for `of`.

        Raises:
            UserError: as `of`.
        """
        new, kept = self.read(given), self.given()
        dropped = ["recipe", "backbone", "normalise", "scenario"] if "benchmark" in new else []
        if new.get("benchmark") == self.benchmark:
            dropped = []
        if {"set", "epochs"} & new.keys():
            dropped += ["set", "epochs"]
        return RunOptions(**{name: value for name, value in kept.items() if name not in dropped} | new)


@dataclass(frozen=True, kw_only=True)
class ExecutionOptions(_Options):
    """Where and how runs execute; none of it changes what a run is."""

    results: Path = _option(
        "Where and how", "Folder of the results store.", parse_path, Path("results/runs"), metavar="FOLDER"
    )
    device: str = _option("Where and how", "auto, cpu, cuda or cuda:N.", parse_text, "auto")
    compile: bool | None = _option(
        "Where and how",
        "Compile the backbone.",
        parse_yes_or_no,
        shown="on a GPU",
        kind="flag",
        no="--no-compile",
    )
    deterministic: bool = _flag("Where and how", "The same numbers twice on one GPU; slower. A CPU always does.")
    jobs: int | None = _option(
        "Where and how",
        "Runs at a time on this host, which share its cores or GPUs.",
        parse_whole_number,
        shown="1 on a GPU; on a CPU as many as fit",
        metavar="N",
    )
    checkpoint_every: float = _option(
        "Where and how",
        "Minutes between checkpoints inside a task; after each task there is one.",
        number_between(),
        10.0,
        metavar="MINUTES",
    )
    executor: str = _option(
        "Where and how", "Where runs execute: here, or ray: all GPUs, or a cluster.", parse_text, "here"
    )
    address: str | None = _option(
        "Where and how", "With ray: a running cluster, auto or HOST:PORT.", parse_text, shown="this host alone"
    )
    gpus_per_run: float | None = _option(
        "Where and how",
        "With ray: 0.5 puts two runs on a GPU.",
        number_between(0, 1, "0 to 1: a run uses one GPU or a share of it"),
        shown="1; on a CPU 0",
        metavar="X",
    )
    cpus_per_run: int | None = _option(
        "Where and how", "With ray: also the threads of a run.", parse_whole_number, shown="1", metavar="N"
    )
    collect: bool = _flag("Where and how", "With ray: hosts share no disk; results come back through Ray.")
    force: bool = _flag("Where and how", "Run again what is already there.")
    fail_fast: bool = _flag("Where and how", "Stop at the first run that fails.")
    dry_run: bool = _flag("Trial", "Show what would run, what is there, and how long the rest may take.")


def options_of(cls: type[_Options]) -> dict[str, Option]:
    """The options by field name, in the order of the list, with their flags."""
    return {
        one.name: replace(one.metadata["option"], flag=f"--{one.name.replace('_', '-')}")
        for one in fields(cls)  # type: ignore[arg-type]
    }
