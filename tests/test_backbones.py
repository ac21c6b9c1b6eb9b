"""The embedded backbone: the published weights, trained on other classes, with the floors that its card claims."""

from __future__ import annotations

import hashlib
import json
from importlib.resources import files
from typing import Any

import numpy as np
import pytest
import torch

from cl_bench import backbones, streams
from cl_bench.data.views import test_view as view
from cl_bench.errors import UserError
from cl_bench.experiment import Transforms
from cl_bench.streams import icons

NAME = "vit_tiny_patch8_32.icons"
ASSETS = files("cl_bench") / "assets"


@pytest.fixture(scope="module")
def card() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ASSETS / f"{NAME}.json").read_text())
    return found


def test_its_classes_and_the_streams_are_disjoint(card: dict[str, Any]) -> None:
    trained_on = set(card["class_names"])
    assert len(trained_on) == card["data"]["classes"] > 100
    for benchmark in ("icons-100", "icons-tune"):
        assert trained_on.isdisjoint(streams.find(benchmark).source().classes)
    assert trained_on == set(icons.load("pretrain")[2])


def test_card_belongs_to_the_weights_and_the_data(card: dict[str, Any]) -> None:
    content = (ASSETS / card["weights"]["file"]).read_bytes()
    assert hashlib.sha256(content).hexdigest() == card["weights"]["file_sha256"]
    assert len(content) <= 11 * 2**20
    assert card["weights"]["weights_hash"] == backbones.find(NAME).weights
    assert card["data"]["sha256"] == icons.SHA256


def test_frozen_nearest_mean_is_what_the_card_says(card: dict[str, Any]) -> None:
    backbone = backbones.find(NAME)
    transforms = Transforms(size=backbone.size, crop_scale=(1, 1), mean=backbone.mean, std=backbone.std)
    vit = backbones.create(NAME).eval()
    source = streams.find("icons-100").source()

    def features(store: icons.ImageStore) -> torch.Tensor:
        chunks = np.array_split(np.arange(len(store)), 20)
        with torch.no_grad():
            return torch.cat([vit(view(store.gather(chunk), transforms)) for chunk in chunks])

    x, x_test = features(source.train), features(source.test)
    means = torch.stack([x[torch.from_numpy(source.train.targets == c)].mean(0) for c in range(100)])
    cosine = torch.nn.functional.normalize(x_test) @ torch.nn.functional.normalize(means).T
    accuracy = 100 * float(np.mean(cosine.argmax(1).numpy() == source.test.targets))
    assert accuracy == pytest.approx(card["probes"]["trained"]["nearest_mean"], abs=0.1)
    assert card["probes"]["trained"]["nearest_mean"] >= 65 and card["probes"]["trained"]["linear"] >= 65


def test_weights_hash_ignores_the_head_and_sees_everything_else() -> None:
    state = backbones.create(NAME).state_dict()
    assert backbones.weights_hash(state) == backbones.find(NAME).weights
    assert backbones.weights_hash({**state, "head.weight": torch.ones(3)}) == backbones.find(NAME).weights
    changed = {**state, "norm.bias": state["norm.bias"] + 1e-3}
    assert backbones.weights_hash(changed) != backbones.find(NAME).weights


def test_each_creation_is_a_fresh_copy() -> None:
    first = backbones.create(NAME)
    with torch.no_grad():
        first.norm.weight.zero_()
    assert backbones.weights_hash(backbones.create(NAME).state_dict()) == backbones.find(NAME).weights


def test_unknown_name_is_refused_with_a_guess() -> None:
    with pytest.raises(UserError, match=f"Did you mean '{NAME}'"):
        backbones.create("vit_tiny_patch8.icons")
