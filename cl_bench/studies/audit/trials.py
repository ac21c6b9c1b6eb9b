"""One observed training run of a method on a small stream."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from avalanche.core import SupervisedPlugin
from numpy.typing import NDArray
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from cl_bench import backbones, streams
from cl_bench.contract.method import Method
from cl_bench.contract.phase import Phase
from cl_bench.data.samples import Concatenated, StoreSamples, samples_of
from cl_bench.experiment import ImageTransforms, Limits
from cl_bench.running.plan import PlannedRun
from cl_bench.streams import Source
from cl_bench.streams.scenarios import TaskStream, build
from cl_bench.studies.audit.module_state import ModuleState
from cl_bench.studies.audit.numbers import declared_numbers, exemplar_bytes, hidden_numbers, stored_numbers
from cl_bench.studies.audit.observation import Reads, digest, fingerprint, recording_reads
from cl_bench.studies.audit.restarts import Interrupted, Interruption, checkpoint_of
from cl_bench.training.checkpoint import Checkpoint, restore_random_state
from cl_bench.training.strategy import ContinualStrategy

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Slice:
    """The stream, backbone and seed of an audit, the same for all methods.

    Attributes:
        source: the images.
        backbone: makes a fresh pre-trained backbone.
        tasks: number of tasks of the whole stream, before `limits` cut it down.
        order: order of the classes.
    """

    source: Source
    backbone: Callable[[], VisionTransformer]
    tasks: int
    order: str
    transforms: ImageTransforms
    limits: Limits = Limits()
    seed: int = 0

    @classmethod
    def of(cls, run: PlannedRun) -> Slice:
        """The stream, backbone and seed of a planned run."""
        experiment = run.experiment
        return cls(
            source=streams.find(experiment.benchmark, run.data).source(experiment.storage),
            backbone=partial(backbones.build_backbone, run.backbone),
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
        """A stream of `length` tasks that records in `reads` which images are read."""
        source = replace(
            self.source,
            train=recording_reads(self.source.train, reads.train),
            test=recording_reads(self.source.test, reads.test),
        )
        limits = self.limits.model_copy(update={"tasks": length})
        return build(source, self.tasks, self.order, self.transforms, limits)


class WatchedStrategy(ContinualStrategy):
    """The usual strategy, which also records which tensors change when, and the logits behind the counts.

    Attributes:
        listed: names of the parameters that any phase lists.
        held: names of the parameters that some phase does not list.
        moved: for each tensor that changed although it must not, when it did.
        left: digests of the model at the end of the last task.
        logits: logits [n, num_classes] of the last `count`.
    """

    eval_mb_size: int

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.listed: set[str] = set()
        self.held: set[str] = set()
        self.moved: dict[str, str] = {}
        self.logits = torch.empty(0)
        self.left = fingerprint(self.model)

    def look(self) -> None:
        """Record which tensors have changed since the end of the last task."""
        now = fingerprint(self.model)
        for name in sorted(self.left.keys() | now.keys()):
            if self.left.get(name) != now.get(name):
                self.moved.setdefault(name, "changed while no task was learned")

    def count(self, stream: Any, size: int) -> tuple[NDArray[np.bool_], Tensor]:
        """Whether `count_matrix`, in batches of this size, predicts each image correctly [n], and its logits
        [n, num_classes]."""
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
        self.left = fingerprint(self.model)

    def _run_phase(self, phase: Phase, *arguments: Any, **kwargs: Any) -> None:
        chosen = {id(parameter) for parameter in phase.trained()}
        parameters = list(self.model.named_parameters())
        self.listed |= {name for name, parameter in parameters if id(parameter) in chosen}
        before = {name: digest(parameter) for name, parameter in parameters if id(parameter) not in chosen}
        self.held |= before.keys()
        super()._run_phase(phase, *arguments, **kwargs)
        after = dict(self.model.named_parameters())
        for name, bits in before.items():
            if name not in after or digest(after[name]) != bits:
                self.moved.setdefault(name, "changed in a phase that does not list it")


class Recorder(SupervisedPlugin):  # type: ignore[misc]
    """Records the logits of an Avalanche evaluation, after all other plugins have been called."""

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
class Circumstances:
    """Circumstances of a run on which its result must not depend.

    Attributes:
        state: seed of the global generators.
        knows_num_tasks: whether the strategy knows the number of tasks; if not, the stream also has one more task,
            which is not learned.
        between: whether the run is restarted after each task.
        inside: for each task, the number of steps after which the run is restarted; 0: never; empty: in no task.
    """

    state: int = 0
    knows_num_tasks: bool = True
    between: bool = False
    inside: tuple[int, ...] = ()

    @property
    def usual(self) -> bool:
        """Whether the circumstances are those of an ordinary run."""
        return self == Circumstances()


@dataclass(frozen=True)
class Snapshot:
    """Results of a run at one time, for comparison bit by bit.

    Attributes:
        state: digests of the tensors of the model, by name.
        logits: logits of all test images [n, num_classes].
    """

    state: Mapping[str, bytes]
    logits: Tensor


@dataclass(frozen=True)
class TaskObservations:
    """Observations during one task and the evaluation after it.

    Attributes:
        old: number of training images of other tasks that training read.
        test: number of test images that training read.
        late: number of training images that the evaluation read.
        stored, declared: numbers that the model stores after the task, and the declared maximum (None: undeclared).
        hidden: numbers outside the parameters and buffers, by attribute.
        exemplars: bytes of the tensors in which images of the task are found.
        steps: number of training steps from which the run could resume.
        result: model and logits of the evaluation.
    """

    old: int
    test: int
    late: int
    stored: int
    declared: int | None
    hidden: Mapping[str, int]
    exemplars: int
    steps: int
    result: Snapshot


@dataclass(frozen=True)
class Trial:
    """A trained strategy and all observations during its training.

    Attributes:
        recorder: records the logits of further evaluations.
        stream: the stream, with the test experiences of the learned tasks only.
        reads: records which images are read from now on.
        pretrained: digests of the backbone before the first task.
        depth: number of blocks of the backbone.
        stages: observations of each task.
        hits: whether each test image [n] is predicted correctly by `count_matrix` right after training.
        result: the model and the logits of that evaluation.
        images, labels, task: images, labels and tasks of the test images in the order of the stream, [n, ...].
        hidden: counts the hidden numbers as of now (see `hidden_numbers`).
    """

    method: Method
    strategy: WatchedStrategy
    recorder: Recorder
    stream: TaskStream
    reads: Reads
    pretrained: Mapping[str, bytes]
    depth: int
    stages: tuple[TaskObservations, ...]
    hits: NDArray[np.bool_]
    result: Snapshot
    images: Tensor
    labels: NDArray[np.int64]
    task: NDArray[np.int64]
    hidden: Callable[[], Mapping[str, int]]

    @property
    def seen(self) -> list[int]:
        """Labels of the classes seen, which can be predicted."""
        return list(self.strategy.seen)

    @property
    def snapshots(self) -> list[Snapshot]:
        """The results after each task, and the one of the final `count_matrix`."""
        return [*(stage.result for stage in self.stages), self.result]

    def predictors(self) -> list[nn.Module]:
        """The model and, if it has one, the merged module that `count_matrix` uses instead."""
        model = self.strategy.model.eval()
        merged = self.strategy.predictor()
        return [model] if merged is model else [model, merged]


class TrialProcess:
    """Imitates one process of a run: a new strategy with a new instance of the method, so that state on a plugin
    cannot reach the next one."""

    def __init__(self, method: Method, where: Slice, stream: TaskStream, circumstances: Circumstances) -> None:
        self.method, self.recorder, self.interruption = replace(method), Recorder(), Interruption()
        self.strategy = WatchedStrategy(
            plugins=[self.method, self.recorder, self.interruption],
            backbone=where.backbone(),
            num_classes=len(stream.classes),
            num_tasks=where.length if circumstances.knows_num_tasks else None,
            seed=where.seed,
        )
        # The check on memory only looks at the first run.
        self.hidden: Callable[[], Mapping[str, int]] = hidden_numbers(self.strategy) if circumstances.usual else dict

    def resume(self, checkpoint: Checkpoint) -> None:
        """Resume from the checkpoint of another process."""
        self.strategy.resume(checkpoint)
        self.strategy.left = fingerprint(self.strategy.model)
        restore_random_state(checkpoint.part("random."))


def trial(method: Method, where: Slice, modules: ModuleState, circumstances: Circumstances = Circumstances()) -> Trial:
    """Train a method on the slice and evaluate it after each task.

    Args:
        modules: state of the method's modules at the start of a process.
    """
    reads = Reads()
    at_once = method.trains_on == "stream"
    more = not circumstances.knows_num_tasks and not at_once
    stream = where.stream(reads, min(where.length + more, where.tasks))
    test = stream.test[: where.length]
    stages: list[TaskObservations] = []
    classes: list[int] = []

    def begin(last: TrialProcess | None = None) -> TrialProcess:
        checkpoint = None if last is None else checkpoint_of(last.strategy, weights)
        modules.restore()
        process = TrialProcess(method, where, stream, circumstances)
        if checkpoint is not None:
            process.resume(checkpoint)
        return process

    with global_generators(circumstances.state):
        fresh = where.backbone()
        pretrained = fingerprint(fresh)
        weights = fresh.state_dict()
        process = begin()
        for number, experience in enumerate(stream.joint if at_once else stream.train[: where.length]):
            own = images_of(experience)
            reads.take()
            process.interruption.begin(dict(enumerate(circumstances.inside)).get(number))
            try:
                process.strategy.train(experience, eval_streams=[])
            except Interrupted:
                process = begin(process)
                process.strategy.train(experience, eval_streams=[])
            train_reads, test_reads = reads.take()
            # Only the first run of a method is checked.
            exemplars = exemplar_bytes(process.strategy, own) if circumstances.usual else 0
            reads.take()
            process.strategy.eval(test)
            result = Snapshot(process.strategy.left, process.recorder.take())
            late, _ = reads.take()
            classes.append(len(own.labels.unique()))
            stages.append(
                TaskObservations(
                    old=len(train_reads - set(own.ids.tolist())),
                    test=len(test_reads),
                    late=len(late),
                    stored=stored_numbers(process.strategy, pretrained),
                    declared=declared_numbers(method, fresh, len(stream.classes), classes),
                    hidden=process.hidden(),
                    exemplars=exemplars,
                    steps=process.interruption.steps,
                    result=result,
                )
            )
            if circumstances.between:
                process = begin(process)
        process.strategy.look()
        final = fingerprint(process.strategy.model)
        hits, logits = process.strategy.count(test, process.strategy.eval_mb_size)
    whole = Concatenated([images_of(experience) for experience in test])
    return Trial(
        method=process.method,
        strategy=process.strategy,
        recorder=process.recorder,
        stream=replace(stream, test=test),
        reads=reads,
        pretrained=pretrained,
        depth=len(fresh.blocks),
        stages=tuple(stages),
        hits=hits,
        result=Snapshot(final, logits),
        images=whole.view(np.arange(len(whole.labels)), None, CPU),
        labels=whole.labels.numpy(),
        task=np.repeat(np.arange(len(test)), [len(experience.dataset) for experience in test]),
        hidden=process.hidden,
    )


def images_of(experience: Any) -> StoreSamples:
    """The images of an experience of a cl-bench stream."""
    samples = samples_of(experience.dataset)
    assert isinstance(samples, StoreSamples)
    return samples


@contextmanager
def global_generators(state: int) -> Iterator[None]:
    """Seed every global generator with `state`, and restore them after the block."""
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
