"""From a line of a cohort to checked checkpoint files, and from those to a network's weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from builder.cohort.registry import ModelSpec
from builder.errors import NetworkError, UsageError
from builder.files import file_sha256
from builder.progress import Report
from builder.sources import digests
from builder.sources.addresses import Address, Remote, local_file, resolve
from builder.sources.checkpoint import SUFFIXES, read_checkpoint
from builder.sources.constructors import construct, instantiate
from builder.sources.download import download
from builder.sources.state import fit_state

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = [
    "Fetched",
    "Source",
    "construct",
    "describe",
    "discard",
    "fetch",
    "instantiate",
    "load_state",
]


@dataclass(frozen=True)
class Source:
    """Where a model's weights come from: the kind of source, and its URL(s)."""

    kind: str
    url: str


@dataclass(frozen=True)
class Fetched:
    """A model's checkpoint files, checked.

    Attributes:
        files: one file, or the members of an ensemble in their order.
        urls: their public addresses (a path where the file is the user's own).
        sha256: digest of the file; of several, the digest of their hex digests, one a line.
        bytes: total size.
        cached: whether the files are ours to delete.
    """

    files: tuple[Path, ...]
    urls: tuple[str, ...]
    sha256: str
    bytes: int
    cached: bool = False


def describe(spec: ModelSpec) -> Source:
    """Kind and URL of a model's source; no network, no look at files.

    Raises:
        UsageError: an address of no known form, or an unknown RobustBench model.
    """
    address = resolve(spec)
    return Source(address.kind, address.url)


def fetch(
    spec: ModelSpec,
    *,
    cache: Path,
    checkpoints: Path | None,
    pins: Path,
    report: Report,
) -> Fetched:
    """The checkpoint files of a model: by hand, from the cache, or downloaded.

    Args:
        cache: folder of downloads.
        checkpoints: folder of files fetched by hand; they win over the cache and the network.
        pins: checkpoints.lock; digests of all files that have a public address are pinned at
            first use and enforced ever after.
        report: told the model, the file's name, the bytes there and the bytes expected.

    Raises:
        UsageError: a wrong address, or a local file that is not there.
        NetworkError: a file that cannot be downloaded.
        BuilderError: a file that is not what was pinned, or is no checkpoint.
    """
    address = resolve(spec)
    if address.local:
        path = local_file(spec, address)
        return Fetched((path,), (address.url,), file_sha256(path), path.stat().st_size)
    by_hand = _by_hand(spec, address, checkpoints) if checkpoints is not None else []
    if by_hand:
        checked = [_check(path, key, pins) for path, key in by_hand]
        return _fetched(address, [path for path, _ in by_hand], checked, cached=False)
    files = [cache / address.kind / f"{_tag(r.address)}-{r.name}" for r in address.remote]
    try:
        checked = [
            _fetch_one(remote, path, pins, spec.model_id, report)
            for remote, path in zip(address.remote, files, strict=True)
        ]
    except NetworkError as e:
        names = "; ".join(
            " or ".join(n for n, _ in _names(spec, address, i)[:3]) for i in range(len(files))
        )
        raise NetworkError(
            f"{spec.model_id}: {e}",
            hint=f"{e.hint} A file fetched by hand is taken from --checkpoints DIR under the name "
            f"{names}.".strip(),
        ) from None
    return _fetched(address, files, checked, cached=True)


def load_state(spec: ModelSpec, fetched: Fetched, model: nn.Module) -> Mapping[str, Tensor]:
    """The weights for `model` (on any device, meta included) out of the fetched files.

    Keys and order are those of `model.state_dict()`, shared tensors under each of their names;
    element types as stored; numbers are read from the file when asked for. Keys on which no
    filter depends may be absent and keep the constructor's value: see `state.fit_state`.

    Raises:
        BuilderError: an unusable or malicious file, or one of another architecture.
    """
    what = f"{spec.model_id} ({spec.architecture}, {spec.constructor})"
    return fit_state([read_checkpoint(path) for path in fetched.files], model, what)


def discard(fetched: Fetched) -> None:
    """Delete the files if they are downloads; never a user's own."""
    if fetched.cached:
        for path in fetched.files:
            path.unlink(missing_ok=True)


def _tag(address: str) -> str:
    """Short digest of an address: two files of one name never meet in the cache."""
    return hashlib.sha256(address.encode()).hexdigest()[:12]


def _fetched(
    address: Address, files: Sequence[Path], digest: Sequence[str], *, cached: bool
) -> Fetched:
    lines = "".join(f"{d}\n" for d in digest)
    whole = digest[0] if len(digest) == 1 else hashlib.sha256(lines.encode()).hexdigest()
    size = sum(p.stat().st_size for p in files)
    return Fetched(tuple(files), tuple(r.address for r in address.remote), whole, size, cached)


def _check(file: Path, key: str, pins: Path) -> str:
    """Pin the digest of a file that can be read as a checkpoint, or check it; return it."""
    digest = file_sha256(file)
    pinned = digests.read_pins(pins).get(key)
    if pinned is not None and pinned[0] != digest:
        raise digests.changed(key, pins, pinned[0], digest)
    read_checkpoint(file, name=key)  # never pin the digest of half a file
    digests.enforce(pins, key, digest, file.stat().st_size)
    return digest


def _fetch_one(remote: Remote, path: Path, pins: Path, subject: str, report: Report) -> str:
    """One file into the cache, if it is not there; its digest, which is the pinned one."""
    if path.exists():
        try:
            return _check(path, remote.address, pins)
        except digests.WrongContent:
            path.unlink()  # damaged in the cache, or of another pin: ask its source again
    return download(
        remote.url,
        path,
        check=lambda file: _check(file, remote.address, pins),
        headers=remote.headers,
        subject=subject,
        report=report,
    )


def _by_hand(spec: ModelSpec, address: Address, folder: Path) -> list[tuple[Path, str]]:
    """The files of a model in a folder filled by hand, with the keys they are pinned under;
    empty where the folder has none of them.

    Raises:
        UsageError: no such folder, or it has some members of an ensemble but not all.
    """
    if not folder.is_dir():
        raise UsageError(f"--checkpoints {folder} is not a folder.")
    found: list[tuple[Path, str]] = []
    missing: list[str] = []
    for i in range(len(address.remote)):
        names = _names(spec, address, i)
        there = [(folder / name, key) for name, key in names if (folder / name).is_file()]
        found += there[:1]
        missing += [] if there else [names[0][0]]
    if found and missing:
        raise UsageError(
            f"{spec.model_id} is an ensemble of {len(address.remote)} files, of which {folder} "
            f"lacks {', '.join(missing)}."
        )
    return found


def _names(spec: ModelSpec, address: Address, index: int) -> list[tuple[str, str]]:
    """What the index-th file of a model may be called in a folder filled by hand, best first,
    each with the key its digest is pinned under.

    Under the name it has at its source it must be the very file; under the model's id it may be
    another form of it, such as the checkpoint out of an archive, with a key of its own.
    """
    remote = address.remote[index]
    member = f"_m{index}" if len(address.remote) > 1 else ""
    own = [f"{spec.model_id}{member}{suffix}" for suffix in SUFFIXES]
    return [*((n, remote.address) for n in remote.by_hand), *((n, f"by-hand:{n}") for n in own)]
