"""A release in object storage as a folder of this machine, for checks that read every byte."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from builder.errors import UsageError
from builder.files import scratch
from builder.progress import Report
from builder.release.manifest import parse_manifest
from builder.schema import CARD, MANIFEST
from builder.store import Bucket, is_address
from builder.workers import in_order


@contextmanager
def local_copy(release: str, report: Report) -> Iterator[Path]:
    """A folder with what lies at an address; a folder is taken as it is.

    What the bucket has now is fetched, not what an earlier command left in the cache. It needs the
    disk space of the release until the check ends. Of a file that is no part of the release only
    the name is fetched.

    Args:
        release: a folder, or s3://bucket/prefix.
        report: told ("verify", "fetched", bytes, all bytes).

    Raises:
        UsageError: no release there.
        NetworkError: the bucket cannot be reached or read.
    """
    if not is_address(release):
        yield Path(release)
        return
    bucket = Bucket(release)
    raw = bucket.read(MANIFEST)
    if raw is None:
        raise UsageError(f"{bucket} is not a release: it has no {MANIFEST}.")
    known = {*parse_manifest(raw, bucket)["files"], CARD}
    there = bucket.names()
    total = sum(size for path, size in there.items() if path in known)
    arrived: dict[str, int] = {}
    with scratch() as root:

        def one(path: str) -> None:
            def moved(done: int) -> None:
                arrived[path] = done
                report("verify", "fetched", sum(list(arrived.values())), total)

            bucket.fetch(path, root / path, moved=moved)

        (root / MANIFEST).write_bytes(raw)
        for path in there.keys() - known - {MANIFEST}:
            if path.startswith("/") or ".." in PurePosixPath(path).parts or os.sep == "\\":
                raise UsageError(f"{bucket} holds {path!r}, which no release has.")
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).touch()
        with ThreadPoolExecutor(4, "fetch") as pool:
            for _ in in_order(pool, one, sorted(there.keys() & known)):
                pass
        yield root
