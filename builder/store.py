"""Object storage (S3, GCS, Azure): addresses, files, errors. obstore is imported on first use.

Endpoint and credentials come from the variables that every tool of the cloud reads
(AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, ..., GOOGLE_*, AZURE_*).
They are never stored, and no message repeats them.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

from builder.errors import BuilderError, NetworkError, UsageError
from builder.files import replacing
from builder.secrets import public

SCHEMES = ("s3", "gs", "az")
_PIECE = 8 << 20
"""Bytes that are sent or read at a time: how often a transfer can be told of, or ended."""
_RETRY = {
    "max_retries": 6,
    "retry_timeout": timedelta(seconds=60),
    "backoff": {
        "init_backoff": timedelta(milliseconds=200),
        "max_backoff": timedelta(seconds=5),
        "base": 2,
    },
}
"""How long a server that does not answer, or answers 5xx or 429, is asked again."""

Moved = Callable[[int], None]
"""Told the bytes that have been moved so far; what it raises ends the transfer."""


def _unheard(_: int) -> None: ...


def is_address(text: str) -> bool:
    """Whether a text names a place in object storage, e.g. s3://bucket/prefix."""
    return text.partition("://")[0] in SCHEMES and "://" in text


class Bucket:
    """What lies below a prefix of a bucket. Paths are relative to the prefix."""

    def __init__(self, address: str) -> None:
        scheme, _, rest = address.partition("://")
        bucket, _, prefix = rest.partition("/")
        prefix = prefix.strip("/")
        if scheme not in SCHEMES or not bucket or re.search(r"[?#@\s]|//", rest):
            raise UsageError(
                f"{public(address)} is no place in object storage.",
                hint="expected s3://BUCKET/PREFIX (or gs://, az://); credentials come from the "
                "environment.",
            )
        if not prefix:
            raise UsageError(
                f"{address} is a whole bucket.", hint=f"name a prefix, e.g. {address}/release."
            )
        self.bucket = bucket
        self.name = f"{scheme}://{bucket}/{prefix}"

    def __reduce__(self) -> tuple[Any, ...]:
        return Bucket, (self.name,)

    def __str__(self) -> str:
        return self.name

    @cached_property
    def _client(self) -> Any:
        try:
            from obstore.store import from_url
        except ImportError:
            raise UsageError(
                "this needs obstore, which is not installed.",
                hint="pip install 'robust-filter-lens[s3]'",
            ) from None
        plain = (os.environ.get("AWS_ENDPOINT_URL") or "").startswith("http://")
        options = {"allow_http": True} if plain else {}
        with self._errors("open"):
            return from_url(self.name, client_options=options, retry_config=_RETRY)

    def read(self, path: str) -> bytes | None:
        """The bytes of a small file; None where there is none."""
        with self._errors(f"read {path} of"):
            try:
                return bytes(self._client.get(path).bytes())
            except FileNotFoundError as e:
                if "NoSuchBucket" in str(e):
                    raise
                return None

    def write(self, path: str, data: bytes) -> None:
        """Write a small file; it is there whole or not at all."""
        with self._errors(f"write {path} to"):
            self._client.put(path, data)

    def create(self, path: str, data: bytes) -> str | None:
        """Write a small file that must not be there; its tag, or None where it is there."""
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        with self._errors(f"write {path} to"):
            try:
                return str(self._client.put(path, data, mode="create")["e_tag"])
            except (AlreadyExistsError, PreconditionError):
                return None

    def replace(self, path: str, data: bytes, tag: str) -> str | None:
        """Write a small file over the one of this tag; the new tag, or None where it is not it."""
        from obstore.exceptions import NotModifiedError, PreconditionError

        with self._errors(f"write {path} to"):
            try:
                return str(self._client.put(path, data, mode={"e_tag": tag})["e_tag"])
            except (PreconditionError, NotModifiedError, FileNotFoundError):
                return None

    def facts(self, path: str) -> Any:
        """Size, tag and time of a file, as obstore's ObjectMeta; None where there is none."""
        with self._errors(f"look for {path} in"):
            try:
                return self._client.head(path)
            except FileNotFoundError:
                return None

    def size(self, path: str) -> int | None:
        """Bytes of a file; None where there is none."""
        found = self.facts(path)
        return None if found is None else int(found["size"])

    def names(self, folder: str = "") -> dict[str, int]:
        """{path: bytes} of all that lies below a folder."""
        with self._errors("list"):
            pages = self._client.list(folder or None)
            return {meta["path"]: int(meta["size"]) for page in pages for meta in page}

    def delete(self, path: str) -> None:
        """Delete a file, or all that lies below a folder, if it is there."""
        paths = list(self.names(path)) or [path]
        with self._errors(f"delete {path} of"), suppress(FileNotFoundError):
            self._client.delete(paths)

    def send(self, path: str, file: Path, moved: Moved = _unheard) -> None:
        """Send a file in pieces; it appears under its name when all have arrived."""

        def pieces() -> Iterator[bytes]:
            done = 0
            with file.open("rb") as f:
                while piece := f.read(_PIECE):
                    yield piece
                    done += len(piece)
                    moved(done)

        with self._errors(f"send {path} to"):
            self._client.put(path, pieces(), chunk_size=_PIECE)

    def fetch(
        self, path: str, file: Path, sha256: str | None = None, moved: Moved = _unheard
    ) -> None:
        """Fetch a file; it appears under its name when all of it has arrived.

        Raises:
            BuilderError: it is not there, or not the one of this digest.
        """
        digest, done = hashlib.sha256(), 0
        with self._errors(f"fetch {path} of"), replacing(file) as f:
            try:
                answer = self._client.get(path)
            except FileNotFoundError as e:
                if "NoSuchBucket" in str(e):
                    raise
                raise BuilderError(f"{self}: there is no {path}.") from None
            for piece in answer.stream(min_chunk_size=_PIECE):
                f.write(piece)
                digest.update(piece)
                done += len(piece)
                moved(done)
            if sha256 not in (None, digest.hexdigest()):
                raise BuilderError(
                    f"{self}: {path} is not the file that the manifest lists.",
                    hint=f"`builder verify {self}` says what else has changed.",
                )

    def open(self, path: str, size: int) -> io.RawIOBase:
        """A file to read from where it lies; only what is read is asked for."""
        return _Ranges(self, path, size)

    def piece(self, path: str, start: int, end: int) -> bytes:
        """The bytes of a file from `start` to before `end`."""
        with self._errors(f"read {path} of"):
            return bytes(self._client.get_range(path, start=start, end=end))

    @contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        """What obstore raises, as one message without the request (which may be signed)."""
        try:
            yield
        except BuilderError:
            raise
        except Exception as e:
            known = type(e).__module__.startswith("obstore")
            builtin = isinstance(e, FileNotFoundError | PermissionError | NotImplementedError)
            if not known and not (builtin and "Error performing" in str(e)):
                raise
            raise self._explained(doing, str(e)) from None

    def _explained(self, doing: str, text: str) -> BuilderError:
        status = re.search(r"status code: (\d+)", text)
        code = re.search(r"<Code>(\w+)</Code>", text)
        said = f"HTTP {status[1]}" + (f" {code[1]}" if code else "") if status else ""
        failed = f"cannot {doing} {self}"
        server = public(os.environ.get("AWS_ENDPOINT_URL") or "") or "the store"
        if "NoSuchBucket" in text:
            return NetworkError(
                f"{failed}: {server} has no bucket {self.bucket}.",
                hint="check its name and the endpoint; a bucket is made once, by hand.",
            )
        if (status and status[1] in ("400", "401", "403")) or "169.254.169.254" in text:
            why = f"the credentials are missing or wrong, or may not do this ({said or 'none'})"
            return NetworkError(
                f"{failed}: {why}.",
                hint="set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION (or those of "
                "your cloud).",
            )
        if not status and "HTTP error" not in text:
            first = public(text.split("\n")[0])
            return UsageError(f"{failed}: {first}")
        why = f"{server} could not do it ({said})" if status else f"no answer from {server}"
        return NetworkError(f"{failed}: {why}.", hint="run the same command again.")


class _Ranges(io.RawIOBase):
    """A file of a bucket, read by ranges."""

    def __init__(self, bucket: Bucket, path: str, size: int) -> None:
        self._bucket, self._path, self._size, self._at = bucket, path, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        end = min(self._at + len(buffer), self._size)
        if end <= self._at:
            return 0
        got = self._bucket.piece(self._path, self._at, end)
        buffer[: len(got)] = got
        self._at += len(got)
        return len(got)
