"""A batch of images of many sizes, as one tensor."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Packed:
    """Images of many sizes in one flat tensor, each lying on its longer side: channels, then rows, then columns.

    Attributes:
        flat: uint8, all pixels; of more images than these, perhaps.
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

    def turned(self) -> Tensor:
        """Which images are stored on their side, bool [B]."""
        return self.heights > self.widths

    def lying_sides(self) -> tuple[Tensor, Tensor]:
        """Short and long side [B] of each."""
        return torch.minimum(self.heights, self.widths), torch.maximum(self.heights, self.widths)

    def pixels(self) -> Tensor:
        """Lying images uint8 [B, 3, short, long]; beyond its own sides an image's last pixels are repeated."""
        short, long = (side[:, None, None, None] for side in self.lying_sides())
        device = self.flat.device
        # One after the other, by index arithmetic: no image is looked at in Python.
        channel = torch.arange(3, device=device)[:, None, None]
        row = torch.minimum(torch.arange(self.short, device=device)[:, None], short - 1)
        column = torch.minimum(torch.arange(self.long, device=device), long - 1)
        return self.flat[self.offsets[:, None, None, None] + (channel * short + row) * long + column]
