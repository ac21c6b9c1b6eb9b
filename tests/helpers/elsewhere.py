"""A module where a method may leave what it has no business to keep."""

from __future__ import annotations

from typing import Any

last: Any = 0.0
