"""Before publishing: is this release fit to be published, and what would be sent?

Nothing here writes anything, neither on this machine nor on the Hub.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from builder import hub, schema
from builder.check.diff import diff
from builder.errors import BuilderError, NetworkError, UsageError
from builder.publish.remote import Local, Remote
from builder.publish.rules import check_private, check_release, check_token
from builder.publish.space import Space, make_page, plan_space
from builder.release.card import render_card
from builder.release.manifest import Manifest, file_facts
from builder.release.reader import open_release
from builder.release.texts import seal
from builder.release.versions import parse_version
from builder.secrets import redact
from builder.sql.console import card_section

MAX_FILES = 50
"""Files of one commit: the Hub's advice, and well inside its timeout."""
MAX_BYTES = 4 << 30
"""Bytes of one commit: what an interruption can leave unfinished."""


@dataclass(frozen=True)
class Plan:
    """What a publication would do.

    Attributes:
        head: commit of main that the plan was made for; None: no repository yet.
        files: every file of the release as it will be published.
        commits: paths of each data commit that is still missing.
        last: paths of the last commit: card, manifest, and whatever else is small.
        delete: paths on main that are not in the release.
        same: number of files that are there already.
        newest, bump: newest version there, and the kind of change since.
        tagged: commit of the tag, where the whole release is published already.
        private: whether the repository is made private, where it is made at all.
        space: what would happen to the page beside the data, if it was asked for.
    """

    repo_id: str
    version: str
    user: str
    head: str | None
    files: dict[str, Local]
    manifest: Manifest = field(repr=False)
    commits: list[list[str]]
    last: list[str]
    delete: list[str] = field(default_factory=list)
    same: int = 0
    newest: str | None = None
    bump: str | None = None
    tagged: str | None = None
    notes: str = ""
    create_pr: bool = False
    private: bool = False
    space: Space | None = None

    @property
    def tag(self) -> str:
        return f"v{self.version}"

    @property
    def digest(self) -> str:
        """Names this very release, in the titles of its commits."""
        return str(self.manifest["sha256"])[:12]

    @property
    def n_files(self) -> int:
        """Files still to be sent."""
        return len(self.last) + sum(map(len, self.commits))

    @property
    def bytes(self) -> int:
        """Bytes still to be sent."""
        paths = [*self.last, *(p for commit in self.commits for p in commit)]
        return sum(self.files[p].size for p in paths)


def make_plan(
    root: Path,
    repo_id: str,
    *,
    parent: str | None = None,
    notes: Path | None = None,
    create_pr: bool = False,
    private: bool = False,
    space: str | None = None,
) -> Plan:
    """Check what lies here, then token, repository and version; say what is to be sent.

    Args:
        root: the release folder.
        repo_id: "org/name".
        parent: a commit of main that the user has looked at; needed only where main has commits
            that no publication made.
        notes: a text file for the tag's message; needed for a major change from 1.0.0 on.
        create_pr: send to a pull request instead of main; the tag waits for its merge.
        private: make the repository private, where it is made at all.
        space: "org/name" of a static Space for the release's page.

    Raises:
        UsageError: a package that publishing needs is not installed.
        BuilderError: the release or its version may not be published.
        NetworkError: the Hub refuses or cannot be reached.
    """
    _require_readers()
    place = hub.parse(repo_id)
    if place.revision:
        raise UsageError("a release is published on main; give --repo-id without a revision.")
    if space and create_pr:
        raise UsageError(
            "--space shows a tag, and a pull request has none yet.",
            hint="merge it, then run the same command with --space and without --create-pr.",
        )
    text = _notes(notes)
    manifest = check_release(root)
    files = _addressed(root, manifest, repo_id)
    check_private(root, {path: file.source for path, file in files.items()})
    at_tag = hub.Place(repo_id, f"v{manifest['version']}")
    page = None if space is None else make_page(root, space, at_tag, manifest)
    # What is wrong here is known; now what the Hub has to say.
    client = hub.api()
    user = check_token(client, repo_id, write=not create_pr)
    remote = Remote(client, repo_id)
    plan = Plan(
        repo_id=repo_id,
        version=manifest["version"],
        user=user,
        head=None,
        files=files,
        manifest=manifest,
        commits=_data_commits(sorted(files), files),
        last=[p for p in sorted(files) if not _is_data(p)],
        notes=text,
        create_pr=create_pr,
        private=private,
    )
    with hub.network_errors(f"look at {repo_id}"):
        refs = remote.refs()
        hidden = private if refs is None else _is_hidden(remote)
    if refs is not None:
        plan = _update(remote, root, plan, *refs, parent)
    elif create_pr:
        raise NetworkError(f"there is no data set {repo_id} (or this token does not see it).")
    if space is None or page is None:
        return plan
    return replace(plan, space=plan_space(client, space, page, at_tag, manifest, hidden))


