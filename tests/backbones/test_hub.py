"""Weights of timm's tags from a server that speaks the hub's protocol: fetched, cached, interrupted, refused."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save

from cl_bench import backbones
from cl_bench.backbones import loading
from cl_bench.errors import UserError
from tests.helpers.command import Cli, assert_refused
from tests.helpers.downloads import Handler, Site
from tests.helpers.hub import Hub, HubHandler

TAG = "test_vit.r160_in1k"
REPOSITORY = f"timm/{TAG}"
"""A ViT of 0.4 M parameters that timm keeps for tests."""


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    with torch.random.fork_rng(devices=[]):
        return {name: t.contiguous() for name, t in timm.create_model(TAG.split(".")[0]).state_dict().items()}


def serve(stack: ExitStack, handler: type[BaseHTTPRequestHandler], **attributes: object) -> str:
    """The address of a server that lives as long as the stack."""
    server = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), handler))
    server.__dict__.update(attributes)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    stack.callback(thread.join)
    stack.callback(server.shutdown)
    return f"http://127.0.0.1:{server.server_address[1]}"


class Log(logging.Handler):
    """What a library says in its log."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: dict[str, torch.Tensor]) -> Iterator[Hub]:
    """The hub's library asks this server, has an empty cache, and logs nothing that a user would see."""
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1,localhost")
    store = Site(content=save(weights), ranges="range")
    served = Hub(store, {REPOSITORY: "model.safetensors"})
    with ExitStack() as stack:
        # A host of its own, like the hub's storage: older versions of the library follow redirects within a host.
        store.url = f"{serve(stack, Handler, site=store).replace('127.0.0.1', 'localhost')}/blob"
        served.url = serve(stack, HubHandler, hub=served)
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        template = f"{served.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
        huggingface_hub.utils.close_session()
        loading._read.cache_clear()
        log = Log()
        logging.getLogger("huggingface_hub").addHandler(log)
        yield served
        logging.getLogger("huggingface_hub").removeHandler(log)
        huggingface_hub.utils.close_session()
    loading._read.cache_clear()
    assert log.lines == []


@pytest.fixture
def refused(capfd: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """The one sentence with which the weights are refused; nothing else is said."""

    def call() -> str:
        loading._read.cache_clear()
        capfd.readouterr()
        with pytest.raises(UserError) as error:
            backbones.verify(TAG)
        assert capfd.readouterr().out == "" and "\n" not in str(error.value)
        assert str(error.value).startswith(f"the weights of '{TAG}' are not on this machine and cannot be fetched (")
        assert str(error.value).endswith(f"needs no network: {', '.join(backbones.names())}")
        return str(error.value)

    return call


def blobs(hub: Hub) -> list[Path]:
    return sorted(Path(constants.HF_HUB_CACHE, f"models--timm--{TAG}", "blobs").glob("*"))


def test_weights_are_fetched_once_and_then_read_from_the_cache(
    hub: Hub, weights: dict[str, torch.Tensor], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = backbones.weights_hash(weights)
    assert backbones.verify(TAG).weights == expected
    size = len(hub.store.content) / 1e6
    url = f"{hub.url}/{REPOSITORY}/resolve/main/model.safetensors"
    assert capfd.readouterr().err == f"downloading the weights of '{TAG}' ({size:,.1f} MB) from {url}\n"
    assert hub.store.requested_ranges == [None] and len(blobs(hub)) == 1
    hub.requests.clear()
    for offline in (False, True):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        loading._read.cache_clear()
        assert backbones.verify(TAG).weights == expected
    assert hub.requests == [] and len(hub.store.requested_ranges) == 1 and capfd.readouterr().err == ""


def test_a_repository_without_safetensors_and_a_busy_server(hub: Hub, weights: dict[str, torch.Tensor]) -> None:
    hub.busy = 1
    assert backbones.verify(TAG).weights == backbones.weights_hash(weights)
    loading._read.cache_clear()
    hub.files[REPOSITORY] = "pytorch_model.bin"
    folder = Path(constants.HF_HUB_CACHE)
    folder.rename(folder.with_name("first"))
    torch.save(weights, folder.with_name("weights.bin"))
    hub.store.content = folder.with_name("weights.bin").read_bytes()
    assert backbones.verify(TAG).weights == backbones.weights_hash(weights)


@pytest.mark.parametrize("ranges", ["range", "none"])
def test_a_broken_connection_is_taken_up(
    hub: Hub,
    weights: dict[str, torch.Tensor],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    ranges: str,
) -> None:
    hub.store.ranges = ranges  # type: ignore[assignment]
    hub.store.answers = [("bytes", 100_000), ("bytes", 200_000)]
    # What is smaller than a chunk when the connection breaks is lost.
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)
    assert backbones.verify(TAG).weights == backbones.weights_hash(weights)
    assert hub.store.requested_ranges[0] is None and len(hub.store.requested_ranges) == 3
    assert all(asked and asked.startswith("bytes=") for asked in hub.store.requested_ranges[1:])
    assert capfd.readouterr().err.count("\n") == 1


def test_a_connection_that_is_reset_is_made_again(
    hub: Hub, weights: dict[str, torch.Tensor], refused: Callable[[], str]
) -> None:
    hub.store.answers = [("reset", 100_000)] * 3
    assert "Connection reset by peer)" in refused() and len(hub.store.requested_ranges) == 3 and blobs(hub) == []
    hub.store.answers = [("reset", 100_000)] * 2
    assert backbones.verify(TAG).weights == backbones.weights_hash(weights)


def test_what_did_not_come_whole_is_fetched_again(hub: Hub, refused: Callable[[], str]) -> None:
    hub.store.answers = [("status", 403)]
    assert "(HTTP 403: the repository is private or not there" in refused()
    assert blobs(hub) == []
    hub.sha256 = "0" * 64
    assert "expected 0000000000000000..." in refused() and blobs(hub) == []
    hub.sha256 = None
    assert backbones.verify(TAG).weights and len(blobs(hub)) == 1


def test_every_refusal_says_why_in_one_sentence(
    hub: Hub, refused: Callable[[], str], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.gated = True
    assert f"(HTTP 401: access is restricted; ask for it at https://huggingface.co/{REPOSITORY} and set" in refused()
    hub.gated, hub.files = False, {REPOSITORY: "config.json"}
    assert "(HTTP 404: neither model.safetensors nor pytorch_model.bin is there)" in refused()
    hub.files.clear()
    assert "(HTTP 401: the repository is private or not there; where you may read it, set HF_TOKEN)" in refused()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    assert "(HF_HUB_OFFLINE is set)" in refused() and hub.requests == []


def test_without_a_network_the_command_says_one_sentence_at_once(
    hub: Hub, cl_bench: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), HubHandler) as gone:
        nobody = f"http://127.0.0.1:{gone.server_address[1]}"
    template = f"{nobody}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    outcome = cl_bench("run", "--methods", "simplecil", "--backbone", TAG)
    assert_refused(outcome, "Connection refused)", "--checkpoint FILE", *backbones.names())
