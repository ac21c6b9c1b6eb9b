"""Lists of images and orders of classes, as people and tools write them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cl_bench.errors import UserError
from cl_bench.streams import catalogue
from cl_bench.streams.readers.list_files import read_part
from cl_bench.streams.readers.orders import read_order
from cl_bench.streams.readers.splits import read_split
from cl_bench.streams.verify import verify
from tests.helpers import SOAK
from tests.helpers.trees import save

TRAIN, TEST = ["c0/0.png", "c0/my cat.png", "c1/0.png", "c1/1.png"], ["c0/2.png", "c1/2.png"]
MARK = "\ufeff"

pytestmark = pytest.mark.usefixtures("nowhere")


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """A tree of class folders without a split."""
    for name in (*TRAIN, *TEST):
        save(tmp_path / "own" / name, name, (32, 32))
    return tmp_path / "own"


def lines(names: list[str], end: str = "\n") -> str:
    return "".join(f"{name}{end}" for name in names)


def rows(names: list[str], label: bool = False) -> list[list[object]]:
    return [[name, int(name[1])] + ([name[:2]] if label else []) for name in names]


COMMENTED = """\
# the images of each class
"c0/0.png" 0
'c0/my cat.png' 0   # in quotes
\t./c1/0.png\t1
C:\\data\\c1\\1.png, 1

