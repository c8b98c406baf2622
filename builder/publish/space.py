"""The page of a release as a static Space on the Hub, beside the data set, at its tag.

The Space comes last, when the tag stands: whatever interrupts, it never shows a tag that is not
there. Its commits carry the data set's name in their titles; a Space with a commit of anybody else
is left alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from builder import hub
from builder.errors import BuilderError, UsageError
from builder.hub import Place
from builder.progress import Report
from builder.publish.remote import Branch, Local, Remote
from builder.publish.rules import check_private, check_token
from builder.release.manifest import Manifest, file_facts
from builder.release.versions import parse_version
from builder.report.page import render, without_libraries
from builder.secrets import redact

if TYPE_CHECKING:
    from huggingface_hub import HfApi

PAGE, CARD = "index.html", "README.md"
_CREATED = "initial commit"
"""Title of the commit with which the Hub makes a repository."""


@dataclass(frozen=True)
class Space:
    """What would happen to the Space.

    Attributes:
        remote: the repository. place: the data set, at the tag that is shown.
        title: of the commit; what it shows, and of which data set.
        private: whether it is made private, where it is made at all: as hidden as the data.
        head: commit of main that the plan was made for; None: no Space yet.
        files: the page and its card. missing: those that are not there as they are here.
        delete: files there that are not ours, such as the Hub's example page.
    """

    remote: Remote
    place: Place
    title: str
    private: bool
    head: str | None
    files: dict[str, Local] = field(repr=False)
    missing: list[str]
    delete: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The plan in words."""
        kind = "private" if self.private else "public"
        where = f"new, {kind}" if self.head is None else f"main at {self.head[:12]}"
        lines = [f"then the page, to the Space {self.remote.repo_id} ({where})"]
        lines += [f"  {path} ({self.files[path].size:,})" for path in self.missing]
        lines += [f"  delete {path}" for path in self.delete]
        return lines if self.missing or self.delete else [f"{lines[0]}: it is there already"]

    def as_json(self) -> dict[str, Any]:
        """The plan as one object for `--json`."""
        return {
            "repo_id": self.remote.repo_id,
            "head": self.head,
            "private": self.private,
            "files": self.missing,
            "delete": self.delete,
            "bytes": sum(self.files[p].size for p in self.missing),
        }


def make_page(root: Path, space_id: str, place: Place, manifest: Manifest) -> dict[str, Local]:
    """The files of a Space, in memory. Asks no server.

    Args:
        root: the release folder. place: where it is, or will be, at its tag.
        space_id: "org/name" of the Space.

    Raises:
        UsageError: a name that is none, or packages of the report are missing.
        BuilderError: the page would show something private.
    """
    if not re.fullmatch(hub.ID, space_id):
        raise UsageError(f"--space {space_id!r} is no Space.", hint="expected ORG/NAME")
    # One thread: sums add up in one order, so that the same release has the same page.
    page = render(str(root), place=place, threads=1)
    texts = {PAGE: without_libraries(page), CARD: _card(place, manifest)}
    check_private(root, {path: text.encode() for path, text in texts.items()})
    made = {}
    for path, text in {**texts, PAGE: page}.items():
        data = text.encode()
        facts = file_facts(data)
        made[path] = Local(path, facts["bytes"], facts["sha256"], data)
    return made


def plan_space(
    client: HfApi,
    space_id: str,
    files: dict[str, Local],
    place: Place,
    manifest: Manifest,
    hidden: bool,
) -> Space:
    """Look at the Space, and say which of its files are to be sent. Writes nothing.

    Args:
        hidden: whether the data are private or gated; then the Space must be private.

    Raises:
        BuilderError: the Space is somebody's, shows a newer version, or more than it may.
        NetworkError: the token may not write there, or the Hub does not answer.
    """
    check_token(client, space_id)
    remote = Remote(client, space_id, "space")
    with hub.network_errors(f"look at the Space {space_id}"):
        refs = remote.refs()
        if refs is not None:
            _check(remote, refs[0], place, hidden)
    title = f"{place.revision}: page of {place.repo_id} [{manifest['sha256'][:12]}]"
    space = Space(remote, place, title, hidden, None, files, sorted(files))
    if refs is None:
        return space
    with hub.network_errors(f"list the files of {space_id}"):
        missing, foreign = remote.compare(refs[0], files)
    return replace(space, head=refs[0], missing=missing, delete=foreign)


