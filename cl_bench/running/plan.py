"""Resolves the user's options to complete experiments: recipes, overrides, labels, early checks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cl_bench import backbones, streams
from cl_bench.backbones import Backbone
from cl_bench.contract import registry
from cl_bench.contract.method import Method, build_model
from cl_bench.contract.registry import MethodEntry
from cl_bench.errors import NotHere, UserError
from cl_bench.experiment import (
    Experiment,
    ImagesName,
    ImageTransforms,
    Limits,
    Precision,
    ProbeName,
    Scenario,
    Tasks,
    Value,
    first_fault,
    number_of,
    value_text,
)
from cl_bench.grammar import is_order_file, parse_order
from cl_bench.options import RunOptions
from cl_bench.running import recipes
from cl_bench.running.preflight import check_extent, constant_loss
from cl_bench.running.recipes import Recipe, Tuned
from cl_bench.running.settings import settings_for
from cl_bench.running.task_sizes import class_incremental, domain_incremental
from cl_bench.streams import Benchmark, DataConfig
from cl_bench.streams.readers.orders import read_order
from cl_bench.streams.scenarios import sizes_of
from cl_bench.training.probes import PROBES


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """One requested run; `plan` fills in what is left open.

    Attributes:
        method, options: the method, and the hyper-parameters that the user sets (values or texts).
        seed: seed of training and, unless `order` is given, of the class order `permutation:SEED`.
        benchmark, data: the stream, and where its files are and how they are read; None: as the environment says.
        scenario, tasks: None: the benchmark's own.
        order: order of the classes (or domains): a name or the path of a file; None: `permutation:SEED`.
        images: storage of images that are read from files (see `Benchmark.storage`).
        backbone: None: the benchmark's own.
        checkpoint, pretrained, normalise, size: weights and input of the backbone (see `backbones.find`).
        recipe: source of the hyper-parameters that the user does not set (see `recipes.choose`).
        remarks: sentences that say how the user's options were understood.
    """

    method: MethodEntry
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    benchmark: str = "icons-100"
    data: DataConfig | None = None
    scenario: Scenario | None = None
    tasks: Tasks | None = None
    order: str | None = None
    images: ImagesName = "auto"
    backbone: str | None = None
    checkpoint: Path | None = None
    pretrained: bool = True
    normalise: str = "checkpoint"
    size: int | None = None
    precision: Precision = "fp32"
    recipe: str = "auto"
    limits: Limits = Limits()
    probe: ProbeName = "none"
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class PlannedRun:
    """An experiment with everything that is needed to carry it out.

    Attributes:
        method: the method with the experiment's hyper-parameters.
        label: name of its row in tables.
        recipe: source of its hyper-parameters.
        backbone: pinned to the weights that the experiment names.
        data: where the images are and how they are read.
        remarks: sentences that say how ambiguous or questionable input was understood.
        lacks: what is not on this machine, `data` or `weights`; only in a dry run. The key is then not that of a run.
    """

    experiment: Experiment
    method: Method
    label: str
    recipe: Recipe
    backbone: Backbone
    data: DataConfig
    remarks: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Label and seed, for messages."""
        return f"{self.label} seed {self.experiment.seed}"


@dataclass(frozen=True)
class _SharedSetup:
    """The stream and the backbone, resolved once for all methods that share them."""

    benchmark: Benchmark
    backbone: Backbone
    scenario: Scenario
    tasks: Tasks
    order: str | None
    split: str
    transforms: ImageTransforms
    storage: str
    remarks: tuple[str, ...]
    lacks: tuple[str, ...]


