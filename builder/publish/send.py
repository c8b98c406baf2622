"""Publish a release on the Hugging Face Hub: data, then card and manifest, then the tag.

Readers pin a tag, and the tag comes last: whatever interrupts a publication, no tag ever points at
an incomplete release. Every step compares with what the Hub has, so running the same command
again goes on from there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from builder import hub
from builder.errors import BuilderError
from builder.progress import Report, silent
from builder.publish.plan import Local, Plan, compare
from builder.publish.readback import read_back

if TYPE_CHECKING:
    from huggingface_hub import HfApi


@dataclass(frozen=True)
class Published:
    """The end of a publication. `tag` is None for a pull request that waits to be merged."""

    repo_id: str
    commit: str
    tag: str | None
    url: str
    sent_files: int
    sent_bytes: int


def publish(
    plan: Plan,
    *,
    private: bool = False,
    report: Report = silent,
) -> Published:
    """Carry out a plan: send what is missing, tag it, read it back.

    Args:
        plan: from `make_plan`.
        private: make the repository private, where it is made at all.
        report: called as ("publish", stage, done, total); bytes while sending, else steps.

    Raises:
        NetworkError: the Hub refuses or does not answer; run the same again.
        BuilderError: somebody else pushed meanwhile, or what is read back differs.
    """
    from huggingface_hub import constants

    client = hub.api()
    url = f"{constants.ENDPOINT}/datasets/{plan.repo_id}"
    n_files, n_bytes = plan.n_files, plan.bytes
    if plan.tagged:
        commit = plan.tagged
    else:
        head = plan.head or _create(client, plan.repo_id, private)
        _choose_transfer(plan.repo_id)
        if plan.create_pr and (n_files or plan.delete):
            rest, branch = _pull_request(client, plan, head)
            made = _send(client, rest, branch, report)
            url = f"{url}/discussions/{made.number}"
            return Published(plan.repo_id, made.head, None, url, rest.n_files, rest.bytes)
        commit = _send(client, plan, _Branch("main", head), report).head
        _tag(client, plan, commit)
    wrong = read_back(plan.repo_id, plan.tag, plan.manifest, report)
    if wrong:
        raise BuilderError(
            f"{plan.repo_id}@{plan.tag} reads back differently: {wrong[0]}"
            + (f" (and {len(wrong) - 1} more)." if wrong[1:] else "."),
            hint="do not announce this version; publish a corrected one under a new number.",
        )
    return Published(plan.repo_id, commit, plan.tag, f"{url}/tree/{plan.tag}", n_files, n_bytes)


def _create(client: HfApi, repo_id: str, private: bool) -> str:
    """Make the repository; return the head of its main branch."""
    with hub.network_errors(f"create {repo_id}"):
        client.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
        return str(client.dataset_info(repo_id).sha)


def _choose_transfer(repo_id: str) -> None:
    """Turn Xet off for this process where the endpoint does not know it.

    The client uses Xet wherever hf_xet is installed, and fails on a server without it.
    """
    from huggingface_hub import constants, get_session, get_token

    if constants.HF_HUB_DISABLE_XET:
        return
    path = f"{constants.ENDPOINT}/api/datasets/{repo_id}/xet-write-token/main"
    with hub.network_errors("ask for the transfer protocol"):
        headers = {"Authorization": f"Bearer {get_token()}"}
        status = get_session().get(path, headers=headers).status_code
    if status == 404:
        constants.HF_HUB_DISABLE_XET = True


@dataclass(frozen=True)
class _Branch:
    """Where commits go: a revision (None: a pull request to be made) and its head."""

    revision: str | None
    head: str
    number: int | None = None


def _send(client: HfApi, plan: Plan, to: _Branch, report: Report) -> _Branch:
    """Every missing commit of the plan, each on top of the one before; return where they are."""
    total, done = plan.bytes, 0
    steps = [*plan.commits, plan.last]
    for number, paths in enumerate(steps, start=1):
        last = number == len(steps)
        report("publish", "send", done, total)
        if paths or (last and plan.delete):
            operations = _operations(plan, paths, plan.delete if last else [])
            to = _commit(client, plan, operations, _title(plan, number, len(steps)), to)
            _check_arrived(client, plan, paths, to.head)
        done += sum(plan.files[p].size for p in paths)
    report("publish", "send", total, total)
    return to


def _title(plan: Plan, number: int, steps: int) -> str:
    """Title of a commit. The digest in it tells our commits of this release from all others."""
    what = "card and manifest" if number == steps else "data"
    return f"{plan.tag} {number}/{steps}: {what} [{plan.digest}]"


def _operations(plan: Plan, paths: list[str], delete: list[str]) -> list[Any]:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    def source(file: Local) -> bytes | str:
        return file.source if isinstance(file.source, bytes) else str(file.source)

    add = [CommitOperationAdd(path, source(plan.files[path])) for path in paths]
    return [*add, *(CommitOperationDelete(path, is_folder=False) for path in delete)]


def _commit(client: HfApi, plan: Plan, operations: list[Any], title: str, to: _Branch) -> _Branch:
    """One commit on top of `to`, or a clear error if somebody else's is there."""
    from huggingface_hub.errors import HfHubHTTPError

    with hub.network_errors(f"send {title!r} to {plan.repo_id}"):
        try:
            made = client.create_commit(
                plan.repo_id,
                operations,
                commit_message=title,
                repo_type="dataset",
                revision=to.revision,
                create_pr=to.revision is None,
                parent_commit=to.head,
            )
        except HfHubHTTPError as e:
            if e.response.status_code != 412:
                raise
            raise BuilderError(
                f"somebody else pushed to {plan.repo_id} meanwhile (after {to.head[:12]}). "
                "Nothing of theirs was overwritten, and no tag was made.",
                hint="look at their commit, then run the same command again.",
            ) from None
    if to.revision is None:
        return _Branch(made.pr_revision, made.oid, made.pr_num)
    return _Branch(to.revision, made.oid, to.number)


