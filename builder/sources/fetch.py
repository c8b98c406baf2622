"""From a line of a cohort to checked checkpoint files, and from those to a network's weights."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from builder.cohort.registry import ModelSpec
from builder.errors import BuilderError, NetworkError, UsageError
from builder.files import file_sha256
from builder.progress import Report
from builder.secrets import public
from builder.sources import digests, hub_file
from builder.sources.addresses import Address, Remote, local_file, resolve, split_inside
from builder.sources.checkpoint import read_checkpoint
from builder.sources.constructors import construct, instantiate
from builder.sources.download import download, storage_errors
from builder.sources.hosts import NoHost, Resolves
from builder.sources.packing import SUFFIXES, Names
from builder.sources.state import FittedState, fit_state
from builder.sources.watch import watch

if TYPE_CHECKING:
    from torch import nn

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
    resolves: Resolves | None = None,
    by_hand: bool = True,
) -> Fetched:
    """The checkpoint files of a model: by hand, from the cache, or downloaded.

    Args:
        cache: folder of downloads.
        checkpoints: folder of files fetched by hand; they win over the cache and the network.
        pins: checkpoints.lock; digests of all files that have a public address are pinned at
            first use and enforced ever after.
        report: told the model, the file's name, the bytes there and the bytes expected; what it
            raises ends the call at once, whatever a server or another process keeps it waiting for.
        resolves: from `Resolves()`, shared by the models of a build.
        by_hand: whether the user can name a folder `checkpoints`, and is told so.

    Raises:
        UsageError: a wrong address, or a local file that is not there.
        NetworkError: a file that cannot be downloaded.
        BuilderError: a file that is not what was pinned, or is no checkpoint.
    """
    _, inside = split_inside(spec.checkpoint)
    asked = _Asked(spec.model_id, pins, resolves or Resolves(), report, inside, by_hand)
    work = partial(_fetch, spec, resolve(spec), cache, checkpoints)
    return watch(lambda say: work(replace(asked, report=say)), spec.model_id, report)


@dataclass(frozen=True)
class _Asked:
    """What every file of a model is fetched with."""

    model_id: str
    pins: Path
    resolves: Resolves
    report: Report
    inside: Names
    by_hand: bool


def _fetch(
    spec: ModelSpec, address: Address, cache: Path, checkpoints: Path | None, asked: _Asked
) -> Fetched:
    try:
        if address.local:
            path = local_file(address)
            # What is none is told before a digest of all its bytes is made.
            read_checkpoint(path, inside=asked.inside)
            return Fetched((path,), (address.url,), file_sha256(path), path.stat().st_size)
        by_hand = _by_hand(spec, address, checkpoints) if checkpoints is not None else []
        if by_hand:
            checked = [_check(path, key, asked) for path, key in by_hand]
            return _fetched(address, [path for path, _ in by_hand], checked, cached=False)
        fetched = [
            _from_hub(remote, asked)
            if remote.hub
            else _download(remote, cache / address.kind, asked)
            for remote in address.remote
        ]
    except OSError as e:  # a file or folder without the right to read it
        where = e.filename or spec.checkpoint
        raise BuilderError(f"cannot read the checkpoint {where}: {e.strerror or e}.") from None
    except NetworkError as e:
        if asked.by_hand:
            e.hint = f"{e.hint} {_said_of_names(spec, address, e)}".strip()
        raise
    return _fetched(address, [f for f, _ in fetched], [d for _, d in fetched], cached=True)


def load_state(spec: ModelSpec, fetched: Fetched, model: nn.Module) -> FittedState:
    """The weights for `model` (on any device, meta included) out of the fetched files.

    Keys and order are those of `model.state_dict()`, shared tensors under each of their names;
    element types as stored (float8 as float32); numbers are read from the file when asked for.
    Keys on which no filter depends may be absent and keep the constructor's value: see
    `state.fit_state`.

    Raises:
        BuilderError: an unusable or malicious file, or one of another architecture.
    """
    named = ", ".join(dict.fromkeys((spec.architecture, spec.constructor)))
    what = f"{spec.model_id} ({named})"
    _, inside = split_inside(spec.checkpoint)
    files = [read_checkpoint(path, inside=inside) for path in fetched.files]
    return fit_state(files, model, what)


def discard(fetched: Fetched) -> None:
    """Delete the files if they are downloads, in the Hub's cache, too; never a user's own."""
    if fetched.cached:
        for path in fetched.files:
            hub_file.forget(path)


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


def _check(file: Path, key: str, asked: _Asked) -> str:
    """Pin the digest of a file that can be read as a checkpoint, or check it; return it."""
    digest, pins = file_sha256(file), asked.pins
    pinned = digests.read_pins(pins).get(key)
    if pinned is not None and pinned[0] != digest:
        raise digests.changed(key, pins, pinned[0], digest)
    opened = read_checkpoint(file, key, asked.inside)  # never pin the digest of half a file,
    if pinned is None and (damaged := opened.damaged_entry()):  # nor of a damaged one
        raise digests.WrongContent(
            f"{key} is no usable checkpoint: its entry {damaged} is damaged: it does not meet its "
            "checksum.",
            hint="if it was downloaded, delete it and fetch it again.",
        )
    digests.enforce(pins, key, digest, file.stat().st_size)
    return digest


def _download(remote: Remote, folder: Path, asked: _Asked) -> tuple[Path, str]:
    """One file in our cache, fetched if it is not there, and its digest: the pinned one."""
    # Two files that only a secret part of their addresses tells apart are two files here.
    whole = remote.url if public(remote.url) == remote.address else remote.address
    path = folder / f"{_tag(whole)}-{remote.name}"
    check = partial(_check, key=remote.address, asked=asked)
    if path.exists():
        try:
            return path, check(path)
        except digests.WrongContent:
            path.unlink()  # damaged in the cache, or of another pin: ask its source again
    if not asked.resolves(remote.url):
        raise NoHost(remote.url)
    digest = download(
        remote.url,
        path,
        shown=remote.address,
        check=check,
        subject=asked.model_id,
        report=asked.report,
    )
    return path, digest


def _from_hub(remote: Remote, asked: _Asked) -> tuple[Path, str]:
    """As `_download`, by the Hub's client: its tokens, cache, offline mode and protocols."""
    assert remote.hub is not None
    check = partial(_check, key=remote.address, asked=asked)
    cached = not asked.resolves(remote.url)
    get = partial(hub_file.download, *remote.hub, subject=asked.model_id, report=asked.report)
    try:
        with storage_errors(hub_file.cache_folder()):
            file = get(cached=cached)
            try:
                return file, check(file)
            except digests.WrongContent:
                # The cache names a large file by its digest: this one is what the Hub has.
                if cached or file.resolve().name == file_sha256(file):
                    raise
                file = get(again=True)  # damaged in the cache
            return file, check(file)
    except NetworkError:
        if cached:
            raise NoHost(remote.url) from None
        raise


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


def _said_of_names(spec: ModelSpec, address: Address, error: NetworkError) -> str:
    """What to do for a model whose files cannot be fetched; the same for all behind one host."""
    taken = "A file fetched by hand is taken from --checkpoints DIR"
    if isinstance(error, NoHost):
        return f"{taken}."
    names = "; ".join(
        " or ".join(n for n, _ in _names(spec, address, i)[:3]) for i in range(len(address.remote))
    )
    return f"{taken} under the name {names}."


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
