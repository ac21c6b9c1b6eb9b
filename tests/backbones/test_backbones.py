"""Backbones: the embedded one, timm's by tag, files, random ones; each known by its hash, bad input by a sentence."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from cl_bench import backbones, streams
from cl_bench.backbones import embedded, loading
from cl_bench.contract import registry
from cl_bench.data.loading import gather
from cl_bench.data.views import test_view as view
from cl_bench.errors import UserError
from cl_bench.experiment import ImageTransforms
from cl_bench.running import plan
from cl_bench.streams import icons
from tests.helpers.command import Outcome
from tests.helpers.weights import SMALL, TINY, small, trained

NAME = "vit_tiny_patch8_32.icons"
ASSETS = files("cl_bench") / "assets"
TAGGED = "test_vit.r160_in1k"
"""A ViT of 0.4 M parameters that timm keeps for tests."""


# --- embedded backbones ----------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("name", backbones.names())
def test_card_belongs_to_the_weights_and_to_what_is_said_of_them(name: str) -> None:
    told, found = json.loads((ASSETS / f"{name}.json").read_text()), backbones.find(name)
    content = (ASSETS / told["weights"]["file"]).read_bytes()
    assert hashlib.sha256(content).hexdigest() == told["weights"]["file_sha256"]
    assert len(content) <= told["recipe"]["run"].get("max_mib", 11) * 2**20
    assert told["weights"]["weights_hash"] == found.weights
    model, data = told["recipe"]["model"], told["recipe"]["data"]
    options = {key: model[key] for key in ("img_size", "patch_size", "in_chans")} | model["kwargs"]
    assert (found.architecture, {"in_chans": 3, **found.options}) == (model["arch"], options)
    assert (found.size, found.channels) == (model["img_size"], model["in_chans"])
    assert (list(found.mean), list(found.std)) == (data["mean"], data["std"])


def test_card_belongs_to_the_icons(card: dict[str, Any]) -> None:
    assert card["data"]["sha256"] == icons.SHA256


def test_frozen_nearest_mean_is_what_the_card_says(card: dict[str, Any]) -> None:
    backbone = backbones.find(NAME)
    transforms = ImageTransforms(size=backbone.size, crop_scale=(1, 1), mean=backbone.mean, std=backbone.std)
    vit = backbones.build_backbone(NAME).eval()
    source = streams.find("icons-100").source()

    def features(store: icons.ImageStore) -> torch.Tensor:
        chunks = np.array_split(np.arange(len(store)), 20)
        with torch.no_grad():
            return torch.cat([vit(view(gather(store, chunk), transforms)) for chunk in chunks])

    x, x_test = features(source.train), features(source.test)
    means = torch.stack([x[torch.from_numpy(source.train.targets == c)].mean(0) for c in range(100)])
    cosine = torch.nn.functional.normalize(x_test) @ torch.nn.functional.normalize(means).T
    accuracy = 100 * float(np.mean(cosine.argmax(1).numpy() == source.test.targets))
    assert accuracy == pytest.approx(card["probes"]["trained"]["nearest_mean"], abs=0.1)
    assert card["probes"]["trained"]["nearest_mean"] >= 65 and card["probes"]["trained"]["linear"] >= 65


def test_weights_hash_ignores_the_head_and_sees_everything_else() -> None:
    state = backbones.build_backbone(NAME).state_dict()
    assert backbones.weights_hash(state) == backbones.find(NAME).weights
    assert backbones.weights_hash({**state, "head.weight": torch.ones(3)}) == backbones.find(NAME).weights
    changed = {**state, "norm.bias": state["norm.bias"] + 1e-3}
    assert backbones.weights_hash(changed) != backbones.find(NAME).weights
    renamed = {("norm.shift" if name == "norm.bias" else name): tensor for name, tensor in state.items()}
    assert backbones.weights_hash(renamed) != backbones.find(NAME).weights
    assert backbones.weights_hash({"scale": torch.ones(())}) != backbones.weights_hash({"scale": torch.ones(1)})


def test_each_creation_is_a_fresh_copy_that_can_be_trained() -> None:
    before = torch.get_rng_state()
    first = backbones.build_backbone(NAME)
    assert all(parameter.requires_grad and parameter.dtype == torch.float32 for parameter in first.parameters())
    with torch.no_grad():
        first.norm.weight.zero_()
    assert backbones.weights_hash(backbones.build_backbone(NAME).state_dict()) == backbones.find(NAME).weights
    assert torch.equal(torch.get_rng_state(), before)


def test_embedded_weights_are_checked_at_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    larger = backbones.find(NAME, size=48)
    assert backbones.build_backbone(larger).pos_embed.shape[1] == 37 and larger.weights == ""
    assert backbones.verify(larger).weights not in ("", backbones.find(NAME).weights)
    published = embedded.EMBEDDED[NAME]
    monkeypatch.setitem(embedded.EMBEDDED, NAME, replace(published, weights="0" * 64))
    with pytest.raises(UserError, match="damaged.*reinstall"):
        backbones.verify(backbones.find(NAME, size=64))


# --- names -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size", "mean", "width"),
    [
        ("vit_base_patch16_224.augreg_in21k", 224, 0.5, 768),
        ("vit_base_patch16_224.augreg2_in21k_ft_in1k", 224, 0.5, 768),
        ("vit_base_patch16_224.dino", 224, 0.485, 768),
        ("vit_small_patch16_224.augreg_in21k", 224, 0.5, 384),
        ("vit_large_patch16_224.augreg_in21k", 224, 0.5, 1024),
        ("vit_tiny_patch16_384.augreg_in21k_ft_in1k", 384, 0.5, 192),
        ("vit_base_patch14_dinov2.lvd142m", 518, 0.485, 768),
        ("vit_base_patch16_clip_224.openai", 224, 0.48145466, 768),
        ("deit_small_distilled_patch16_224.fb_in1k", 224, 0.485, 384),
    ],
)
def test_a_timm_tag_tells_its_input(name: str, size: int, mean: float, width: int) -> None:
    backbone = backbones.find(name)
    assert (backbone.name, backbone.size, backbone.channels) == (name, size, 3)
    assert backbone.mean[0] == mean and len(backbone.mean) == len(backbone.std) == 3
    assert backbone.weights == "" and backbone.pretrained
    for vit in (backbones.skeleton(name), backbones.skeleton(backbone)):
        assert vit.patch_embed.img_size == (size, size) and vit.num_features == width
        assert {parameter.device.type for parameter in vit.parameters()} == {"meta"}


def test_a_smaller_input_can_be_asked_for() -> None:
    backbone = backbones.find("vit_base_patch14_dinov2.lvd142m", size=224)
    assert backbone.size == 224 and backbones.skeleton(backbone).pos_embed.shape == (1, 257, 768)


def test_normalisation_none_feeds_pixels_as_they_are() -> None:
    assert backbones.find("vit_base_patch16_224.dino", normalise="none").mean == (0, 0, 0)
    assert backbones.find("vit_base_patch16_224.dino", normalise="none").std == (1, 1, 1)
    assert backbones.find(NAME, normalise="none").mean == (0,)
    assert backbones.find(NAME, normalise="none").weights == backbones.find(NAME).weights


@pytest.mark.parametrize("name", backbones.VIT_B16)
def test_a_bare_name_is_refused_with_all_its_tags(name: str) -> None:
    assert backbones.find(name).name == name
    with pytest.raises(UserError, match=f"{re.escape(name)}[,;]") as refused:
        backbones.find("vit_base_patch16_224")
    for tag in timm.list_pretrained("vit_base_patch16_224.*"):
        assert tag in str(refused.value)
    assert "cannot be compared" in str(refused.value)


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("vit_tiny_patch8.icons", {}, f"unknown backbone.*Did you mean '{NAME}'"),
        ("vit_base_patch16_242.augreg_in21k", {}, "Did you mean.*vit_base_patch16_224.augreg_in21k"),
        ("hf-hub:timm/vit_base_patch16_224.dino", {}, "unknown backbone"),
        ("", {}, "unknown backbone"),
        ("vit_base_patch16_224.augreg_in22k", {}, "no weights 'vit_base.*vit_base_patch16_224.augreg_in21k,"),
        ("vit_base_patch16_224_in21k", {}, "old name of 'vit_base_patch16_224.augreg_in21k'"),
        ("vit_base_patch16_gap_224", {}, "no weights.*--checkpoint"),
        ("vit_base_patch16_gap_224.mine", {}, "no weights.*--checkpoint"),
        ("resnet50.a1_in1k", {}, "ResNet.*VisionTransformer only"),
        ("beit_base_patch16_224.in22k_ft_in22k", {}, "Beit.*VisionTransformer only"),
        ("resnet50", {"pretrained": False}, "VisionTransformer only"),
        (f"{TINY}.augreg_in21k", {"pretrained": False}, f"--pretrained no.*--backbone {TINY}$"),
        (NAME, {"pretrained": False}, f"--pretrained no.*--backbone {TINY}"),
        (TINY, {"pretrained": False, "checkpoint": Path("w.pth")}, "--checkpoint and --pretrained no"),
        (NAME, {"normalise": "imagenet"}, "'imagenet' is unknown; expected checkpoint or none"),
        (f"{TINY}.augreg_in21k", {"size": 50}, "16 pixels.*50 pixels"),
        (f"{TINY}.augreg_in21k", {"size": 0}, "16 pixels.*0 pixels"),
        (f"{TINY}.augreg_in21k", {"checkpoint": Path("nowhere.pth")}, "'nowhere.pth' is no file"),
        (TINY, {"checkpoint": Path()}, "'.' is no file"),
        (f"{TINY}:mine.pth", {}, f"--backbone {TINY} --checkpoint .../mine.pth"),
        (f"{NAME}:mine.pth", {}, f"--backbone {NAME} --checkpoint .../mine.pth"),
        ("vit_base_patch16_224", {"checkpoint": Path("w.pth")}, r"in1k \(mean 0.5.*0.485.*--normalise none"),
    ],
)
def test_names_that_cannot_be_resolved(name: str, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as refused:
        backbones.find(name, **options)
    assert "\n" not in str(refused.value)


# --- random weights --------------------------------------------------------------------------------------------


def test_random_weights_are_the_same_in_every_run() -> None:
    backbone = backbones.find(TINY, pretrained=False)
    assert backbone.name == TINY and "random" in backbone.description
    torch.manual_seed(1)
    before = torch.get_rng_state()
    pinned = backbones.verify(backbone)
    assert torch.equal(torch.get_rng_state(), before)
    loading._read.cache_clear()
    torch.manual_seed(2)
    assert backbones.weights_hash(backbones.build_backbone(backbone).state_dict()) == pinned.weights
    small = backbones.verify(backbones.find(TINY, pretrained=False, size=32))
    assert small.weights != pinned.weights and backbones.build_backbone(small).pos_embed.shape == (1, 5, 192)


def test_a_random_vit_b_16() -> None:
    backbone = backbones.verify(backbones.find("vit_base_patch16_224", pretrained=False))
    vit = backbones.build_backbone(backbone)
    assert sum(parameter.numel() for parameter in vit.parameters()) == 85_798_656
    assert backbones.weights_hash(vit.state_dict()) == backbone.weights
    loading._read.cache_clear()


# --- files of weights ------------------------------------------------------------------------------------------


def google(vit: VisionTransformer, prefix: str = "", stacked: bool = False) -> dict[str, NDArray[np.float32]]:
    """The weights in the layout of Google's JAX code: of the vision_transformer repository, or of big_vision."""
    big = prefix.startswith("params/")
    attention, mlp, norm = ("0", "0", "1") if big else ("1", "3", "2")
    a: dict[str, NDArray[np.float32]] = {name: tensor.numpy() for name, tensor in vit.state_dict().items()}
    found = {
        "cls": a["cls_token"],
        "embedding/kernel": a["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": a["patch_embed.proj.bias"],
        "pos_embedding" if big else "Transformer/posembed_input/pos_embedding": a["pos_embed"],
        "Transformer/encoder_norm/scale": a["norm.weight"],
        "Transformer/encoder_norm/bias": a["norm.bias"],
        "head/kernel": a["head.weight"].T,
        "head/bias": a["head.bias"],
    }
    width, heads = vit.embed_dim, vit.blocks[0].attn.num_heads
    blocks: list[dict[str, NDArray[np.float32]]] = []
    for i in range(len(vit.blocks)):
        b = {name.removeprefix(f"blocks.{i}."): x for name, x in a.items() if name.startswith(f"blocks.{i}.")}
        block = {
            "LayerNorm_0/scale": b["norm1.weight"],
            "LayerNorm_0/bias": b["norm1.bias"],
            f"LayerNorm_{norm}/scale": b["norm2.weight"],
            f"LayerNorm_{norm}/bias": b["norm2.bias"],
            f"MultiHeadDotProductAttention_{attention}/out/kernel": b["attn.proj.weight"].T.reshape(heads, -1, width),
            f"MultiHeadDotProductAttention_{attention}/out/bias": b["attn.proj.bias"],
        }
        for part, weight, bias in zip(
            ("query", "key", "value"), np.split(b["attn.qkv.weight"], 3), np.split(b["attn.qkv.bias"], 3), strict=True
        ):
            block[f"MultiHeadDotProductAttention_{attention}/{part}/kernel"] = weight.T.reshape(width, heads, -1)
            block[f"MultiHeadDotProductAttention_{attention}/{part}/bias"] = bias.reshape(heads, -1)
        for layer in (1, 2):
            block[f"MlpBlock_{mlp}/Dense_{layer - 1}/kernel"] = b[f"mlp.fc{layer}.weight"].T
            block[f"MlpBlock_{mlp}/Dense_{layer - 1}/bias"] = b[f"mlp.fc{layer}.bias"]
        blocks.append(block)
    for i, block in enumerate(blocks):
        found |= {f"Transformer/encoderblock_{i}/{name}": x for name, x in block.items() if not stacked}
    if stacked:
        found |= {f"Transformer/encoderblock/{name}": np.stack([block[name] for block in blocks]) for name in blocks[0]}
    return {prefix + name: x for name, x in found.items()}


def write_npz(path: Path, arrays: Mapping[str, NDArray[Any]]) -> Path:
    with path.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    return path


def in_every_format(vit: VisionTransformer, folder: Path) -> Iterator[Path]:
    state = {name: tensor.contiguous() for name, tensor in vit.state_dict().items()}
    save_file(state, folder / "plain.safetensors", metadata={"format": "pt"})
    yield folder / "plain.safetensors"
    headless = {name: tensor for name, tensor in state.items() if not name.startswith("head.")}
    parallel = {f"module.{name}": tensor for name, tensor in state.items()}
    for name, content in {
        "plain.pth": headless,
        "model.pt": {"model": state, "epoch": 3},
        "state_dict.bin": {"state_dict": state, "optimizer": {}},
        "parallel.pth": {"state_dict": parallel},
        "pre_logits.pth": {**state, "pre_logits.fc.weight": torch.ones(2, 2)},
    }.items():
        torch.save(content, folder / name)
        yield folder / name
    text = {"params/txt/pos_embedding": np.zeros((1, 7, 9)), "params/txt/encoderblock_9/x": np.zeros(1)}
    yield write_npz(folder / "vit.npz", google(vit))
    yield write_npz(folder / "optimiser.npz", google(vit, "opt/target/"))
    yield write_npz(folder / "big_vision.npz", google(vit, "params/"))
    yield write_npz(folder / "stacked.npz", google(vit, "params/img/", stacked=True) | text)


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    heads=st.sampled_from([1, 2, 3]),
    depth=st.integers(1, 3),
    patch=st.sampled_from([8, 16]),
    channels=st.sampled_from([1, 3]),
)
def test_equal_weights_agree_in_every_format(
    tmp_path_factory: pytest.TempPathFactory, seed: int, heads: int, depth: int, patch: int, channels: int
) -> None:
    options = {"embed_dim": 4 * heads, "num_heads": heads, "depth": depth, "patch_size": patch, "in_chans": channels}
    vit = trained(seed, **options)
    expected = backbones.weights_hash(vit.state_dict())
    for path in in_every_format(vit, tmp_path_factory.mktemp("formats")):
        backbone = small(path, **options)
        assert backbones.verify(backbone).weights == expected, path.name
        created = backbones.build_backbone(backbone).state_dict()
        assert created.keys() == {name for name in vit.state_dict() if not name.startswith("head.")}
        assert all(torch.equal(tensor, vit.state_dict()[name]) for name, tensor in created.items()), path.name


