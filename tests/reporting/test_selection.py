"""The choice of rows by patterns: which are shown, in which order, and which stand out."""

import pytest

from cl_bench.errors import UserError
from cl_bench.grammar import split_names
from cl_bench.reporting.runs import Section, label_runs, sections
from cl_bench.reporting.selection import Selection, matches, matching, one_row
from tests.helpers import factories

LABELS = ["alpha", "alpha[lr=0.1,rank=8]", "beta", "beta-two", "gamma[rank=8]"]


def _sections() -> list[Section]:
    """Two protocols: alpha in two variants and beta on 100 classes; beta alone on 200."""
    records = [factories.record(name, seed) for name in ("alpha", "beta") for seed in range(2)]
    records += [factories.record("alpha", 0, label="alpha[rank=8]", hyperparameters={"rank": 8})]
    records += [factories.record("beta", 0, benchmark="other", classes_per_task=20)]
    return sections(label_runs((record, "runs") for record in records))


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("alpha", ["alpha", "alpha[lr=0.1,rank=8]"]),
        ("alpha[]", ["alpha"]),
        ("alpha[lr=0.1,rank=8]", ["alpha[lr=0.1,rank=8]"]),
        ("*[*rank=8]", ["alpha[lr=0.1,rank=8]", "gamma[rank=8]"]),
        ("beta*", ["beta", "beta-two"]),
        ("bet?", ["beta"]),
        ("*[]", ["alpha", "beta", "beta-two"]),
        ("al", []),
        ("Beta", []),
        ("[ab]eta", []),
        ("a.pha", []),
    ],
)
def test_a_pattern_matches_labels_and_methods_with_any_options(pattern: str, expected: list[str]) -> None:
    assert [label for label in LABELS if matches(pattern, label)] == expected


def test_rows_are_in_the_order_of_the_patterns_each_once() -> None:
    assert matching(["gamma", "b*", "beta", "alpha[]"], LABELS) == ["gamma[rank=8]", "beta", "beta-two", "alpha"]


def test_a_pattern_matches_the_name_that_a_table_prints() -> None:
    assert matching(["SD-*"], ["sdlora", "coda"], {"sdlora": "SD-LoRA"}) == ["sdlora"]


def test_commas_in_brackets_do_not_separate() -> None:
    assert split_names("a[x=1,y=2], b ,,c[z=3") == ["a[x=1,y=2]", "b", "c[z=3"]


def test_a_selection_keeps_the_chosen_rows_of_every_section_and_drops_empty_sections() -> None:
    selection = Selection.parse(rows="beta,alpha[rank=*]", highlight="alp*")
    one, other = sorted(selection.of(_sections()), key=lambda section: section.protocol.benchmark)
    assert list(one.rows) == ["beta", "alpha[rank=8]"] and one.highlight == ("alpha[rank=8]",) and one.chosen
    assert list(other.rows) == ["beta"] and other.highlight == ()
    (alone,) = Selection.parse(rows="alpha").of(_sections())
    assert list(alone.rows) == ["alpha", "alpha[rank=8]"]


def test_without_patterns_all_rows_stay() -> None:
    assert Selection.parse().of(_sections()) == _sections()


@pytest.mark.parametrize(
    ("rows", "highlight", "message"),
    [
        ("alhpa", None, r"--rows: no row matches 'alhpa'. Did you mean 'alpha'\? .*'cl-bench results ls'"),
        ("alpha,qqq", None, r"--rows: no row matches 'qqq'; there are 'alpha', 'alpha\[rank=8\]', 'beta'\."),
        (" , ", None, "--rows is empty; give names"),
        (None, "betta", r"--highlight: no row matches 'betta'. Did you mean 'beta'\?"),
        ("alpha", "beta", "--highlight 'beta' is none of the rows shown; add it to --rows"),
    ],
)
def test_a_pattern_without_rows_is_refused_in_one_sentence(
    rows: str | None, highlight: str | None, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        Selection.parse(rows, highlight).of(_sections())


def test_one_row_is_a_label_or_a_pattern_of_one_row() -> None:
    assert one_row("--against", "alpha", LABELS) == "alpha"
    assert one_row("--against", "gam*", LABELS) == "gamma[rank=8]"
    with pytest.raises(UserError, match=r"--against 'beta\*' matches 2 rows \('beta', 'beta-two'\); name one of them"):
        one_row("--against", "beta*", LABELS)
    with pytest.raises(UserError, match=r"no row matches 'gama'. Did you mean 'gamma"):
        one_row("--against", "gama", LABELS)
