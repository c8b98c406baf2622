"""The page of a release as a static Space: the real clients against the loopback hub."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hub_client import ClientError, HubClient
from loopback_hub import Fault, Hub, Repo
from tiny_release import Tiny, write_tiny_release

pytest.importorskip("huggingface_hub")
pytest.importorskip("datasets")
pytest.importorskip("altair")

ID, SPACE = "lens/filters", "lens/page"
KEY = f"spaces/{SPACE}"
PAIR = (Tiny("Alpha", partner="Plain"), Tiny("Plain", robust=False))

PUBLISH = """
from pathlib import Path
from builder.publish.plan import make_plan
from builder.publish.send import publish
result = vars(publish(make_plan(Path(root), "lens/filters", **given)))
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_release(tmp_path_factory.mktemp("root"), models=PAIR)


def publish(client: HubClient, root: Path, space: str = SPACE, **given: Any) -> dict[str, Any]:
    result: dict[str, Any] = client.run(PUBLISH, root=str(root), given={"space": space, **given})
    return result


def files(repo: Repo) -> dict[str, str]:
    commit = repo.resolve("main")
    assert commit is not None
    return {p: b.data.decode() for p, b in commit.tree.items() if p != ".gitattributes"}


def changed(hub: Hub) -> list[str]:
    """Requests that change something."""
    return [r.path for r in hub.log if r.method != "GET" and "/commit/" in r.path]


def test_the_page_follows_the_tag_and_points_at_it(hub: Hub, client: HubClient, root: Path) -> None:
    done = publish(client, root)
    assert done["space"] == f"{hub.url}/spaces/{SPACE}"
    space = hub.repos[KEY]
    assert space.sdk == "static" and not space.private
    tagged = hub.sent("POST", "/tag/")[0].index
    assert all(r.index > tagged for r in hub.sent("POST", "/spaces/.*/commit/"))
    assert all(r.index > tagged for r in hub.sent("POST", "/repos/create")[1:])
    found = files(space)
    assert set(found) == {"README.md", "index.html"}  # the Hub's example is gone
    yaml = re.fullmatch(r"---\n(.*?)---\n.*", found["README.md"], re.S)
    assert yaml and 'sdk: "static"\n' in yaml[1] and f'datasets: ["{ID}"]\n' in yaml[1]
    assert f"datasets/{ID}/tree/v0.1.0" in found["README.md"]
    page = found["index.html"]
    assert f"https://huggingface.co/datasets/{ID}/tree/v0.1.0" in page
    assert f"https://huggingface.co/datasets/{ID}?sql_console=true" in page
    assert "resolve%2Fv0.1.0%2Fdata%2Fmodels.parquet" in page
    assert str(root) not in page and "hf_writer" not in page


@pytest.mark.slow
def test_the_same_again_sends_nothing_and_makes_the_same_page(
    hub: Hub, client: HubClient, root: Path, tmp_path: Path
) -> None:
    publish(client, root)
    before = hub.repos[KEY].branches["main"]
    hub.clear_log()
    other = HubClient(hub.url, tmp_path)  # another process, with other hashes of texts
    try:
        publish(other, root)
    finally:
        other.close()
    assert not changed(hub) and hub.repos[KEY].branches["main"] == before


def test_a_dry_run_says_what_would_happen_and_writes_nothing(
    hub: Hub, client: HubClient, root: Path
) -> None:
    code = """
from typer.testing import CliRunner
from builder.cli.main import app
arguments = ["publish", root, "--repo-id", "lens/filters", "--space", space, "--dry-run", *more]
done = CliRunner().invoke(app, arguments)
result = [done.exit_code, done.output]
"""
    status, text = client.run(code, root=str(root), space=SPACE, more=[])
    assert status == 0 and f"then the page, to the Space {SPACE} (new, public)" in text
    assert re.search(r"index\.html \([\d,]{7,}\)", text) and text.index("then tag") < text.index(
        "then the page"
    )
    _, text = client.run(code, root=str(root), space=SPACE, more=["--json", "--private"])
    plan = json.loads(text)["space"]
    assert plan["private"] is True and plan["files"] == ["README.md", "index.html"]
    assert not hub.repos and {r.method for r in hub.log} == {"GET"}
    publish(client, root)
    _, text = client.run(code, root=str(root), space=SPACE, more=[])
    assert "it is there already" in text


def test_a_space_without_the_option_is_not_touched(hub: Hub, client: HubClient, root: Path) -> None:
    done = client.run(PUBLISH, root=str(root), given={})
    assert done["space"] is None and set(hub.repos) == {ID}


@pytest.mark.slow
def test_a_new_version_replaces_the_page_and_an_old_one_does_not(
    hub: Hub, client: HubClient, root: Path, tmp_path: Path
) -> None:
    publish(client, root)
    more = (*PAIR, Tiny("Beta", partner="Plain"))
    publish(client, write_tiny_release(tmp_path / "second", version="0.2.0", models=more))
    assert "tree/v0.2.0" in files(hub.repos[KEY])["index.html"]
    with pytest.raises(ClientError, match=r"shows v0\.2\.0 already, which is newer than v0\.1\.0"):
        publish(client, root)
    assert "tree/v0.2.0" in files(hub.repos[KEY])["index.html"]


# -- what is refused, before anything is sent -------------------------------------------------