def _check_arrived(client: HfApi, plan: Plan, paths: list[str], commit: str) -> None:
    """The Hub's digests of what was just sent must be ours."""
    with hub.network_errors(f"check what arrived in {plan.repo_id}"):
        missing, _ = compare(client, plan.repo_id, commit, {p: plan.files[p] for p in paths})
    if missing:
        raise BuilderError(
            f"{missing[0]} did not arrive as it was sent (its digest on the Hub differs).",
            hint="run the same command again; no tag was made.",
        )


def _tag(client: HfApi, plan: Plan, commit: str) -> None:
    """Tag a commit that holds the whole release and nothing else."""
    with hub.network_errors(f"check {plan.repo_id} before tagging"):
        missing, foreign = compare(client, plan.repo_id, commit, plan.files)
    if missing or foreign:
        raise BuilderError(
            f"{plan.repo_id} at {commit[:12]} is not the whole release "
            f"({(missing or foreign)[0]}); it was not tagged.",
            hint="run the same command again.",
        )
    message = plan.notes or f"Robust Filter Lens {plan.tag}"
    with hub.network_errors(f"tag {plan.tag}"):
        client.create_tag(
            plan.repo_id,
            tag=plan.tag,
            tag_message=message,
            revision=commit,
            repo_type="dataset",
        )


def _pull_request(client: HfApi, plan: Plan, head: str) -> tuple[Plan, _Branch]:
    """The open pull request of this very release and what it still lacks; else a new one."""
    with hub.network_errors(f"look for pull requests of {plan.repo_id}"):
        listed = client.get_repo_discussions(
            plan.repo_id,
            repo_type="dataset",
            discussion_type="pull_request",
            discussion_status="open",
        )
        found = next((d for d in listed if f"[{plan.digest}]" in d.title), None)
        if found is None:
            return plan, _Branch(None, head)
        revision = f"refs/pr/{found.num}"
        sha = client.dataset_info(plan.repo_id, revision=revision).sha
        missing, foreign = compare(client, plan.repo_id, revision, plan.files)
    commits = [[p for p in paths if p in set(missing)] for paths in plan.commits]
    last = [p for p in plan.last if p in set(missing)]
    rest = replace(plan, commits=commits, last=last, delete=foreign)
    return rest, _Branch(revision, str(sha), found.num)
