"""Whether a method keeps the rules that make its numbers mean something: nothing leaks, moves or hides.

A method is trained on a small stream, by the strategy that every run uses, and held against nine promises, each of them
one function below. One training run serves them all but two: repeatability and the number of tasks take a second run
and, only if that one differs, a third which says why. Everything runs on the CPU in fp32, where bits can be compared.
"""

from __future__ import annotations

import array
import hashlib
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from types import CellType, FunctionType, MappingProxyType, MethodType, ModuleType
from typing import Any, Literal

import numpy as np
import torch
from avalanche.benchmarks import benchmark_from_datasets, with_classes_timeline, with_task_labels
from avalanche.benchmarks.utils import as_classification_dataset
from avalanche.core import SupervisedPlugin
from numpy.typing import NDArray
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from cl_bench import backbones, streams
from cl_bench.data.images import ImageStore
from cl_bench.data.samples import Concatenated, StoreSamples, samples_of
from cl_bench.experiment import Limits, Transforms
from cl_bench.method import Method, Phase
from cl_bench.plan import PlannedRun
from cl_bench.randomness import permutation
from cl_bench.stats import summarise
from cl_bench.strategy import ContinualStrategy
from cl_bench.streams import Source
from cl_bench.streams.build import TaskStream, build

CHECKS = (
    "batch size",
    "batch company",
    "task identity",
    "frozen weights",
    "old samples",
    "memory",
    "repeatability",
    "ceiling",
    "number of tasks",
)
LEAKY = "as_published_leaky"
"""The option under which methods show a leak of their released code; `cl-bench audit --all` expects it to be caught."""

TOLERANCE = 1e-4
"""Of logits, relative to the range that they have over the classes of an image (median over images).

Kernels for other shapes add in another order. In fp32 that moves the logits of every shipped method by 1e-6 of their
range at most (ViT-Ti, sums of some hundred terms; in larger networks the error grows like the root of their number).
The weakest leak of released code moves them by 4e-3 there, usual ones by 0.1 and more.
"""
SIZES = (1, 7, 128)
"""Batch sizes under which predictions must agree."""

CPU = torch.device("cpu")


# --- what is audited, where, and what comes out ----------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A method with its options.

    Attributes:
        label: name and options as the user wrote them.
        leaky: the audit is expected to fail it.
    """

    label: str
    method: Method
    leaky: bool = False


@dataclass(frozen=True)
class Slice:
    """The stream on which methods are audited, with the backbone and the seed: the same for all of them.

    Attributes:
        backbone: makes a fresh pre-trained one.
        tasks: of the whole stream; `limits` cuts it down.
        order: of the classes.
    """

    source: Source
    backbone: Callable[[], VisionTransformer]
    tasks: int
    order: str
    transforms: Transforms
    limits: Limits = Limits()
    seed: int = 0

    @classmethod
    def of(cls, run: PlannedRun) -> Slice:
        """What a planned run is on."""
        experiment = run.experiment
        return cls(
            source=streams.find(experiment.benchmark).source(experiment.storage),
            backbone=partial(backbones.create, run.backbone),
            tasks=experiment.num_tasks,
            order=experiment.class_order,
            transforms=experiment.transforms,
            limits=experiment.limits,
            seed=experiment.seed,
        )

    @property
    def length(self) -> int:
        """Number of tasks that are learned."""
        return self.limits.tasks or self.tasks

    def stream(self, reads: Reads, length: int) -> TaskStream:
        """A stream of so many tasks whose images are counted as they are read."""
        source = replace(
            self.source, train=counted(self.source.train, reads.train), test=counted(self.source.test, reads.test)
        )
        limits = self.limits.model_copy(update={"tasks": length})
        return build(source, self.tasks, self.order, self.transforms, limits)


Status = Literal["pass", "fail", "declared", "skipped"]


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    Attributes:
        figure: what was measured, in a few words.
        detail: of a failure: what exactly.
    """

    check: str
    status: Status
    figure: str
    detail: str = ""

    @classmethod
    def judge(cls, check: str, good: bool, figure: str, detail: str = "") -> Finding:
        """Pass or fail."""
        return cls(check, "pass" if good else "fail", figure, "" if good else detail)


