"""The command that replays golden files, in a process of its own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests import golden
from tests.golden.replay import main

ROOT = Path(__file__).parents[1]


def replay(path: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", "-m", "tests.golden.replay", str(path)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def part(name: str, pattern: str) -> dict[str, np.ndarray]:
    """The arrays of a golden file whose keys match, and the parameters of its suite d64."""
    data = golden.Fixture.load(golden.FOLDER / f"{name}.npz").data
    wanted = re.compile(rf"cfg/prefix|cfg/(d64|gpm)/|d64/checksum/|{pattern}")
    return {key: value for key, value in data.items() if wanted.match(key)}


@pytest.mark.parametrize(("name", "least"), [("inflora", 150), ("sdlora", 50)])
def test_a_faithful_file_passes(tmp_path: Path, name: str, least: int) -> None:
    np.savez(tmp_path / "some.npz", **part(name, "d64/t1/|d64/kd64/" if name == "sdlora" else "d64/|gpm/|sched/"))
    done = replay(tmp_path / "some.npz")
    *lines, last = done.stdout.splitlines()
    assert done.returncode == 0, done.stdout + done.stderr
    assert last == f"{len(lines)} quantities, 0 failed" and len(lines) > least
    assert all(line.endswith("  pass") for line in lines)


def corrupted(name: str, pattern: str, key: str, value: float) -> dict[str, np.ndarray]:
    """Part of a golden file with one number that is off by `value` times the largest."""
    data = part(name, pattern)
    wrong = data[key].copy()
    wrong.flat[3] += value * np.abs(wrong).max()
    return data | {key: wrong}


def assert_marked(output: str, key: str, quantity: str) -> None:
    """Exactly this quantity is marked and counted."""
    failed = [line for line in output.splitlines() if "FAIL" in line]
    assert len(failed) == 1 and failed[0].startswith(f"{quantity} ") and failed[0].endswith(f"FAIL at {key}")
    assert output.splitlines()[-1].endswith(" quantities, 1 failed")


def test_one_wrong_number_fails(tmp_path: Path) -> None:
    key = "d64/t1/mid/grad_B/blocks.1.v"
    np.savez(tmp_path / "wrong.npz", **corrupted("sdlora", "d64/t1/mid/", key, 0.01))
    done = replay(tmp_path / "wrong.npz")
    assert done.returncode == 1, done.stdout + done.stderr
    assert_marked(done.stdout, key, "d64/t1/mid/grad_B")


@pytest.mark.parametrize("value", [0.01, np.nan])
@pytest.mark.parametrize(
    ("name", "pattern", "key", "quantity"),
    [
        ("sdlora", "d64/t0/init/", "d64/t0/init/after3/B/blocks.0.q", "d64/t0/init/after3/B"),
        ("inflora", "gpm/", "gpm/step3/layer2/projector", "gpm/step3/projector"),
        ("inflora", "sched/", "sched/K20", "sched/K20"),
    ],
)
def test_any_wrong_number_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, pattern: str, key: str, quantity: str, value: float
) -> None:
    np.savez(tmp_path / "wrong.npz", **corrupted(name, pattern, key, value))
    assert main([str(tmp_path / "wrong.npz")]) == 1
    assert_marked(capsys.readouterr().out, key, quantity)


def test_a_key_that_nothing_uses_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "more.npz", **part("inflora", "sched/"), **{"sched/unheard_of": np.zeros(2)})
    main([str(tmp_path / "more.npz")])
    assert "not used: sched/unheard_of" in capsys.readouterr().out.splitlines()


def test_another_random_stream_is_no_failure_of_the_algorithm(tmp_path: Path) -> None:
    data, key = part("sdlora", "d64/t1/"), "d64/t1/images_checksum"
    np.savez(tmp_path / "stream.npz", **data | {key: data[key] * (1 + 1e-6)})
    done = replay(tmp_path / "stream.npz")
    assert (done.returncode, done.stdout) == (2, "")
    assert "random stream" in done.stderr and key in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_file_that_is_no_fixture(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", weights=np.zeros(3))
    done = replay(tmp_path / "other.npz")
    assert (done.returncode, done.stdout) == (2, "")
    assert "other.npz" in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr


def test_a_file_whose_arrays_do_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = part("sdlora", "d64/t1/")
    np.savez(tmp_path / "bent.npz", **data | {"cfg/d64/tasks": np.array(["one"])})
    assert main([str(tmp_path / "bent.npz")]) == 2
    message = capsys.readouterr().err
    assert "bent.npz" in message and len(message.splitlines()) == 1


def test_files_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.npz").write_text("not an archive")
    np.save(tmp_path / "array.npy", np.zeros(3))
    for name in ("absent.npz", "text.npz", "array.npy"):
        assert main([str(tmp_path / name)]) == 2, name
        assert name in capsys.readouterr().err