def _check(remote: Remote, head: str, place: Place, hidden: bool) -> None:
    """Refuse a Space that is not, or not only, the page of this data set."""
    repo_id, tag = place.repo_id, str(place.revision)
    info = remote.info()
    if info.sdk not in (None, "static"):
        raise BuilderError(
            f"the Space {remote.repo_id} is of another kind ({info.sdk}, not static).",
            hint="choose another name for --space.",
        )
    if hidden and not info.private:
        raise BuilderError(
            f"{repo_id} is private or gated, and the Space {remote.repo_id} is public: it would "
            "show everybody what only some may see.",
            hint="make the Space private in its settings, or the data set public.",
        )
    shown = f"page of {re.escape(repo_id)} " + r"\[[0-9a-f]{12}\]"
    for commit in remote.history(head):
        ours = re.fullmatch(rf"(v\d+\.\d+\.\d+): {shown}", commit.title)
        if ours and parse_version(ours[1]) > parse_version(tag):
            raise BuilderError(
                f"the Space {remote.repo_id} shows {ours[1]} already, which is newer than {tag}.",
                hint="publish without --space, or choose another one.",
            )
        if not ours and commit.title != _CREATED:
            raise BuilderError(
                f"the Space {remote.repo_id} has a commit that no publication of {repo_id} made: "
                f"{commit.commit_id[:12]} {redact(commit.title)!r} by "
                f"{', '.join(commit.authors)}. Nothing was overwritten.",
                hint="choose another name for --space, or remove that Space yourself.",
            )


def _card(place: Place, manifest: Manifest) -> str:
    """README.md of the Space: the YAML that makes it one, and where the data are."""
    address = f"{place.repo_id} {place.revision}"
    link = f"https://huggingface.co/datasets/{place.repo_id}/tree/{place.revision}"
    fields = {
        "title": "Robust Filter Lens",
        "emoji": "🔬",
        "colorFrom": "blue",
        "colorTo": "yellow",
        "sdk": "static",
        "app_file": PAGE,
        "pinned": False,
        "datasets": [place.repo_id],
        "short_description": "3x3 filters of robust and standard networks",
    }
    yaml = "".join(f"{k}: {json.dumps(v, ensure_ascii=False)}\n" for k, v in fields.items())
    return (
        f"---\n{yaml}---\n\n"
        f"The report of [{address}]({link}), made by `builder publish`; manifest "
        f"{manifest['sha256']}. Every figure, table and finding in it comes from that version of "
        "the data and from nothing else.\n"
    )


def send_space(space: Space, report: Report) -> str:
    """Send what is missing, in one commit on top of what was looked at; return the page's address.

    Args:
        report: called as ("publish", "page", done, total), in files.

    Raises:
        NetworkError: the Hub refuses or does not answer; run the same again.
        BuilderError: somebody else pushed meanwhile, or other bytes arrived.
    """
    remote = space.remote
    files: Sequence[Local] = [space.files[path] for path in space.missing]
    report("publish", "page", 0, len(files))
    if files or space.delete:
        head = space.head or remote.create(space.private)
        delete = space.delete
        if space.head is None:  # whoever made it: only the Hub's example page may be in it
            with hub.network_errors(f"look at the Space {remote.repo_id}"):
                _check(remote, head, space.place, space.private)
                _, delete = remote.compare(head, space.files)
        remote.choose_transfer()
        remote.commit(files, delete, space.title, Branch("main", head))
    report("publish", "page", len(files), len(files))
    return remote.url()