@dataclass(frozen=True)
class Report:
    """All findings about a row, in the order of `CHECKS`; none if it could not be trained (`error` says why)."""

    row: Row
    findings: tuple[Finding, ...]
    error: str | None = None

    @property
    def failed(self) -> tuple[str, ...]:
        """The checks that failed."""
        return tuple(finding.check for finding in self.findings if finding.status == "fail")

    @property
    def good(self) -> bool:
        """Whether the audit went as it should: no check failed, or some did for a row that leaks."""
        return self.error is None and bool(self.failed) == self.row.leaky


@dataclass(frozen=True)
class Ceiling:
    """What a method cannot reach by honest means: the best joint training on the same slice.

    Attributes:
        hits: whether each test image [n] is predicted right.
    """

    label: str
    hits: NDArray[np.bool_]

    @property
    def accuracy(self) -> float:
        """Share of the test images."""
        return float(self.hits.mean())


def ceiling(rows: Sequence[Row], where: Slice) -> Ceiling:
    """The best of these rows on the slice."""
    found = [Ceiling(row.label, trial(row.method, where).hits) for row in rows]
    return max(found, key=lambda one: one.accuracy)


def audit(
    rows: Sequence[Row], where: Slice, best: Ceiling | None, told: Callable[[Report], None] = lambda report: None
) -> list[Report]:
    """Audit every row.

    Args:
        best: from `ceiling`, computed once and shared; None: that check is skipped.
        told: gets each report as soon as it is there.
    """
    reports = []
    for row in rows:
        try:
            report = Report(row, findings(row.method, where, best))
        except Exception as error:
            report = Report(row, (), f"{type(error).__name__}: {error}")
        reports.append(report)
        told(report)
    return reports


def findings(method: Method, where: Slice, best: Ceiling | None) -> tuple[Finding, ...]:
    """All checks of one method."""
    first = trial(method, where)
    # The last three of these also look back at what the evaluations of the others have left behind.
    seen = [check(first) for check in (batch_size, batch_company, task_identity, frozen_weights, old_samples, memory)]
    repeats, tasks = again(first, where)
    return (*seen, repeats, under_ceiling(first, best), tasks)


# --- one training run, watched ---------------------------------------------------------------------------------


class Counted:
    """An array of images that notes which rows of it are read."""

    def __init__(self, images: Any, read: set[int]) -> None:
        self._images, self._read = images, read
        self.shape, self.dtype = images.shape, images.dtype

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: Any) -> Any:
        rows = np.arange(len(self))[index[0] if isinstance(index, tuple) else index]
        self._read.update(np.atleast_1d(rows).tolist())
        return self._images[index]

    def __array__(self, *arguments: Any, **options: Any) -> Any:
        self._read.update(range(len(self)))
        return np.array(self._images, *arguments, **options)

    def __reduce__(self) -> Any:
        # Copied or pickled, all of them are read.
        return np.array, (np.asarray(self),)


def counted(store: ImageStore, read: set[int]) -> ImageStore:
    """The same store, whose reads are noted in `read`."""
    images: Any = Counted(store.images, read)
    return replace(store, images=images)


@dataclass
class Reads:
    """Training and test images read since they were last taken."""

    train: set[int] = field(default_factory=set)
    test: set[int] = field(default_factory=set)

    def take(self) -> tuple[set[int], set[int]]:
        """What was read, and start anew."""
        taken = set(self.train), set(self.test)
        self.train.clear()
        self.test.clear()
        return taken


def digest(tensor: Tensor) -> bytes:
    """Equal for tensors with the same shape, type and bits, NaNs included."""
    found = hashlib.sha256(repr((tuple(tensor.shape), tensor.dtype)).encode())
    found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.digest()


def fingerprint(model: nn.Module) -> dict[str, bytes]:
    """Digest of every parameter and buffer."""
    return {name: digest(tensor) for name, tensor in model.state_dict().items()}


