"""Resumable downloads, and the digests that every later download must meet.

A file has its final name only when it is whole: all announced bytes are there, `check` accepts
it, and its digest is the pinned one. Until then it is FILE.part, beside FILE.part.from with the
server's validators, so that an interrupted download goes on where it stopped, unless the file
has changed on the server since.
"""

from __future__ import annotations

import contextlib
import email.utils
import errno
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING

from filelock import FileLock

from builder.errors import BuilderError, NetworkError
from builder.progress import Report
from builder.sources import webpage
from builder.sources.digests import WrongContent
from builder.sources.validators import Validators, validators_file

if TYPE_CHECKING:
    from requests import Response, Session

ATTEMPTS = 6
"""Attempts in a row that may fail without a byte of progress."""
MAX_WAIT = 300.0  # seconds; a server that asks for more is not waited for
MAX_BYTES = 16 << 30
_BLOCK = 1 << 16  # what a broken connection may lose
_TIMEOUT = (20, 60)  # seconds to connect, and between two pieces of the answer
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
_PAGE_BYTES = 1 << 20


class _Retry(Exception):
    """This attempt failed; another may not."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait  # seconds the server asks for


def download(
    url: str,
    path: Path,
    *,
    shown: str,
    check: Callable[[Path], str],
    subject: str,
    report: Report,
    pause: Callable[[float], None] = time.sleep,
) -> str:
    """Fetch `url` into `path`, going on with an earlier attempt; return what `check` returns.

    Args:
        shown: what messages call the url, which may hold a password.
        check: called with the whole file before it gets its name; returns its digest, raises
            WrongContent for one that is not what was asked for.
        report: told `subject`, the file's name, the bytes there and the bytes expected.
        pause: sleeps between attempts.

    Raises:
        NetworkError: unreachable, refused, a web page instead of the file, or no progress in
            `ATTEMPTS` attempts. The part that arrived stays for the next run.
        WrongContent: wrong content or digest; the file is removed.
        BuilderError: a full disk, a read-only folder, or what else `check` raises; what arrived
            stays for the next run.
    """
    import requests

    part = path.with_name(path.name + ".part")
    tell = partial(report, subject, path.name)
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f".{path.name}.lock")):
            if path.exists():  # another process was faster
                return check(path)
            with part.open("ab") as out, requests.Session() as session:
                session.headers.update({"User-Agent": "robust-filter-lens"})
                session.headers.update({"Accept-Encoding": "identity"})
                _fetch(_Source(session, url, shown), out, path, tell, pause)
                os.fsync(out.fileno())
            try:
                digest = check(part)
            except WrongContent:
                part.unlink()
                validators_file(path).unlink(missing_ok=True)
                raise
            part.replace(path)
            validators_file(path).unlink(missing_ok=True)
            _sync_folder(path.parent)
            return digest


@dataclass(frozen=True)
class _Source:
    session: Session
    url: str
    shown: str


def _fetch(
    source: _Source,
    out: IO[bytes],
    path: Path,
    tell: Callable[[int, int | None], None],
    pause: Callable[[float], None],
) -> None:
    """Attempt until the file is whole."""
    import requests

    furthest = out.seek(0, os.SEEK_END)
    failures = 0
    while True:
        tell(out.seek(0, os.SEEK_END), None)
        try:
            _attempt(source, out, path, tell)
            return
        except _Retry as e:
            reason, wait = str(e), e.wait
        except (
            requests.ConnectionError,
            requests.Timeout,
            requests.exceptions.ChunkedEncodingError,
        ) as e:
            reason, wait = _reason(e), None
        except requests.RequestException as e:
            raise NetworkError(f"cannot fetch {source.shown}: {_reason(e)}.") from None
        have = out.seek(0, os.SEEK_END)
        failures = 1 if have > furthest else failures + 1
        furthest = max(furthest, have)
        if failures >= ATTEMPTS:
            raise NetworkError(
                f"cannot fetch {source.shown}: {reason} ({failures} attempts in a row).",
                hint="run the same command again later: it goes on with the "
                f"{have:,} bytes that are there.",
            )
        pause(2.0 ** min(failures - 1, 6) if wait is None else wait)


def _reason(e: Exception) -> str:
    """The innermost words of an exception of requests, which nests and quotes its causes."""
    text = str(e)
    if "Name or service not known" in text or "Failed to resolve" in text:
        return "its host name does not resolve (no network?)"
    if "IncompleteRead" in text:
        return "the connection ended before the announced length"
    if "timed out" in text.lower():
        return "the server does not answer in time"
    if "refused" in text:
        return "the server refuses the connection"
    return f"the connection broke ({type(e).__name__})"


def _attempt(
    source: _Source, out: IO[bytes], path: Path, tell: Callable[[int, int | None], None]
) -> None:
    """One request, from where the part ends; two where Drive asks for confirmation."""
    have = out.seek(0, os.SEEK_END)
    known = Validators.read(path)
    resumed = have and known.if_range
    span = {"Range": f"bytes={have}-", "If-Range": known.if_range} if resumed else {}
    get = partial(source.session.get, headers=span, stream=True, timeout=_TIMEOUT)
    with get(source.url) as response:
        onward = _inspect(response, source.shown)
        if onward is None:
            _receive(response, source.shown, out, path, have, tell)
            return
    with get(onward) as response:
        if _inspect(response, source.shown) is not None:
            raise NetworkError(f"{source.shown} asks for confirmation again and again.")
        _receive(response, source.shown, out, path, have, tell)


def _inspect(response: Response, shown: str) -> str | None:
    """Sort out all answers that are not the file; return where a confirmation form leads."""
    code = response.status_code
    if code in _TRANSIENT:
        raise _Retry(f"the server answers {code} {response.reason}", _retry_after(response, shown))
    if code == 416:
        return None
    if code in (401, 403):
        raise NetworkError(
            f"{shown} is refused ({code} {response.reason}).",
            hint="if it needs a login, fetch it with a browser.",
        )
    if code >= 400:
        raise NetworkError(
            f"{shown} cannot be had: {code} {response.reason}.",
            hint="check the address.",
        )
    if "text/html" not in response.headers.get("Content-Type", ""):
        return None
    page = next(response.iter_content(_PAGE_BYTES), b"").decode("utf-8", "replace")
    onward = webpage.confirmation_link(page, response.url)
    if onward is None:
        raise webpage.explain(page, shown)
    return onward


def _retry_after(response: Response, shown: str) -> float | None:
    """Seconds the server asks to wait (a number or a date); None where it names none."""
    text = response.headers.get("Retry-After")
    if text is None:
        return None
    try:
        wait = float(text)
    except ValueError:
        try:
            wait = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
        except ValueError:
            return None
    if wait > MAX_WAIT:
        raise NetworkError(
            f"{shown}: the server answers {response.status_code} and asks to wait {wait:,.0f} s.",
            hint="run the same command again then; it goes on with what is there.",
        )
    return max(wait, 0.0)


def _receive(
    response: Response,
    shown: str,
    out: IO[bytes],
    path: Path,
    have: int,
    tell: Callable[[int, int | None], None],
) -> None:
    """Append the answer's body (or begin anew where it is the whole file)."""
    if response.status_code == 416:  # nothing behind the part: whole already, or another file
        if response.headers.get("Content-Range") == f"bytes */{have}" and have:
            return
        _restart(out, path)
        raise _Retry("the file on the server has become shorter")
    begin, total = 0, _length(response)
    if response.status_code == 206:
        span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if span is None or int(span[1]) != have:
            _restart(out, path)
            raise _Retry("the server sent another range than it was asked for")
        begin, total = have, None if span[2] == "*" else int(span[2])
        if not Validators.of(response, total).agree(Validators.read(path)):
            _restart(out, path)
            raise _Retry("the file on the server has changed")
    if not begin:
        _restart(out, path)
        Validators.of(response, total).write(path)
    if total is not None:
        if total > MAX_BYTES:
            raise NetworkError(f"{shown} has {total:,} bytes; at most {MAX_BYTES:,} are read.")
        free = shutil.disk_usage(path.parent).free
        if free < total - begin:
            raise BuilderError(
                f"the disk is full: {path.name} needs {total - begin:,} more bytes in "
                f"{path.parent}, which has {free:,}.",
                hint="free some space, or use --discard-checkpoints.",
            )
    at = begin
    for block in response.iter_content(_BLOCK):
        out.write(block)
        at += len(block)
        if at > MAX_BYTES:
            raise NetworkError(f"{shown} has more than {MAX_BYTES:,} bytes.")
        tell(at, total)
    out.flush()
    if total is not None and at != total:
        raise _Retry(f"{total:,} bytes were announced and {at:,} sent")


def _length(response: Response) -> int | None:
    text = response.headers.get("Content-Length", "")
    packed = "Content-Encoding" in response.headers  # then it counts other bytes than we get
    return int(text) if text.isdecimal() and not packed else None


def _restart(out: IO[bytes], path: Path) -> None:
    out.truncate(0)
    validators_file(path).unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make a rename outlive a power cut, where a folder can be opened."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn what a disk may answer into one sentence."""
    try:
        yield
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            raise BuilderError(
                f"the disk is full: cannot write {path}.",
                hint="free some space, or use --discard-checkpoints; the next run goes on.",
            ) from None
        if e.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise BuilderError(
                f"cannot write {path}: the folder {path.parent} is read-only.",
                hint="choose another cache folder.",
            ) from None
        raise BuilderError(f"cannot write {path}: {e.strerror or e}.") from None
