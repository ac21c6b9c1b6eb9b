"""The forward pass of all methods: what can be added to it, precision, and how often it is compiled."""

from __future__ import annotations

import copy
import functools
import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from cl_bench import streams
from cl_bench.contract.method import Method
from cl_bench.experiment import ImageTransforms, Limits
from cl_bench.methods.coda import CODAPrompt
from cl_bench.methods.inflora import InfLoRA
from cl_bench.methods.sdlora import SDLoRA
from cl_bench.models.heads import Classifier
from cl_bench.models.legacy import attention_inputs, cls_features, tokens
from cl_bench.models.vit import Execution, ViT
from cl_bench.models.vit_pass import Additions, compiled_pass, map_tensors
from cl_bench.running.runner import flops_of
from cl_bench.streams.scenarios import build
from cl_bench.studies.audit.numbers import hidden_numbers
from cl_bench.training.strategy import ContinualStrategy

BF16 = Execution("bf16")
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "plain": {},
    "scaled layers, normed queries and keys": {"init_values": 0.3, "qk_norm": True},
    "register tokens": {"reg_tokens": 2},
    "mean of the patches": {"global_pool": "avg"},
    "no class token": {"global_pool": "avg", "class_token": False},
    "attention pooling": {"global_pool": "map"},
    "norm before the blocks": {"pre_norm": True},
    "no biases": {"qkv_bias": False},
}


