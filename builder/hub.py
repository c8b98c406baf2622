"""The Hugging Face Hub: addresses, files, errors. huggingface_hub is imported on first use."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

from builder import schema, store
from builder.errors import NetworkError, UsageError
from builder.secrets import public, redact

if TYPE_CHECKING:
    from huggingface_hub import HfApi, HfFileSystem

SCHEME = "hf://datasets/"
ID = r"[\w.-]+/[\w.-]+"
"""How a repository is named, as a regular expression."""


@dataclass(frozen=True)
class Place:
    """A dataset repository on the Hub, at a revision (None: its main branch)."""

    repo_id: str
    revision: str | None = None

    def __str__(self) -> str:
        if not self.revision:
            return f"{SCHEME}{self.repo_id}"
        # A slash in a tag or branch is escaped, as a path may follow; one in refs/pr/1 is not.
        known = re.fullmatch(r"refs/pr/\d+", self.revision)
        revision = self.revision if known else quote(self.revision, safe="")
        return f"{SCHEME}{self.repo_id}@{revision}"


def is_address(text: str) -> bool:
    """Whether a text names a Hub repository rather than a folder.

    hf:// always does; "org/name" does unless there is such a path here, or a folder "org" in
    which "name" is rather mistyped.
    """
    if text.startswith("hf://"):
        return True
    if re.fullmatch(rf"{ID}(@\S+)?", text) is None or Path(text).exists():
        return False
    owner = text.partition("/")[0]
    return owner not in (".", "..", "out") and not Path(owner).is_dir()


def is_away(address: str) -> bool:
    """Whether the address of a release is on the Hub or in object storage, not on this machine."""
    return address.startswith("hf://") or store.is_address(address)


def release_address(text: str) -> str:
    """A release as people type it: a bare "org/name" is rather a folder that is not there.

    Raises:
        UsageError: neither a path here, nor hf://, nor "org/name@tag", nor in object storage.
    """
    if Path(text).exists() or store.is_address(text):
        return text
    if is_address(text) and (text.startswith("hf://") or "@" in text):
        return text
    raise UsageError(
        f"there is no folder {text}.",
        hint="expected a folder with manifest.json (`builder build` makes out/mini), or "
        f"{SCHEME}ORG/NAME@TAG, or s3://BUCKET/PREFIX",
    )


def parse(text: str, revision: str | None = None) -> Place:
    """The place that "org/name", "org/name@v1.0.0" or "hf://datasets/org/name@v1.0.0" names.

    Raises:
        UsageError: another form, or two revisions.
    """
    match = re.fullmatch(rf"(?:{SCHEME})?({ID})(?:@([^\s@]+?))?/?", text)
    if match is None:
        raise UsageError(
            f"{text!r} is no data set on the Hub.",
            hint=f"expected org/name or {SCHEME}org/name@tag",
        )
    repo_id, own = match[1], unquote(match[2]) if match[2] else None
    if own and revision and own != revision:
        raise UsageError(f"two revisions: {own} in the address, and {revision}.")
    return Place(repo_id, revision or own)


def require() -> None:
    """Fail with one clear message where the `hub` extra is not installed.

    The client's own words on attempts that it repeats are left out, unless HF_HUB_VERBOSITY asks.
    """
    try:
        from huggingface_hub.utils import logging
    except ImportError:
        raise UsageError(
            "this needs huggingface_hub, which is not installed.",
            hint="pip install 'robust-filter-lens[hub]'",
        ) from None
    if "HF_HUB_VERBOSITY" not in os.environ:
        logging.set_verbosity_error()  # type: ignore[no-untyped-call]


def api(token: str | None = None) -> HfApi:
    """A client for HF_ENDPOINT with the given token, else the one in HF_TOKEN or stored."""
    require()
    from huggingface_hub import HfApi, constants
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    return HfApi(endpoint=constants.ENDPOINT, token=token)


def fetcher(place: Place, token: str | None = None) -> Callable[[str], Path]:
    """A function that maps a path in the repository to a file in the Hub's cache.

    A revision that can move is resolved once, so that all files are of one commit: by its
    manifest, which the cache keeps under the revision's name. So what has been fetched once opens
    with HF_HUB_OFFLINE, too, and while the Hub does not answer.

    Raises:
        NetworkError: no such repository, revision or file; or no answer, and it is not cached.
    """
    client = api(token)

    def download(path: str, revision: str | None) -> Path:
        return Path(
            client.hf_hub_download(place.repo_id, path, repo_type="dataset", revision=revision)
        )

    with network_errors(f"open {place}"):
        if not is_cached(place, schema.MANIFEST):  # asks once, where a download tries and tries
            client.dataset_info(place.repo_id, revision=place.revision)
        commit = download(schema.MANIFEST, place.revision).parent.name

    def fetch(path: str) -> Path:
        with network_errors(f"fetch {path} of {place}"):
            return download(path, commit)

    return fetch


def endpoint() -> str:
    """Where the Hub is: HF_ENDPOINT, else the public one."""
    from huggingface_hub import constants

    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def is_cached(place: Place, path: str) -> bool:
    """Whether the Hub's cache holds a file of a data set, at the commit its revision last was."""
    require()
    from huggingface_hub import try_to_load_from_cache

    revision = place.revision
    found = try_to_load_from_cache(place.repo_id, path, repo_type="dataset", revision=revision)
    return isinstance(found, str)


