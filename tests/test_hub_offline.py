"""A release that has been opened once: again with HF_HUB_OFFLINE, and while the Hub is away."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from loopback_hub import Hub, running_hub
from tiny_release import write_tiny_release

pytest.importorskip("huggingface_hub")
ID = "lens/filters"
SMALL = "select count(*) as n from layers"
ALL = "select count(*) as n from filters"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_release(tmp_path_factory.mktemp("release") / "tiny")


@pytest.fixture
def hub(root: Path) -> Iterator[Hub]:
    with running_hub() as running:
        for path in sorted(p for p in root.rglob("*") if p.is_file()):
            running.push(ID, path.relative_to(root).as_posix(), path.read_bytes())
        commit = running.repos[ID].branches["main"]
        running.repos[ID].tags |= {"v0.1.0": commit, "feature/x": commit}
        yield running


def ask(home: Path, endpoint: str, source: str, **env: str) -> subprocess.CompletedProcess[str]:
    settings = {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_COLOR": "1",
    }
    return subprocess.run(
        [sys.executable, "-c", source],
        capture_output=True,
        text=True,
        env={**os.environ, **settings, **env},
        cwd=home.parent,
    )


def counted(sql: str, revision: str) -> str:
    return (
        "import json, builder\n"
        "from builder.errors import BuilderError\n"
        "try:\n"
        f"    release = builder.open_release('hf://datasets/{ID}@{revision}')\n"
        f"    print(json.dumps(release.sql({sql!r}).to_pylist()))\n"
        "except BuilderError as e:\n"
        "    print(f'{type(e).__name__}: {e} | {e.hint}')\n"
    )


@pytest.mark.parametrize("away", ["offline", "stopped"])
@pytest.mark.parametrize("revision", ["v0.1.0", "main", "feature/x", "commit"])
def test_a_release_that_was_opened_before_did_not_open_without_the_hub(
    hub: Hub, tmp_path: Path, away: str, revision: str
) -> None:
    if revision == "commit":
        revision = hub.repos[ID].branches["main"]
    home = tmp_path / "hf"
    online = ask(home, hub.url, counted(SMALL, revision))
    assert json.loads(online.stdout), online.stderr
    hub.clear_log()
    if away == "offline":
        again = ask(home, hub.url, counted(SMALL, revision), HF_HUB_OFFLINE="1")
        assert hub.log == []
    else:
        again = ask(home, "http://127.0.0.1:9", counted(SMALL, revision))
    assert again.stdout == online.stdout, again.stderr


def test_filters_that_are_not_cached_are_missed_by_name_and_no_others(
    hub: Hub, tmp_path: Path
) -> None:
    home = tmp_path / "hf"
    whole = ask(home, hub.url, counted(ALL, "v0.1.0"))
    assert json.loads(whole.stdout), whole.stderr
    missing = ask(home, hub.url, counted(ALL, "v0.1.0"), HF_HUB_OFFLINE="1")
    assert missing.stdout.startswith("NetworkError: "), missing.stdout + missing.stderr
    assert "filters" in missing.stdout and "HF_HUB_OFFLINE" in missing.stdout
    fetch = (
        "from huggingface_hub import snapshot_download\n"
        f"snapshot_download({ID!r}, repo_type='dataset', revision='v0.1.0')\n"
    )
    assert ask(home, hub.url, fetch).returncode == 0
    again = ask(home, hub.url, counted(ALL, "v0.1.0"), HF_HUB_OFFLINE="1")
    assert again.stdout == whole.stdout, again.stderr


def test_what_was_never_opened_is_one_sentence_offline(hub: Hub, tmp_path: Path) -> None:
    done = ask(tmp_path / "hf", hub.url, counted(SMALL, "v0.1.0"), HF_HUB_OFFLINE="1")
    assert "not in the Hub's cache" in done.stdout and "HF_HUB_OFFLINE" in done.stdout
    assert hub.log == []


def test_the_query_command_works_offline(hub: Hub, tmp_path: Path) -> None:
    home = tmp_path / "hf"
    source = (
        "import sys\n"
        f"sys.argv = ['builder', 'query', 'model_counts', '--release', 'hf://datasets/{ID}@v0.1.0']\n"
        "from builder.cli.main import main\n"
        "main()\n"
    )
    online = ask(home, hub.url, source)
    assert online.returncode == 0 and online.stdout, online.stderr
    offline = ask(home, hub.url, source, HF_HUB_OFFLINE="1")
    assert (offline.returncode, offline.stdout) == (0, online.stdout), offline.stderr


@pytest.mark.parametrize("text", ["out/minni", "./minni", "../minni", "data/minni", "a/b/c"])
def test_a_mistyped_folder_was_asked_of_the_hub(hub: Hub, tmp_path: Path, text: str) -> None:
    (tmp_path / "data").mkdir()
    source = (
        "import builder\n"
        f"try:\n    builder.open_release({text!r})\n"
        "except builder.errors.UsageError as e:\n    print(e, e.hint)"
    )
    done = ask(tmp_path / "hf", hub.url, source)
    assert text.split("/")[-1] in done.stdout, done.stderr
    assert hub.log == []