def plan(specs: Iterable[RunSpec], tuned: Sequence[Tuned] = (), *, dry: bool = False) -> list[PlannedRun]:
    """Resolve every run; specs that resolve to the same experiment give one run.

    Args:
        tuned: recipes of the user, which take precedence over the shipped ones.
        dry: plan also runs whose data or weights are not on this machine (see `PlannedRun.lacks`).

    Raises:
        UserError: an option is unknown, ill-typed or impossible.
        NotHere: data or weights are not on this machine, and this is not a dry run.
    """
    setups: dict[tuple[object, ...], _SharedSetup] = {}
    methods: dict[tuple[object, ...], tuple[Method, Recipe, str, list[str]]] = {}
    runs: dict[str, PlannedRun] = {}
    for spec in specs:
        shared = tuple(getattr(spec, name) for name in _SHARED_FIELDS)
        if shared not in setups:
            setups[shared] = _shared_setup(spec, dry)
        setup = setups[shared]
        row = (shared, spec.method.name, repr(sorted(spec.options.items())), spec.recipe, spec.probe)
        if row not in methods:
            methods[row] = _method(spec, setup, tuned)
        method, recipe, label, of_method = methods[row]
        try:
            experiment = Experiment(
                method=spec.method.name,
                revision=spec.method.revision,
                hyperparameters=method.values(),
                defaults=spec.method.defaults,
                benchmark=spec.benchmark,
                scenario=setup.scenario,
                tasks=setup.tasks,
                class_order=f"permutation:{spec.seed}" if setup.order is None else setup.order,
                split=setup.split,
                transforms=setup.transforms,
                storage=setup.storage,
                backbone=setup.backbone.name,
                weights=setup.backbone.weights,
                precision=spec.precision,
                limits=spec.limits,
                probe=spec.probe,
                seed=spec.seed,
            )
        except ValidationError as error:
            raise UserError(f"{label}: {first_fault(error)}") from error
        remarks = (*setup.remarks, *spec.remarks, *of_method)
        run = PlannedRun(experiment, method, label, recipe, setup.backbone, setup.benchmark.data, remarks, setup.lacks)
        runs.setdefault(experiment.key, run)
    return list(runs.values())


_UNKNOWN = "unknown"
"""Split or weights of a dry run without data or weights."""
_SHARED_FIELDS = (
    "benchmark", "data", "scenario", "tasks", "order", "images", "backbone", "checkpoint", "pretrained", "normalise",
    "size", "limits",
)  # fmt: skip
"""The fields of a spec that determine its `_SharedSetup`."""


def _shared_setup(spec: RunSpec, dry: bool) -> _SharedSetup:
    benchmark = streams.find(spec.benchmark, spec.data, spec.scenario)
    backbone = backbones.find(
        spec.backbone or benchmark.backbone,
        checkpoint=spec.checkpoint,
        pretrained=spec.pretrained,
        normalise=spec.normalise,
        size=spec.size,
    )
    scenario, tasks, order = spec.scenario or benchmark.scenario, spec.tasks, spec.order
    remarks: list[str] = []
    lacks: list[str] = []
    if scenario == "class-incremental":
        tasks = class_incremental(benchmark, tasks, spec.limits)
    from_file = order is not None and is_order_file(order)
    if order is not None and not from_file:
        parse_order(order)
    split, storage = _UNKNOWN, "files"
    try:
        source = benchmark.source()
    except NotHere as error:
        if not dry or from_file:
            raise
        lacks.append("data")
        remarks.append(str(error))
        tasks = tasks or benchmark.tasks
    else:
        split = source.split
        if scenario == "domain-incremental":
            tasks = domain_incremental(spec.benchmark, source, tasks, spec.limits)
        if order is not None and from_file:
            domains = scenario == "domain-incremental"
            names = source.domains if domains else source.classes
            read = read_order(Path(order), names, "domain" if domains else "class")
            order = read.order
            remarks += [read.remark] if read.remark else []
    assert tasks is not None
    try:
        backbone = backbones.verify(backbone)
    except NotHere as error:
        fallback = benchmark.offline_backbone if spec.backbone is None and spec.pretrained else None
        if fallback is not None:
            backbone = backbones.verify(backbones.find(fallback, normalise=spec.normalise, size=spec.size))
            remarks.append(
                f"the weights of {benchmark.backbone} are not on this machine and cannot be fetched, so "
                f"{spec.benchmark} runs on {fallback}, which ships with cl-bench; --backbone names another"
            )
        elif dry:
            lacks.append("weights")
            remarks.append(str(error))
            backbone = replace(backbone, weights=_UNKNOWN)
        else:
            raise
    transforms = ImageTransforms(
        size=backbone.size,
        crop=benchmark.crop,
        crop_scale=benchmark.crop_scale,
        mean=backbone.mean,
        std=backbone.std,
        resize=benchmark.resize,
    )
    if "data" not in lacks:
        storage = benchmark.storage(spec.images, transforms.short)
    return _SharedSetup(
        benchmark, backbone, scenario, tasks, order, split, transforms, storage, tuple(remarks), tuple(lacks)
    )


