"""The wheel, installed into environments of its own, away from the checkout. Needs PyPI."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import builder.cli.main  # registers the commands
from builder.cli.app import app, bench

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent
COMMANDS = [[c.callback.__name__] for c in app.registered_commands if c.callback] + [
    ["bench", c.name] for c in bench.registered_commands if c.name
]


def pip(python: str | Path, *args: object) -> None:
    """Run pip; skip where there is no package index."""
    command = [python, "-m", "pip", "--disable-pip-version-check", "-q", *map(str, args)]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if "NewConnectionError" in done.stderr or "Temporary failure in name" in done.stderr:
        pytest.skip(f"no package index: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip(sys.executable, "wheel", "--no-deps", "-w", folder, ROOT)
    (found,) = folder.glob("robust_filter_lens-*.whl")
    return found


class Environment:
    """A virtual environment with the wheel in it; `run` works in an empty folder beside it."""

    def __init__(self, folder: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
        self.scripts = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
        self.python = self.scripts / "python"
        self.work = folder / "work"
        self.work.mkdir()

    def borrow_packages(self) -> None:
        """Import from the environment of the tests what this one lacks: torch is gigabytes."""
        code = "import sysconfig; print(sysconfig.get_path('purelib'))"
        site = subprocess.run([self.python, "-c", code], capture_output=True, text=True, check=True)
        lent = [p for p in sys.path if Path(p).name == "site-packages"]
        (Path(site.stdout.strip()) / "borrowed.pth").write_text("\n".join(lent))

    def run(self, *args: object) -> subprocess.CompletedProcess[str]:
        name, *rest = map(str, args)
        return subprocess.run(
            [str(self.scripts / name), *rest],
            capture_output=True,
            text=True,
            cwd=self.work,
            env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        )

    def good(self, *args: object) -> str:
        done = self.run(*args)
        assert done.returncode == 0, f"{args}: {done.stderr}"
        return done.stdout


LOCK = ROOT / "requirements.lock"


@pytest.fixture(scope="session")
def base(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """The base install, from the package index."""
    made = Environment(tmp_path_factory.mktemp("base"))
    pip(made.python, "install", "-c", LOCK, wheel)
    return made


@pytest.fixture(scope="session")
def hub(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """The install of those who publish."""
    made = Environment(tmp_path_factory.mktemp("hub"))
    pip(made.python, "install", "-c", LOCK, f"{wheel}[hub]")
    return made


@pytest.fixture(scope="session")
def build(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """The install of those who build; torch goes first and alone, as in the Makefile."""
    made = Environment(tmp_path_factory.mktemp("build"))
    lines = LOCK.read_text().splitlines()
    pip(made.python, "install", *(p for p in lines if p.startswith(("torch==", "torchvision=="))))
    pip(made.python, "install", "-c", LOCK, f"{wheel}[build]")
    return made


def test_the_wheel_carries_its_data_and_nothing_of_the_checkout(wheel: Path):
    names = set(zipfile.ZipFile(wheel).namelist())
    zoo = {f"builder/zoo/{p.name}" for p in (ROOT / "builder/zoo").iterdir() if p.is_file()}
    queries = {f"builder/{p.relative_to(ROOT).as_posix()}" for p in ROOT.glob("queries/**/*.sql")}
    tables = {p.relative_to(ROOT).as_posix() for p in ROOT.glob("builder/*/*.csv")}
    assert len(zoo) > 5 and len(queries) > 20 and len(tables) > 3
    assert zoo | queries | tables <= names
    assert {"builder/dataset_card.md", "robust_filter_lens/py.typed"} <= names
    tops = {name.split("/")[0] for name in names}
    assert {t for t in tops if not t.endswith(".dist-info")} == {"builder", "robust_filter_lens"}


@pytest.mark.parametrize("environment", ["base", "hub", "build"])
def test_every_command_has_help(environment: str, request: pytest.FixtureRequest):
    made: Environment = request.getfixturevalue(environment)
    assert str(made.scripts.parent) in made.good("builder", "--version")
    for command in COMMANDS:
        assert "Example: builder" in made.good("builder", *command, "--help"), command
    assert made.good("robust-filter-lens", "--version") == made.good("builder", "--version")


@pytest.mark.parametrize("environment", ["base", "hub"])
def test_an_install_without_torch_asks_and_checks(environment: str, request: pytest.FixtureRequest):
    made: Environment = request.getfixturevalue(environment)
    made.good("builder", "reference", "reference")
    made.good("builder", "verify", "reference")
    found = json.loads(made.good("builder", "findings", "--release", "reference", "--json"))
    assert len(found["findings"]) > 20
    assert made.good("builder", "query", "sparsity_by_model", "--release", "reference")
    made.good("builder", "diff", "reference", "reference")
    code = "import robust_filter_lens as r; print(r.open_release('reference').manifest['name'])"
    assert made.good("python", "-c", code) == "robust-filter-lens\n"
    planned = made.run("builder", "plan")
    assert planned.returncode == 2 and "robust-filter-lens[build]" in planned.stderr


def test_the_build_install_plans_and_builds_the_mini_release(build: Environment):
    planned = json.loads(build.good("builder", "plan", "--json"))
    build.good("builder", "build")
    build.good("builder", "verify", "out/mini")
    findings = json.loads(build.good("builder", "findings", "--json"))["findings"]
    assert findings and not [f for f in findings if f["verdict"] == "fails"]
    code = "import robust_filter_lens as r; print(r.open_release('out/mini').manifest['totals'])"
    assert str(planned["totals"]["n_filters"]) in build.good("python", "-c", code)


TOOL = "builder-tool==0.6.0"  # its folder and its command are called `builder`, too


def test_beside_builder_tool_installed_after_us_only_what_needs_no_folder_works(
    wheel: Path, tmp_path: Path
):
    made = Environment(tmp_path)
    made.borrow_packages()
    pip(made.python, "install", "--no-deps", wheel)
    pip(made.python, "install", "--no-deps", TOOL)
    code = "import robust_filter_lens as r; print(r.__version__, 'open_release' in dir(r)); help(r)"
    said = made.good("python", "-c", code)
    assert said.startswith(f"{builder.__version__} True") and "builder-tool" in said
    for command in (["python", "-c", "import robust_filter_lens as r; r.Release"],
                    ["robust-filter-lens", "--help"]):  # fmt: skip
        done = made.run(*command)
        assert done.returncode == 1
        assert "--force-reinstall robust-filter-lens" in done.stderr.splitlines()[-1]


def test_installed_over_builder_tool_everything_of_ours_works(wheel: Path, tmp_path: Path):
    made = Environment(tmp_path)
    made.borrow_packages()
    pip(made.python, "install", "--no-deps", TOOL)
    pip(made.python, "install", "--no-deps", wheel)
    made.good("builder", "reference", "reference")
    made.good("robust-filter-lens", "verify", "reference")
    made.good("python", "-c", "import robust_filter_lens as r; r.open_release('reference')")
