"""A module in whose global a dishonest method keeps state between tasks."""

from __future__ import annotations

from typing import Any

last: Any = 0.0
