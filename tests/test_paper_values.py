"""The published values in the project are the published ones, and our metrics meet them.

Some tests compare with the authors' tables and with the filters recovered from their figures.
Those are no part of the project: RFL_DATA names the folder that holds them; without it they skip.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import DATA

from builder import schema
from builder.cohort.registry import load_cohort
from builder.paper.published import BOX_STATISTICS, paper_table

TIMM = {
    "timm_resnet18_imagenet1k_13": "resnet18.tv_in1k",
    "timm_resnet50_imagenet1k_13": "resnet50.a1_in1k",
    "timm_wide_resnet50_2_imagenet1k_13": "wide_resnet50_2.racm_in1k",
}
METRICS = ("sparsity", "variance_entropy", "orthogonality")
KIND = {"normal": "standard", "robust": "robust", "full": "full"}


@pytest.fixture(scope="module")
def paper() -> pd.DataFrame:
    return paper_table().to_pandas()


@pytest.fixture(scope="module")
def data() -> Path:
    if not (DATA / "paper" / "models.csv").is_file():
        pytest.skip(f"no published tables in {DATA}; set RFL_DATA to the folder that holds them")
    return DATA / "paper"


@pytest.fixture(scope="module")
def ids(data: Path) -> dict[str, str]:
    """Our model_id by the authors' name."""
    models = pd.read_csv(data / "models.csv")
    return {
        m.name: schema.model_id(m.dataset, m.robust, TIMM.get(m.name, m.network))
        for m in models.itertuples(index=False)
    }


def value(paper: pd.DataFrame, **known: object) -> float:
    chosen = paper
    for column, wanted in known.items():
        chosen = chosen[chosen[column].isna() if wanted is None else chosen[column] == wanted]
    assert len(chosen) == 1, known
    return float(chosen.value.iloc[0])


def test_the_table_has_the_schema_and_one_row_per_key(paper: pd.DataFrame) -> None:
    assert paper_table().schema == schema.PAPER.arrow
    assert not paper.duplicated(list(schema.PAPER.key)).any()
    assert set(paper.method) <= {"printed", "table", "figure", "computed"}
    assert (paper.precision >= 0).all() and paper.value.notna().all()


def test_model_ids_are_those_of_the_cohort(paper: pd.DataFrame) -> None:
    cohort = {m.model_id for m in load_cohort("paper").models}
    assert set(paper.model_id.dropna()) == cohort


def test_counts_add_up_to_the_printed_totals(paper: pd.DataFrame) -> None:
    by_model = paper[paper.finding == "sparsity_by_model"]
    robust = by_model.model_id.str.contains("-robust-")
    for metric, kind, total in (
        ("n_filters", True, 615_863_744),
        ("n_filters", False, 379_517_600),
        ("n_sparse", True, 58_681_469),
        ("n_sparse", False, 147_298_108),
    ):
        assert by_model[(by_model.metric == metric) & (robust == kind)].value.sum() == total


def test_every_model_has_the_published_counts(
    paper: pd.DataFrame, data: Path, ids: dict[str, str]
) -> None:
    by_model = paper[paper.finding == "sparsity_by_model"]
    ours = by_model.pivot(index="model_id", columns="metric", values="value")
    theirs = pd.read_csv(data / "models.csv")
    theirs.index = pd.Index(theirs.name.map(ids))
    assert len(ours) == len(theirs) == 114
    for mine, their in (
        ("n_filters", "n_filters"),
        ("n_sparse", "n_sparse_filters"),
        ("n_layers", "n_conv3x3_layers"),
    ):
        assert (ours[mine] == theirs[their].reindex(ours.index)).all()


def test_every_box_plot_is_the_published_one(paper: pd.DataFrame, data: Path) -> None:
    boxes = paper[paper.finding.isin([f"{m}_by_depth" for m in METRICS])]
    keys = ["finding", "reading", "dataset", "kind", "depth_bin", "metric"]
    boxes = boxes.assign(reading=boxes.reading.astype(object).fillna(""))
    ours = boxes.set_index(keys).value.to_dict()
    theirs = pd.read_csv(data / "boxplots.csv")
    assert len(ours) == len(theirs) * len(BOX_STATISTICS)
    for box in theirs.itertuples():
        reading = ""
        if box.metric == "variance_entropy":
            alike = box.source.startswith("metrics_")
            reading = "layers alike" if alike else "weighted by filters"
        key = (f"{box.metric}_by_depth", reading, box.dataset, KIND[box.kind], int(box.bin_index))
        for statistic in BOX_STATISTICS:
            assert ours[*key, statistic] == pytest.approx(getattr(box, statistic), abs=1e-8)


