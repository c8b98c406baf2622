"""Publishing, end to end: the real clients against the loopback hub."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hub_client import ClientError, HubClient
from loopback_hub import Fault, Hub, Repo
from test_diff import edit, moved
from tiny_release import MODELS, Tiny, write_tiny_release

from builder import schema
from builder.release.manifest import read_manifest
from builder.sql import catalog
from builder.sql.reads import audit_readings

pytest.importorskip("huggingface_hub")
pytest.importorskip("datasets")

ID = "lens/filters"
PAIR = (Tiny("Alpha", partner="Plain"), Tiny("Plain", robust=False))
SMALL = 8  # tables beside the filters: seven of the schema, and the sample

PUBLISH = """
from pathlib import Path
from builder.publish.plan import as_text, make_plan
from builder.publish.send import publish
options = {k: Path(v) if k == "notes" else v for k, v in dict(given).items()}
plan = make_plan(Path(root), repo_id, **options)
print(as_text(plan))
result = vars(publish(plan))
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One pair: few requests."""
    return write_tiny_release(tmp_path_factory.mktemp("small"), models=PAIR)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_release(tmp_path_factory.mktemp("first"))


def publish(client: HubClient, root: Path, repo_id: str = ID, **given: Any) -> dict[str, Any]:
    result: dict[str, Any] = client.run(PUBLISH, root=str(root), repo_id=repo_id, given=given)
    return result


def tree(repo: Repo, revision: str) -> dict[str, bytes]:
    commit = repo.resolve(revision)
    assert commit is not None
    return {p: b.data for p, b in commit.tree.items() if p != ".gitattributes"}


def is_whole(files: dict[str, bytes], root: Path) -> bool:
    """Whether these are the files of the release (the card names the repository)."""
    paths = {*read_manifest(root)["files"], "manifest.json"}
    same = all(files.get(p) == (root / p).read_bytes() for p in paths)
    return same and set(files) == {*paths, "README.md"}


# -- end to end ---------------------------------------------------------------------------


def test_two_versions_are_published_and_both_tags_load(
    hub: Hub, client: HubClient, first: Path, tmp_path: Path
) -> None:
    done = publish(client, first)
    assert done["tag"] == "v0.1.0" and done["sent_files"] == len(MODELS) + SMALL + 3
    repo = hub.repos[ID]
    assert is_whole(tree(repo, "v0.1.0"), first)
    before = tree(repo, "v0.1.0")

    models = (replace(MODELS[0], seed=1), *MODELS[1:])
    second = write_tiny_release(tmp_path / "second", version="0.1.1", models=models)
    address = f"hf://datasets/{ID}@v0.1.0"
    with pytest.raises(ClientError, match=r"calls for version 0\.2\.0 or higher, not 0\.1\.1") as e:
        publish(client, second)
    assert e.value.exit_code == 1
    called_for = client.run(
        "from builder.check.diff import diff\n"
        "d = diff(a, b); result = [d.next_version, d.bump, d.models_changed]",
        a=address,
        b=str(second),
    )
    assert called_for == ["0.2.0", "major", [MODELS[0].model_id]]

    second = write_tiny_release(tmp_path / "right", version="0.2.0", models=models)
    hub.clear_log()
    done = publish(client, second)
    assert is_whole(tree(repo, "v0.2.0"), second)
    assert tree(repo, "v0.1.0") == before
    sent = {r.path.split("/")[-1].split("?")[0] for r in hub.sent("PUT", "/lfs/")}
    unchanged = {f["sha256"] for f in read_manifest(first)["files"].values()}
    assert sent and not sent & unchanged  # the four other models are not sent again

    loaded = client.run(
        """
from datasets import load_dataset
import builder
result = {}
for tag in ("v0.1.0", "v0.2.0"):
    rows = load_dataset(repo_id, "filters_cifar10", split="train", revision=tag)
    stream = load_dataset(repo_id, "filters_cifar10", split="train", revision=tag, streaming=True)
    batches = [b for b in stream.with_format("arrow").iter(batch_size=131_072)]
    weight = builder.open_release(repo_id, tag).weight(model_id, "conv1", view="folded")
    result[tag] = [rows.num_rows, sum(map(len, batches)), float(weight.sum())]
