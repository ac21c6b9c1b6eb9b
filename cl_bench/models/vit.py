"""The forward pass of a ViT for all methods, at the precision and on the path (eager or compiled) of the run.

In bf16 the backbone computes in bf16 throughout, the residual stream included, with fp32 accumulation in its products,
norms and softmax. Weights stay in fp32 and are rounded for the pass, frozen ones once. Features are returned in fp32:
heads, losses, statistics and optimisers do not depend on the precision.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import ref

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from cl_bench.experiment import Precision
from cl_bench.models.vit_pass import (
    BackbonePass,
    Branch,
    Output,
    Parallel,
    compiled_pass,
    map_tensors,
    padded,
    run_pass,
)
from cl_bench.models.vit_pass import Prefix as Prefix


@dataclass(frozen=True)
class Execution:
    """Precision and path of passes through a backbone.

    Attributes:
        precision: precision of everything inside the backbone.
        compiled: whether passes are compiled by `torch.compile`, with static shapes.
        graphs: whether training steps on a GPU are replayed from CUDA graphs (see `cl_bench.training.step_graph`).
        whole: whether fp32 features come from timm's own pass, bit for bit. Otherwise, the last block computes only
            what the features need, as in bf16: the same in exact arithmetic, rounded differently.
    """

    precision: Precision = "fp32"
    compiled: bool = False
    graphs: bool = False
    whole: bool = True

    @property
    def dtype(self) -> torch.dtype | None:
        """Type that weights and images are rounded to; None: they are not rounded."""
        return torch.bfloat16 if self.precision == "bf16" else None


class ViT:
    """The forward pass through a timm ViT, with changed weights, prefixes, prompts or parallel branches.

    It is no module, so it adds no names to a model's state dict. Its state belongs to the backbone, which does not
    refer to the `ViT`: a model is freed when it is no longer used, and a copied model has a `ViT` of its own.

    Args:
        backbone: timm ViT without head.
        execution: initial precision and path; None: eager fp32.
    """

    def __init__(self, backbone: VisionTransformer, execution: Execution | None = None) -> None:
        self.backbone = backbone
        self._state = backbone._pass_state = PassState(execution or Execution())

    @classmethod
    def of(cls, backbone: VisionTransformer | ViT) -> ViT:
        """The pass through a backbone with its latest precision and path; a `ViT` is returned as it is."""
        if isinstance(backbone, ViT):
            return backbone
        state = getattr(backbone, "_pass_state", None)
        vit = cls(backbone)
        if isinstance(state, PassState):
            vit._state = backbone._pass_state = state
        return vit

    @property
    def execution(self) -> Execution:
        """Precision and path of all passes from now on."""
        return self._state.execution

    @execution.setter
    def execution(self, execution: Execution) -> None:
        self._state.start(execution)

    @contextmanager
    def plainly(self) -> Iterator[None]:
        """Context in which passes run eagerly in fp32 without padding, for counting operations."""
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
        qkv: Mapping[int, Branch] | None = None,
        blocks: range | None = None,
    ) -> Tensor:
        """CLS (or pooled) features of the backbone; see `tokens` for changed weights, prefixes and parallel branches.

        Args:
            images: [B, C, H, W]; or the residual stream [B, tokens, d] that enters the first of the `blocks`, if that
                is not block 0.
            weights: see `tokens`.
            prefixes: see `tokens`.
            parallel: see `tokens`.
            qkv: see `tokens`.
            blocks: consecutive blocks of the pass, followed by the final norm: an early exit, or the rest of a pass
                that began with `residual_stream`. None: all blocks.

        Returns:
            fp32 [B, d].
        """
        return self._pass("features", images, weights, prefixes, None, parallel, qkv, blocks)

    def residual_stream(self, images: Tensor, blocks: range, *, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        """Output of the last of the `blocks` without the final norm, fp32 [B, tokens, d]; see `features`."""
        return self._pass("residual stream", images, weights, blocks=blocks)

    def tokens(
        self,
        images: Tensor,
        *,
        weights: Mapping[str, Tensor] | None = None,
        prefixes: Mapping[int, Prefix] | None = None,
        prompts: Tensor | None = None,
        parallel: Mapping[int, Parallel] | None = None,
        qkv: Mapping[int, Branch] | None = None,
    ) -> Tensor:
        """All output tokens of the backbone, with changed weights, prefixes, prompts or parallel branches.

        Args:
            images: [B, C, H, W].
            weights: values that replace parameters of the backbone, by name; gradients flow into them.
            prefixes: per block number, a pair (key rows, value rows), each [B, length, d], prepended to the block's
                keys and values after the qkv projection and split over the heads like these. Queries are not extended
                (prefix tuning; Li & Liang 2021).
            prompts: [B, n, d], prepended to the sequence after the positional embedding, so without positions (prompt
                tuning; Lester et al. 2021, L2P).
            parallel: per block number, a branch parallel to the block's MLP. Its input is the MLP's before its norm:
                the weights of a bottleneck adapter (AdaptFormer; Chen et al. 2022; `apply_bottleneck_adapter`), or a
                function, best a module, from and to fp32 [B, tokens, d], that treats each image alone.
            qkv: per block number, a branch parallel to the block's qkv layer: (function, shared, rows), where the
                function, best one of a module and no closure, maps the attention's input x, fp32 [B, tokens, d], and
                the tensors in `shared` and `rows` to what it adds to q, k and v, each [B, tokens, d] or None, and a
                reading [B, ...] or None (see `features_and_readings`). It treats each image alone; tensors in `rows`
                are [B, ...]. Gradients flow into all of them.

        Returns:
            fp32 [B, n + tokens, d], after the final norm.
        """
        return self._pass("tokens", images, weights, prefixes, prompts, parallel, qkv)

    def attention_inputs(
        self,
        images: Tensor,
        *,
        weights: Mapping[str, Tensor] | None = None,
        qkv: Mapping[int, Branch] | None = None,
    ) -> list[Tensor]:
        """Inputs of the attention of all L blocks, the outputs of their first norms: L times fp32 [B, tokens, d]."""
        return self._pass("attention inputs", images, weights, qkv=qkv)

    def features_and_inputs(
        self, images: Tensor, *, parallel: Mapping[int, Parallel], weights: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Features [B, d], and the input of each parallel branch by block number, fp32 [B, tokens, d]; see `tokens`."""
        return self._pass("features and parallel inputs", images, weights, parallel=parallel)

    def features_and_readings(
        self, images: Tensor, *, qkv: Mapping[int, Branch], weights: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Features [B, d], and the reading of each qkv branch by block number, fp32 [B, ...]; see `tokens`."""
        return self._pass("features and readings", images, weights, qkv=qkv)

    def _pass(
        self,
        output: Output,
        images: Tensor,
        weights: Mapping[str, Tensor] | None,
        prefixes: Mapping[int, Prefix] | None = None,
        prompts: Tensor | None = None,
        parallel: Mapping[int, Parallel] | None = None,
        qkv: Mapping[int, Branch] | None = None,
        blocks: range | None = None,
    ) -> Any:
        state, execution = self._state, self._state.execution
        given = state.weights(self.backbone, weights or {})
        size, training = len(images), torch.is_grad_enabled()
        into: tuple[Any, ...] = (prefixes or {}, prompts, parallel or {}, qkv or {})
        if not training:
            # Views of parameters would still require gradients.
            into = map_tensors(into, Tensor.detach)
        if execution.compiled:
            # Whole training batches share one memory layout already; evaluation batches may not.
            images = images if training else images.contiguous()
            more = state.batch(size, training) - size

            def pad(nested: Any) -> Any:
                return map_tensors(nested, lambda rows: padded(rows, more))

            branches = {number: (function, shared, pad(rows)) for number, (function, shared, rows) in into[3].items()}
            images, into = pad(images), (*pad(into[:2]), into[2], branches)
        run = compiled_pass() if execution.compiled else run_pass
        network = BackbonePass(self.backbone, output, blocks, execution.whole)
        result = run(network, given, execution.dtype, images, *into)
        return map_tensors(result, lambda rows: rows[:size])


@dataclass(slots=True)
class PassState:
    """Precision and path of a backbone's passes, and what they cache.

    Attributes:
        execution: precision and path.
        rounded: by name, a parameter, its state when it was rounded, and the rounded copy.
        batches: batch sizes that passes are compiled for, without gradients (False) and with gradients (True).
    """

    execution: Execution
    rounded: dict[str, tuple[ref[Tensor], tuple[Any, ...], Tensor]] = field(default_factory=dict)
    batches: dict[bool, list[int]] = field(default_factory=dict)

    def start(self, execution: Execution) -> None:
        """Set precision and path, and clear the caches."""
        self.execution, self.rounded, self.batches = execution, {}, {}

    def __reduce__(self) -> tuple[type[PassState], tuple[Execution]]:
        """A copy, made with a copy of the backbone, keeps the execution and starts with empty caches."""
        return PassState, (self.execution,)

    def weights(self, backbone: VisionTransformer, changed: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights that a pass receives, by name: in fp32 the changed ones, in bf16 all of them.

        Trained parameters are passed in fp32, as the graph rounds them; frozen ones are passed as rounded copies.
        """
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
        """Batch size that `size` images are padded to, so that few shapes need compiling."""
        sizes = self.batches.setdefault(training, [])
        fitting = [known for known in sizes if known >= size]
        if not fitting:
            sizes.append(size)
        return min(fitting, default=size)
