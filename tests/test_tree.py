"""The tracked tree stays small enough to be sent to another machine at once."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from tests.helpers import ROOT

LIMIT = 50 * 2**20
"""Bytes of all tracked files, stored results aside."""


def tracked_sizes() -> dict[str, int]:
    """Bytes of each file of the last commit, by path; the test is skipped where there is no commit."""
    if shutil.which("git") is None:
        pytest.skip("needs git")
    if not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout: this copy of the tree has no .git")
    command = ["git", "-C", str(ROOT), "ls-tree", "-r", "-l", "-z", "HEAD"]
    listed = subprocess.run(command, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip(f"needs a git checkout: {listed.stderr.strip()}")
    sizes = {}
    for entry in listed.stdout.split("\0")[:-1]:
        fields, path = entry.split("\t", 1)
        size = fields.split()[3]
        sizes[path] = int(size) if size.isdigit() else 0  # "-" for what is no file
    return sizes


def test_the_tracked_tree_without_results_is_below_50_mib() -> None:
    sizes = {path: size for path, size in tracked_sizes().items() if not path.startswith("results/")}
    assert "README.md" in sizes
    largest = sorted(sizes.items(), key=lambda item: -item[1])[:5]
    assert sum(sizes.values()) < LIMIT, f"the largest files are {largest}"


def test_the_page_of_the_reference_results_is_built_not_tracked() -> None:
    assert "reports/reference/index.html" not in tracked_sizes()


def test_git_ignores_no_source() -> None:
    """A pattern for built files that also fits a source folder keeps that folder out of every other clone."""
    tracked_sizes()
    command = ["git", "-C", str(ROOT), "ls-files", "--others", "--ignored", "--exclude-standard", "-z", "--"]
    folders = ["benchmarks", "cl_bench", "docs", "examples", "methods", "tests", "tools"]
    ignored = subprocess.run([*command, *folders], capture_output=True, text=True, check=True).stdout.split("\0")
    assert [path for path in ignored if path and "__pycache__" not in path] == []
