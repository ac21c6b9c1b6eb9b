"""Run the released program of InfLoRA (liangyanshuo/InfLoRA) on an experiment of cl-bench."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import torch

from tools.parity import pilot, shims
from tools.parity.cells import Cell, Outcome, check_state, settings

REPOSITORY = "liangyanshuo/InfLoRA"
CONFIG = "configs/cifar100_inflora.json"
FIXED = {
    "targets": ("k", "v"), "memory": "dual", "head_lr": None, "optimizer": "adam", "schedule": "inflora",
}  # fmt: skip

losses = pilot.losses


def run(cell: Cell, folder: Path, device: torch.device, workers: int) -> Outcome:
    """Run the program's `trainer.train` on the cell; see `tools.parity.run`."""
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
    trainer._set_device = lambda args: args.update(device=[device])
    replaced += [
        "weights: _create_vision_transformer builds its ViT_lora_co in the experiment's sizes with its weights",
        pilot.give(manager, cell),
        f"data: {workers} loader processes",
        "device: trainer._set_device",
    ]
    config = (
        json.loads((folder / CONFIG).read_text())
        | pilot.config(cell, values)
        | {
            "device": "0",
            "total_sessions": cell.tasks,
            "embd_dim": cell.shape["embed_dim"],
            "num_heads": cell.shape["num_heads"],
            "rank": values["rank"],
            "lamb": values["lamb"],
            "lame": values["lame"],
            "num_workers": workers,
        }
    )
    outcome = Outcome(replaced, dict(config))
    pilot.observe(learner.InfLoRA, outcome, cell, lambda found: (found[2], found[0], found[1]))
    trainer.train(config)
    return outcome