def test_layouts_of_other_codes_are_converted_as_timm_does(tmp_path: Path) -> None:
    options = {"pre_norm": True, "num_classes": 0}
    vit = trained(**options)
    state = vit.state_dict()
    names = {"patch_embed.proj": "conv1", "norm_pre": "ln_pre", "norm.": "ln_post.", "qkv.": "in_proj_"}
    names |= {"attn.proj": "attn.out_proj", "fc1": "c_fc", "fc2": "c_proj", "norm1": "ln_1", "norm2": "ln_2"}
    clip: dict[str, Tensor] = {"positional_embedding": torch.ones(77, 8), "logit_scale": torch.ones(())}
    for name, tensor in state.items():
        if name == "patch_embed.proj.bias":
            continue
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        clip["visual." + name.replace("blocks.", "transformer.resblocks.")] = tensor
    clip["visual.class_embedding"] = clip.pop("visual.cls_token")[0, 0]
    clip["visual.positional_embedding"] = clip.pop("visual.pos_embed")[0]
    clip["visual.proj"] = torch.ones(24, 6)
    torch.save(clip, tmp_path / "clip.pt")
    backbone = small(tmp_path / "clip.pt", pre_norm=True)
    created = backbones.build_backbone(backbone).state_dict()
    assert created.keys() == state.keys() - {"patch_embed.proj.bias"}
    assert all(torch.equal(tensor, state[name]) for name, tensor in created.items())
    clip["visual.positional_embedding"] = torch.ones(11, 24)
    torch.save(clip, tmp_path / "clip.pt")
    with pytest.raises(UserError, match="'visual.positional_embedding' has 11 positions, expected a square grid"):
        backbones.verify(backbone)


