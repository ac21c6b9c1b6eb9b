"""The reference results in the package: the same records as in results/reference, in one file of another form."""

from __future__ import annotations

import json
import lzma
from pathlib import Path

import pytest

from cl_bench.errors import UserError
from cl_bench.store import compact
from cl_bench.store.record import parse
from tests.helpers import ROOT
from tests.helpers.factories import record, write
from tools import pack_reference

REFERENCE = ROOT / "results" / "reference"


def lines_of(path: Path) -> list[bytes]:
    return lzma.decompress(path.read_bytes()).splitlines()


def test_the_package_holds_the_reference_results_and_nothing_else() -> None:
    """If this fails, a reference result was added or changed: run `python -m tools.pack_reference`."""
    stored = [json.loads(path.read_bytes()) for path in sorted(REFERENCE.glob("*.json"))]
    head, *records = lines_of(compact.PACKAGED)
    assert json.loads(head) == {"content": compact.NAME, "format": compact.FORMAT, "records": len(stored)}
    assert [json.loads(line) for line in records] == stored
    assert compact.PACKAGED.stat().st_size < 1_000_000


def test_records_come_back_checked_and_only_those_asked_for(tmp_path: Path) -> None:
    folder, file = tmp_path / "runs", tmp_path / "packed.jsonl.xz"
    write(folder, *(record("alpha", seed) for seed in range(3)))
    contents = list(pack_reference.records(folder))
    file.write_bytes(compact.pack(contents))
    assert list(compact.unpack(file, pytest.fail)) == [parse(content) for content in contents]
    some = compact.unpack(file, pytest.fail, lambda key, experiment: experiment["seed"] == 1)
    assert [one.experiment.seed for one in some] == [1]


def test_an_edited_record_is_named_and_left_out(tmp_path: Path) -> None:
    folder, file = tmp_path / "runs", tmp_path / "packed.jsonl.xz"
    write(folder, record("alpha", 0), record("alpha", 1))
    head, first, second = lzma.decompress(compact.pack(pack_reference.records(folder))).splitlines()
    file.write_bytes(lzma.compress(b"\n".join([head, first.replace(b'"label":"alpha"', b'"label":"beta"'), second])))
    damaged: list[str] = []
    assert [one.experiment.seed for one in compact.unpack(file, damaged.append)] == [1]
    assert len(damaged) == 1 and damaged[0].startswith(f"{file}, record 1: altered")


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        (b"no xz", "is damaged"),
        (lzma.compress(b'{"content":"cl-bench results","format":2,"records":0}\n'), "of another version of cl-bench"),
        (lzma.compress(b'{"content":"else"}\n'), "of another version of cl-bench"),
        (lzma.compress(b'{"content":"cl-bench results","format":1,"records":7}\n'), "0 of its records are left"),
        (lzma.compress(b""), "is damaged"),
        (None, "cannot be read"),
    ],
    ids=["no-xz", "newer", "other", "cut", "empty", "missing"],
)
def test_another_version_is_one_sentence_that_says_how_to_go_on(
    tmp_path: Path, content: bytes | None, fragment: str
) -> None:
    file = tmp_path / "packed.jsonl.xz"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError) as error:
        list(compact.unpack(file, pytest.fail))
    sentence = str(error.value)
    assert fragment in sentence and "--no-reference" in sentence and str(file) in sentence and "\n" not in sentence
