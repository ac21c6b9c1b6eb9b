"""Triton kernels on trial, as operators that `torch.compile` keeps in its graph; `benchmarks/kernels.py` times them.

GELU and its way back, alone and with the row-wise quantisation of its result; the sum of the residual stream and a
branch with the norm that follows; attention of sequences that fit in one tile, whose queries, keys and values lie in
one tensor, as the qkv layer writes them. `TRITON_INTERPRET=1` runs them on a CPU.
"""
# No postponed annotations: torch derives the operators' schemas from them.

import torch
import triton
import triton.language as tl
from torch import Tensor

PLAIN, GELU, GELU_BACKWARD = 0, 1, 2
"""What is done with the elements of a tensor: nothing; GELU; the gradient by GELU's input."""


@triton.jit
def _normal(x):  # type: ignore[no-untyped-def]
    """Distribution function of the standard normal, and exp(-x^2 / 2) (Abramowitz and Stegun 7.1.26, to 1e-7)."""
    t = 1.0 / (1.0 + 0.2316418882 * tl.abs(x))
    density = tl.exp2(-0.7213475204 * x * x)
    series = t * (0.127414796 + t * (-0.142248368 + t * (0.7107068705 + t * (-0.7265760135 + t * 0.5307027145))))
    tail = series * density
    return tl.where(x < 0, tail, 1.0 - tail), density


@triton.jit
def _apply(x, grad, at, inside, KIND: tl.constexpr):  # type: ignore[no-untyped-def]
    """Elements at offsets `at`, in fp32, after what `KIND` says."""
    values = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    if KIND == 0:
        return values
    cdf, density = _normal(values)
    if KIND == 1:
        return values * cdf
    return tl.load(grad + at, mask=inside, other=0.0).to(tl.float32) * (cdf + 0.3989422804 * values * density)


