"""Weights on the Hugging Face hub: found in its cache, or fetched by its library with one line of output."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cl_bench.errors import reason, root_cause

FILES = ("model.safetensors", "pytorch_model.bin")
"""Weight files in timm's repositories, the preferred one first."""

_BUSY = (408, 425, 429, 500, 502, 503, 504)
_ATTEMPTS = 3


class NotFetched(Exception):
    """Raised if weights cannot be fetched from the hub; the message says why."""


def cached(repository: str) -> Path | None:
    """The weights of a repository in the hub's cache; None if they are not cached."""
    from huggingface_hub import try_to_load_from_cache

    found = (try_to_load_from_cache(repository, file) for file in FILES)
    return next((Path(path) for path in found if isinstance(path, str)), None)


def fetch(repository: str, name: str) -> Path:
    """Fetch the weights of a repository into the hub's cache, with a line on stderr.

    The hub library's output about retries is suppressed. A broken connection is resumed; after a process was ended, the
    next one starts over.

    Args:
        name: name of the weights, for the line on stderr.

    Raises:
        NotFetched: no server answers, or it does not send the weights.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError, RemoteEntryNotFoundError

    if constants.HF_HUB_OFFLINE:
        raise NotFetched("HF_HUB_OFFLINE is set")
    with _quiet():
        for file in FILES:
            url, size = hf_hub_url(repository, file), None
            try:
                # The library would ask a server that does not answer six times; this asks once.
                size = get_hf_file_metadata(url).size
            except RemoteEntryNotFoundError:
                continue
            except HfHubHTTPError as error:
                if error.response.status_code not in _BUSY:
                    raise NotFetched(_why(error, repository)) from error
            except Exception as error:
                raise NotFetched(reason(root_cause(error))) from error
            amount = f" ({size / 1e6:,.1f} MB)" if size else ""
            print(f"downloading the weights of '{name}'{amount} from {url}", file=sys.stderr)
            return _download(repository, file)
    raise NotFetched(f"HTTP 404: neither {' nor '.join(FILES)} is there")


def _download(repository: str, file: str) -> Path:
    from huggingface_hub import hf_hub_download

    for attempt in range(_ATTEMPTS):
        try:
            path = Path(hf_hub_download(repository, file))
            break
        except Exception as error:
            # The library resumes a transfer that ends early or stalls, but not one that is reset. Its client is httpx
            # or httpx2, depending on its version.
            if type(error).__name__ != "ReadError" or attempt == _ATTEMPTS - 1:
                raise NotFetched(_why(error, repository)) from error
    # The library only compares lengths; the cache names large files by their SHA-256.
    blob = path.resolve()
    if re.fullmatch("[0-9a-f]{64}", blob.name):
        with blob.open("rb") as content:
            found = hashlib.file_digest(content, "sha256").hexdigest()
        if found != blob.name:
            path.unlink()
            blob.unlink(missing_ok=True)
            raise NotFetched(f"the download has SHA-256 {found[:16]}..., expected {blob.name[:16]}...")
    return path


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the library's progress bars and its log of retries."""
    from huggingface_hub import constants
    from huggingface_hub.utils import logging
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    verbosity = logging.get_verbosity()
    # Bars that the user's environment demands cannot be switched off.
    bars = constants.HF_HUB_DISABLE_PROGRESS_BARS is None and not are_progress_bars_disabled()
    logging.set_verbosity_error()
    if bars:
        disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            enable_progress_bars()


def _why(error: Exception, repository: str) -> str:
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError

    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    if not isinstance(error, HfHubHTTPError):
        return reason(root_cause(error))
    status = f"HTTP {error.response.status_code}"
    if isinstance(error, GatedRepoError):
        return f"{status}: access is restricted; ask for it at https://huggingface.co/{repository} and set HF_TOKEN"
    if status in ("HTTP 401", "HTTP 403"):
        return f"{status}: the repository is private or not there; where you may read it, set HF_TOKEN"
    return status
