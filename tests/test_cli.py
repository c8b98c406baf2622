"""The command line as people and programs meet it: output, streams, exit codes, no tracebacks."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import write_cohort

import builder.cli.main  # registers the commands
from builder.cli.app import PANELS, app, bench
from builder.errors import UsageError
from builder.release.reader import open_release

TESTS = Path(__file__).parent


def run(*args: object, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "builder", *map(str, args)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(TESTS), "NO_COLOR": "1", **env},
    )


COMMANDS = [(c.callback.__name__,) for c in app.registered_commands if c.callback] + [
    ("bench", *([] if not c.name else [c.name])) for c in bench.registered_commands
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help_with_an_example(command: tuple[str, ...]):
    done = run(*command, "--help", COLUMNS="80")
    assert done.returncode == 0, done.stderr
    assert "Example: builder" in done.stdout
    assert "…" not in done.stdout  # no option's name is cut off


def test_what_a_command_writes_is_named_by_out_everywhere():
    options = {
        option
        for command in COMMANDS
        for option in re.findall(r"(--out\w*) ", run(*command, "--help", COLUMNS="80").stdout)
    }
    assert options == {"--out"}


def test_the_help_groups_the_commands_in_the_order_of_the_flow():
    text = run("--help").stdout
    titles = [p for line in text.splitlines() for p in (*PANELS, "Commands") if f"─ {p} ─" in line]
    assert titles == list(PANELS)  # and none in a panel of no name
    names = re.findall(r"^│ ([a-z]+) ", text, flags=re.M)
    assert names == ["plan", "build", "cohort", "train", "measure", "verify", "diff", "query",
                     "findings", "score", "reference", "report", "figures", "record", "publish",
                     "export", "bench"]  # fmt: skip
    assert "Exit codes: 0 good, 1 findings or failures, 2 wrong usage, 4 network" in text


def test_plan_prints_one_json_object_with_tables_named_as_documented(toy_cohort: Path):
    done = run("plan", "--cohort", toy_cohort, "--json", "--layers")
    plan = json.loads(done.stdout)
    assert done.returncode == 0 and done.stderr == ""
    assert plan["totals"]["n_filters"] == 1744
    assert len(plan["models"]) == 4 and len(plan["layers"]) == 12


def test_plan_prints_tab_separated_values_for_programs(toy_cohort: Path):
    lines = run("plan", "--cohort", toy_cohort).stdout.splitlines()
    assert lines[0].split("\t")[:2] == ["model_id", "architecture"]
    assert len(lines) == 5


def test_build_verify_and_the_rest_of_a_releases_life(toy_cohort: Path, tmp_path: Path):
    out = tmp_path / "out"
    options = ["--cohort", toy_cohort, "--out", out, "--weights", "seeded:0", "--no-first-layer"]
    built = run("build", *options)
    assert built.returncode == 0, built.stderr
    assert built.stdout == ""
    assert "[4/4] cifar10-standard-beta: done" in built.stderr
    assert "SYNTHETIC: weights are seeded:0" in built.stderr
    again = run("build", *options)
    assert again.returncode == 0 and "already complete" in again.stderr

    good = run("verify", out, "--full", "--json")
    assert good.returncode == 0, good.stdout
    assert json.loads(good.stdout)["findings"] == []
    answer = run("query", "model_counts", "--release", out, "--format", "json")
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout)
    found = run("findings", "--release", out, "--json")
    assert found.returncode == 0, found.stderr
    assert len(json.loads(found.stdout)["findings"]) > 10
    weights = tmp_path / "w.npz"
    exported = run("export", out, "cifar10-robust-alpha", "-o", weights, "--view", "folded")
    assert exported.returncode == 0 and weights.exists(), exported.stderr
    bent = run("export", out, "cifar10-robust-alpha", "-o", weights, "--view", "bent")
    assert bent.returncode == 2 and "unknown view 'bent'" in bent.stderr

    recorded = run("record", out, "--folder", tmp_path / "release")
    version = tmp_path / "release" / "toy-v0.1.0"
    assert recorded.returncode == 0, recorded.stderr
    assert len(list((version / "answers").glob("*.csv"))) > 10
    assert (version / "manifest.json").read_bytes() == (out / "manifest.json").read_bytes()
    (version / "NOTES.md").write_text("mine")
    assert run("record", out, "--folder", tmp_path / "release").returncode == 0
    assert (version / "NOTES.md").read_text() == "mine"

    (out / "README.md").write_text("changed")
    bad = run("verify", out)
    assert bad.returncode == 1
    assert bad.stdout.startswith("files: README.md: has changed")


def test_sql_behind_a_comment_is_no_option(release: Path):
    done = run("query", "--format", "csv", "-- how many\nselect 4 as n", "--release", release)
    assert (done.returncode, done.stdout) == (0, "n\n4\n"), done.stderr
    typo = run("query", "sparsity_overall", "--releas", release)
    assert typo.returncode == 2 and "No such option" in typo.stderr


def test_tables_in_a_pipe_are_tab_separated(release: Path):
    listed = run("query", "--list").stdout.splitlines()
    assert listed[0] == "query\ttitle" and listed[1] == "01_model_counts\tModels and filters"
    found = run("findings", "--release", release).stdout.splitlines()
    assert found[0].split("\t") == ["verdict", "query", "origin", "paper", "release", "basis"]
    assert {line.count("\t") for line in found} == {5}


def test_a_model_whose_file_is_missing_is_told_as_the_users_mistake(tmp_path: Path):
    cohort = write_cohort(tmp_path / "c.csv", {"cifar10-robust-alpha": tmp_path / "none.pt"})
    done = run("build", "--cohort", cohort, "--out", tmp_path / "out")
    assert done.returncode == 2
    assert "failed: cifar10-robust-alpha" in done.stderr and "none.pt" in done.stderr
    assert "nothing was released" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_reason_that_models_share_was_told_once_for_each_and_named_it_twice(tmp_path: Path):
    address = "http://weights.invalid/w.pt"
    names = ("cifar10-robust-alpha", "cifar10-standard-beta")
    cohort = write_cohort(tmp_path / "c.csv", dict.fromkeys(names, address))
    done = run("build", "--cohort", cohort, "--out", tmp_path / "out", "-q")
    assert done.returncode == 4
    assert done.stderr.count("weights.invalid does not resolve") == 1
    assert [done.stderr.count(name) for name in names] == [1, 1]


def test_a_first_layer_that_could_not_be_measured_was_told_in_its_table_alone(tmp_path: Path):
    cohort = write_cohort(tmp_path / "c.csv")
    cohort.write_text(cohort.read_text().replace("toy_networks:wide", "toy_networks:OneLogit"))
    out = tmp_path / "out"
    done = run("build", "--cohort", cohort, "--out", out, "--weights", "seeded:0", "-q")
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "first layer" in line]
    assert line.startswith(
        "first layer not measured: cifar10-robust-beta, cifar10-standard-beta: "
        "pgd: OneLogit on 32 x 32 images"
    )
    assert "expected logits (n, k), k > 1, found (4, 1)" in line
    assert run("verify", out, "--full").returncode == 0  # the filters are kept


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["build", "--cohort", "nope"], "unknown cohort 'nope'"),
        (["build", "--models", "nobody-*", "--out", "x"], "no model of cohort 'mini' matches"),
        (["build", "--weights", "random"], "expected 'checkpoints' or 'seeded:N'"),
        (["build", "--device", "cuda"], "no CUDA device"),
        (["verify", "nowhere"], "nowhere is not a release"),
        (["query", "sparsity_overal"], "did you mean 06_sparsity_overall"),
        (["query", "sparsity_overall", "--release", "nowhere"], "nowhere"),
        (["findings", "--release", "nowhere"], "nowhere"),
        (["train", "mini", "--only", "nobody"], "no member of the mini zoo matches"),
        (["export", "nowhere", "m", "-o", "x.npz"], "nowhere"),
        (["diff", "nowhere", "nowhere"], "nowhere"),
        (["record", "nowhere"], "nowhere"),
        (["nonsense"], "No such command"),
    ],
    ids=" ".join,
)
def test_a_users_mistake_is_one_message_and_exit_code_2(
    tmp_path: Path, args: list[str], said: str, monkeypatch: pytest.MonkeyPatch
):
    import torch

    if "cuda" in args and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    monkeypatch.chdir(tmp_path)
    done = run(*args)
    assert done.returncode == 2, done.stderr
    assert said in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def shell(line: str) -> subprocess.CompletedProcess[str]:
    """A line of bash, in which $builder is the command line."""
    return subprocess.run(
        ["bash", "-c", f"builder='{sys.executable} -m builder'; {line}"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(TESTS), "NO_COLOR": "1", "PYTHONUNBUFFERED": ""},
    )


@pytest.mark.parametrize(
    "command",
    [
        "plan --cohort {cohort}",
        "findings --release {release} --json",
        "query - --release {release} --format csv <<< 'select * from range(1000000)'",
        "query - --release {release} --format json <<< 'select 1 as one'",
    ],
)
def test_a_reader_that_leaves_is_no_error(toy_cohort: Path, release: Path, command: str):
    line = command.format(cohort=toy_cohort, release=release)
    done = shell(f"$builder {line} | (exec <&-; sleep 0.1); exit ${{PIPESTATUS[0]}}")
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert "Broken" not in done.stderr


@pytest.mark.parametrize("form", ["csv", "json", "table", "parquet"])
def test_a_full_disk_under_the_output_is_one_message(release: Path, form: str):
    done = shell(f"$builder query model_counts --release {release} --format {form} > /dev/full")
    assert done.returncode == 1
    assert done.stderr == "error: standard output: No space left on device.\n"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["export", "RELEASE", "cifar10-robust-alpha", "-o", "FOLDER.npz"], "Is a directory"),
        (["export", "RELEASE", "cifar10-robust-alpha", "-o", "/proc/x.npz"], "cannot write /proc"),
        (["record", "RELEASE", "--folder", "/proc/x"], "/proc/x: No such file"),
        (["report", "RELEASE", "-o", "/proc/x.html"], "error: /proc/x.html: No such file"),
        (["figures", "RELEASE", "-o", __file__], f"{__file__}: Not a directory"),
    ],
    ids=" ".join,
)
def test_a_file_that_cannot_be_written_is_one_message(
    release: Path, tmp_path: Path, args: list[str], said: str
):
    folder = tmp_path / "folder.npz"
    folder.mkdir()
    names = {"RELEASE": release, "FOLDER.npz": folder}
    done = run(*(names.get(a, a) for a in args))
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and said in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert list(folder.iterdir()) == []


FAULT = """
import sys
from builder.cli.main import main
from builder.sql import catalog
def load(name):
    raise {}