def test_half_precision_weights_are_used_in_fp32(tmp_path: Path) -> None:
    vit = trained().half()
    torch.save(vit.state_dict(), tmp_path / "half.pth")
    assert {p.dtype for p in backbones.build_backbone(small(tmp_path / "half.pth")).parameters()} == {torch.float32}
    assert backbones.verify(small(tmp_path / "half.pth")).weights == backbones.weights_hash(vit.state_dict())


State = dict[str, Any]


def drop(name: str) -> Callable[[State], object]:
    return lambda state: state.pop(name)


def put(name: str, *shape: int) -> Callable[[State], object]:
    return lambda state: state.update({name: torch.ones(shape)})


def nested(state: State) -> None:
    state.pop("patch_embed.proj.weight")
    inner = {f"student.{name}": state.pop(name) for name in list(state)}
    state.update(inner)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (drop("blocks.1.norm1.bias"), "'blocks.1.norm1.bias' is missing;"),
        (
            put("blocks.0.mlp.fc1.weight", 96, 25),
            r"'blocks.0.mlp.fc1.weight' has shape \(96, 25\), expected \(96, 24\)",
        ),
        (put("cls_token", 1, 1, 48), r"'cls_token' has shape \(1, 1, 48\), expected \(1, 1, 24\)"),
        (put("decoder.weight", 3), "'decoder.weight' is unexpected"),
        (put("blocks.2.norm1.bias", 24), "'blocks.2.norm1.bias' is unexpected"),
        (put("pos_embed", 1, 24, 24), "'pos_embed' has 24 positions, expected a square grid of them and 1 for other"),
        (put("patch_embed.proj.weight", 24, 3, 16, 16), r"'patch_embed.proj.weight' has shape \(24, 3, 16, 16\)"),
        (put("patch_embed.proj.weight", 24, 1, 8, 8), r"\(24, 1, 8, 8\), expected \(24, 3, 8, 8\)"),
        (put("patch_embed.proj.weight", 24, 7), "timm cannot convert it"),
        (nested, r"'cls_token' is missing \(it holds 'student.cls_token' instead\)"),
        (lambda state: state.clear(), "'cls_token' is missing;"),
        (lambda state: state.update({"norm.bias": 3}), "'norm.bias' is no tensor"),
        (lambda state: state.update({"epoch": 3}), "'epoch' is unexpected"),
    ],
)
@pytest.mark.parametrize("wrap", ["flat", "model"])
def test_state_dicts_that_do_not_fit(
    tmp_path: Path, change: Callable[[State], object], sentence: str, wrap: str
) -> None:
    state = dict(trained().state_dict())
    change(state)
    path = tmp_path / "other.pth"
    torch.save(state if wrap == "flat" else {"model": state}, path)
    with pytest.raises(UserError, match=sentence) as refused:
        backbones.verify(small(path))
    message = str(refused.value)
    assert message.startswith(f"--checkpoint '{path}' does not fit {TINY}:") and message.endswith("with --backbone")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("change", "options", "sentence"),
    [
        (drop("Transformer/encoder_norm/scale"), {}, "'Transformer/encoder_norm/scale' is missing"),
        (drop("cls"), {}, "'cls' is missing"),
        (
            drop("Transformer/encoderblock_1/LayerNorm_2/bias"),
            {},
            "'Transformer/encoderblock_1/LayerNorm_2/bias' is mi",
        ),
        (put("Transformer/encoderblock_1/MlpBlock_3/Dense_0/bias", 7), {}, r"'blocks.1.mlp.fc1.bias' of shape \(96,\)"),
        (lambda state: None, {"depth": 1}, "'encoderblock' is there 2 times, expected 1"),
        (lambda state: None, {"depth": 3}, "'encoderblock' is there 2 times, expected 3"),
        (
            lambda state: None,
            {"embed_dim": 48},
            r"'embedding/kernel' has shape \(24, 3, 8, 8\), expected \(48, 3, 8, 8\)",
        ),
        (lambda state: None, {"patch_size": 16}, r"'embedding/kernel' has .* expected \(24, 3, 16, 16\)"),
        (lambda state: None, {"in_chans": 1}, r"'embedding/kernel' has .* expected \(24, 1, 8, 8\)"),
        (
            put("Transformer/posembed_input/pos_embedding", 1, 24, 24),
            {},
            "pos_embedding' has 24 positions, expected a sq",
        ),
        (lambda state: None, {"init_values": 0.1}, "'blocks.0.ls1.gamma' is missing or not a number"),
        (lambda state: None, {"reg_tokens": 2}, "has 17 positions, expected a square grid of them and 3 for"),
        (lambda state: None, {"qkv_bias": False}, "timm cannot convert it"),
    ],
)
def test_google_files_that_do_not_fit(
    tmp_path: Path, change: Callable[[State], object], options: dict[str, Any], sentence: str
) -> None:
    arrays: State = dict(google(trained()))
    change(arrays)
    path = write_npz(tmp_path / "ViT.npz", {name: np.asarray(x) for name, x in arrays.items()})
    with pytest.raises(UserError, match=sentence) as refused:
        backbones.verify(small(path, **options, size=options.get("img_size", 32)))
    assert str(refused.value).startswith(f"--checkpoint '{path}' does not fit {TINY}:")


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (np.nan, "holds NaN"),
        (np.inf, "holds Inf"),
        (np.int8(1), "is of type int8"),
        (True, "is of type bool"),
        (1j, "is of type complex128"),
    ],
)
def test_google_files_with_other_than_finite_numbers(tmp_path: Path, value: Any, what: str) -> None:
    name = "Transformer/encoderblock_1/MlpBlock_3/Dense_0/bias"
    arrays: State = dict(google(trained())) | {"opt/state/step": np.array(7), "head/bias": np.array([np.nan])}
    beside = write_npz(tmp_path / "beside.npz", arrays)
    assert backbones.verify(small(beside)).weights == backbones.weights_hash(trained().state_dict())
    path = write_npz(tmp_path / "ViT.npz", arrays | {name: np.full(96, value)})
    with pytest.raises(UserError, match=f"ViT.npz' cannot be used: '{name}' {what}"):
        backbones.verify(small(path))