class Watched(ContinualStrategy):
    """The strategy as it is, with a look at which tensors change when, and at the logits that are counted.

    Attributes:
        listed: names of the parameters that any phase has listed.
        held: names of those that some phase has not.
        moved: what changed though it had to stay, and when.
    """

    eval_mb_size: int

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.listed: set[str] = set()
        self.held: set[str] = set()
        self.moved: dict[str, str] = {}
        self.logits = torch.empty(0)
        self._left = fingerprint(self.model)

    def look(self) -> None:
        """Note what has changed since the end of the last task."""
        now = fingerprint(self.model)
        for name in sorted(self._left.keys() | now.keys()):
            if self._left.get(name) != now.get(name):
                self.moved.setdefault(name, "while no task was learned")

    def count(self, stream: Any, size: int) -> tuple[NDArray[np.bool_], Tensor]:
        """Hits [n] of `count_matrix` in batches of this size, and the logits [n, num_classes] behind them."""
        before, self.eval_mb_size = self.eval_mb_size, size
        n = sum(len(experience.dataset) for experience in stream)
        self.logits = torch.full((n, self.num_classes), float("nan"))
        counts = self.count_matrix(stream)
        self.eval_mb_size = before
        return counts.predicted == counts.label, self.logits

    def _predict(self, model: Any, images: Tensor, chunk: bytes) -> Tensor:
        logits = super()._predict(model, images, chunk)
        self.logits[np.frombuffer(chunk, dtype=np.int64).tolist()] = logits.float().cpu()
        return logits

    def _train_exp(self, experience: Any, eval_streams: Any = None, **kwargs: Any) -> None:
        self.look()
        super()._train_exp(experience, eval_streams, **kwargs)
        self._left = fingerprint(self.model)

    def _run_phase(self, phase: Phase, *arguments: Any, **kwargs: Any) -> None:
        chosen = {id(parameter) for parameter in phase.trainable()}
        parameters = list(self.model.named_parameters())
        self.listed |= {name for name, parameter in parameters if id(parameter) in chosen}
        before = {name: digest(parameter) for name, parameter in parameters if id(parameter) not in chosen}
        self.held |= before.keys()
        super()._run_phase(phase, *arguments, **kwargs)
        after = dict(self.model.named_parameters())
        for name, bits in before.items():
            if name not in after or digest(after[name]) != bits:
                self.moved.setdefault(name, "in a phase that does not list it")


