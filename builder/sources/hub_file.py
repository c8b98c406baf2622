"""A checkpoint on the Hub, by the Hub's own client: its tokens, cache, offline mode, protocols."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from builder import hub
from builder.progress import Report

if TYPE_CHECKING:
    from collections.abc import Callable


def download(
    repo_id: str,
    path: str,
    revision: str,
    *,
    subject: str,
    report: Report,
    again: bool = False,
    cached: bool = False,
) -> Path:
    """A file of a model repository, in the Hub's cache.

    Args:
        report: told `subject`, the file's name, the bytes there and the bytes expected.
        again: fetch it anew, whatever the cache holds.
        cached: ask no server.

    Raises:
        NetworkError: no such file, no right to it, no answer; or `cached`, and it is not there.
        OSError: the cache cannot be written.
    """
    hub.require()
    from huggingface_hub import hf_hub_download

    class Bar:
        """What the client takes for a progress bar."""

        def __init__(self, *, total: float | None = None, initial: int = 0, **_: Any) -> None:
            self.n, self.total = initial, total

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def update(self, n: float | None = 1) -> None:
            self.n += int(n or 0)
            total = None if self.total is None else int(self.total)
            report(subject, path.rpartition("/")[2], self.n, total)

        def update_transfer(self, n: float) -> None:  # Xet's: bytes sent, of which none is new
            pass

        def __getattr__(self, name: str) -> Callable[..., None]:  # close, refresh, ...
            return lambda *args, **kwargs: None

    with hub.network_errors(f"fetch {path} of {repo_id} at {revision}"):
        file = hf_hub_download(
            repo_id,
            path,
            revision=revision,
            endpoint=hub.endpoint(),
            tqdm_class=Bar,
            force_download=again,
            local_files_only=cached,
        )
    return Path(file)


def cache_folder() -> Path:
    """The Hub's cache, which all programs of the user share."""
    hub.require()
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def forget(file: Path) -> None:
    """Delete a file of the Hub's cache: what `download` returned, and the bytes it points to."""
    blob = file.parent / file.readlink() if file.is_symlink() else file
    file.unlink(missing_ok=True)
    blob.unlink(missing_ok=True)