def _method(spec: RunSpec, setup: _SharedSetup, tuned: Sequence[Tuned]) -> tuple[Method, Recipe, str, list[str]]:
    """The configured method of a run, the source of its hyper-parameters, its label, and remarks."""
    name = spec.method.name
    method, recipe = resolve(spec.method, setup.benchmark, spec.options, spec.recipe, tuned, setup.backbone)
    if setup.scenario not in method.scenarios:
        raise UserError(f"'{name}' is for {' and '.join(method.scenarios)} streams, this one is {setup.scenario}")
    method.check(number_of(setup.tasks))
    # Its result is stored with the run; calling it now shows an author's error before the training, not after it.
    method.passes(number_of(setup.tasks))
    skeleton = backbones.skeleton(setup.backbone)
    method.check_backbone(skeleton, number_of(setup.tasks))
    model = build_model(method, skeleton, setup.benchmark.num_classes)
    PROBES[spec.probe].check(model, name)
    domains, classes = setup.scenario == "domain-incremental", setup.benchmark.num_classes
    sizes = (classes,) * number_of(setup.tasks) if domains else sizes_of(setup.tasks, classes)
    remarks = [recipe.remark] if recipe.remark else []
    remarks += constant_loss(name, method, model, sizes[: spec.limits.tasks])
    shown = {option: method.values()[option] for option in spec.options}
    listed = ",".join(f"{option}={_label_text(value)}" for option, value in sorted(shown.items()))
    return method, recipe, f"{name}[{listed}]" if listed else name, remarks


def specs_of(
    options: RunOptions, methods: Mapping[str, MethodEntry], precision_of: Callable[[str], Precision]
) -> list[RunSpec]:
    """All runs of these options, in the order of benchmarks, backbones, tasks, methods, seeds.

    Args:
        methods: entries by name: those of all methods in the options, and of others in the same command.
        precision_of: resolves the precision option, which depends on the device.

    Raises:
        UserError: the data folder does not exist, or a hyper-parameter is set that no method has.
    """
    data = DataConfig.of(options.root, options.skip_bad, options.split_list)
    listed = {spec.name: methods[spec.name] for spec in options.methods}
    settings = settings_for(listed, options.settings, methods)
    return [
        RunSpec(
            method=methods[method.name],
            options={**settings.options[method.name], **method.options},
            seed=seed,
            benchmark=cell.benchmark[0],
            data=data,
            scenario=cell.scenario,
            tasks=cell.tasks[0] if cell.tasks else None,
            order=cell.order,
            images=cell.images,
            backbone=cell.backbone[0] if cell.backbone else None,
            checkpoint=cell.checkpoint,
            pretrained=cell.pretrained,
            normalise=cell.normalise,
            size=cell.size,
            precision=precision_of(cell.precision),
            recipe=cell.recipe,
            limits=cell.limits,
            probe=cell.probe,
            remarks=settings.remarks,
        )
        for cell in options.cells()
        for method in cell.methods
        for seed in cell.seeds
    ]


def plan_options(
    wanted: Sequence[RunOptions], precision_of: Callable[[str], Precision], *, dry: bool = False
) -> list[PlannedRun]:
    """All runs of these options, without duplicates (see `specs_of` and `plan`)."""
    check_extent(wanted)
    runs: dict[str, PlannedRun] = {}
    files = dict.fromkeys(file for options in wanted for file in options.method_file)
    methods = registry.lookup([spec.name for options in wanted for spec in options.methods], files)
    for options in wanted:
        tuned = recipes.read(options.recipes) if options.recipes else ()
        for run in plan(specs_of(options, methods, precision_of), tuned, dry=dry):
            runs.setdefault(run.experiment.key, run)
    return list(runs.values())


def resolve(
    entry: MethodEntry,
    benchmark: Benchmark,
    options: Mapping[str, Any],
    recipe: str = "auto",
    tuned: Sequence[Tuned] = (),
    backbone: Backbone | None = None,
) -> tuple[Method, Recipe]:
    """The configured method and its recipe (see `recipes.choose`).

    The user's options override the recipe, which overrides the defaults of the method.
    """
    user_values = entry.configure(options).values()
    holding = [name for name in (backbone.name, backbone.tuned_as) if name] if backbone else []
    chosen = recipes.choose(entry, benchmark, {key: user_values[key] for key in options}, recipe, tuned, holding)
    return entry.configure({**chosen.values, **options}), chosen


def _label_text(value: Value) -> str:
    """Text of an option's value in the label of a row.

    Labels are stored in records and identify rows, so the texts of lists and None must not change.
    """
    return str(value) if value is None or isinstance(value, list) else value_text(value, digits=6)
