"""What several tests share: methods that stop where a test wants them, processes, small data. No tests are in here."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The repository's folder."""
SOAK = os.environ.get("CL_BENCH_SOAK") == "1"
"""Whether this is `make soak`, which tries every variant where `make test` tries one of each kind."""