def test_every_printed_number_is_the_published_one(paper: pd.DataFrame, data: Path) -> None:
    headline = pd.read_csv(data / "headline.csv").set_index("key").value.astype(float)
    compared = 0
    for key, printed in headline.items():
        parts = str(key).split("/")
        known: dict[str, object]
        match parts:
            case ["mean_acc", dataset, which]:
                kind, metric = which.split("_", 1)
                metric = {"clean_acc": "clean_acc", "robust_acc": "autoattack_acc"}[metric]
                known = {"finding": "accuracy_means", "dataset": dataset, "metric": metric}
                known["kind"] = KIND[kind]
            case ["spearman_vs_robust_acc", dataset, metric]:
                ours = {"entropy_mean": "variance_entropy", "sparsity_mean": "sparsity"}
                finding = "accuracy_correlation" if metric == "clean_acc" else "metric_correlation"
                known = {"finding": finding, "dataset": dataset}
                known["metric"] = ours.get(metric, metric)
            case ["kl", "pairs" | "distinct" as reading, dataset]:
                known = {"finding": "divergence", "reading": reading, "dataset": dataset}
            case ["kl", "first_layer", dataset]:
                known = {"finding": "divergence_by_depth", "depth_bin": 0, "dataset": dataset}
            case ["sparsity", kind]:
                known = {"finding": "sparsity_overall", "kind": KIND[kind]}
                known["reading"] = "as printed"
            case ["explained_variance_ratio", kind, component]:
                known = {"finding": "explained_variance", "kind": KIND[kind], "metric": "ratio"}
                known["component"] = int(component)
            case _:
                continue
        compared += 1
        assert value(paper, **known) == pytest.approx(printed, abs=1e-9), key
    assert compared == 9 + 9 + 6 + 3 + 2 + 27


def test_every_divergence_of_the_figure_is_there(paper: pd.DataFrame, data: Path) -> None:
    for bar in pd.read_csv(data / "divergence_by_depth.csv").itertuples():
        known = {"finding": "divergence_by_depth", "dataset": bar.dataset}
        got = value(paper, **known, depth_bin=int(bar.bin_index))
        assert got == pytest.approx(bar.kl, abs=5e-9)


def measured(filters: np.ndarray, outs: int) -> dict[str, float]:
    """The project's own metrics of (n, 9) float64 filters of one layer."""
    torch = pytest.importorskip("torch")
    from builder.metrics.layer import measure_columns, orthogonality

    x = torch.from_numpy(filters.astype(np.float32))
    metrics = measure_columns(x.t().contiguous(), x.abs().amax(dim=1))
    angle = orthogonality(x.reshape(outs, -1, 3, 3))
    assert angle is not None
    return {**metrics, "orthogonality": angle}


@pytest.mark.slow
def test_our_metrics_on_the_papers_first_layers_meet_its_box_plots(
    paper: pd.DataFrame, data: Path
) -> None:
    """Real first-layer filters of the CIFAR-10 models, read off figures of 8 bits.

    Eight bits add noise to the entropy (mean off by up to 0.0034) and hide the direction of
    channels that folding scales to nearly nothing (orthogonality off by up to 0.010). Sparsity's
    threshold lies inside one grey level, so it is bracketed by the error bound of each filter.
    """
    table = pd.read_parquet(data / "first_layer_filters.parquet")
    names = [f"w{i}{j}" for i in range(3) for j in range(3)]
    of_model: dict[str, dict[str, float]] = {}
    for name, rows in table.groupby("name"):
        rows = rows.sort_values(["out_channel", "in_channel"])
        filters, error = rows[names].to_numpy(float), rows.halfwidth.to_numpy(float)
        metrics = measured(filters, rows.out_channel.nunique())
        length = np.abs(filters).max(axis=1)
        of_model[str(name)] = {
            "variance_entropy": metrics["variance_entropy"],
            "orthogonality": metrics["orthogonality"],
            "least": float((length + error <= 0.01).mean()),
            "most": float((length - error <= 0.01).mean()),
        }
    pairs = pd.read_csv(data / "pairs.csv")
    pairs = pairs[pairs.dataset == "cifar10"]
    assert len(pairs) == 49
    for kind, column in (("standard", "normal_name"), ("robust", "robust_name")):
        own = pd.DataFrame([of_model[name] for name in pairs[column]]).mean()

        def published(metric: str, reading: str | None, kind: str = kind) -> float:
            return value(
                paper,
                finding=f"{metric}_by_depth",
                dataset="cifar10",
                kind=kind,
                depth_bin=0,
                metric="mean",
                reading=reading,
            )

        entropy = published("variance_entropy", "weighted by filters")
        assert own.variance_entropy == pytest.approx(entropy, abs=0.0036)
        assert own.orthogonality == pytest.approx(published("orthogonality", None), abs=0.0100)
        assert own.least <= published("sparsity", None) <= own.most


@pytest.mark.slow
def test_every_network_runs_the_published_layers_and_filters(paper: pd.DataFrame) -> None:
    """All 114 constructors, traced without weights."""
    if find_spec("robustbench") is None:  # to import it here would forestall our shims
        pytest.skip("needs robustbench for the constructors")
    from builder.network.plan import make_plan

    by_model = paper[paper.finding == "sparsity_by_model"]
    published = by_model.pivot(index="model_id", columns="metric", values="value")
    planned = {
        p.spec.model_id: (len(p.layers), p.n_filters)
        for p in make_plan(load_cohort("paper"), lambda *progress: None).models
    }
    assert len(planned) == 114
    for model_id, counts in planned.items():
        row = published.loc[model_id]
        assert counts == (row.n_layers, row.n_filters), model_id
