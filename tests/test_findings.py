"""Findings: on the reference release, on a small cohort, on cohorts that contradict the paper."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import duckdb
import pandas as pd
import pyarrow.parquet as pq
import pytest
import scipy.stats
import synthetic_release
from rich.console import Console

from builder import schema
from builder.cohort.registry import load_cohort
from builder.errors import UsageError
from builder.paper.published import read_published
from builder.paper.reference import published_moments, write_reference
from builder.release.manifest import write_manifest
from builder.release.moments import merge
from builder.release.reader import open_release
from builder.release.views import open_views
from builder.sql import catalog, findings, run
from builder.sql.findings import CONTRARY, FAILS, HOLDS, NOT_APPLICABLE, Finding

CHECKABLE_TODAY = {
    "01_model_counts",
    "02_architectures",
    "03_accuracy_by_pair",
    "04_accuracy_means",
    "05_accuracy_correlation",
    "06_sparsity_overall",
    "11_explained_variance",
    "12_basis_distance",
    "19_metric_correlation",
    "20_metric_correlation_by_architecture",
    "21_extra_data",
    "22_cifar10_cifar100",
    "25_paired_effects",
    "26_frequency_by_pair",
    "28_effective_rank",
}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("reference") / "release"
    write_reference(out)
    return out


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("small")
    return synthetic_release.write_release(root, synthetic_release.make_world())


def by_name(found: list[Finding]) -> dict[str, Finding]:
    return {f.query: f for f in found}


def answer(release: Path, name: str, **params: str) -> pd.DataFrame:
    with open_views(open_release(release)) as con:
        got = run.run_query(con, catalog.load(name), params)
        return pd.DataFrame(got.rows(), columns=got.schema.names)


def test_what_can_be_checked_without_checkpoints_holds(reference: Path) -> None:
    found = by_name(findings.examine(str(reference)))
    assert len(found) == len(catalog.list_findings())
    for name, finding in found.items():
        wanted = HOLDS if name in CHECKABLE_TODAY else NOT_APPLICABLE
        assert finding.verdict == wanted, finding
        assert finding.values_within == finding.values
    assert findings.exit_code(list(found.values())) == 0


def test_reference_numbers_meet_the_published_ones_to_the_last_digit(reference: Path) -> None:
    means = answer(reference, "accuracy_means")
    assert len(means) == 9 and (means.accuracy.round(2) == means.published).all()
    rho = answer(reference, "accuracy_correlation").set_index("dataset").spearman.round(4)
    assert rho.to_dict() == {"cifar10": 0.7080, "cifar100": 0.4608, "imagenet": 1.0}
    metric = answer(reference, "metric_correlation")
    sparsity = metric[metric.metric == "sparsity"].set_index("dataset").spearman.round(4)
    assert sparsity.to_dict() == {"cifar10": -0.2743, "cifar100": -0.2034, "imagenet": -0.1}
    overall = answer(reference, "sparsity_overall")
    overall = overall[overall.dataset == "all"].set_index("kind")
    assert overall.sparsity.round(4).to_dict() == {"robust": 0.0953, "standard": 0.3881}
    assert overall.n_sparse.to_dict() == {"robust": 58_681_469, "standard": 147_298_108}
    assert overall.as_printed.round(4).to_dict() == {"robust": 0.0945, "standard": 0.3948}
    extra = answer(reference, "extra_data").ratio.round(4).tolist()
    assert sorted(extra) == [0.2428, 0.4805, 35.8784]


def test_the_published_bases_hold_what_nobody_has_printed_of_frequency(reference: Path) -> None:
    pairs = answer(reference, "frequency_by_pair")
    assert len(pairs) == 71 and (pairs.constant_difference < 0).all()
    more = (pairs.order_2_difference > 0).groupby(pairs.dataset).sum()
    assert more.to_dict() == {"cifar10": 49, "cifar100": 17, "imagenet": 1}
    means = pairs.groupby("dataset").mean(numeric_only=True).round(3)
    assert means.robust_constant.tolist() == [0.367, 0.469, 0.420]
    assert means.standard_constant.tolist() == [0.648, 0.622, 0.476]
    assert means.robust_order_2.tolist() == [0.232, 0.172, 0.253]
    assert means.standard_order_2.tolist() == [0.107, 0.106, 0.267]
    shares = pairs[["robust_constant", "robust_order_1", "robust_order_2"]].sum(axis=1)
    assert (shares - 1).abs().max() < 1e-12


def test_effects_within_published_pairs_have_their_uncertainty(reference: Path) -> None:
    effects = answer(reference, "paired_effects")
    whole = effects[effects.architecture == "all"].set_index(["dataset", "metric"])
    assert whole.pairs.groupby("dataset").max().to_dict() == {
        "cifar10": 49, "cifar100": 17, "imagenet": 5,
    }  # fmt: skip
    first = whole.loc[("cifar10", "first_ratio")]
    assert (first.below, first.above, first.p_value) == (49, 0, pytest.approx(2**-48))
    sparsity = whole.loc[("cifar10", "sparsity")]
    assert (sparsity.below, sparsity.above) == (31, 18)
    assert sparsity.p_value == pytest.approx(scipy.stats.binomtest(31, 49).pvalue)
    assert sparsity.low < sparsity.median_difference < 0 < sparsity.high
    rank = answer(reference, "effective_rank")
    assert len(rank) == 71 and (rank.difference > 0).sum() == 70


def test_the_seed_of_the_resampling_changes_intervals_alone(reference: Path) -> None:
    first, again = (
        answer(reference, "paired_effects"),
        answer(reference, "paired_effects", seed="0"),
    )
    other = answer(reference, "paired_effects", seed="1")
    bounds = ["low", "high"]
    assert first.equals(again) and not first[bounds].equals(other[bounds])
    assert first.drop(columns=bounds).equals(other.drop(columns=bounds))
    told = first[first.standard_models > 1]
    assert (told.low <= told.median_difference).all() and (
        told.median_difference <= told.high
    ).all()
    assert first[first.standard_models == 1][bounds].isna().all(axis=None)


def test_findings_of_ours_are_marked_and_audits_are_judged_when_asked(small: Path) -> None:
    found = findings.examine(str(small), audits=True)
    ours = {f.query for f in found if f.origin == "ours"}
    assert ours == {
        "25_paired_effects", "26_frequency_by_pair", "27_frequency_by_depth", "28_effective_rank",
        "audit/threshold",
    }  # fmt: skip
    assert found[-1].query == "audit/threshold" and found[-1].verdict in (HOLDS, CONTRARY)


def test_union_bases_merge_from_the_published_per_model_bases(reference: Path) -> None:
    """The authors fitted the unions on all filters; merging 114 covariances must give the same."""
    ratios = answer(reference, "explained_variance")
    assert len(ratios) == 27 and ratios.difference.abs().max() < 1e-9
    assert (ratios.n_samples == ratios.published_n_samples).all()
    bases = answer(reference, "basis_distance")
    assert len(bases) == 27 and bases.difference.abs().max() < 1e-8


def test_merging_notices_a_model_that_is_left_out() -> None:
    rows = [r for r in read_published("pca") if r["basis"] not in ("full", "robust", "standard")]
    full = next(r for r in read_published("pca") if r["basis"] == "full")
    assert merge(map(published_moments, rows)).n == int(full["n_samples"])
    assert merge(map(published_moments, rows[1:])).n != int(full["n_samples"])


def test_the_reference_release_says_that_it_is_published_values(reference: Path) -> None:
    release = open_release(reference)
    assert release.manifest["weights"] == "published"
    assert "copied and not rebuilt" in release.manifest["problems"][0]
    assert "copied and not rebuilt" in (reference / "README.md").read_text()
    models = release.table("models")
    assert models.num_rows == 114 and set(models.column("source").to_pylist()) == {"published"}
    assert release.table("layers").num_rows == 0
    assert (reference / "queries" / "06_sparsity_overall.sql").is_file()


def test_the_reference_release_has_the_schema_everywhere(reference: Path) -> None:
    release = open_release(reference)
    cohort = load_cohort("paper")
    assert set(release.manifest["models"]) == {m.model_id for m in cohort.models}
    for name in schema.SMALL_TABLES:
        table = release.table(name)
        assert table.schema.equals(schema.TABLES[name].arrow), name
        assert release.manifest["files"][schema.table_path(name)]["rows"] == table.num_rows


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(UsageError, match="not empty"):
        write_reference(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


def test_a_small_cohort_is_judged_by_direction_alone(small: Path) -> None:
    found = findings.examine(str(small))
    assert len(found) == len(catalog.list_findings())
    judged = [f for f in found if f.verdict != NOT_APPLICABLE]
    assert judged and {f.verdict for f in judged} == {HOLDS, CONTRARY}
    assert {f.basis for f in judged} == {"small cohort: direction only"}
    assert findings.exit_code(found) == 0, "a contrary direction fails on the paper's models alone"


def test_the_papers_cohort_is_known_by_its_models(reference: Path, tmp_path: Path) -> None:
    manifest = open_release(reference).manifest
    assert findings.is_paper_cohort(manifest)
    fewer = dict(list(manifest["models"].items())[1:])
    assert not findings.is_paper_cohort({**manifest, "models": fewer})
    assert not findings.is_paper_cohort({**manifest, "cohort": {"name": "mine", "models": None}})
    world = synthetic_release.make_world()
    root = synthetic_release.write_release(tmp_path, world, cohort="paper")  # a user's paper.csv
    assert not findings.is_paper_cohort(open_release(root).manifest)


def altered(reference: Path, root: Path, table: str, change: str, **about: str) -> Path:
    """A copy of the reference release: one table through an SQL select, the manifest's facts."""
    shutil.copytree(reference, root)
    path = root / schema.table_path(table)
    with duckdb.connect() as con:
        old = pq.read_table(path)
        new = con.sql(change.replace("TABLE", "old")).to_arrow_table()
    pq.write_table(new.select(old.column_names).cast(old.schema), path)
    manifest = open_release(root).manifest
    write_manifest(root, {**manifest, **about})
    return root


