"""A ViT and a stream so small that methods train on them within a second or so."""

from __future__ import annotations

from functools import cache

from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from cl_bench import streams
from cl_bench.experiment import ImageTransforms, Limits
from cl_bench.randomness import seeded
from cl_bench.streams.scenarios import TaskStream, build

TRANSFORMS = ImageTransforms(size=32, crop_scale=(0.6, 1.0), mean=(0.5,), std=(0.5,))
TASKS, CLASSES = 3, 40


def tiny_vit(seed: int = 0, block_fn: type[nn.Module] = Block) -> VisionTransformer:
    """A ViT with two blocks of width 32 for 32x32 grey images; its weights give images very different features."""
    with seeded(("tiny vit", seed)):
        vit = VisionTransformer(
            img_size=32, patch_size=8, in_chans=1, embed_dim=32, depth=2, num_heads=2, num_classes=0, block_fn=block_fn
        )
        for name, parameter in vit.named_parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02 if name in ("cls_token", "pos_embed") else 0.4)
    return vit


@cache
def cut(benchmark: str = "icons-tune", order: str = "permutation:3", train: int = 5, test: int = 4) -> TaskStream:
    """Three tasks of the tuning stream, a few images per class."""
    limits = Limits(tasks=TASKS, train_per_class=train, test_per_class=test)
    return build(streams.find(benchmark).source(), 10, order, TRANSFORMS, limits)