def _is_hidden(remote: Remote) -> bool:
    """Whether not everybody may read the data."""
    info = remote.info()
    return bool(info.private or info.gated)


def _require_readers() -> None:
    """Refuse, before anything is sent, to publish what could not be read back here.

    Raises:
        UsageError: huggingface_hub or datasets is not installed.
    """
    hub.require()
    try:
        import datasets  # noqa: F401
    except ImportError:
        raise UsageError(
            "publishing reads the release back with datasets, which is not installed.",
            hint="pip install 'robust-filter-lens[hub]'",
        ) from None


def _update(
    remote: Remote, root: Path, plan: Plan, head: str, tags: dict[str, str], parent: str | None
) -> Plan:
    """The plan for a repository that exists: only what it lacks, if the version is right."""
    tagged, newest = tags.get(plan.tag), _newest(tags)
    with hub.network_errors(f"list the files of {plan.repo_id}"):
        missing, foreign = remote.compare(tagged or head, plan.files)
    bump = None
    if tagged and (missing or foreign):
        raise BuilderError(
            f"{plan.repo_id} has a tag {plan.tag} already, of another content "
            f"({len(missing) + len(foreign)} files differ). Tags never move.",
            hint="give the release a higher version: `builder diff` says which.",
        )
    if not tagged:
        bump = _check_version(root, plan, newest)
        if not plan.create_pr:
            with hub.network_errors(f"read the history of {plan.repo_id}"):
                _check_history(remote, plan, head, tags.get(newest or ""), parent)
    return replace(
        plan,
        head=head,
        commits=_data_commits(missing, plan.files),
        last=[p for p in missing if not _is_data(p)],
        delete=foreign,
        same=len(plan.files) - len(missing),
        newest=newest,
        bump=bump,
        tagged=tagged,
    )


def _addressed(root: Path, manifest: Manifest, repo_id: str) -> dict[str, Local]:
    """Every file as it will be published: as it lies here, but for the card, whose examples name
    the repository.
    """
    root = root.absolute()  # pyarrow takes a relative `a:b/c` for a URI
    files = {
        path: Local(path, facts["bytes"], facts["sha256"], root / path)
        for path, facts in manifest["files"].items()
    }
    findings = card_section(hub.Place(repo_id, f"v{manifest['version']}"), root)
    for path, data in (
        (schema.CARD, seal(render_card(manifest, root, repo_id, findings))),
        (schema.MANIFEST, (root / schema.MANIFEST).read_bytes()),
    ):
        facts = file_facts(data)
        files[path] = Local(path, facts["bytes"], facts["sha256"], data)
    return files


def _notes(path: Path | None) -> str:
    if path is None:
        return ""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise UsageError(f"cannot read the notes {path}: {e}.") from None


def _newest(tags: Iterable[str]) -> str | None:
    versions = [t for t in tags if re.fullmatch(r"v\d+\.\d+\.\d+", t)]
    return max(versions, key=parse_version, default=None)


