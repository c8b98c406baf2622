"""From the `checkpoint` column of a cohort to what is fetched: URLs, or files that are here.

robustbench:cifar10/Linf/NAME    Google Drive ids of the installed robustbench registry
zenodo:RECORD/FILE               a file of a Zenodo record
timm:TAG                         model.safetensors of timm/TAG on the Hugging Face Hub
hf://ORG/REPO/PATH@REVISION      a file on the Hub (revision: main)
http://..., https://...          any file
embedded:PACKAGE/PATH            a file inside an installed package
a path                           a file, or a folder with exactly one checkpoint

Any of them may end in #NAME: which of several checkpoints in an archive, by its path there or the
end of it (w.tar#run/last.pt); which of several networks inside the file, by the dotted path that
leads to it or a prefix of its keys (w.pt#student.model); or both, in this order
(w.tar#run/last.pt#student.model). It is part of what is read, not of what is fetched.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from urllib.parse import quote, urlsplit

from builder.cohort.registry import ModelSpec
from builder.errors import UsageError
from builder.secrets import public
from builder.sources.constructors import robustbench_entry, robustbench_name
from builder.sources.packing import SUFFIXES, Names

DRIVE, ZENODO, HUB = "https://drive.google.com", "https://zenodo.org", "https://huggingface.co"


@dataclass(frozen=True)
class Remote:
    """One file to download.

    Attributes:
        address: the public URL, by which its digest is pinned; the same behind any mirror, and
            without passwords or signatures.
        url: where it is fetched from: `address` whole, or its mirror.
        name: its file name.
        by_hand: names under which `--checkpoints DIR` may hold the same bytes, best first. None
            for names that do not tell one model from another.
        hub: repository, path and revision, for a file that the Hub's own client fetches.
    """

    address: str
    url: str
    name: str
    by_hand: tuple[str, ...] = ()
    hub: tuple[str, str, str] | None = None


@dataclass(frozen=True)
class Address:
    """A parsed `checkpoint`: its kind, and either remote files or local ones."""

    kind: str
    remote: tuple[Remote, ...] = ()
    local: tuple[Path, ...] = ()
    url: str = ""  # what to show for it


def split_inside(checkpoint: str) -> tuple[str, Names]:
    """The address of a file, and the names of what is meant inside it, if any.

    A path that exists as it is written has no such names, whatever its spelling.
    """
    file, names = checkpoint, tuple[str, ...]()
    for _ in ("network", "member"):
        before, _, name = file.rpartition("#")
        if not (before and name) or Path(file).expanduser().exists():
            break
        remote = before.partition(":")[0] in _FORMS
        if "/" in name and not remote and not Path(before).expanduser().exists():
            break  # a path of the user's, misspelt
        file, names = before, (name, *names)
    return file, names


def resolve(spec: ModelSpec) -> Address:
    """Parse the address of a model's checkpoint; no network, no look into local files.

    Raises:
        UsageError: no such form, or an unknown RobustBench model.
    """
    text, inside = split_inside(spec.checkpoint)
    address = _parse(text)
    shown = "#".join((address.url, *inside))
    return replace(address, url=public(shown) if any("=" in name for name in inside) else shown)


def _parse(text: str) -> Address:
    kind, colon, rest = text.partition(":")
    if colon and kind in _FORMS:
        return _FORMS[kind](rest)
    if re.match(r"[A-Za-z][A-Za-z+]+:", text):  # two letters or more: not a Windows drive
        raise UsageError(
            f"checkpoint {public(text)!r} is of no known form.",
            hint=f"expected {', '.join(_FORMS)}: ..., or a path.",
        )
    path = Path(text).expanduser()
    # Only the name: a release tells nothing of the folders of the machine that built it.
    return Address("file", local=(path,), url=path.name)


def local_file(address: Address) -> Path:
    """The file a local or embedded address means.

    Raises:
        UsageError: there is none, or a folder holds several checkpoints.
    """
    (path,) = address.local
    if path.is_file():
        return path
    if not path.is_dir():
        raise UsageError(
            f"there is no checkpoint {path}.",
            hint="expected a file, or a folder with exactly one checkpoint.",
        )
    if shards := sorted(p.name for p in path.glob("*.index.json")):
        raise UsageError(
            f"{path} holds a checkpoint in several files (shards, listed in "
            f"{shards[0]}); expected one file.",
            hint="load all its parts, join their dictionaries, and save that as one safetensors "
            "file.",
        )
    found = sorted(p for p in path.iterdir() if p.is_file() and p.suffix.lower() in SUFFIXES)
    if len(found) != 1:
        raise UsageError(
            f"{path} holds {len(found)} checkpoints; expected exactly one"
            + (f" (found {', '.join(p.name for p in found[:5])})." if found else "."),
            hint=f"checkpoints end in {', '.join(SUFFIXES)}.",
        )
    return found[0]


def _mirror(variable: str, public: str) -> str:
    return (os.environ.get(variable) or public).rstrip("/")


def _remote(
    variable: str,
    public: str,
    path: str,
    name: str,
    *by_hand: str,
    hub: tuple[str, str, str] | None = None,
) -> Remote:
    return Remote(f"{public}{path}", f"{_mirror(variable, public)}{path}", name, by_hand, hub)


def _robustbench(rest: str) -> Address:
    dataset, threat_model, name = robustbench_name(rest)
    ids = robustbench_entry(dataset, threat_model, name)["gdrive_id"]
    if not ids:
        raise UsageError(
            f"RobustBench has no checkpoint of its own for {rest}.",
            hint="give the checkpoint's address: timm:TAG, hf://..., https://...",
        )
    # A list means an ensemble: RobustBench saves its members as NAME.pt_m0.pt, ...
    several = isinstance(ids, list)
    remote = []
    for i, drive_id in enumerate(ids if several else [ids]):
        names = [f"{name}.pt_m{i}.pt", f"{name}_m{i}.pt"] if several else [f"{name}.pt"]
        remote.append(
            _remote(
                "RFL_DRIVE_URL",
                DRIVE,
                f"/uc?export=download&confirm=t&id={drive_id}",
                names[0],
                *(f"{dataset}/{threat_model}/{n}" for n in names),
            )
        )
    shown = " ".join(r.address for r in remote)
    return Address("robustbench", tuple(remote), url=shown)


def _zenodo(rest: str) -> Address:
    record, slash, name = rest.partition("/")
    if not (record.isdecimal() and slash and name):
        raise UsageError(f"'zenodo:{rest}' should be zenodo:RECORD/FILE.")
    path = f"/records/{record}/files/{quote(name)}?download=1"
    name = PurePosixPath(name).name
    remote = _remote("RFL_ZENODO_URL", ZENODO, path, name, name)
    return Address("zenodo", (remote,), url=remote.address)


def _hub(kind: str, repo: str, path: str, revision: str, *by_hand: str) -> Address:
    url = f"/{repo}/resolve/{quote(revision, safe='')}/{quote(path)}"
    hub = (repo, path, revision)
    remote = _remote("HF_ENDPOINT", HUB, url, PurePosixPath(path).name, *by_hand, hub=hub)
    return Address(kind, (remote,), url=remote.address)


def _timm(tag: str) -> Address:
    if not re.fullmatch(r"[\w.-]+", tag):
        raise UsageError(f"'timm:{tag}' should be timm:TAG, e.g. timm:resnet50.a1_in1k.")
    by_hand = f"{tag}.safetensors", f"{tag}/model.safetensors", f"timm/{tag}/model.safetensors"
    return _hub("timm", f"timm/{tag}", "model.safetensors", "main", *by_hand)


def _hf(rest: str) -> Address:
    match = re.fullmatch(r"//([\w.-]+/[\w.-]+)/([^@]+)(?:@(.+))?", rest)
    if match is None or not {"", ".", ".."}.isdisjoint(match[2].split("/")):
        raise UsageError(
            f"'hf:{rest}' should be hf://ORG/REPO/PATH or hf://ORG/REPO/PATH@REVISION."
        )
    return _hub("hf", match[1], match[2], match[3] or "main")


def _http(scheme: str) -> Callable[[str], Address]:
    def parse(rest: str) -> Address:
        # As it goes over the wire, and as a line of the pins can hold it.
        url = re.sub(r"\s", lambda space: quote(space[0]), f"{scheme}:{rest}")
        address = public(url)
        try:
            parts = urlsplit(url)
        except ValueError:
            parts = None
        if not parts or not parts.hostname:
            raise UsageError(f"'{address}' is no URL.")
        name = PurePosixPath(parts.path).name or "checkpoint"
        return Address("http", (Remote(address, url, name),), url=address)

    return parse


def _embedded(rest: str) -> Address:
    """A file inside an installed package, found without importing the package."""
    package, _, inside = rest.partition("/")
    try:
        found = importlib.util.find_spec(package) if package else None
    except ValueError:
        found = None
    if not inside or ".." in PurePosixPath(inside).parts:
        raise UsageError(f"'embedded:{rest}' should be embedded:PACKAGE/PATH.")
    if found is None or not found.submodule_search_locations:
        raise UsageError(
            f"embedded:{rest}: the package {package!r} is not installed.",
            hint="pip install 'robust-filter-lens[build]'",
        )
    folder = Path(next(iter(found.submodule_search_locations)))
    return Address("embedded", local=(folder / inside,), url=f"embedded:{rest}")


_FORMS: dict[str, Callable[[str], Address]] = {
    "robustbench": _robustbench,
    "zenodo": _zenodo,
    "timm": _timm,
    "hf": _hf,
    "http": _http("http"),
    "https": _http("https"),
    "embedded": _embedded,
}
