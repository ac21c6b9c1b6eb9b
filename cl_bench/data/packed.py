"""Batches of images of different sizes as one tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor


@dataclass(frozen=True)
class Packed:
    """Images of different sizes in one flat tensor, each lying on its longer side: channels, then rows, then columns.

    Attributes:
        flat: uint8 pixels, possibly also of other images, followed by at least `long` more bytes.
        offsets: int64 [B], position in `flat` at which each image begins.
        heights, widths: int64 [B], sizes of the upright images; images higher than wide are stored transposed.
        short, long: upper bounds of the shorter and the longer sides, in pixels.
    """

    flat: Tensor
    offsets: Tensor
    heights: Tensor
    widths: Tensor
    short: int
    long: int

    @classmethod
    def of(cls, image: Tensor) -> Packed:
        """A batch of one RGB image, uint8 [3, H, W]."""
        height, width = image.shape[1:]
        lying = image.transpose(1, 2) if height > width else image
        flat = torch.cat([lying.flatten(), lying.new_zeros(max(height, width))])
        offsets, heights, widths = (torch.tensor([number], device=image.device) for number in (0, height, width))
        return cls(flat, offsets, heights, widths, min(height, width), max(height, width))

    def split(self, size: int) -> list[Packed]:
        """The images in batches of `size`, in order."""
        parts = zip(*(each.split(size) for each in (self.offsets, self.heights, self.widths)), strict=True)
        return [Packed(self.flat, start, height, width, self.short, self.long) for start, height, width in parts]

    def turned(self) -> Tensor:
        """Which images are stored transposed, bool [B]."""
        return self.heights > self.widths

    def lying_sides(self) -> tuple[Tensor, Tensor]:
        """Shorter and longer side of each image, int64 [B] each."""
        return torch.minimum(self.heights, self.widths), torch.maximum(self.heights, self.widths)

    def pixels(self, first: Tensor, columns: int) -> Tensor:
        """The images as stored, or a range of columns of each: uint8 [B, short, 3, columns].

        Args:
            first: int64 [B], first column of each range.
            columns: number of columns, at most `long`. Values beyond the sides of an image are meaningless.
        """
        short, long = (side[:, None, None] for side in self.lying_sides())
        device = self.flat.device
        # By index arithmetic, without a Python loop over images: `columns` bytes from the beginning of each line.
        row = torch.minimum(torch.arange(self.short, device=device)[:, None], short - 1)
        channel = torch.arange(3, device=device)
        starts = (self.offsets + first)[:, None, None] + (channel * short + row) * long
        return self.flat.as_strided((len(self.flat) - columns + 1, columns), (1, 1))[starts]


Images: TypeAlias = Tensor | Packed | list[Tensor]
"""A uint8 batch: [n, C, H, W] if all images have the same size, otherwise packed, or a list of n times [C, H, W]."""