""",
        repo_id=ID,
        model_id=MODELS[0].model_id,
    )
    assert loaded["v0.1.0"][:2] == loaded["v0.2.0"][:2] == [3 * 216, 3 * 216]
    assert loaded["v0.1.0"][2] != loaded["v0.2.0"][2]


def test_what_was_published_says_it_is_a_whole_release_to_every_client(
    hub: Hub, client: HubClient, small: Path, tmp_path: Path
) -> None:
    publish(client, small)
    client.run(
        "from huggingface_hub import snapshot_download\n"
        "snapshot_download(repo_id, repo_type='dataset', revision='v0.1.0', local_dir=out)",
        repo_id=ID,
        out=str(tmp_path / "copy"),
    )
    from builder.check.verify import verify

    assert (tmp_path / "copy" / ".cache").is_dir()
    assert verify(tmp_path / "copy") == []
    card = tmp_path / "copy" / "README.md"
    card.write_bytes(card.read_bytes().replace(b"lens/filters", b"lens/filter5", 1))
    assert [f.path for f in verify(tmp_path / "copy")] == ["README.md"]


def test_the_published_card_links_every_finding_and_says_what_audits_read(
    hub: Hub, client: HubClient, small: Path
) -> None:
    publish(client, small)
    card = tree(hub.repos[ID], "v0.1.0")["README.md"].decode()
    for query in catalog.list_findings():
        assert f"- [{query.title}](https://huggingface.co/datasets/{ID}?sql_console=true" in card
    rows = re.findall(r"^\| `(audit/\w+)` \| ([\d.,]+) MB \| ([\d,]+) \|$", card, flags=re.M)
    assert [r[0] for r in rows] == [r.query for r in audit_readings(small)] and len(rows) > 5
    assert "download the release first" in card


def test_every_example_of_the_published_card_runs(hub: Hub, client: HubClient, first: Path) -> None:
    publish(client, first)
    card = tree(hub.repos[ID], "v0.1.0")["README.md"].decode()
    python = re.findall(r"^```python\n(.*?)^```$", card, flags=re.M | re.S)
    assert len(python) == 6
    for number, source in enumerate(python):
        client.run(source, name=f"card example {number}")
        assert client.said.strip()
    (sql,) = re.findall(r"^```sql\n(.*?)^```$", card, flags=re.M | re.S)
    rows = client.run(
        """
import duckdb
from builder.hub import duckdb_filesystem
with duckdb.connect() as con:
    con.register_filesystem(duckdb_filesystem())
    result = [list(r[:2]) for r in con.sql(sql).fetchall()]
