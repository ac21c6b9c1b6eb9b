"""What several tests share: methods that stop where a test wants them, processes, small data. No tests are in here."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The repository's folder."""
