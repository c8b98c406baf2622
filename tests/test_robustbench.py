"""The cohort robustbench: every entry of the installed registry, with its facts and its partner."""

import csv
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from conftest import DATA, build_toy
from typer.testing import CliRunner

from builder.cli.main import app
from builder.cohort.registry import load_cohort, questions
from builder.errors import UsageError
from builder.network.plan import make_plan, plan_json, plan_network
from builder.release.reader import open_release
from builder.robustbench.make import make_cohort, registry, write
from builder.robustbench.model_info import COLUMNS, TABLE, read_checkout, read_table
from builder.sources.addresses import resolve
from builder.training.members import counterparts, missing_counterparts

COHORT, PAPER = load_cohort("robustbench"), load_cohort("paper")
BY_ID = {m.model_id: m for m in COHORT.models}


def entries() -> set[tuple[str, str, str]]:
    """Of the registry, those that the cohort or its list of left-out models names."""
    found = {(m.dataset, m.threat_model, m.network.removesuffix(f".{m.threat_model}"))
             for m in (*COHORT.models, *COHORT.left_out) if m.threat_model}  # fmt: skip
    for m in COHORT.models:
        if not m.robust and m.title:  # RobustBench's own, listed under several threat models
            found |= {e for e in registry() if (e[0], e[2]) == (m.dataset, m.network)}
    return found


def test_every_entry_of_the_installed_registry_is_a_model_or_left_out_with_its_reason():
    assert entries() == set(registry()) and len(registry()) == 206
    counts = Counter((m.dataset, m.threat_model) for m in COHORT.models if m.robust)
    assert counts == {
        ("cifar10", "Linf"): 73,
        ("cifar10", "L2"): 20,
        ("cifar10", "corruptions"): 16,
        ("cifar100", "Linf"): 35,
        ("cifar100", "corruptions"): 12,
        ("imagenet", "Linf"): 16,
        ("imagenet", "corruptions"): 8,
    }
    assert len(COHORT.left_out) == 20 and all(m.reason.endswith(".") for m in COHORT.left_out)
    assert len(COHORT.models) == 227 and len(COHORT.pairs) == 137
    assert questions(COHORT) == []


@pytest.mark.slow
def test_the_shipped_files_are_what_the_installed_registry_gives(tmp_path: Path):
    facts = read_table()
    write(make_cohort(facts, lambda *progress: None), facts, tmp_path)
    for made in tmp_path.rglob("*.csv"):
        assert made.read_text() == (TABLE.parents[1] / made.relative_to(tmp_path)).read_text()


def test_the_checkpoint_of_every_entry_is_the_registrys():
    for m in COHORT.models:
        address = resolve(m)
        kind, _, rest = m.checkpoint.partition(":")
        if kind == "robustbench":
            ids = registry()[tuple(rest.split("/"))]  # type: ignore[index]
            assert ids not in ("", "None") and all(
                r.address.rpartition("id=")[2] in ids for r in address.remote
            )


def test_the_papers_models_have_the_same_content_and_partners():
    for robust, standard in PAPER.pairs:
        ours = BY_ID[robust.model_id]
        assert (ours.constructor, ours.checkpoint) == (robust.constructor, robust.checkpoint)
        assert (ours.standard_network, ours.architecture, ours.threat_model) == (
            standard.network, robust.architecture, "Linf"
        )  # fmt: skip
        assert BY_ID[standard.model_id] == standard
    assert len(PAPER.pairs) == 71


def test_the_papers_models_give_the_same_filters_under_seeded_weights(tmp_path: Path):
    chosen = "cifar10-robust-Andriushchenko2020Understanding,cifar10-robust-Addepalli2021*RN18"
    hashes = []
    for name in ("paper", "robustbench"):
        outcome = build_toy(name, tmp_path / name, models=chosen, first_layer=False)  # type: ignore[arg-type]
        assert not outcome.failures and not outcome.problems
        models = open_release(tmp_path / name).table("models").to_pydict()
        hashes.append(dict(zip(models["model_id"], models["filters_hash"], strict=True)))
    assert hashes[0] == hashes[1] and len(hashes[0]) == 2