def test_the_papers_cohort_fails_where_a_value_differs(reference: Path, tmp_path: Path) -> None:
    change = """select * replace (n_sparse + if(model_id = 'cifar10-standard-Standard', 1, 0)
        as n_sparse, n_filters + 1 as n_filters) from TABLE"""
    root = altered(reference, tmp_path / "r", "models", change, weights="checkpoints")
    found = findings.examine(str(root))
    verdicts = by_name(found)
    assert verdicts["01_model_counts"].verdict == FAILS
    assert verdicts["07_sparsity_by_model"].verdict == FAILS
    assert verdicts["11_explained_variance"].verdict == HOLDS
    assert findings.exit_code(found) == 1


def test_the_papers_cohort_fails_where_the_direction_is_contrary(
    reference: Path, tmp_path: Path
) -> None:
    change = "select * replace (if(robust, 100.0, 0.0) as clean_acc) from TABLE"
    root = altered(reference, tmp_path / "r", "models", change, weights="checkpoints")
    verdicts = by_name(findings.examine(str(root)))
    assert verdicts["03_accuracy_by_pair"].direction is False
    assert verdicts["03_accuracy_by_pair"].verdict == FAILS
    assert verdicts["06_sparsity_overall"].verdict == HOLDS


def test_seeded_weights_answer_for_counts_only(reference: Path, tmp_path: Path) -> None:
    root = altered(reference, tmp_path / "r", "models", "from TABLE", weights="seeded:0")
    found = by_name(findings.examine(str(root)))
    assert found["06_sparsity_overall"].verdict == NOT_APPLICABLE
    assert found["06_sparsity_overall"].basis == "seeded weights"
    assert found["01_model_counts"].verdict == HOLDS