catalog.load = load
sys.argv = ["builder", *sys.argv[1:], "query", "any"]
main()
"""


def at_fault(raised: str, *options: str) -> subprocess.CompletedProcess[str]:
    """`builder query` with an error planted in it."""
    command = [sys.executable, "-c", FAULT.format(raised), *options]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize(
    "raised",
    ["KeyError('oops')", "AssertionError('oops')", "ImportError('oops')"],
)
def test_a_fault_of_ours_is_owned_without_a_traceback(raised: str):
    done = at_fault(raised)
    assert done.returncode == 1 and done.stdout == ""
    assert f"a fault of builder {builder.__version__}, not of yours" in done.stderr
    assert raised.partition("(")[0] in done.stderr and "oops" in done.stderr
    assert "--debug" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("raised", ["KeyError('oops')", "OSError(13, 'oops', 'file')"])
def test_debug_shows_the_traceback_of_a_fault_and_of_a_mistake(raised: str):
    done = at_fault(raised, "--debug")
    assert done.returncode == 1
    assert "Traceback" in done.stderr and "in load" in done.stderr
    assert "error: " in done.stderr.splitlines()[-1] or "--debug" in done.stderr.splitlines()[-1]


def test_debug_shows_the_traceback_of_a_model_that_failed(tmp_path: Path):
    cohort = write_cohort(tmp_path / "c.csv", {"cifar10-robust-alpha": tmp_path / "none.pt"})
    for options, shown in ((["--debug"], True), ([], False)):
        done = run(*options, "build", "--cohort", cohort, "--out", tmp_path / "out")
        assert ("Traceback" in done.stderr) == shown, done.stderr
        assert "failed: cifar10-robust-alpha" in done.stderr


INTERRUPTED = """
import os, signal, sys
from builder.cli.main import main
import {module} as module
def interrupted(*args, **options):
    {how}