@pytest.mark.slow
def test_a_pair_runs_the_same_graph_whatever_its_names():
    plan = make_plan(COHORT.select("imagenet-*,cifar100-*"), lambda *progress: None)
    assert not plan.failures
    graphs = {p.spec.model_id: p.graph for p in plan.models}
    for robust, standard in plan.cohort.pairs:
        assert graphs[robust.model_id] == graphs[standard.model_id], robust.model_id
    xcit = BY_ID["imagenet-robust-Debenedetti2022Light_XCiT-S12"]
    assert xcit.standard_network == "xcit_small_12_p16_224.fb_in1k"


def test_models_without_a_standard_member_are_told_the_command_that_trains_it():
    plan = make_plan(COHORT.select("*Kireev*,*Rice2020*.L2,*XCiT-M12"), lambda *progress: None)
    found = {m["model_ids"][0]: m for m in missing_counterparts(plan, "robustbench")}
    rice = found["cifar10-robust-Rice2020Overfitting.L2"]
    assert rice["command"] == f"builder train {rice['model_ids'][0]} --cohort robustbench"
    assert len(rice["model_ids"]) == 6  # Kireev's five run the same network
    (recipe,) = counterparts(COHORT, rice["command"].split()[2])
    assert recipe.name == "cifar10-standard-Rice2020Overfitting.L2"
    unread = found["imagenet-robust-Debenedetti2022Light_XCiT-M12"]
    assert unread["command"] is None and "not imagenet" in unread["reason"]


def test_the_plan_counts_by_threat_model_and_says_what_is_left_out():
    chosen = COHORT.select("cifar10-*Rony2019*,cifar10-*-Carmon2019*,cifar10-*AugMix_WRN*")
    found = plan_json(make_plan(chosen, lambda *progress: None), layers=False)
    rows = {
        r["threat_model"]: (r["n_models"], r["n_pairs"]) for r in found["totals"]["by_threat_model"]
    }
    assert rows == {"Linf": (1, 1), "L2": (1, 1), "corruptions": (1, 0)}
    whole = plan_json(make_plan(COHORT.select("*Carmon*"), lambda *p: None), layers=False)
    assert whole["left_out"] == []  # of a selection: they are of the whole cohort


def test_numbers_are_numbers_and_unknown_is_null():
    sehwag = BY_ID["cifar10-robust-Sehwag2021Proxy"]
    assert (sehwag.clean_acc, sehwag.autoattack_acc) == (86.68, 60.27)  # RobustBench's of today
    kang = BY_ID["cifar10-robust-Kang2021Stable"]
    assert (kang.unreliable, kang.external_acc) == (True, 64.2)
    deck = BY_ID["cifar10-robust-Diffenderfer2021Winning_LRR_CARD_Deck.corruptions"]
    assert (deck.eps, deck.autoattack_acc, deck.n_forward_passes) == (None, None, 6)
    assert (BY_ID["imagenet-standard-AlexNet"].corruptions_mce, deck.corruptions_acc) == (
        100,
        92.78,
    )
    standard = BY_ID["cifar10-standard-Standard"]
    assert (standard.threat_model, standard.eps, standard.corruptions_acc) == (None, None, 73.46)


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no reference data in {DATA}")
def test_the_projects_facts_are_robustbenchs():
    def known(text: str) -> str:
        text = " ".join(text.replace("<br>", " ").split())
        return "" if text in ("null", "N/A") else text.lower()

    theirs = {}
    with (DATA / "robustbench" / "model_info.csv").open(newline="") as f:
        for row in csv.DictReader(f):
            theirs[row["dataset"], row["threat_model"], row["network"]] = row
    ours = read_table()
    assert ours.keys() == registry().keys()
    for entry, row in ours.items():
        for column in COLUMNS[:-1]:
            assert row[column].lower() == known(theirs[entry][column]), (entry, column)