def test_nothing_is_claimed_of_an_empty_release(tmp_path: Path) -> None:
    root = synthetic_release.write_tables(tmp_path, {}, {})
    found = findings.examine(str(root))
    assert len(found) == len(catalog.list_findings())
    assert {f.verdict for f in found} == {NOT_APPLICABLE}
    assert all(f.basis.startswith("needs ") for f in found)


def test_every_claim_says_what_it_is_about_and_needs() -> None:
    folder = catalog.project_file("queries") / "claims"
    for path in folder.rglob("*.sql"):
        head = dict(catalog.header(path.read_text()))
        assert head["about"] in ("models", "weights", "build") and head["needs"], path.name


def test_json_has_one_object_per_finding(small: Path) -> None:
    found = findings.examine(str(small))
    text = json.dumps(findings.as_json(found))
    rows = json.loads(text)["findings"]
    assert [r["query"] for r in rows] == [q.name for q in catalog.list_findings()]
    assert set(rows[0]) >= {"paper", "release", "verdict", "basis", "direction"}


@pytest.mark.parametrize("width", [80, 120])
def test_a_terminal_shows_verdict_finding_and_answer_and_the_basis_when_asked(
    small: Path, width: int
) -> None:
    found = findings.examine(str(small))

    def lines(explain: bool) -> list[str]:
        console = Console(width=width, file=io.StringIO(), record=True)
        console.print(findings.to_grid(found, explain=explain))
        return [line.rstrip() for line in console.export_text().splitlines()]

    short, long = lines(False), lines(True)
    assert max(map(len, long)) <= width
    starts = [line for line in short if line and not line.startswith(" ")]
    assert len(starts) == len(found)
    for line, f in zip(starts, found, strict=True):
        sign = {HOLDS: "✓", FAILS: "✗", CONTRARY: "≠", NOT_APPLICABLE: "·"}[f.verdict]
        assert line.startswith(f"{sign} {f.verdict}  ") and f.title[:20] in line
    assert short.count("") >= len(found) - 1, "a blank line between findings"
    basis = "small cohort: direction only"
    assert basis not in "\n".join(short) and basis in "\n".join(long)
    plain = " ".join(" ".join(long).split())
    assert all(" ".join(f.paper.split())[:30] in plain for f in found)


def test_audits_agree_with_a_build_by_the_real_code(release: Path) -> None:
    """`release` is the toy cohort, built from seeded weights."""
    with open_views(open_release(release)) as con:
        for asked in catalog.list_queries():
            rows = run.run_query(con, asked).rows()
            if "/" in asked.name:
                assert asked.name == "audit/divergence" or rows, asked.name
                assert all(row["within"] for row in rows), asked.name
