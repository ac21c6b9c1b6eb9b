"""`cl-bench data prepare`, from a server of the test's own."""

from __future__ import annotations

import hashlib
import shutil
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cl_bench.streams import catalogue
from cl_bench.streams.types import Archive, DataSet
from tests.helpers import trees
from tests.helpers.command import Outcome
from tests.helpers.layouts import made

pytestmark = pytest.mark.usefixtures("nowhere")


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and the address under which it is served."""
    folder = tmp_path / "served"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as http:
        threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
        yield folder, f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


def served(folder: Path, address: str, file: str, **changes: Any) -> Archive:
    content = (folder / file).read_bytes()
    checksum = f"sha256:{hashlib.sha256(content).hexdigest()}"
    return replace(Archive(f"{address}/{file}", file, checksum, len(content)), **changes)


@pytest.fixture
def imagenet_r(server: tuple[Path, str], use: Any, tmp_path: Path) -> DataSet:
    """ImageNet-R as the server has it: the archive and CODA-Prompt's two lists."""
    folder, address = server
    source = trees.original(tmp_path / "source")
    with tarfile.open(folder / "imagenet-r.tar", "w") as archive:
        archive.add(source / "imagenet-r", "imagenet-r")
    lists = [f"imagenet-r_{part}.yaml" for part in ("train", "test")]
    for name in lists:
        shutil.copyfile(source / name, folder / name)
    dataset = replace(
        trees.IMAGENET_R,
        archives=(
            served(folder, address, "imagenet-r.tar"),
            *(served(folder, address, name, unpack=False) for name in lists),
        ),
        split_hashes={"CODA-Prompt": trees.hashes(*(trees.part_names(trees.WNIDS, p) for p in ("train", "test")))},
    )
    use(dataset)
    return dataset


def test_prepare_downloads_unpacks_and_checks(
    data: Callable[..., Outcome], imagenet_r: DataSet, server: tuple[Path, str], tmp_path: Path
) -> None:
    root = tmp_path / "new" / "data"
    result = data("prepare", "imagenet-r", "--root", root)
    assert result.code == 0, result
    assert imagenet_r.licence in result.err and imagenet_r.page in result.err and imagenet_r.manual in result.err
    assert "split: CODA-Prompt (as published)" in result.out and result.out.endswith("nothing wrong\n")
    assert data("verify", "imagenet-r", "--root", root).code == 0
    # Once more: nothing is asked for.
    for path in server[0].iterdir():
        path.unlink()
    again = data("prepare", "imagenet-r", "--root", root)
    assert again.code == 0 and "is there already" in again.err
    # A lost image comes back from the archive that is still there.
    next((root / "imagenet-r").rglob("*.jpg")).unlink()
    assert data("prepare", "imagenet-r", "--root", root).code == 0
    # Another list under the published name is noticed.
    trees.coda_list(root / "imagenet-r" / "imagenet-r_test.yaml", trees.part_names(trees.WNIDS, "test")[::-1][:5])
    result = data("verify", "imagenet-r", "--root", root, "--quick")
    assert "imagenet-r_test.yaml is not the published file" in result.out and result.code == 1
    assert "not CODA-Prompt; do not compare" in result.out


@pytest.mark.parametrize("fault", ["gone", "other"])
def test_a_download_that_fails_says_what_to_do(
    fault: str, data: Callable[..., Outcome], imagenet_r: DataSet, server: tuple[Path, str], tmp_path: Path
) -> None:
    archive = server[0] / "imagenet-r.tar"
    archive.unlink() if fault == "gone" else archive.write_bytes(bytes(archive.stat().st_size))
    result = data("prepare", "imagenet-r", "--root", tmp_path / "data")
    assert result.code == 2 and f"see {imagenet_r.page}, and put it at" in result.err
    assert ("HTTP 404" if fault == "gone" else "so it is another file") in result.err


@pytest.mark.parametrize(
    "layout, inner", [("cifar pickles", "cifar-100-python"), ("tiny original", "tiny-imagenet-200")]
)
def test_archives_of_other_kinds_are_prepared(
    layout: str, inner: str, data: Callable[..., Outcome], server: tuple[Path, str], use: Any, tmp_path: Path
) -> None:
    dataset, source = made(layout, tmp_path / "source")
    kind = "gztar" if "cifar" in layout else "zip"
    name = Path(shutil.make_archive(str(server[0] / inner), kind, source, inner)).name
    use(replace(dataset, archives=(served(*server, name),)))
    result = data("prepare", dataset.name, "--root", tmp_path / "data")
    assert result.code == 0 and result.out.endswith("nothing wrong\n")


def test_domainnet_is_prepared_from_an_archive_per_domain_and_lists(
    data: Callable[..., Outcome], server: tuple[Path, str], use: Any, tmp_path: Path
) -> None:
    source = trees.domainnet(tmp_path / "source")
    archives = []
    for domain in catalogue.find("domainnet").domains:
        with zipfile.ZipFile(server[0] / f"{domain}.zip", "w") as archive:
            for path in sorted((source / domain).rglob("*.jpg")):
                archive.write(path, path.relative_to(source))
        archives.append(served(*server, f"{domain}.zip"))
    for path in source.glob("*.txt"):
        shutil.copyfile(path, server[0] / path.name)
        archives.append(served(*server, path.name, unpack=False))
    use(replace(trees.DOMAINNET_SET, archives=tuple(archives)))
    assert data("prepare", "domainnet", "--root", tmp_path / "data").code == 0


def test_what_cannot_be_downloaded_is_explained(data: Callable[..., Outcome], use: Any, tmp_path: Path) -> None:
    root = tmp_path / "data"
    result = data("prepare", "pacs", "--root", root)
    assert (
        result.code == 1
        and catalogue.find("pacs").manual in result.err
        and f"The folder is '{root / 'pacs'}':\npacs/\n" in result.err
    )
    use(trees.PACS_SET)
    folder = trees.pacs(root)
    assert data("prepare", "pacs", "--root", root).code == 0
    trees.empty(next((folder / "photo").rglob("*.jpg")))
    result = data("prepare", "pacs", "--root", root)
    assert result.code == 1 and "Empty (zero-byte) images: 1" in result.out


def test_a_download_that_is_not_all_ends_with_what_is_left_to_do(
    data: Callable[..., Outcome], server: tuple[Path, str], use: Any, tmp_path: Path
) -> None:
    source = trees.original(tmp_path / "source", "imagenet-a", lists=False)
    shutil.make_archive(str(server[0] / "imagenet-a"), "tar", source, "imagenet-a")
    use(replace(trees.IMAGENET_A, archives=(served(*server, "imagenet-a.tar"),)))
    result = data("prepare", "imagenet-a", "--root", tmp_path / "data")
    assert result.code == 1 and "not ready yet: " in result.err and "nor a split list" in result.err
    assert catalogue.find("imagenet-a").manual in result.err
