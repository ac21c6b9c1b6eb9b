"""Names of the weights that timm has for Vision Transformers, without importing timm."""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from pathlib import Path

_SOURCES = ("models/vision_transformer.py", "models/deit.py")
_ENTRY = re.compile(r"^ +'(\w+\.\w+)': _cfg\(", re.MULTILINE)


@cache
def timm_tags() -> tuple[str, ...]:
    """Names such as `vit_base_patch16_224.augreg_in21k`, in alphabetical order; empty if timm is not installed.

    They are read from timm's source code, because importing timm imports torch, which takes seconds. The list serves
    suggestions and completion: `backbones.find` asks timm itself.
    """
    spec = importlib.util.find_spec("timm")
    folders = [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []
    sources = [folder / name for folder in folders for name in _SOURCES]
    found = {tag for source in sources if source.is_file() for tag in _ENTRY.findall(source.read_text("utf-8"))}
    return tuple(sorted(tag for tag in found if not tag.endswith(".untrained")))