class Recorder(SupervisedPlugin):  # type: ignore[misc]
    """Keeps the logits of an Avalanche evaluation, as they are once all other plugins had their turn."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: list[Tensor] = []

    def after_eval_iteration(self, strategy: Any, **kwargs: Any) -> None:
        self.outputs.append(strategy.mb_output.detach().float().cpu())

    def take(self) -> Tensor:
        """All logits [n, num_classes] since the last call."""
        outputs, self.outputs = torch.cat(self.outputs), []
        return outputs


@dataclass(frozen=True)
class Stage:
    """What was seen of one task.

    Attributes:
        old: training images read while it was learned that do not belong to it.
        test: test images read meanwhile.
        late: training images read while it was evaluated.
        stored, declared: numbers kept after it; declared is None for methods that do not say.
        hidden: numbers outside the parameters and buffers, by place.
    """

    old: int
    test: int
    late: int
    stored: int
    declared: int | None
    hidden: Mapping[str, int]


@dataclass(frozen=True)
class Trial:
    """A trained strategy and what was seen on the way.

    Attributes:
        pretrained: digests of the backbone before the first task.
        stages: one per task.
        state: digests of the model after the last one.
        hits, logits: of the test images [n], right after training.
        images, labels, task: the test images in the order of the stream, [n, ...].
        hidden: what `hidden_numbers` finds now.
    """

    method: Method
    strategy: Watched
    recorder: Recorder
    stream: TaskStream
    reads: Reads
    pretrained: Mapping[str, bytes]
    stages: tuple[Stage, ...]
    state: Mapping[str, bytes]
    hits: NDArray[np.bool_]
    logits: Tensor
    images: Tensor
    labels: NDArray[np.int64]
    task: NDArray[np.int64]
    hidden: Callable[[], Mapping[str, int]]

    @property
    def seen(self) -> list[int]:
        """Labels that can be predicted."""
        return list(self.strategy.seen)

    def predictors(self) -> list[nn.Module]:
        """The model and, if it has one, the merged module that `count_matrix` takes for it."""
        model = self.strategy.model.eval()
        return [model, self.strategy.predictor()] if hasattr(model, "merged") else [model]


def trial(method: Method, where: Slice, *, told: bool = True, state: int = 0) -> Trial:
    """Train a method on the slice and evaluate it after each task.

    Args:
        told: whether the strategy knows the number of tasks; if not, the stream also has one more than is learned.
        state: of the global generators, which nothing may depend on.
    """
    # A new instance: what a plugin keeps on itself must not reach another run.
    method = replace(method)
    reads = Reads()
    at_once = method.trains_on == "stream"
    stream = where.stream(reads, where.length if told or at_once else min(where.length + 1, where.tasks))
    test = stream.test[: where.length]
    recorder = Recorder()
    stages: list[Stage] = []
    classes: list[int] = []
    with global_generators(state):
        fresh = where.backbone()
        pretrained = fingerprint(fresh)
        strategy = Watched(
            plugins=[method, recorder],
            backbone=where.backbone(),
            num_classes=len(stream.classes),
            num_tasks=where.length if told else None,
            seed=where.seed,
        )
        hidden = hidden_numbers(strategy)
        for experience in stream.joint if at_once else stream.train[: where.length]:
            own = images_of(experience)
            reads.take()
            strategy.train(experience, eval_streams=[])
            train_reads, test_reads = reads.take()
            strategy.eval(test)
            recorder.take()
            late, _ = reads.take()
            classes.append(len(own.labels.unique()))
            stages.append(
                Stage(
                    old=len(train_reads - set(own.ids.tolist())),
                    test=len(test_reads),
                    late=len(late),
                    stored=stored_numbers(strategy, pretrained),
                    declared=declared_numbers(method, fresh, len(stream.classes), classes),
                    hidden=hidden(),
                )
            )
        strategy.look()
        final = fingerprint(strategy.model)
        hits, logits = strategy.count(test, strategy.eval_mb_size)
    whole = Concatenated([images_of(experience) for experience in test])
    return Trial(
        method=method,
        strategy=strategy,
        recorder=recorder,
        stream=replace(stream, test=test),
        reads=reads,
        pretrained=pretrained,
        stages=tuple(stages),
        state=final,
        hits=hits,
        logits=logits,
        images=whole.view(np.arange(len(whole.labels)), None, CPU),
        labels=whole.labels.numpy(),
        task=np.repeat(np.arange(len(test)), [len(experience.dataset) for experience in test]),
        hidden=hidden,
    )


def images_of(experience: Any) -> StoreSamples:
    """The images of an experience of our own streams."""
    samples = samples_of(experience.dataset)
    assert isinstance(samples, StoreSamples)
    return samples


@contextmanager
def global_generators(state: int) -> Iterator[None]:
    """Give every global generator a state, and what it had back afterwards."""
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()
    torch.manual_seed(state)
    np.random.seed(state)
    random.seed(state)
    try:
        yield
    finally:
        torch.set_rng_state(before[0])
        np.random.set_state(before[1])
        random.setstate(before[2])


# --- predictions, compared -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """How far two sets of logits of the same images are apart.

    Attributes:
        relative: largest difference, relative to the range of an image's logits.
        changed: images whose prediction is another one, of `total`.
    """

    relative: float
    changed: int
    total: int

    @classmethod
    def between(cls, one: Tensor, other: Tensor, seen: Sequence[int]) -> Difference:
        """Of logits [n, num_classes], over the classes seen."""
        a, b = one[:, seen].double(), other[:, seen].double()
        # Classes that a method rules out with -inf on both sides agree; whatever else is not finite does not.
        gap = (a - b).abs().masked_fill(a == b, 0).nan_to_num(nan=float("inf"), posinf=float("inf"))
        finite = a.isfinite()
        top, bottom = a.masked_fill(~finite, -float("inf")).amax(1), a.masked_fill(~finite, float("inf")).amin(1)
        ranges = (top - bottom)[(top - bottom) > 0]
        scale = float(ranges.median()) if len(ranges) else 1.0
        return cls(float(gap.max()) / scale, int((a.argmax(1) != b.argmax(1)).sum()), len(a))

    @property
    def tolerable(self) -> bool:
        """Within `TOLERANCE`: where a prediction changes nevertheless, two classes were as good as tied."""
        return self.relative <= TOLERANCE

    def __str__(self) -> str:
        relative = f"{self.relative:.0e}" if self.relative else "0"
        return f"{relative}, {self.changed} of {self.total} change"


def largest(differences: Iterable[tuple[str, Difference]]) -> tuple[str, Difference]:
    """The largest difference, named, with the most changes of any."""
    found = list(differences)
    name, worst = max(found, key=lambda pair: pair[1].relative)
    return name, replace(worst, changed=max(difference.changed for _, difference in found))


def predict(model: Any, images: Tensor, batches: Iterable[NDArray[np.int64]]) -> Tensor:
    """Logits [n, num_classes] of the images, which go through the model in these batches."""
    parts = list(batches)
    with torch.no_grad():
        chosen = (images[batch] for batch in parts)
        logits = [model(x, model.query(x)) if hasattr(model, "query") else model(x) for x in chosen]
    found = torch.empty(len(images), logits[0].shape[1])
    for batch, part in zip(parts, logits, strict=True):
        found[batch] = part.float()
    return found


def pieces(order: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    """Batches of an order; the last one may be smaller."""
    return [order[start : start + size] for start in range(0, len(order), size)]


def full_pieces(groups: Iterable[NDArray[np.int64]], size: int) -> list[NDArray[np.int64]]:
    """Batches within each group, all of the same size: the last of a group is filled up with members of it."""
    return [
        np.concatenate([piece, np.resize(group, size - len(piece))])
        for group in groups
        for piece in pieces(group, size)
    ]


def grouped(order: NDArray[np.int64], by: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """The positions of each group, in this order."""
    return [order[by[order] == value] for value in np.unique(by)]


# --- the checks ------------------------------------------------------------------------------------------------


def batch_size(trial: Trial) -> Finding:
    """The logits of every test image are the same, within `TOLERANCE`, in shuffled batches of 1, 7 and 128 images.

    This holds for the model and for the merged module by which it is counted. A prediction that changes within the
    tolerance is no failure: two classes were as good as tied.
    """
    order = permutation(("audit", 0), len(trial.images))
    differences = []
    for model in trial.predictors():
        alone, *others = (predict(model, trial.images, pieces(order, size)) for size in SIZES)
        for size, logits in zip(SIZES[1:], others, strict=True):
            differences.append((f"batches of {size}", Difference.between(alone, logits, trial.seen)))
    name, worst = largest(differences)
    return Finding.judge("batch size", worst.tolerable, str(worst), f"logits in {name} are not those of single images")


def batch_company(trial: Trial) -> Finding:
    """The logits of every test image are the same, within `TOLERANCE`, whoever is in its batch: images of all tasks,
    of all tasks in another order, of one task only, or of one class only, the size of the batch being the same.

    The accuracy in batches of one class minus that in mixed batches is what a leak is worth to a benchmark that tests
    class by class; it is shown, not judged.
    """
    n = len(trial.images)
    size = max(2, int(np.median(np.unique(trial.labels, return_counts=True)[1])))
    order, another = permutation(("audit", 0), n), permutation(("audit", 1), n)
    companies = {
        "another order": [another],
        "batches of one task": grouped(order, trial.task),
        "batches of one class": grouped(order, trial.labels),
    }
    differences, gains = [], []
    for model in trial.predictors():
        mixed = predict(model, trial.images, full_pieces([order], size))
        for name, groups in companies.items():
            logits = predict(model, trial.images, full_pieces(groups, size))
            differences.append((name, Difference.between(mixed, logits, trial.seen)))
        gains.append(100 * (accuracy(logits, trial) - accuracy(mixed, trial)))
    name, worst = largest(differences)
    figure = f"{worst}, {max(gains, key=abs):+.1f} points"
    return Finding.judge("batch company", worst.tolerable, figure, f"logits in {name} are not those in mixed batches")


def accuracy(logits: Tensor, trial: Trial) -> float:
    """Share of the test images that are predicted right among the classes seen."""
    seen = np.array(trial.seen)
    return float((seen[logits[:, seen].argmax(1).numpy()] == trial.labels).mean())


def task_identity(trial: Trial) -> Finding:
    """The logits of every test image are the same, within `TOLERANCE`, whether it comes

    - in the experience of its own task, with the task's label, through Avalanche's `eval` with all its callbacks,
    - so after other experiences than usual were evaluated (in reverse order),
    - in one experience with the images of all tasks, without task labels, or
    - through `count_matrix`.

    Images come one at a time, so that a leak through the batch is left to the other checks.
    """
    strategy, n = trial.strategy, len(trial.images)
    own = grouped(np.arange(n), trial.task)
    order = permutation(("audit", 2), n)
    labelled = [
        experience.dataset.update_data_attribute("targets_task_labels", [task] * len(experience.dataset))
        for task, experience in enumerate(trial.stream.test)
    ]
    tasks = with_task_labels(with_classes_timeline(benchmark_from_datasets(test=labelled))).streams["test"]
    parts = [images_of(experience) for experience in trial.stream.test]
    ids = np.concatenate([part.ids for part in parts])[order]
    together = as_classification_dataset(parts[0].dataset).subset(ids.tolist())
    mixed = with_classes_timeline(benchmark_from_datasets(test=[together])).streams["test"]

    def evaluated(experiences: Any, positions: Sequence[NDArray[np.int64]]) -> Tensor:
        strategy.eval(experiences)
        outputs = trial.recorder.take()
        return torch.empty_like(outputs).index_copy_(0, torch.from_numpy(np.concatenate(positions)), outputs)

    before, strategy.eval_mb_size = strategy.eval_mb_size, 1
    usual = evaluated(tasks, own)
    others = {
        "in reverse order": evaluated(list(tasks)[::-1], own[::-1]),
        "of a mixed experience": evaluated(mixed, [order]),
        "of count_matrix": strategy.count(trial.stream.test, 1)[1],
    }
    strategy.eval_mb_size = before
    name, worst = largest((name, Difference.between(usual, one, trial.seen)) for name, one in others.items())
    detail = f"logits {name} are not those of an evaluation task by task"
    return Finding.judge("task identity", worst.tolerable, str(worst), detail)


def frozen_weights(trial: Trial) -> Finding:
    """Bit by bit the same stay

    - in a phase, every parameter that it does not list;
    - while no task is learned (in evaluations above all), every parameter and buffer;
    - from the pre-trained backbone to the end, every weight of it that no phase lists.

    What `before_task` and `after_task` change outside the backbone is their business.
    """
    strategy = trial.strategy
    strategy.look()
    kept = {f"backbone.{name}": bits for name, bits in trial.pretrained.items()}
    kept = {name: bits for name, bits in kept.items() if name not in strategy.listed}
    moved = {name: "since it was pre-trained" for name, bits in kept.items() if trial.state.get(name) != bits}
    moved |= strategy.moved
    figure = f"{len(moved)} of {len(moved.keys() | kept.keys() | strategy.held)} tensors change"
    return Finding.judge("frozen weights", not moved, figure, listed(f"{name} {when}" for name, when in moved.items()))


def old_samples(trial: Trial) -> Finding:
    """While a task is learned no image is read but the training images of its experience, and while it is evaluated
    no training image.

    What a method that trains on the whole stream at once (`trains_on`) is given is one experience with all of them.
    """
    late = sum(stage.late for stage in trial.stages) + len(trial.reads.train)
    old, test = sum(stage.old for stage in trial.stages), sum(stage.test for stage in trial.stages)
    figure = f"{old} of other tasks, {test} test images, {late} at test"
    detail = "images read that are not the task's own, test images read in training, training images read at test"
    return Finding.judge("old samples", not (old or test or late), figure, detail)


def memory(trial: Trial) -> Finding:
    """After every task the model stores at most as many numbers as the method declares (`Method.kept`), and none are
    hidden outside its parameters and buffers.

    Stored is the state dict but for weights of the backbone that are as pre-trained. Hidden are tensors, arrays and
    bytes on the plugin, its class, the strategy or any module of the model (closures included), and numbers in lists
    and other containers that have come since the first task. Skipped for methods that declare nothing.
    """
    last = trial.stages[-1]
    hidden: dict[str, int] = {}
    for found in (*(stage.hidden for stage in trial.stages), trial.hidden()):
        hidden |= found
    excess = [
        f"{stage.stored:,} after task {number} where {stage.declared:,} are declared"
        for number, stage in enumerate(trial.stages, start=1)
        if stage.declared is not None and stage.stored > stage.declared
    ]
    where = [f"{numbers:,} in {path}" for path, numbers in sorted(hidden.items())]
    declared = "undeclared" if last.declared is None else f"of {last.declared:,}"
    figure = f"{last.stored:,} {declared}, {sum(hidden.values()):,} hidden"
    if last.declared is None and not hidden:
        return Finding("memory", "skipped", figure)
    return Finding.judge("memory", not (excess or where), figure, listed([*excess, *where]))


def again(first: Trial, where: Slice) -> tuple[Finding, Finding]:
    """Repeatability and the number of tasks, from as few further runs as will do."""
    needs, error = first.method.needs_num_tasks, ""
    second = None
    try:
        second = trial(first.method, where, told=needs, state=1)
    except Exception as raised:
        if needs:
            raise
        error = f"{type(raised).__name__}: {raised}"
    if second is not None and (needs or same(first, second)):
        return repeatability(first, second), number_of_tasks(second, second)
    # Two things were different in the second run. In the third it is one, seen from either side.
    third = trial(first.method, where, state=1)
    return repeatability(first, third), number_of_tasks(third, second, error)


def repeatability(one: Trial, other: Trial) -> Finding:
    """The same seed gives the same bits, in all logits and all of the state, whatever the global generators of torch,
    numpy and Python hold."""
    return Finding.judge("repeatability", same(one, other), differing(one, other), "the same seed gives another result")


def number_of_tasks(told: Trial, untold: Trial | None, error: str = "") -> Finding:
    """A method that does not declare `needs_num_tasks` gives the same bits without it, on a stream that has another
    task which is not learned (if the benchmark has one)."""
    if told.method.needs_num_tasks:
        return Finding("number of tasks", "declared", "needs to be told")
    if untold is None:
        return Finding("number of tasks", "fail", "does not run without it", error)
    figure = differing(told, untold)
    return Finding.judge("number of tasks", same(told, untold), figure, "it is used and not declared")


def under_ceiling(trial: Trial, best: Ceiling | None) -> Finding:
    """Final accuracy is not above the best joint training's by more than the half-width of the 95 % interval of the
    paired difference over the test images."""
    if best is None:
        return Finding("ceiling", "skipped", "no joint training to compare with")
    difference = summarise(100 * (trial.hits.astype(float) - best.hits))
    half = difference.half_width or 0.0
    figure = f"{difference.mean:+.1f} ± {half:.1f} points"
    detail = f"{100 * float(trial.hits.mean()):.1f} % where {best.label} reaches {100 * best.accuracy:.1f} %"
    return Finding.judge("ceiling", difference.mean <= half, figure, detail)


def same(one: Trial, other: Trial) -> bool:
    """Equal bits in logits and state."""
    return one.state == other.state and digest(one.logits) == digest(other.logits)


def differing(one: Trial, other: Trial) -> str:
    """How many images and tensors differ in a bit."""
    images = sum(digest(a) != digest(b) for a, b in zip(one.logits, other.logits, strict=True))
    names = one.state.keys() | other.state.keys()
    tensors = sum(one.state.get(name) != other.state.get(name) for name in names)
    return f"{images} of {len(one.logits)} images, {tensors} of {len(names)} tensors differ"


def listed(parts: Iterable[str]) -> str:
    """The first three, and how many more there are."""
    found = list(parts)
    return "; ".join(found[:3]) + (f"; and {len(found) - 3} more" if len(found) > 3 else "")


# --- numbers, stored and hidden --------------------------------------------------------------------------------


def stored_numbers(strategy: ContinualStrategy, pretrained: Mapping[str, bytes]) -> int:
    """What is kept beside the pre-trained backbone: as the strategy counts it or, if that is more, by its bits."""
    state = strategy.model.state_dict()
    own = (
        tensor.numel()
        for name, tensor in state.items()
        if not name.startswith("backbone.") or pretrained.get(name.removeprefix("backbone.")) != digest(tensor)
    )
    return max(strategy.stored_numbers(), sum(own))


def declared_numbers(
    method: Method, backbone: VisionTransformer, num_classes: int, classes: Sequence[int]
) -> int | None:
    """The most that the method says it keeps after tasks of so many classes; None if it says nothing."""
    if type(method).storage is Method.storage:
        return None
    return sum(method.kept(backbone, num_classes, classes).values())


def hidden_numbers(strategy: ContinualStrategy) -> Callable[[], dict[str, int]]:
    """A function that finds, by attribute, the numbers that live outside the parameters and buffers of the model.

    Containers are compared with what they hold now, since modules have shapes and the like as attributes; so is all
    that the backbone brings along.
    """
    attributes = frozenset(vars(strategy))
    start = census(strategy, attributes)

    def hidden() -> dict[str, int]:
        now = census(strategy, attributes)
        found = {
            place: numbers - start.tensors.get(place, 0) * place.startswith("model.backbone.")
            for place, numbers in now.tensors.items()
        }
        for place, numbers in now.plain.items():
            more = numbers - start.plain.get(place, 0)
            # A module that is new has its shapes.
            if more > (0 if place.rpartition(".")[0] in start.owners else SHAPE):
                found[place] = found.get(place, 0) + more
        return {place: numbers for place, numbers in found.items() if numbers > 0}

    return hidden


SHAPE = 4
"""Most numbers in the shapes that a layer keeps as an attribute (the padding of a convolution)."""


@dataclass
class Census:
    """Numbers outside the state dict, by attribute.

    Attributes:
        owners: of the attributes: the method, its class, the strategy, the modules of the model.
        tensors: numbers in tensors, arrays and bytes.
        plain: numbers in lists and other containers.
    """

    owners: set[str] = field(default_factory=set)
    tensors: dict[str, int] = field(default_factory=dict)
    plain: dict[str, int] = field(default_factory=dict)


def census(strategy: ContinualStrategy, attributes: frozenset[str]) -> Census:
    """Count all numbers outside the state dict that are within reach.

    Args:
        attributes: names of the strategy's own attributes, which are left out.
    """
    model, method = strategy.model, strategy.method
    state = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict(keep_vars=True).values()}
    modules = dict(model.named_modules(prefix="model"))
    owners: dict[str, Mapping[str, Any]] = {"method": vars(method)}
    for cls in type(method).__mro__[: type(method).__mro__.index(Method)]:
        owners[cls.__name__] = {name: part for name, part in vars(cls).items() if not name.startswith("__")}
    owners["strategy"] = {name: part for name, part in vars(strategy).items() if name not in attributes}
    owners |= {name: vars(module) for name, module in modules.items()}
    stack = [(f"{owner}.{name}", part) for owner, held in owners.items() for name, part in held.items()]
    found = Census(set(owners))
    seen = {id(method), *map(id, modules.values())}
    # What is made on the way is kept until the end, so that no id comes twice.
    made: list[Any] = []
    while stack:
        place, value = stack.pop()
        if isinstance(value, _SKIPPED) or id(value) in seen:
            continue
        seen.add(id(value))
        made.append(value)
        tensors = 0
        if isinstance(value, Tensor):
            tensors = value.numel() * (value.untyped_storage().data_ptr() not in state)
        elif isinstance(value, np.ndarray):
            tensors = value.size
        elif isinstance(value, bytes | bytearray | array.array):
            tensors = len(value)
        inside = _inside(value)
        plain = isinstance(value, _CONTAINERS) * sum(isinstance(part, _NUMBERS) for part in inside)
        for counts, numbers in ((found.tensors, tensors), (found.plain, plain)):
            if numbers:
                counts[place] = counts.get(place, 0) + numbers
        stack += [(place, part) for part in inside]
    return found


_NUMBERS = (int, float, complex, np.generic)
_CONTAINERS = (dict, MappingProxyType, list, tuple, set, frozenset, deque)
_SKIPPED = (*_NUMBERS, str, type(None), type, ModuleType, ContinualStrategy)


def _inside(value: Any) -> list[Any]:
    """What an object holds: elements, attributes; what a function has closed over."""
    if isinstance(value, dict | MappingProxyType):
        return list(value.values())
    if isinstance(value, _CONTAINERS):
        return list(value)
    if isinstance(value, partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, MethodType):
        return [value.__self__, value.__func__]
    held = list(getattr(value, "__dict__", {}).values())
    for cls in type(value).__mro__:
        slots = vars(cls).get("__slots__", ())
        names = [slots] if isinstance(slots, str) else slots
        held += [getattr(value, name) for name in names if hasattr(value, name)]
    if isinstance(value, FunctionType):
        held += [cell.cell_contents for cell in value.__closure__ or () if cell != CellType()]
        held += [value.__defaults__, value.__kwdefaults__]
    return held
