"""One experiment of cl-bench as arrays, weights and transforms that can be passed to another program."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision import transforms as tv

from cl_bench import backbones, streams
from cl_bench.data.samples import samples_of
from cl_bench.errors import UserError
from cl_bench.experiment import Experiment, ImageTransforms
from cl_bench.running import suites
from cl_bench.running.plan import PlannedRun, plan_options
from cl_bench.streams.scenarios import build


def runs_of(suite: str, checkpoint: Path | None = None, **given: Any) -> list[PlannedRun]:
    """All runs of a suite, planned as `cl-bench run --suite` does.

    Args:
        checkpoint: weights of the backbone, if they are not embedded.
        given: options that override those of all runs (limits, backbone, ...).

    Raises:
        UserError: the suite does not exist, or cannot be planned.
    """
    wanted = [replace(options.changed(given), checkpoint=checkpoint) for options in suites.find(suite).runs]
    return plan_options(wanted, lambda precision: "fp32")


@dataclass(frozen=True)
class Cell:
    """The inputs of one experiment that cl-bench and the released program share.

    Attributes:
        run: the planned run of cl-bench.
        train, train_labels, test, test_labels: uint8 [n, H, W, 3] and int64 [n]; labels are positions in the class
            order, so that classes are learned in the order of their labels.
        tasks: number of tasks of the stream, with `increment` classes each.
        state: weights of the timm ViT, without head.
        shape: arguments of the ViT's constructor.
    """

    run: PlannedRun
    train: NDArray[np.uint8]
    train_labels: NDArray[np.int64]
    test: NDArray[np.uint8]
    test_labels: NDArray[np.int64]
    tasks: int
    increment: int
    state: Mapping[str, Tensor]
    shape: Mapping[str, int]

    @property
    def experiment(self) -> Experiment:
        return self.run.experiment

    @property
    def total(self) -> list[int]:
        """Number of test images of each task."""
        return np.bincount(self.test_labels // self.increment, minlength=self.tasks).tolist()

    def vit(self) -> Any:
        """A new timm ViT with the weights, built by the installed timm."""
        return backbones.build_backbone(self.run.backbone)


def load(run: PlannedRun) -> Cell:
    """The images, labels and weights of a run, exactly as cl-bench uses them.

    Raises:
        UserError: the tasks differ in size, or torchvision has no such training crops.
    """
    experiment = run.experiment
    if not isinstance(experiment.tasks, int) or experiment.scenario != "class-incremental":
        raise UserError("the released programs take class-incremental tasks of the same size only; set --tasks N")
    if experiment.transforms.crop != "pixels":
        raise UserError(f"'{experiment.benchmark}' has training crops that torchvision does not have; take photographs")
    source = streams.find(experiment.benchmark).source(experiment.storage)
    stream = build(source, experiment.tasks, experiment.class_order, experiment.transforms, experiment.limits)
    (train, train_labels), (test, test_labels) = (_arrays(part) for part in (stream.train, stream.test))
    vit = backbones.build_backbone(run.backbone)
    patch = vit.patch_embed
    shape = {
        "img_size": patch.img_size[0],
        "patch_size": patch.patch_size[0],
        "in_chans": run.backbone.channels,
        "embed_dim": vit.embed_dim,
        "depth": len(vit.blocks),
        "num_heads": vit.blocks[0].attn.num_heads,
    }
    return Cell(
        run=run,
        train=train,
        train_labels=train_labels,
        test=test,
        test_labels=test_labels,
        tasks=len(stream.tasks),
        increment=len(source.classes) // experiment.tasks,
        state=vit.state_dict(),
        shape=shape,
    )


def _arrays(stream: Any) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    parts: list[Any] = [samples_of(experience.dataset) for experience in stream]
    images = np.concatenate([np.asarray(part.dataset.store.images[part.ids]) for part in parts])
    return images, torch.cat([part.labels for part in parts]).numpy()


def views(transforms: ImageTransforms) -> tuple[list[Any], list[Any]]:
    """The training and the test view as torchvision transforms of PIL images, with the settings of the experiment."""
    end = [tv.ToTensor(), tv.Normalize(transforms.mean, transforms.std)]
    crop = tv.RandomResizedCrop(transforms.size, scale=transforms.crop_scale, ratio=transforms.crop_ratio)
    test = [tv.Resize(transforms.short, tv.InterpolationMode.BICUBIC), tv.CenterCrop(transforms.size)]
    return [crop, tv.RandomHorizontalFlip(transforms.flip), *end], [*test, *end]


def settings(cell: Cell, fixed: Mapping[str, Any]) -> dict[str, Any]:
    """Hyper-parameters of the experiment, after checking those that the program does not let one set.

    Args:
        fixed: values of these hyper-parameters in the program.

    Raises:
        UserError: one of them differs from the program's value.
    """
    values = dict(cell.experiment.hyperparameters)
    for name, value in fixed.items():
        ours = tuple(values[name]) if isinstance(values[name], list) else values[name]
        if ours != value:
            raise UserError(f"the released program has {name} = {value}, the experiment {ours}; set it to the former")
    if values["schedule"] == "inflora" and values["epochs"] < 2:
        raise UserError("the released scheduler divides by epochs - 1; set epochs to 2 or more")
    return values


def check_state(missing: Sequence[str], unexpected: Sequence[str], own: Callable[[str], bool]) -> None:
    """Check that a program's ViT has loaded all weights, and only lacks those of its own modules.

    Args:
        missing, unexpected: result of `load_state_dict`.
        own: whether a weight belongs to the program's own modules.

    Raises:
        ValueError: other weights are missing, or some were not loaded.
    """
    if unexpected or not all(map(own, missing)):
        raise ValueError(f"weights do not fit: missing {[n for n in missing if not own(n)]}, left over {unexpected}")


@dataclass
class Outcome:
    """Results of a program.

    Attributes:
        replaced: descriptions of what was replaced in the program.
        recipe: settings of the program.
        correct: hits [stages][tasks] among all classes seen so far; None for tasks not seen yet.
        task_aware: hits among the classes of the image's own task, if the program computes them.
        task_aware_total: number of images for `task_aware` per task, if not all.
        reported: accuracy in percent after each stage, as printed by the program.
        seconds: wall-clock seconds of each stage, training and evaluation.
    """

    replaced: list[str]
    recipe: dict[str, Any]
    correct: list[list[int | None]] = field(default_factory=list)
    task_aware: list[list[int | None]] = field(default_factory=list)
    task_aware_total: list[int] | None = None
    reported: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def hits(self, right: NDArray[np.bool_], labels: NDArray[np.int64], cell: Cell) -> list[int | None]:
        """One row of `correct`: the number of hits in each task.

        Args:
            right: whether each evaluated image was classified correctly, [n].
            labels: labels of these images, [n].

        Raises:
            ValueError: these are not the test images of the tasks seen so far.
        """
        task = labels // cell.increment
        seen = int(task.max()) + 1
        if np.bincount(task).tolist() != cell.total[:seen]:
            raise ValueError(f"{np.bincount(task).tolist()} images were evaluated, expected {cell.total[:seen]}")
        row = np.bincount(task[right], minlength=seen).tolist()
        return [*row, *[None] * (cell.tasks - seen)]
