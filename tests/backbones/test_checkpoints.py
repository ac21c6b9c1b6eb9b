"""Checkpoint files of the field: containers, names of other codes, position grids; what is refused names itself."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed
from torch import Tensor
from torch.nn.functional import conv2d, gelu, layer_norm, linear, scaled_dot_product_attention
from torchvision.models import VisionTransformer as TorchvisionViT

from cl_bench import backbones
from cl_bench.errors import UserError
from tests.helpers.command import Cli, assert_refused
from tests.helpers.weights import SMALL, TINY, small, trained

State = dict[str, Any]
NAME = "vit_tiny_patch4_32.tinyimagenet156"
FC1 = "blocks.1.mlp.fc1.weight"


def state(seed: int = 0, **options: Any) -> State:
    """Weights of the small ViT without head."""
    return {key: t.detach() for key, t in trained(seed, num_classes=0, **options).state_dict().items()}


def under(prefix: str, tensors: State) -> State:
    return {prefix + key: tensor for key, tensor in tensors.items()}


def write(folder: Path, content: Any, name: str = "own.pth") -> Path:
    torch.save(content, folder / name)
    return folder / name


def refused(path: Path, size: int = 32, network: str = "", **options: Any) -> str:
    """The one sentence with which a file is refused."""
    with pytest.raises(UserError) as error:
        backbones.verify(small(path, size, network, **options))
    assert str(error.value).startswith(f"--checkpoint '{path}'") and "\n" not in str(error.value)
    return str(error.value)


# --- containers -------------------------------------------------------------------------------------------------


def chunked(tensors: State) -> State:
    """As DINOv2 is trained: blocks.CHUNK.NUMBER."""
    return {key.replace("blocks.", "blocks.0.") if ".0." in key else key.replace("blocks.", "blocks.1."): tensor
            for key, tensor in tensors.items()}  # fmt: skip


X = torch.ones(3, 4)
ONE: dict[str, tuple[Callable[[State], Any], str]] = {
    "DDP": (lambda s: under("module.", s), ""),
    "compiled DDP": (lambda s: {"state_dict": under("module._orig_mod.", s)}, ""),
    "Lightning": (
        lambda s: {"state_dict": under("model.", s) | {"criterion.weight": X}, "optimizer_states": [{}], "epoch": 3},
        "left out criterion",
    ),
    "PILOT": (
        lambda s: {"tasks": 3, "model_state_dict": under("convnet.", s) | {"fc.weight": X}},
        "'model_state_dict.c",
    ),
    "PILOT, newer": (lambda s: {"model_state_dict": under("backbone.", s) | {"fc.sigma": X}}, "left out fc"),
    "DINO's teacher": (
        lambda s: {"teacher": under("backbone.", s), "args": argparse.Namespace(arch="vit")},
        "teacher.",
    ),
    "iBOT's student": (
        lambda s: {"student": under("module.backbone.", s | {"masked_embed": X}) | {"module.head.mlp.0.weight": X}},
        "of 'student.module.backbone'; left out head, masked_embed",
    ),
    "DINOv2's teacher": (
        lambda s: {"teacher": under("backbone.", chunked(s) | {"mask_token": X}) | {"dino_head.last_layer.weight": X}},
        "left out dino_head, mask_token",
    ),
    "MoCo v3": (
        lambda s: {
            "state_dict": under("module.base_encoder.", s | {"head.0.weight": X}) | {"module.predictor.0.weight": X}
        },
        "left out head, predictor",
    ),
    "MAE": (
        lambda s: {"model": s | {"mask_token": X, "decoder_embed.weight": X, "decoder_blocks.0.norm1.bias": X}},
        "left out decoder_blocks, decoder_embed, mask_token",
    ),
    "SimMIM": (
        lambda s: {"model": under("encoder.", s | {"mask_token": X}) | {"decoder.0.weight": X}},
        "left out decoder",
    ),
    "I-JEPA": (lambda s: {"encoder": under("module.", s), "predictor": {"module.predictor_pos_embed": X}}, ""),
    "open_clip with timm": (lambda s: under("visual.trunk.", s) | {"logit_scale": X}, "left out logit_scale"),
    "DeiT III": (lambda s: {"model": s, "optimizer": {"state": {0: {"exp_avg": X}}}}, ""),
    "EMA alone": (lambda s: {"ema": {"decay": 0.99, "shadow": s}}, "of 'ema.shadow'"),
}


@pytest.mark.parametrize("kind", ONE)
def test_the_only_network_in_a_container_is_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    wrap, note = ONE[kind]
    path = write(tmp_path, wrap(state()))
    assert backbones.verify(small(path)).weights == backbones.weights_hash(state())
    said = capsys.readouterr().err
    assert note in said and said.count("\n") <= 1


TWO: dict[str, tuple[Callable[[State, State], Any], tuple[str, str]]] = {
    "DINO": (
        lambda a, b: {"student": under("module.backbone.", a), "teacher": under("backbone.", b)},
        ("student", "teacher"),
    ),
    "model and EMA": (lambda a, b: {"model": a, "model_ema": b}, ("model", "model_ema")),
    "timm": (lambda a, b: {"state_dict": a, "state_dict_ema": under("module.", b)}, ("state_dict", "state_dict_ema")),
    "MoCo v3": (
        lambda a, b: {"state_dict": under("module.base_encoder.", a) | under("module.momentum_encoder.", b)},
        ("base_encoder", "momentum_encoder"),
    ),
    "PILOT's ensembles": (
        lambda a, b: {"model_state_dict": under("convnets.0.", a) | under("convnets.1.", b)},
        ("model_state_dict.convnets.0", "model_state_dict.convnets.1"),
    ),
    "one beside the other": (lambda a, b: a | under("ema.", b), (".", "ema")),
}


@pytest.mark.parametrize("kind", TWO)
def test_one_of_several_networks_is_chosen_by_its_name(tmp_path: Path, kind: str) -> None:
    wrap, names = TWO[kind]
    pair = state(0), state(1)
    path = write(tmp_path, wrap(*pair))
    assert f"2 networks: {', '.join(names)}; choose one, such as --checkpoint {path}::{names[0]}" in refused(path)
    for name, tensors in zip(names, pair, strict=True):
        assert backbones.verify(small(path, network=name)).weights == backbones.weights_hash(tensors)
    assert f"holds no network 'other'; expected one of: {', '.join(names)}" in refused(path, network="other")


def test_a_choice_is_part_of_the_name_in_records(tmp_path: Path) -> None:
    path = write(tmp_path, {"student": under("module.", state(0)), "teacher": state(1)})
    found = backbones.find(TINY, checkpoint=Path(f"{path}::teacher"))
    assert (found.name, found.checkpoint, found.network) == (f"{TINY}:own.pth::teacher", path, "teacher")
    plain = backbones.find(TINY, checkpoint=path)
    assert (plain.name, plain.network) == (f"{TINY}:own.pth", "")
    assert "holds no network 'teacher'; leave out '::teacher'" in refused(write(tmp_path, state()), network="teacher")
    odd = write(tmp_path, state(), "a::b.pth")
    assert backbones.find(TINY, checkpoint=odd).checkpoint == odd
    for missing in ("none.pth", "n" * 5000):
        with pytest.raises(UserError, match=f"{missing}' is no file"):
            backbones.find(TINY, checkpoint=tmp_path / f"{missing}::teacher")
    np.savez(tmp_path / "a.npz", x=np.ones(1))
    assert "holds one network; leave out '::teacher'" in refused(tmp_path / "a.npz", network="teacher")


def test_runs_take_a_network_out_of_a_file(cl_bench: Cli, tmp_path: Path) -> None:
    own = dict(backbones.weights(backbones.find(NAME)))
    path = write(tmp_path, {"student": under("module.backbone.", own), "teacher": under("backbone.", own)}, "dino.pth")
    run = (
        "run",
        "--methods",
        "simplecil",
        "--benchmark",
        "icons-tune",
        "--dry-run",
        "--backbone",
        NAME,
        "--checkpoint",
    )
    assert_refused(cl_bench(*run, str(path)), "2 networks: student, teacher", f"--checkpoint {path}::student")
    chosen = cl_bench(*run, f"{path}::teacher")
    assert chosen.code == 0 and "1 to do" in chosen.out
    assert chosen.err == f"weights from 'dino.pth': {len(own)} tensors of 'teacher.backbone'\n"


# --- names of other codes -----------------------------------------------------------------------------------------


def images() -> Tensor:
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(7))


def features(path: Path, **options: Any) -> Tensor:
    """What the backbone from this file makes of the images."""
    with torch.no_grad():
        return backbones.build_backbone(small(path, **options)).eval()(images())


def test_weights_of_torchvision_give_its_features(tmp_path: Path) -> None:
    vit = TorchvisionViT(image_size=32, patch_size=8, num_layers=2, num_heads=3, hidden_dim=24, mlp_dim=96).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
        vit.heads = torch.nn.Sequential()  # type: ignore[assignment]
        expected = vit(images())
    older = {
        key.replace("mlp.0", "mlp.linear_1").replace("mlp.3", "mlp.linear_2"): t for key, t in vit.state_dict().items()
    }
    for content in (vit.state_dict() | {"heads.head.weight": X}, {"model": older}):
        assert torch.allclose(features(write(tmp_path, content)), expected, atol=1e-5)


def hugging_face(separate: State) -> State:
    """`ViTModel`'s names for timm's."""
    found: State = {}
    names = {
        "patch_embed.proj": "embeddings.patch_embeddings.projection", "pos_embed": "embeddings.position_embeddings",
        "cls_token": "embeddings.cls_token", "attn.proj": "attention.output.dense", "norm1": "layernorm_before",
        "norm2": "layernorm_after", "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense",
        "blocks.": "encoder.layer.",
    }  # fmt: skip
    for key, tensor in separate.items():
        for ours, theirs in names.items():
            key = key.replace(ours, theirs)
        if key.startswith("norm."):
            key = key.replace("norm.", "layernorm.")
        if "attn.qkv" not in key:
            found[key] = tensor
            continue
        for part, rows in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
            found[key.replace("attn.qkv", f"attention.attention.{part}")] = rows
    return found


def hugging_face_features(w: State, heads: int = 3) -> Tensor:
    """The class token of `ViTModel`, from its documented names, in plain operations."""

    def dense(x: Tensor, name: str) -> Tensor:
        return linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def norm(x: Tensor, name: str) -> Tensor:
        return layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], 1e-12)

    patches = conv2d(images(), *(w[f"embeddings.patch_embeddings.projection.{kind}"] for kind in ("weight", "bias")), 8)
    x = torch.cat([w["embeddings.cls_token"].expand(4, -1, -1), patches.flatten(2).transpose(1, 2)], 1)
    x = x + w["embeddings.position_embeddings"]
    for i in range(2):
        layer = f"encoder.layer.{i}"
        y = norm(x, f"{layer}.layernorm_before")
        qkv = [dense(y, f"{layer}.attention.attention.{part}") for part in ("query", "key", "value")]
        q, k, v = (t.unflatten(2, (heads, -1)).transpose(1, 2) for t in qkv)
        context = scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + dense(context, f"{layer}.attention.output.dense")
        y = gelu(dense(norm(x, f"{layer}.layernorm_after"), f"{layer}.intermediate.dense"))
        x = x + dense(y, f"{layer}.output.dense")
    return norm(x, "layernorm")[:, 0]


@pytest.mark.parametrize("root", ["", "vit."])
def test_weights_of_hugging_face_give_its_features(tmp_path: Path, root: str) -> None:
    theirs = hugging_face({key: tensor * 0.4 for key, tensor in state().items()})
    more = {"pooler.dense.weight": X} if not root else {"classifier.weight": X}
    save_file(under(root, theirs) | more, tmp_path / "model.safetensors")
    found = features(tmp_path / "model.safetensors")
    assert torch.allclose(found, hugging_face_features(theirs), atol=1e-4)
    del theirs["encoder.layer.1.attention.attention.key.weight"]
    save_file(under(root, theirs), tmp_path / "cut.safetensors")
    assert "'blocks.1.attn.qkv.weight' is missing" in refused(tmp_path / "cut.safetensors")


def test_hugging_faces_names_of_dinov2_and_deit(tmp_path: Path) -> None:
    own = state(init_values=0.1)
    theirs = hugging_face(own)
    names = {
        "layernorm_before": "norm1", "layernorm_after": "norm2", "intermediate.dense": "mlp.fc1",
        "1.output.dense": "1.mlp.fc2", "0.output.dense": "0.mlp.fc2", "ls1.gamma": "layer_scale1.lambda1",
        "ls2.gamma": "layer_scale2.lambda1",
    }  # fmt: skip
    dinov2: State = {"embeddings.mask_token": X}
    for key, tensor in theirs.items():
        for old, new in names.items():
            key = key.replace(old, new)
        dinov2[f"dinov2.{key}"] = tensor
    path = write(tmp_path, dinov2)
    assert backbones.verify(small(path, init_values=0.1)).weights == backbones.weights_hash(own)

    distilled = {**SMALL, "num_classes": 5}
    deit = timm.create_model("deit_tiny_distilled_patch16_224", **distilled).state_dict()
    kept = {key: tensor for key, tensor in deit.items() if not key.startswith("head")}
    path = write(tmp_path, {key.replace("dist_token", "embeddings.distillation_token"): t
                            for key, t in hugging_face(kept).items()})  # fmt: skip
    backbone = replace(small(path), architecture="deit_tiny_distilled_patch16_224")
    assert backbones.verify(backbone).weights == backbones.weights_hash(kept)
    assert backbones.verify(replace(backbone, checkpoint=write(tmp_path, {"model": deit}))).weights
    assert "has 18 positions, expected a square grid of them and 1 for other tokens" in refused(path)


def test_weights_of_clip_as_hugging_face_names_them(tmp_path: Path) -> None:
    own = state(pre_norm=True)
    own.pop("patch_embed.proj.bias", None)
    theirs = hugging_face(own)
    names = {
        "encoder.layer.": "encoder.layers.", "attention.attention.query": "self_attn.q_proj",
        "attention.attention.key": "self_attn.k_proj", "attention.attention.value": "self_attn.v_proj",
        "attention.output.dense": "self_attn.out_proj", "intermediate.dense": "mlp.fc1", "output.dense": "mlp.fc2",
        "layernorm_before": "layer_norm1", "layernorm_after": "layer_norm2", "norm_pre": "pre_layrnorm",
        "embeddings.patch_embeddings.projection": "embeddings.patch_embedding",
        "embeddings.position_embeddings": "embeddings.position_embedding.weight",
        "embeddings.cls_token": "embeddings.class_embedding",
    }  # fmt: skip
    clip: State = {"text_model.embeddings.token_embedding.weight": X, "logit_scale": torch.ones(())}
    for key, tensor in theirs.items():
        key = key.replace("layernorm.", "post_layernorm.") if key.startswith("layernorm.") else key
        for old, new in names.items():
            key = key.replace(old, new)
        clip[f"vision_model.{key}"] = tensor.reshape(-1) if "class_emb" in key else tensor.squeeze(0)
    path = write(tmp_path, clip)
    assert backbones.verify(small(path, pre_norm=True)).weights == backbones.weights_hash(own)
    assert "'vision_model.pre_layrnorm.weight' is a norm before the first block" in refused(path)


def test_register_tokens_and_networks_without_class_token(tmp_path: Path) -> None:
    options = {"reg_tokens": 2, "no_embed_class": True}
    own = state(**options)
    first = torch.randn(1, 1, 24)
    dinov2 = own | {"register_tokens": own["reg_token"], "pos_embed": torch.cat([first, own["pos_embed"]], 1)}
    dinov2["cls_token"] = own["cls_token"] - first
    del dinov2["reg_token"]
    path = write(tmp_path, {"model": dinov2 | {"mask_token": X}})
    created = backbones.build_backbone(small(path, **options)).state_dict()
    assert created.keys() == own.keys() and all(torch.allclose(created[key], own[key], atol=1e-6) for key in own)
    free = {"class_token": False, "global_pool": "avg", "fc_norm": False}
    assert backbones.verify(small(write(tmp_path, state(**free)), **free)).weights == backbones.weights_hash(
        state(**free)
    )
    assert "'pos_embed' has 16 positions, expected a square" in refused(tmp_path / "own.pth")


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"blocks.0.attn.relative_position_bias_table": X}, "another network: 'blocks.0.attn.relative.*in BEiT"),
        ({"rel_pos_bias.relative_position_bias_table": X}, "of another network: 'rel_pos_bias.*of a plain ViT"),
        ({"norm_pre.weight": X, "norm_pre.bias": X}, "'norm_pre.weight' is a norm before .*in CLIP's.*--backbone"),
        ({"fc_norm.weight": X, "fc_norm.bias": X}, "'fc_norm.weight' normalises the mean.*before fine-tuning"),
        ({"blocks.0.adapter.down.weight": X}, "'blocks.0.adapter.down.weight' is unexpected"),
        ({"prompt": X}, "'prompt' is unexpected"),
        ({"\x1b[2Jx": X}, r"'\\x1b\[2Jx' is unexpected"),
    ],
)
def test_other_networks_are_refused_by_what_tells_them_apart(tmp_path: Path, more: State, sentence: str) -> None:
    path = write(tmp_path, {"model": state() | more})
    with pytest.raises(UserError, match=sentence):
        backbones.verify(small(path))


# --- numbers ------------------------------------------------------------------------------------------------------


def with_one(value: float, dtype: torch.dtype = torch.float32) -> Tensor:
    tensor = state()[FC1].to(dtype)
    tensor[3, 5] = value
    return tensor


with warnings.catch_warnings():
    # Of some kinds of tensors torch itself warns.
    warnings.simplefilter("ignore")
    BAD: dict[str, tuple[Tensor, str]] = {
        "NaN": (with_one(float("nan")), "holds NaN"),
        "Inf": (with_one(float("-inf")), "holds Inf"),
        "half NaN": (with_one(float("nan"), torch.float16), "holds NaN"),
        "too large": (with_one(1e300, torch.float64), "is beyond fp32"),
        "int8": (torch.ones(96, 24, dtype=torch.int8), "is of type int8"),
        "uint8": (torch.ones(96, 24, dtype=torch.uint8), "is of type uint8"),
        "bool": (torch.ones(96, 24, dtype=torch.bool), "is of type bool"),
        "complex": (torch.ones(96, 24, dtype=torch.complex64), "is of type complex64"),
        "fp8": (torch.ones(96, 24).to(torch.float8_e4m3fn), "is of type float8_e4m3fn"),
        "sparse": (torch.ones(96, 24).to_sparse(), "is sparse_coo, not a dense tensor"),
        "CSR": (torch.ones(96, 24).to_sparse_csr(), "is sparse_csr, not a dense tensor"),
        "meta": (torch.ones(96, 24, device="meta"), "is on torch's meta device"),
        "quantised": (torch.quantize_per_tensor(torch.ones(96, 24), 0.1, 0, torch.qint8), r"is quantised (qint8)"),
    }


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", BAD)
def test_weights_that_are_no_finite_numbers_are_named(tmp_path: Path, kind: str) -> None:
    tensor, what = BAD[kind]
    named = f"cannot be used: '{FC1}' {what}"
    content = state() | {FC1: tensor}
    assert named in refused(write(tmp_path, content))
    assert f"'backbone.{FC1}' {what}" in refused(write(tmp_path, {"teacher": under("backbone.", content)}))
    if kind not in ("sparse", "CSR", "meta", "quantised"):
        save_file(content, tmp_path / "own.safetensors")
        assert named in refused(tmp_path / "own.safetensors")
    # What is left out may hold anything.
    beside = {"model": state() | {"head.weight": tensor}, "optimizer": {"exp_avg": tensor}}
    assert backbones.verify(small(write(tmp_path, beside))).weights == backbones.weights_hash(state())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_floats_of_other_lengths_are_converted(tmp_path: Path, dtype: torch.dtype) -> None:
    rounded = {key: tensor.to(dtype) for key, tensor in state().items()}
    save_file(rounded, tmp_path / "own.safetensors")
    for path in (write(tmp_path, rounded), tmp_path / "own.safetensors"):
        created = backbones.build_backbone(small(path)).state_dict()
        assert all(t.dtype == torch.float32 and torch.equal(t, rounded[key].float()) for key, t in created.items())


class Code:
    """An object of this test's own."""


