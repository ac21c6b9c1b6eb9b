"""What every model has, whatever its head."""

from __future__ import annotations

import pytest
from torch import nn

from cl_bench.models.base import FeatureModel
from cl_bench.models.heads import CosinePrototypes
from tests.helpers.tiny import tiny_vit


@pytest.mark.parametrize("head", [nn.Linear(32, 4), CosinePrototypes(32, 4)], ids=["trained", "buffers only"])
def test_the_device_is_where_the_model_lies(head: nn.Module) -> None:
    model = FeatureModel(tiny_vit(), head)
    assert model.device.type == "cpu"
    assert model.to("meta").device.type == "meta"
