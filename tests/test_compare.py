"""A network beside published or released populations: ranks, quartiles, words."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from builder.cli.main import app
from builder.cohort.registry import load_cohort
from builder.compare import reference as ref
from builder.compare.comparison import compare_depth, compare_models
from builder.compare.measurement import Measurement, layers_table, of_released
from builder.compare.reference import Basis, load_reference, published
from builder.compare.show import lines
from builder.errors import UsageError
from builder.release.reader import open_release

PAPER = Path(ref.__file__).parents[1] / "paper"


def table(name: str) -> list[dict[str, str]]:
    with (PAPER / f"{name}.csv").open(newline="") as f:
        return list(csv.DictReader(f))


@pytest.fixture(scope="module")
def numbers() -> dict[str, dict[str, np.ndarray | float]]:
    """Straight from the CSVs, by NumPy alone: per model, its numbers."""
    counts = {r["model_id"]: int(r["n_sparse"]) / int(r["n_filters"]) for r in table("models")}
    shapes, found = {}, {}
    for r in table("pca"):
        ratios = np.array([float(r[f"ratio{i}"]) for i in range(9)])
        rows = np.array([[float(r[f"direction{i}{j}"]) for j in range(9)] for i in range(9)])
        shapes[r["basis"]] = sum(w * np.outer(v, v) for w, v in zip(ratios, rows, strict=True))
        found[r["basis"]] = {"ratios": ratios, "rows": rows}
    for model_id in counts:
        ratios = found[model_id]["ratios"]
        found[model_id] |= {
            "sparsity": counts[model_id],
            "explained_variance_first": ratios[0],
            "pca_entropy": -sum(p * np.log10(p) for p in ratios if p > 0),
            **{
                f"distance_to_{union}": np.sqrt(((shapes[model_id] - shapes[union]) ** 2).sum())
                for union in ("robust", "standard")
            },
        }
    return found


def test_every_published_model_put_in_has_the_rank_and_medians_that_numpy_gives(numbers) -> None:
    cohort, reference = load_cohort("paper"), published()
    members = {
        kind: [m.model_id for m in cohort.models if m.robust == (kind == "robust")]
        for kind in ref.KINDS
    }
    for model in cohort.models:
        mine = numbers[model.model_id]
        basis = Basis(mine["ratios"], mine["rows"])
        rows = list(compare_models(mine["sparsity"], basis, reference))
        assert len(rows) == 2 * 5
        for row in rows:
            values = np.array([numbers[m][row.metric] for m in members[row.kind]])
            assert row.value == pytest.approx(mine[row.metric], rel=1e-9, abs=1e-12)
            assert row.n == len(values) == {"robust": 71, "standard": 43}[row.kind]
            assert row.median == pytest.approx(np.median(values), rel=1e-9)
            assert 1 + (values < mine[row.metric] - 1e-9).sum() <= row.rank
            assert row.rank <= 1 + (values < mine[row.metric] + 1e-9).sum()


def test_published_quartiles_by_depth_are_the_tables() -> None:
    wanted = {
        (r["dataset"], r["kind"], r["metric"], int(r["depth_bin"])): r
        for r in table("boxplots")
        if r["reading"] in ("", "weighted by filters")
    }
    reference = published()
    assert reference.boxes.keys() == wanted.keys()
    for (dataset, kind, metric, depth_bin), row in wanted.items():
        (own, _) = (
            r
            for r in compare_depth({(depth_bin, metric): float(row["median"])}, dataset, reference)
        )
        box = reference.boxes[dataset, kind, metric, depth_bin]
        assert [box.q1, box.median, box.q3] == [float(row[q]) for q in ("q1", "median", "q3")]
        assert own.below is None, "only quartiles are published"


def test_a_release_as_reference_gives_exact_percentiles(release: Path) -> None:
    reference = load_reference(str(release))
    opened = open_release(release)
    (pairs, layers) = (opened.table(n).to_pylist() for n in ("pairs", "layers"))
    values = []
    for pair in pairs:
        rows = [
            r
            for r in layers
            if r["model_id"] == pair["robust_model_id"]
            and r["weights"] == "folded"
            and r["depth_bin"] == 10
        ]
        weights = [r["n_filters"] - r["n_sparse"] for r in rows]
        values.append(np.average([r["variance_entropy"] for r in rows], weights=weights))
    box = reference.boxes["cifar10", "robust", "variance_entropy", 10]
    assert sorted(box.values) == pytest.approx(sorted(values), rel=1e-12)
    assert box.median == pytest.approx(np.median(values))
    (row, _) = compare_depth(
        {(10, "variance_entropy"): float(max(values)) + 1}, "cifar10", reference
    )
    assert row.below == 1.0 and row.place == 1


def test_a_released_model_needs_no_network(release: Path) -> None:
    opened = open_release(release)
    model_id = opened.model_ids[0]
    measured = of_released(opened, model_id)
    stored = opened.table("models", where=[("model_id", "=", model_id)]).to_pylist()[0]
    for name in ("sparsity", "variance_entropy", "orthogonality"):
        for suffix in ("", "_trained"):
            assert measured.summary[f"filters/{name}{suffix}"] == pytest.approx(
                stored[name + suffix], rel=1e-12
            )
    text = "\n".join(lines(measured, measured.compare(against=str(release))))
    assert max(map(len, text.splitlines())) <= 80, "one screen of 80 columns"
    assert "whole network" in text and "standard" in text
    with pytest.raises(UsageError, match="has no model 'nobody'"):
        of_released(opened, "nobody")


def test_a_reference_of_published_values_alone_is_no_release_to_compare_with(
    tmp_path: Path,
) -> None:
    from builder.paper.reference import write_reference

    write_reference(tmp_path / "reference")
    with pytest.raises(UsageError, match="no layers to compare with"):
        load_reference(str(tmp_path / "reference"))


def row(**known: object) -> dict[str, object]:
    return {
        "model_id": "one",
        "layer": "conv1",
        "weights": "folded",
        "out_channels": 1,
        "in_channels": 2,
        "n_filters": 2,
        "kernel_size": "3x3",
        "status": "measured",
        **known,
    }


def test_what_is_not_defined_is_absent_and_said() -> None:
    measured = Measurement("one", layers_table([row(depth_bin=1)]), dataset="imagenet")
    assert set(measured.summary) == {
        "filters/n_layers",
        "filters/n_filters",
        "filters/n_sparse",
    }
    comparison = measured.compare()
    said = " ".join(comparison.not_compared)
    assert "one output channel" in said and "NaN" in said
    assert not comparison.models and not comparison.depth
    unknown = measured.compare("cifar10", published())
    assert not unknown.depth
    with pytest.raises(UsageError, match="unknown data set 'mnist'"):
        measured.compare("mnist")


def test_a_name_with_markup_is_shown_as_text() -> None:
    measured = Measurement("<script>alert(1)</script>", layers_table([row(depth_bin=1)]))
    page = measured._repr_html_()
    assert "<script>" not in page and "&lt;script&gt;" in page


def test_a_comparison_reads_as_its_sentences_printed_or_in_a_notebook(release: Path) -> None:
    opened = open_release(release)
    found = of_released(opened, opened.model_ids[0]).compare(against=str(release))
    against, *said = str(found).splitlines()
    assert found.against in against and said == [*found.sentences, *found.not_compared]
    assert found._repr_html_().count("<li>") == len(said) > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--constructor", "a:b"], "--constructor is for a checkpoint"),
        (["--first-layer"], "--first-layer is for a checkpoint"),
    ],
)
def test_an_option_of_checkpoints_is_refused_for_a_model_of_a_release(
    release: Path, options: list[str], message: str
) -> None:
    command = ["measure", "--release", str(release)]
    done = CliRunner().invoke(app, [*command, open_release(release).model_ids[0], *options])
    assert isinstance(done.exception, UsageError) and message in str(done.exception)
    nameless = CliRunner().invoke(app, command).exception
    assert isinstance(nameless, UsageError) and "MODEL_ID" in str(nameless.hint)


def test_saved_files_hold_the_layers(tmp_path: Path, release: Path) -> None:
    opened = open_release(release)
    measured = of_released(opened, opened.model_ids[0])
    for name in ("a.parquet", "a.csv", "a.json"):
        measured.save(tmp_path / name, measured.compare())
    assert pq.read_table(tmp_path / "a.parquet").equals(measured.layers)
    with (tmp_path / "a.csv").open(newline="") as f:
        rows = list(csv.DictReader(f))
    assert [r["layer"] for r in rows] == measured.layers["layer"].to_pylist()
    assert json.loads(rows[0]["mean"]) == measured.layers["mean"][0].as_py()
    whole = json.loads((tmp_path / "a.json").read_text())
    assert whole["layers"] == measured.layers.to_pylist() and whole["summary"] == measured.summary
    assert {"comparison", "recognised"} <= whole.keys()
    with pytest.raises(UsageError, match=r"cannot save to a\.xlsx"):
        measured.save(tmp_path / "a.xlsx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.csv", "a.json", "a.parquet"]
