"""A release of several threat models: findings are of one of them, and never of two together."""

import csv
from pathlib import Path
from typing import Any

import pytest
from conftest import build_toy
from typer.testing import CliRunner

from builder.check.verify import verify
from builder.cli.main import app
from builder.cohort.registry import REQUIRED
from builder.compare.reference import of_release
from builder.errors import UsageError
from builder.release.reader import open_release
from builder.release.views import open_views
from builder.report.page import render
from builder.report.tables import open_tables, read
from builder.sql import catalog
from builder.sql.run import answer_query, run_query

LISTS = ("07_sparsity_by_model", "13_explained_variance_by_model")
"""Queries with a row a model, whatever its threat model: nothing is pooled."""
ON_THE_FULL_BASIS = ("14_divergence", "15_divergence_by_depth", "16_divergence_largest")
"""Coefficients of all models are on one basis, that of the release's own findings."""
EPS = {"Linf": "8/255", "L2": "0.5", "corruptions": ""}


def cohort(path: Path, *threat_models: str) -> Path:
    """Two toy networks, trained (in name) against each threat model, and standard."""
    nets = {"alpha": ("Toy-8", "toy_networks:Toy"), "beta": ("Toy-16", "toy_networks:wide")}
    with path.open("w", newline="") as f:
        out = csv.writer(f)
        out.writerow([*REQUIRED, "standard_network", "threat_model", "eps", "autoattack_acc"])
        for name, made_of in nets.items():
            for t in threat_models:
                out.writerow(
                    [name if t == "Linf" else f"{name}.{t}", "cifar10", "true", *made_of, "no.pt",
                     name, t, EPS[t], len(t) + len(name)]
                )  # fmt: skip
            out.writerow([name, "cifar10", "false", *made_of, "no.pt", "", "", "", ""])
    return path


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("threats")
    made = {"all": ("Linf", "L2", "corruptions"), "Linf": ("Linf",), "L2": ("L2",)}
    for name, threat_models in made.items():
        csv_file = cohort(folder / f"{name}.csv", *threat_models)
        outcome = build_toy(csv_file, folder / name)
        assert not outcome.failures and not outcome.problems
    return {name: folder / name for name in made}


Rows = list[dict[str, Any]]


def answers(release: Path, **params: str) -> dict[str, Rows]:
    """The answer of every finding, with the parameters it takes."""
    with open_views(open_release(release), threads=1) as con:
        if "threat_model" in params:
            con.execute("set variable threat_model = ?", [params["threat_model"]])
        return {q.name: run_query(con, q).rows() for q in catalog.list_findings()}


@pytest.fixture(scope="module")
def of_all(releases: dict[str, Path]) -> dict[str, Rows]:
    return answers(releases["all"])


def test_findings_are_those_of_the_linf_models_alone(
    releases: dict[str, Path], of_all: dict[str, Rows]
):
    alone = answers(releases["Linf"])
    for name, rows in alone.items():
        ids = {r["model_id"] for r in rows} if name in LISTS else set()
        kept = [r for r in of_all[name] if not ids or r["model_id"] in ids]
        assert kept == rows, name
    assert sum(map(bool, alone.values())) > 15  # most of them have an answer here
    assert len(of_all[LISTS[0]]) == 8


def test_another_threat_model_has_the_answers_of_its_own_release(
    releases: dict[str, Path], of_all: dict[str, Rows]
):
    asked, alone = answers(releases["all"], threat_model="L2"), answers(releases["L2"])
    for name in alone.keys() - set(LISTS) - set(ON_THE_FULL_BASIS):
        assert asked[name] == alone[name], name
    assert asked["11_explained_variance"] != of_all["11_explained_variance"]
    assert asked["14_divergence"] != of_all["14_divergence"] and asked["14_divergence"]


def test_a_threat_model_is_asked_for_by_parameter_and_one_that_is_missing_is_refused(
    releases: dict[str, Path], tmp_path: Path
):
    def asked(*params: str) -> str:
        out = tmp_path / "answer.csv"
        with out.open("wb") as f:
            answer_query(str(releases["all"]), "02_architectures", f, form="csv", params=params)
        return out.read_text()

    assert asked() == asked("threat_model=Linf") and asked("threat_model=L2")
    with pytest.raises(UsageError, match="has the threat model 'l2'") as e:
        asked("threat_model=l2")
    assert e.value.hint == "it has L2, Linf, corruptions."


def test_bases_are_of_one_threat_model_each_and_follow_from_the_layers(releases: dict[str, Path]):
    release = open_release(releases["all"])
    bases = set(release.table("pca").to_pydict()["basis"])
    unions = {b for b in bases if "-" not in b}
    assert unions == {"full", "robust", "standard", *(
        f"{kind}:{t}" for kind in ("full", "robust") for t in ("L2", "corruptions"))}  # fmt: skip
    assert verify(releases["all"], full=True) == []


def test_the_first_layer_of_another_threat_model_is_null_with_its_reason(
    releases: dict[str, Path],
):
    rows = open_release(releases["all"]).table("first_layer").to_pylist()
    for row in rows:
        other = next((t for t in ("L2", "corruptions") if row["model_id"].endswith(t)), None)
        if other:
            assert row["reason"].startswith(f"trained against {other}: ")
            assert row["eps"] is row["response_post"] is None
        else:
            assert row["reason"] is None and row["eps"] == 8 / 255
    assert len({r["model_id"] for r in rows}) == 8


def test_a_network_is_compared_with_the_linf_models_alone(releases: dict[str, Path]):
    mixed, alone = (of_release(open_release(releases[name])) for name in ("all", "Linf"))
    assert mixed.sparsity["robust"].tolist() == alone.sparsity["robust"].tolist()
    assert {k: b.q1 for k, b in mixed.boxes.items()} == {k: b.q1 for k, b in alone.boxes.items()}
    assert "(2 robust, 2 standard models, 2 pairs)" in mixed.name


SCOPE = "of the 2 robust models against Linf, not of the others (2 L2, 2 corruptions)"


def test_findings_did_not_say_whose_they_are(releases: dict[str, Path]):
    said = {
        name: CliRunner().invoke(app, ["findings", "--release", str(releases[name])]).stderr
        for name in ("all", "Linf")
    }
    assert SCOPE in " ".join(said["all"].split()) and "models against" not in said["Linf"]


def test_the_page_draws_the_linf_models_and_says_so(releases: dict[str, Path]):
    page, alone = (render(str(releases[name])) for name in ("all", "Linf"))
    assert SCOPE in page and "robust models against" not in alone
    with open_tables(open_release(releases["all"])) as con:
        drawn = read(con, "sparsity_summary").to_pylist()
    with open_tables(open_release(releases["Linf"])) as con:
        assert drawn == read(con, "sparsity_summary").to_pylist()
