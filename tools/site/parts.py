"""The generated parts of hand-written pages, by the name in `<!-- site: NAME -->`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tools.site import commands, formats, things

PARTS: Mapping[str, Callable[[], str]] = {
    "commands": commands.commands,
    "options": commands.options,
    "methods": things.methods,
    "data-sets": things.data_sets,
    "backbones": things.all_backbones,
    "record": formats.record,
    "recipes": formats.recipes,
}

method_pages = things.method_pages
