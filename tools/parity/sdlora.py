"""Run the released program of SD-LoRA (WuYichen-97/SD-Lora-CL) on an experiment of cl-bench."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import SimpleNamespace

import torch

from tools.parity import pilot, shims
from tools.parity.cells import Cell, Outcome, settings

REPOSITORY = "WuYichen-97/SD-Lora-CL"
CONFIG = "exps/sdlora_c100.json"
FIXED = {
    "rank": 10, "targets": ("q", "v"), "norm": "product", "normalise_current": False, "alpha_init": 0.8,
    "alpha_carry": "reset", "directions": "per-task", "magnitudes": "all", "optimizer": "sgd", "schedule": "constant",
}  # fmt: skip

losses = pilot.losses


def run(cell: Cell, folder: Path, device: torch.device, workers: int) -> Outcome:
    """Run the program's `trainer.train` on the cell; see `tools.parity.run`."""
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
        """The program's ViT, except that `out_dim` is the width of the given ViT instead of 768."""

        @property
        def out_dim(self) -> int:
            return self.base_vit.num_features

        @out_dim.setter
        def out_dim(self, value: int) -> None:
            pass

    for module in (network, learner):
        module.timm = SimpleNamespace(create_model=lambda *_, **__: cell.vit())
        module.LoRA_ViT_timm = Sized
    learner.num_workers = workers
    replaced += [
        "weights: timm.create_model gives the experiment's ViT; out_dim is its width",
        pilot.give(manager, cell),
        f"data: {workers} loader processes",
    ]
    config = (
        json.loads((folder / CONFIG).read_text())
        | pilot.config(cell, values)
        | {
            "shuffle": False,
            "device": [-1 if device.type == "cpu" else device.index or 0],
            "filepath": f"{Path.cwd()}/lora/",
        }
    )
    outcome = Outcome(replaced, config | {"filepath": "lora/"})
    pilot.observe(learner.Learner, outcome, cell, lambda found: (found[1], found[0].T[0], None))
    trainer.train(config)
    return outcome
