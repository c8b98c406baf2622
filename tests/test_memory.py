"""How much memory every command takes at most, on a release of one WideResNet-70-16.

Its weights are seeded: SYNTHETIC, 29,560,880 filters, 1 GB. Bounds are of the whole process, in GB.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

WIDE = "cifar10-robust-Gowal2020Uncovering_70_16"

pytestmark = pytest.mark.slow


def peak(*arguments: str | Path) -> float:
    """Largest resident memory of `builder` with these arguments, in GB; it must not fail."""
    command = [sys.executable, "-m", "builder", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr
    said = process.stderr.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, said
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def build(out: Path, weights: str) -> float:
    return peak("build", "--cohort", "paper", "--models", WIDE, "--weights", weights,
                "--no-first-layer", "--out", out)  # fmt: skip


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two releases of the same network, `a` and `b`, whose every filter differs."""
    folder = tmp_path_factory.mktemp("wide")
    assert build(folder / "a", "seeded:0") < 1.5
    assert build(folder / "b", "seeded:1") < 1.5
    return folder


@pytest.mark.parametrize(
    ("bound", "command"),
    [
        (0.5, "verify a"),
        (1.8, "verify a --full"),
        (0.5, "query sparsity_overall --release a"),
        (0.5, "query audit/linf --release a"),
        (0.5, "query audit/sparsity --release a"),
        (0.8, "query audit/second_moments --release a"),
        (0.8, "query audit/histograms --release a"),
        (0.5, "diff a b"),
        (0.5, "export a MODEL -o weights.safetensors"),
        (0.5, "export a MODEL --view folded -o weights.npz"),
        (0.8, "report a -o report.html"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_command_stays_below_its_bound(
    wide: Path, bound: float, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(wide)
    found = peak(*command.replace("MODEL", WIDE).split())
    print(f"{command}: {found:.2f} GB")  # noqa: T201  shown by -rP
    assert found < bound
    assert not (wide / ".tmp").exists()  # where DuckDB would spill without being told