def _check_version(root: Path, plan: Plan, newest: str | None) -> str | None:
    """The kind of change since the newest version, if this version is high enough for it."""
    version, repo_id = plan.version, plan.repo_id
    if newest is None:
        return None
    if parse_version(version) <= parse_version(newest):
        raise BuilderError(
            f"version {version} is not above {newest}, the newest of {repo_id}.",
            hint="build with a higher version; `builder diff` says which.",
        )
    changes = diff(open_release(repo_id, newest), open_release(root), values=False)
    if parse_version(version) < parse_version(changes.next_version):
        raise BuilderError(
            f"{changes.reasons[0]}: since {newest} that calls for version "
            f"{changes.next_version} or higher, not {version}.",
            hint=f"`builder diff hf://datasets/{repo_id}@{newest} {root}` says what changed.",
        )
    if (
        changes.bump == "major"
        and parse_version(newest)[0] > 0
        and "## Migration" not in plan.notes
    ):
        raise BuilderError(
            f"{version} changes or removes what users of {newest} rely on, and has no migration "
            "notes.",
            hint="write them under a heading '## Migration' and pass --notes FILE.",
        )
    return changes.bump


def _check_history(
    remote: Remote, plan: Plan, head: str, since: str | None, parent: str | None
) -> None:
    """Refuse to build on commits after the newest version that this publication did not make."""
    repo_id = plan.repo_id
    if parent is not None:
        if parent != head:
            raise BuilderError(f"main of {repo_id} is at {head}, not at {parent}; look again.")
        return
    history = remote.history(head)
    for commit in history:
        if commit.commit_id == since:
            return
        mine = f"[{plan.digest}]" in commit.title
        made_with_repository = since is None and commit is history[-1]
        if not mine and not made_with_repository:
            raise BuilderError(
                f"main of {repo_id} has a commit that this publication did not make: "
                f"{commit.commit_id[:12]} {redact(commit.title)!r} by "
                f"{', '.join(commit.authors)}. Nothing was overwritten.",
                hint=f"look at it; to publish on top of it, pass --parent {head}.",
            )


def _is_data(path: str) -> bool:
    return schema.filters_key(path) is not None


def _data_commits(paths: list[str], files: dict[str, Local]) -> list[list[str]]:
    """The filter files among `paths` in commits of bounded size."""
    commits: list[list[str]] = []
    size = 0
    for path in filter(_is_data, paths):
        size += files[path].size
        if not commits or len(commits[-1]) == MAX_FILES or size > MAX_BYTES:
            commits.append([])
            size = files[path].size
        commits[-1].append(path)
    return commits


def as_text(plan: Plan) -> str:
    """The plan in words."""
    where = f"{plan.repo_id} ({'new' if plan.head is None else f'main at {plan.head[:12]}'})"
    lines = [f"publish {plan.tag} to {where} as {plan.user}"]
    page = [] if plan.space is None else plan.space.lines()
    if plan.tagged:
        said = f"{plan.tag} is there already; it would be read back once more"
        return "\n".join([*lines, said, *page, ""])
    if plan.newest:
        lines.append(f"newest version there: {plan.newest}; change since: {plan.bump}")
    steps = [*plan.commits, plan.last]
    for number, paths in enumerate(steps, start=1):
        size = sum(plan.files[p].size for p in paths)
        lines.append(f"commit {number}/{len(steps)}: {len(paths)} files, {size:,} bytes")
        lines += [f"  {path} ({plan.files[path].size:,})" for path in paths]
    lines += [f"  delete {path}" for path in plan.delete]
    lines.append(f"already there: {plan.same} files; to send: {plan.bytes:,} bytes")
    return "\n".join([*lines, f"then tag {plan.tag} and read it back", *page, ""])


def as_json(plan: Plan) -> dict[str, Any]:
    """The plan as one object for `--json`."""
    return {
        "repo_id": plan.repo_id,
        "tag": plan.tag,
        "user": plan.user,
        "head": plan.head,
        "newest": plan.newest,
        "bump": plan.bump,
        "already_published": plan.tagged is not None,
        "commits": [*plan.commits, plan.last],
        "delete": plan.delete,
        "same_files": plan.same,
        "bytes": plan.bytes,
        "space": None if plan.space is None else plan.space.as_json(),
    }