module.{function} = interrupted
sys.argv = ["builder", *{args}]
main()
"""


def interrupt(module: str, function: str, args: list[str], how: str = "raise KeyboardInterrupt"):
    """A command, interrupted where it calls a function."""
    code = INTERRUPTED.format(module=module, function=function, args=args, how=how)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 130, done.stderr
    return done.stderr


@pytest.mark.parametrize(
    "how", ["os.kill(os.getpid(), signal.SIGINT)", "raise RuntimeError('Query interrupted')"]
)
def test_an_interruption_is_told_and_exits_with_130(how: str):
    """DuckDB turns an interruption into a RuntimeError of its own."""
    assert interrupt("builder.sql.catalog", "load", ["query", "any"], how) == "interrupted.\n"


@pytest.mark.parametrize(
    ("args", "module", "function", "said"),
    [
        (["build", "-q"], "building.run", "build", "the same command goes on from where it was"),
        (["build", "-q", "--fresh"], "building.run", "build", "without --fresh, the same command"),
        (["train", "mini", "-q"], "training.members", "train_members", "the same command goes on"),
        (["reference", "nowhere"], "paper.reference", "write_reference", "interrupted."),
        (["verify", "out"], "check.verify", "verify", "interrupted."),
        (["plan"], "network.plan", "make_plan", "interrupted."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_command_that_starts_over_said_that_it_goes_on(
    args: list[str], module: str, function: str, said: str
):
    assert said in interrupt(f"builder.{module}", function, args)


@pytest.mark.parametrize(
    "args",
    [
        ["findings", "--release", "out/mini"],
        ["query", "model_counts"],
        ["diff", "out/mini", "out/mini"],
        ["export", "org/name", "--croissant"],
    ],
    ids=" ".join,
)
def test_a_folder_that_is_not_there_is_no_address_on_the_hub(
    tmp_path: Path, args: list[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    done = run(*args, HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 2, done.stderr
    assert "there is no folder" in done.stderr and "hf://datasets/ORG/NAME@TAG" in done.stderr


@pytest.mark.parametrize("command", [("verify",), ("publish", "--repo-id", "a/b")], ids=" ".join)
@pytest.mark.parametrize("address", ["hf://datasets/org/name@v0.1.0", "org/name@a/b"])
def test_a_command_that_reads_a_folder_took_an_address_on_the_hub_for_one(
    command: tuple[str, ...], address: str
):
    done = run(*command, address)
    assert done.returncode == 2
    assert f"{address} is on the Hub" in done.stderr
    tag = address.partition("@")[2]
    assert f"hf download org/name --repo-type dataset --revision {tag} --local" in done.stderr


@pytest.mark.parametrize("address", ["hf://datasets/org/name", "org/name@v0.1.0"])
def test_an_address_on_the_hub_is_asked_for(address: str):
    pytest.importorskip("huggingface_hub")
    done = run("findings", "--release", address, HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 4, done.stderr
    assert "cannot open hf://datasets/org/name" in done.stderr


def test_a_wrong_option_is_typers_own_message_and_exit_code_2():
    assert run("--version").stdout.startswith("builder ")
    wrong = run("verify", "--nope")
    assert wrong.returncode == 2 and "No such option: --nope" in wrong.stderr


WITHOUT_TORCH = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "torchvision", "timm", "robustbench", "requests"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
from builder.cli.main import main
sys.argv = ["builder", *sys.argv[1:]]
main()
"""


@pytest.mark.parametrize(
    "args",
    [
        ["--help"],
        ["verify", "RELEASE", "--full"],
        ["query", "sparsity_overall", "--release", "RELEASE"],
        ["query", "--list"],
        ["findings", "--release", "RELEASE"],
        ["diff", "RELEASE", "RELEASE"],
        ["export", "RELEASE", "--croissant"],
    ],
    ids=" ".join,
)
def test_commands_right_of_the_release_run_without_torch(release: Path, args: list[str]):
    args = [str(release) if a == "RELEASE" else a for a in args]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *args], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_a_command_that_needs_torch_says_what_to_install():
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, "plan"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "robust-filter-lens[build]" in done.stderr and "Traceback" not in done.stderr


def test_an_address_without_the_client_of_object_storage_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(UsageError, match="needs obstore") as e:
        open_release("s3://bucket/prefix")
    assert "robust-filter-lens[s3]" in e.value.hint


@pytest.mark.parametrize("command", ["publish", "record"])
def test_a_command_that_reads_folders_says_so_of_an_address_in_object_storage(command: str) -> None:
    done = run(command, "s3://bucket/prefix")
    assert done.returncode == 2 and "s3://bucket/prefix is in object storage" in done.stderr
