"""Adapters of a frozen ViT that are neither low-rank updates nor prompts: bottlenecks, and scales with shifts."""

from __future__ import annotations

import math

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from cl_bench import _aliases
from cl_bench.models.vit import ViT
from cl_bench.models.vit_pass import BottleneckWeights, apply_bottleneck_adapter

Layer = nn.Linear | nn.LayerNorm | nn.Conv2d


class BottleneckAdapter(nn.Module):
    """AdaptFormer's bottleneck adapter: x [..., dim] -> scale (W_up relu(W_down x + b_down) + b_up) [..., dim].

    W_up and the biases start at 0, so a new adapter gives 0 (Chen et al., NeurIPS 2022, arXiv 2205.13535).

    Args:
        dim: width of the tokens.
        width: width of the bottleneck.
        scale: factor on the output.
    """

    def __init__(self, dim: int, width: int, scale: float = 0.1) -> None:
        super().__init__()
        self.scale = scale
        self.down = nn.Linear(dim, width)
        self.up = nn.Linear(width, dim)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def weights(self) -> BottleneckWeights:
        """The weights as the argument `parallel` of `ViT.features` takes them, which assumes a scale of 0.1."""
        return self.down.weight, self.down.bias, self.up.weight, self.up.bias

    def forward(self, x: Tensor) -> Tensor:
        return apply_bottleneck_adapter(x, *self.weights(), self.scale)


class Adapters(nn.Module):
    """A bottleneck adapter parallel to the MLP of every block; L (2 d w + w + d) numbers.

    AdaptFormer (Chen et al., NeurIPS 2022, arXiv 2205.13535) without its dropout. Each adapter gives 0 at first.

    Args:
        backbone: ViT of L blocks and width d whose shape the adapters follow.
        width: width w of the bottlenecks.
    """

    def __init__(self, backbone: VisionTransformer, width: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(BottleneckAdapter(backbone.embed_dim, width) for _ in backbone.blocks)

    def features(self, vit: ViT, images: Tensor) -> Tensor:
        """CLS features [B, d] of the adapted backbone.

        Args:
            vit: pass through the backbone; method files of version 0.1.0 give the backbone itself.
            images: [B, C, H, W].
        """
        weights = {
            number: block.weights() for number, block in enumerate(self.blocks) if isinstance(block, BottleneckAdapter)
        }
        return ViT.of(vit).features(images, parallel=weights)


class ScaleShift(nn.Module):
    """A scale and a shift of each channel after every linear layer, norm and convolution with a bias.

    SSF (Lian et al., NeurIPS 2022, arXiv 2210.08823). Scales s and shifts t are written into the layers' weights:
    W -> s W, b -> s b + t. They are drawn from N(1, 0.02^2) and N(0, 0.02^2).

    Args:
        backbone: ViT whose layers are scaled and shifted.
    """

    def __init__(self, backbone: VisionTransformer) -> None:
        super().__init__()
        self.sizes = [layer.weight.shape[0] for layer in self.layers_of(backbone).values()]
        self.scales = nn.Parameter(1 + 0.02 * torch.randn(sum(self.sizes)))
        self.shifts = nn.Parameter(0.02 * torch.randn(sum(self.sizes)))

    @staticmethod
    def layers_of(backbone: VisionTransformer) -> dict[str, Layer]:
        """Layers that are scaled and shifted, by name: those with a weight and a bias."""
        found = {name: layer for name, layer in backbone.named_modules() if isinstance(layer, Layer)}
        return {name: layer for name, layer in found.items() if layer.weight is not None and layer.bias is not None}

    def features(self, vit: ViT, images: Tensor) -> Tensor:
        """CLS features [B, d] of the adapted backbone.

        Args:
            vit: pass through the backbone; method files of version 0.1.0 give the backbone itself.
            images: [B, C, H, W].
        """
        weights = {}
        changes = zip(self.scales.split(self.sizes), self.shifts.split(self.sizes), strict=True)
        for (name, layer), (scale, shift) in zip(self.layers_of(ViT.of(vit).backbone).items(), changes, strict=True):
            assert layer.bias is not None
            weights[f"{name}.weight"] = layer.weight * scale.view(-1, *[1] * (layer.weight.ndim - 1))
            weights[f"{name}.bias"] = layer.bias * scale + shift
        return ViT.of(vit).features(images, weights=weights)


__getattr__ = _aliases.renamed(__name__, {"Bottleneck": BottleneckAdapter})