""",
        sql=sql,
    )
    assert rows == sorted([m.model_id, 216] for m in MODELS if m.dataset == "cifar10")


def test_publishing_again_sends_nothing_and_reads_back(
    hub: Hub, client: HubClient, small: Path
) -> None:
    once = publish(client, small)
    hub.clear_log()
    again = publish(client, small)
    assert again["commit"] == once["commit"] and again["sent_files"] == 0
    assert not hub.sent("PUT") and not hub.sent("POST", "/commit/|/tag/|/preupload/")
    assert hub.sent("GET", "/cdn/")


def test_a_dry_run_plans_the_same_and_changes_nothing(
    hub: Hub, client: HubClient, small: Path
) -> None:
    plan = client.run(
        "from builder.publish.plan import as_json, as_text, make_plan; from pathlib import Path\n"
        "plan = make_plan(Path(root), repo_id); print(as_text(plan))\n"
        "result = as_json(plan)",
        root=str(small),
        repo_id=ID,
    )
    text = client.said
    assert not hub.repos and {r.method for r in hub.log} == {"GET"}
    assert plan["tag"] == "v0.1.0" and plan["head"] is None and not plan["delete"]
    assert "README.md" in plan["commits"][-1] and "manifest.json" in plan["commits"][-1]
    done = publish(client, small)
    assert done["sent_bytes"] == plan["bytes"] and done["sent_files"] == sum(
        map(len, plan["commits"])
    )
    assert "commit 2/2" in text and "then tag v0.1.0" in text


def test_card_and_manifest_come_last_and_commits_are_bounded(
    hub: Hub, client: HubClient, first: Path
) -> None:
    client.run("from builder.publish import plan; plan.MAX_FILES = 2")
    try:
        publish(client, first)
    finally:
        client.run("from builder.publish import plan; plan.MAX_FILES = 50")
    history = list(hub.repos[ID].history("main"))[::-1]
    assert [c.title.split(" [")[0] for c in history[1:]] == [
        "v0.1.0 1/4: data",
        "v0.1.0 2/4: data",
        "v0.1.0 3/4: data",
        "v0.1.0 4/4: card and manifest",
    ]
    sizes = [len(b.tree) - len(a.tree) for a, b in itertools.pairwise(history)]
    assert sizes == [2, 2, 1, SMALL + 3]
    assert "README.md" not in history[-2].tree and "manifest.json" not in history[-2].tree


def test_a_private_repository_is_made_private(hub: Hub, client: HubClient, small: Path) -> None:
    publish(client, small, private=True)
    assert hub.repos[ID].private


def test_a_removed_model_is_removed_from_main_and_kept_at_its_tag(
    hub: Hub, client: HubClient, first: Path, tmp_path: Path
) -> None:
    publish(client, first)
    fewer = write_tiny_release(tmp_path / "fewer", version="0.2.0", models=MODELS[1:])
    publish(client, fewer)
    assert is_whole(tree(hub.repos[ID], "main"), fewer)
    assert is_whole(tree(hub.repos[ID], "v0.1.0"), first)


def test_a_pull_request_is_filled_merged_and_tagged(
    hub: Hub, client: HubClient, first: Path, tmp_path: Path
) -> None:
    publish(client, first)
    second = write_tiny_release(
        tmp_path / "b", version="0.2.0", models=(*MODELS, Tiny("Delta", partner="Plain"))
    )
    hub.clear_log()
    hub.fail(Fault(status=403, method="POST", pattern="/commit/refs"))
    with pytest.raises(ClientError, match="no permission"):
        publish(client, second, create_pr=True)
    done = publish(client, second, create_pr=True)
    repo = hub.repos[ID]
    assert done["tag"] is None and done["url"].endswith("/discussions/1")
    assert set(repo.prs) == {1} and set(repo.tags) == {"v0.1.0"}
    assert is_whole(tree(repo, "refs/pr/1"), second) and is_whole(tree(repo, "main"), first)
    hub.merge(ID, 1)
    assert publish(client, second)["tag"] == "v0.2.0"
    assert is_whole(tree(repo, "v0.2.0"), second)


# -- what is refused ------------------------------------------------------------------------


def test_seeded_weights_are_refused(hub: Hub, client: HubClient, tmp_path: Path) -> None:
    root = write_tiny_release(tmp_path / "seeded", weights="seeded:0")
    with pytest.raises(ClientError, match="is made of seeded:0 weights") as e:
        publish(client, root)
    assert e.value.exit_code == 1 and not hub.log


def test_a_release_with_a_stray_file_is_refused(
    hub: Hub, client: HubClient, tmp_path: Path
) -> None:
    root = write_tiny_release(tmp_path / "dirty", models=PAIR)
    (root / "data" / "notes.txt").write_text("mine")
    with pytest.raises(ClientError, match=r"data/notes\.txt: is not in the manifest"):
        publish(client, root)
    assert not hub.log


def test_a_release_that_was_downloaded_is_published_without_the_downloads_own_files(
    hub: Hub, client: HubClient, tmp_path: Path
) -> None:
    root = write_tiny_release(tmp_path / "downloaded", models=PAIR)
    (root / ".gitattributes").write_text("theirs")
    (root / ".cache" / "huggingface").mkdir(parents=True)
    (root / ".cache" / "huggingface" / ".gitignore").write_text("*")
    publish(client, root)
    assert is_whole(tree(hub.repos[ID], "v0.1.0"), root)


def test_without_datasets_nothing_is_sent(
    hub: Hub, client: HubClient, small: Path, tmp_path: Path
) -> None:
    missing = HubClient(hub.url, tmp_path)
    try:
        missing.run("import sys; sys.modules['datasets'] = None")  # as where it is not installed
        with pytest.raises(ClientError, match="datasets, which is not installed") as e:
            publish(missing, small)
    finally:
        missing.close()
    assert e.value.kind == "UsageError" and not hub.repos and not hub.log


def test_a_damaged_release_is_refused(hub: Hub, client: HubClient, tmp_path: Path) -> None:
    root = write_tiny_release(tmp_path / "damaged", models=PAIR)
    path = root / "data" / "layers.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ClientError, match="does not pass verification"):
        publish(client, root)
    assert not hub.log


def test_an_existing_tag_of_another_content_is_refused(
    hub: Hub, client: HubClient, small: Path, first: Path
) -> None:
    publish(client, small)
    hub.clear_log()
    with pytest.raises(ClientError, match=r"has a tag v0\.1\.0 already.*Tags never move"):
        publish(client, first)
    assert {r.method for r in hub.log} == {"GET"}


def test_a_version_below_the_newest_is_refused(
    hub: Hub, client: HubClient, small: Path, tmp_path: Path
) -> None:
    publish(client, write_tiny_release(tmp_path / "b", version="0.10.0", models=PAIR))
    with pytest.raises(ClientError, match=r"0\.9\.0 is not above v0\.10\.0"):
        publish(client, write_tiny_release(tmp_path / "c", version="0.9.0", models=PAIR))


def test_a_major_change_of_a_stable_version_needs_migration_notes(
    hub: Hub, client: HubClient, tmp_path: Path
) -> None:
    publish(client, write_tiny_release(tmp_path / "a", version="1.0.0"))
    root = write_tiny_release(tmp_path / "b", version="2.0.0", models=MODELS[1:])
    with pytest.raises(ClientError, match="no migration notes"):
        publish(client, root)
    notes = tmp_path / "notes.md"
    notes.write_text("# v2.0.0\n\n## Migration\n\nAlpha is gone.\n")
    assert publish(client, root, notes=str(notes))["tag"] == "v2.0.0"


def test_the_rounding_of_another_machine_called_for_a_major_version(
    hub: Hub, client: HubClient, tmp_path: Path
) -> None:
    publish(client, write_tiny_release(tmp_path / "a", version="1.0.0"))
    root = write_tiny_release(tmp_path / "b", version="1.0.1")
    edit(root, schema.table_path("layers"), moved("norm_l2", 1e-6))
    with pytest.raises(ClientError, match=r"calls for version 2\.0\.0 or higher, not 1\.0\.1"):
        publish(client, root)
    root = write_tiny_release(tmp_path / "c", version="1.0.1")
    edit(root, schema.table_path("layers"), moved("norm_l2", 1e-15))
    assert publish(client, root)["tag"] == "v1.0.1"


def test_an_address_on_this_machine_is_refused(hub: Hub, client: HubClient, tmp_path: Path) -> None:
    from builder.errors import BuilderError
    from builder.publish.rules import check_private

    root = write_tiny_release(tmp_path / "a", models=PAIR)
    text = (root / "manifest.json").read_text()
    for address in ("/srv/weights/a.pt", str(root / "a.pt"), "file:///a.pt", "C:\\\\w\\\\a.pt"):
        manifest = text.replace("embedded:synthetic", address)
        with pytest.raises(BuilderError, match="path of this machine"):
            check_private(root, {"manifest.json": manifest.encode()})
    check_private(root, {"manifest.json": text.encode()})


def test_a_release_that_holds_the_token_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from builder.errors import BuilderError
    from builder.publish.rules import check_private

    monkeypatch.setenv("HF_TOKEN", "hf_secret_of_a_test")
    with pytest.raises(BuilderError, match="or a secret") as e:
        check_private(tmp_path, {"queries/a.sql": b"SELECT 1; -- hf_secret_of_a_test"})
    assert "hf_secret" not in str(e.value)


@pytest.mark.parametrize(
    "address",
    [
        "https://alice:hunter2@host/a.pt",
        "https://host/a.pt?X-Amz-Signature=hunter2",
        "glpat-" + "a1" * 10,
    ],
)
def test_a_release_with_a_signed_address_was_sent(tmp_path: Path, address: str) -> None:
    from builder.errors import BuilderError
    from builder.publish.rules import check_private

    text = (write_tiny_release(tmp_path / "a", models=PAIR) / "manifest.json").read_text()
    manifest = text.replace("embedded:synthetic", address)
    assert manifest != text
    with pytest.raises(BuilderError, match="or a secret") as e:
        check_private(tmp_path, {"manifest.json": manifest.encode()})
    assert "hunter2" not in f"{e.value} {e.value.hint}"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--notes", "nowhere.md"], "cannot read the notes nowhere.md"),
        (["--space", "no/such/name"], "--space 'no/such/name' is no Space"),
        ([], "does not pass verification"),
    ],
    ids=["notes", "space", "release"],
)
def test_a_token_was_asked_for_before_what_lies_here_was_looked_at(
    tmp_path: Path, given: list[str], said: str
) -> None:
    root = write_tiny_release(tmp_path / "a", models=PAIR)
    if not given:
        (root / "data" / "pairs.parquet").unlink()
    env = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    env |= {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hf")}
    command = ["publish", root, "--repo-id", ID, "--dry-run", *given]
    done = subprocess.run(
        [sys.executable, "-m", "builder", *map(str, command)],
        env=env, cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode in (1, 2) and said in done.stderr, done.stderr


# -- network and rights -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("token", "said"),
    [
        (None, "no Hub token found"),
        ("hf_wrong", "token is missing or wrong"),
        ("hf_reader", "token is read-only"),
        ("hf_stranger", "mallory may not write to lens/filters"),
    ],
)
def test_a_token_that_will_not_do_is_one_clear_message(
    hub: Hub, client: HubClient, small: Path, token: str | None, said: str
) -> None:
    with_token = "import os; os.environ.pop('HF_TOKEN', None)\n"
    if token:
        with_token += f"os.environ['HF_TOKEN'] = {token!r}\n"
    client.run(with_token)
    try:
        with pytest.raises(ClientError, match=said) as e:
            publish(client, small)
    finally:
        client.run("import os; os.environ['HF_TOKEN'] = 'hf_writer'")
    assert e.value.kind == "NetworkError" and e.value.exit_code == 4
    assert not hub.repos
    assert (token or "hf_") not in e.value.args[0] + e.value.hint + e.value.said


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Fault(status=429, times=99, pattern="/commit/", headers={"Retry-After": "7"}), "wait 7 s"),
        (Fault(status=429, times=99, pattern="whoami"), "too many requests"),
        (Fault(status=403, times=99, pattern="/commit/"), "no permission"),
        (
            Fault(
                status=403,
                times=99,
                pattern="/lfs/objects/batch",
                headers={"X-Error-Message": "Private repository storage limit reached"},
            ),
            "storage quota",
        ),
        (Fault(status=500, times=99, pattern="/lfs/"), "HTTP 500"),
        (Fault(status=503, times=99, pattern="/tag/"), "HTTP 503"),
        (Fault(drop=True, times=99, pattern="/preupload/"), "no answer"),
    ],
)
def test_a_refusing_server_is_one_clear_message_and_a_rerun_completes(
    hub: Hub, client: HubClient, small: Path, fault: Fault, said: str
) -> None:
    hub.fail(replace(fault))
    with pytest.raises(ClientError, match=said) as e:
        publish(client, small)
    assert e.value.exit_code == 4 and "\n" not in e.value.args[0]
    assert "Signature" not in e.value.args[0] and "hf_writer" not in str(e.value)
    if ID in hub.repos:
        assert not hub.repos[ID].tags
    hub.faults.clear()
    assert publish(client, small)["tag"] == "v0.1.0"


def test_slow_answers_do_no_harm(hub: Hub, client: HubClient, small: Path) -> None:
    hub.fail(Fault(slow=0.02, times=99, method="GET"))
    assert publish(client, small)["tag"] == "v0.1.0"
    assert is_whole(tree(hub.repos[ID], "v0.1.0"), small)


def test_an_unreachable_endpoint_is_one_clear_message(small: Path, tmp_path: Path) -> None:
    client = HubClient("http://127.0.0.1:9", tmp_path)
    try:
        with pytest.raises(ClientError, match=r"no answer from http://127\.0\.0\.1:9") as e:
            publish(client, small)
        assert e.value.exit_code == 4
    finally:
        client.close()


def test_an_endpoint_without_xet_is_served_over_http(hub: Hub, small: Path, tmp_path: Path) -> None:
    pytest.importorskip("hf_xet")
    client = HubClient(hub.url, tmp_path)
    try:
        client.run("from huggingface_hub import constants; constants.HF_HUB_DISABLE_XET = False")
        assert publish(client, small)["tag"] == "v0.1.0"
    finally:
        client.close()
    assert hub.sent("GET", "/xet-write-token/") and hub.sent("PUT", "/lfs/")


# -- others push too --------------------------------------------------------------------------


def test_a_push_between_two_of_our_commits_is_detected_and_kept(
    hub: Hub, client: HubClient, small: Path
) -> None:
    def rival(hub: Hub) -> None:
        hub.push(ID, "README.md", b"---\nmine: true\n---\n")

    hub.fail(Fault(method="POST", pattern="/validate-yaml", action=rival))
    with pytest.raises(ClientError, match="somebody else pushed") as e:
        publish(client, small)
    assert e.value.exit_code == 1
    repo = hub.repos[ID]
    assert tree(repo, "main")["README.md"] == b"---\nmine: true\n---\n" and not repo.tags

    with pytest.raises(ClientError, match="a commit that this publication did not make") as e:
        publish(client, small)
    assert "'Edit by hand' by bob" in e.value.args[0] and "--parent" in e.value.hint
    assert tree(repo, "main")["README.md"] == b"---\nmine: true\n---\n"
    head = repo.branches["main"]
    with pytest.raises(ClientError, match="look again"):
        publish(client, small, parent="0" * 40)
    assert publish(client, small, parent=head)["tag"] == "v0.1.0"
    assert is_whole(tree(repo, "v0.1.0"), small)


def test_a_push_between_the_last_commit_and_the_tag_is_not_tagged(
    hub: Hub, client: HubClient, small: Path
) -> None:
    hub.fail(
        Fault(method="POST", pattern="/tag/", action=lambda h: h.push(ID, "x.txt", b"x") and None)
    )
    publish(client, small)
    assert is_whole(tree(hub.repos[ID], "v0.1.0"), small)
    assert "x.txt" in tree(hub.repos[ID], "main")


def test_content_that_changes_on_the_hub_is_noticed_before_the_tag(
    hub: Hub, client: HubClient, small: Path
) -> None:
    """A server that stores other bytes than were sent: found by the digests of the commit."""

    def corrupt(hub: Hub) -> None:
        repo = hub.repos[ID]
        path = next(p for p in repo.resolve("main").tree if p.endswith("Alpha.parquet"))  # type: ignore[union-attr]
        blob = repo.resolve("main").tree[path]  # type: ignore[union-attr]
        repo.resolve("main").tree[path] = replace(blob, data=blob.data[:-1] + b"X")  # type: ignore[union-attr]

    hub.fail(Fault(method="GET", pattern="/tree/", action=corrupt))
    with pytest.raises(ClientError, match="did not arrive as it was sent"):
        publish(client, small)
    assert not hub.repos[ID].tags


# -- interrupted anywhere ---------------------------------------------------------------------


def interrupt(hub: Hub, client: HubClient, root: Path, fault: Fault) -> int:
    """Publish with a fault, then again without. Returns the requests of the first run."""
    hub.reset()
    hub.fail(fault)
    try:
        publish(client, root)
    except ClientError as e:
        assert e.exit_code == 4, e
        assert "hf_writer" not in str(e)
    requests = len(hub.log)
    for repo in hub.repos.values():
        for tag in repo.tags:
            assert is_whole(tree(repo, tag), root), f"{tag} is incomplete after {fault}"
    hub.faults.clear()
    assert publish(client, root)["tag"] == "v0.1.0"
    repo = hub.repos[ID]
    assert is_whole(tree(repo, "v0.1.0"), root)
    titles = [c.title for c in repo.history("main")]
    assert len(titles) == len(set(titles)) == 3  # nothing is committed twice
    struck = hub.log[fault.nth - 1].path  # without an answer, the client itself repeats it
    stored = [oid for oid in hub.stored if oid not in struck]
    assert len(stored) == len(set(stored))  # nothing that arrived is sent again
    return requests


KINDS = {
    "refused": lambda k: Fault(status=403, nth=k),
    "dead": lambda k: Fault(drop=True, times=10_000, nth=k),
    "answer lost": lambda k: Fault(drop=True, after=True, nth=k),
}


@pytest.mark.parametrize("kind", KINDS)
def test_interrupted_at_some_requests_a_rerun_completes(
    hub: Hub, client: HubClient, small: Path, kind: str
) -> None:
    for k in (1, 3, 7, 11, 26):
        interrupt(hub, client, small, KINDS[kind](k))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_interrupted_at_every_request_a_rerun_completes(
    hub: Hub, client: HubClient, small: Path, kind: str
) -> None:
    publish(client, small)
    tagged = hub.sent("POST", "/tag/")[0].index
    # Reading back changes nothing: one kind of failure is enough there.
    last = len(hub.log) if kind == "dead" else tagged
    assert len(hub.log) > 2 * tagged > 50
    for k in range(1, last + 1):
        interrupt(hub, client, small, KINDS[kind](k))


# -- secrets ------------------------------------------------------------------------------------


def test_no_token_is_printed_or_published(hub: Hub, client: HubClient, small: Path) -> None:
    publish(client, small)
    assert "hf_writer" not in client.said
    for data in tree(hub.repos[ID], "main").values():
        assert b"hf_writer" not in data and str(small).encode() not in data
        assert str(Path.home()).encode() + b"/" not in data
    for commit in hub.repos[ID].history("main"):
        assert "hf_writer" not in commit.title + commit.message
