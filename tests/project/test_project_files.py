"""Files that other programs read: citation, templates of issues, commit hooks, container; and what guides name."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from tests.helpers import ROOT

FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("[!c]*.yml"))


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("schema", "files"),
    [
        ("citation-file-format", [ROOT / "CITATION.cff"]),
        ("github-issue-forms", FORMS),
        ("github-issue-config", [ROOT / ".github" / "ISSUE_TEMPLATE" / "config.yml"]),
        ("github-workflows", sorted((ROOT / ".github" / "workflows").glob("*.yml"))),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_files_keep_to_the_schemas_of_the_programs_that_read_them(schema: str, files: list[Path]) -> None:
    pytest.importorskip("check_jsonschema", reason="needs `pip install '.[test]'`")
    if schema == "github-workflows" and not files:
        pytest.skip("no workflow")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", *map(str, files)]
    checked = subprocess.run(command, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


def test_there_is_a_form_for_each_kind_of_issue() -> None:
    assert {path.stem for path in FORMS} == {"bug", "new-method", "new-data-set", "results"}


def test_commit_hooks_run_what_make_check_runs() -> None:
    [check] = re.findall(r"^check:.*\n((?:\t.*\n)+)", text("Makefile"), re.M)
    local = next(repo for repo in yaml.safe_load(text(".pre-commit-config.yaml"))["repos"] if repo["repo"] == "local")
    hooks = {hook["entry"].replace(".venv/bin/", "$(BIN)/") for hook in local["hooks"]}
    assert hooks == {line.strip().removesuffix(" .") for line in check.splitlines()}


def test_the_container_installs_as_the_readme_does() -> None:
    """The lines that install are the same; the container adds a user and nothing else."""
    installs = re.compile(r"^(?:python -m )?pip install .*$", re.M)
    runs = re.findall(r"^RUN (.*)$", text("Dockerfile"), re.M)
    in_readme = {line.split("  #")[0].strip() for block in blocks("README.md") for line in installs.findall(block)}
    assert {line for line in runs if "useradd" not in line} == in_readme != set()
    assert text("Dockerfile").index("\nUSER ") > text("Dockerfile").index(runs[-1])


def blocks(page: str) -> list[str]:
    """Code blocks of a page, without their fences."""
    return re.findall(r"^```\w*\n(.*?)^```", text(page), re.M | re.S)


def test_the_container_gets_all_that_the_installation_reads() -> None:
    build = tomllib.loads(text("pyproject.toml"))
    read = [*build["tool"]["hatch"]["build"]["targets"]["sdist"]["include"], *build["project"]["license-files"]]
    needed = {path.removeprefix("/").partition("/")[0] for path in read} | {"constraints.txt"}
    assert needed == set(re.findall(r"^!(.*)$", text(".dockerignore"), re.M))


PATH = re.compile(r"`([\w./-]+/[\w./-]*|[\w-]+\.(?:md|toml|txt|py|cff))`")
"""A path in prose: in backquotes, with a slash or the ending of a file."""
TO_BE_WRITTEN = {"NAME"}
"""Stand for what a contributor writes."""


def test_every_file_that_the_contributing_guide_names_exists() -> None:
    named = set(PATH.findall(text("CONTRIBUTING.md")))
    assert {"tests/golden/README.md", "tools/mutants/mutants.toml", "cl_bench/metrics.py"} <= named
    there = {name for name in named if not any(mark in name for mark in TO_BE_WRITTEN)}
    assert len(there) > 30
    made_by_commands = {line.removeprefix("/") for line in text(".gitignore").splitlines()}
    assert [name for name in sorted(there - made_by_commands) if not (ROOT / name).exists()] == []
    # What a contributor writes goes into a folder that is there.
    assert [name for name in sorted(named - there) if not (ROOT / name).parent.is_dir()] == []