@triton.jit
def _elements(x, grad, out, count, KIND: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    tl.store(out + at, _apply(x, grad, at, inside, KIND), mask=inside)


@triton.jit
def _rows(x, grad, out, scales, width, limit, KIND: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    at, inside = row * width + columns, columns < width
    values = _apply(x, grad, at, inside, KIND)
    top = tl.maximum(tl.max(tl.abs(values), axis=0), 1e-12)
    tl.store(out + at, (values * (limit / top)).to(out.dtype.element_ty), mask=inside)
    tl.store(scales + row, top / limit)


@triton.jit
def _add_norm(  # type: ignore[no-untyped-def]
    x, branch, weight, bias, total, out, means, rates, rows, width, eps, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)
    within = columns < width
    at, inside = row[:, None] * width + columns[None, :], (row < rows)[:, None] & within[None, :]
    values = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    values += tl.load(branch + at, mask=inside, other=0.0).to(tl.float32)
    # The norm is that of the sum as it is stored.
    rounded = values.to(total.dtype.element_ty)
    tl.store(total + at, rounded, mask=inside)
    values = rounded.to(tl.float32)
    mean = tl.sum(values, axis=1) / width
    centred = tl.where(inside, values - mean[:, None], 0.0)
    rate = tl.rsqrt(tl.sum(centred * centred, axis=1) / width + eps)
    scale = tl.load(weight + columns, mask=within, other=0.0).to(tl.float32)
    shift = tl.load(bias + columns, mask=within, other=0.0).to(tl.float32)
    tl.store(out + at, centred * rate[:, None] * scale[None, :] + shift[None, :], mask=inside)
    tl.store(means + row, mean, mask=row < rows)
    tl.store(rates + row, rate, mask=row < rows)


@triton.jit
def _add_norm_backward(  # type: ignore[no-untyped-def]
    grad, grad_total, total, weight, means, rates, out, rows, width, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)
    within = columns < width
    at, inside = row[:, None] * width + columns[None, :], (row < rows)[:, None] & within[None, :]
    mean = tl.load(means + row, mask=row < rows, other=0.0)
    rate = tl.load(rates + row, mask=row < rows, other=0.0)
    scale = tl.load(weight + columns, mask=within, other=0.0).to(tl.float32)
    values = tl.load(total + at, mask=inside, other=0.0).to(tl.float32)
    normed = tl.where(inside, (values - mean[:, None]) * rate[:, None], 0.0)
    scaled = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32) * scale[None, :]
    average = tl.sum(scaled, axis=1) / width
    slope = tl.sum(scaled * normed, axis=1) / width
    result = rate[:, None] * (scaled - average[:, None] - normed * slope[:, None])
    result += tl.load(grad_total + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, result, mask=inside)


@triton.jit
def _attend(  # type: ignore[no-untyped-def]
    qkv, out, logs, heads, tokens, scale, D: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr
):
    """Attention of one tile of queries of one head to all keys, which fit in one tile; `scale` is for exp2."""
    image, head = tl.program_id(1) // heads, tl.program_id(1) % heads
    width = heads * D
    base = qkv + image.to(tl.int64) * tokens * 3 * width + head * D
    rows = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    keys, d = tl.arange(0, KEYS), tl.arange(0, D)
    at_keys, inside = keys[:, None] * (3 * width) + d[None, :], (keys < tokens)[:, None]
    q = tl.load(base + rows[:, None] * (3 * width) + d[None, :], mask=(rows < tokens)[:, None], other=0.0)
    k = tl.load(base + width + at_keys, mask=inside, other=0.0)
    v = tl.load(base + 2 * width + at_keys, mask=inside, other=0.0)
    scores = tl.where((keys < tokens)[None, :], tl.dot(q, tl.trans(k)) * scale, float("-inf"))
    top = tl.max(scores, axis=1)
    shares = tl.exp2(scores - top[:, None])
    sums = tl.sum(shares, axis=1)
    mixed = tl.dot(shares.to(v.dtype), v) / sums[:, None]
    to = out + (image.to(tl.int64) * tokens + rows[:, None]) * width + head * D + d[None, :]
    tl.store(to, mixed.to(v.dtype), mask=(rows < tokens)[:, None])
    tl.store(logs + tl.program_id(1) * tokens + rows, top + tl.log2(sums), mask=rows < tokens)


@triton.jit
def _attend_backward(  # type: ignore[no-untyped-def]
    qkv, out, logs, grad, grads, heads, tokens, scale, factor, D: tl.constexpr, QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
):  # fmt: skip
    """Gradients of one head by its queries, keys and values; `scale` is for exp2, `factor` is that of the scores."""
    image, head = tl.program_id(0) // heads, tl.program_id(0) % heads
    width = heads * D
    first = image.to(tl.int64) * tokens
    base, to = qkv + first * 3 * width + head * D, grads + first * 3 * width + head * D
    keys, d = tl.arange(0, KEYS), tl.arange(0, D)
    at_keys, inside = keys[:, None] * (3 * width) + d[None, :], (keys < tokens)[:, None]
    k = tl.load(base + width + at_keys, mask=inside, other=0.0)
    v = tl.load(base + 2 * width + at_keys, mask=inside, other=0.0)
    grad_k = tl.zeros([KEYS, D], dtype=tl.float32)
    grad_v = tl.zeros([KEYS, D], dtype=tl.float32)
    for start in range(0, tokens, QUERIES):
        rows = start + tl.arange(0, QUERIES)
        valid = (rows < tokens)[:, None]
        at_rows = rows[:, None] * (3 * width) + d[None, :]
        at_out = (first + rows[:, None]) * width + head * D + d[None, :]
        q = tl.load(base + at_rows, mask=valid, other=0.0)
        into = tl.load(grad + at_out, mask=valid, other=0.0)
        mixed = tl.load(out + at_out, mask=valid, other=0.0)
        log = tl.load(logs + tl.program_id(0) * tokens + rows, mask=rows < tokens, other=0.0)
        inner = tl.sum(into.to(tl.float32) * mixed.to(tl.float32), axis=1)
        scores = tl.dot(k, tl.trans(q)) * scale
        shares = tl.where(inside, tl.exp2(scores - log[None, :]), 0.0)
        grad_v += tl.dot(shares.to(v.dtype), into)
        of_scores = (shares * (tl.dot(v, tl.trans(into)) - inner[None, :])).to(v.dtype)
        grad_k += tl.dot(of_scores, q)
        # The product has as many rows as a head has dimensions: Hopper's matrix unit takes no fewer than 64.
        grad_q = tl.trans(tl.dot(tl.trans(k), of_scores)) * factor
        tl.store(to + at_rows, grad_q.to(k.dtype), mask=valid)
    tl.store(to + width + at_keys, (grad_k * factor).to(k.dtype), mask=inside)
    tl.store(to + 2 * width + at_keys, grad_v.to(k.dtype), mask=inside)


ELEMENTS = {"BLOCK": 2048, "num_warps": 4}
"""Launch of the elementwise kernel; `benchmarks.kernels` tries others."""
ROWS = {"num_warps": 8}
"""Launch of the quantising kernel."""
NORM = {"ROWS": 2, "num_warps": 4}
"""Launch of the norms."""
FORWARD = {"QUERIES": 64, "num_warps": 4}
"""Launch of attention."""
BACKWARD = {"QUERIES": 32, "num_warps": 8}
"""Launch of attention's way back."""


def _elementwise(x: Tensor, grad: Tensor, kind: int) -> Tensor:
    out, count = torch.empty_like(x), x.numel()
    _elements[(triton.cdiv(count, ELEMENTS["BLOCK"]),)](x, grad, out, count, KIND=kind, **ELEMENTS)
    return out


def _quantised(x: Tensor, grad: Tensor, kind: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    rows, width = x.shape
    out, scales = torch.empty_like(x, dtype=dtype), x.new_empty(rows, 1, dtype=torch.float32)
    block = triton.next_power_of_2(width)
    _rows[(rows,)](x, grad, out, scales, width, torch.finfo(dtype).max, KIND=kind, BLOCK=block, **ROWS)
    return out, scales


@torch.library.custom_op("cl_bench_trial::gelu", mutates_args=())
def gelu(x: Tensor) -> Tensor:
    """GELU with the exact normal distribution, of a contiguous tensor; the way back computes it again."""
    return _elementwise(x, x, GELU)


@torch.library.custom_op("cl_bench_trial::gelu_backward", mutates_args=())
def gelu_backward(grad: Tensor, x: Tensor) -> Tensor:
    """Gradient by GELU's input x, both contiguous."""
    return _elementwise(x, grad.contiguous(), GELU_BACKWARD)


@torch.library.custom_op("cl_bench_trial::quantise", mutates_args=())
def quantise(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rows of x [M, d] in fp8 and their scales [M, 1]: x is about their product."""
    return _quantised(x.contiguous(), x, PLAIN, dtype)


@torch.library.custom_op("cl_bench_trial::gelu_quantise", mutates_args=())
def gelu_quantise(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """GELU of x [M, d], quantised by rows."""
    return _quantised(x, x, GELU, dtype)


@torch.library.custom_op("cl_bench_trial::gelu_backward_quantise", mutates_args=())
def gelu_backward_quantise(grad: Tensor, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Gradient by GELU's input x [M, d], quantised by rows."""
    return _quantised(x, grad.contiguous(), GELU_BACKWARD, dtype)


@torch.library.custom_op("cl_bench_trial::add_norm", mutates_args=())
def add_norm(
    x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sum of x and branch [M, d], its layer norm, and mean and rate (1 / deviation) of each row."""
    rows, width = x.shape
    total, out = torch.empty_like(x), torch.empty_like(x)
    means, rates = (x.new_empty(rows, dtype=torch.float32) for _ in range(2))
    grid = (triton.cdiv(rows, NORM["ROWS"]),)
    block = triton.next_power_of_2(width)
    _add_norm[grid](x, branch, weight, bias, total, out, means, rates, rows, width, eps, BLOCK=block, **NORM)
    return total, out, means, rates


@torch.library.custom_op("cl_bench_trial::add_norm_backward", mutates_args=())
def add_norm_backward(
    grad: Tensor, grad_total: Tensor, total: Tensor, weight: Tensor, means: Tensor, rates: Tensor
) -> Tensor:
    """Gradient by each term of the sum, from those by the norm and by the sum; the norm's weights are frozen."""
    (rows, width), out = total.shape, torch.empty_like(total)
    grid = (triton.cdiv(rows, NORM["ROWS"]),)
    block = triton.next_power_of_2(width)
    _add_norm_backward[grid](
        grad.contiguous(), grad_total.contiguous(), total, weight, means, rates, out, rows, width, BLOCK=block, **NORM
    )
    return out


def _sizes(qkv: Tensor, heads: int) -> tuple[int, int, int, int]:
    images, tokens, width = qkv.shape
    return images, tokens, width // (3 * heads), max(16, triton.next_power_of_2(tokens))


@torch.library.custom_op("cl_bench_trial::attend", mutates_args=())
def attend(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Attention of queries, keys and values in one contiguous tensor [B, tokens, 3 d].

    Returns:
        [B, tokens, d], and the logarithms (base 2) of the softmax's sums, fp32 [B, heads, tokens].
    """
    images, tokens, d, keys = _sizes(qkv, heads)
    out = qkv.new_empty(images, tokens, heads * d)
    logs = qkv.new_empty(images, heads, tokens, dtype=torch.float32)
    grid = (triton.cdiv(tokens, FORWARD["QUERIES"]), images * heads)
    scale = d**-0.5 * 1.4426950408889634
    _attend[grid](qkv, out, logs, heads, tokens, scale, D=d, KEYS=keys, **FORWARD)
    return out, logs


@torch.library.custom_op("cl_bench_trial::attend_backward", mutates_args=())
def attend_backward(grad: Tensor, qkv: Tensor, out: Tensor, logs: Tensor, heads: int) -> Tensor:
    """Gradient [B, tokens, 3 d] by the queries, keys and values."""
    images, _, d, keys = _sizes(qkv, heads)
    grads, factor = torch.empty_like(qkv), d**-0.5
    _attend_backward[(images * heads,)](
        qkv, out, logs, grad.contiguous(), grads, heads, qkv.shape[1], factor * 1.4426950408889634, factor,
        D=d, KEYS=keys, **BACKWARD,
    )  # fmt: skip
    return grads


@gelu.register_fake
@gelu_backward.register_fake
def _(x: Tensor, *rest: Tensor) -> Tensor:
    return torch.empty_like(x)


def _fake_rows(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x, dtype=dtype), x.new_empty(x.shape[0], 1, dtype=torch.float32)


quantise.register_fake(_fake_rows)
gelu_quantise.register_fake(_fake_rows)
gelu_backward_quantise.register_fake(lambda grad, x, dtype: _fake_rows(x, dtype))


@add_norm.register_fake
def _(x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    of_rows = [x.new_empty(x.shape[0], dtype=torch.float32) for _ in range(2)]
    return torch.empty_like(x), torch.empty_like(x), of_rows[0], of_rows[1]


@add_norm_backward.register_fake
def _(grad: Tensor, grad_total: Tensor, total: Tensor, *rest: Tensor) -> Tensor:
    return torch.empty_like(total)


@attend.register_fake
def _(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    images, tokens, width = qkv.shape
    return qkv.new_empty(images, tokens, width // 3), qkv.new_empty(images, heads, tokens, dtype=torch.float32)


@attend_backward.register_fake
def _(grad: Tensor, qkv: Tensor, out: Tensor, logs: Tensor, heads: int) -> Tensor:
    return torch.empty_like(qkv)


gelu.register_autograd(
    lambda ctx, grad: gelu_backward(grad, *ctx.saved_tensors),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)


def _save_attention(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.heads = inputs[1]
    ctx.save_for_backward(inputs[0], *output)


attend.register_autograd(
    lambda ctx, grad, _: (attend_backward(grad, *ctx.saved_tensors, ctx.heads), None),
    setup_context=_save_attention,
)
