"""What every model offers, whatever its head, and which module predicts for it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from cl_bench.errors import UserError
from cl_bench.models.base import FeatureModel
from cl_bench.models.heads import Classifier, CosinePrototypes
from cl_bench.training.evaluation import Evaluation
from cl_bench.training.probes import Interpolation
from tests.helpers.rows import small
from tests.helpers.tiny import CLASSES, tiny_vit
from tests.helpers.training import strategy_of

IMAGES = torch.randn(3, 1, 32, 32, generator=torch.Generator().manual_seed(1))


class Queried(Classifier):
    """Predicts from a frozen feature and counts how often that is computed."""

    asked = 0

    def query(self, images: Tensor) -> Tensor:
        self.asked += 1
        return self.vit.features(images)

    def forward(self, images: Tensor, query: Tensor | None = None) -> Tensor:
        return self.classify(self.query(images) if query is None else query)


def model(of: Callable[..., FeatureModel] = Classifier) -> FeatureModel:
    return of(tiny_vit(), CLASSES).eval()


def test_a_model_without_a_query_or_adapters_to_merge_needs_to_say_nothing() -> None:
    plain = model()
    assert plain.query(IMAGES) is None and plain.merged() is plain


@torch.no_grad()
def test_the_query_of_a_chunk_is_computed_once() -> None:
    evaluation, queried, plain = Evaluation(CLASSES, torch.device("cpu")), model(Queried), model()
    for chunk in (b"one", b"one", b"two"):
        assert torch.equal(evaluation.predict(queried, IMAGES, chunk), queried(IMAGES, queried.vit.features(IMAGES)))
    assert queried.asked == 2
    for other in (plain, nn.Flatten()):
        assert torch.equal(evaluation.predict(other, IMAGES, b"other"), other(IMAGES))


def test_what_predicts_is_the_model_or_what_it_is_merged_to() -> None:
    for name, merges in (("linear", False), ("l2p", False), ("sdlora", True)):
        strategy = strategy_of(small(name))
        predictor = strategy.predictor()
        assert (predictor is not strategy.model) == merges and not predictor.training


def test_the_path_between_updates_is_of_low_rank_models_only() -> None:
    Interpolation.check(strategy_of(small("sdlora")).model, "sdlora")
    with pytest.raises(UserError, match="--probe interpolation needs low-rank updates, and 'l2p' has none"):
        Interpolation.check(strategy_of(small("l2p")).model, "l2p")


@pytest.mark.parametrize("head", [nn.Linear(32, 4), CosinePrototypes(32, 4)], ids=["trained", "buffers only"])
def test_the_device_is_where_the_model_lies(head: nn.Module) -> None:
    model = FeatureModel(tiny_vit(), head)
    assert model.device.type == "cpu"
    assert model.to("meta").device.type == "meta"
