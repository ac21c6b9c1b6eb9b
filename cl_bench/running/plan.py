"""From what the user asked for to fully resolved experiments: recipes, overrides, labels, early checks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cl_bench import backbones, streams
from cl_bench.backbones import Backbone
from cl_bench.contract import registry
from cl_bench.contract.method import Method
from cl_bench.contract.registry import Found
from cl_bench.errors import UserError, unknown_name
from cl_bench.experiment import (
    Experiment,
    ImagesName,
    Limits,
    MethodSpec,
    Precision,
    ProbeName,
    Scenario,
    Tasks,
    Transforms,
    Value,
    number_of,
    parse_images,
    parse_order,
    parse_probe,
    parse_scenario,
    parse_seeds,
    parse_settings,
    parse_tasks,
    read_order,
    value_text,
)
from cl_bench.running import recipes
from cl_bench.running.recipes import Recipe, Tuned
from cl_bench.running.suites import Grid
from cl_bench.streams import Benchmark, Source
from cl_bench.streams.scenarios import sizes_of, split_hash
from cl_bench.training.probes import PROBES


@dataclass(frozen=True)
class PlannedRun:
    """An experiment with the method that carries it out, its row name and the source of its hyper-parameters.

    Attributes:
        backbone: pinned to the weights that the experiment names.
    """

    experiment: Experiment
    method: Method
    label: str
    recipe: Recipe
    backbone: Backbone


def plan(
    specs: Sequence[tuple[Found, Mapping[str, Any]]],
    seeds: Sequence[int],
    *,
    benchmark: str = "icons-100",
    backbone: str | None = None,
    checkpoint: Path | None = None,
    pretrained: bool = True,
    normalise: str = "checkpoint",
    size: int | None = None,
    scenario: Scenario | None = None,
    tasks: Tasks | None = None,
    order: str | None = None,
    precision: Precision = "fp32",
    images: ImagesName = "auto",
    limits: Limits | None = None,
    probe: ProbeName = "none",
    recipe: str = "auto",
    tuned: Sequence[Tuned] = (),
) -> list[PlannedRun]:
    """Resolve every method (with its options) for every seed; what comes out the same is planned once.

    Args:
        specs: methods with the options that the user set; strings are accepted.
        seeds: each sets the training seed and, unless `order` pins it, the class order `permutation:seed`.
        backbone: None: the benchmark's own.
        checkpoint, pretrained, normalise, size: its weights and input (see `backbones.find`).
        scenario, tasks: None: the benchmark's own.
        images: how those of files are kept (see `Benchmark.storage`).
        recipe, tuned: which recipe, and recipes of the user's own (see `recipes.choose`).

    Raises:
        UserError: anything unknown, ill-typed or impossible.
    """
    data = streams.find(benchmark)
    vit = backbones.find(
        backbone or data.backbone, checkpoint=checkpoint, pretrained=pretrained, normalise=normalise, size=size
    )
    scenario = scenario or data.scenario
    limits = limits or Limits()
    if scenario == "class-incremental":
        tasks = class_incremental(data, tasks, limits)
    own_order = order is not None and Path(order).is_file()
    if order is not None and not own_order:
        parse_order(order)
    source = data.source()
    if scenario == "domain-incremental":
        tasks = domain_incremental(benchmark, source, tasks, limits)
        if order is not None and own_order:
            order = read_order(Path(order), source.domains, "domain")
    elif order is not None and own_order:
        order = read_order(Path(order), source.classes)
    assert tasks is not None
    split = split_hash(source)
    vit = backbones.verify(vit)
    transforms = Transforms(
        size=vit.size,
        crop=data.crop,
        crop_scale=data.crop_scale,
        mean=vit.mean,
        std=vit.std,
        resize=data.resize,
    )
    storage = data.storage(images, transforms.short)
    runs: dict[str, PlannedRun] = {}
    for found, options in specs:
        method, chosen = resolve(found, data, options, recipe, tuned, vit)
        if scenario not in method.scenarios:
            raise UserError(f"'{found.name}' is for {' and '.join(method.scenarios)} streams, this one is {scenario}")
        method.check(number_of(tasks))
        PROBES[probe].check(method.create(backbones.skeleton(vit), data.num_classes), found.name)
        shown = {name: method.values()[name] for name in options}
        listed = ",".join(f"{name}={_label_text(value)}" for name, value in sorted(shown.items()))
        for seed in seeds:
            experiment = Experiment(
                method=found.name,
                revision=found.revision,
                hyperparameters=method.values(),
                defaults=found.defaults,
                benchmark=benchmark,
                scenario=scenario,
                tasks=tasks,
                class_order=f"permutation:{seed}" if order is None else order,
                split=split,
                transforms=transforms,
                storage=storage,
                backbone=vit.name,
                weights=vit.weights,
                precision=precision,
                limits=limits,
                probe=probe,
                seed=seed,
            )
            label = f"{found.name}[{listed}]" if listed else found.name
            runs.setdefault(experiment.key, PlannedRun(experiment, method, label, chosen, vit))
    return list(runs.values())


def plan_cells(
    cells: Sequence[Grid],
    precision_of: Callable[[str], Precision],
    method_files: Sequence[Path] = (),
    checkpoint: Path | None = None,
    tuned: Sequence[Tuned] = (),
) -> list[PlannedRun]:
    """All runs of these cells (see `Grid.cells`), each once.

    Args:
        precision_of: resolves what a cell asks for, which depends on the device.

    Raises:
        UserError: as `plan`.
    """
    known = registry.lookup([spec.name for cell in cells for spec in cell.specs()], method_files)
    runs: dict[str, PlannedRun] = {}
    for cell in cells:
        specs = cell.specs()
        here = {spec.name: known[spec.name] for spec in specs}
        options = merge_options(specs, settings_for(here, cell.set))
        for run in plan(
            [(known[spec.name], chosen) for spec, chosen in zip(specs, options, strict=True)],
            parse_seeds(cell.seeds),
            benchmark=cell.benchmark[0],
            backbone=cell.backbone[0] if cell.backbone else None,
            checkpoint=checkpoint,
            pretrained=cell.pretrained == "yes",
            normalise=cell.normalise,
            size=cell.size,
            scenario=parse_scenario(cell.scenario) if cell.scenario else None,
            tasks=parse_tasks(cell.tasks[0]) if cell.tasks else None,
            order=cell.order,
            precision=precision_of(cell.precision),
            images=parse_images(cell.images),
            limits=Limits(tasks=cell.limit_tasks, train_per_class=cell.limit_train, test_per_class=cell.limit_test),
            probe=parse_probe(cell.probe),
            recipe=cell.recipe,
            tuned=tuned,
        ):
            runs.setdefault(run.experiment.key, run)
    return list(runs.values())


def resolve(
    found: Found,
    benchmark: Benchmark,
    options: Mapping[str, Any],
    recipe: str = "auto",
    tuned: Sequence[Tuned] = (),
    backbone: Backbone | None = None,
) -> tuple[Method, Recipe]:
    """The method with its defaults, then the recipe (see `recipes.choose`), then the user's options; and the recipe."""
    asked = found.create(options).values()
    holding = [name for name in (backbone.name, backbone.tuned_as) if name] if backbone else []
    chosen = recipes.choose(found, benchmark, {key: asked[key] for key in options}, recipe, tuned, holding)
    return found.create({**chosen.values, **options}), chosen