def checkout(folder: Path, **changed: object) -> Path:
    """A git checkout with the JSON file of one entry, and its facts changed."""
    info = {"link": "https://a.b", "name": "T", "authors": "A", "additional_data": False,
            "number_forward_passes": 1, "dataset": "cifar10", "venue": "arXiv,<br>Jun 2024",
            "architecture": "WideResNet-28-10", "eps": None, "clean_acc": "95.49",
            "corruptions_acc_2d": "21.12", "footnote": None, **changed}  # fmt: skip
    path = folder / "model_info" / "cifar10" / "L2" / "New2030.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(info))
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "facts"]):
        author = ["-c", "user.name=T", "-c", "user.email=t@example.org"]
        subprocess.run(["git", "-C", str(folder), *author, *command], check=True)
    return folder / "model_info"


def test_facts_of_a_newer_checkout_are_read_with_its_commit(tmp_path: Path):
    entry = ("cifar10", "L2", "New2030")
    folder = checkout(tmp_path, unreliable=True)
    (facts,) = read_checkout(folder, [entry], {}).values()
    assert (facts["title"], facts["venue"], facts["eps"]) == ("T", "arXiv, Jun 2024", "")
    assert (facts["unreliable"], facts["additional_data"], facts["external"]) == (
        "true",
        "false",
        "",
    )
    assert (facts["corruptions_acc"], facts["license"], len(facts["commit"])) == ("21.12", "", 7)


def test_a_checkout_without_a_model_or_without_git_is_one_message(tmp_path: Path):
    with pytest.raises(UsageError, match="no folder of a git checkout"):
        read_checkout(tmp_path, [("cifar10", "L2", "New2030")], {})
    folder = checkout(tmp_path / "clone")
    with pytest.raises(UsageError, match=r"cannot read .*Linf/New2030.json: No such file"):
        read_checkout(folder, [("cifar10", "Linf", "New2030")], {})
    with pytest.raises(UsageError, match="no facts about 206 models of the installed robustbench"):
        make_cohort({}, lambda *progress: None)


def test_another_cohort_is_made_by_no_command():
    done = subprocess.run(
        [sys.executable, "-m", "builder", "cohort", "paper"], capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stdout == ""
    assert "'paper' is no cohort that a command makes; expected robustbench." in done.stderr


@pytest.mark.parametrize(
    ("constructor", "dataset", "n_layers"),
    [
        ("robustbench:cifar10/Amini2024MeanSparse_Ra_WRN_70_16", "cifar10", 143),
        ("robustbench:cifar10/Chen2020Adversarial", "cifar10", 51),
        ("robustbench:cifar100/corruptions/Diffenderfer2021Winning_LRR_CARD_Deck", "cifar100", 102),
        ("robustbench:imagenet/Singh2023Revisiting_ConvNeXt-T-ConvStem", "imagenet", 2),
        ("robustbench:imagenet/Singh2023Revisiting_ViT-S-ConvStem", "imagenet", 4),
        ("robustbench.model_zoo.architectures.alexnet:alexnet_imagenet_corruptions", "imagenet", 3),
    ],
)
def test_networks_that_need_care_are_traced(constructor: str, dataset: str, n_layers: int):
    assert sum(c.is_3x3 for c in plan_network(constructor, dataset).convs) == n_layers


@pytest.mark.slow
def test_a_network_with_an_equation_solver_is_run_on_the_cpu():
    network = plan_network("robustbench:cifar10/Kang2021Stable", "cifar10")
    assert sum(c.is_3x3 for c in network.convs) == 67


def test_a_file_where_the_folder_should_be_is_told_before_anything_is_traced(tmp_path: Path):
    (tmp_path / "cohort").write_text("mine")
    done = CliRunner().invoke(app, ["cohort", "robustbench", "--out", str(tmp_path / "cohort")])
    assert isinstance(done.exception, UsageError), done.output
    assert "tracing" not in done.output
    assert (tmp_path / "cohort").read_text() == "mine"
