"""The released program of SD-LoRA (WuYichen-97/SD-Lora-CL) on an experiment of cl-bench."""

from __future__ import annotations

import importlib
import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from tools.parity import shims
from tools.parity.cells import Cell, Outcome, settings, views

REPOSITORY = "WuYichen-97/SD-Lora-CL"
CONFIG = "exps/sdlora_c100.json"
FIXED = {
    "rank": 10, "targets": ("q", "v"), "norm": "product", "normalise_current": False, "alpha_init": 0.8,
    "alpha_carry": "reset", "directions": "per-task", "magnitudes": "all", "optimizer": "sgd", "schedule": "constant",
}  # fmt: skip


def run(cell: Cell, folder: Path, device: torch.device, workers: int) -> Outcome:
    """Run its `trainer.train` on the cell; see `run.py`."""
    values = settings(cell, FIXED)
    replaced = [shims.whole_pickles()]
    if device.type == "cpu":
        replaced.append(shims.without_cuda())
    if stubs := shims.absent(["einops"]):
        replaced.append(f"imports that are never called: {', '.join(stubs)}")
    trainer, network, learner, manager, lora = (
        importlib.import_module(name)
        for name in ("trainer", "utils.inc_net", "models.sdlora", "utils.data_manager", "backbone.lora")
    )

    class Sized(lora.LoRA_ViT_timm):  # type: ignore[name-defined, misc]
        """Its `out_dim` is the width of the given ViT, not 768."""

        @property
        def out_dim(self) -> int:
            return self.base_vit.num_features

        @out_dim.setter
        def out_dim(self, value: int) -> None:
            pass

    train, test = views(cell.experiment.transforms)
    data = SimpleNamespace(
        download_data=lambda: None,
        train_data=cell.train, train_targets=cell.train_labels, test_data=cell.test, test_targets=cell.test_labels,
        use_path=False, train_trsf=train, test_trsf=test, common_trsf=[],
        class_order=list(range(cell.tasks * cell.increment)),
    )  # fmt: skip
    manager._get_idata = lambda *_: data
    for module in (network, learner):
        module.timm = SimpleNamespace(create_model=lambda *_, **__: cell.vit())
        module.LoRA_ViT_timm = Sized
    learner.num_workers = workers
    replaced += [
        "weights: timm.create_model gives the experiment's ViT; out_dim is its width",
        "data: utils.data_manager._get_idata gives the experiment's images in its class order, and its transforms",
        f"data: {workers} loader processes",
    ]
    config = json.loads((folder / CONFIG).read_text()) | {
        "shuffle": False,
        "device": [-1 if device.type == "cpu" else device.index or 0],
        "seed": [cell.experiment.seed],
        "init_cls": cell.increment,
        "increment": cell.increment,
        "filepath": f"{Path.cwd()}/lora/",
        "init_epoch": values["epochs"],
        "epochs": values["epochs"],
        "init_lr": values["lr"],
        "lrate": values["lr"],
        "batch_size": values["batch_size"],
    }
    outcome = Outcome(replaced, dict(config))
    observe(learner.Learner, outcome, cell)
    trainer.train(config)
    return outcome


def observe(learner: Any, outcome: Outcome, cell: Cell) -> None:
    """Count what `_eval_cnn` of a PILOT-like learner predicts in `eval_task`, and keep what it reports."""
    predict, evaluate = learner._eval_cnn, learner.eval_task
    started = [time.perf_counter()]

    def _eval_cnn(self: Any, loader: Any) -> Any:
        found = predict(self, loader)
        predicted, labels = found[0], found[1]
        outcome.correct.append(outcome.hits(predicted.T[0] == labels, np.asarray(labels), cell))
        return found

    def eval_task(self: Any) -> Any:
        found = evaluate(self)
        outcome.reported.append(float(found[0]["top1"]))
        now = time.perf_counter()
        outcome.seconds.append(now - started[0])
        started[0] = now
        return found

    learner._eval_cnn, learner.eval_task = _eval_cnn, eval_task
