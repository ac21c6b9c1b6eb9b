"""The examples run as they stand, in a process of their own."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image

import cl_bench
from tests.helpers import ROOT, processes

SCRIPT = ROOT / "examples" / "avalanche_script.py"
NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"


def test_a_plain_avalanche_script_trains_a_method_and_both_counts_agree(tmp_path: Path) -> None:
    assert len(SCRIPT.read_text().splitlines()) < 30
    run = processes.run_script(SCRIPT, tmp_path)
    assert run.returncode == 0, run.stderr
    printed = re.findall(r"^(Avalanche|cl-bench): +(\S+)$", run.stdout, re.MULTILINE)
    assert [name for name, _ in printed] == ["Avalanche", "cl-bench"]
    theirs, ours = (float(value) for _, value in printed)
    assert theirs == pytest.approx(ours, abs=1e-12)
    assert ours > 1 / 12, "no better than guessing among twelve classes"
    # Avalanche's own loggers and metrics ran: three evaluations, and forgetting once there is something to forget.
    assert run.stdout.count("Top1_Acc_Stream/eval_phase/test_stream") == 3
    forgotten = re.findall(r"StreamForgetting/eval_phase/test_stream = (\S+)", run.stdout)
    assert len(forgotten) == 3 and all(-1 <= float(value) <= 1 for value in forgotten)
    assert not any(tmp_path.iterdir()), "an evaluation leaves no files behind"


def test_the_notebook_is_stored_without_outputs() -> None:
    text = NOTEBOOK.read_text(encoding="utf-8")
    notebook = json.loads(text)
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert set(notebook["metadata"]) == {"kernelspec", "language_info"} and len(text) < 10_000
    assert not re.search(r"/(home|tmp|root|Users|work)/", text)


def test_the_notebook_runs_methods_and_shows_what_they_have_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On fewer images."""
    # One thread: the runs then need no processes of their own, which would take seconds to start.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    text = NOTEBOOK.read_text(encoding="utf-8")
    asked = r"\"limit_train\": 5, \"limit_test\": 5"
    assert asked in text
    notebook = nbformat.reads(text.replace(asked, r"\"limit_train\": 2, \"limit_test\": 2"), as_version=4)
    NotebookClient(notebook, timeout=None, resources={"metadata": {"path": str(tmp_path)}}).execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not [output for cell in code for output in cell.outputs if output.get("name") == "stderr"]
    run, table, frame, curve, _, own, forgetting, page = code
    monkeypatch.chdir(tmp_path)
    stored = cl_bench.load("results/quickstart")
    labels = {"simplecil", "linear[epochs=2]", "small_logits[penalty=0]", "small_logits[penalty=0.01]"}
    assert set(stored["label"]) == labels and len(stored) == 4 * 2 * 3

    def shown(cell: Any) -> list[dict[str, str]]:
        """The rows of a data frame, as they are displayed."""
        lines = re.findall(r"<tr.*?</tr>", cell.outputs[-1].data["text/html"], re.S)
        head, *body = [re.findall(r"<t[hd]>(.*?)</t[hd]>", line) for line in lines]
        return [dict(zip(head, line, strict=True)) for line in body]

    # The recipe of each row first, then the bars, then the table of the report.
    for cell, names in ((run, ("simplecil", "linear[epochs=2]")), (own, ("small_logits[penalty=0]",))):
        *recipes, bars, result = cell.outputs
        assert all(any(name in recipe.data["text/plain"] for recipe in recipes) for name in names)
        assert "task 3/3" in bars.data["text/html"]
        assert all(name in output.data["text/html"] for name in names for output in (bars, result))
        assert result.data["text/plain"] == "<Results: 4 runs in results/quickstart>"
    last = stored[stored["stage"] == 2].groupby("label")["acc"].mean()
    assert {row["method"] for row in shown(table)} == {"simplecil", "linear[epochs=2]"}
    for row in shown(table):
        assert float(row["acc, %"]) == pytest.approx(100 * last[row["method"]], rel=1e-4) and row["seeds"] == "2"
    first = shown(frame)
    assert len(first) == 2 * 2 * 3 and {row["label"] for row in first} == {"simplecil", "linear[epochs=2]"}
    assert all((row["forgetting"] == "NaN") == (row["stage"] == "0") for row in first)
    assert all(0 <= float(row["acc"]) <= 1 for row in first)
    for cell in (curve, forgetting):
        picture = Image.open(io.BytesIO(base64.b64decode(cell.outputs[-1].data["image/png"])))
        assert len(picture.convert("RGB").getcolors(10**6) or ()) > 3, "an empty plot"
    assert page.outputs[-1].data["text/plain"] == "PosixPath('reports/quickstart/index.html')"
    text = (tmp_path / "reports" / "quickstart" / "index.html").read_text()
    assert all(label in text for label in labels)
