"""The data in the page of a report, as its script reads them."""

from __future__ import annotations

import base64
import gzip
import json
import re
from typing import Any


def at_once(page: str) -> Any:
    """What the script reads when the page opens."""
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page)
    return json.loads(text)


def parts(page: str, kind: str) -> dict[str, Any]:
    """The parts `runs`, `charts` or `files`, which the script unpacks when they are needed, by protocol."""
    found = re.findall(rf'<script type="text/plain" data-part="{kind}/([^"]+)">([\w+/=]+)</script>', page)
    return {slug: json.loads(gzip.decompress(base64.b64decode(packed))) for slug, packed in found}
