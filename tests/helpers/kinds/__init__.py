"""Small method files, each of which needs one feature of the contract; tests/contract/test_kinds.py runs them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

FILES = sorted(path for path in Path(__file__).parent.glob("*.py") if path.stem != "__init__")

OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "mos": {"rank": 4, "align_epochs": 2},
    "sema": {
        "first": 0,
        "width": 4,
        "code": 6,
        "lr": 0.02,
        "descriptor_epochs": 3,
        "scan_batch": 8,
        "recent": 40,
        "batch_size": 16,
        "threshold": 0.86,
    },
}
"""Hyper-parameters on the tiny ViT, by method."""

VARIANTS: Mapping[str, tuple[str, Mapping[str, Any]]] = {"mos-released": ("mos", {"merge": "released"})}
"""Variants of files with other hyper-parameters: name of the variant -> file and hyper-parameters."""

WRONG: Mapping[str, set[str]] = {"mos-released": {"earlier predictions", "frozen weights"}}
"""The checks of the audit that a method fails by design."""
