"""The options that say which runs to make."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from cl_bench import grammar
from cl_bench.experiment import ImagesName, Limits, Precision, ProbeName, Scenario, Tasks
from cl_bench.grammar import MethodSpec, one_of, parse_path, parse_text, parse_whole_number, parse_yes_or_no
from cl_bench.options.option import Options, flag, option, parse_methods, parse_order, parse_seeds, parse_setting


@dataclass(frozen=True, kw_only=True)
class RunOptions(Options):
    """Which runs to make: all combinations of the values of all options, each once."""

    methods: tuple[MethodSpec, ...] = option(
        "What to run",
        "Methods, with their hyper-parameters: 'sdlora[rank=4|8],coda'.",
        parse_methods,
        MISSING,
        kind="alternatives",
    )
    seeds: tuple[int, ...] = option(
        "What to run", "Seeds of class order and training: 0-4 or 0,2.", parse_seeds, (0,), shown="0"
    )
    method_file: tuple[Path, ...] = option(
        "What to run",
        "Python file with your own method, named like the method.",
        parse_path,
        (),
        kind="list",
        metavar="FILE",
    )
    probe: ProbeName = option(
        "What to run",
        "Extra measurement: interpolation, accuracy between the weights of consecutive tasks (LoRA methods).",
        one_of("probe", *get_args(ProbeName)),
        "none",
    )
    benchmark: tuple[str, ...] = option(
        "Data",
        "Benchmark, see 'cl-bench ls benchmarks'.",
        parse_text,
        ("icons-100",),
        shown="icons-100",
        kind="alternatives",
    )
    scenario: Scenario | None = option(
        "Data",
        "class-incremental or domain-incremental.",
        one_of("scenario", *get_args(Scenario)),
        shown="the benchmark's",
    )
    tasks: tuple[Tasks, ...] = option(
        "Data",
        "Number of tasks, or classes of each: 10 or 40,30,30 or 50,5x10.",
        grammar.parse_tasks,
        (),
        shown="by benchmark",
        kind="alternatives",
    )
    order: str | None = option(
        "Data", "Fixed order of classes (or domains): natural, permutation:K, or a file.", parse_order, shown="by seed"
    )
    root: Path | None = option(
        "Data", "Folder with the data sets.", parse_path, shown="CL_BENCH_DATA, else data/", metavar="FOLDER"
    )
    split_list: Path | None = option(
        "Data",
        "List of training and test images: text, CSV, JSON or YAML.",
        parse_path,
        shown="the data set's",
        metavar="FILE",
    )
    skip_bad: bool = flag("Data", "Omit images that cannot be decoded.")
    images: ImagesName = option(
        "Data",
        "Decode image files once (auto, resized) or at every read (files).",
        one_of("way to keep images (--images)", *get_args(ImagesName)),
        "auto",
    )
    backbone: tuple[str, ...] = option(
        "Backbone", "See 'cl-bench ls backbones'.", parse_text, (), shown="the benchmark's", kind="alternatives"
    )
    checkpoint: Path | None = option(
        "Backbone",
        "Weights of the backbone: safetensors, torch state dict, Google npz; FILE::NAME for one network of several.",
        parse_path,
        metavar="FILE",
    )
    pretrained: bool = option("Backbone", "yes, or no for random weights.", parse_yes_or_no, True, shown="yes")
    normalise: str = option(
        "Backbone",
        "Input normalisation: checkpoint (mean and std of pre-training) or none (pixels in [0, 1]).",
        parse_text,
        "checkpoint",
    )
    size: int | None = option(
        "Backbone", "Side of the input in pixels.", parse_whole_number, shown="the backbone's", metavar="N"
    )
    precision: Literal["auto"] | Precision = option(
        "Backbone",
        "Precision of the backbone: fp32, bf16, or auto (bf16 where it is fast).",
        one_of("precision", "auto", *get_args(Precision)),
        "auto",
    )
    recipe: str = option(
        "Hyper-parameters",
        "Source of hyper-parameters: auto, tuned, published, published:imagenet-r, own, unified.",
        parse_text,
        "auto",
    )
    recipes: Path | None = option("Hyper-parameters", "Your own tuned recipes.", parse_path, metavar="FILE")
    set: tuple[str, ...] = option(
        "Hyper-parameters",
        "A value: lr=0.1 for all methods that have it, sdlora.rank=8 for one.",
        parse_setting,
        (),
        kind="list",
    )
    epochs: int | None = option("Hyper-parameters", "Short for --set epochs=N.", parse_whole_number, metavar="N")
    limit_tasks: int | None = option("Trial", "Only the first N tasks.", parse_whole_number, metavar="N")
    limit_train: int | None = option("Trial", "Only N training images per class.", parse_whole_number, metavar="N")
    limit_test: int | None = option("Trial", "Only N test images per class.", parse_whole_number, metavar="N")

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
