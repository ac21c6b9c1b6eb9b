"""The options of a run in one list: their types, defaults, help texts and parsing.

The command line, suite files, the Python API, `--dry-run` and the table in docs/sweeps.md are made from the classes
`RunOptions` and `ExecutionOptions`: a field added to one of them is an option everywhere.
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
"""Headings under which `--help` and the docs list options, in this order."""


@dataclass(frozen=True)
class Option:
    """One option: how it is parsed, shown and described.

    Attributes:
        panel: heading under which the option is listed.
        help: one sentence.
        parse: reads one text.
        default: the default in words, for help texts; empty if none is shown.
        kind: `text` takes one value, `list` joins its values, `alternatives` makes runs of each, `flag` is a switch.
        metavar: placeholder of the value in `--help`.
        no: flag that switches the option off; empty if there is none.
        flag: name on the command line, with its dashes.
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
    """A named order, or the path of a file; the file is read once the classes are known."""
    return text if grammar.is_order_file(text) else grammar.parse_order(text)


def _setting(text: str, flag: str) -> str:
    grammar.parse_pair(text, f"{flag} '{text}'")
    return text


# --- the list --------------------------------------------------------------------------------------------------


class _Options:
    """Reading and writing of options; each field of a subclass is an option."""

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """Read options from texts, numbers, booleans, or lists of these, as suite files and Python give them.

        Args:
            given: values by field name; a missing option has its default.

        Raises:
            UserError: an option does not exist, a value cannot be read, or a required option is missing.
        """
        read = cls.read(given)
        for one in fields(cls):  # type: ignore[arg-type]
            if one.name not in read and one.default is MISSING:
                raise UserError(f"option '{one.name}' is missing; say what to run, e.g. {one.name}: sdlora")
        return cls(**read)

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Values of the given options by name, without defaults (see `of`)."""
        known = options_of(cls)
        for name in given:
            if name not in known:
                raise unknown_name("option", str(name), known)
        return {name: _read(known[name], value) for name, value in given.items()}

    def given(self) -> dict[str, Any]:
        """Values of the options that differ from their defaults, by name."""
        return {
            one.name: getattr(self, one.name)
            for one in fields(self)  # type: ignore[arg-type]
            if getattr(self, one.name) != one.default
        }

    def flags(self, without: Iterable[str] = ()) -> tuple[str, ...]:
        """Options that differ from their defaults, as words of a command line."""
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
        """The `cl-bench run` command line with the same options."""
        return shlex.join(["cl-bench", "run", *self.flags()])


def _read(option: Option, value: Any) -> Any:
    several = list(value) if isinstance(value, list | tuple | range) else [value]
    texts = [_text(one, option) for one in several]
    if option.kind == "flag":
        return parse_yes_or_no(texts[0] if len(texts) == 1 else "", option.flag)
    if not texts:
        raise UserError(f"{option.flag} is an empty list; give a value or leave it out")
    if option.kind == "text":
        # A list of seeds is one value.
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
    """Texts that `_read` turns into this value."""
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
    """Which runs to make: all combinations of the values of all options, each once."""

    methods: tuple[MethodSpec, ...] = _option(
        "What to run",
        "Methods, with their hyper-parameters: 'sdlora[rank=4|8],coda'.",
        _methods,
        MISSING,
        kind="alternatives",
    )
    seeds: tuple[int, ...] = _option(
        "What to run", "Seeds of class order and training: 0-4 or 0,2.", _seeds, (0,), shown="0"
    )
    method_file: tuple[Path, ...] = _option(
        "What to run",
        "Python file with your own method, named like the method.",
        parse_path,
        (),
        kind="list",
        metavar="FILE",
    )
    probe: ProbeName = _option(
        "What to run",
        "Extra measurement: interpolation, accuracy between the weights of consecutive tasks (LoRA methods).",
        one_of("probe", *get_args(ProbeName)),
        "none",
    )
    benchmark: tuple[str, ...] = _option(
        "Data",
        "Benchmark, see 'cl-bench ls benchmarks'.",
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
        "Number of tasks, or classes of each: 10 or 40,30,30 or 50,5x10.",
        grammar.parse_tasks,
        (),
        shown="by benchmark",
        kind="alternatives",
    )
    order: str | None = _option(
        "Data", "Fixed order of classes (or domains): natural, permutation:K, or a file.", _order, shown="by seed"
    )
    root: Path | None = _option(
        "Data", "Folder with the data sets.", parse_path, shown="CL_BENCH_DATA, else data/", metavar="FOLDER"
    )
    split_list: Path | None = _option(
        "Data",
        "List of training and test images: text, CSV, JSON or YAML.",
        parse_path,
        shown="the data set's",
        metavar="FILE",
    )
    skip_bad: bool = _flag("Data", "Omit images that cannot be decoded.")
    images: ImagesName = _option(
        "Data",
        "Decode image files once (auto, resized) or at every read (files).",
        one_of("way to keep images (--images)", *get_args(ImagesName)),
        "auto",
    )
    backbone: tuple[str, ...] = _option(
        "Backbone", "See 'cl-bench ls backbones'.", parse_text, (), shown="the benchmark's", kind="alternatives"
    )
    checkpoint: Path | None = _option(
        "Backbone",
        "Weights of the backbone: safetensors, torch state dict, Google npz; FILE::NAME for one network of several.",
        parse_path,
        metavar="FILE",
    )
    pretrained: bool = _option("Backbone", "yes, or no for random weights.", parse_yes_or_no, True, shown="yes")
    normalise: str = _option(
        "Backbone",
        "Input normalisation: checkpoint (mean and std of pre-training) or none (pixels in [0, 1]).",
        parse_text,
        "checkpoint",
    )
    size: int | None = _option(
        "Backbone", "Side of the input in pixels.", parse_whole_number, shown="the backbone's", metavar="N"
    )
    precision: Literal["auto"] | Precision = _option(
        "Backbone",
        "Precision of the backbone: fp32, bf16, or auto (bf16 where it is fast).",
        one_of("precision", "auto", *get_args(Precision)),
        "auto",
    )
    recipe: str = _option(
        "Hyper-parameters",
        "Source of hyper-parameters: auto, tuned, published, published:imagenet-r, unified.",
        parse_text,
        "auto",
    )
    recipes: Path | None = _option("Hyper-parameters", "Your own tuned recipes.", parse_path, metavar="FILE")
    set: tuple[str, ...] = _option(
        "Hyper-parameters", "A value: lr=0.1 for all methods, sdlora.rank=8 for one.", _setting, (), kind="list"
    )
    epochs: int | None = _option("Hyper-parameters", "Short for --set epochs=N.", parse_whole_number, metavar="N")
    limit_tasks: int | None = _option("Trial", "Only the first N tasks.", parse_whole_number, metavar="N")
    limit_train: int | None = _option("Trial", "Only N training images per class.", parse_whole_number, metavar="N")
    limit_test: int | None = _option("Trial", "Only N test images per class.", parse_whole_number, metavar="N")

    def __post_init__(self) -> None:
        grammar.parse_settings(self.settings, [spec.name for spec in self.methods])

    @property
    def settings(self) -> tuple[str, ...]:
        """Hyper-parameters in the form of `--set`, including the epochs."""
        return self.set if self.epochs is None else (*self.set, f"epochs={self.epochs}")

    @property
    def limits(self) -> Limits:
        """Limits of a trial: tasks and images per class."""
        return Limits(tasks=self.limit_tasks, train_per_class=self.limit_train, test_per_class=self.limit_test)

    def cells(self) -> list[RunOptions]:
        """Split into options with one benchmark, and at most one number of tasks and one backbone."""
        backbones: list[tuple[str, ...]] = [(name,) for name in self.backbone] or [()]
        tasks: list[tuple[Tasks, ...]] = [(cut,) for cut in self.tasks] or [()]
        return [
            replace(self, benchmark=(benchmark,), backbone=backbone, tasks=cut)
            for benchmark, backbone, cut in itertools.product(self.benchmark, backbones, tasks)
        ]

    def changed(self, given: Mapping[str, Any]) -> RunOptions:
        """Copy with other values for some options. A different benchmark resets recipe, backbone, normalisation and
        scenario, unless they are given too; given hyper-parameters replace all that were set before.

        Args:
            given: new values, see `of`.

        Raises:
            UserError: see `of`.
        """
        new, previous = self.read(given), self.given()
        dropped = ["recipe", "backbone", "normalise", "scenario"] if "benchmark" in new else []
        if new.get("benchmark") == self.benchmark:
            dropped = []
        if {"set", "epochs"} & new.keys():
            dropped += ["set", "epochs"]
        return RunOptions(**{name: value for name, value in previous.items() if name not in dropped} | new)


@dataclass(frozen=True, kw_only=True)
class ExecutionOptions(_Options):
    """Where and how runs execute; no option here changes the key of a run."""

    results: Path = _option(
        "Where and how", "Folder that stores the results.", parse_path, Path("results/runs"), metavar="FOLDER"
    )
    device: str = _option("Where and how", "Device: auto, cpu, cuda or cuda:N.", parse_text, "auto")
    compile: bool | None = _option(
        "Where and how",
        "Compile the backbone with torch.compile.",
        parse_yes_or_no,
        shown="on a GPU",
        kind="flag",
        no="--no-compile",
    )
    deterministic: bool = _flag("Where and how", "Repeat bit for bit on a GPU, which is slower; a CPU always does.")
    jobs: int | None = _option(
        "Where and how",
        "Concurrent runs on this host, which share its cores or GPUs.",
        parse_whole_number,
        shown="1 on a GPU; on a CPU as many as fit",
        metavar="N",
    )
    checkpoint_every: float = _option(
        "Where and how",
        "Minutes between checkpoints within a task; every task ends with one.",
        number_between(),
        10.0,
        metavar="MINUTES",
    )
    executor: str = _option("Where and how", "Executor: here, or ray for all GPUs or a cluster.", parse_text, "here")
    address: str | None = _option(
        "Where and how", "With ray: running cluster, auto or HOST:PORT.", parse_text, shown="this host alone"
    )
    gpus_per_run: float | None = _option(
        "Where and how",
        "With ray: GPUs of one run; 0.5 lets two runs share a GPU.",
        number_between(0, 1, "0 to 1: a run uses one GPU or a share of it"),
        shown="1; on a CPU 0",
        metavar="X",
    )
    cpus_per_run: int | None = _option(
        "Where and how", "With ray: cores and threads of a run.", parse_whole_number, shown="1", metavar="N"
    )
    collect: bool = _flag("Where and how", "With ray: return results through Ray, for hosts without a shared disk.")
    force: bool = _flag("Where and how", "Repeat runs that are already stored.")
    fail_fast: bool = _flag("Where and how", "Stop at the first failed run.")
    dry_run: bool = _flag("Trial", "Show the runs, which are stored, and how long the others may take.")


def options_of(cls: type[_Options]) -> dict[str, Option]:
    """Options of a class by field name, in their order, with their flags."""
    return {
        one.name: replace(one.metadata["option"], flag=f"--{one.name.replace('_', '-')}")
        for one in fields(cls)  # type: ignore[arg-type]
    }
