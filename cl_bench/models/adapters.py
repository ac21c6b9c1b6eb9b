"""Parameter-efficient changes of a frozen ViT that are neither low-rank updates nor prompts."""

from __future__ import annotations

import math

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from cl_bench import _aliases
from cl_bench.models.vit import BottleneckWeights, ViT, apply_bottleneck_adapter

Layer = nn.Linear | nn.LayerNorm | nn.Conv2d


class BottleneckAdapter(nn.Module):
    """AdaptFormer's adapter, which starts at 0: x -> scale (W_up relu(W_down x + b_down) + b_up)."""

    def __init__(self, dim: int, width: int, scale: float = 0.1) -> None:
        super().__init__()
        self.scale = scale
        self.down = nn.Linear(dim, width)
        self.up = nn.Linear(width, dim)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def weights(self) -> BottleneckWeights:
        """As `ViT.features` takes them where the scale is 0.1."""
        return self.down.weight, self.down.bias, self.up.weight, self.up.bias

    def forward(self, x: Tensor) -> Tensor:
        return apply_bottleneck_adapter(x, *self.weights(), self.scale)


class Adapters(nn.Module):
    """A bottleneck beside the MLP of every block (AdaptFormer; Chen et al., NeurIPS 2022, arXiv 2205.13535).

    Without the dropout of the original.
    """

    def __init__(self, backbone: VisionTransformer, width: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(BottleneckAdapter(backbone.embed_dim, width) for _ in backbone.blocks)

    def features(self, vit: ViT, images: Tensor) -> Tensor:
        """CLS features [B, d] of the adapted backbone (a bare one in method files of version 0.1.0)."""
        weights = {
            number: block.weights() for number, block in enumerate(self.blocks) if isinstance(block, BottleneckAdapter)
        }
        return ViT.of(vit).features(images, parallel=weights)


class ScaleShift(nn.Module):
    """A scale and a shift of each channel after every linear layer and norm (SSF; Lian et al., NeurIPS 2022, arXiv
    2210.08823), written into the layers' weights: W -> s W, b -> s b + t."""

    def __init__(self, backbone: VisionTransformer) -> None:
        super().__init__()
        self.sizes = [layer.weight.shape[0] for layer in self.layers_of(backbone).values()]
        self.scales = nn.Parameter(1 + 0.02 * torch.randn(sum(self.sizes)))
        self.shifts = nn.Parameter(0.02 * torch.randn(sum(self.sizes)))

    @staticmethod
    def layers_of(backbone: VisionTransformer) -> dict[str, Layer]:
        """The layers that are scaled and shifted, by name."""
        found = {name: layer for name, layer in backbone.named_modules() if isinstance(layer, Layer)}
        return {name: layer for name, layer in found.items() if layer.weight is not None and layer.bias is not None}

    def features(self, vit: ViT, images: Tensor) -> Tensor:
        """CLS features [B, d] of the adapted backbone (a bare one in method files of version 0.1.0)."""
        weights = {}
        changes = zip(self.scales.split(self.sizes), self.shifts.split(self.sizes), strict=True)
        for (name, layer), (scale, shift) in zip(self.layers_of(ViT.of(vit).backbone).items(), changes, strict=True):
            assert layer.bias is not None
            weights[f"{name}.weight"] = layer.weight * scale.view(-1, *[1] * (layer.weight.ndim - 1))
            weights[f"{name}.bias"] = layer.bias * scale + shift
        return ViT.of(vit).features(images, weights=weights)


__getattr__ = _aliases.renamed(__name__, {"Bottleneck": BottleneckAdapter})
