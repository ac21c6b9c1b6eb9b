"""Grids of runs: what a command line asks for, or a suite file asks for many times over."""

from __future__ import annotations

import itertools
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any

import yaml  # type: ignore[import-untyped]
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from cl_bench.errors import UserError, unknown_name
from cl_bench.experiment import (
    MethodSpec,
    parse_images,
    parse_methods,
    parse_precision,
    parse_probe,
    parse_scenario,
    parse_seeds,
    parse_settings,
    parse_tasks,
)

Texts = Annotated[tuple[str, ...], BeforeValidator(lambda given: _texts(given))]


def _texts(given: Any) -> Any:
    """One value, or several as a list; numbers as they are written."""
    several = given if isinstance(given, list | tuple) else [given]
    return tuple(str(one) if isinstance(one, int | float) and not isinstance(one, bool) else one for one in several)


class Grid(BaseModel):
    """Runs of methods on benchmarks; of what has several values, all combinations. Texts are as on the command line.

    Attributes:
        methods: `--methods`; several are joined.
        benchmark, scenario, tasks, order, seeds: the streams. `seeds` is one range or list.
        backbone, pretrained, normalise, size: the backbone.
        images: how those of files are kept.
        recipe: where hyper-parameters come from.
        set: hyper-parameters, as with `--set`.
        precision: of the backbone; `auto` depends on the device.
        limit_tasks, limit_train, limit_test: cuts, for trials.
        probe: what is measured besides.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    methods: Texts = Field(min_length=1)
    benchmark: Texts = ("icons-100",)
    scenario: str | None = None
    tasks: Texts | None = None
    order: str | None = None
    seeds: Annotated[str, BeforeValidator(lambda given: ",".join(_texts(given)))] = "0"
    backbone: Texts | None = None
    pretrained: Annotated[str, BeforeValidator(lambda given: {True: "yes", False: "no"}.get(given, given))] = "yes"
    normalise: str = "checkpoint"
    images: str = "auto"
    size: int | None = Field(default=None, ge=1)
    recipe: str = "auto"
    set: Texts = ()
    precision: str = "auto"
    limit_tasks: int | None = Field(default=None, ge=1)
    limit_train: int | None = Field(default=None, ge=1)
    limit_test: int | None = Field(default=None, ge=1)
    probe: str = "none"

    def cells(self) -> list[Grid]:
        """The same with one benchmark, one cut into tasks and one backbone each."""
        axes = [
            [{name: None if value is None else (value,)} for value in values]
            for name, values in (
                ("benchmark", self.benchmark),
                ("backbone", self.backbone or (None,)),
                ("tasks", self.tasks or (None,)),
            )
        ]
        return [
            self.model_copy(update={name: value for part in parts for name, value in part.items()})
            for parts in itertools.product(*axes)
        ]

    def check(self) -> None:
        """Read all texts, before anything is loaded.

        Raises:
            UserError: one of them cannot be read.
        """
        parse_settings(self.set, [spec.name for spec in self.specs()])
        parse_seeds(self.seeds)
        if self.scenario is not None:
            parse_scenario(self.scenario)
        for text in self.tasks or ():
            parse_tasks(text)
        parse_probe(self.probe)
        if self.precision != "auto":
            parse_precision(self.precision)
        parse_images(self.images)
        if self.pretrained not in ("yes", "no"):
            raise UserError(f"--pretrained '{self.pretrained}' is unknown; expected yes or no")

    def specs(self) -> list[MethodSpec]:
        """The methods with the options of their brackets.

        Raises:
            UserError: not the grammar of `--methods`.
        """
        return [spec for text in self.methods for spec in parse_methods(text)]

    def changed(self, given: dict[str, Any]) -> Grid:
        """With what the command line sets in place of the file's; on another benchmark, the file's recipe, backbone,
        normalisation and scenario do not hold unless they are given again.

        Raises:
            ValidationError: a value is not of its kind.
        """
        fields = self.model_dump(exclude_unset=True)
        if "benchmark" in given and _texts(given["benchmark"]) != self.benchmark:
            for name in ("recipe", "backbone", "normalise", "scenario"):
                fields.pop(name, None)
        return Grid.model_validate(fields | given)


class Suite(BaseModel):
    """A named set of grids.

    Attributes:
        title: what it is for, in a line.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str
    runs: tuple[Grid, ...] = Field(min_length=1)


def names() -> list[str]:
    """Names of the suites that come with the package."""
    return sorted(file.name.removesuffix(".yaml") for file in _shipped().iterdir() if file.name.endswith(".yaml"))


def find(name: str) -> Suite:
    """A suite that comes with the package, or a file.

    Raises:
        UserError: there is none, or the file is no suite.
    """
    if name in names():
        return _parse((_shipped() / f"{name}.yaml").read_text(encoding="utf-8"), name)
    path = Path(name)
    if not name.endswith((".yaml", ".yml")) and not path.exists():
        raise unknown_name("suite", name, names(), "Or name a YAML file.")
    try:
        return _parse(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise UserError(f"--suite file '{path}' cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"--suite file '{path}' is no text ({error.reason})") from error


def _shipped() -> Traversable:
    return files("cl_bench") / "assets" / "suites"


def _parse(text: str, where: str) -> Suite:
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"suite '{where}' is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(document, dict) or not isinstance(document.get("runs"), list):
        raise UserError(f"suite '{where}' has no list 'runs'; expected 'title: ...' and 'runs:' with '- methods: ...'")
    shared = document.pop("defaults", {})
    runs = document["runs"]
    if not isinstance(shared, dict) or not all(isinstance(run, dict) for run in runs):
        raise UserError(f"suite '{where}': 'defaults' and each of 'runs' must be fields, e.g. 'methods: sdlora'")
    document["runs"] = [shared | run for run in runs]
    try:
        return Suite.model_validate(document)
    except ValidationError as error:
        raise UserError(f"suite '{where}': {explained(error)}") from error


def explained(error: ValidationError) -> str:
    """The first fault, with its place."""
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg'][0].lower()}{first['msg'][1:]}"
