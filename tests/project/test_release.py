"""What a release must fulfil: one version in all texts, files that can be published; bad input is named."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

import cl_bench
from tests.helpers import ROOT
from tests.helpers.scripts import load_tool

release = load_tool("release")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The texts that name a version, of this checkout as if all its changes were released."""
    (tmp_path / "cl_bench").mkdir()
    for name in ("cl_bench/__init__.py", "CITATION.cff", "CHANGELOG.md"):
        shutil.copy(ROOT / name, tmp_path / name)
    head, _, rest = (tmp_path / "CHANGELOG.md").read_text(encoding="utf-8").partition("## [Unreleased]\n")
    (tmp_path / "CHANGELOG.md").write_text(head + "## [Unreleased]\n\n" + rest[rest.index("## [") :], encoding="utf-8")
    return tmp_path


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


@pytest.mark.parametrize("prefix", ["v", ""])
def test_a_tag_of_the_version_at_hand_is_in_order(tree: Path, prefix: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert release.main(["version", prefix + cl_bench.__version__], tree) == 0
    assert capsys.readouterr().out.strip() == cl_bench.__version__


def test_this_checkout_is_in_order_without_a_tag(capsys: pytest.CaptureFixture[str]) -> None:
    assert release.main(["version"]) == 0
    assert capsys.readouterr().out.strip() == cl_bench.__version__


@pytest.mark.parametrize("tag", ["main", "v1", "v1.2", "vv1.2.3", "v1.2.3-final", "", "v1.2.3\n"])
def test_what_is_no_tag_of_a_release_is_named(tree: Path, tag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert release.main(["version", tag], tree) == 2
    assert capsys.readouterr().err.startswith(f"'{tag}' is no tag of a release: expected vMAJOR.MINOR.PATCH")


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("cl_bench/__init__.py", f'"{cl_bench.__version__}"', '"9.9.9"', "but cl_bench/__init__.py has 9.9.9"),
        ("CITATION.cff", f"version: {cl_bench.__version__}", "version: 9.9.9", "9.9.9 in CITATION.cff"),
        ("CHANGELOG.md", f"## [{cl_bench.__version__}]", "## [9.9.9]", "9.9.9 in CHANGELOG.md"),
        ("CITATION.cff", "date-released: 20", "date-released: 19", "write the day of the release in both"),
        ("CHANGELOG.md", "## [Unreleased]\n", "## [Unreleased]\n\n- Something new.\n", "move them under a version"),
    ],
    ids=["package", "citation", "changelog", "day", "unreleased"],
)
def test_texts_that_do_not_fit_the_tag_are_named(
    tree: Path, file: str, old: str, new: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(tree / file, old, new)
    assert release.main(["version", f"v{cl_bench.__version__}"], tree) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_a_distribution_that_is_too_large_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wheel, sdist = tmp_path / "a-1-py3-none-any.whl", tmp_path / "a-1.tar.gz"
    for path in (wheel, sdist):
        path.write_bytes(b"1")
    assert release.main(["sizes", str(tmp_path)]) == 0
    with wheel.open("wb") as file:
        file.truncate(100 * 1000**2)
    assert release.main(["sizes", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "a-1-py3-none-any.whl has 100.0 MB, the limit is 100 MB\n"
    sdist.unlink()
    assert release.main(["sizes", str(tmp_path)]) == 2
    assert "expected one wheel and one source distribution" in capsys.readouterr().err


def test_the_script_refuses_a_tag_before_it_builds(tmp_path: Path) -> None:
    refused = subprocess.run(["bash", str(ROOT / ".ci/release"), "v9.9.9"], capture_output=True, text=True)
    assert refused.returncode == 2 and refused.stdout == ""
    assert refused.stderr.startswith("the tag 'v9.9.9' is of version 9.9.9, but") and refused.stderr.count("\n") == 1


def test_the_script_runs_the_demo_of_the_readme() -> None:
    script = (ROOT / ".ci/release").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "cl-bench run --methods sdlora,coda\ncl-bench report\n" in script
    assert "cl-bench run --methods sdlora,coda\ncl-bench report\n" in readme
