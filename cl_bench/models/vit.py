"""One forward pass of a ViT for all methods: with other weights, prefixes, prompts or bottlenecks put into it, at the
precision and on the path (eager or compiled) that the run asks for.

In bf16 the backbone computes in bf16 throughout, the residual stream included, with fp32 accumulation in its products,
norms and softmax; trained and frozen weights stay in fp32 and are rounded for the pass, frozen ones once. Features come
back in fp32: heads, losses, statistics and optimisers know nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal
from weakref import ref

import torch
from timm.layers import Attention, PatchEmbed
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.func import functional_call

from cl_bench.experiment import Precision

Prefix = tuple[Tensor, Tensor]
BottleneckWeights = tuple[Tensor, Tensor, Tensor, Tensor]
Parallel = BottleneckWeights | Callable[[Tensor], Tensor]
_Output = Literal["features", "tokens", "residual stream", "attention inputs", "features and parallel inputs"]


@dataclass(frozen=True)
class Execution:
    """How a backbone is run.

    Attributes:
        precision: of everything inside the backbone.
        compiled: by `torch.compile`, with static shapes.
    """

    precision: Precision = "fp32"
    compiled: bool = False

    @property
    def dtype(self) -> torch.dtype | None:
        """What weights and images are rounded to; None: they stay as they are."""
        return torch.bfloat16 if self.precision == "bf16" else None


class ViT:
    """The one pass through a timm ViT: what can be put into it, and how it is run.

    It is no module, so that a model's state has the names of the backbone. What it keeps lies with the backbone, which
    does not refer to it: a model is freed as soon as nobody uses it, and a copy of it has a `ViT` of its own.

    Args:
        backbone: a timm ViT without head.
        execution: at first; it can be set later. None: eager fp32.
    """

    def __init__(self, backbone: VisionTransformer, execution: Execution | None = None) -> None:
        self.backbone = backbone
        self._state = backbone._pass_state = PassState(execution or Execution())

    @classmethod
    def of(cls, backbone: VisionTransformer | ViT) -> ViT:
        """The pass through a backbone as it was set up last; a `ViT` is its own."""
        if isinstance(backbone, ViT):
            return backbone
        state = getattr(backbone, "_pass_state", None)
        vit = cls(backbone)
        if isinstance(state, PassState):
            vit._state = backbone._pass_state = state
        return vit

    @property
    def execution(self) -> Execution:
        """How passes are run from now on."""
        return self._state.execution

    @execution.setter
    def execution(self, execution: Execution) -> None:
        self._state.start(execution)

    @contextmanager
    def plainly(self) -> Iterator[None]:
        """In this context passes are run eagerly in fp32, whole, with as many images as are given: what operations are
        counted on."""
        state = self._state
        before = state.execution, state.rounded, state.batches
        state.start(Execution())
        try:
            yield
        finally:
            state.execution, state.rounded, state.batches = before

    def features(
        self,
        images: Tensor,
        *,
        weights: Mapping[str, Tensor] | None = None,
        prefixes: Mapping[int, Prefix] | None = None,
        parallel: Mapping[int, Parallel] | None = None,
        blocks: range | None = None,
    ) -> Tensor:
        """CLS (or pooled) features, fp32 [B, d], of the backbone into which something is put; see `tokens`.

        Args:
            images: [B, C, H, W]; or the residual stream that enters the first of the `blocks`, if that is not block 0.
            blocks: consecutive blocks of the pass, which the final norm follows: an early exit, or the rest of a pass
                that began as a `residual_stream`. None: all.
        """
        return self._pass("features", images, weights, prefixes, None, parallel, blocks)

    def residual_stream(self, images: Tensor, blocks: range, *, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        """What leaves the last of the `blocks`, fp32 [B, tokens, d], without the final norm; see `features`."""
        return self._pass("residual stream", images, weights, None, None, None, blocks)

    def tokens(
        self,
        images: Tensor,
        *,
        weights: Mapping[str, Tensor] | None = None,
        prefixes: Mapping[int, Prefix] | None = None,
        prompts: Tensor | None = None,
        parallel: Mapping[int, Parallel] | None = None,
    ) -> Tensor:
        """All output tokens of the backbone into which something is put.

        Args:
            images: [B, C, H, W].
            weights: other values of the backbone's parameters, by name; gradients flow into them.
            prefixes: per block number a pair (key rows, value rows), each [B, length, d], put in front of the block's
                keys and values after the qkv projection and split over the heads like these. Queries are not extended
                (prefix tuning; Li & Liang 2021).
            prompts: [B, n, d], put in front of the sequence after the positional embedding, of which they get none
                (prompt tuning; Lester et al. 2021, L2P).
            parallel: per block number, a branch beside the block's MLP, which gets the MLP's input before its norm:
                the weights of a bottleneck adapter (AdaptFormer; Chen et al. 2022; `apply_bottleneck_adapter`), or a
                function, best a module, from and to fp32 [B, tokens, d], that treats each image alone.

        Returns:
            fp32 [B, n + tokens, d], after the final norm.
        """
        return self._pass("tokens", images, weights, prefixes, prompts, parallel)

    def attention_inputs(self, images: Tensor, *, weights: Mapping[str, Tensor] | None = None) -> list[Tensor]:
        """What the attention of every block sees, the output of the block's first norm: L times fp32 [B, tokens, d]."""
        return self._pass("attention inputs", images, weights, None, None, None)

    def features_and_inputs(
        self, images: Tensor, *, parallel: Mapping[int, Parallel], weights: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Features as `features` gives them, and what each of `parallel` sees: per block number fp32 [B, tokens, d]."""
        return self._pass("features and parallel inputs", images, weights, None, None, parallel)

    def _pass(
        self,
        output: _Output,
        images: Tensor,
        weights: Mapping[str, Tensor] | None,
        prefixes: Mapping[int, Prefix] | None,
        prompts: Tensor | None,
        parallel: Mapping[int, Parallel] | None,
        blocks: range | None = None,
    ) -> Any:
        state, execution = self._state, self._state.execution
        given = state.weights(self.backbone, weights or {})
        size, training = len(images), torch.is_grad_enabled()
        into: tuple[Any, ...] = (prefixes or {}, prompts, parallel or {})
        if not training:
            # Views of parameters would still ask for gradients.
            into = _each(into, Tensor.detach)
        if execution.compiled:
            # Whole batches of training have one layout already; those of evaluation may not.
            images = images if training else images.contiguous()
            more = state.batch(size, training) - size
            images = _filled(images, more)
            into = (*_each(into[:2], lambda rows: _filled(rows, more)), into[2])
        run = _compiled() if execution.compiled else _run
        result = run(_Pass(self.backbone, output, blocks), given, execution.dtype, images, *into)
        return _each(result, lambda rows: rows[:size])


@dataclass(slots=True)
class PassState:
    """How a backbone is run, and what is kept for it beside its parameters.

    Attributes:
        rounded: copies of parameters at the precision, with the parameters and their states that they were made from.
        batches: sizes of batches that compiled passes are made for, without and with gradients.
    """

    execution: Execution
    rounded: dict[str, tuple[ref[Tensor], tuple[Any, ...], Tensor]] = field(default_factory=dict)
    batches: dict[bool, list[int]] = field(default_factory=dict)

    def start(self, execution: Execution) -> None:
        """Begin anew."""
        self.execution, self.rounded, self.batches = execution, {}, {}

    def __reduce__(self) -> tuple[type[PassState], tuple[Execution]]:
        """A copy, which is for a copied backbone, starts with nothing but the execution."""
        return PassState, (self.execution,)

    def weights(self, backbone: VisionTransformer, changed: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All weights of a pass: those that are trained as they are, for the graph to round, others rounded before."""
        dtype, given = self.execution.dtype, dict(changed)
        if dtype is None:
            return given
        for name, parameter in backbone.named_parameters():
            if name in given:
                continue
            if parameter.requires_grad and torch.is_grad_enabled():
                given[name] = parameter
                continue
            state = (parameter.data_ptr(), parameter._version, parameter.device)
            source, known, rounded = self.rounded.get(name, (None, None, None))
            if rounded is None or source is None or source() is not parameter or known != state:
                with torch.inference_mode(False):
                    rounded = parameter.detach().to(dtype)
                self.rounded[name] = ref(parameter), state, rounded
            given[name] = rounded
        return given

    def batch(self, size: int, training: bool) -> int:
        """The number of images that a pass over `size` of them is filled up to: the shapes of a graph are few."""
        sizes = self.batches.setdefault(training, [])
        fitting = [known for known in sizes if known >= size]
        if not fitting:
            sizes.append(size)
        return min(fitting, default=size)


def apply_bottleneck_adapter(
    x: Tensor, down: Tensor, down_bias: Tensor, up: Tensor, up_bias: Tensor, scale: float = 0.1
) -> Tensor:
    """AdaptFormer's adapter: x -> scale (W_up relu(W_down x + b_down) + b_up)."""
    return scale * nn.functional.linear(nn.functional.linear(x, down, down_bias).relu(), up, up_bias)


def _each(nested: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """A function of every tensor in mappings, tuples and lists; whatever else is there stays as it is."""
    if isinstance(nested, Mapping):
        return {key: _each(value, function) for key, value in nested.items()}
    if isinstance(nested, tuple | list):
        return type(nested)(_each(one, function) for one in nested)
    return function(nested) if isinstance(nested, Tensor) else nested


def _filled(rows: Tensor, more: int) -> Tensor:
    """A batch with so many more rows of zeros."""
    return torch.cat([rows, rows.new_zeros(more, *rows.shape[1:])]) if more else rows


@cache
def _compiled() -> Any:
    """The compiled pass. It is one function for all backbones and methods, of which there may be many in a process."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 256)
    torch._dynamo.config.accumulated_recompile_limit = max(torch._dynamo.config.accumulated_recompile_limit, 1024)
    return torch.compile(_run, dynamic=False)


def _run(network: _Pass, weights: dict[str, Tensor], dtype: torch.dtype | None, images: Tensor, *into: Any) -> Any:
    if not weights:
        # Which is rounded, has all its weights given.
        return network(images, *into)
    given = {f"backbone.{name}": weight.to(dtype) for name, weight in weights.items()}
    result = functional_call(network, given, (images.to(dtype), *into))
    return result if dtype is None else _each(result, Tensor.float)


class _Pass(nn.Module):
    """A backbone and which output of it is wanted, after which blocks."""

    def __init__(self, backbone: VisionTransformer, output: _Output, blocks: range | None) -> None:
        super().__init__()
        self.backbone, self.output, self.whole = backbone, output, blocks is None
        self.first, self.end = (0, len(backbone.blocks)) if blocks is None else (blocks.start, blocks.stop)

    def forward(
        self,
        images: Tensor,
        prefixes: Mapping[int, Prefix],
        prompts: Tensor | None,
        parallel: Mapping[int, Parallel],
    ) -> Any:
        backbone = self.backbone
        rounded = images.dtype == torch.bfloat16
        plain = not prefixes and prompts is None and not parallel and self.whole
        if plain and not rounded and self.output == "features":
            # The reference is timm's own pass.
            return backbone(images)
        x = images
        if not self.first:
            x = backbone._pos_embed(_patches(backbone.patch_embed, images))
            x = backbone.norm_pre(backbone.patch_drop(x))
        if prompts is not None:
            x = torch.cat([prompts.to(x.dtype), x], dim=1)
        of_one = self.output == "features" and backbone.global_pool == "token" and backbone.attn_pool is None
        inputs, beside = [], {}
        for number in range(self.first, self.end):
            block = backbone.blocks[number]
            entered = self.output == "attention inputs" or number in prefixes or number in parallel
            if not entered and not (rounded and type(block) is Block and type(block.attn) is Attention):
                x = block(x)
                continue
            seen = block.norm1(x)
            inputs.append(seen)
            # Features are taken from one token: of the last block, nothing else is needed of the others than their keys
            # and values, unless a function sees them. The reference computes all.
            module = parallel.get(number)
            alone = module is None or isinstance(module, tuple)
            rows = 1 if rounded and of_one and alone and number == self.end - 1 else None
            x = x[:, :rows] + block.drop_path1(block.ls1(_attend(block.attn, seen, prefixes.get(number), rows)))
            aside: Tensor | int = 0
            if module is not None:
                beside[number] = x
                aside = _beside(module, x)
            x = x + block.drop_path2(block.ls2(block.mlp(block.norm2(x)))) + aside
        if self.output == "attention inputs":
            return inputs
        if self.output == "residual stream":
            return x
        x = backbone.norm(x)
        if self.output == "tokens":
            return x
        features = backbone.forward_head(x, pre_logits=True)
        return features if self.output == "features" else (features, beside)


def _beside(module: Parallel, x: Tensor) -> Tensor:
    """What works beside the MLP; functions know nothing of the precision."""
    if isinstance(module, tuple):
        down, down_bias, up, up_bias = (part.to(x.dtype) for part in module)
        return apply_bottleneck_adapter(x, down, down_bias, up, up_bias)
    return module(x.float()).to(x.dtype)


def _patches(embed: Any, images: Tensor) -> Tensor:
    """Patch embeddings. In bf16 as one matrix product: a convolution with patches that do not overlap is one, and its
    own kernels are five times slower on a GPU; in fp32, the reference, the convolution itself."""
    plain = type(embed) is PatchEmbed and embed.flatten and not embed.dynamic_img_pad and embed.output_fmt == "NCHW"
    if images.dtype != torch.bfloat16 or not plain or embed.proj.weight.shape[1] != images.shape[1]:
        return embed(images)
    rows, columns = embed.patch_size
    patches = images.unflatten(2, (-1, rows)).unflatten(4, (-1, columns)).permute(0, 2, 4, 1, 3, 5)
    x = nn.functional.linear(patches.flatten(3).flatten(1, 2), embed.proj.weight.flatten(1), embed.proj.bias)
    return embed.norm(x)


def _attend(attention: Attention, x: Tensor, prefix: Prefix | None, rows: int | None) -> Tensor:
    """timm's `Attention` with extra key and value rows, of all tokens or of the first `rows`."""
    if prefix is None and x.dtype != torch.bfloat16:
        return attention(x)
    linear, layer, width = nn.functional.linear, attention.qkv, attention.num_heads * attention.head_dim
    if rows is None:
        q, k, v = layer(x).chunk(3, dim=2)
    else:
        biases = (None, None) if layer.bias is None else (layer.bias[:width], layer.bias[width:])
        q = linear(x[:, :rows], layer.weight[:width], biases[0])
        k, v = linear(x, layer.weight[width:], biases[1]).chunk(2, dim=2)

    def heads(rows: Tensor) -> Tensor:
        return rows.to(x.dtype).unflatten(2, (attention.num_heads, attention.head_dim)).transpose(1, 2)

    q, k, v = heads(q), attention.k_norm(heads(k)), heads(v)
    if prefix is not None:
        k, v = torch.cat([heads(prefix[0]), k], dim=2), torch.cat([heads(prefix[1]), v], dim=2)
    out = attention.norm(_mixed(attention.q_norm(q), k, v).transpose(1, 2).flatten(2))
    # Gates came with timm 1.0.30.
    gate = getattr(attention, "gate", None)
    return attention.proj(out if gate is None else out * gate(x[:, :rows]).sigmoid())


def _mixed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of heads [B, heads, tokens, d]."""
    if q.is_cuda or q.dtype != torch.bfloat16:
        return nn.functional.scaled_dot_product_attention(q, k, v)
    # On a CPU the fused kernel's way back is four times slower in bf16 than in fp32.
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    return scores.softmax(dim=-1, dtype=torch.float32).to(v.dtype) @ v