def test_code_in_a_file_is_never_run_and_named(tmp_path: Path) -> None:
    path = write(tmp_path, {"model": state(), "hook": Code()})
    assert "an object of 'tests.backbones.test_checkpoints.Code'" in refused(path)
    assert "save only its state dict" in refused(path)


def test_files_that_are_called_otherwise(tmp_path: Path) -> None:
    save_file(state(), tmp_path / "model.bin")
    assert backbones.verify(small(tmp_path / "model.bin")).weights == backbones.weights_hash(state())
    (tmp_path / "cut.pth").write_bytes(write(tmp_path, state()).read_bytes()[:5000])
    assert refused(tmp_path / "cut.pth").count("\n") == 0
    (tmp_path / "text.pth").write_text("version https://git-lfs.github.com/spec/v1")
    assert "torch did not write it, or it was cut off" in refused(tmp_path / "text.pth")


# --- position grids -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"class_token": False, "global_pool": "avg", "fc_norm": False},
        {"reg_tokens": 4},
        {"reg_tokens": 4, "no_embed_class": True},
    ],
)
def test_any_square_position_grid_is_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: dict[str, Any]
) -> None:
    # The architecture has 4 x 4 patches, the file 6 x 6.
    own = state(img_size=48, **options)
    path = write(tmp_path, own)
    assert backbones.verify(small(path, 48, **options)).weights == backbones.weights_hash(own)
    assert capsys.readouterr().err == ""
    for size, side in ((32, 4), (64, 8)):
        found = backbones.build_backbone(backbones.verify(small(path, size, **options))).pos_embed
        tokens = own["pos_embed"].shape[1] - 36
        expected = resample_abs_pos_embed(own["pos_embed"], new_size=[side, side], num_prefix_tokens=tokens)
        assert torch.equal(found, expected)
        said = f"weights from 'own.pth': position grid resampled from 6 x 6 to {side} x {side}\n"
        assert capsys.readouterr().err == said
    for wrong in (0, tokens, 36 + tokens + 1):
        path = write(tmp_path, own | {"pos_embed": torch.ones(1, wrong, 24)})
        assert f"'pos_embed' has {wrong} positions, expected a square grid of them" in refused(path, **options)


def test_a_grid_of_the_size_asked_for_is_not_resampled_twice(tmp_path: Path) -> None:
    backbone = backbones.find("vit_small_patch14_dinov2.lvd142m", checkpoint=write(tmp_path, {}), size=112)
    small_grid = {**SMALL, "img_size": 518, "patch_size": 14}
    own = state(**{**small_grid, "img_size": 112})
    path = write(tmp_path, own)
    assert backbone.size == 112 and own["pos_embed"].shape[1] == 65
    assert torch.equal(backbones.build_backbone(small(path, 112, **small_grid)).pos_embed, own["pos_embed"])
