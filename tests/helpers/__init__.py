"""Helpers of several tests: methods that stop where a test wants them, processes, small data. It holds no tests."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""Root folder of the repository."""
SOAK = os.environ.get("CL_BENCH_SOAK") == "1"
"""Whether `make soak` runs the tests: it tries every variant where `make test` tries one of each kind."""