def test_google_files_with_another_position_grid(tmp_path: Path) -> None:
    vit = trained(img_size=48)
    path = write_npz(tmp_path / "ViT.npz", google(vit))
    assert backbones.verify(small(path, 48)).weights == backbones.weights_hash(vit.state_dict())
    expected = resample_abs_pos_embed(vit.pos_embed, new_size=[8, 8])
    assert torch.equal(backbones.build_backbone(small(path, 64)).pos_embed, expected)


class _Code:
    def __reduce__(self) -> Any:
        return os.mkdir, ("executed",)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".bin", ".npz", ""])
@pytest.mark.parametrize("content", ["cut", "empty", "text", "other", "code"])
def test_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, content: str) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"weights{suffix}"
    if content == "cut":
        source = {p.suffix: p for p in in_every_format(trained(), tmp_path)}.get(suffix, tmp_path / "plain.pth")
        path.write_bytes(source.read_bytes()[:-4000])
    elif content == "other":
        np.save(path.with_suffix(".npy"), np.ones(3))
        path.write_bytes(path.with_suffix(".npy").read_bytes())
    else:
        path.write_bytes({"empty": b"", "text": b"<html>404</html>", "code": pickle.dumps({"a": _Code()}, 2)}[content])
    with pytest.raises(UserError, match="cannot be read .*expected safetensors") as refused:
        backbones.verify(small(path))
    assert str(refused.value).startswith(f"--checkpoint '{path}'") and "\n" not in str(refused.value)
    assert not Path("executed").exists()


