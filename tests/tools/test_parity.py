"""Tests of tools/parity: pairing and judging records, counts, and CIFAR-100 out of a packed file.

The released programs themselves are not part of this repository; `python -m tools.parity.run` checks their counts.
"""

from __future__ import annotations

import json
import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cl_bench.errors import UserError
from cl_bench.store import Store
from cl_bench.store.record import RunRecord
from cl_bench.streams import catalogue
from tests.helpers import ROOT, factories, trees
from tools.parity import carry, cells, coda, pilot, report, shims

EPOCHS = 2


def own_run(seed: int = 0) -> RunRecord:
    """A run of ours with the losses that its 10 tasks had."""
    rows = [
        {"stage": stage, "phase": 0, "epoch": epoch, "loss": 1 / (1 + epoch)}
        for stage in range(10)
        for epoch in range(EPOCHS)
    ]
    return factories.record(seed=seed).model_copy(update={"traces": {"loss": rows}})


def theirs(own: RunRecord, shift: int) -> dict[str, Any]:
    """A record of a released program with `shift` hits fewer in every task and stage than ours."""
    return {
        "method": own.experiment.method,
        "repository": "someone/program",
        "commit": "0123456789abcdef",
        "key": own.key,
        "experiment": own.experiment.model_dump(mode="json"),
        "correct": [[None if hits is None else hits - shift for hits in row] for row in own.correct],
        "total": own.total,
        "losses": [[1.25, 0.75]] * 10,
        "seconds": 120.0,
        "peak_gpu_bytes": 700 * 2**20,
        "peak_process_bytes": 5 * 2**30,
        "replaced": ["weights: ours"],
    }


def folders(tmp_path: Path, shifts: list[int]) -> list[str]:
    """Records of both sides, one per seed; returns the arguments that name them."""
    runs = [own_run(seed) for seed in range(len(shifts))]
    factories.write(tmp_path / "runs", *runs)
    (tmp_path / "authors").mkdir()
    for seed, (run, shift) in enumerate(zip(runs, shifts, strict=True)):
        (tmp_path / "authors" / f"{seed}.json").write_text(json.dumps(theirs(run, shift)))
    return ["--authors", str(tmp_path / "authors"), "--results", str(tmp_path / "runs")]


def test_equal_counts_are_equivalent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main(folders(tmp_path, [0, 0, 0])) == 0
    out = capsys.readouterr().out
    assert "| `alpha` | acc | 3 | +0.00 ± 0.00 | +0.00 to +0.00 | yes (p = 0.000) | – | no test" in out
    assert "- `alpha`: someone/program @ 0123456; replaced:" in out


def test_five_points_are_not_equivalent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Test sets of 50 to 80 images: 3 and 4 hits fewer are 4 to 8 points.
    assert report.main(folders(tmp_path, [3, 4, 3])) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "| 3 |" in line]
    assert len(lines) == 2
    assert all("not shown" in line for line in lines)


def test_each_pair_shows_its_largest_difference(tmp_path: Path) -> None:
    own = own_run()
    other = theirs(own, 0)
    other["correct"][4][0] -= 5
    (pair,) = report.pairs([other], [own])
    gap = 100 * 5 / sum(own.total[:5])
    assert pair.ours[4] - pair.theirs[4] == pytest.approx(gap)
    assert pair.acc[0] == pair.acc[1]
    assert pair.aaa[0] - pair.aaa[1] == pytest.approx(gap / 10)
    lines = report.table([pair])
    assert f"+{gap:.2f} after task 5" in lines[2]
    cost = f"{own.seconds / 60:.1f} | 2.0 | {own.peak_memory_bytes / 2**20:,.0f} | 700 |"
    assert lines[-1] == f"| `alpha` | permutation:0 | 0.5000 | 0.7500 | -0.2500 | {cost}"