def refused(hub: Hub, client: HubClient, root: Path, said: str, **given: Any) -> ClientError:
    before = {key: dict(repo.branches) for key, repo in hub.repos.items()}
    hub.clear_log()
    with pytest.raises(ClientError, match=said) as e:
        publish(client, root, **given)
    assert not [r for r in hub.log if r.method != "GET"], "something was sent"
    assert {key: dict(repo.branches) for key, repo in hub.repos.items()} == before
    return e.value


def test_a_space_of_somebody_else_is_left_alone(hub: Hub, client: HubClient, root: Path) -> None:
    hub.push(KEY, "index.html", b"mine")
    e = refused(hub, client, root, "a commit that no publication of lens/filters made")
    assert e.exit_code == 1 and "'Edit by hand' by bob" in e.args[0]
    refused(hub, client, root, "mallory|may not write to other/page", space="other/page")


def test_an_edit_of_the_page_is_left_alone(
    hub: Hub, client: HubClient, root: Path, tmp_path: Path
) -> None:
    publish(client, root)
    hub.push(KEY, "index.html", b"edited")
    refused(hub, client, root, "'Edit by hand' by bob")


def test_a_space_of_another_kind_is_refused(hub: Hub, client: HubClient, root: Path) -> None:
    hub.push(KEY, "app.py", b"import gradio", "initial commit")
    hub.repos[KEY].sdk = "gradio"
    refused(hub, client, root, "of another kind")


def test_the_page_of_another_data_set_is_refused(hub: Hub, client: HubClient, root: Path) -> None:
    hub.push(KEY, "index.html", b"x", f"v0.1.0: page of {ID}-other [0123456789ab]")
    refused(hub, client, root, "that no publication of lens/filters made")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["private", "gated"])
def test_what_only_some_may_read_is_not_shown_to_all(
    hub: Hub, client: HubClient, root: Path, how: str
) -> None:
    publish(client, root)
    setattr(hub.repos[ID], how, True)
    e = refused(hub, client, root, "is private or gated, and the Space lens/page is public")
    assert "make the Space private" in e.hint
    hub.repos[KEY].private = True
    publish(client, root)


def test_the_space_of_private_data_is_made_private(hub: Hub, client: HubClient, root: Path) -> None:
    publish(client, root, private=True)
    assert hub.repos[ID].private and hub.repos[KEY].private


def test_a_pull_request_has_no_page_and_a_name_has_two_parts(
    hub: Hub, client: HubClient, root: Path
) -> None:
    refused(hub, client, root, "a pull request has none yet", create_pr=True)
    refused(hub, client, root, "is no Space", space="page")


# -- meanwhile, and interrupted ---------------------------------------------------------------


def test_a_push_while_the_data_are_sent_is_kept(hub: Hub, client: HubClient, root: Path) -> None:
    def rival(hub: Hub) -> None:
        hub.push(KEY, "index.html", b"mine")

    hub.fail(Fault(method="POST", pattern="/tag/", action=rival))
    with pytest.raises(ClientError, match="that no publication of lens/filters made"):
        publish(client, root)
    assert hub.repos[ID].tags and files(hub.repos[KEY]) == {"index.html": "mine"}


def test_a_push_while_the_page_is_sent_is_kept(hub: Hub, client: HubClient, root: Path) -> None:
    def rival(hub: Hub) -> None:
        hub.push(KEY, "index.html", b"mine")

    hub.fail(Fault(method="POST", pattern="/spaces/.*/preupload", action=rival))
    with pytest.raises(ClientError, match="somebody else pushed to lens/page meanwhile"):
        publish(client, root)
    assert files(hub.repos[KEY])["index.html"] == "mine"


def interrupt(hub: Hub, client: HubClient, root: Path, fault: Fault) -> None:
    """The Space's part with a fault, then again without; the data are published already."""
    try:
        hub.fail(fault)
        publish(client, root)
    except ClientError as e:
        assert e.exit_code == 4 and "hf_writer" not in str(e), e
    hub.faults.clear()
    publish(client, root)
    space = hub.repos.pop(KEY)
    assert set(files(space)) == {"README.md", "index.html"}
    assert [c.title.split(" [")[0] for c in space.history("main")] == [
        f"v0.1.0: page of {ID}",
        "initial commit",
    ]


KINDS = {
    "refused": {"status": 403},
    "dead": {"drop": True, "times": 10_000},
    "answer lost": {"drop": True, "after": True},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_interrupted_at_every_request_a_rerun_completes(
    hub: Hub, client: HubClient, root: Path, kind: str
) -> None:
    # The page is made anew each time; once is enough here, and that it is the same is tested above.
    client.run(
        "import functools; from builder.publish import space\n"
        "space.render = functools.cache(space.render)"
    )
    client.run(PUBLISH, root=str(root), given={})
    hub.clear_log()
    publish(client, root)
    ours = [r.index for r in hub.log if "space" in r.path or r.path.endswith("/repos/create")]
    assert len(ours) > 8 and hub.sent("POST", "/repos/create")
    hub.repos.pop(KEY)
    for k in ours:
        hub.clear_log()
        interrupt(hub, client, root, Fault(nth=k, **KINDS[kind]))


@pytest.mark.slow
def test_interrupted_while_the_page_is_made_a_rerun_completes(
    hub: Hub, client: HubClient, root: Path
) -> None:
    client.run(PUBLISH, root=str(root), given={})
    for pattern in ("/repos/create", "/spaces/.*/commit/"):
        interrupt(hub, client, root, Fault(drop=True, after=True, times=99, pattern=pattern))
