"""Counts how often images pass through the blocks of a backbone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

_PARTS = ("norm1", "attn", "norm2", "mlp")
"""Modules of a block that `models.vit` calls, instead of the block itself, in a pass that adds something to it."""


class EnteredBlocks:
    """Counts the images that enter each block of any ViT, including ViTs outside the model.

    An image enters a block when the block or one of its parts is called; if one is called twice, it enters twice.
    """

    def __init__(self) -> None:
        self._places: dict[nn.Module, tuple[nn.Module, str]] = {}
        self._known: set[nn.Module] = set()
        self._images: Counter[tuple[nn.Module, str]] = Counter()

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count the images that enter blocks within this context."""
        hook = register_module_forward_pre_hook(self._enter)
        try:
            yield
        finally:
            hook.remove()

    def passes(self, images: int, depth: int) -> float:
        """Passes through the backbone per image; a pass through half of the blocks counts half.

        Args:
            images: number of images.
            depth: number of blocks of the backbone.
        """
        most: Counter[nn.Module] = Counter()
        for (block, _), entered in self._images.items():
            most[block] = max(most[block], entered)
        return most.total() / (images * depth)

    def _enter(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if module not in self._known:
            self._meet(module)
        if module in self._places:
            self._images[self._places[module]] += next(len(x) for x in inputs if isinstance(x, Tensor))

    def _meet(self, module: nn.Module) -> None:
        for inner in module.modules():
            self._known.add(inner)
            blocks = [inner] if isinstance(inner, Block) else []
            if isinstance(inner, VisionTransformer):
                # Blocks may be of another class; one that wraps a timm block is counted by that block.
                blocks += [block for block in inner.blocks if not any(isinstance(m, Block) for m in block.modules())]
            for block in blocks:
                self._places[block] = block, ""
                for name in _PARTS:
                    if isinstance(part := getattr(block, name, None), nn.Module):
                        self._places[part] = block, name
