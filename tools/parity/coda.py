"""Run the released program of CODA-Prompt (GT-RIPL/CODA-Prompt) on an experiment of cl-bench."""

from __future__ import annotations

import importlib
import random
import re
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml  # type: ignore[import-untyped]
from torch import nn

from cl_bench.errors import UserError
from tools.parity import shims
from tools.parity.cells import Cell, Outcome, settings, views

REPOSITORY = "GT-RIPL/CODA-Prompt"
CONFIG = "configs/cifar-100_prompt.yaml"
CLASSES = 100
"""Number of classes for which the program builds its head (CIFAR-100)."""
# Its scheduler sets itself back by one epoch, as InfLoRA's does, which has the same file.
FIXED = {
    "blocks": 5, "start": "gram-schmidt", "head_start": "torch", "optimizer": "adam", "schedule": "inflora",
}  # fmt: skip
_LOSS = re.compile(r"Epoch:(\d+)/\d+\s+\* Loss ([\d.]+) \|")


def losses(text: str) -> list[list[float]]:
    """Training losses [tasks][epochs] as printed, with three decimals."""
    rows: list[list[float]] = []
    for epoch, loss in _LOSS.findall(text):
        if epoch == "1":
            rows.append([])
        rows[-1].append(float(loss))
    return rows


def run(cell: Cell, folder: Path, device: torch.device, workers: int) -> Outcome:
    """Do what the program's `run.py` does for one repeat, on the cell; see `tools.parity.run`."""
    values = settings(cell, FIXED)
    sizes = np.bincount(cell.train_labels // cell.increment)
    if (sizes % values["batch_size"]).any():
        raise UserError(
            f"the released program drops the last incomplete batch of an epoch, cl-bench does not: "
            f"set a batch size that divides {sorted(set(sizes.tolist()))}, not {values['batch_size']}"
        )
    replaced = [shims.whole_pickles()]
    if device.type == "cpu":
        replaced.append(shims.without_cuda())
    program, trainer, dataloaders, transforms, zoo = (
        importlib.import_module(name) for name in ("run", "trainer", "dataloaders", "dataloaders.utils", "models.zoo")
    )
    _give_weights(zoo, cell)

    def load(self: Any) -> None:
        self.data, self.targets = (cell.train, cell.train_labels) if self.train else (cell.test, cell.test_labels)

    dataloaders.iCIFAR100.load = load
    train, test = views(cell.experiment.transforms)
    transforms.get_transform = lambda phase, **_: transforms.transforms.Compose(train if phase == "train" else test)
    replaced += [
        "weights: models.zoo builds its ViT in the experiment's sizes with its weights; head, prompts have its width",
        "data: dataloaders.iCIFAR100.load gives the experiment's images in its class order",
        "data: dataloaders.utils.get_transform gives its transforms",
        f"data: {workers} loader processes",
        "the loop over repeats of its run.py, and what it writes",
    ]
    config = yaml.safe_load((folder / CONFIG).read_text()) | {
        "first_split_size": cell.increment,
        "other_split_size": cell.increment,
        "max_task": cell.tasks,
        "schedule": [values["epochs"]],
        "batch_size": values["batch_size"],
        "lr": values["lr"],
        "workers": workers,
        "learner_type": "prompt",
        "learner_name": "CODAPrompt",
        "prompt_param": [values["components"], values["length"], values["orthogonality"]],
        "gpuid": [-1 if device.type == "cpu" else device.index or 0],
        "log_dir": "outputs",
        "overwrite": 1,
    }
    given = vars(program.create_args().parse_args([])) | config
    outcome = Outcome(replaced, dict(config))
    seed = cell.experiment.seed
    torch.backends.cudnn.deterministic = True
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.cuda.manual_seed(seed)
    # Seed 0 stands for classes in their given order; its generators are already set.
    made = trainer.Trainer(Namespace(**given), 0, ["acc", "time"], ["global", "pt", "pt-local"])
    metrics = {
        "acc": {
            "global": np.zeros((cell.tasks, 1)),
            "pt": np.zeros((cell.tasks, cell.tasks, 1)),
            "pt-local": np.zeros((cell.tasks, cell.tasks, 1)),
        },
        "time": {"global": np.zeros((cell.tasks, 1))},
    }
    _time_stages(made, outcome)
    metrics = made.evaluate(made.train(metrics))
    outcome.correct = _counts(metrics["acc"]["pt"][:, :, 0], cell.total)
    # Its task-aware accuracy leaves out the last class of every task (`target < task_in[-1]`).
    without_last = cell.test_labels % cell.increment < cell.increment - 1
    outcome.task_aware_total = np.bincount(cell.test_labels[without_last] // cell.increment).tolist()
    outcome.task_aware = _counts(metrics["acc"]["pt-local"][:, :, 0], outcome.task_aware_total)
    outcome.reported = metrics["acc"]["global"][:, 0].tolist()
    return outcome


def _give_weights(zoo: Any, cell: Cell) -> None:
    """Replace the ViT of `models.zoo` and its width by those of the experiment."""
    import timm.models

    width = cell.shape["embed_dim"]
    vit, prompts, create = zoo.VisionTransformer, zoo.CodaPrompt, zoo.vit_pt_imnet
    head = {"head.weight": torch.zeros(0), "head.bias": torch.zeros(0)}

    class Released:
        """Stands for the pre-trained model from which the program reads its weights; it drops the head."""

        def state_dict(self) -> dict[str, torch.Tensor]:
            return {**cell.state, **head}

    def create_sized(out_dim: int, **options: Any) -> Any:
        model = create(out_dim, **options)
        model.last = nn.Linear(width, out_dim)
        return model

    timm.models.vit_base_patch16_224 = lambda pretrained: Released()
    zoo.VisionTransformer = lambda ckpt_layer, drop_path_rate, **_: vit(
        ckpt_layer=ckpt_layer, drop_path_rate=drop_path_rate, **cell.shape
    )
    zoo.CodaPrompt = lambda _, tasks, param: prompts(width, tasks, param, key_dim=width)
    zoo.vit_pt_imnet = create_sized


def _time_stages(trainer: Any, outcome: Outcome) -> None:
    """Record the time whenever a model is saved, i.e. after each task."""
    save = trainer.learner.save_model
    started = [time.perf_counter()]

    def save_model(filename: str) -> None:
        save(filename)
        now = time.perf_counter()
        outcome.seconds.append(now - started[0])
        started[0] = now

    trainer.learner.save_model = save_model


def _counts(accuracies: Any, total: list[int]) -> list[list[int | None]]:
    """Hits [stages][tasks] from accuracies in percent [tasks, stages], which are means over all images.

    Raises:
        ValueError: the accuracies are not means over all images.
    """
    rows: list[list[int | None]] = []
    for stage in range(len(total)):
        exact = [accuracies[task, stage] * total[task] / 100 for task in range(stage + 1)]
        if any(abs(hits - round(hits)) > 0.01 for hits in exact):
            raise ValueError(f"accuracies {accuracies[: stage + 1, stage]} are not fractions of {total} images")
        rows.append([*map(round, exact), *[None] * (len(total) - stage - 1)])
    return rows
