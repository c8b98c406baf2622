"""Publish a release on the Hugging Face Hub: data, then card and manifest, then the tag.

Readers pin a tag, and the tag comes last: whatever interrupts a publication, no tag ever points at
an incomplete release. Every step compares with what the Hub has, so running the same command
again goes on from there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from builder import hub
from builder.errors import BuilderError
from builder.progress import Report, silent
from builder.publish.plan import Plan
from builder.publish.readback import read_back
from builder.publish.remote import Branch, Remote
from builder.publish.space import send_space


@dataclass(frozen=True)
class Published:
    """The end of a publication.

    Attributes:
        tag: None for a pull request that waits to be merged.
        sent_files, sent_bytes: of the data set.
        space: the address of the page beside the data, if it was asked for.
    """

    repo_id: str
    commit: str
    tag: str | None
    url: str
    sent_files: int
    sent_bytes: int
    space: str | None = None


def publish(plan: Plan, *, report: Report = silent) -> Published:
    """Carry out a plan: send what is missing, tag it, read it back; then the page of a Space.

    Args:
        plan: from `make_plan`.
        report: called as ("publish", stage, done, total); bytes while sending, else steps.

    Raises:
        NetworkError: the Hub refuses or does not answer; run the same again.
        BuilderError: somebody else pushed meanwhile, or what is read back differs.
    """
    remote = Remote(hub.api(), plan.repo_id)
    url = remote.url()
    n_files, n_bytes = plan.n_files, plan.bytes
    if plan.tagged:
        commit = plan.tagged
    else:
        head = plan.head or remote.create(plan.private)
        remote.choose_transfer()
        if plan.create_pr and (n_files or plan.delete):
            rest, branch = _pull_request(remote, plan, head)
            made = _send(remote, rest, branch, report)
            url = f"{url}/discussions/{made.number}"
            return Published(plan.repo_id, made.head, None, url, rest.n_files, rest.bytes)
        commit = _send(remote, plan, Branch("main", head), report).head
        _tag(remote, plan, commit)
    wrong = read_back(plan.repo_id, plan.tag, plan.manifest, report)
    if wrong:
        raise BuilderError(
            f"{plan.repo_id}@{plan.tag} reads back differently: {wrong[0]}"
            + (f" (and {len(wrong) - 1} more)." if wrong[1:] else "."),
            hint="do not announce this version; publish a corrected one under a new number.",
        )
    url = f"{url}/tree/{plan.tag}"
    page = None if plan.space is None else send_space(plan.space, report)
    return Published(plan.repo_id, commit, plan.tag, url, n_files, n_bytes, page)


def _send(remote: Remote, plan: Plan, to: Branch, report: Report) -> Branch:
    """Every missing commit of the plan, each on top of the one before; return where they are."""
    total, done = plan.bytes, 0
    steps = [*plan.commits, plan.last]
    for number, paths in enumerate(steps, start=1):
        last = number == len(steps)
        report("publish", "send", done, total)
        if paths or (last and plan.delete):
            files, delete = [plan.files[p] for p in paths], plan.delete if last else []
            to = remote.commit(files, delete, _title(plan, number, len(steps)), to)
        done += sum(plan.files[p].size for p in paths)
    report("publish", "send", total, total)
    return to


def _title(plan: Plan, number: int, steps: int) -> str:
    """Title of a commit. The digest in it tells our commits of this release from all others."""
    what = "card and manifest" if number == steps else "data"
    return f"{plan.tag} {number}/{steps}: {what} [{plan.digest}]"


def _tag(remote: Remote, plan: Plan, commit: str) -> None:
    """Tag a commit that holds the whole release and nothing else."""
    with hub.network_errors(f"check {plan.repo_id} before tagging"):
        missing, foreign = remote.compare(commit, plan.files)
    if missing or foreign:
        raise BuilderError(
            f"{plan.repo_id} at {commit[:12]} is not the whole release "
            f"({(missing or foreign)[0]}); it was not tagged.",
            hint="run the same command again.",
        )
    message = plan.notes or f"Robust Filter Lens {plan.tag}"
    with hub.network_errors(f"tag {plan.tag}"):
        remote.client.create_tag(
            plan.repo_id,
            tag=plan.tag,
            tag_message=message,
            revision=commit,
            repo_type="dataset",
        )


def _pull_request(remote: Remote, plan: Plan, head: str) -> tuple[Plan, Branch]:
    """The open pull request of this very release and what it still lacks; else a new one."""
    with hub.network_errors(f"look for pull requests of {plan.repo_id}"):
        listed = remote.client.get_repo_discussions(
            plan.repo_id,
            repo_type="dataset",
            discussion_type="pull_request",
            discussion_status="open",
        )
        found = next((d for d in listed if f"[{plan.digest}]" in d.title), None)
        if found is None:
            return plan, Branch(None, head)
        revision = f"refs/pr/{found.num}"
        sha = remote.info(revision).sha
        missing, foreign = remote.compare(revision, plan.files)
    commits = [[p for p in paths if p in set(missing)] for paths in plan.commits]
    last = [p for p in plan.last if p in set(missing)]
    rest = replace(plan, commits=commits, last=last, delete=foreign)
    return rest, Branch(revision, str(sha), found.num)
