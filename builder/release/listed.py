"""The files of a release that lies elsewhere, for DuckDB: its manifest knows them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem


def listed_files(
    address: str, sizes: Mapping[str, int], opened: Callable[[str], IO[bytes]]
) -> AbstractFileSystem:
    """A file system for `duckdb.DuckDBPyConnection.register_filesystem`.

    Args:
        address: of the release, e.g. "hf://datasets/org/name@v1.0.0" or "s3://bucket/prefix".
        sizes: {path: bytes} of its files.
        opened: opens a path in it, for reading.
    """
    from fsspec import AbstractFileSystem

    scheme, _, root = address.partition("://")

    class ListedFiles(AbstractFileSystem):  # type: ignore[misc]
        protocol = scheme

        def _inside(self, path: str) -> str:
            return path.removeprefix(f"{scheme}://").removeprefix(f"{root}/")

        def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
            inside = self._inside(path)
            if inside not in sizes:
                raise FileNotFoundError(path)
            return {"name": f"{root}/{inside}", "size": sizes[inside], "type": "file"}

        def exists(self, path: str, **kwargs: Any) -> bool:
            return self._inside(path) in sizes

        def glob(self, path: str, maxdepth: int | None = None, **kwargs: Any) -> list[str]:
            pattern = PurePosixPath(self._inside(path))
            depth = len(pattern.parts)
            found = (p for p in map(PurePosixPath, sizes) if len(p.parts) == depth)
            return sorted(f"{root}/{p}" for p in found if p.match(str(pattern)))

        def modified(self, path: str) -> datetime:
            """DuckDB asks (cf. fsspec/s3fs#1021); what a manifest lists does not change."""
            return datetime.fromtimestamp(0, UTC)

        def _open(self, path: str, *args: Any, **kwargs: Any) -> IO[bytes]:
            return opened(self._inside(path))

    return ListedFiles(skip_instance_cache=True)
