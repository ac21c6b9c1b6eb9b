"""What bounds a step on a GPU, from kernels whose times are known."""

from __future__ import annotations

import pytest

from cl_bench.studies.regime import regime_of

GEMM, GELU = "nvjet_tst_128x256_64x4_bz_TNN", "triton_poi_fused_gelu_3"


@pytest.mark.parametrize(
    "spans, bound, words",
    [
        ([(GEMM, 0.0, 0.2), (GELU, 0.5, 0.6)], "launch-bound", "the GPU waits for the host 70 % of the time"),
        ([(GEMM, 0.0, 0.6), (GELU, 0.6, 1.0)], "compute-bound", "60 % of the kernels' time"),
        ([("cudnn_generated_fort_native_sdpa_sm90_flash_bprop", 0.0, 0.8), (GELU, 0.8, 1.0)], "compute-bound", "80 %"),
        ([(GEMM, 0.0, 0.3), (GELU, 0.3, 0.9)], "memory-bound", "33 % of the kernels' time"),
        # Two kernels at the same time count once.
        ([(GEMM, 0.0, 0.4), (GEMM, 0.0, 0.4)], "launch-bound", "60 %"),
    ],
)
def test_a_regime_says_where_the_time_goes(spans: list[tuple[str, float, float]], bound: str, words: str) -> None:
    regime = regime_of(spans, 1.0)
    assert regime.bound == bound and words in regime.advice("")


def test_a_launch_bound_step_without_a_graph_says_why() -> None:
    regime = regime_of([(GEMM, 0.0, 0.2)], 1.0)
    assert "no CUDA graph, because Mine defines before_forward" in regime.advice("Mine defines before_forward")
    assert "CUDA graph" not in regime.advice("") and "--jobs" in regime.advice("")