def vit(kind: type[VisionTransformer] = VisionTransformer, **options: Any) -> VisionTransformer:
    torch.manual_seed(0)
    sizes = {"img_size": 16, "patch_size": 4, "in_chans": 3, "embed_dim": 48, "depth": 3, "num_heads": 3}
    model = kind(**(sizes | options), num_classes=0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    return model.eval()


def images(count: int = 4) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def alike(one: Tensor, other: Tensor) -> float:
    """The least cosine similarity of rows."""
    return float(torch.nn.functional.cosine_similarity(one.detach().flatten(1), other.detach().flatten(1)).min())


class Mixed(nn.Module):
    """A function of all tokens of an image, with a weight."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        assert x.dtype == torch.float32
        return x.mean(dim=1, keepdim=True).tanh() * (x @ self.weight)


def low_rank(x: Tensor, down: Tensor, up: Tensor, gate: Tensor) -> Additions:
    """A gated low-rank branch to q and v, with the gated class token as its reading."""
    assert x.dtype == down.dtype
    inner = x @ down.T * gate[:, None]
    return inner @ up[0], None, inner @ up[1], gate * (x[:, 0] @ down.T)


def put_in() -> dict[str, dict[str, Any]]:
    """Everything that can be added to a pass."""
    random = torch.Generator().manual_seed(2)

    def draw(*shape: int) -> Tensor:
        return (0.3 * torch.randn(*shape, generator=random)).requires_grad_(True)

    return {
        "nothing": {},
        "weights": {"weights": {"blocks.2.attn.qkv.weight": draw(144, 48), "blocks.0.mlp.fc1.weight": draw(192, 48)}},
        "prefixes": {"prefixes": {number: (draw(4, 2, 48), draw(4, 2, 48)) for number in (0, 2)}},
        "bottlenecks": {"parallel": {number: (draw(8, 48), draw(8), draw(48, 8), draw(48)) for number in (1, 2)}},
        "branches": {
            "qkv": {
                n: (low_rank, (draw(2, 48), draw(2, 2, 48)), ((1 + draw(4, 2)).detach().requires_grad_(),))
                for n in (0, 2)
            }
        },
        "functions": {"parallel": {1: Mixed(draw(48, 48).detach()), 2: Mixed(draw(48, 48).detach())}},
    }


def leaves_of(into: dict[str, Any]) -> list[Tensor]:
    """Tensors that receive gradients."""
    found = [one for one in torch.utils._pytree.tree_leaves(into) if isinstance(one, Tensor | nn.Module)]
    return [leaf for one in found for leaf in (one.parameters() if isinstance(one, nn.Module) else [one])]


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("kind", list(put_in()))
def test_bf16_is_the_same_pass(name: str, kind: str) -> None:
    """Features, and gradients of what is added, are fp32 and within the rounding of bf16."""
    backbone, into = vit(**ARCHITECTURES[name]).requires_grad_(False), put_in()[kind]
    leaves = leaves_of(into)
    found = []
    for execution in (Execution(), BF16):
        features = ViT(backbone, execution).features(images(), **into)
        assert features.dtype == torch.float32
        if leaves:
            found.append((features, torch.autograd.grad(features.square().sum(), leaves)))
        else:
            found.append((features, ()))
    (exact, gradients), (rounded, rounded_gradients) = found
    assert alike(exact, rounded) > 0.999
    for one, other in zip(gradients, rounded_gradients, strict=True):
        assert other.dtype == torch.float32
        assert alike(one.flatten()[None], other.flatten()[None]) > 0.99


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_without_anything_put_in_fp32_is_timms_own_pass(name: str) -> None:
    backbone = vit(**ARCHITECTURES[name])
    assert torch.equal(ViT(backbone).features(images()), backbone(images()))


@pytest.mark.parametrize("kind", ["nothing", "bottlenecks", "branches", "functions"])
def test_the_last_block_of_one_token_gives_what_all_tokens_give(kind: str) -> None:
    network, into = ViT(vit(), BF16), put_in()[kind]
    assert alike(network.features(images(), **into), network.tokens(images(), **into)[:, 0]) > 0.9999


@pytest.mark.parametrize("name", [*ARCHITECTURES, "distilled"])
@pytest.mark.parametrize("kind", ["nothing", "weights", "prefixes", "bottlenecks", "branches"])
def test_the_reduced_last_block_is_exact(name: str, kind: str) -> None:
    """In fp64, features and gradients are those of the whole pass to rounding, with fewer operations.

    Only features of one token can be reduced.
    """
    backbone = vit(kind=VisionTransformerDistilled) if name == "distilled" else vit(**ARCHITECTURES[name])
    backbone = backbone.double().requires_grad_(False)
    into = map_tensors(put_in()[kind], lambda leaf: leaf.detach().double().requires_grad_(True))
    inputs, leaves = images().double().requires_grad_(True), leaves_of(into)
    found, operations = [], []
    for whole in (True, False):
        network = ViT(backbone, Execution(whole=whole))
        features = network.features(inputs, **into)
        gradients = torch.autograd.grad(features.square().sum(), [inputs, *leaves], allow_unused=True)
        found.append((features, *gradients))
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network.features(inputs, **into)
        operations.append(counter.get_total_flops())
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-11, atol=1e-11)
    of_one = name != "distilled" and ARCHITECTURES[name].get("global_pool", "token") == "token"
    assert (operations[1] < operations[0]) == of_one


@pytest.mark.parametrize("execution", [Execution(), Execution(whole=False), BF16], ids=["whole", "one token", "bf16"])
def test_a_branch_that_is_a_product_is_a_change_of_weights(execution: Execution) -> None:
    """In the last block too, of which one token's queries are computed; every image has a gate of its own."""
    backbone, number = vit().requires_grad_(False), 2
    _, (down, up), _ = put_in()["branches"]["qkv"][number]
    down, up = down.detach(), up.detach()
    change = torch.cat([(down.T @ up[0]).T, torch.zeros(48, 48), (down.T @ up[1]).T])
    network = ViT(backbone, execution)
    seen = network.attention_inputs(images())[number][:, 0]
    for factor in (1.0, -2.0):
        weights = {f"blocks.{number}.attn.qkv.weight": backbone.blocks[number].attn.qkv.weight + factor * change}
        expected = network.features(images(), weights=weights)
        qkv = {number: (low_rank, (down, up), (torch.full((4, 2), factor),))}
        found, readings = network.features_and_readings(images(), qkv=qkv)
        assert torch.equal(found, network.features(images(), qkv=qkv))
        assert alike(found, expected) > (0.999 if execution == BF16 else 0.999999)
        torch.testing.assert_close(readings[number], factor * seen @ down.T, rtol=1e-2, atol=2e-2)
    gates = torch.tensor([[0.0, 0.0]] * 2 + [[1.0, 1.0]] * 2)
    plain, gated = (network.features(images(), qkv=q) for q in ({}, {number: (low_rank, (down, up), (gates,))}))
    assert alike(plain[:2], gated[:2]) > 0.999
    assert not torch.allclose(plain[2:], gated[2:], rtol=0.05, atol=0.05)


def test_dropout_and_checkpointing_of_activations_are_left_to_timm() -> None:
    dropping = vit(attn_drop_rate=0.5).train()
    checkpointing = vit()
    checkpointing.set_grad_checkpointing()
    for backbone in (dropping, checkpointing):
        torch.manual_seed(3)
        found = ViT(backbone, Execution(whole=False)).features(images())
        torch.manual_seed(3)
        assert torch.equal(found, backbone(images()))


def test_attention_inputs_are_what_the_attention_sees() -> None:
    backbone, seen = vit(), []
    for block in backbone.blocks:
        block.attn.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    backbone(images())
    expected = list(seen)
    for one, other in zip(ViT(backbone).attention_inputs(images()), expected, strict=True):
        assert torch.equal(one, other)
    for one, other in zip(ViT(backbone, BF16).attention_inputs(images()), expected, strict=True):
        assert one.dtype == torch.float32 and alike(one, other) > 0.999


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("execution", [Execution(), BF16], ids=["fp32", "bf16"])
def test_an_early_exit_and_the_rest_of_a_pass(name: str, execution: Execution) -> None:
    backbone, stream = vit(**ARCHITECTURES[name]), []
    handle = backbone.blocks[1].register_forward_hook(lambda module, inputs, output: stream.append(output))
    whole = backbone(images())
    handle.remove()
    with torch.no_grad():
        exited = backbone.forward_head(backbone.norm(stream[0]), pre_logits=True)
    network, least = ViT(backbone, execution), 0.999 if execution == BF16 else 1 - 1e-6
    left = network.residual_stream(images(), range(2))
    assert left.dtype == torch.float32 and alike(left, stream[0]) > least
    assert alike(network.features(images(), blocks=range(2)), exited) > least
    assert alike(network.features(left, blocks=range(2, 3)), whole) > least
    changed = {"blocks.1.attn.qkv.weight": backbone.blocks[1].attn.qkv.weight.flip(0)}
    assert not torch.equal(network.residual_stream(images(), range(2), weights=changed), left)
    assert alike(network.features(left, blocks=range(2, 3), weights=changed), whole) > least


@pytest.mark.parametrize("kind", ["bottlenecks", "functions"])
def test_features_come_with_what_the_parallel_modules_see(kind: str) -> None:
    backbone, into, seen = vit().requires_grad_(False), put_in()[kind], []
    for number in (1, 2):
        backbone.blocks[number].norm2.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    features, inputs = ViT(backbone).features_and_inputs(images(), **into)
    assert list(inputs) == [1, 2] and all(map(torch.equal, inputs.values(), seen))
    assert torch.equal(features, ViT(backbone).features(images(), **into))
    # Gradients flow through both; what is seen in the first block depends on nothing that is trained.
    assert inputs[2].requires_grad and not inputs[1].requires_grad and features.requires_grad
    rounded, also = ViT(backbone, BF16).features_and_inputs(images(), **into)
    for one, other in ((features, rounded), (inputs[1], also[1]), (inputs[2], also[2])):
        assert other.dtype == torch.float32 and alike(one, other) > 0.999


def change_in_place(backbone: VisionTransformer) -> None:
    with torch.no_grad():
        backbone.blocks[1].mlp.fc1.weight.mul_(1.5)


def load(backbone: VisionTransformer) -> None:
    backbone.load_state_dict({name: 1.1 * tensor for name, tensor in backbone.state_dict().items()})


def replace(backbone: VisionTransformer) -> None:
    backbone.norm.weight = torch.nn.Parameter(2 * backbone.norm.weight.detach())


@pytest.mark.parametrize("change", [change_in_place, load, replace])
@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_changed_weights_are_rounded_anew(change: Callable[[Any], None], guard: Any) -> None:
    backbone = vit().requires_grad_(False)
    network = ViT(backbone, BF16)
    with guard():
        before = network.features(images())
    change(backbone)
    after = network.features(images())
    network.execution = Execution()
    assert alike(after, network.features(images())) > 0.999
    assert not torch.equal(before, after)


def test_training_goes_on_from_what_evaluation_has_seen() -> None:
    """Rounded copies made in inference mode can be used where gradients are taken."""
    network = ViT(vit().requires_grad_(False), BF16)
    with torch.inference_mode():
        network.features(images())
    prefix = torch.zeros(4, 2, 48, requires_grad=True)
    network.features(images(), prefixes={0: (prefix, prefix)}).sum().backward()
    assert prefix.grad is not None and prefix.grad.abs().sum() > 0


@torch.no_grad()
def test_weights_that_are_given_for_one_pass_only_are_rounded_in_every_pass() -> None:
    """Even if a new tensor gets the address of a deleted one."""
    model, name, found = Classifier(vit(), 5).eval(), "backbone.norm.weight", []
    for execution in (Execution(), BF16):
        model.set_execution(execution)
        found.append([functional_call(model, {name: torch.linspace(-1, 1, 48).roll(s)}, images()) for s in range(20)])
    for one, other in zip(*found, strict=True):
        assert alike(one, other) > 0.999


# --- who owns a pass -----------------------------------------------------------------------------------------------


def changed(model: Classifier) -> Tensor:
    """Features after the backbone has been changed in place."""
    change_in_place(model.backbone)
    return model.features(images())


@pytest.mark.parametrize("execution", [Execution(), BF16], ids=["fp32", "bf16"])
@torch.no_grad()
def test_a_copied_model_has_a_pass_of_its_own(execution: Execution) -> None:
    model = Classifier(vit(), 5).eval()
    model.set_execution(execution)
    before = model.features(images())
    copied = copy.deepcopy(model)
    assert copied.vit.backbone is copied.backbone and copied.vit.execution == execution
    assert torch.equal(copied.features(images()), before)
    assert torch.equal(cls_features(copied.backbone, images()), before)
    after = changed(copied)
    assert not torch.equal(after, before) and torch.equal(model.features(images()), before)
    assert torch.equal(changed(model), after)
    copied.set_execution(Execution(compiled=True))
    assert model.vit.execution == execution


@torch.no_grad()
def test_two_passes_of_one_backbone_are_set_apart() -> None:
    backbone = vit()
    rounded, plain = ViT(backbone, BF16), ViT(backbone)
    assert torch.equal(plain.features(images()), backbone(images()))
    assert not torch.equal(rounded.features(images()), backbone(images()))


@torch.no_grad()
def test_files_of_version_0_1_0_are_run_as_the_model_is() -> None:
    model = Classifier(vit(), 5).eval()
    backbone, exact = model.backbone, model.features(images())
    for execution in (BF16, Execution()):
        model.set_execution(execution)
        assert torch.equal(cls_features(backbone, images()), model.vit.features(images()))
        assert torch.equal(tokens(backbone, images()), model.vit.tokens(images()))
        for one, other in zip(attention_inputs(backbone, images()), model.vit.attention_inputs(images()), strict=True):
            assert torch.equal(one, other)
    model.set_execution(BF16)
    with model.vit.plainly():
        assert torch.equal(cls_features(backbone, images()), exact)
    assert not torch.equal(cls_features(backbone, images()), exact)
    assert torch.equal(cls_features(vit(), images()), exact)


@torch.no_grad()
def test_a_second_backbone_in_a_model_is_run_as_the_first() -> None:
    model = Classifier(vit(), 5).eval()
    model.teacher = copy.deepcopy(model.backbone)
    model.set_execution(BF16)
    assert torch.equal(cls_features(model.teacher, images()), model.features(images()))


def test_a_model_is_freed_when_nobody_uses_it() -> None:
    """A model that waited for the garbage collector would count in the peak memory of the next run."""
    model = Classifier(vit(), 5)
    model.set_execution(BF16)
    model(images())
    backbone = weakref.ref(model.backbone)
    gc.disable()
    try:
        del model
        assert backbone() is None
    finally:
        gc.enable()


# --- compiling ---------------------------------------------------------------------------------------------------


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], int]]:
    """Counts the graphs made so far; they are traced as usual but not turned into machine code."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    compiled_pass.cache_clear()
    torch._dynamo.reset()
    yield lambda: int(counters["stats"]["unique_graphs"])
    compiled_pass.cache_clear()
    torch._dynamo.reset()


def trained(method: Method, execution: Execution, seed: int, after: Callable[[], None] = lambda: None) -> Any:
    """A strategy that has learned three tasks with a small ViT, and its test stream."""
    views = ImageTransforms(size=32, crop_scale=(0.6, 1.0), mean=(0.5,), std=(0.5,))
    limits = Limits(tasks=3, train_per_class=3, test_per_class=2)
    stream = build(streams.find("icons-tune").source(), 10, f"permutation:{seed}", views, limits)
    backbone = vit(img_size=32, patch_size=8, in_chans=1, depth=2)
    strategy = ContinualStrategy(
        plugins=[method], backbone=backbone, num_classes=40, num_tasks=10, seed=seed, execution=execution
    )
    for experience in stream.train:
        strategy.train(experience)
        strategy.count_matrix(stream.test)
        after()
    return strategy, stream


@pytest.mark.parametrize(
    "method",
    [
        SDLoRA(rank=2, epochs=2, batch_size=8),
        InfLoRA(rank=2, epochs=2, batch_size=8),
        CODAPrompt(blocks=2, components=20, epochs=2, batch_size=8),
    ],
    ids=lambda method: type(method).__name__,
)
def test_a_run_is_compiled_once_whatever_grows(method: Method, graphs: Callable[[], int]) -> None:
    """Directions, prompts, classes, a last batch that is not full: nothing makes a graph after the second task, and the
    next run of the method makes none."""
    after: list[int] = []
    for seed in (0, 1):
        trained(method, Execution("bf16", compiled=True), seed, lambda: after.append(graphs()))
    assert after[0] > 0 and len(set(after[1:])) == 1


def test_subsets_of_a_batch_are_trained_on_without_compiling_again(graphs: Callable[[], int]) -> None:
    """Their gradients equal those of passes that run alone."""
    backbone = vit().requires_grad_(False)
    eager, compiled = ViT(backbone), ViT(backbone, Execution(compiled=True))
    made = [graphs()]
    for size in (8, 5, 8, 1, 3):
        into = {name: put_in()[name][name] for name in ("weights", "prefixes")}
        prefixes = into["prefixes"].items()
        into["prefixes"] = {n: tuple(part.repeat(2, 1, 1)[:size] for part in prefix) for n, prefix in prefixes}
        leaves = torch.utils._pytree.tree_leaves(into)
        found = []
        for network in (eager, compiled):
            features = network.features(images(size), **into)
            found.append([features, *torch.autograd.grad(features.square().sum(), leaves)])
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
        made.append(graphs())
    assert made[0] < made[1] and len(set(made[1:])) == 1


@pytest.mark.parametrize("kind", ["bottlenecks", "functions"])
def test_compiled_passes_give_what_parallel_modules_see(kind: str, graphs: Callable[[], int]) -> None:
    """For all images in training and in evaluation, including a last batch with the same graph."""
    backbone, into = vit().requires_grad_(False), put_in()[kind]
    eager, compiled = ViT(backbone), ViT(backbone, Execution(compiled=True))
    for training in (True, False):
        made = [graphs()]
        for size in (8, 3):
            with torch.set_grad_enabled(training):
                expected, found = (each.features_and_inputs(images(size), **into) for each in (eager, compiled))
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
            made.append(graphs())
        assert made[0] < made[1] == made[2]


def test_compiled_branches_get_rows_for_padding(graphs: Callable[[], int]) -> None:
    """A smaller batch takes the graph of the larger one, in training and in evaluation."""
    backbone, into = vit().requires_grad_(False), put_in()["branches"]["qkv"]
    eager, compiled = ViT(backbone), ViT(backbone, Execution(compiled=True))
    for training in (True, False):
        made = [graphs()]
        for size in (4, 3):
            qkv = {n: (function, shared, (rows[0][:size],)) for n, (function, shared, rows) in into.items()}
            with torch.set_grad_enabled(training):
                expected, found = (each.features_and_readings(images(size), qkv=qkv) for each in (eager, compiled))
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
            if training:
                leaves = leaves_of(into)
                gradients = [torch.autograd.grad(each[0].square().sum(), leaves) for each in (expected, found)]
                torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)
            made.append(graphs())
        assert made[0] < made[1] == made[2]


def test_compiled_passes_give_the_same(graphs: Callable[[], int]) -> None:
    """Equal predictions, and equal operations, which are counted on a plain pass."""
    found = []
    for execution in (Execution(), Execution(compiled=True)):
        strategy, stream = trained(SDLoRA(rank=2, epochs=2, batch_size=8), execution, 0)
        found.append((strategy.count_matrix(stream.test).predicted, flops_of(strategy, stream)))
    assert graphs() > 0
    assert (found[0][0] == found[1][0]).mean() > 0.95 and found[0][1] == found[1][1]


def test_what_a_pass_keeps_is_no_hidden_number() -> None:
    """Rounded copies of weights hold nothing of the images; other state that a method keeps does."""
    strategy, stream = trained(SDLoRA(rank=2, epochs=1, batch_size=8), BF16, 0)
    strategy.model.vit.execution = BF16
    hidden = hidden_numbers(strategy)
    strategy.count_matrix(stream.test)
    assert hidden() == {}
    strategy.model.vit.memory = torch.zeros(7)
    assert sum(hidden().values()) == 7