def duckdb_filesystem() -> HfFileSystem:
    """A file system for `duckdb.DuckDBPyConnection.register_filesystem` that serves hf://.

    DuckDB's own hf:// needs an extension that it downloads, and knows one endpoint only; this
    one honours HF_ENDPOINT, HF_TOKEN and @revision. Close the connection after use.
    """
    require()
    from huggingface_hub import HfFileSystem, constants

    class HubFiles(HfFileSystem):
        def modified(self, path: str, **kwargs: Any) -> datetime:
            """DuckDB asks; huggingface_hub answers for buckets only (cf. fsspec/s3fs#1021)."""
            return datetime.fromtimestamp(0, UTC)

        def _open(self, path: str, *args: Any, **kwargs: Any) -> Any:
            # DuckDB asks for exact ranges: reading ahead triples the bytes (measured).
            return super()._open(path, *args, **{**kwargs, "cache_type": "none"})

    return HubFiles(endpoint=constants.ENDPOINT)


@contextmanager
def network_errors(doing: str, *also: type[Exception]) -> Iterator[None]:
    """Turn what the Hub's client raises into one NetworkError without URLs or secrets.

    Signed upload addresses and tokens can be part of the client's own messages, so only the
    status and the server's sentence are repeated.

    Args:
        doing: what failed, as in "cannot ...".
        also: errors of other readers of the Hub (datasets, DuckDB) that mean the same.
    """
    from huggingface_hub import errors

    # httpx's base class in huggingface_hub 1, httpx2's in 2.
    http_error: type[Exception] = vars(errors)["HTTPError"]
    expected: tuple[type[Exception], ...] = (
        http_error,
        OSError,
        RuntimeError,
        errors.EntryNotFoundError,
        json.JSONDecodeError,
        *also,
    )
    try:
        yield
    except errors.HFValidationError as e:
        raise UsageError(f"cannot {doing}: {redact(str(e))}") from None
    except expected as e:
        # Failed uploads arrive as a RuntimeError whose cause tells why.
        for cause in _causes(e):
            if isinstance(cause, errors.HfHubHTTPError):
                raise _explain(doing, cause) from None
            if isinstance(cause, errors.OfflineModeIsEnabled):
                raise NetworkError(
                    f"cannot {doing}: it is not in the Hub's cache, and nothing else was asked.",
                    hint="connect (unset HF_HUB_OFFLINE), and run the same command again.",
                ) from None
            if isinstance(cause, (http_error, ConnectionError, TimeoutError)):
                raise _no_answer(doing, cause) from None
            if isinstance(cause, json.JSONDecodeError):
                raise NetworkError(
                    f"cannot {doing}: the answer is not the Hub's (no JSON).",
                    hint=f"check HF_ENDPOINT and proxies, then {_AGAIN}",
                ) from None
        if isinstance(e, errors.LocalEntryNotFoundError):
            raise _no_answer(doing, e) from None
        if isinstance(e, OSError) and e.errno is None:  # fewer bytes than announced
            raise NetworkError(f"cannot {doing}: the transfer broke off.", hint=_AGAIN) from None
        if isinstance(e, also):
            first = redact(str(e)).strip().split("\n")[0]
            raise NetworkError(f"cannot {doing}: {first}", hint=_AGAIN) from None
        raise


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and what it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _no_answer(doing: str, error: BaseException) -> NetworkError:
    return NetworkError(
        f"cannot {doing}: no answer from {public(endpoint())} ({type(error).__name__}).",
        hint=f"check the network (and HF_ENDPOINT, HF_HUB_OFFLINE), then {_AGAIN}",
    )


_TOKEN_HINT = "set HF_TOKEN to a token with write access, or run `hf auth login`."
_AGAIN = "run the same command again: what has arrived is not sent twice."


def _explain(doing: str, error: Any) -> NetworkError:
    from huggingface_hub.errors import RepositoryNotFoundError

    status = error.response.status_code
    said = "; ".join(redact(error.server_message or "").split("\n")).strip().rstrip(".")
    wait = error.response.headers.get("Retry-After")
    full = status == 403 and re.search("storage|quota", said, re.I)
    detail = f": {said}" if said else ""
    if error.response.headers.get("X-Error-Code") == "GatedRepo":
        return NetworkError(
            f"cannot {doing}: the repository is gated (HTTP {status}{detail}).",
            hint="ask for access on its page, then set HF_TOKEN or run `hf auth login`.",
        )
    unknown = isinstance(error, RepositoryNotFoundError)  # 401 without a token, 404 with one
    match 404 if unknown else status:
        case 401:
            why, hint = "the token is missing or wrong", _TOKEN_HINT
        case 402 | 413 | 507 | 403 if status != 403 or full:
            why, hint = "the storage quota is used up", f"free or buy storage, then {_AGAIN}"
        case 403:
            why, hint = "the token has no permission for this", _TOKEN_HINT
        case 404:
            why = "the Hub has no such repository, revision or file, or hides it from this token"
            hint = "check the id and the revision; private repositories need a token."
        case 429:
            why = "too many requests" + (f"; the Hub asks to wait {wait} s" if wait else "")
            hint = f"wait, then {_AGAIN}"
        case _:
            why, hint = "the Hub could not do it", _AGAIN
    return NetworkError(f"cannot {doing}: {why} (HTTP {status}{detail}).", hint=hint)
