"""Lookup of backbones by name: embedded ones, timm tags and files."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import get_deprecated_models, get_pretrained_cfg
from timm.models.vision_transformer import VisionTransformer

from cl_bench.backbones.backbone import Backbone
from cl_bench.backbones.containers import SEPARATOR, check_file, split_choice
from cl_bench.backbones.embedded import EMBEDDED, names
from cl_bench.backbones.networks import build_on_meta
from cl_bench.errors import UserError, suggestion

NORMALISE = ("checkpoint", "none")
"""Input normalisation: that of the weights' training, or none (pixels in [0, 1], as in most published codes)."""


def find(
    name: str,
    *,
    checkpoint: Path | None = None,
    pretrained: bool = True,
    normalise: str = "checkpoint",
    size: int | None = None,
) -> Backbone:
    """The backbone described by the user's options; its weights are not read yet (see `verify`).

    Args:
        name: name of an embedded backbone, or of a timm VisionTransformer with its tag; without a tag only if the
            weights come from `checkpoint` or are random.
        checkpoint: file with the weights: safetensors, a torch state dict, or Google's npz; `FILE::NETWORK` for one of
            several networks in it.
        pretrained: False for random weights, which are the same in every run.
        normalise: one of `NORMALISE`.
        size: side of the input in pixels; None: that of the weights.

    Raises:
        UserError: an option is unknown or ambiguous, or options contradict each other.
    """
    if normalise not in NORMALISE:
        raise UserError(f"--normalise '{normalise}' is unknown; expected {' or '.join(NORMALISE)}")
    if checkpoint is not None and not pretrained:
        raise UserError("--checkpoint and --pretrained no ask for different weights; leave one of them out")
    base, colon, file = name.partition(":")
    if colon and (base in EMBEDDED or timm.is_model(base)):
        raise UserError(
            f"'{name}' is the name of weights from a file in records; write --backbone {base} --checkpoint .../{file}"
        )
    if name in EMBEDDED and not pretrained:
        raise UserError(
            f"--pretrained no: '{name}' names trained weights; name an architecture, "
            f"e.g. --backbone {EMBEDDED[name].architecture}"
        )
    found = EMBEDDED[name] if name in EMBEDDED else _of_timm(name, checkpoint is not None, pretrained, normalise)
    if checkpoint is not None:
        path, network = split_choice(checkpoint)
        check_file(path)
        chosen = f"{SEPARATOR}{network}" if network else ""
        found = replace(
            found,
            name=f"{name}:{path.name}{chosen}",
            description=f"{found.architecture}, weights from {path}{chosen}",
            asset=None,
            checkpoint=path.absolute(),
            network=network,
            weights="",
        )
    if normalise == "none":
        found = replace(found, mean=(0.0,) * found.channels, std=(1.0,) * found.channels)
    if size is not None and size != found.size:
        patch = build_on_meta(found).patch_embed.patch_size[0]
        if size < patch or size % patch:
            raise UserError(
                f"'{name}' has patches of {patch} pixels; an input of {size} pixels is not a multiple of that"
            )
        found = replace(found, size=size, weights="")
    return found


def _of_timm(name: str, own_file: bool, pretrained: bool, normalise: str) -> Backbone:
    architecture, _, tag = name.partition(".")
    current = get_deprecated_models().get(name)
    if current:
        raise UserError(f"'{name}' is timm's old name of '{current}'; use the new name")
    if not timm.is_model(architecture):
        raise _unknown(name)
    with torch.device("meta"):
        vit = timm.create_model(architecture, pretrained=False, num_classes=0)
    if not isinstance(vit, VisionTransformer):
        raise UserError(
            f"backbone '{name}' is timm's {type(vit).__name__}, but methods adapt its VisionTransformer only; "
            "name one, such as vit_base_patch16_224.augreg_in21k"
        )
    tags = timm.list_pretrained(f"{architecture}.*")
    listed = ", ".join(tags)
    if tag and name not in tags:
        there = (
            f"it has {listed}" if tags else "it has none for this architecture; give --checkpoint, or --pretrained no"
        )
        raise UserError(f"timm has no weights '{name}'; {there}")
    if tag and not pretrained:
        raise UserError(f"--pretrained no: '{name}' names trained weights; write --backbone {architecture}")
    if not tag and pretrained and not own_file:
        if not tags:
            raise UserError(f"timm has no weights for '{name}'; give a file with --checkpoint, or --pretrained no")
        raise UserError(
            f"'{name}' is an architecture, not weights: papers use one such name for different weights (four for "
            f"ViT-B/16, see 'cl-bench ls backbones'), whose results cannot be compared; name one of {listed}; "
            "or start from random weights with --pretrained no"
        )
    if not tag and own_file and normalise == "checkpoint":
        _check_normalisation(architecture, tags)
    cfg = get_pretrained_cfg(name)
    return Backbone(
        name=name,
        description=f"{architecture}, {f'weights {tag} of timm' if tag else 'random weights'}",
        architecture=name,
        size=cfg.input_size[-1],
        channels=cfg.input_size[0],
        mean=tuple(cfg.mean),
        std=tuple(cfg.std),
        pretrained=pretrained,
    )


def _unknown(name: str) -> UserError:
    modules = ("vision_transformer", "deit")
    vits = [vit for module in modules for vit in timm.list_models(module=module, pretrained=True, include_tags=True)]
    guess = suggestion(name, [*names(), *vits], at_most=3)
    return UserError(f"unknown backbone '{name}'.{guess} 'cl-bench ls backbones' explains the names.")


def _check_normalisation(architecture: str, tags: Iterable[str]) -> None:
    """Refuse an architecture whose weights in timm differ in normalisation; a checkpoint file does not name its own."""
    known: dict[Any, str] = {}
    for tag in tags:
        cfg = get_pretrained_cfg(tag)
        known.setdefault((cfg.mean, cfg.std), f"{tag} (mean {', '.join(f'{value:.3g}' for value in cfg.mean)})")
    if len(known) > 1:
        raise UserError(
            f"weights of '{architecture}' differ in the input normalisation that they expect, and a file does not say "
            f"its own; give as --backbone a tag with the same, such as {' or '.join(known.values())}, or feed pixels "
            "in [0, 1] with --normalise none"
        )
