"""Low-rank updates of a ViT's attention projections: the bank and the model of every LoRA method."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from cl_bench.errors import UserError
from cl_bench.models.base import FeatureModel
from cl_bench.models.growing import Growing
from cl_bench.models.heads import linear_head
from cl_bench.models.vit import ViT

Target = Literal["q", "k", "v", "proj"]
Norm = Literal["product", "frobenius"]
_QKV = ("q", "k", "v")


@dataclass(frozen=True)
class FrozenFactors:
    """Factors of the frozen directions of a bank, side by side: a copy that a pass keeps, and no number of its own.

    Attributes:
        count: number of directions K.
        A: [L, P, R, d] with the sum R of the ranks.
        B: [L, P, d, R].
        owner: [R, K], 1 where a rank belongs to a direction.
        state: state of the parameters from which they were made.
    """

    count: int
    A: Tensor
    B: Tensor
    owner: Tensor
    state: Any

    @classmethod
    def of(cls, factors: Sequence[tuple[Tensor, Tensor]], dtype: torch.dtype | None, state: Any) -> FrozenFactors:
        """Concatenate the factors (A, B) of directions, rounded to `dtype`."""
        if not factors:
            return cls(0, *(torch.empty(0),) * 3, state)
        As, Bs = zip(*factors, strict=True)
        A, B = torch.cat(As, dim=2), torch.cat(Bs, dim=3)
        owner = torch.block_diag(*(A.new_ones(each.shape[2], 1) for each in As))
        return cls(len(As), A.to(dtype), B.to(dtype), owner, state)


class LoRABank(Growing):
    """Low-rank directions B_k A_k for chosen projections of every block.

    The parameters of one direction stack all blocks and projections: `A[k]` is [L, P, r, d], `B[k]` is [L, P, d, r]
    with L blocks and P projections; ranks may differ between directions. A direction maps x to (B A) x. Norms, inner
    products and updates use `factors`.

    A variant of LoRA whose factors are made from other parameters (gates, shared chunks, packed ranks) overrides three
    points: `parts`, the names of the parameter lists; `start`, the parameters of a new direction; and `factors`.
    `factors` of a direction that is not trained must depend on its parameters alone.

    Args:
        backbone: ViT whose shape the bank follows.
        targets: projections to update, in this order of the axis P: `q`, `k`, `v` (rows of the fused qkv layer) or
            `proj` (the output projection).
        rank: rank of the largest direction that will be added.
        alpha: every direction is scaled by alpha / rank (LoRA; Hu et al. 2022); None: by 1.

    Attributes:
        parts: names of the lists that hold the parameters of the directions, in the order of `direction`.
        base: update of directions that have been folded into it, [L, P, d, d]; None: none can be (see `keep_base`).

    Raises:
        UserError: the backbone lacks a projection, a target is named twice, or the rank exceeds the backbone's width.
    """

    parts: ClassVar[tuple[str, ...]] = ("A", "B")
    A: nn.ParameterList
    B: nn.ParameterList
    base: Tensor | None

    def __init__(
        self,
        backbone: VisionTransformer,
        targets: Sequence[Target] = ("q", "v"),
        rank: int = 1,
        alpha: float | None = None,
    ) -> None:
        super().__init__()
        self.scale = None if alpha is None else alpha / rank
        self.blocks = len(backbone.blocks)
        self.dim = backbone.embed_dim
        self.targets = tuple(targets)
        for block in backbone.blocks:
            attention = getattr(block, "attn", None)
            shapes = {"qkv": (3 * self.dim, self.dim), "proj": (self.dim, self.dim)}
            for target in self.targets:
                layer = getattr(attention, "proj" if target == "proj" else "qkv", None)
                if not isinstance(layer, nn.Linear) or layer.weight.shape != shapes.get(target, shapes["qkv"]):
                    raise UserError(
                        f"LoRA target '{target}' does not exist in this backbone ({type(block).__name__} has no "
                        f"attn.{'proj' if target == 'proj' else 'qkv'} layer of width {self.dim}); "
                        "take a ViT with timm's standard attention"
                    )
        if not self.targets or len(set(self.targets)) < len(self.targets):
            raise UserError(f"LoRA targets {'+'.join(targets) or 'none'}: name each projection once, e.g. q+v")
        if rank > self.dim:
            raise UserError(f"LoRA rank {rank} is more than the backbone's width {self.dim}; choose at most {self.dim}")
        for part in self.parts:
            setattr(self, part, nn.ParameterList())
        self.register_buffer("base", None)
        self._concatenated: dict[torch.dtype | None, FrozenFactors] = {}

    @staticmethod
    def numbers(backbone: VisionTransformer, targets: Sequence[Target], rank: int) -> int:
        """Number of parameters of one direction: 2 r d per block and projection."""
        return len(backbone.blocks) * len(targets) * 2 * rank * int(backbone.embed_dim)

    def keep_base(self) -> None:
        """Give the bank a base of its own, so that directions can be folded into it."""
        device = next(self.parameters(), torch.empty(0)).device
        self.base = torch.zeros(self.blocks, len(self.targets), self.dim, self.dim, device=device)

    @torch.no_grad()
    def fold(self, coefficients: Tensor) -> None:
        """Add the weighted sum of the directions to the base, and remove the directions.

        Args:
            coefficients: weights of the K directions, [K, L, P].
        """
        assert self.base is not None, "keep_base() first"
        self.base = self.update(coefficients)
        while len(self):
            self.drop()

    def __len__(self) -> int:
        """Number of directions."""
        return len(self._lists()[0])

    def _lists(self) -> list[nn.ParameterList]:
        return [getattr(self, part) for part in self.parts]

    def append(self, *parameters: Tensor) -> None:
        """Add a direction with its parameters, in the order of `parts`: A [L, P, r, d] and B [L, P, d, r]."""
        for each, parameter in zip(self._lists(), parameters, strict=True):
            each.append(nn.Parameter(parameter))

    def grow(self, rank: int, generator: torch.Generator, device: torch.device, zero: bool = True) -> None:
        """Add a direction with A ~ U(-1/sqrt(d), 1/sqrt(d)) and B = 0, the start of LoRA.

        Args:
            rank: rank r of the direction.
            generator: CPU generator of the random draws.
            device: device of the new parameters.
            zero: whether B starts at 0; otherwise it is drawn like A.
        """

        def uniform(*shape: int) -> Tensor:
            drawn = torch.rand(self.blocks, len(self.targets), *shape, generator=generator, device="cpu")
            return (drawn * 2 - 1) / math.sqrt(self.dim)

        down, up = uniform(rank, self.dim), uniform(self.dim, rank)
        started = self.start(down, torch.zeros_like(up) if zero else up, generator)
        self.append(*(parameter.to(device) for parameter in started))

    def start(self, A: Tensor, B: Tensor, generator: torch.Generator) -> Sequence[Tensor]:
        """Parameters of a new direction, in the order of `parts`.

        Args:
            A: the start of LoRA, [L, P, r, d].
            B: the start of LoRA, [L, P, d, r].
            generator: CPU generator from which A and B were drawn, for further draws.
        """
        return A, B

    def drop(self) -> None:
        """Remove the last direction."""
        for part, each in zip(self.parts, self._lists(), strict=True):
            setattr(self, part, nn.ParameterList(list(each)[:-1]))

    def direction(self, k: int) -> list[nn.Parameter]:
        """Trained parameters of direction k, in the order of `parts`: A [L, P, r, d] and B [L, P, d, r], unscaled."""
        return [each[k] for each in self._lists()]

    def factors(self, k: int) -> tuple[Tensor, Tensor]:
        """Factors A [L, P, r, d] and B [L, P, d, r] of direction k; by default its parameters, B times the scale."""
        return self.A[k], self.B[k] if self.scale is None else self.B[k] * self.scale

    def norm(self, k: int, kind: Norm) -> Tensor:
        """Norm of direction k, [L, P]: ||B_k||_F ||A_k||_F (`product`) or ||B_k A_k||_F (`frobenius`)."""
        if kind == "product":
            A, B = self.factors(k)
            return A.flatten(2).norm(dim=2) * B.flatten(2).norm(dim=2)
        return self.inner(k, k).clamp_min(0).sqrt()

    def inner(self, k: int, other: int, dtype: torch.dtype | None = None) -> Tensor:
        """Frobenius inner product of directions k and j, [L, P], from r x r products.

        It is <B_k A_k, B_j A_j>_F = tr(B_k^T B_j A_j A_k^T), with j = `other`.
        """
        (A, B), (other_A, other_B) = self.factors(k), self.factors(other)
        up = B.to(dtype).transpose(2, 3) @ other_B.to(dtype)
        down = A.to(dtype) @ other_A.to(dtype).transpose(2, 3)
        return (up * down).sum(dim=(2, 3))

    def gram(self, dtype: torch.dtype | None = None) -> Tensor:
        """Frobenius inner products of all pairs of the K directions, [L, P, K, K], in one product over all ranks."""
        As, Bs = zip(*map(self.factors, range(len(self))), strict=True)
        up, down = torch.cat(Bs, dim=3).to(dtype), torch.cat(As, dim=2).to(dtype)
        pairs = (up.transpose(2, 3) @ up) * (down @ down.transpose(2, 3))
        ranks = torch.tensor([A.shape[2] for A in As], device=up.device)
        owner = torch.repeat_interleave(torch.eye(len(ranks), dtype=pairs.dtype, device=up.device), ranks, dim=0)
        return owner.T @ pairs @ owner

    def update(self, coefficients: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Weighted sum of the directions, sum_k c_k B_k A_k, as a product of concatenated factors, added to the base.

        Factors of frozen directions are concatenated once, so the cost hardly depends on the number of directions.

        Args:
            coefficients: c, [K, L, P].
            dtype: type to which the factors of frozen directions, and the sum over them, are rounded if the sum changes
                weights that are rounded to it; None: no rounding.

        Returns:
            [L, P, d, d].
        """
        if not len(self):
            assert self.base is not None, "a bank without directions and base has no update"
            return self.base
        update = self._product(coefficients, dtype)
        return update if self.base is None else self.base + update

    def _product(self, coefficients: Tensor, dtype: torch.dtype | None) -> Tensor:
        frozen = self._frozen(dtype)
        trained = [self.factors(k) for k in range(frozen.count, len(self))]
        downs = [A for A, _ in trained]
        ups = [B * c[..., None, None] for (_, B), c in zip(trained, coefficients[frozen.count :], strict=True)]
        if not frozen.count:
            return torch.cat(ups, dim=3) @ torch.cat(downs, dim=2)
        # Coefficients are rounded only with their product: a step of a magnitude is often below bf16's resolution.
        columns = (frozen.owner @ coefficients[: frozen.count].flatten(1)).T.unflatten(0, coefficients.shape[1:])
        up = frozen.B * columns[:, :, None]
        if dtype is None:
            return torch.cat([up, *ups], dim=3) @ torch.cat([frozen.A, *downs], dim=2)
        update = (up.to(dtype) @ frozen.A).to(coefficients.dtype)
        return update + torch.cat(ups, dim=3) @ torch.cat(downs, dim=2) if ups else update

    def _frozen(self, dtype: torch.dtype | None) -> FrozenFactors:
        """The factors of the first directions that are not trained, concatenated when one of them has changed."""
        state = []
        for k in range(len(self)):
            parameters = self.direction(k)
            if any(parameter.requires_grad for parameter in parameters):
                break
            state.append(tuple((p.data_ptr(), p._version, p.device) for p in parameters))
        known = self._concatenated.get(dtype)
        if known is None or known.state != state:
            with torch.inference_mode(False), torch.no_grad():
                known = FrozenFactors.of([self.factors(k) for k in range(len(state))], dtype, state)
            self._concatenated[dtype] = known
        return known

    def weights(self, backbone: VisionTransformer, update: Tensor) -> dict[str, Tensor]:
        """Changed weights of the backbone, by parameter name.

        Args:
            backbone: the ViT whose weights are changed; it stays as it is.
            update: change of the projections, [L, P, d, d].
        """
        weights = {}
        # Indexing the update in each block would allocate a gradient buffer of its full size each time.
        for number, (block, changes) in enumerate(zip(backbone.blocks, update.unbind(), strict=True)):
            of = dict(zip(self.targets, changes.unbind(), strict=True))
            if "proj" in of:
                weights[f"blocks.{number}.attn.proj.weight"] = block.attn.proj.weight + of.pop("proj")
            if of:
                rows = zip(_QKV, block.attn.qkv.weight.view(3, self.dim, self.dim), strict=True)
                changed = [row + of[target] if target in of else row for target, row in rows]
                weights[f"blocks.{number}.attn.qkv.weight"] = torch.cat(changed)
        return weights


