"""What the kernels of a training step cost, and what other kernels would: `python -m benchmarks.kernels`.

The parts of a ViT's block at the shapes of ViT-B/16 at 224 and ViT-S/14 at 112, with random data: the four linear
layers in bf16 and fp8, GELU, the norms and attention, as `torch.compile` makes them and by other kernels
(`benchmarks/trial_kernels.py`); then a chain of 12 blocks with everything frozen but the qkv weights, as in SD-LoRA,
forward and backward. Milliseconds are medians of CUDA graphs that go round several inputs, so launches cost nothing and
no input is in the cache; errors are relative, ||x - reference|| / ||reference||, to the same in fp32.
`--tiny` tries everything on small shapes, also on a CPU; `TRITON_INTERPRET=1` then runs the kernels too (it multiplies
no bf16, so attention's errors mean nothing there, and it rounds towards 0).
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

try:
    from benchmarks import trial_kernels as trial
except ImportError:
    # Triton is missing: the rows that need it say so.
    trial = None  # type: ignore[assignment]

BF16, E4M3, E5M2 = torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2
SETS = 4
"""Inputs a measurement goes round: together several times as large as the 50 or 60 MB of cache."""
Row = dict[str, float | str]
Scaled = tuple[Tensor, Tensor]
"""An fp8 matrix and its scales."""
Weights = dict[str, Tensor]
"""Of one block, by name. Frozen fp8 weights: `NAME.8` and its scales `NAME.8s`, and both transposed: `NAME.t8`."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a network's blocks and of a batch."""

    batch: int
    tokens: int
    dim: int
    heads: int
    blocks: int = 12

    @property
    def rows(self) -> int:
        """Tokens of the batch."""
        return self.batch * self.tokens

    @property
    def layers(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of a block's linear layers."""
        d = self.dim
        return {"qkv": (d, 3 * d), "proj": (d, d), "fc1": (d, 4 * d), "fc2": (4 * d, d)}


SHAPES = {"ViT-B/16 at 224": Shape(128, 197, 768, 12), "ViT-S/14 at 112": Shape(128, 65, 384, 6)}
TINY = {"tiny": Shape(2, 17, 128, 2, blocks=2)}


class Report:
    """Rows of all parts. What fails becomes a row with the reason, and what follows goes on.

    Args:
        device: where everything runs.
        backend: of `torch.compile`.
        repeats: timed replays of each measurement.
        budget: seconds after which nothing else is measured.
        out: JSON file, written after each part.
    """

    def __init__(self, device: torch.device, backend: str, repeats: int, budget: float, out: Path | None) -> None:
        self.device, self.backend, self.repeats, self.budget, self.out = device, backend, repeats, budget, out
        self.parts: dict[str, list[Row]] = {}
        self.began = time.perf_counter()

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.began

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function compiled as the project compiles a pass."""
        return torch.compile(function, dynamic=False, backend=self.backend)

    def row(self, part: str, name: str, measure: Callable[[], Row]) -> Row:
        """Measure a row and keep it."""
        try:
            if self.elapsed > self.budget:
                raise TimeoutError(f"left out after {self.budget:.0f} s (--budget)")
            found = measure()
        except Exception as error:  # one measurement must not end the others
            lines = str(error).strip().splitlines() or [""]
            found = {"reason": f"{type(error).__name__}: {lines[0][:160]}"}
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        row: Row = {"what": name, **found}
        self.parts.setdefault(part, []).append(row)
        return row

    def ms(self, run: Callable[[int], object], sets: int = SETS) -> float:
        """Milliseconds of a call, of which `run(i)` makes one with the inputs i."""
        if self.device.type != "cuda":
            run(0)
            began = time.perf_counter()
            run(0)
            return 1000 * (time.perf_counter() - began)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for i in [*range(sets), 0]:
                run(i)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for i in range(sets):
                run(i)
        # After the host has compiled something, the clocks have to rise again.
        began = time.perf_counter()
        while time.perf_counter() - began < 0.05:
            graph.replay()
            torch.cuda.synchronize()
        events = [torch.cuda.Event(enable_timing=True) for _ in range(self.repeats + 1)]
        for event in events[:-1]:
            event.record()
            graph.replay()
        events[-1].record()
        torch.cuda.synchronize()
        return median(a.elapsed_time(b) for a, b in zip(events, events[1:], strict=False)) / sets

    def show(self, part: str) -> None:
        """Print a part's table and write all parts so far."""
        rows = self.parts.get(part, [])
        heads = list(dict.fromkeys(key for row in rows for key in row))
        table = Table(*heads, title=f"{part} ({self.elapsed:.0f} s)", title_justify="left", box=None, pad_edge=False)
        for row in rows:
            table.add_row(*(_text(row.get(head, "")) for head in heads))
        Console(width=200).print(table)
        if self.out is not None:
            self.out.write_text(json.dumps(self.parts, indent=1) + "\n")


def _text(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.4f}" if abs(value) < 10 else f"{value:,.1f}"


def error(x: Tensor, reference: Tensor) -> float:
    """Relative error of x."""
    return float((x.float() - reference.float()).norm() / reference.float().norm())


def normal(x: Tensor) -> tuple[Tensor, Tensor]:
    """Distribution function of the standard normal, and exp(-x^2 / 2), of fp32 (Abramowitz and Stegun 7.1.26).

    Off by 1e-7 at most, a thousandth of bf16's rounding; a third of the instructions of `erf`, and the way back needs
    the same exponential.
    """
    t = 1 / (1 + 0.2316418882 * x.abs())
    density = torch.exp(-0.5 * x * x)
    series = t * (0.127414796 + t * (-0.142248368 + t * (0.7107068705 + t * (-0.7265760135 + t * 0.5307027145))))
    tail = series * density
    return torch.where(x < 0, tail, 1 - tail), density


def gelu_by_formula(x: Tensor) -> Tensor:
    """GELU with `normal`."""
    return (x.float() * normal(x.float())[0]).to(x.dtype)


def gelu_backward_by_formula(grad: Tensor, x: Tensor) -> Tensor:
    """Gradient by GELU's input, with `normal`."""
    wide = x.float()
    share, density = normal(wide)
    return (grad.float() * (share + 0.3989422804 * wide * density)).to(x.dtype)


def gelu_backward(grad: Tensor, x: Tensor) -> Tensor:
    """Gradient by the input of torch's GELU."""
    return torch.ops.aten.gelu_backward(grad, x)


def quantise(x: Tensor, dtype: torch.dtype = E4M3) -> Scaled:
    """Rows of x [M, d] in fp8 and their scales [M, 1]: x is about their product."""
    wide, limit = x.float(), torch.finfo(dtype).max
    top = wide.abs().amax(1, keepdim=True).clamp(min=1e-12)
    return (wide * (limit / top)).clamp(-limit, limit).to(dtype), top / limit


def quantise_whole(x: Tensor, dtype: torch.dtype = E4M3) -> Scaled:
    """x in fp8 with one scale for all of it."""
    wide, limit = x.float(), torch.finfo(dtype).max
    top = wide.abs().amax().clamp(min=1e-12)
    return (wide * (limit / top)).clamp(-limit, limit).to(dtype), top / limit


def product(a: Scaled, b: Scaled, bias: Tensor | None, fast: bool = True) -> Tensor:
    """bf16 product of fp8 matrices a [M, K] and b^T [K, N]; their scales are [M, 1] and [N, 1], or one for each."""
    scale = b[1].t() if b[1].ndim else b[1]
    if a[0].device.type == "cpu":
        out = (a[0].float() @ b[0].float().t()) * a[1] * scale
        return (out if bias is None else out + bias).to(BF16)
    return torch._scaled_mm(a[0], b[0].t(), a[1], scale, bias=bias, out_dtype=BF16, use_fast_accum=fast)


def allow_recompilations() -> None:
    """Let one function be compiled for many shapes."""
    torch._dynamo.config.recompile_limit = 256
    torch._dynamo.config.accumulated_recompile_limit = 1024


def ceilings(report: Report, tiny: bool) -> float:
    """Rates of a large copy and of large products; returns the copy's GB/s."""
    device, size, count = report.device, 256 if tiny else 8192, 2**16 if tiny else 2**29
    found = [float("nan")]

    def copy() -> Row:
        x = torch.randn(count, device=device, dtype=BF16)
        out = torch.empty_like(x)
        ms = report.ms(lambda i: out.copy_(x), 1)
        found[0] = 4 * count / ms / 1e6
        return {"ms": ms, "GB/s": found[0]}

    def rate(multiply: Callable[[], object]) -> Row:
        ms = report.ms(lambda i: multiply(), 1)
        return {"ms": ms, "TFLOP/s": 2 * size**3 / ms / 1e9}

    def scaled(how: Callable[[Tensor], Scaled], fast: bool) -> Row:
        return rate(partial(product, how(a), how(b), None, fast))

    report.row("ceilings", "copy", copy)
    a, b = (torch.randn(size, size, device=device, dtype=BF16) for _ in range(2))
    report.row("ceilings", "product, bf16", lambda: rate(lambda: a @ b.t()))
    for name, how in (("rows", quantise), ("whole", quantise_whole)):
        for fast in (True, False):
            kind = f"product, fp8 by {name}{'' if fast else ', exact sums'}"
            report.row("ceilings", kind, partial(scaled, how, fast))
    report.show("ceilings")
    return found[0]


def products(report: Report, name: str, shape: Shape) -> None:
    """The linear layers of a block, forward and backward by their input."""
    device = report.device
    by_rows, whole = report.compiled(quantise), report.compiled(quantise_whole)
    for layer, (inputs, outputs) in shape.layers.items():
        weight = torch.randn(outputs, inputs, device=device) * inputs**-0.5
        for forward in (True, False):
            matrix = weight if forward else weight.t().contiguous()
            bias = torch.randn(outputs, device=device, dtype=BF16) if forward else None
            given = []
            for _ in range(SETS):
                x = torch.randn(shape.rows, matrix.shape[1], device=device)
                if not forward:
                    x *= torch.randn(shape.rows, 1, device=device).exp()
                given.append(x.to(BF16))
            _products(report, f"products, {name}", f"{layer} {'forward' if forward else 'backward'}", given, matrix,
                      bias, by_rows, whole)  # fmt: skip
    report.show(f"products, {name}")


def _products(
    report: Report, part: str, label: str, xs: list[Tensor], matrix: Tensor, bias: Tensor | None, *quantisers: Any
) -> None:
    """One row: milliseconds and errors of one product x matrix^T."""
    by_rows, whole = quantisers
    rounded = matrix.to(BF16) if bias is not None else matrix.t().contiguous().to(BF16).t()
    true = xs[0].float() @ matrix.t() + (0 if bias is None else bias.float())
    weights, total = quantise(matrix), quantise_whole(matrix)
    linear = report.compiled(lambda x: F.linear(x, rounded, bias))
    rows8, whole8, rows5 = ([how(x) for x in xs] for how in (quantise, quantise_whole, partial(quantise, dtype=E5M2)))

    def in_triton(x: Tensor) -> Tensor:
        return product(trial.quantise(x, E4M3), weights, bias)

    def measured(run: Callable[[int], Tensor]) -> Row:
        return {"ms": report.ms(run), "error": error(run(0), true)}

    candidates: dict[str, Callable[[int], Tensor]] = {
        "bf16": lambda i: F.linear(xs[i], rounded, bias),
        "compiled": lambda i: linear(xs[i]),
        "fp8 rows": lambda i: product(rows8[i], weights, bias),
        "exact sums": lambda i: product(rows8[i], weights, bias, False),
        "e5m2": lambda i: product(rows5[i], weights, bias),
        "+ quantise": lambda i: product(by_rows(xs[i]), weights, bias),
        "in Triton": lambda i: in_triton(xs[i]),
        "fp8 whole": lambda i: product(whole8[i], total, bias),
        "whole + quantise": lambda i: product(whole(xs[i]), total, bias),
    }
    row: Row = {}
    errors: Row = {}
    for kind, run in candidates.items():
        if kind == "e5m2" and bias is not None:
            continue
        found = report.row("all products", f"{part} {label} {kind}", partial(measured, run))
        row[kind] = found.get("ms", found.get("reason", ""))
        if kind in ("bf16", "fp8 rows", "e5m2", "fp8 whole"):
            errors[f"error, {kind}"] = found.get("error", "")
    report.row(part, label, lambda: {**row, **errors})


def settings(options: dict[str, int], choices: Iterable[dict[str, int]]) -> Iterable[str]:
    """Set the launch of a trial kernel to each of the choices in turn, and say it."""
    for choice in choices:
        options.clear()
        options.update(choice)
        yield ", ".join(f"{key} {value}" for key, value in choice.items())


def swept(
    report: Report, part: str, name: str, options: dict[str, int], choices: list[dict[str, int]],
    measure: Callable[[], Row],
) -> None:  # fmt: skip
    """Measure a trial kernel with each launch, and keep the fastest for what follows."""
    fastest, best = dict(options), float("inf")
    for choice, label in zip(choices, settings(options, choices), strict=True):
        ms = report.row(part, f"{name}, Triton, {label}", measure).get("ms", float("inf"))
        if isinstance(ms, float) and ms < best:
            fastest, best = choice, ms
    options.clear()
    options.update(fastest)


def _then_quantised(function: Callable[..., Tensor]) -> Callable[..., Scaled]:
    return lambda *given: quantise(function(*given))


def gelus(report: Report, name: str, shape: Shape, rate: float) -> None:
    """GELU and its way back; the bias is added by the product before it, at no cost."""
    part, device = f"GELU, {name}", report.device
    xs, grads = (
        [torch.randn(shape.rows, 4 * shape.dim, device=device).to(BF16) for _ in range(SETS)] for _ in range(2)
    )
    count = xs[0].numel()
    wide = xs[0].double()
    share = 0.5 * torch.erfc(-wide * 0.5**0.5)
    true = (wide * share).float()
    slope = share + wide * torch.exp(-0.5 * wide * wide) * 0.3989422804014327
    true_grad = (grads[0].double() * slope).float()
    del wide, share, slope

    def measured(function: Callable[..., Any], back: bool, size: int) -> Row:
        def run(i: int) -> Any:
            return function(grads[i], xs[i]) if back else function(xs[i])

        ms, out = report.ms(run), run(0)
        if isinstance(out, tuple):
            out = out[0].float() * out[1]
        gigabytes = size * count / 1e9
        return {
            "ms": ms,
            "MB": 1000 * gigabytes,
            "of the copy's rate": 1e3 * gigabytes / ms / rate,
            "error": error(out, true_grad if back else true),
        }

    for back, way in ((False, "forward"), (True, "backward")):
        kinds: tuple[Callable[..., Tensor], ...] = (F.gelu, gelu_by_formula)
        if back:
            kinds = (gelu_backward, gelu_backward_by_formula)
        for kind, function in zip(("compiled", "compiled, by formula"), kinds, strict=True):
            run = report.compiled(function)
            report.row(part, f"{way}, {kind}", partial(measured, run, back, 6 if back else 4))
            quantised = report.compiled(_then_quantised(function))
            report.row(part, f"{way} to fp8, {kind}", partial(measured, quantised, back, 5 if back else 3))
        if trial is None:
            report.row(part, f"{way}, Triton", lambda: {"reason": "Triton is not installed"})
            continue
        launches = [{"BLOCK": block, "num_warps": warps} for block, warps in ((1024, 4), (2048, 4), (4096, 8))]
        op = trial.gelu_backward if back else trial.gelu
        swept(report, part, way, trial.ELEMENTS, launches, partial(measured, op, back, 6 if back else 4))
        op8 = trial.gelu_backward_quantise if back else trial.gelu_quantise
        swept(
            report, part, f"{way} to fp8", trial.ROWS, [{"num_warps": warps} for warps in (4, 8, 16)],
            partial(measured, lambda *given, op8=op8: op8(*given, E4M3), back, 5 if back else 3),
        )  # fmt: skip
    report.show(part)


def add_norm(x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
    """The sum, its layer norm, and mean and rate of each row."""
    total = x + branch
    return (total, *torch.ops.aten.native_layer_norm(total, [total.shape[-1]], weight, bias, 1e-6))


def add_norm_quantised(x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
    """As `add_norm`, with the norm in fp8 and its scales."""
    total, out, mean, rate = add_norm(x, branch, weight, bias)
    return (total, *quantise(out), mean, rate)


def add_norm_backward(
    grad: Tensor, grad_total: Tensor, total: Tensor, weight: Tensor, mean: Tensor, rate: Tensor
) -> Any:
    """Gradient by the sum's terms."""
    wanted = [True, False, False]
    out = torch.ops.aten.native_layer_norm_backward(grad, total, [total.shape[-1]], mean, rate, weight, weight, wanted)
    return out[0] + grad_total


def norms(report: Report, name: str, shape: Shape, rate: float) -> None:
    """The sum of residual stream and branch with the norm that follows, and its way back."""
    part, device, (m, d) = f"norm and residual, {name}", report.device, (shape.rows, shape.dim)
    sets = 2 * SETS
    xs, branches, grads = ([torch.randn(m, d, device=device).to(BF16) for _ in range(sets)] for _ in range(3))
    weight, bias = (torch.randn(d, device=device).to(BF16) for _ in range(2))
    true = F.layer_norm((xs[0] + branches[0]).float(), (d,), weight.float(), bias.float(), 1e-6)
    totals = [add_norm(x, branch, weight, bias) for x, branch in zip(xs, branches, strict=True)]
    leaf = totals[0][0].float().requires_grad_()
    (true_grad,) = torch.autograd.grad(
        F.layer_norm(leaf, (d,), weight.float(), bias.float(), 1e-6), leaf, grads[0].float()
    )
    true_grad = true_grad + xs[0].float()

    def measured(function: Callable[..., Any], back: bool, size: int) -> Row:
        def run(i: int) -> Any:
            if back:
                total, _, mean, deviation = totals[i]
                return function(grads[i], xs[i], total, weight, mean, deviation)
            return function(xs[i], branches[i], weight, bias)

        ms, out = report.ms(run, sets), run(0)
        got = out if back else out[1].float() * out[2] if out[1].dtype == E4M3 else out[1]
        return {
            "ms": ms,
            "MB": size * m * d / 1e6,
            "of the copy's rate": size * m * d / 1e6 / ms / rate,
            "error": error(got, true_grad if back else true),
        }

    report.row(part, "forward, compiled", partial(measured, report.compiled(add_norm), False, 8))
    report.row(part, "forward to fp8, compiled", partial(measured, report.compiled(add_norm_quantised), False, 7))
    launches = [{"ROWS": rows, "num_warps": warps} for rows, warps in ((1, 4), (2, 4), (4, 8))]
    report.row(part, "backward, compiled", partial(measured, report.compiled(add_norm_backward), True, 8))
    if trial is not None:
        swept(report, part, "forward", trial.NORM, launches,
              partial(measured, lambda *given: trial.add_norm(*given, 1e-6), False, 8))  # fmt: skip
        swept(report, part, "backward", trial.NORM, launches, partial(measured, trial.add_norm_backward, True, 8))
    report.show(part)


def attend(qkv: Tensor, heads: int) -> Tensor:
    """Attention of [B, tokens, 3 d] as the project computes it: [B, tokens, d]."""
    q, k, v = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=2))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def attend3(qkv: Tensor, heads: int) -> Tensor:
    """As `attend`, by FlashAttention-3."""
    attention = importlib.import_module("flash_attn_interface").flash_attn_func
    q, k, v = (part.unflatten(2, (heads, -1)) for part in qkv.chunk(3, dim=2))
    out = attention(q, k, v)
    return (out[0] if isinstance(out, tuple) else out).flatten(2)


def attentions(report: Report, name: str, shape: Shape) -> None:
    """Attention from the output of qkv to the input of proj, and back to one gradient for qkv's output."""
    part, device = f"attention, {name}", report.device
    size = (shape.batch, shape.tokens, shape.dim)
    grads = [torch.randn(size, device=device).to(BF16) for _ in range(SETS)]
    qkvs = [torch.randn(*size[:2], 3 * shape.dim, device=device).to(BF16).requires_grad_() for _ in range(SETS)]
    leaf = qkvs[0].detach().float().requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):
        true = attend(leaf, shape.heads)
        (true_grad,) = torch.autograd.grad(true, leaf, grads[0].float())
    true = true.detach()

    def measured(function: Callable[[Tensor, int], Tensor], backend: SDPBackend | None = None) -> Row:
        def both(i: int) -> tuple[Tensor, Tensor]:
            out = function(qkvs[i], shape.heads)
            return out, torch.autograd.grad(out, qkvs[i], grads[i])[0]

        def timed() -> Row:
            forward, total = report.ms(lambda i: function(qkvs[i], shape.heads)), report.ms(both)
            out, grad = both(0)
            return {
                "forward": forward,
                "backward": total - forward,
                "ms": total,
                "error": error(out.detach(), true),
                "error of the gradient": error(grad, true_grad),
            }

        if backend is None:
            return timed()
        with sdpa_kernel(backend):
            return timed()

    report.row(part, "torch's choice", partial(measured, attend))
    report.row(part, "torch's choice, compiled", partial(measured, report.compiled(attend)))
    for backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION):
        report.row(part, backend.name.lower(), partial(measured, attend, backend))
    report.row(part, "FlashAttention-3", partial(measured, attend3))
    if trial is not None:
        own = partial(measured, lambda qkv, heads: trial.attend(qkv, heads)[0])
        forward = [{"QUERIES": rows, "num_warps": warps} for rows, warps in ((64, 4), (128, 8), (64, 8))]
        swept(report, part, "forward", trial.FORWARD, forward, own)
        launches = [(32, 8, 1), (32, 8, 3), (16, 8, 2), (64, 8, 1)]
        backward = [{"QUERIES": a, "num_warps": b, "num_stages": c} for a, b, c in launches]
        swept(report, part, "backward", trial.BACKWARD, backward, own)
    report.show(part)


