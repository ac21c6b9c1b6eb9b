"""Every installed method keeps the contract of `cl_bench.contract.method`; baselines train what they declare."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cl_bench.contract import registry
from cl_bench.contract.hyperparameters import validated
from cl_bench.contract.method import Method
from cl_bench.contract.task import Task
from cl_bench.errors import UserError
from tests.helpers import ROOT
from tests.helpers.rows import GRADIENT, GROWING, NAMES, ROWS, banks, fresh, small
from tests.helpers.tiny import CLASSES, TASKS, cut, tiny_vit
from tests.helpers.training import Spy, experiences, images_of, same, snapshot, strategy_of, train, trained

pytestmark = pytest.mark.usefixtures("one_thread")

DIM, DEPTH = 32, 2
FIELDS = [(name, field) for name in NAMES for field in registry.find(name).defaults]

# Defaults that all subclasses of `GradientMethod` inherit: a change needs a new revision of each of them.
COMMON: dict[str, Any] = {
    "epochs": 20,
    "batch_size": 128,
    "optimizer": "sgd",
    "lr": 0.01,
    "momentum": 0.9,
    "weight_decay": 0.0,
    "schedule": "constant",
    "milestones": None,
    "decay": 0.1,
    "clip_norm": None,
    "loss": "masked",
    "align": False,
    "align_epochs": 5,
    "align_lr": 0.01,
    "align_samples": 256,
    "align_covariance": "full",
    "align_temperature": 0.1,
    "align_shrink": 0.1,
    "align_restore": True,
}

# Those of the variants of LoRA.
VARIANT: dict[str, Any] = COMMON | {
    "optimizer": "adamw",
    "lr": 0.001,
    "rank": 8,
    "targets": ["q", "v"],
    "alpha": None,
    "boundary": "continue",
}
SDLORA: dict[str, Any] = COMMON | {
    "rank": 10,
    "targets": ["q", "v"],
    "norm": "product",
    "normalise_current": False,
    "norm_gradient": "through",
    "alpha_init": 0.8,
    "alpha_carry": "reset",
    "directions": "per-task",
    "magnitudes": "all",
}

# (revision, defaults) of every method. Results of equal revisions are compared with each other: whoever changes a
# default raises `revision` in the method's file and then replaces the row here (the failing test prints it).
PINNED: dict[str, tuple[int, dict[str, Any]]] = {
    "beamlora": (
        1,
        VARIANT
        | {
            "temperature": 0.05,
            "share": 0.95,
            "operations": 12,
            "pruning_end": 2 / 3,
            "scope": "all",
            "moments": "keep",
            "history": "half",
            "gate_lr": None,
        },
    ),
    "coda": (
        1,
        COMMON
        | {
            "optimizer": "adam",
            "lr": 0.001,
            "schedule": "coda",
            "components": 100,
            "length": 8,
            "blocks": 5,
            "orthogonality": 0.0,
            "start": "gram-schmidt",
            "head_start": "pilot",
        },
    ),
    "dualprompt": (
        1,
        COMMON
        | {
            "epochs": 5,
            "batch_size": 192,
            "optimizer": "adam",
            "lr": 0.0225,
            "clip_norm": 1.0,
            "g_length": 5,
            "e_length": 5,
            "g_blocks": [0, 1],
            "e_blocks": [2, 3, 4],
            "keys": "shared",
            "key_weight": 1.0,
            "key_loss": "mean",
            "as_published_leaky": False,
        },
    ),
    "finetune": (
        2,
        COMMON
        | {
            "loss": "all",
            "backbone_lr_scale": 1.0,
        },
    ),
    "hide": (
        1,
        COMMON
        | {
            "epochs": 50,
            "batch_size": 192,
            "optimizer": "adam",
            "lr": 0.0225,
            "clip_norm": 1.0,
            "align": True,
            "align_epochs": 30,
            "align_lr": 0.00375,
            "align_temperature": None,
            "align_shrink": 0.0,
            "align_restore": False,
            "length": 5,
            "blocks": 5,
            "momentum_prompt": 0.01,
            "contrast": 0.1,
            "head_lr_scale": 0.1,
            "inference_epochs": 20,
            "inference_lr": 0.000375,
            "as_published_leaky": False,
        },
    ),
    "inclora": (1, COMMON | {"rank": 10, "targets": ["q", "v"], "alpha": None, "boundary": "stack"}),
    "inflora": (
        1,
        COMMON
        | {
            "optimizer": "adam",
            "lr": 0.0005,
            "schedule": "inflora",
            "rank": 10,
            "targets": ["k", "v"],
            "lamb": 0.95,
            "lame": 1.0,
            "memory": "dual",
            "head_lr": None,
        },
    ),
    "joint": (
        2,
        COMMON
        | {
            "train": "full",
            "backbone_lr_scale": 1.0,
            "rank": 10,
            "targets": ["q", "v"],
        },
    ),
    "l2p": (
        1,
        COMMON
        | {
            "epochs": 5,
            "optimizer": "adam",
            "lr": 0.015,
            "clip_norm": 1.0,
            "pool": 10,
            "length": 10,
            "top": 4,
            "prompts": "prepended",
            "key_weight": 1.0,
            "key_loss": "mean",
            "as_published_leaky": False,
        },
    ),
    "linear": (1, COMMON),
    "lora-dropout": (
        1,
        VARIANT
        | {
            "rate": 0.5,
            "instances": 1,
            "ensemble": 0,
            "ensemble_on": "probabilities",
            "rescale": "auto",
            "share_masks": False,
        },
    ),
    "nlora": (
        1,
        VARIANT
        | {
            "boundary": "stack",
            "sparsity": 0.4,
            "product": "AB",
        },
    ),
    "optima": (
        1,
        COMMON
        | {
            "loss": "masked",
            "backbone_lr_scale": 1.0,
        },
    ),
    "olora": (
        1,
        VARIANT
        | {
            "boundary": "stack",
            "orthogonality": 0.5,
            "shrinkage": 0.0,
        },
    ),
    "duallora": (
        1,
        VARIANT
        | {
            "rank": 10,
            "boundary": "stack",
            "rank_residual": 10,
            "basis_from": "cls",
            "basis_samples": 256,
            "threshold": 0.95,
            "basis_max": 8,
            "design_with": "current",
            "gate": "norm-share",
            "gate_feature": "own",
            "train_gate": "one",
            "calibration": "scale",
            "beta": 1.0,
            "temperature": 0.1,
        },
    ),
    "controlled-lora": (
        1,
        VARIANT
        | {
            "subspace": None,
            "control": 1.0,
            "sides": "both",
            "redraw": "task",
        },
    ),
    "prilora": (
        1,
        VARIANT
        | {
            "rank_first": None,
            "rounding": "nearest",
            "scale_by": "layer",
            "prune_every": 40,
            "prune_share": 0.5,
            "prune_group": "row",
            "prune_end": 1.0,
            "importance": "magnitude*norm",
            "norm_decay": 0.9,
            "norm_when": "prune",
            "regrow": True,
        },
    ),
    "prolora": (
        1,
        VARIANT
        | {
            "unshared": 1,
            "share_a": 7,
            "share_b": 7,
            "rotate": True,
            "stride": "shared",
            "bound": "full",
        },
    ),
    "raclora": (
        1,
        VARIANT
        | {
            "rank": 2,
            "boundary": "stack",
            "links": None,
            "sketch": "right",
            "train": "one",
            "draw": "uniform",
            "draw_std": None,
            "orthonormal": False,
            "moments": "fresh",
            "schedule_over": "task",
        },
    ),
    "ranpac": (
        1,
        COMMON
        | {
            "batch_size": 48,
            "weight_decay": 0.0005,
            "schedule": "cosine",
            "adaptation": "adapter",
            "width": 64,
            "projection": 10000,
            "head": "linear",
        },
    ),
    "replay": (1, COMMON | {"loss": "all", "backbone_lr_scale": 1.0, "buffer_mb": 1.0}),
    "sdlora": (2, SDLORA),
    "sdlora-kd": (
        1,
        SDLORA
        | {
            "tau": 0.0009,
            "residual": "rms",
            "scope": "joint",
        },
    ),
    "sdlora-rr": (
        1,
        SDLORA
        | {
            "rank_mu": 8,
            "rank_nu": 6,
            "mu": 4,
            "nu": 8,
            "index": "paper",
        },
    ),
    "seqlora": (1, COMMON | {"rank": 10, "targets": ["q", "v"], "alpha": None, "boundary": "continue"}),
    "simplecil": (1, {}),
    "slca": (
        1,
        COMMON
        | {
            "backbone_lr_scale": 0.01,
            "weight_decay": 0.0005,
            "schedule": "steps",
            "milestones": [18],
            "align": True,
        },
    ),
    "sora": (
        1,
        VARIANT
        | {
            "gate_penalty": 10.0,
            "penalty_mean": True,
            "threshold": 0.0003,
            "threshold_rule": "released",
            "threshold_unit": "step",
            "gate_start": "normal",
            "gate_lr": None,
            "sparsify": None,
            "sparsify_epochs": 15,
        },
    ),
    "xgblora": (
        1,
        VARIANT
        | {
            "rank": 1,
            "boundary": "stack",
            "links": None,
            "sketch": "right",
            "train": "both",
            "draw": "uniform",
            "draw_std": None,
            "orthonormal": False,
            "moments": "fresh",
            "schedule_over": "task",
            "blocks": None,
            "select": "uniform",
            "shrinkage": 1.0,
            "norm_penalty": 0.0,
        },
    ),
}


def task_of(model: nn.Module, plugin: Method, index: int, classes: Sequence[int], seen: Sequence[int]) -> Task:
    """A task as the strategy describes it to a method, with another key."""
    num_tasks = TASKS if plugin.needs_num_tasks else None
    return Task(index, tuple(classes), tuple(seen), CLASSES, num_tasks, model, ("elsewhere", index))


# --- hyper-parameters ------------------------------------------------------------------------------------------


def test_shipped_methods_are_found() -> None:
    assert set(PINNED) <= set(NAMES)
    assert sorted(NAMES) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_facts_that_tables_show(name: str) -> None:
    cls = registry.find(name).cls
    assert cls.paper and cls.stores and cls.__doc__
    assert cls.trains_on in ("task", "stream")
    assert cls.forward_passes >= 1
    assert isinstance(cls.revision, int) and cls.revision >= 1


@pytest.mark.parametrize("name", NAMES)
def test_every_hyper_parameter_but_the_common_ones_is_documented(name: str) -> None:
    """In the docstring of the class or of one of its bases."""
    cls = registry.find(name).cls
    docs = " ".join(str(base.__doc__) for base in cls.__mro__ if issubclass(base, Method) and base is not Method)
    own = set(registry.find(name).defaults) - set(COMMON)
    assert [field for field in sorted(own) if not re.search(rf"\b{field}\b", docs)] == []


@pytest.mark.parametrize(("name", "field"), FIELDS)
def test_ill_typed_values_name_method_and_field(name: str, field: str) -> None:
    found = registry.find(name)
    texts = ["not-a-value", "-1", "", "nan", "inf", "-inf", "1e999"]
    for value in [*texts, [["nested"]], {"a": 1}, float("nan"), float("inf"), -float("inf")]:
        with pytest.raises(UserError, match=rf"^{name}\.{field} = .* is not valid: "):
            found.configure({field: value})
        with pytest.raises(UserError, match=rf"^{found.cls.__name__}\.{field} = .* is not valid: "):
            found.cls(**{field: value})


@dataclasses.dataclass
class Rates:
    rates: tuple[float, ...] = (0.1,)


def test_what_python_would_take_for_a_number_is_refused_and_a_long_value_is_cut() -> None:
    found = registry.find("sdlora")
    for value in (True, 10**400, "9" * 5_000, "x" * 5_000):
        for field in ("lr", "rank"):
            with pytest.raises(UserError, match=rf"^sdlora\.{field} .*is not valid: input|unable") as refused:
                found.configure({field: value})
            assert len(str(refused.value)) < 200
    assert validated(Rates, "rates", "0.1+0.2") == (0.1, 0.2)
    with pytest.raises(UserError, match="Rates.rates = .* is not valid: input should be a finite number"):
        validated(Rates, "rates", "0.1+nan")


@pytest.mark.parametrize("name", NAMES)
def test_unknown_hyper_parameters_are_refused_with_a_guess(name: str) -> None:
    found = registry.find(name)
    for field in found.defaults:
        with pytest.raises(UserError, match=f"'{name}' '{field}x'; .*Did you mean"):
            found.configure({f"{field}x": 1})
    with pytest.raises(UserError, match=f"hyper-parameter of '{name}' 'zzz'"):
        found.configure({"zzz": 1})


@pytest.mark.parametrize(
    ("wanted", "meant", "others"),
    [
        ("sd-lora", "sdlora", ["sdlora-kd", "sdlora-rr"]),
        ("sdlroa", "sdlora", ["sdlora-kd"]),
        # The paper's name is nearer than any name of a method.
        ("hide-prompt", "hide", []),
        ("O-LoRA", "olora", []),
        # CLoRA is not CL-LoRA, which is one hyphen away.
        ("clora", "controlled-lora", []),
        ("cl-lora", "controlled-lora", []),
    ],
)
def test_unknown_methods_are_refused_with_guesses_and_their_papers(wanted: str, meant: str, others: list[str]) -> None:
    with pytest.raises(UserError) as refused:
        registry.find(wanted)
    said = str(refused.value)
    assert said.startswith(f"unknown method '{wanted}'; known: beamlora, coda, ")
    assert f"Did you mean '{meant}'? '{meant}' is {registry.find(meant).cls.paper}" in said
    for other in others:
        assert f"'{other}' is {registry.find(other).cls.paper}" in said


def test_an_unknown_method_that_is_near_to_none_gets_no_guess() -> None:
    with pytest.raises(UserError, match=r"slca[^']*\. 'cl-bench ls methods' describes them\.$"):
        registry.find("zzz")


@pytest.mark.parametrize("name", NAMES)
def test_defaults_survive_json_and_the_command_line(name: str) -> None:
    found = registry.find(name)
    stored = json.loads(json.dumps(found.defaults, allow_nan=False))
    assert stored == found.defaults
    values = found.configure(stored).values()
    assert values == found.defaults
    assert {field: type(value) for field, value in values.items()} == {
        field: type(value) for field, value in found.defaults.items()
    }
    typed = {
        field: "+".join(map(str, value)) if isinstance(value, list) else str(value) for field, value in stored.items()
    }
    assert found.configure(typed).values() == found.defaults


@pytest.mark.parametrize("name", NAMES)
def test_a_changed_default_needs_a_new_revision(name: str) -> None:
    found = registry.find(name)
    row = f'"{name}": ({found.revision!r}, {found.defaults!r}),'
    assert name in PINNED, f"new method: add this row to PINNED in {__file__}: {row}"
    revision, defaults = PINNED[name]
    changed = {
        field for field, value in defaults.items() if field not in found.defaults or found.defaults[field] != value
    }
    assert not changed or found.revision != revision, (
        f"defaults of '{name}' changed ({', '.join(sorted(changed))}), but not its revision: stored results of "
        f"revision {revision} would be taken for results of the new defaults. Raise `revision` in methods/{name}.py"
    )
    assert (found.revision, found.defaults) == PINNED[name], f"'{name}' is newer: replace its row in PINNED by {row}"


def test_a_method_file_takes_its_hash_as_revision(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    source = (ROOT / "methods" / "finetune.py").read_text()
    path.write_text(source)
    found = registry.load_file(path)
    path.write_text(source + "\n")
    assert found.name == "mine"
    assert str(found.revision).startswith("file:") and registry.load_file(path).revision != found.revision
    assert registry.load_file(path).defaults == registry.find("finetune").defaults
    for text, message in (("x = (", "syntax error in line 1"), ("1 / 0", "ZeroDivisionError"), ("x = 1", "found none")):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            registry.load_file(path)
    with pytest.raises(UserError, match="cannot be read"):
        registry.load_file(tmp_path / "absent.py")


# --- models ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ROWS)
def test_the_model_is_built_on_the_backbone_it_is_given(name: str) -> None:
    vit = tiny_vit()
    model = small(name).build(vit, CLASSES)
    assert model.backbone is vit


@pytest.mark.parametrize("name", ROWS)
def test_forward_passes_are_counted_right(name: str) -> None:
    strategy = trained(name)
    passes: list[int] = []
    hook = strategy.model.backbone.patch_embed.register_forward_hook(lambda *_: passes.append(1))
    strategy.model.eval()
    with torch.no_grad():
        logits = strategy.model(images_of(cut().test[0])[0])
    hook.remove()
    assert len(passes) == strategy.method.passes(strategy.tasks_learned)
    assert logits.shape == (len(cut().test[0].dataset), CLASSES)
    assert logits.dtype == torch.float32 and bool(logits.isfinite().all())


HEAD = CLASSES * (DIM + 1)
WHOLE = sum(p.numel() for p in tiny_vit().parameters()) + HEAD
# One number per block and projection, of which LoRA has two; a direction of rank r: A [.., r, d] and B [.., d, r].
PLACES = DEPTH * 2


def direction(rank: int = 3) -> int:
    return PLACES * 2 * rank * DIM


def inflora(t: int, traces: dict[str, list[dict[str, Any]]]) -> int:
    """Directions, a flag per block, and a basis whose number of columns the traces state."""
    return HEAD + t * direction() + DIM * sum(row["dim"] for row in traces["memory"]) + DEPTH


# Numbers stored in addition to the frozen backbone after t tasks.
STORED: dict[str, Callable[[int, dict[str, Any]], int]] = {
    # Rank 4, and a gate per rank.
    "beamlora": lambda t, traces: HEAD + direction(4) + PLACES * 4,
    # 12 / 3 components per task: P [blocks, 4, length 4, d], K and A [blocks, 4, d].
    "coda": lambda t, traces: HEAD + t * DEPTH * 4 * DIM * (4 + 1 + 1),
    # Both directions, a basis of up to 3 columns, and the task of each class.
    "duallora": lambda t, traces: HEAD + t * (direction(2 + 3) + DEPTH * 3 * DIM) + CLASSES,
    "controlled-lora": lambda t, traces: HEAD + direction(),
    "controlled-lora[redraw=once,boundary=stack]": lambda t, traces: HEAD + t * direction(),
    # General prompts, an expert and a key per task.
    "dualprompt": lambda t, traces: HEAD + 2 * 2 * DIM + t * (2 * 2 * DIM + DIM),
    "dualprompt[keys=per-block]": lambda t, traces: HEAD + 2 * 2 * DIM + t * (2 * 2 * DIM + DIM),
    "finetune": lambda t, traces: WHOLE,
    "finetune[loss=masked]": lambda t, traces: WHOLE,
    # Prompts; MLP, norm and head of the inference; tasks of classes; statistics of queries and of features.
    "hide": lambda t, traces: (
        HEAD + t * 2 * 2 * 2 * DIM + 4 * DIM**2 + 5 * DIM + HEAD + CLASSES + 2 * 4 * t * (DIM**2 + DIM + 3)
    ),
    "inclora": lambda t, traces: HEAD + t * direction(),
    # A direction, and a matrix per projection.
    "inclora[boundary=merge]": lambda t, traces: HEAD + direction() + PLACES * DIM**2,
    "inflora": inflora,
    "inflora[memory=plain]": inflora,
    "joint": lambda t, traces: WHOLE,
    "joint[train=linear]": lambda t, traces: HEAD,
    "joint[train=lora]": lambda t, traces: HEAD + direction(),
    # A pool of 4 prompts of 2 rows, and keys.
    "l2p": lambda t, traces: HEAD + 4 * 3 * DIM,
    "l2p[prompts=prefix]": lambda t, traces: HEAD + 4 * 3 * DIM,
    "linear": lambda t, traces: HEAD,
    # A second head, and means and deviations of 4 classes per task.
    "linear[align=true,align_covariance=variance]": lambda t, traces: 2 * HEAD + 4 * t * (2 * DIM + 3),
    "nlora": lambda t, traces: HEAD + t * direction(),
    "nlora[product=BA]": lambda t, traces: HEAD + t * direction(),
    "olora": lambda t, traces: HEAD + t * direction(),
    # The pre-trained weights, and a change of them for each task.
    "optima": lambda t, traces: WHOLE + (1 + t) * (WHOLE - HEAD),
    "lora-dropout": lambda t, traces: HEAD + direction(),
    # Masks of the columns of A and of the rows of B for three members, and which classes have been seen.
    "lora-dropout[ensemble=3]": lambda t, traces: HEAD + direction() + 3 * PLACES * 2 * DIM + CLASSES,
    # Ranks 2 and 4.
    "prilora": lambda t, traces: HEAD + direction(),
    # Three shared ranks in chunks of 11 columns and of 16 rows, and one of LoRA.
    "prolora": lambda t, traces: HEAD + direction(1) + PLACES * 3 * (11 + 16),
    # A link per epoch.
    "raclora": lambda t, traces: HEAD + t * direction(),
    "raclora[sketch=left,moments=keep]": lambda t, traces: HEAD + t * direction(),
    # Bottlenecks, the first task's head, projection, G, Q and the solution, lambda.
    "ranpac": lambda t, traces: DEPTH * (8 * DIM + 4 + DIM) + CLASSES * DIM + 1 + 48 * (DIM + 48 + 2 * CLASSES) + 1,
    "ranpac[adaptation=frozen,projection=0]": lambda t, traces: DIM * (DIM + 2 * CLASSES) + 1,
    "ranpac[adaptation=ssf]": lambda t, traces: (
        2 * (2 * DIM + DEPTH * 11 * DIM) + CLASSES * DIM + 1 + 48 * (DIM + 48 + 2 * CLASSES) + 1
    ),
    # Ten images of 32 x 32 pixels and their rows fit into 10,500 bytes.
    "replay": lambda t, traces: WHOLE + 10 * (32 * 32 + 5),
    "replay[loss=masked]": lambda t, traces: WHOLE + 10 * (32 * 32 + 5),
    # Besides the direction a magnitude, and norms.
    "sdlora": lambda t, traces: HEAD + t * (direction() + 1 + PLACES),
    "sdlora[directions=first]": lambda t, traces: HEAD + direction() + 1 + PLACES,
    "sdlora[directions=shared]": lambda t, traces: HEAD + direction() + 1 + PLACES,
    "sdlora[magnitudes=current]": lambda t, traces: HEAD + t * (direction() + 1 + PLACES),
    "sdlora[normalise_current=true,norm=frobenius]": lambda t, traces: HEAD + t * (direction() + 1 + PLACES),
    # A second head, and mean and covariance of 4 classes per task.
    "sdlora[align=true,align_epochs=1]": lambda t, traces: (
        2 * HEAD + t * (direction() + 1 + PLACES) + 4 * t * (DIM**2 + DIM + 3)
    ),
    # Besides these offsets, and the residual of each task but the first.
    "sdlora-kd": lambda t, traces: HEAD + t * (direction() + 1 + 2 * PLACES) + t - 1,
    "sdlora-kd[residual=relative,tau=2]": lambda t, traces: HEAD + direction() + 1 + 2 * PLACES + t - 1,
    # Ranks 3, 2, 1.
    "sdlora-rr": lambda t, traces: HEAD + sum(direction(4 - task) + 1 + PLACES for task in range(1, t + 1)),
    "seqlora": lambda t, traces: HEAD + direction(),
    "simplecil": lambda t, traces: CLASSES * (DIM + 1),
    "xgblora": lambda t, traces: HEAD + t * direction(1),
    "slca": lambda t, traces: WHOLE + HEAD + 4 * t * (DIM**2 + DIM + 3),
    "sora": lambda t, traces: HEAD + direction() + PLACES * 3,
}


@pytest.mark.parametrize("name", ROWS)
def test_stored_and_trainable_numbers(name: str) -> None:
    plugin = small(name, epochs=1)
    strategy = strategy_of(plugin)
    stages = experiences(plugin, cut())
    stored = []
    for stage, experience in enumerate(stages, start=1):
        strategy.train(experience, eval_streams=[])
        stored.append(strategy.stored_numbers())
        total = sum(value.numel() for value in strategy.model.state_dict().values())
        assert 0 < stored[-1] <= total
        assert strategy.trainable <= stored[-1], "trained numbers that are not kept"
        assert strategy.task is not None
        assert (strategy.trainable > 0) == bool(plugin.phases(strategy.task))
        if name in STORED:
            rows = {
                table: [row for row in rows if row["stage"] == stage - 1] for table, rows in strategy.traces.items()
            }
            assert stored[-1] == STORED[name](stage, rows)
    if name != "inflora":  # its dual memory of old inputs may turn into a smaller one of the complement
        assert stored == sorted(stored)


def test_stored_numbers_are_known_of_every_shipped_method() -> None:
    assert {row for row in ROWS if row.partition("[")[0] in PINNED} == set(STORED)


@pytest.mark.parametrize("name", ROWS)
def test_all_that_outlives_a_task_is_in_the_state_dict(name: str) -> None:
    """A fresh model predicts the same after it has loaded the state dict."""
    strategy = trained(name)
    model = fresh(name, seed=1)
    images, _ = images_of(cut().test[1])
    with torch.no_grad():
        expected = strategy.model.eval()(images)
        assert not torch.allclose(model.eval()(images), expected, atol=1e-3)
        model.load_state_dict(strategy.model.state_dict(), strict=True)
        assert torch.equal(model.eval()(images), expected)
    assert same(model.state_dict(), strategy.model.state_dict())


@pytest.mark.parametrize("name", [row for row in ROWS if small(row).trains_on == "task"])
def test_training_goes_on_from_the_state_dict(name: str) -> None:
    """A fresh model with the weights after all other tasks learns the last task to the same bits."""
    plugin, stream = small(name, epochs=1), cut()
    through = train(strategy_of(plugin), stream, stages=TASKS - 1)
    resumed = strategy_of(plugin, backbone=tiny_vit(seed=1))
    resumed.model.load_state_dict(through.model.state_dict(), strict=True)
    resumed.seen, resumed.tasks_learned = through.seen, through.tasks_learned
    before = snapshot(through.model)
    for strategy in (through, resumed):
        strategy.train(stream.train[TASKS - 1], eval_streams=[])
    assert same(through.model.state_dict(), resumed.model.state_dict())
    assert not same(before, through.model.state_dict())


@pytest.mark.parametrize("name", GROWING)
def test_a_model_shrinks_to_a_smaller_state_dict(name: str) -> None:
    start, model = fresh(name), fresh(name, seed=1)
    model.load_state_dict(trained(name).model.state_dict(), strict=True)
    assert any(len(bank) for bank in banks(model))
    model.load_state_dict(start.state_dict(), strict=True)
    assert not any(len(bank) for bank in banks(model))
    images, _ = images_of(cut().test[1])
    with torch.no_grad():
        assert torch.equal(model.eval()(images), start.eval()(images))


@pytest.mark.parametrize("name", ROWS)
def test_names_in_a_state_dict_are_checked(name: str) -> None:
    state = trained(name).model.state_dict()
    with pytest.raises(RuntimeError, match='Unexpected key.*"surplus"'):
        fresh(name).load_state_dict(state | {"surplus": torch.zeros(1)}, strict=True)
    firm = [key for key in state if not re.search(r"\.\d+$", key)]
    own = [key for key in firm if not key.startswith("backbone.")]
    for missing in ("backbone.cls_token", *own):
        rest = {key: value for key, value in state.items() if key != missing}
        with pytest.raises(RuntimeError, match=f'Missing key.*"{missing}"'):
            fresh(name).load_state_dict(rest, strict=True)
    for key in set(state) - set(firm):
        if key.endswith(".0") and f"{key[:-1]}1" in state:
            rest = {other: value for other, value in state.items() if other != key}
            with pytest.raises(RuntimeError, match=f'Unexpected key.*"{key[:-1]}1"'):
                fresh(name).load_state_dict(rest, strict=True)


@pytest.mark.parametrize("name", ROWS)
def test_traces_are_tables_of_plain_values(name: str) -> None:
    strategy = trained(name)
    tables = strategy.traces
    assert json.loads(json.dumps(tables, allow_nan=False)) == tables
    assert all(isinstance(row, dict) for rows in tables.values() for row in rows)


# --- classes in the loss ---------------------------------------------------------------------------------------


def rows_with_gradient(row: str, classes: Sequence[int], seen: Sequence[int], **changes: Any) -> set[int]:
    """Classes whose logits get a gradient from the method's own loss in the last phase of its first task."""
    plugin, model = small(row, **changes), trained(row).model
    phase = plugin.phases(task_of(model, plugin, 0, classes, seen))[-1]
    with torch.no_grad():
        outputs = (phase.forward or model)(images_of(cut().test[0])[0][: len(classes)])
    logits = torch.zeros(len(classes), CLASSES).requires_grad_()
    given = (logits, *outputs[1:]) if isinstance(outputs, tuple) else logits
    losses = phase.loss(given, torch.tensor(list(classes)))
    assert losses.shape == (len(classes),)
    losses.sum().backward()
    assert logits.grad is not None and bool(logits.grad.isfinite().all())
    return set(np.flatnonzero(logits.grad.abs().sum(dim=0).numpy() > 0).tolist())


