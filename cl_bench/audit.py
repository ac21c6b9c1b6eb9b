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
from types import FunctionType, MappingProxyType, MethodType, ModuleType
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
from cl_bench.data.samples import Concatenated, Samples, StoreSamples, samples_of
from cl_bench.experiment import Experiment, Limits, Transforms
from cl_bench.method import Method, Phase
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

Kernels for other shapes add in another order. In fp32 that changes logits by 1e-7 to 1e-5 of their range (12 blocks,
sums of some hundred terms); a leak that matters has to outweigh differences between classes, which are of the order of
the range itself. The tolerance lies between, a factor of ten or more from either.
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
    def of(cls, experiment: Experiment) -> Slice:
        """What an experiment runs on."""
        return cls(
            source=streams.find(experiment.benchmark).source(),
            backbone=partial(backbones.create, experiment.backbone),
            tasks=experiment.tasks,
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
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    header = repr((tuple(tensor.shape), tensor.dtype)).encode()
    return hashlib.sha256(header + flat.view(torch.uint8).numpy().tobytes()).digest()


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
        self.logits[np.frombuffer(chunk, dtype=np.int64)] = logits.float().cpu()
        return logits

    def _train_exp(self, experience: Any, eval_streams: Any = None, **kwargs: Any) -> None:
        self.look()
        super()._train_exp(experience, eval_streams, **kwargs)
        self._left = fingerprint(self.model)

    def _run_phase(self, phase: Phase, samples: Samples, key: tuple[int | str, ...], **kwargs: Any) -> None:
        chosen = {id(parameter) for parameter in phase.trainable()}
        parameters = list(self.model.named_parameters())
        self.listed |= {name for name, parameter in parameters if id(parameter) in chosen}
        before = {name: digest(parameter) for name, parameter in parameters if id(parameter) not in chosen}
        self.held |= before.keys()
        super()._run_phase(phase, samples, key, **kwargs)
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
        baseline: numbers in the attributes of the fresh model that are no state.
        state: digests of the model after the last task.
        hits, logits: of the test images [n], right after training.
        images, labels, task: the test images in the order of the stream, [n, ...].
    """

    method: Method
    strategy: Watched
    recorder: Recorder
    stream: TaskStream
    reads: Reads
    pretrained: Mapping[str, bytes]
    baseline: Mapping[str, int]
    stages: tuple[Stage, ...]
    state: Mapping[str, bytes]
    hits: NDArray[np.bool_]
    logits: Tensor
    images: Tensor
    labels: NDArray[np.int64]
    task: NDArray[np.int64]

    @property
    def seen(self) -> list[int]:
        """Labels that can be predicted."""
        return list(self.strategy.seen)

    def predictors(self) -> list[nn.Module]:
        """The model and, if it has one, the merged module that `count_matrix` takes for it."""
        model = self.strategy.model.eval()
        return [model, self.strategy.predictor()] if hasattr(model, "merged") else [model]


def trial(
    method: Method, where: Slice, num_tasks: int | None = -1, state: int = 0, longer: bool = False
) -> Trial:
    """Train a method on the slice and evaluate it after each task.

    Args:
        num_tasks: what the strategy is told; -1: the truth.
        state: of the global generators, which nothing may depend on.
        longer: the stream has a task more than is learned.
    """
    # A new instance: what a plugin keeps on itself must not reach another run.
    method = replace(method)
    reads = Reads()
    at_once = method.trains_on == "stream"
    more = longer and not at_once and where.length < where.tasks
    stream = where.stream(reads, where.length + more)
    learned = list(stream.joint if at_once else stream.train[: where.length])
    test = stream.test[: where.length]
    recorder = Recorder()
    with global_generators(state):
        backbone = where.backbone()
        pretrained, fresh = fingerprint(backbone), where.backbone()
        strategy = Watched(
            plugins=[method, recorder],
            backbone=backbone,
            num_classes=len(stream.classes),
            num_tasks=where.length if num_tasks == -1 else num_tasks,
            seed=where.seed,
        )
        attributes = frozenset(vars(strategy))
        baseline = {
            one.path: one.numbers
            for one in census(strategy, attributes)
            if not one.tensor or one.path.startswith("model.backbone.")
        }
        stages: list[Stage] = []
        classes: list[int] = []
        for experience in learned:
            own = samples_of(experience.dataset)
            assert isinstance(own, StoreSamples)
            reads.take()
            strategy.train(experience, eval_streams=[])
            read, read_test = reads.take()
            strategy.eval(test)
            recorder.take()
            classes.append(len(own.labels.unique()))
            stages.append(
                Stage(
                    old=len(read - set(own.ids.tolist())),
                    test=len(read_test),
                    late=len(reads.take()[0]),
                    stored=stored_numbers(strategy, pretrained),
                    declared=declared_numbers(method, fresh, strategy.num_classes, classes),
                    hidden=hidden_numbers(strategy, attributes, baseline),
                )
            )
        strategy.look()
        final = fingerprint(strategy.model)
        hits, logits = strategy.count(test, strategy.eval_mb_size)
    parts = [samples_of(experience.dataset) for experience in test]
    whole = Concatenated(parts)
    images = whole.view(np.arange(len(whole.labels)), None, CPU)
    task = np.repeat(np.arange(len(parts)), [len(part.labels) for part in parts])
    return Trial(
        method, strategy, recorder, replace(stream, test=test), reads, pretrained, baseline, tuple(stages), final, hits,
        logits, images, whole.labels.numpy(), task,
    )  # fmt: skip
