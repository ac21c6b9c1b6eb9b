"""Low-rank updates of a ViT's attention projections: one bank for every LoRA method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.func import functional_call

Projection = Literal["q", "k", "v"]
_ROWS = {"q": 0, "k": 1, "v": 2}


class LoRABank(nn.Module):
    """Low-rank directions B_k A_k for chosen projections of every block, one more with each `grow`.

    All blocks and projections of one direction are stacked: `A[k]` is [L, P, r, d], `B[k]` is [L, P, d, r] with L
    blocks and P projections. In x W^T convention an update acts as x -> (B A) x.

    Args:
        backbone: the ViT whose shape the bank follows.
        projections: which of q, k, v are updated, in this order.
    """

    def __init__(self, backbone: VisionTransformer, projections: Sequence[Projection] = ("q", "v")) -> None:
        super().__init__()
        self.blocks = len(backbone.blocks)
        self.dim = backbone.embed_dim
        self.projections = tuple(projections)
        self.A = nn.ParameterList()
        self.B = nn.ParameterList()

    def grow(self, rank: int, generator: torch.Generator) -> None:
        """Freeze all directions and add a trainable one: A ~ U(-1/sqrt(d), 1/sqrt(d)) (LoRA's own start), B = 0."""
        self.requires_grad_(False)
        shape = (self.blocks, len(self.projections), rank, self.dim)
        bound = 1 / math.sqrt(self.dim)
        device = self.A[0].device if len(self.A) else None
        start = (torch.rand(shape, generator=generator) * 2 - 1) * bound
        self.A.append(nn.Parameter(start.to(device)))
        self.B.append(nn.Parameter(torch.zeros(self.blocks, len(self.projections), self.dim, rank, device=device)))

    def factor_norms(self) -> Tensor:
        """||B_k||_F ||A_k||_F per direction, block and projection: [K, L, P]."""
        norms = [a.flatten(2).norm(dim=2) * b.flatten(2).norm(dim=2) for a, b in zip(self.A, self.B, strict=True)]
        return torch.stack(norms)

    def update(self, coefficients: Tensor) -> Tensor:
        """sum_k c_k B_k A_k as one pair of concatenated factors.

        Args:
            coefficients: [K, L, P].

        Returns:
            [L, P, d, d]; its cost hardly depends on the number of directions.
        """
        ranks = torch.tensor([a.shape[2] for a in self.A], device=coefficients.device)
        scale = coefficients.repeat_interleave(ranks, dim=0).permute(1, 2, 0)
        down = torch.cat(list(self.A), dim=2)
        up = torch.cat(list(self.B), dim=3)
        return (up * scale.unsqueeze(2)) @ down

    def features(self, backbone: VisionTransformer, update: Tensor, images: Tensor) -> Tensor:
        """CLS features [B, d] of the backbone with the update [L, P, d, d] added to its projections.

        The effective weights are built in fp32 outside the network and passed in, so that the network's graph is
        the same for any number of directions.
        """
        weights = {}
        # Unbound once: an index per block would cost a full-size gradient buffer each.
        for number, (block, changes) in enumerate(zip(backbone.blocks, update.unbind(), strict=True)):
            rows = list(block.attn.qkv.weight.view(3, self.dim, self.dim))
            for projection, change in zip(self.projections, changes.unbind(), strict=True):
                rows[_ROWS[projection]] = rows[_ROWS[projection]] + change
            weights[f"blocks.{number}.attn.qkv.weight"] = torch.cat(rows)
        return functional_call(backbone, weights, (images,))
