"""The network of one pass through a ViT, with everything that can be added to it; `cl_bench.models.vit` runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Literal

import torch
from timm.layers import Attention, PatchEmbed
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.func import functional_call

Prefix = tuple[Tensor, Tensor]
"""Rows for the keys and for the values of a block, each [B, length, d]."""
BottleneckWeights = tuple[Tensor, Tensor, Tensor, Tensor]
"""Weights of a bottleneck adapter: W_down [w, d], b_down [w], W_up [d, w], b_up [d]."""
Parallel = BottleneckWeights | Callable[[Tensor], Tensor]
"""A branch parallel to a block's MLP; see `ViT.tokens`."""
Additions = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]
"""What a branch adds to q, k and v, each [B, tokens, d] (None: nothing), and a reading [B, ...] for the caller."""
Branch = tuple[Callable[..., Additions], tuple[Tensor, ...], tuple[Tensor, ...]]
"""A branch parallel to a block's qkv layer: a function, tensors for all images, and rows [B, ...]; see `ViT.tokens`."""
Output = Literal[
    "features", "tokens", "residual stream", "attention inputs", "features and parallel inputs", "features and readings"
]


def apply_bottleneck_adapter(
    x: Tensor, down: Tensor, down_bias: Tensor, up: Tensor, up_bias: Tensor, scale: float = 0.1
) -> Tensor:
    """Apply a bottleneck adapter (AdaptFormer; Chen et al. 2022): x -> scale (W_up relu(W_down x + b_down) + b_up).

    Args:
        x: [..., d].
        down: W_down [w, d].
        down_bias: b_down [w].
        up: W_up [d, w].
        up_bias: b_up [d].
        scale: factor on the output.

    Returns:
        [..., d].
    """
    return scale * nn.functional.linear(nn.functional.linear(x, down, down_bias).relu(), up, up_bias)


