"""The examples run as they stand, in a process of their own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT

SCRIPT = ROOT / "examples" / "avalanche_script.py"


def test_a_plain_avalanche_script_trains_a_method_and_both_counts_agree(tmp_path: Path) -> None:
    assert len(SCRIPT.read_text().splitlines()) < 30
    run = subprocess.run([sys.executable, SCRIPT], cwd=tmp_path, capture_output=True, text=True)
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