def test_stored_runs_fit_as_the_released_programs_do() -> None:
    found = report.pairs(
        report.read(ROOT / "results" / "authors"), Store(ROOT / "results" / "parity").records(pytest.fail)
    )
    orders = [f"permutation:{seed}" for seed in range(3)]
    assert [(pair.method, pair.order) for pair in found] == list(product(("coda", "inflora", "sdlora"), orders))
    for pair in found:
        assert abs(pair.loss[0] / pair.loss[1] - 1) < 0.012
        assert abs(pair.acc[0] - pair.acc[1]) < 1.04


def test_losses_are_read_from_what_the_programs_print() -> None:
    with shims.printed() as copies:
        for task, epoch, loss in (
            (0, 1, "2.111"),
            (0, 2, "1.604"),
            (0, 2, "1.604"),
            (10, 1, "0.900"),
            (10, 2, "0.850"),
        ):
            print(f"\rTask {task}, Epoch {epoch}/2 => Loss {loss}, Train_accy 25.62:  20%|", end="", file=sys.stderr)
        print("Epoch:1/2\n * Loss 1.979 | Train Acc 31.720\nLR: 0.001\nEpoch:2/2\n * Loss 1.426 | Train Acc 53.780")
        print("=> Save Done\n * Val Acc 69.400, Total time 0.48\nEpoch:1/2\n * Loss 0.500 | Train Acc 99.000")
    out, err = (copy.getvalue() for copy in copies)
    assert pilot.losses(err) == [[2.111, 1.604], [0.9, 0.85]]
    assert coda.losses(out) == [[1.979, 1.426], [0.5]]


def test_a_run_without_counterpart_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = folders(tmp_path, [0])
    path = tmp_path / "authors" / "0.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"key": "feedfeedfeedfeed"}))
    assert report.main(arguments) == 2
    assert "cl-bench has no run feedfeedfeedfeed (alpha, seed 0)" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["{", "[]", '{"correct": [[3]], "total": [2]}'])
def test_a_damaged_record_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "0.json").write_text(content)
    with pytest.raises(UserError, match="no record of a released program"):
        report.read(tmp_path)


def test_accuracies_become_counts() -> None:
    # [tasks, stages], as CODA-Prompt has them.
    accuracies = np.array([[50.0, 25.0], [0.0, 66.66666666666667]])
    assert coda._counts(accuracies, [4, 3]) == [[2, None], [1, 2]]
    with pytest.raises(ValueError, match="not fractions"):
        coda._counts(accuracies + 10, [4, 3])


def test_crops_that_torchvision_lacks_are_refused(tmp_path: Path) -> None:
    (tmp_path / "suite.yaml").write_text("title: icons\nruns: [{methods: sdlora}]\n")
    (run,) = cells.runs_of(str(tmp_path / "suite.yaml"))
    with pytest.raises(UserError, match="crops that torchvision does not have"):
        cells.load(run)


def test_cifar_comes_back_from_a_packed_file(tmp_path: Path) -> None:
    trees.cifar_png(tmp_path / "from")
    listing = catalogue.read(trees.CIFAR100, tmp_path / "from" / "cifar100")
    entries = (*listing.train, *listing.test)
    files = "\n".join(entry.name.partition("/")[2] for entry in entries)
    (tmp_path / "names.xz").write_bytes(carry.compressed(files))
    images = np.random.default_rng(0).integers(0, 256, (len(entries), 32, 32, 3), np.uint8)
    label = np.array([listing.classes.index(entry.label) for entry in entries])
    part = np.repeat([0, 1], [len(listing.train), len(listing.test)])
    np.savez(tmp_path / "data.npz", images=images, label=label, split=part, classes=np.array(listing.classes))

    assert carry.main(["unpack", *(str(tmp_path / n) for n in ("data.npz", "names.xz")), "--root", str(tmp_path)]) == 0

    found = catalogue.read(trees.CIFAR100, tmp_path / "cifar100")
    assert [e.name for e in found.train] == [e.name for e in listing.train]
    assert [e.name for e in found.test] == [e.name for e in listing.test]
    assert found.pixels is not None
    assert np.array_equal(np.concatenate(found.pixels), images)
