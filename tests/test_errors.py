"""Texts and numbers as the user is told them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cl_bench.errors import counted, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("sdlora[rank=4]", "sdlora[rank=4]"),
        ("caf\u00e9 \u4e2d \U0001f600", "caf\u00e9 \u4e2d \U0001f600"),
        ("C:\\data", "C:\\data"),
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("a\tb\r\nc", "a\\tb\\r\\nc"),
        ("\u202egnp.exe\u2066", "\\u202egnp.exe\\u2066"),
        ("\x9b2J\u2028\u200b\ufeff", "\\x9b2J\\u2028\\u200b\\ufeff"),
        ("\ud800", "\\ud800"),
        ("\udce9.png", "\\xe9.png"),
    ],
)
def test_what_acts_on_a_terminal_is_an_escape(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text(st.characters(exclude_categories=())))
def test_any_text_is_printable_and_once_is_enough(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable() and printable(shown) == shown
    assert (shown == text) == text.isprintable()


def test_numbers_agree_with_what_they_count() -> None:
    assert [counted(n, "task") for n in (0, 1, 2, 1000)] == ["0 tasks", "1 task", "2 tasks", "1,000 tasks"]
    assert [counted(n, "class") for n in (1, 2)] == ["1 class", "2 classes"]
    assert [counted(n, "pair of runs", "pairs of runs") for n in (1, 2)] == ["1 pair of runs", "2 pairs of runs"]
