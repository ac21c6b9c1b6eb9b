"""Rows: every installed method, and variants of some with other options, sized for the tiny ViT."""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import nn

from cl_bench.contract import registry
from cl_bench.contract.gradient import GradientMethod
from cl_bench.contract.method import Method, build_model
from cl_bench.contract.registry import MethodEntry
from cl_bench.grammar import parse_methods
from cl_bench.models.lora import LoRAModel
from cl_bench.randomness import seeded
from tests.helpers.tiny import CLASSES, tiny_vit

NAMES = registry.names()
# Options that change how a method works, as a user writes them. A row is a name of a method or one of these.
VARIANTS = [
    "controlled-lora[redraw=once,boundary=stack]",
    "dualprompt[keys=per-block]",
    "finetune[loss=masked]",
    "inclora[boundary=merge]",
    "inflora[memory=plain]",
    "joint[train=lora]",
    "joint[train=linear]",
    "l2p[prompts=prefix]",
    "linear[align=true,align_covariance=variance]",
    "lora-dropout[ensemble=3]",
    "nlora[product=BA]",
    "raclora[sketch=left,moments=keep]",
    "ranpac[adaptation=frozen,projection=0]",
    "ranpac[adaptation=ssf]",
    "replay[loss=masked]",
    "sdlora[align=true,align_epochs=1]",
    "sdlora[directions=first]",
    "sdlora[directions=shared]",
    "sdlora[magnitudes=current]",
    "sdlora[normalise_current=true,norm=frobenius]",
    "sdlora-kd[residual=relative,tau=2]",  # every direction but the first is dropped
]
ROWS = NAMES + VARIANTS
# Hyper-parameters that fit a ViT of two blocks; all others keep their defaults.
SMALL: dict[str, dict[str, Any]] = {
    "controlled-lora": {"rank": 3},
    "beamlora": {"rank": 4, "operations": 3},
    "coda": {"blocks": 2, "components": 12, "length": 4},
    "dualprompt": {"g_blocks": [0], "e_blocks": [1], "g_length": 2, "e_length": 2},
    "duallora": {"rank": 2, "rank_residual": 3, "basis_max": 3},
    "hide": {"blocks": 2, "length": 2, "inference_epochs": 1, "align_epochs": 1, "align_samples": 16},
    "inclora": {"rank": 3},
    "inflora": {"rank": 3},
    "joint": {"rank": 3},
    "l2p": {"pool": 4, "length": 2, "top": 2},
    "lora-dropout": {"rank": 3, "instances": 2},
    "nlora": {"rank": 3},
    "olora": {"rank": 3},
    # Two ranks in the first block and four in the second; 120 images are eight steps of 16 an epoch.
    "prilora": {"rank": 3, "rank_first": 2, "prune_every": 2},
    "prolora": {"rank": 4, "share_a": 3, "share_b": 2},
    "raclora": {"rank": 3},
    "ranpac": {"width": 4, "projection": 48},
    # Fewer images than there are, so that room must be made for those of the next task.
    "replay": {"buffer_mb": 0.0105},
    "sdlora": {"rank": 3},
    "sdlora-kd": {"rank": 3},
    "sdlora-rr": {"rank": 3, "rank_mu": 2, "rank_nu": 1, "mu": 2, "nu": 3},
    "seqlora": {"rank": 3},
    # So that the boosters of a task change all blocks.
    "xgblora": {"select": "balanced"},
    "sora": {"rank": 3, "gate_penalty": 0.1, "threshold": 0.01},
    "slca": {"align_epochs": 1, "align_samples": 16, "milestones": [1]},
}
QUICK = {"epochs": 2, "batch_size": 16}


@cache
def installed(name: str) -> tuple[MethodEntry, frozenset[str]]:
    """A method and the names of its hyper-parameters; cached, because a look-up reads all installed methods."""
    found = registry.find(name)
    return found, frozenset(found.defaults)


def small(row: str, **changes: Any) -> Method:
    """An installed method, sized for the tiny ViT; `changes` that it has no field for are left out."""
    (spec,) = parse_methods(row)
    found, fields = installed(spec.name)
    wanted = SMALL.get(spec.name, {}) | QUICK | changes
    return found.configure({field: value for field, value in wanted.items() if field in fields} | spec.options)


def fresh(row: str, seed: int = 0) -> Any:
    """The model of a row before the first task."""
    with seeded(("fresh", seed)):
        return build_model(small(row), tiny_vit(seed), CLASSES)


def banks(model: Any) -> list[nn.ParameterList]:
    """The lists of parameters that grow with the tasks: one per kind of factor, prompt or key."""
    owner = model.bank if isinstance(model, LoRAModel) else model
    return [child for child in owner.children() if isinstance(child, nn.ParameterList)]


def links(method: Method) -> int:
    """Number of directions, prompts or keys that a task adds to each of the lists: more than one in a chain."""
    return len(getattr(method, "chain", (1,)))


GRADIENT = [row for row in ROWS if isinstance(small(row), GradientMethod)]
# Rows that change weights alone, so that their directions can be merged.
LORA = [row for row in ROWS if isinstance(fresh(row), LoRAModel) and type(fresh(row)).merged is LoRAModel.merged]
GROWING = [row for row in ROWS if banks(fresh(row))]
FROZEN_BACKBONE = [row for row in ROWS if not any(p.requires_grad for p in fresh(row).backbone.parameters())]
# The kind of factor that a row designs or draws and then freezes, as its position in `banks`.
DESIGNED = {
    "duallora": 4,
    "inflora": 0,
    "inflora[memory=plain]": 0,
    "raclora": 0,
    "raclora[sketch=left,moments=keep]": 1,
}
# Rows whose tasks share one direction, or drop all directions but the first, or fold them.
ONE_DIRECTION = [
    *(row for row in ROWS if getattr(small(row), "boundary", "stack") != "stack"),
    "joint[train=lora]",
    "sdlora-kd[residual=relative,tau=2]",
    "sdlora[directions=first]",
    "sdlora[directions=shared]",
]
