"""Modules whose tensors change in number and shape as tasks come."""

from __future__ import annotations

from itertools import count, takewhile
from typing import Any

import torch
from torch import nn


class Growing(nn.Module):
    """A module that takes on the shapes of any state dict it is given.

    Its parameter lists and buffers grow (and may shrink) over the tasks. A fresh module that loads the state dict of a
    grown one first becomes as large, so that weights alone restore a model; names are still checked.
    """

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        for name, child in list(self.named_children()):
            if isinstance(child, nn.ParameterList):
                keys = takewhile(state_dict.__contains__, (f"{prefix}{name}.{i}" for i in count()))
                setattr(self, name, nn.ParameterList(nn.Parameter(torch.empty_like(state_dict[key])) for key in keys))
        for name, buffer in list(self.named_buffers(recurse=False)):
            stored = state_dict.get(prefix + name)
            if stored is not None and stored.shape != buffer.shape:
                setattr(self, name, torch.empty_like(stored))
        super()._load_from_state_dict(state_dict, prefix, *arguments)