@pytest.mark.parametrize("name", [name for name in GRADIENT if name in NAMES])
def test_who_competes_in_the_loss(name: str) -> None:
    own, seen = [4, 5, 6, 7], list(range(8))
    competing = {"masked": set(own), "all": set(seen)}
    for loss, expected in competing.items():
        assert rows_with_gradient(name, own, seen, loss=loss) == expected
    assert rows_with_gradient(name, own, seen) == competing["all" if name in ("finetune", "replay") else "masked"]


def changed_rows(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[int]:
    return set(np.flatnonzero((before["weight"] != after["weight"]).any(dim=1).numpy()).tolist())


@pytest.mark.parametrize("loss", ["all", "masked"])
def test_finetune_trains_the_backbone_and_the_head_rows_that_compete(loss: str) -> None:
    strategy = strategy_of(small("finetune", loss=loss))
    for experience, own in zip(cut().train, cut().tasks, strict=True):
        head, vit = snapshot(strategy.model.head), snapshot(strategy.model.backbone)
        strategy.train(experience, eval_streams=[])
        expected = set(own) if loss == "masked" else set(strategy.seen)
        assert changed_rows(head, strategy.model.head.state_dict()) == expected
        moved = strategy.model.backbone.state_dict()
        assert all(not torch.equal(vit[key], moved[key]) for key in vit if key.endswith("weight"))


@pytest.mark.parametrize("name", ["finetune", "joint"])
def test_a_slow_backbone_gets_its_own_learning_rate(name: str) -> None:
    plugin = small(name, lr=0.5, backbone_lr_scale=0.25)
    model = plugin.build(tiny_vit(), CLASSES)
    (phase,) = plugin.phases(task_of(model, plugin, 0, range(4), range(4)))
    groups = phase.optimizer(phase.parameters).param_groups
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    assert {rates[id(p)] for p in model.backbone.parameters()} == {0.125}
    assert {rates[id(p)] for p in model.head.parameters()} == {0.5}


def test_joint_trains_on_everything_at_once() -> None:
    kind: Literal["task", "stream"] = registry.find("joint").cls.trains_on
    assert kind == "stream"
    strategy = strategy_of(small("joint", epochs=1))
    head = snapshot(strategy.model.head)
    train(strategy, cut())
    everything = {label for own in cut().tasks for label in own}
    assert strategy.tasks_learned == 1 and set(strategy.seen) == everything
    assert changed_rows(head, strategy.model.head.state_dict()) == everything


@pytest.mark.parametrize("name", ["dualprompt", "hide"])
def test_prompts_of_a_task_start_as_a_copy_of_the_last_ones(name: str) -> None:
    strategy = train(strategy_of(small(name, lr=0.01)), cut(), stages=1)
    first = strategy.model.E[0].detach().clone()
    started: list[Tensor] = []
    strategy.plugins.append(Spy(before_training_iteration=lambda s: started.append(s.model.E[1].detach().clone())))
    strategy.train(cut().train[1], eval_streams=[])
    assert torch.equal(started[0], first) and torch.equal(strategy.model.E[0], first)
    assert not torch.equal(strategy.model.E[1], first)


@pytest.mark.skipif("coda" not in NAMES, reason="about coda")
def test_coda_needs_a_component_for_each_task() -> None:
    plugin = small("coda", components=TASKS - 1)
    with pytest.raises(UserError, match=f"coda.components = {TASKS - 1}.*at least {TASKS}"):
        plugin.check(TASKS)
    small("coda", components=TASKS).check(TASKS)


@pytest.mark.skipif("coda" not in NAMES, reason="about coda")
def test_coda_prompts_no_more_blocks_than_there_are() -> None:
    small("coda", blocks=DEPTH).build(tiny_vit(), CLASSES)
    with pytest.raises(UserError, match=f"coda's blocks = 0.*{DEPTH}, but.*only {DEPTH} blocks"):
        small("coda", blocks=DEPTH + 1).build(tiny_vit(), CLASSES)


def test_steps_need_milestones() -> None:
    with pytest.raises(UserError, match="schedule = steps needs milestones"):
        small("linear", schedule="steps")
    small("linear", schedule="steps", milestones=(2, 3))
