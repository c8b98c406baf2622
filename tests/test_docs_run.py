"""What README and docs/ show runs: every block of code, on the mini release that `make build` made,
and the outputs and pictures that the pages print."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest
from pages import PAGES, ROOT, Block, blocks

MINI = ROOT / "out" / "mini"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not MINI.exists(), reason="needs out/mini: make build"),
]

MODEL = "builder/zoo/cifar10-robust-ResNet18_w32.safetensors"
PRELUDE = f"""
from safetensors.torch import load_file
from builder.networks import resnet18_w32
model = resnet18_w32()
model.load_state_dict({{k: v.float() for k, v in load_file("{ROOT / MODEL}").items()}})
"""
"""What a page may take for granted: `model`, a network of the reader's own."""


def runnable(language: str) -> list[str]:
    """The pages with a block of this language to run."""
    return [p for p in PAGES if any(b.language == language and not b.why_not for b in blocks(p))]


def chosen(page: str, language: str) -> list[Block]:
    return [b for b in blocks(page) if b.language == language and not b.why_not]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reader's folder: a release, a checkpoint, a cohort and its networks, named as there."""
    import torch

    here = tmp_path_factory.mktemp("reader")
    (here / "out").mkdir()
    for name, target in {
        "out/mini": MINI,
        "queries": ROOT / "queries",
        "docs": ROOT / "docs",
        ".venv": Path(sys.executable).parent.parent,
    }.items():
        (here / name).symlink_to(target)
    names: dict[str, object] = {}
    exec(PRELUDE, names)
    torch.save(names["model"].state_dict(), here / "model.pth")  # type: ignore[attr-defined]
    (cohort,) = (b for b in blocks("docs/models.md") if b.language == "csv")
    (here / "models.csv").write_text(cohort.text)
    (here / "my_package").mkdir()
    (here / "my_package" / "nets.py").write_text(
        "from builder.networks import autoattack_example as resnet18\n"
    )
    return here


def run(folder: Path, *command: str) -> str:
    """Its stdout, in the reader's folder."""
    scripts = Path(sys.executable).parent
    done = subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
            "RFL_CACHE": str(folder / "cache"),
            "HF_HOME": str(folder / "hf"),
            "HF_HUB_OFFLINE": "1",
        },
    )
    assert done.returncode == 0, f"{command[-1]}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.mark.parametrize("page", runnable("sh"))
def test_every_command_runs_and_prints_what_the_page_says(page: str, folder: Path):
    for block in chosen(page, "sh"):
        printed = run(folder, "bash", "-euc", block.text)
        if block.output is not None:
            assert printed.strip() == block.output.strip(), f"{page}:{block.line}"


@pytest.mark.parametrize("page", runnable("python"))
def test_every_piece_of_python_runs(page: str, folder: Path):
    text = "\n".join(b.text for b in chosen(page, "python"))
    run(folder, sys.executable, "-c", PRELUDE + text)


@pytest.mark.parametrize("page", runnable("sql"))
def test_every_piece_of_sql_answers(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder)
    for block in chosen(page, "sql"):
        with duckdb.connect() as con:
            answer = None
            for statement in statements(block.text):
                answer = con.execute(statement)
            assert answer is not None and answer.fetchall(), f"{page}:{block.line}"


def statements(text: str) -> list[str]:
    """What the duckdb shell would run: `.read FILE` is its own command, not the library's."""
    found, rest = [], ""
    for line in text.splitlines():
        if line.startswith(".read "):
            found.append(Path(line.removeprefix(".read ")).read_text(encoding="utf-8"))
        else:
            rest += line + "\n"
            if line.rstrip().endswith(";"):
                found.append(rest)
                rest = ""
    assert not rest.strip(), f"no semicolon behind {rest}"
    return found


def test_the_pictures_are_those_of_the_mini_release():
    import pictures

    from builder.release.reader import open_release

    release = open_release(MINI)
    for name in pictures.PICTURES:
        stored = (ROOT / "docs" / name).read_text(encoding="utf-8")
        assert stored == pictures.draw(release, name), f"{name}: python docs/pictures.py out/mini"


def test_the_numbers_in_the_sentences_on_folding_are_those_of_the_mini_release():
    import pictures

    from builder.release.reader import open_release

    release = open_release(MINI)
    text = " ".join((ROOT / "docs" / "folding.md").read_text(encoding="utf-8").split())
    for model_id, layer in pictures.EXAMPLES:
        where = [("model_id", "=", model_id), ("layer", "=", layer)]
        rows = release.table("layers", where=where).to_pylist()
        percent = {row["weights"]: 100 * row["sparsity"] for row in rows}
        assert f"from {percent['trained']:.1f} % to {percent['folded']:.1f} %" in text
    assert f"of {len(release.sql(pictures.CHANGES))} layers" in text
