"""Plain re-implementations of the training steps of released codes: the reference of `benchmarks/steps.py`.

Eager fp32, nothing merged, and nothing frozen that the released code leaves trainable. Written from the papers and from
observing what the codes compute. They reproduce the cost, not the results: weights are random.

- SD-LoRA (WuYichen-97/SD-Lora-CL @ 8bacded): one pair of products per projection and earlier direction, whose norms are
  computed again in every step; the backbone is frozen. Every forward pass creates and discards layers on the host, and
  reads each earlier direction from disk.
- InfLoRA (liangyanshuo/InfLoRA): B A is multiplied out in every step, and k and v use a full-width product with it;
  attention without a fused kernel.
- CODA-Prompt, DualPrompt, L2P (GT-RIPL/CODA-Prompt): a query pass without gradients, then a pass with prefixes through
  a backbone whose gradients are all computed, although only prompts and head are trained.
- L2P with prepended tokens (PILOT's port): a query pass, then a pass with 5 prompts of 5 tokens prepended; the backbone
  is frozen.
- Fine-tuning: timm's unchanged ViT.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cl_bench import backbones

CLASSES, RANK = 100, 10


@dataclass(frozen=True)
class Network:
    """A backbone, by default with random weights.

    Attributes:
        backbone: its name.
        size: side of its input in pixels; None: its own.
        pretrained: whether the name is that of trained weights.
    """

    backbone: str
    size: int | None = None
    pretrained: bool = False

    @property
    def flags(self) -> list[str]:
        """Options of `cl-bench run` that choose this network."""
        words = ["--backbone", self.backbone, *([] if self.pretrained else ["--pretrained", "no"])]
        return words if self.size is None else [*words, "--size", str(self.size)]

    def vit(self) -> Any:
        """The timm ViT without a head."""
        return backbones.build_backbone(backbones.find(self.backbone, pretrained=self.pretrained, size=self.size))


NETWORKS = {
    "ViT-B/16 at 224": Network("vit_base_patch16_224"),
    "ViT-S/14 at 112": Network("vit_small_patch14_dinov2", 112),
    "ViT-Ti/8 at 32": Network("vit_tiny_patch8_32.icons", pretrained=True),
}


class DecoupledQKV(nn.Module):
    """A fused qkv layer with LoRA directions on q and v: the current and the earlier ones, each with a magnitude."""

    def __init__(self, base: nn.Linear, earlier: int, current: nn.Parameter, old: nn.ParameterList) -> None:
        super().__init__()
        self.base, self.current, self.old = base, current, old
        dim = base.in_features
        self.down = nn.ModuleList(nn.Linear(dim, RANK, bias=False) for _ in range(2))
        self.up = nn.ModuleList(nn.Linear(RANK, dim, bias=False) for _ in range(2))
        self.old_down = nn.ModuleList(
            nn.Linear(dim, RANK, bias=False).requires_grad_(False) for _ in range(2 * earlier)
        )
        self.old_up = nn.ModuleList(nn.Linear(RANK, dim, bias=False).requires_grad_(False) for _ in range(2 * earlier))

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.base(x)
        dim = x.shape[-1]
        changes = []
        for place in range(2):
            change = self.current * self.up[place](self.down[place](x))
            for k, magnitude in enumerate(self.old):
                down, up = self.old_down[2 * k + place], self.old_up[2 * k + place]
                change = change + magnitude * up(down(x)) / (up.weight.norm() * down.weight.norm())
            changes.append(change)
        qkv[..., :dim] += changes[0]
        qkv[..., -dim:] += changes[1]
        return qkv


class SDLoRA(nn.Module):
    """A ViT with SD-LoRA's directions: one current and `earlier` frozen ones."""

    def __init__(self, vit: Any, earlier: int) -> None:
        super().__init__()
        self.vit = vit.requires_grad_(False)
        self.current = nn.Parameter(torch.tensor(0.8))
        self.old = nn.ParameterList(nn.Parameter(torch.tensor(0.8)) for _ in range(earlier))
        for block in self.vit.blocks:
            block.attn.qkv = DecoupledQKV(block.attn.qkv, earlier, self.current, self.old)
        self.head = nn.Linear(self.vit.embed_dim, CLASSES)
        self.folder = tempfile.TemporaryDirectory()
        self.files = [Path(self.folder.name) / f"{k}.pt" for k in range(earlier)]
        for file in self.files:
            torch.save([torch.zeros(RANK, vit.embed_dim) for _ in range(24)], file)

    def forward(self, images: Tensor) -> Tensor:
        for _ in range(48):
            nn.Linear(self.vit.embed_dim, RANK, bias=False).to(images.device)
        for file in self.files:
            torch.load(file)
        return self.head(self.vit(images))


