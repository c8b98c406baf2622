"""A repository on the Hub: what it holds, and commits to it that overwrite nobody's.

One protocol for the data set and for the Space beside it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from builder import hub
from builder.errors import BuilderError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_KEEP = (".gitattributes",)
"""Files of a repository that are not ours and stay."""


@dataclass(frozen=True)
class Local:
    """One file to publish: its facts, and where its bytes are."""

    path: str
    size: int
    sha256: str
    source: Path | bytes = field(repr=False)

    def git_oid(self) -> str:
        """Its object id where the repository keeps it as a regular file."""
        data = self.source if isinstance(self.source, bytes) else self.source.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


@dataclass(frozen=True)
class Remote:
    """A repository: its name, and what the Hub's client calls its kind (`dataset`, `space`)."""

    client: HfApi = field(repr=False)
    repo_id: str
    kind: str = "dataset"

    def url(self) -> str:
        """Its page."""
        return f"{hub.endpoint()}/{self.kind}s/{self.repo_id}"

    def refs(self) -> tuple[str, dict[str, str]] | None:
        """Head of main and {tag: commit}; None where there is no such repository."""
        from huggingface_hub.errors import RepositoryNotFoundError

        try:
            refs = self.client.list_repo_refs(self.repo_id, repo_type=self.kind)
        except RepositoryNotFoundError as e:
            if e.response.status_code == 401:  # a token that stopped working hides everything
                raise
            return None
        heads = {b.name: b.target_commit for b in refs.branches}
        if "main" not in heads:
            raise BuilderError(f"{self.repo_id} has no branch main; publishing needs one.")
        return heads["main"], {t.name: t.target_commit for t in refs.tags}

    def info(self, revision: str | None = None) -> Any:
        """What the Hub says of it: sha, private, gated, and of a Space its sdk."""
        return self.client.repo_info(self.repo_id, repo_type=self.kind, revision=revision)

    def history(self, head: str) -> Sequence[Any]:
        """Its commits from `head` back to the first."""
        return self.client.list_repo_commits(self.repo_id, repo_type=self.kind, revision=head)

    def compare(self, revision: str, files: Mapping[str, Local]) -> tuple[list[str], list[str]]:
        """(paths whose remote digest is not ours, remote paths that are not ours), sorted."""
        from huggingface_hub.hf_api import RepoFile

        tree = self.client.list_repo_tree(
            self.repo_id, repo_type=self.kind, revision=revision, recursive=True
        )
        missing, foreign = dict.fromkeys(files), []
        for entry in tree:
            if not isinstance(entry, RepoFile):
                continue
            mine = files.get(entry.path)
            if mine is None:
                if entry.path not in _KEEP:
                    foreign.append(entry.path)
            elif entry.size == mine.size and (
                entry.lfs.sha256 == mine.sha256 if entry.lfs else entry.blob_id == mine.git_oid()
            ):
                del missing[entry.path]
        return sorted(missing), sorted(foreign)

    def create(self, private: bool) -> str:
        """Make the repository; return the head of its main branch."""
        with hub.network_errors(f"create {self.repo_id}"):
            self.client.create_repo(
                self.repo_id,
                repo_type=self.kind,
                private=private,
                exist_ok=True,
                space_sdk="static" if self.kind == "space" else None,
            )
            return str(self.info().sha)

    def choose_transfer(self) -> None:
        """Turn Xet off for this process where the endpoint does not know it.

        The client uses Xet wherever hf_xet is installed, and fails on a server without it.
        """
        from huggingface_hub import constants, get_session, get_token

        if constants.HF_HUB_DISABLE_XET:
            return
        path = f"{constants.ENDPOINT}/api/{self.kind}s/{self.repo_id}/xet-write-token/main"
        with hub.network_errors("ask for the transfer protocol"):
            headers = {"Authorization": f"Bearer {get_token()}"}
            status = get_session().get(path, headers=headers).status_code
        if status == 404:
            constants.HF_HUB_DISABLE_XET = True

    def commit(
        self, files: Sequence[Local], delete: Sequence[str], title: str, to: Branch
    ) -> Branch:
        """One commit on top of `to`, checked on arrival; or a clear error if others' is there.

        Raises:
            BuilderError: somebody else pushed meanwhile, or another digest arrived.
        """
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete
        from huggingface_hub.errors import HfHubHTTPError

        sources = ((f.path, f.source) for f in files)
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            *(CommitOperationAdd(p, s if isinstance(s, bytes) else str(s)) for p, s in sources),
            *(CommitOperationDelete(path, is_folder=False) for path in delete),
        ]
        with hub.network_errors(f"send {title!r} to {self.repo_id}"):
            try:
                made = self.client.create_commit(
                    self.repo_id,
                    operations,
                    commit_message=title,
                    repo_type=self.kind,
                    revision=to.revision,
                    create_pr=to.revision is None,
                    parent_commit=to.head,
                )
            except HfHubHTTPError as e:
                if e.response.status_code != 412:
                    raise
                raise BuilderError(
                    f"somebody else pushed to {self.repo_id} meanwhile (after {to.head[:12]}). "
                    "Nothing of theirs was overwritten, and no tag was made.",
                    hint="look at their commit, then run the same command again.",
                ) from None
        with hub.network_errors(f"check what arrived in {self.repo_id}"):
            missing, _ = self.compare(made.oid, {f.path: f for f in files})
        if missing:
            raise BuilderError(
                f"{missing[0]} did not arrive as it was sent (its digest on the Hub differs).",
                hint="run the same command again; no tag was made.",
            )
        if to.revision is None:
            return Branch(made.pr_revision, made.oid, made.pr_num)
        return Branch(to.revision, made.oid, to.number)


@dataclass(frozen=True)
class Branch:
    """Where commits go: a revision (None: a pull request to be made) and its head."""

    revision: str | None
    head: str
    number: int | None = None