class FrozenLinear8(torch.autograd.Function):
    """A linear layer with a frozen fp8 weight: rows of the input and of its gradient are quantised."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, scale: Tensor, back: Tensor, back_scale: Tensor, bias: Tensor
    ) -> Any:
        ctx.save_for_backward(back, back_scale)
        return product(quantise(x), (weight, scale), bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return product(quantise(grad), ctx.saved_tensors, None), None, None, None, None, None


class Linear8(torch.autograd.Function):
    """A linear layer with a trained bf16 weight: fp8 forward and backward by the input, bf16 by the weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Any:
        ctx.save_for_backward(x, weight)
        return product(quantise(x), quantise(weight), bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        return product(quantise(grad), quantise(weight.t().contiguous()), None), grad.t() @ x, None


class FrozenMLP8(torch.autograd.Function):
    """fc1, GELU and fc2 with frozen fp8 weights; of the activations only GELU's input is kept, in bf16."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, in_triton: bool, *weights: Tensor) -> Any:
        first, scale, back, back_scale, bias, second, scale2, back2, back_scale2, bias2 = weights
        hidden = product(quantise(x), (first, scale), bias)
        ctx.save_for_backward(hidden, back, back_scale, back2, back_scale2)
        ctx.in_triton = in_triton
        seen = trial.gelu_quantise(hidden, E4M3) if in_triton else quantise(gelu_by_formula(hidden))
        return product(seen, (second, scale2), bias2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        hidden, back, back_scale, back2, back_scale2 = ctx.saved_tensors
        grad = product(quantise(grad), (back2, back_scale2), None)
        if ctx.in_triton:
            seen = trial.gelu_backward_quantise(grad, hidden, E4M3)
        else:
            seen = quantise(gelu_backward_by_formula(grad, hidden))
        return product(seen, (back, back_scale), None), *[None] * 11


class GELU(torch.autograd.Function):
    """GELU with `normal`, whose way back computes it again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Any:
        ctx.save_for_backward(x)
        return gelu_by_formula(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return gelu_backward_by_formula(grad, *ctx.saved_tensors)


@dataclass(frozen=True)
class Variant:
    """How a chain of blocks is computed.

    Attributes:
        gelu: "torch", "formula" or "triton".
        attention: "torch" or "triton".
        fp8: products in fp8: "none", "frozen", or "all" but the gradients of the qkv weights.
        dtype: of weights and activations.
    """

    gelu: str = "torch"
    attention: str = "torch"
    fp8: str = "none"
    dtype: torch.dtype = BF16


CHAINS = {
    "bf16": Variant(),
    "bf16, GELU by formula": Variant(gelu="formula"),
    "fp8 frozen, GELU in Triton": Variant(gelu="triton", fp8="frozen"),
    "fp8 all, GELU in Triton": Variant(gelu="triton", fp8="all"),
    "bf16, GELU by formula, attention in Triton": Variant(gelu="formula", attention="triton"),
    "fp8 all, GELU and attention in Triton": Variant(gelu="triton", attention="triton", fp8="all"),
    "fp8 frozen, GELU by formula": Variant(gelu="formula", fp8="frozen"),
    "bf16, GELU in Triton": Variant(gelu="triton"),
}
"""In the order of what they decide: the last ones are left out if time is short."""
FROZEN = ("proj", "fc1", "fc2")


def block(x: Tensor, qkv: Tensor, weights: Weights, heads: int, how: Variant) -> Tensor:
    """One block of a ViT on x [B, tokens, d]."""
    size, (batch, tokens, d) = (x.shape[-1],), x.shape

    def frozen8(name: str) -> tuple[Tensor, ...]:
        return tuple(weights[name + end] for end in (".8", ".8s", ".t8", ".t8s", ".b"))

    def linear(x: Tensor, name: str) -> Tensor:
        if how.fp8 == "none":
            return F.linear(x, weights[name], weights[f"{name}.b"])
        return FrozenLinear8.apply(x, *frozen8(name))

    x = x.flatten(0, 1)
    seen = F.layer_norm(x, size, weights["norm1"], weights["norm1.b"], 1e-6)
    bias = weights["qkv.b"]
    parts = (Linear8.apply(seen, qkv, bias) if how.fp8 == "all" else F.linear(seen, qkv, bias)).view(batch, tokens, -1)
    mixed = trial.attend(parts, heads)[0] if how.attention == "triton" else attend(parts, heads)
    x = x + linear(mixed.flatten(0, 1), "proj")
    seen = F.layer_norm(x, size, weights["norm2"], weights["norm2.b"], 1e-6)
    if how.fp8 != "none":
        x = x + FrozenMLP8.apply(seen, how.gelu == "triton", *frozen8("fc1"), *frozen8("fc2"))
    else:
        function = {"torch": F.gelu, "formula": GELU.apply, "triton": trial.gelu if trial else None}[how.gelu]
        x = x + linear(function(linear(seen, "fc1")), "fc2")
    return x.view(batch, tokens, d)


def master_weights(shape: Shape, device: torch.device) -> list[Weights]:
    """fp32 weights of all blocks."""
    torch.manual_seed(0)
    found = []
    for _ in range(shape.blocks):
        weights: Weights = {}
        for name, (inputs, outputs) in shape.layers.items():
            weights[name] = torch.randn(outputs, inputs, device=device) * inputs**-0.5
            weights[f"{name}.b"] = 0.1 * torch.randn(outputs, device=device)
        for name in ("norm1", "norm2"):
            weights[name] = 1 + 0.1 * torch.randn(shape.dim, device=device)
            weights[f"{name}.b"] = 0.1 * torch.randn(shape.dim, device=device)
        found.append(weights)
    return found


def prepared(masters: list[Weights], how: Variant) -> tuple[list[Tensor], list[Weights]]:
    """The trained qkv weights and the frozen ones of a chain, each block's."""
    trained, frozen = [], []
    for master in masters:
        weights = {name: weight.to(how.dtype) for name, weight in master.items()}
        trained.append(weights.pop("qkv").clone().requires_grad_())
        for name in FROZEN if how.fp8 != "none" else ():
            del weights[name]
            weights[f"{name}.8"], weights[f"{name}.8s"] = quantise(master[name])
            weights[f"{name}.t8"], weights[f"{name}.t8s"] = quantise(master[name].t().contiguous())
        frozen.append(weights)
    return trained, frozen


def chain(
    report: Report, shape: Shape, how: Variant, masters: list[Weights], xs: list[Tensor], grad: Tensor, compiled: bool
) -> tuple[Callable[[int], tuple[Tensor, list[Tensor]]], Callable[[int], Tensor]]:
    """Functions of the number of an input: features and gradients of a chain's qkv weights; and features alone.

    Blocks are compiled four at a time, which takes a third of the time of all at once and gives the same kernels but
    for three sums with norms. Features are the normed first tokens; the first block's input has a gradient, too.
    """
    trained, frozen = prepared(masters, how)
    size = min(4, shape.blocks)
    inputs = [x.to(how.dtype).requires_grad_() for x in xs]

    def group(x: Tensor, qkvs: list[Tensor], weights: list[Weights]) -> Tensor:
        for qkv, of_block in zip(qkvs, weights, strict=True):
            x = block(x, qkv, of_block, shape.heads, how)
        return x

    run = report.compiled(group) if compiled else group

    def features(i: int) -> Tensor:
        x = inputs[i]
        for first in range(0, shape.blocks, size):
            x = run(x, trained[first : first + size], frozen[first : first + size])
        return F.layer_norm(x[:, 0].float(), (shape.dim,))

    def both(i: int) -> tuple[Tensor, list[Tensor]]:
        out = features(i)
        return out, list(torch.autograd.grad(out, trained, grad))

    return both, features


def chains(report: Report, name: str, shape: Shape, names: Iterable[str]) -> None:
    """Forward and backward of whole chains of blocks."""
    part, device = f"chain of {shape.blocks} blocks, {name}", report.device
    masters = master_weights(shape, device)
    xs = [torch.randn(shape.batch, shape.tokens, shape.dim, device=device).to(BF16) for _ in range(2)]
    grad = torch.randn(shape.batch, shape.dim, device=device)
    exact, _ = chain(report, shape, Variant(dtype=torch.float32), masters, xs, grad, False)
    true, true_grads = exact(0)
    true = true.detach()
    del exact
    first: Row = {}

    def measured(how: Variant) -> Row:
        began = time.perf_counter()
        both, forward = chain(report, shape, how, masters, xs, grad, True)
        out, grads = both(0)
        start = time.perf_counter() - began
        of_all = [torch.cat([one.float().flatten() for one in all_of]) for all_of in (grads, true_grads)]
        row: Row = {
            "error": error(out.detach(), true),
            "of gradients": error(*of_all),
            "worst block": max(error(a, b) for a, b in zip(grads, true_grads, strict=True)),
        }
        del out, grads, of_all
        row = {"forward": report.ms(forward, 2), "ms": report.ms(lambda i: both(i), 2), **row, "compile, s": start}
        row["x bf16"] = float(first.get("ms", row["ms"])) / float(row["ms"])
        return row

    for label in names:
        found = report.row(part, label, partial(measured, CHAINS[label]))
        if not first and "ms" in found:
            first.update(found)
        torch._dynamo.reset()
    report.show(part)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--tiny", action="store_true", help="small shapes, to try the script")
    parts = ["gelu", "attention", "chain", "products", "norms"]
    parser.add_argument("--parts", nargs="*", choices=parts, default=parts, help="in the order given (default: all)")
    parser.add_argument("--shapes", nargs="*", choices=list(SHAPES), help="networks (default: all)")
    parser.add_argument("--repeats", type=int, default=10, help="timed replays (default: %(default)s)")
    parser.add_argument("--budget", type=float, default=175, help="seconds after which nothing is begun")
    parser.add_argument("--backend", default="inductor", help="of torch.compile (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="JSON file of all rows")
    chosen = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not chosen.tiny:
        parser.error("there is no GPU: try the script with --tiny")
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        print("CPU without TRITON_INTERPRET=1: rows of Triton kernels will say why they fail.")
    allow_recompilations()
    torch.manual_seed(0)
    report = Report(device, chosen.backend, chosen.repeats, chosen.budget, chosen.out)
    where = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(
        f"{where}, torch {torch.__version__}, triton {getattr(getattr(trial, 'triton', None), '__version__', 'none')}"
    )
    report.parts["machine"] = [{"device": where, "torch": torch.__version__}]
    rate = ceilings(report, chosen.tiny)
    shapes = TINY if chosen.tiny else {name: SHAPES[name] for name in chosen.shapes or SHAPES}
    runs: dict[str, Callable[[str, Shape], None]] = {
        "products": partial(products, report),
        "gelu": lambda name, shape: gelus(report, name, shape, rate),
        "norms": lambda name, shape: norms(report, name, shape, rate),
        "attention": partial(attentions, report),
        "chain": lambda name, shape: chains(report, name, shape, CHAINS),
    }
    for name, shape in shapes.items():
        for part in chosen.parts:
            runs[part](name, shape)
            torch._dynamo.reset()
            if device.type == "cuda":
                torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
