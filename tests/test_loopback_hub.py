"""The loopback hub, driven by the real huggingface_hub."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_client import ClientError, HubClient
from loopback_hub import Fault, Hub, running_hub

pytest.importorskip("huggingface_hub")

UPLOAD = """
from huggingface_hub import CommitOperationAdd, HfApi
api = HfApi()
api.create_repo("lens/a", repo_type="dataset")
files = {"data/x=1/a.parquet": b"P" * 5000, "README.md": b"---\\na: 1\\n---\\n"}
ops = [CommitOperationAdd(path, data) for path, data in files.items()]
info = api.create_commit("lens/a", ops, commit_message="first", repo_type="dataset")
api.create_tag("lens/a", tag="v0.1.0", revision=info.oid, repo_type="dataset")
result = info.oid
"""


@pytest.fixture(scope="module")
def _world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Hub, HubClient]]:
    with running_hub() as hub:
        client = HubClient(hub.url, tmp_path_factory.mktemp("hf_home"))
        yield hub, client
        client.close()


@pytest.fixture
def world(_world: tuple[Hub, HubClient]) -> tuple[Hub, HubClient]:
    _world[0].reset()
    return _world


def test_a_commit_with_lfs_and_regular_files_is_stored_and_tagged(
    world: tuple[Hub, HubClient],
) -> None:
    hub, client = world
    oid = client.run(UPLOAD)
    repo = hub.repos["lens/a"]
    assert repo.tags == {"v0.1.0": oid} and repo.branches == {"main": oid}
    tree = repo.commits[oid].tree
    assert tree["data/x=1/a.parquet"].lfs and tree["data/x=1/a.parquet"].data == b"P" * 5000
    assert not tree["README.md"].lfs
    listed = client.run(
        """
from huggingface_hub import HfApi
tree = HfApi().list_repo_tree("lens/a", repo_type="dataset", revision="v0.1.0", recursive=True)
result = {f.path: f.lfs.sha256 if getattr(f, "lfs", None) else None for f in tree}
"""
    )
    assert listed["data/x=1/a.parquet"] == tree["data/x=1/a.parquet"].sha256
    assert set(listed) == {*tree, "data", "data/x=1"}


def test_snapshot_download_and_the_file_system_give_the_same_bytes(
    world: tuple[Hub, HubClient], tmp_path: Path
) -> None:
    hub, client = world
    client.run(UPLOAD)
    client.run(
        """
from huggingface_hub import HfFileSystem, snapshot_download
snapshot_download("lens/a", repo_type="dataset", revision="v0.1.0", local_dir=out)
fs = HfFileSystem()
with fs.open("datasets/lens/a@v0.1.0/data/x=1/a.parquet") as f:
    f.seek(4990)
    assert f.read() == b"P" * 10
assert fs.glob("datasets/lens/a@v0.1.0/data/*/*.parquet")
""",
        out=str(tmp_path),
    )
    assert (tmp_path / "data" / "x=1" / "a.parquet").read_bytes() == b"P" * 5000
    assert any(r.range and r.range.startswith("bytes=4990-") for r in hub.sent("GET", "/cdn/"))


def test_a_stale_parent_and_a_second_tag_are_refused(world: tuple[Hub, HubClient]) -> None:
    hub, client = world
    first = client.run(UPLOAD)
    hub.push("lens/a", "note.txt", b"hello")
    commit = """
from huggingface_hub import CommitOperationAdd, HfApi
op = CommitOperationAdd("b.txt", b"b")
HfApi().create_commit("lens/a", [op], commit_message="m", repo_type="dataset", parent_commit=first)
"""
    with pytest.raises(ClientError) as error:
        client.run(commit, first=first)
    assert "412" in error.value.args[0]
    assert "b.txt" not in hub.repos["lens/a"].resolve("main").tree  # type: ignore[union-attr]
    with pytest.raises(ClientError, match="409"):
        client.run(
            "from huggingface_hub import HfApi\n"
            "HfApi().create_tag('lens/a', tag='v0.1.0', repo_type='dataset')"
        )


def test_faults_strike_the_requests_they_name_and_no_other(world: tuple[Hub, HubClient]) -> None:
    hub, client = world
    client.run(UPLOAD)
    whoami = "from huggingface_hub import HfApi; result = HfApi().whoami()['name']"
    hub.clear_log()
    hub.fail(Fault(status=503, pattern="whoami", nth=2))
    assert client.run(whoami) == "alice"
    with pytest.raises(ClientError, match="503"):
        client.run(whoami)
    assert client.run(whoami) == "alice"
    hub.fail(Fault(drop=True, pattern="whoami"))
    with pytest.raises(ClientError, match="disconnected"):
        client.run(whoami)
    hub.fail(Fault(slow=0.05, pattern="whoami"))
    assert client.run(whoami) == "alice"
    assert [r.index for r in hub.log] == [1, 2, 3, 4, 5]


def test_readers_and_strangers_cannot_write_and_private_repositories_hide(
    world: tuple[Hub, HubClient],
) -> None:
    hub, client = world
    client.run(UPLOAD)
    hub.repos["lens/a"].private = True
    source = """
from huggingface_hub import CommitOperationAdd, HfApi
api = HfApi(token=token)
op = CommitOperationAdd("b.txt", b"b")
api.create_commit("lens/a", [op], commit_message="m", repo_type="dataset")
"""
    for token, said in (("hf_reader", "403"), ("hf_stranger", "404"), ("hf_wrong", "401")):
        with pytest.raises(ClientError, match=said):
            client.run(source, token=token)
