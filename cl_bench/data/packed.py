"""A batch of images of many sizes, as one tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor


@dataclass(frozen=True)
class Packed:
    """Images of many sizes in one flat tensor, each lying on its longer side: channels, then rows, then columns.

    Attributes:
        flat: uint8, all pixels; of more images than these, perhaps; with at least `long` bytes more at its end.
        offsets: int64 [B], where each image begins.
        heights, widths: int64 [B] of the images as they are seen; those higher than wide are stored on their side.
        short, long: no image has longer sides.
    """

    flat: Tensor
    offsets: Tensor
    heights: Tensor
    widths: Tensor
    short: int
    long: int

    @classmethod
    def of(cls, image: Tensor) -> Packed:
        """One RGB image, uint8 [3, H, W]."""
        height, width = image.shape[1:]
        lying = image.transpose(1, 2) if height > width else image
        flat = torch.cat([lying.flatten(), lying.new_zeros(max(height, width))])
        offsets, heights, widths = (torch.tensor([number], device=image.device) for number in (0, height, width))
        return cls(flat, offsets, heights, widths, min(height, width), max(height, width))

    def split(self, size: int) -> list[Packed]:
        """Batches of so many of the images, in their order."""
        parts = zip(*(each.split(size) for each in (self.offsets, self.heights, self.widths)), strict=True)
        return [Packed(self.flat, start, height, width, self.short, self.long) for start, height, width in parts]

    def turned(self) -> Tensor:
        """Which images are stored on their side, bool [B]."""
        return self.heights > self.widths

    def lying_sides(self) -> tuple[Tensor, Tensor]:
        """Short and long side [B] of each."""
        return torch.minimum(self.heights, self.widths), torch.maximum(self.heights, self.widths)

    def pixels(self, first: Tensor, columns: int) -> Tensor:
        """Lying images, or a part of each: uint8 [B, short, 3, columns].

        Args:
            first: int64 [B], the column with which each part begins.
            columns: of a part, `long` at most. What lies beyond the sides of an image is of no meaning.
        """
        short, long = (side[:, None, None] for side in self.lying_sides())
        device = self.flat.device
        # By index arithmetic, no image is looked at in Python: as many bytes from where each line begins.
        row = torch.minimum(torch.arange(self.short, device=device)[:, None], short - 1)
        channel = torch.arange(3, device=device)
        starts = (self.offsets + first)[:, None, None] + (channel * short + row) * long
        return self.flat.as_strided((len(self.flat) - columns + 1, columns), (1, 1))[starts]


Images: TypeAlias = Tensor | Packed | list[Tensor]
"""A batch, uint8: [n, C, H, W] where all images have one size, otherwise packed, or n times [C, H, W]."""
