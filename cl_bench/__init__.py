"""cl-bench: continual learning on pre-trained Vision Transformers, measured so that numbers can be trusted.

This package imports neither torch nor avalanche by itself: reading results and rendering reports stays light.
"""

from __future__ import annotations

from cl_bench import _aliases

__version__ = "0.1.0"

_aliases.install()
