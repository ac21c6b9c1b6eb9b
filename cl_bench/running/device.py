"""The device of a run: its choice and precision, and its description in the run record."""

from __future__ import annotations

import os
import platform
import re
import resource
import sys
from importlib.metadata import version
from typing import cast, get_args

import numpy as np
import torch

from cl_bench import __version__
from cl_bench.errors import UserError, unknown_name
from cl_bench.experiment import Environment, Precision
from cl_bench.models.vit import Execution


def pick_device(name: str) -> torch.device:
    """The device for `auto`, `cpu`, `cuda` or `cuda:N`.

    Raises:
        UserError: another name, or a device that this machine lacks.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise UserError(f"--device '{name}' is unknown; expected auto, cpu, cuda or cuda:N")
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--device '{name}' cannot be used here ({reason}); try auto or cpu") from error
    return torch.device(name)


def resolve_precision(requested: str, device: torch.device) -> Precision:
    """The precision for `auto`, `fp32` or `bf16`; `auto` is bf16 on devices that multiply it faster than fp32.

    Raises:
        UserError: another name, or `auto` depends on a GPU that this host does not have.
    """
    if requested == "auto":
        if device.type == "cuda":
            if not torch.cuda.is_available():
                raise UserError("--precision auto depends on the GPU, which this host lacks; expected bf16 or fp32")
            return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
        return "bf16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "fp32"
    if requested not in get_args(Precision):
        raise unknown_name("precision", requested, ["auto", *get_args(Precision)])
    return cast(Precision, requested)


def set_up(
    precision: Precision,
    device: torch.device,
    *,
    compiled: bool | None = None,
    deterministic: bool = False,
    graphs: bool = True,
) -> Execution:
    """Configure torch for a run and return how its passes are executed. TF32 is off, so fp32 means fp32.

    Args:
        compiled: compile passes and training views; None: only on a GPU. Without it, fp32 is the reference path, timm's
            own pass.
        deterministic: use slower kernels that repeat their results bit by bit on one device.
        graphs: replay training steps from CUDA graphs where there are any.
    """
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.use_deterministic_algorithms(deterministic)
    if deterministic:
        # cuBLAS reads this when it is first used.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # Benchmarking may choose another of two equally fast kernels next time, with other rounding.
    torch.backends.cudnn.benchmark = False
    on_gpu = device.type == "cuda"
    compiled = on_gpu if compiled is None else compiled
    if on_gpu:
        # Training views on a GPU are compiled wherever they are made, unless this says otherwise.
        torch.compiler.set_stance("default" if compiled else "force_eager")
    return Execution(precision, compiled, on_gpu and graphs, whole=not compiled)


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished all submitted work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(device: torch.device) -> int:
    """Peak memory use in bytes: allocated on the GPU, or resident memory of this process for a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def environment_of(device: torch.device) -> Environment:
    """The environment of a run for its record: library versions, device, CPU kernels, threads."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "cl-bench": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": version("timm"),
        "avalanche-lib": version("avalanche-lib"),
        "numpy": np.__version__,
        "platform": platform.system(),
        "device": device.type,
        "device_name": name,
        "threads": torch.get_num_threads(),
        # The kernels in use: AVX2 and AVX-512 round differently, as do versions of cuDNN.
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        **({"cudnn": torch.backends.cudnn.version()} if device.type == "cuda" else {}),
        "cpus": os.cpu_count(),
    }