def test_something_else_in_a_torch_file(tmp_path: Path) -> None:
    for content in (torch.ones(3), [torch.ones(3)], {"model": "vit"}):
        torch.save(content, tmp_path / "odd.pth")
        with pytest.raises(UserError, match="cannot be read"):
            backbones.verify(small(tmp_path / "odd.pth"))


def test_position_embeddings_are_resampled_as_timm_does_if_asked_for(tmp_path: Path) -> None:
    vit = trained()
    hashes = set()
    for path in in_every_format(vit, tmp_path):
        created = backbones.build_backbone(small(path, size=48)).state_dict()
        hashes.add(backbones.weights_hash(created))
    torch.save(vit.state_dict(), tmp_path / "own.pth")
    # Without custom_load=False, older timm versions take the file for an npz, the form of that network's own weights.
    overlay = {"file": str(tmp_path / "own.pth"), "num_classes": 5, "custom_load": False}
    timms = timm.create_model(
        TINY, pretrained=True, pretrained_cfg_overlay=overlay, **{**SMALL, "img_size": 48, "num_classes": 5}
    )
    assert hashes == {backbones.weights_hash(timms.state_dict())}


def test_a_file_is_pinned_when_it_is_planned(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(trained(0).state_dict(), path)
    pinned = backbones.verify(small(path))
    torch.save({"model": trained(0).state_dict()}, path)
    os.utime(path, (1, 1))
    assert backbones.weights_hash(backbones.build_backbone(pinned).state_dict()) == pinned.weights
    torch.save(trained(1).state_dict(), path)
    with pytest.raises(UserError, match="not those that the run was planned with.*plan the run again"):
        backbones.build_backbone(pinned)
    path.unlink()
    with pytest.raises(UserError, match="is no file"):
        backbones.build_backbone(pinned)


def test_a_backbone_goes_to_other_processes_and_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(trained().state_dict(), tmp_path / "w.pth")
    monkeypatch.chdir(tmp_path)
    pinned = backbones.verify(replace(backbones.find(TINY, checkpoint=Path("w.pth")), options=SMALL, size=32))
    monkeypatch.chdir(Path(__file__).parent)
    copy = pickle.loads(pickle.dumps(pinned))
    assert copy == pinned and hash(copy) == hash(pinned) and copy.weights == pinned.weights
    first = backbones.build_backbone(copy)
    with torch.no_grad():
        first.norm.weight.zero_()
    assert backbones.weights_hash(backbones.build_backbone(copy).state_dict()) == pinned.weights


def test_normalisation_of_a_file_is_that_of_the_tag_or_must_be_said(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    path.touch()
    assert backbones.find(TINY, checkpoint=path).mean == (0.5, 0.5, 0.5)
    assert backbones.find("vit_small_patch16_224.dino", checkpoint=path).mean == (0.485, 0.456, 0.406)
    assert backbones.find("vit_small_patch16_224.dino", checkpoint=path).name == "vit_small_patch16_224.dino:w.pth"
    bare = backbones.find("vit_small_patch16_224", checkpoint=path, normalise="none")
    assert bare.name == "vit_small_patch16_224:w.pth" and bare.mean == (0, 0, 0)
    assert backbones.find(NAME, checkpoint=path).options == backbones.find(NAME).options


# --- timm's cache and the network --------------------------------------------------------------------------------


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, and no way out."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    loading._read.cache_clear()
    folder = tmp_path / "hub" / f"models--timm--{TAGGED}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    (folder / "snapshots" / ("0" * 40)).mkdir(parents=True)
    return folder / "snapshots" / ("0" * 40)


@pytest.fixture(scope="module")
def published() -> dict[str, Tensor]:
    with torch.random.fork_rng(devices=[]):
        return {name: t.contiguous() for name, t in timm.create_model(TAGGED.split(".")[0]).state_dict().items()}


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_cached_weights_need_no_network(offline: Path, published: dict[str, Tensor], file: str) -> None:
    (save_file if file.endswith("safetensors") else torch.save)(published, offline / file)
    before = torch.get_rng_state()
    pinned = backbones.verify(TAGGED)
    assert torch.equal(torch.get_rng_state(), before)
    assert pinned.name == TAGGED and pinned.weights == backbones.weights_hash(published)
    assert backbones.verify(backbones.find(TAGGED, checkpoint=offline / file)).weights == pinned.weights
    created = backbones.build_backbone(TAGGED)
    assert backbones.weights_hash(created.state_dict()) == pinned.weights
    assert created(torch.zeros(1, 3, 160, 160)).shape == (1, created.num_features)
    larger = backbones.build_backbone(backbones.find(TAGGED, size=192)).state_dict()
    overlay = {"file": str(offline / file)}
    timms = timm.create_model(TAGGED, pretrained=True, pretrained_cfg_overlay=overlay, img_size=192)
    assert backbones.weights_hash(larger) == backbones.weights_hash(timms.state_dict())


def test_damaged_cached_weights_are_refused(offline: Path, published: dict[str, Tensor]) -> None:
    save_file({name: t for name, t in published.items() if name != "norm.bias"}, offline / "model.safetensors")
    with pytest.raises(
        UserError, match=f"'{TAGGED}' in '.*model.safetensors' are damaged .*norm.bias.*remove the file"
    ):
        backbones.verify(TAGGED)
    bad = published | {"norm.bias": torch.full_like(published["norm.bias"], torch.nan)}
    save_file(bad, offline / "model.safetensors")
    with pytest.raises(UserError, match="are damaged .'norm.bias' holds numbers that are not finite"):
        backbones.verify(TAGGED)
    (offline / "model.safetensors").write_bytes(b"0" * 100)
    with pytest.raises(UserError, match="are damaged"):
        backbones.verify(TAGGED)


def test_weights_that_are_not_here_offline(offline: Path) -> None:
    with pytest.raises(UserError, match="not on this machine.*HF_HUB_OFFLINE is set") as refused:
        backbones.verify("vit_base_patch16_224.dino")
    message = str(refused.value)
    assert "timm/vit_base_patch16_224.dino" in message and str(offline.parents[2]) in message
    assert "model.safetensors" in message and "--checkpoint FILE" in message and "\n" not in message


def test_weights_that_lie_outside_the_hub_without_a_network(offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*arguments: Any, **options: Any) -> str:
        raise OSError("look it up elsewhere") from ConnectionError("Name or service\n not known")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_url", unreachable)
    huge = backbones.find("vit_huge_patch14_gap_224.in1k_ijepa")
    with pytest.raises(UserError, match=r"\(Name or service not known.*get https://dl.fbai.*/ijepa/"):
        backbones.verify(replace(huge, options={"depth": 1}))


# --- in experiments ----------------------------------------------------------------------------------------------


def test_plans_record_name_weights_and_normalisation(tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    vit = backbones.build_backbone(NAME)
    save_file(vit.state_dict(), path)
    spec = plan.RunSpec(method=registry.find("simplecil"))
    (embedded,) = plan.plan([spec])
    assert (embedded.experiment.backbone, embedded.experiment.weights) == (NAME, backbones.find(NAME).weights)
    (own,) = plan.plan([replace(spec, checkpoint=path, normalise="none")])
    assert own.experiment.backbone == f"{NAME}:mine.safetensors"
    assert own.experiment.weights == embedded.experiment.weights
    assert own.experiment.transforms.mean == (0,) and own.experiment.transforms.std == (1,)
    assert own.experiment.key != embedded.experiment.key
    assert backbones.weights_hash(backbones.build_backbone(own.backbone).state_dict()) == own.experiment.weights
    (random,) = plan.plan([replace(spec, backbone=TINY, pretrained=False)])
    assert random.experiment.backbone == TINY and random.backbone.weights == random.experiment.weights != ""
    assert random.experiment.transforms.size == 224


def test_the_command_line_lists_tags_and_refuses_others(
    cl_bench: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    listed = cl_bench("ls", "backbones").out
    assert NAME in listed and "--checkpoint" in listed and "--pretrained no" in listed
    for name in backbones.VIT_B16:
        assert name in listed.split()
    assert "0.485" in cl_bench("show", "vit_base_patch16_224.dino").out
    for options, sentence in {
        ("--pretrained", "maybe"): "--pretrained 'maybe' is unknown; expected yes or no",
        ("--normalise", "mean"): "--normalise 'mean' is unknown",
        ("--checkpoint", "nowhere.pth"): "--checkpoint 'nowhere.pth' is no file",
        ("--backbone", "vit_base_patch16_224"): "--pretrained no",
        ("--backbone", TINY, "--pretrained", "no", "--checkpoint", "w.pth"): "leave one of them out",
    }.items():
        refused = cl_bench("run", "--methods", "simplecil", *options)
        assert refused.code == 2 and sentence in refused.err and refused.err.count("\n") == 1, refused