def map_tensors(nested: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Apply a function to every tensor in nested mappings, tuples and lists; other values stay as they are."""
    if isinstance(nested, Mapping):
        return {key: map_tensors(value, function) for key, value in nested.items()}
    if isinstance(nested, tuple | list):
        return type(nested)(map_tensors(one, function) for one in nested)
    return function(nested) if isinstance(nested, Tensor) else nested


def padded(rows: Tensor, more: int) -> Tensor:
    """Pad a batch with `more` rows of zeros."""
    return torch.cat([rows, rows.new_zeros(more, *rows.shape[1:])]) if more else rows


@cache
def compiled_pass() -> Any:
    """The compiled pass: one function for all backbones and methods of a process, so it may be recompiled often."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 256)
    torch._dynamo.config.accumulated_recompile_limit = max(torch._dynamo.config.accumulated_recompile_limit, 1024)
    return torch.compile(run_pass, dynamic=False)


def run_pass(
    network: BackbonePass, weights: dict[str, Tensor], dtype: torch.dtype | None, images: Tensor, *into: Any
) -> Any:
    """Run a pass with other weights, by parameter name, rounded to `dtype`; its outputs are fp32."""
    if not weights:
        # Only an fp32 pass can have no weights: a bf16 pass always receives all of them.
        return network(images, *into)
    given = {f"backbone.{name}": weight.to(dtype) for name, weight in weights.items()}
    result = functional_call(network, given, (images.to(dtype), *into))
    return result if dtype is None else map_tensors(result, Tensor.float)


class BackbonePass(nn.Module):
    """A pass through some blocks of a backbone that returns one kind of output.

    Args:
        backbone: the timm ViT.
        output: kind of output.
        blocks: consecutive blocks of the pass; None: all.
        whole: compute the last block for all tokens in fp32, even if features come from one; in bf16 it never is.
    """

    def __init__(self, backbone: VisionTransformer, output: Output, blocks: range | None, whole: bool = True) -> None:
        super().__init__()
        self.backbone, self.output, self.all, self.whole = backbone, output, blocks is None, whole
        self.first, self.end = (0, len(backbone.blocks)) if blocks is None else (blocks.start, blocks.stop)

    def forward(
        self,
        images: Tensor,
        prefixes: Mapping[int, Prefix],
        prompts: Tensor | None,
        parallel: Mapping[int, Parallel],
        branches: Mapping[int, Branch],
    ) -> Any:
        backbone = self.backbone
        rounded = images.dtype == torch.bfloat16
        # Features come from one token, so the last block needs the keys and values of the others only.
        # Checkpointing of activations is left to timm's own pass.
        needed = rounded or not (self.whole or backbone.grad_checkpointing)
        reduced = needed and self.output in ("features", "features and readings") and _reads_one_token(backbone)
        plain = not prefixes and prompts is None and not parallel and not branches and self.all
        if plain and not rounded and not reduced and self.output == "features":
            # The fp32 reference is timm's own pass.
            return backbone(images)
        x = images
        if not self.first:
            x = backbone._pos_embed(_patches(backbone.patch_embed, images))
            x = backbone.norm_pre(backbone.patch_drop(x))
        if prompts is not None:
            x = torch.cat([prompts.to(x.dtype), x], dim=1)
        inputs, branch_inputs, readings = [], {}, {}
        for number in range(self.first, self.end):
            block = backbone.blocks[number]
            entered = self.output == "attention inputs" or any(
                number in into for into in (prefixes, parallel, branches)
            )
            # A function that is given all tokens needs the whole block.
            last = reduced and number == self.end - 1 and not callable(parallel.get(number))
            if not entered and not ((rounded or last) and _is_standard(block)):
                x = block(x)
                continue
            seen = block.norm1(x)
            inputs.append(seen)
            module = parallel.get(number)
            rows = 1 if last else None
            added: Additions | None = None
            if number in branches:
                function, shared, given = branches[number]
                added = function(seen.float() if rounded else seen, *shared, *given)
                if added[3] is not None:
                    readings[number] = added[3]
            attended = _attend(block.attn, seen, prefixes.get(number), rows, added)
            x = x[:, :rows] + block.drop_path1(block.ls1(attended))
            branch: Tensor | int = 0
            if module is not None:
                branch_inputs[number] = x
                branch = _branch_output(module, x)
            x = x + block.drop_path2(block.ls2(block.mlp(block.norm2(x)))) + branch
        if self.output == "attention inputs":
            return inputs
        if self.output == "residual stream":
            return x
        x = backbone.norm(x)
        if self.output == "tokens":
            return x
        features = backbone.forward_head(x, pre_logits=True)
        if self.output == "features":
            return features
        return features, readings if self.output == "features and readings" else branch_inputs


def _reads_one_token(backbone: VisionTransformer) -> bool:
    """Whether the features of a pass are the first token; a distilled ViT averages two."""
    usual = type(backbone).forward_head is VisionTransformer.forward_head
    return usual and backbone.global_pool == "token" and backbone.attn_pool is None


def _is_standard(block: Any) -> bool:
    """Whether timm's code for a block can be replaced by that of this module, which has no dropout."""
    if not (type(block) is Block and type(block.attn) is Attention):
        return False
    return not (block.attn.attn_drop.p or block.attn.proj_drop.p)


def _branch_output(module: Parallel, x: Tensor) -> Tensor:
    """Output of a branch parallel to the MLP; a function is called with fp32 and its output rounded."""
    if isinstance(module, tuple):
        down, down_bias, up, up_bias = (part.to(x.dtype) for part in module)
        return apply_bottleneck_adapter(x, down, down_bias, up, up_bias)
    return module(x.float()).to(x.dtype)


def _patches(embed: Any, images: Tensor) -> Tensor:
    """Patch embeddings: in fp32 by timm's convolution, in bf16 by one matrix product.

    Both compute the same, as the patches do not overlap; the kernels of the convolution are five times slower on a GPU.
    """
    plain = type(embed) is PatchEmbed and embed.flatten and not embed.dynamic_img_pad and embed.output_fmt == "NCHW"
    if images.dtype != torch.bfloat16 or not plain or embed.proj.weight.shape[1] != images.shape[1]:
        return embed(images)
    rows, columns = embed.patch_size
    patches = images.unflatten(2, (-1, rows)).unflatten(4, (-1, columns)).permute(0, 2, 4, 1, 3, 5)
    x = nn.functional.linear(patches.flatten(3).flatten(1, 2), embed.proj.weight.flatten(1), embed.proj.bias)
    return embed.norm(x)


def _attend(
    attention: Attention, x: Tensor, prefix: Prefix | None, rows: int | None, added: Additions | None
) -> Tensor:
    """timm's `Attention` with additions to q, k and v, and extra key and value rows; for the first `rows` tokens only,
    or for all."""
    if prefix is None and rows is None and added is None and x.dtype != torch.bfloat16:
        return attention(x)
    linear, layer, width = nn.functional.linear, attention.qkv, attention.num_heads * attention.head_dim
    if rows is None:
        q, k, v = layer(x).chunk(3, dim=2)
    else:
        biases = (None, None) if layer.bias is None else (layer.bias[:width], layer.bias[width:])
        q = linear(x[:, :rows], layer.weight[:width], biases[0])
        k, v = linear(x, layer.weight[width:], biases[1]).chunk(2, dim=2)
    if added is not None:
        more = (added[0] if added[0] is None else added[0][:, :rows], added[1], added[2])
        q, k, v = (one if plus is None else one + plus.to(x.dtype) for one, plus in zip((q, k, v), more, strict=True))

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
    """Scaled dot-product attention of heads [B, heads, tokens, d]."""
    if q.is_cuda or q.dtype != torch.bfloat16:
        return nn.functional.scaled_dot_product_attention(q, k, v)
    # On a CPU, the backward pass of the fused kernel is four times slower in bf16 than in fp32.
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    return scores.softmax(dim=-1, dtype=torch.float32).to(v.dtype) @ v