# c0/9.png
"""
TABLE = [
    "path,label,split",
    *(f"{name},{name[1]},train" for name in TRAIN),
    *(f"{name},{name[1]},test" for name in TEST),
]

FILES: dict[str, dict[str, str | bytes]] = {
    "marks": {"my_train.txt": MARK + lines(TRAIN), "my_test.txt": MARK + lines(TEST)},
    "marks in the middle": {
        "my_train.txt": MARK + lines(TRAIN[:2]) + MARK + lines(TRAIN[2:]),
        "my_test.txt": lines(TEST),
    },
    "windows": {"my_train.txt": lines(TRAIN, "  \r\n"), "my_test.txt": lines(TEST, "\r\n").replace("/", "\\")},
    "old macs": {"my_train.txt": lines(TRAIN, "\r"), "my_test.txt": lines(TEST, "\r")},
    "utf-16": {"my_train.txt": lines(TRAIN).encode("utf-16"), "my_test.txt": lines(TEST).encode("utf-16")},
    "utf-32": {"my_train.txt": lines(TRAIN).encode("utf-32"), "my_test.txt": lines(TEST)},
    "comments and quotes": {"my_train.txt": COMMENTED, "my_test.txt": lines([f"/data/own/{name} 1" for name in TEST])},
    "val": {"my_train.txt": lines(TRAIN), "my_val.txt": lines(TEST)},
    "yaml with a mark": {"split.yaml": MARK + json.dumps({"train": TRAIN, "test": TEST})},
    "yaml of pairs": {"split.yml": f"train: {rows(TRAIN)}\ntest: {rows(TEST)}\n"},
    "json": {"split.json": MARK + json.dumps({"train": TRAIN, "test": TEST})},
    "json of pairs": {"split.json": json.dumps({"train": rows(TRAIN), "test": rows(TEST)})},
    "json of CoOp": {"split.json": json.dumps({"train": rows(TRAIN, True), "val": rows(TEST, True)})},
    "json of file names": {
        "split.json": json.dumps(
            {p: [[n[3:], int(n[1]), n[:2]] for n in ns] for p, ns in (("train", TRAIN), ("test", TEST))}
        )
    },
    "json of two": {
        "my_train.json": json.dumps({"data": TRAIN, "targets": [0, 0, 1, 1]}),
        "my_test.json": json.dumps(TEST),
    },
    "csv": {"split.csv": lines(TABLE)},
    "csv without a header": {"split.csv": MARK + lines(TABLE[1:], "\r\n")},
    "csv with semicolons": {"split.csv": lines(TABLE).replace(",", ";")},
    "csv with tabs": {"split.tsv": lines(TABLE).replace(",", "\t")},
    "csv with quotes": {"split.csv": lines(['"' + row.replace(",", '", ', 1) for row in TABLE[1:]])},
    "csv with names": {
        "my_train.csv": "Class Name;file_name\n" + lines([name.replace("/", ";") for name in TRAIN]),
        "my_test.csv": "filename;label\n" + lines([f"{name[3:]};{name[:2]}" for name in TEST]),
    },
    "csv of paths": {"my_train.csv": lines(TRAIN), "my_test.csv": lines(TEST)},
}


@pytest.mark.parametrize("files", FILES.values(), ids=FILES)
@pytest.mark.parametrize("inside", [True, False])
def test_a_list_is_read_however_it_is_written(files: dict[str, str | bytes], inside: bool, pool: Path) -> None:
    folder = pool if inside else pool.parent
    for name, content in files.items():
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    dataset = catalogue.find(f"folder:{pool}")
    listing = catalogue.load(dataset, split_list=None if inside else folder / next(iter(files)))
    assert [entry.name for entry in listing.train] == TRAIN
    assert [entry.name for entry in listing.test] == TEST
    assert listing.classes == ("c0", "c1")


def test_images_for_validation_are_counted_where_there_is_a_test_part(pool: Path) -> None:
    path = pool / "split.json"
    path.write_text(json.dumps({"train": TRAIN[:3], "val": TRAIN[3:], "test": TEST}))
    report = verify(catalogue.find(f"folder:{pool}"))
    assert (report.train, report.test) == (3, 2)
    assert report.layout == "class folders, split by split.json (without its 1 image for validation)"
    assert [finding.text for finding in report.findings if finding.kind == "unlisted"] == [str(pool / TRAIN[3])]


def test_tables_beside_a_split_tree_are_no_lists(tmp_path: Path) -> None:
    for part in ("train", "test"):
        save(tmp_path / "own" / part / "c0" / "0.png", part, (32, 32))
        (tmp_path / "own" / f"labels_{part}.csv").write_text("id,annotator\n0,somebody\n")
        (tmp_path / "own" / f"{part}.json").write_text('{"boxes": []}')
    listing = catalogue.load(catalogue.find(f"folder:{tmp_path / 'own'}"))
    assert listing.layout == "train/ and test/ folders"


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("a.txt", b"train/c0/0.png\n\ntest/ma\xf1ana.png", ["line 3", "0xf1", "not UTF-8"]),
        ("a.txt", "train/c0/0.png\r\n".encode("utf-16-le"), ["zero byte", "byte-order mark"]),
        ("a.txt", "train/c0/0.png\n\n# x\nc0/1.png\n", ["line 4", "'c0/1.png'", "expected 'train/CLASS/FILE'"]),
        ("a.json", '{"train": [[[1]]], "test": []}', ["'train' of", "entry 1 is [[1]]", "expected a path"]),
        ("a.json", '{"train": ["c0/0.png", 5], "test": []}', ["'train' of", "entry 2 is 5"]),
        ("a.json", '{"train": [["c0/0.png", 1.5]], "test": []}', ["entry 1 is ['c0/0.png', 1.5]"]),
        ("a.json", '{"train": [["c0/0.png", true]], "test": []}', ["entry 1 is ['c0/0.png', True]"]),
        ("a.json", '{"train": [["c0/0.png", NaN]], "test": []}', ["train.1.2 is nan"]),
        ("a.json", '{"train": [], "train": [], "test": []}', ["key 'train' twice"]),
        ("a.json", '{"train": ["c0/0.png"', ["no JSON", "line 1"]),
        ("a.json", "[" * 20_000, ["nested too deeply"]),
        ("a.json", "1" * 5_000, ["too many digits"]),
        ("a.json", '{"data": ["c0/0.png"]}', ["no keys train and test"]),
        (
            "a.json",
            '{"train": {"data": ["c0/0.png"], "targets": []}, "test": []}',
            ["1 paths", "another number of 'targets'"],
        ),
        ("a.json", "", ["no JSON"]),
        ("a.csv", "path,split\nc0/0.png,train\nc0/1.png\n", ["line 3", "1 column, line 1 has 2"]),
        ("a.csv", "path,label,split\nc0/0.png,0,train\nc0/1.png,0\n", ["line 3", "2 columns, line 1 has 3"]),
        ("a.csv", "path,split\nc0/0.png,evaluation\n", ["line 2", "'evaluation'", "train, test or val"]),
        ("a.csv", "path,label\nc0/0.png,0\n", ["no column that says train or test"]),
        ("a.csv", 'path,split\n"c0/0.png" x,train\n', ["line 2", "no CSV"]),
        ("a.csv", "path,split\n" + "x" * 200_000 + ",train\n", ["no CSV", "field larger"]),
        ("a.yaml", "train: [a/b.png]\ntrain: [a/c.png]\ntest: []", ["line 2", "'train' comes twice"]),
        ("a.yaml", "", ["no keys train and test"]),
        ("a.yaml", "train: [{a: b}]\ntest: []", ["entry 1 is {'a': 'b'}"]),
    ],
)
def test_what_is_wrong_is_named_with_its_place(name: str, content: str | bytes, parts: list[str], pool: Path) -> None:
    path = pool.parent / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UserError) as refused:
        catalogue.load(catalogue.find(f"folder:{pool}"), split_list=path)
    assert name in str(refused.value) and len(str(refused.value)) < 500
    for part in parts:
        assert part in str(refused.value)


LIST_TEXTS = st.text() | st.text("[]{}:,;\t\"'# -/\\\ntrainvale01.")


@settings(deadline=None, max_examples=2_000 if SOAK else 60, suppress_health_check=list(HealthCheck))
@given(st.sampled_from([".txt", ".csv", ".tsv", ".json", ".yaml"]), LIST_TEXTS)
def test_any_text_is_a_list_or_one_sentence(tmp_path: Path, ending: str, text: str) -> None:
    path = tmp_path / f"any{ending}"
    path.write_text(text, encoding="utf-8")
    for read in (read_split, read_part, lambda order: read_order(order, ("a", "1", "0"))):
        try:
            assert read(path) is not None
        except UserError as error:
            assert path.name in str(error) and "\n" not in str(error)


ORDERS = {
    "a mark": f"{MARK}c\na\nb\n",
    "windows": "c\r\na \r\nb\r\n",
    "utf-16": "c\na\nb".encode("utf-16"),
    "commas": "c, a, b",
    "commas and lines": "c,\na,\nb,\n",
    "blanks": "c a b\n",
    "json": '["c", "a", "b"]',
    "python": "class_order = ['c', 'a', 'b']\n",
    "yaml": "# mine\norder: [c,\n  a, b]\n",
    "positions": "[2, 0, 1]",
    "positions with commas": "2,0,1",
    "positions on lines": "# from 0\n2\n0\n1\n",
}


@pytest.mark.parametrize("content", ORDERS.values(), ids=ORDERS)
def test_an_order_is_read_however_it_is_written(content: str | bytes, tmp_path: Path) -> None:
    path = tmp_path / "order.txt"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    assert read_order(path, ("a", "b", "c")) == ("order:2,0,1", "")


def test_names_with_blanks_commas_and_hashes_stand_on_lines_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "order.txt"
    path.write_text("big cat\n#1\nred, dog\n")
    assert read_order(path, ("#1", "big cat", "red, dog")).order == "order:1,0,2"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[2, 0, 2]", ["entry 3", "class '2' comes twice"]),
        ("[1, 0]", ["lacks 1 of 3 classes", "'2'"]),
        ("1, 2, 3", ["line 1", "no class '3'", "positions are 0 to 2"]),
        ("a, b, d", ["line 1", "no class 'd'"]),
        ("[[2, 0, 1]]", ["entry 1 is [2, 0, 1]", "expected a name or a position"]),
        ("[2, 0, 1", ["no YAML"]),
        ("[" * 20_000, ["nested more than 20 deep"]),
        ("1" * 5_000, ["no class '111"]),
    ],
)
def test_an_order_that_is_none_is_refused(text: str, parts: list[str], tmp_path: Path) -> None:
    path = tmp_path / "order.txt"
    path.write_text(text)
    with pytest.raises(UserError) as refused:
        read_order(path, ("a", "b", "c"))
    assert "order.txt" in str(refused.value) and len(str(refused.value)) < 400
    for part in parts:
        assert part in str(refused.value)


@pytest.mark.parametrize(
    ("classes", "order", "expected", "taken"),
    [
        # In alphabetical order, as folders are: '10' is at position 2.
        (
            sorted(map(str, range(12))),
            range(12),
            [0, 1, 4, 5, 6, 7, 8, 9, 10, 11, 2, 3],
            "names of classes, not as",
        ),
        (sorted(map(str, range(1, 13))), range(12), [*range(12)], "positions in their order, 0 to 11, not as names"),
        (sorted(map(str, range(10))), range(10), [*range(10)], ""),
        (["00", "01", "02"], range(3), [0, 1, 2], ""),
    ],
)
def test_the_reading_of_numbers_is_said_where_there_are_two(
    classes: list[str], order: range, expected: list[int], taken: str, tmp_path: Path
) -> None:
    path = tmp_path / "order.txt"
    path.write_text(json.dumps([*order]))
    found = read_order(path, classes)
    assert found.order == "order:" + ",".join(map(str, expected))
    assert taken in found.remark and bool(found.remark) == bool(taken)