def class_incremental(data: Benchmark, tasks: Tasks | None, limits: Limits) -> Tasks:
    """The tasks of a class-incremental stream; None: as many as the benchmark has by default.

    Raises:
        UserError: the classes cannot be cut like this, or the limits ask for more tasks than there are.
    """
    if tasks is None:
        own = data.scenario == "class-incremental"
        tasks = data.tasks if own else streams.default_tasks(data.num_classes)
    try:
        length = len(sizes_of(tasks, data.num_classes))
    except ValueError as error:
        if isinstance(tasks, int):
            raise UserError(f"--tasks {tasks} does not divide the {data.num_classes} classes of {data.name}") from error
        raise UserError(f"--tasks: {error}, the classes of {data.name}") from error
    _check_length(length, limits)
    return tasks


def domain_incremental(name: str, source: Source, tasks: Tasks | None, limits: Limits) -> int:
    """The number of tasks of a domain-incremental stream: one for each domain.

    Raises:
        UserError: the data has no domains, another number of tasks is asked for, a domain has no images.
    """
    domains = source.domains
    if not domains:
        with_domains = ", ".join(other for other in streams.names() if streams.has_domains(other))
        raise UserError(f"{name} has no domains, so it cannot be domain-incremental; these have: {with_domains}")
    if tasks not in (None, len(domains)):
        raise UserError(f"--tasks: {name} has {len(domains)} domains, each of which is a task; leave it out")
    for part, store in (("training", source.train), ("test", source.test)):
        assert store.domains is not None
        for domain in domains:
            if not (store.domains == domain).any():
                raise UserError(f"{name}: domain '{domain}' has no {part} images; complete the data or the split list")
    _check_length(len(domains), limits)
    return len(domains)


def _check_length(length: int, limits: Limits) -> None:
    if limits.tasks and limits.tasks > length:
        raise UserError(f"--limit-tasks {limits.tasks} is more than the {length} tasks there are; leave it out for all")


def merge_options(specs: Sequence[MethodSpec], settings: Mapping[str, Mapping[str, str]]) -> list[dict[str, str]]:
    """Options of each spec: `--set` first, then its own brackets."""
    return [{**settings[spec.name], **spec.options} for spec in specs]


def settings_for(methods: Mapping[str, Found], texts: Sequence[str]) -> dict[str, dict[str, str]]:
    """Options per method of `--set` values (see `parse_settings`).

    Raises:
        UserError: cannot be read, or an unqualified key that one of the methods lacks.
    """
    found = methods.values()
    keys = [text.split("=")[0].strip() for text in texts]
    for key in [key for key in keys if "." not in key]:
        for method in found:
            if key in method.defaults:
                continue
            if any(key in other.defaults for other in found):
                raise UserError(
                    f"--set {key}=... is for every listed method, but '{method.name}' has no '{key}'; "
                    "write METHOD." + key + "=... for the ones that have it"
                )
            raise unknown_name(f"hyper-parameter of '{method.name}'", key, method.defaults)
    return parse_settings(texts, list(methods))


def _label_text(value: Value) -> str:
    """An option's value in the label of a row.

    Labels are stored in records and tell rows apart: lists and None stay as they have always been written there.
    """
    return str(value) if value is None or isinstance(value, list) else value_text(value, digits=6)
