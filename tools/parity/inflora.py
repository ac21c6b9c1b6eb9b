"""The released program of InfLoRA (liangyanshuo/InfLoRA) on an experiment of cl-bench."""

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
from tools.parity.cells import Cell, Outcome, check_state, settings, views

REPOSITORY = "liangyanshuo/InfLoRA"
CONFIG = "configs/cifar100_inflora.json"
FIXED = {
    "targets": ("k", "v"), "memory": "dual", "head_lr": None, "optimizer": "adam", "schedule": "inflora",
}  # fmt: skip


def run(cell: Cell, folder: Path, device: torch.device, workers: int) -> Outcome:
    """Run its `trainer.train` on the cell; see `run.py`."""
    values = settings(cell, FIXED)
    replaced = [shims.whole_pickles(), shims.arrays_from_svd()]
    if device.type == "cpu":
        replaced.append(shims.without_cuda())
    stubs = shims.absent(["ipdb", "utils.datautils.core50data", "prompts.hide_prompt"])
    if stubs:
        replaced.append(f"imports that are never called: {', '.join(stubs)}")
    trainer, network, learner, manager = (
        importlib.import_module(name)
        for name in ("trainer", "models.sinet_inflora", "methods.inflora", "utils.data_manager")
    )

    def create(variant: str, pretrained: bool, n_tasks: int, rank: int, **_: Any) -> Any:
        vit = network.ViT_lora_co(num_classes=0, n_tasks=n_tasks, rank=rank, **cell.shape)
        missing, unexpected = vit.load_state_dict(cell.state, strict=False)
        check_state(missing, unexpected, lambda name: ".lora_" in name or name.endswith("_grow"))
        return vit

    network._create_vision_transformer = create
    train, test = views(cell.experiment.transforms)
    data = SimpleNamespace(
        download_data=lambda: None,
        train_data=cell.train, train_targets=cell.train_labels, test_data=cell.test, test_targets=cell.test_labels,
        use_path=False, train_trsf=train, test_trsf=test, common_trsf=[],
        class_order=list(range(cell.tasks * cell.increment)),
    )  # fmt: skip
    manager._get_idata = lambda *_: data
    trainer._set_device = lambda args: args.update(device=[device])
    replaced += [
        "weights: _create_vision_transformer builds its ViT_lora_co in the experiment's sizes with its weights",
        "data: utils.data_manager._get_idata gives the experiment's images in its class order, and its transforms",
        f"data: {workers} loader processes",
        "device: trainer._set_device",
    ]
    config = json.loads((folder / CONFIG).read_text()) | {
        "device": "0",
        "seed": [cell.experiment.seed],
        "init_cls": cell.increment,
        "increment": cell.increment,
        "total_sessions": cell.tasks,
        "embd_dim": cell.shape["embed_dim"],
        "num_heads": cell.shape["num_heads"],
        "init_epoch": values["epochs"],
        "epochs": values["epochs"],
        "init_lr": values["lr"],
        "lrate": values["lr"],
        "batch_size": values["batch_size"],
        "rank": values["rank"],
        "lamb": values["lamb"],
        "lame": values["lame"],
        "num_workers": workers,
    }
    outcome = Outcome(replaced, dict(config))
    observe(learner.InfLoRA, outcome, cell)
    trainer.train(config)
    return outcome


def observe(learner: Any, outcome: Outcome, cell: Cell) -> None:
    """Count what `_eval_cnn` predicts, and keep what `eval_task` reports."""
    predict, evaluate = learner._eval_cnn, learner.eval_task
    started = [time.perf_counter()]

    def _eval_cnn(self: Any, loader: Any) -> Any:
        found = predict(self, loader)
        predicted, aware, labels = (np.asarray(part) for part in found[:3])
        outcome.correct.append(outcome.hits(predicted == labels, labels, cell))
        outcome.task_aware.append(outcome.hits(aware == labels, labels, cell))
        return found

    def eval_task(self: Any) -> Any:
        found = evaluate(self)
        outcome.reported.append(float(found[0]["top1"]))
        now = time.perf_counter()
        outcome.seconds.append(now - started[0])
        started[0] = now
        return found

    learner._eval_cnn, learner.eval_task = _eval_cnn, eval_task