class LoRAModel(FeatureModel):
    """A frozen backbone whose projections are changed by the sum of a bank's directions, and a linear head.

    It maps images [B, C, H, W] to logits [B, num_classes]. The changed weights are computed in fp32 outside the network
    and passed to it, so its graph is the same for any number of directions. Subclasses override `coefficients` to
    weight the directions.

    Args:
        backbone: ViT without head; it is frozen in place.
        num_classes: size of the head.
        targets: projections to update, see `LoRABank`.
        rank: rank of the largest direction that will be added.
        alpha: every direction is scaled by alpha / rank; None: by 1.
        bank: makes the bank from (backbone, targets, rank, alpha): a subclass of `LoRABank`.

    Raises:
        UserError: see `LoRABank`.
    """

    head: nn.Linear

    def __init__(
        self,
        backbone: VisionTransformer,
        num_classes: int,
        targets: Sequence[Target],
        rank: int,
        alpha: float | None = None,
        bank: Callable[[VisionTransformer, Sequence[Target], int, float | None], LoRABank] = LoRABank,
    ) -> None:
        super().__init__(backbone.requires_grad_(False), linear_head(backbone.num_features, num_classes))
        self.bank = bank(backbone, targets, rank, alpha)

    def grow(self, rank: int, generator: torch.Generator) -> None:
        """Add a direction at the start of LoRA, where its product is 0.

        Args:
            rank: rank of the direction.
            generator: CPU generator of the random draws.
        """
        self.bank.grow(rank, generator, self.device)

    def coefficients(self) -> Tensor:
        """Coefficients of the K directions, [K, L, P]; by default 1."""
        return torch.ones(len(self.bank), self.bank.blocks, len(self.bank.targets), device=self.device)

    def merge(self) -> None:
        """Fold all directions into the bank's base: the model computes the same function without them."""
        self.bank.fold(self.coefficients())

    def update(self) -> Tensor:
        """Change of the projections by all directions, [L, P, d, d]."""
        return self.bank.update(self.coefficients())

    def weights(self, update: Tensor | None = None) -> dict[str, Tensor]:
        """Changed weights of the backbone, by parameter name; empty without directions.

        Args:
            update: change of the projections, [L, P, d, d]; None: the model's `update()`, computed at the precision of
                the pass.
        """
        if not len(self.bank) and self.bank.base is None:
            return {}
        if update is None:
            update = self.bank.update(self.coefficients(), self.vit.execution.dtype)
        return self.bank.weights(self.backbone, update)

    def features(self, images: Tensor) -> Tensor:
        """CLS features [B, d] of images [B, C, H, W] with the update applied."""
        return self.vit.features(images, weights=self.weights())

    @torch.no_grad()
    def merged(self, update: Tensor | None = None) -> nn.Module:
        """A module that predicts like the model in its present state at the cost of a plain ViT.

        Args:
            update: change of the projections, [L, P, d, d]; None: the model's `update()`.
        """
        return _Merged(self.vit, self.weights(update), self.predicting_head).eval()


class _Merged(nn.Module):
    """A ViT some of whose weights are replaced, and a head."""

    def __init__(self, vit: ViT, weights: dict[str, Tensor], head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.vit, self.weights, self.head = vit.backbone, vit, weights, head

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.vit.features(images, weights=self.weights))


@torch.no_grad()
def attention_covariances(model: LoRAModel, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, int]:
    """Uncentred second moments of the inputs of every block's attention, over all tokens of all images.

    Args:
        model: model whose changed weights are used.
        batches: batches of (images [B, C, H, W], labels); labels are ignored.

    Returns:
        E[x x^T] with x the output of the block's first norm, float64 [L, d, d]; and the number of tokens.
    """
    dim = model.bank.dim
    sums = torch.zeros(model.bank.blocks, dim, dim, dtype=torch.float64, device=model.device)
    tokens = 0
    weights = model.weights()
    for images, _ in batches:
        seen = model.vit.attention_inputs(images, weights=weights)
        for number, x in enumerate(seen):
            flat = x.flatten(0, 1)
            sums[number] += (flat.T @ flat).double()
        tokens += seen[0].shape[0] * seen[0].shape[1]
    return sums / tokens, tokens