class InfLoRAAttention(nn.Module):
    """Attention that adds x (B A)^T to k and v, with B A multiplied out in every step."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.qkv, self.proj, self.heads = attention.qkv, attention.proj, attention.num_heads
        dim = self.qkv.in_features
        self.down = nn.ParameterList(nn.Parameter(torch.randn(RANK, dim) / dim, requires_grad=False) for _ in range(2))
        self.up = nn.ParameterList(nn.Parameter(torch.randn(dim, RANK) / dim) for _ in range(2))

    def forward(self, x: Tensor, **unused: Any) -> Tensor:
        batch, length, dim = x.shape
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        k = k + F.linear(x, self.up[0] @ self.down[0])
        v = v + F.linear(x, self.up[1] @ self.down[1])
        q, k, v = (rows.view(batch, length, self.heads, -1).transpose(1, 2) for rows in (q, k, v))
        scores = (q @ k.transpose(-2, -1)) * (dim // self.heads) ** -0.5
        return self.proj((scores.softmax(dim=-1) @ v).transpose(1, 2).reshape(batch, length, dim))


class InfLoRA(nn.Module):
    def __init__(self, vit: Any) -> None:
        super().__init__()
        self.vit = vit.requires_grad_(False)
        for block in self.vit.blocks:
            block.attn = InfLoRAAttention(block.attn)
        self.head = nn.Linear(self.vit.embed_dim, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.vit(images))


class Prefixed(nn.Module):
    """A ViT with prefixes of 8 rows in its first blocks: a weighted sum over a pool by an attended query (CODA), or the
    prefix of the nearest key (the experts of DualPrompt, the prompts of L2P)."""

    def __init__(self, vit: Any, attended: bool, blocks: int, pool: int = 100, length: int = 8) -> None:
        super().__init__()
        self.vit, dim = vit, vit.embed_dim
        self.attended, self.blocks = attended, blocks
        self.pool = nn.Parameter(torch.randn(blocks, pool, length, dim) / dim**0.5)
        self.keys = nn.Parameter(torch.randn(blocks, pool, dim) / dim**0.5)
        self.attention = nn.Parameter(torch.randn(blocks, pool, dim) / dim**0.5)
        self.head = nn.Linear(self.vit.embed_dim, CLASSES)

    def prefix(self, query: Tensor, number: int) -> tuple[Tensor, Tensor]:
        if self.attended:
            focused = torch.einsum("bd,kd->bkd", query, self.attention[number])
            keys = F.normalize(self.keys[number], dim=1)
            weights = torch.einsum("bkd,kd->bk", F.normalize(focused, dim=2), keys)
            rows = torch.einsum("bk,kld->bld", weights, self.pool[number])
        else:
            scores = F.normalize(query, dim=1) @ F.normalize(self.keys[number], dim=1).T
            rows = self.pool[number][scores.argmax(dim=1)] + 0 * scores.sum()
        half = rows.shape[1] // 2
        return rows[:, :half], rows[:, half:]

    def attend(self, attention: Any, x: Tensor, prefix: tuple[Tensor, Tensor]) -> Tensor:
        batch, length, dim = x.shape

        def heads(rows: Tensor) -> Tensor:
            return rows.view(batch, -1, attention.num_heads, dim // attention.num_heads).transpose(1, 2)

        q, k, v = attention.qkv(x).chunk(3, dim=-1)
        k, v = torch.cat([prefix[0], k], dim=1), torch.cat([prefix[1], v], dim=1)
        scores = (heads(q) @ heads(k).transpose(-2, -1)) * (dim // attention.num_heads) ** -0.5
        return attention.proj((scores.softmax(dim=-1) @ heads(v)).transpose(1, 2).reshape(batch, length, dim))

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            query = self.vit(images)
        x = self.vit.patch_embed(images)
        x = self.vit._pos_embed(x)
        for number, block in enumerate(self.vit.blocks):
            if number < self.blocks:
                x = x + self.attend(block.attn, block.norm1(x), self.prefix(query, number))
                x = x + block.mlp(block.norm2(x))
            else:
                x = block(x)
        return self.head(self.vit.norm(x)[:, 0])

    def trained(self) -> list[nn.Parameter]:
        return [self.pool, self.keys, self.attention, *self.head.parameters()]


class Prepended(nn.Module):
    """A frozen ViT with the 5 prompts of the nearest keys, 5 tokens each, prepended to the sequence; attention without
    a fused kernel; the input of the head is the mean of the prompts' outputs."""

    def __init__(self, vit: Any, pool: int = 10, top: int = 5, length: int = 5) -> None:
        super().__init__()
        self.vit, dim = vit.requires_grad_(False), vit.embed_dim
        for block in self.vit.blocks:
            block.attn.fused_attn = False
        self.top = top
        self.pool = nn.Parameter(torch.randn(pool, length, dim) / dim**0.5)
        self.keys = nn.Parameter(torch.randn(pool, dim) / dim**0.5)
        self.head = nn.Linear(self.vit.embed_dim, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            query = self.vit(images)
        scores = F.normalize(query, dim=1) @ F.normalize(self.keys, dim=1).T
        best, chosen = scores.topk(self.top)
        prompts = self.pool[chosen].flatten(1, 2) + 0 * best.sum()
        x = torch.cat([prompts, self.vit._pos_embed(self.vit.patch_embed(images))], dim=1)
        x = self.vit.norm(self.vit.blocks(x))
        return self.head(x[:, : prompts.shape[1]].mean(dim=1))


class FineTuning(nn.Module):
    def __init__(self, vit: Any) -> None:
        super().__init__()
        self.vit = vit
        self.head = nn.Linear(self.vit.embed_dim, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.vit(images))


REFERENCES: dict[str, Callable[[Any], nn.Module]] = {
    "sdlora, task 1": lambda vit: SDLoRA(vit, 0),
    "sdlora, task 10": lambda vit: SDLoRA(vit, 9),
    "inflora": InfLoRA,
    "coda": lambda vit: Prefixed(vit, attended=True, blocks=5),
    "dualprompt": lambda vit: Prefixed(vit, attended=False, blocks=5, pool=10),
    "l2p": Prepended,
    "l2p, prefix": lambda vit: Prefixed(vit, attended=False, blocks=1, pool=30),
    "finetune": FineTuning,
}


def step(model: Any, images: Tensor, labels: Tensor) -> Callable[[], object]:
    """A training step as in the released loops, which read the loss in every step."""
    trained = model.trained() if hasattr(model, "trained") else [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1e-3, momentum=0.9)

    def run() -> float:
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return run
