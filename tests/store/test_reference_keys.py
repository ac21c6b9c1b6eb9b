"""Keys of everything that is stored under results/: whatever is rebuilt, a run that was computed stays found."""

from __future__ import annotations

import json
from pathlib import Path

from cl_bench.experiment import Experiment
from tests.helpers import ROOT

RESULTS = ROOT / "results"
SHIPPED = ("authors", "parity", "reference")
"""Beside these lie the user's own runs and searches."""
KEYS = Path(__file__).with_name("reference_keys.txt")
"""`folder/name-key` of each record, as the first edition's key function gave them; never made by the code of today.

Whoever replaces records by right (a method's revision was raised, a study grew) edits those lines alone.
"""


def test_no_stored_key_has_changed() -> None:
    expected = KEYS.read_text(encoding="utf-8").split()
    found = {}
    for path in sorted(path for folder in SHIPPED for path in (RESULTS / folder).rglob("*.json")):
        data = json.loads(path.read_text(encoding="utf-8"))
        experiment = Experiment.model_validate(data["experiment"])
        name = (
            experiment.file_stem
            if path.parent.name != "authors"
            else f"{data['method']}-s{experiment.seed}-{experiment.key}"
        )
        found[path.relative_to(RESULTS).with_suffix("").as_posix()] = (f"{path.parent.name}/{name}", data["key"])
    assert len(expected) == len(set(expected)) > 580
    assert sorted(found) == sorted(expected)
    wrong = {
        name: computed for name, (computed, key) in found.items() if computed != name or not name.endswith(f"-{key}")
    }
    assert wrong == {}
