"""What each query must answer, computed with pandas, NumPy and SciPy from the same tables.

`ORACLES[subject](world)` gives a data frame: its first columns up to `KEYS[subject]` identify a
row, the others are compared with the columns of the same name in the answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import pandas as pd
import scipy.fft
import scipy.stats
from synthetic_release import World, model_filters, scaled_filters

KEYS: dict[str, int] = {}
ORACLES: dict[str, Callable[[World], pd.DataFrame]] = {}


def oracle(
    n_keys: int,
) -> Callable[[Callable[[World], pd.DataFrame]], Callable[[World], pd.DataFrame]]:
    def register(f: Callable[[World], pd.DataFrame]) -> Callable[[World], pd.DataFrame]:
        ORACLES[f.__name__], KEYS[f.__name__] = f, n_keys
        return f

    return register


def kind_of(robust: pd.Series) -> pd.Series:
    return robust.map({True: "robust", False: "standard"})


def published(world: World, finding: str, **known: object) -> pd.DataFrame:
    paper = world.tables["paper"]
    chosen = paper[paper.finding == finding]
    for column, value in known.items():
        chosen = chosen[chosen[column] == value]
    return chosen


def members(world: World) -> pd.DataFrame:
    """dataset, kind, pair, model_id: both members of each pair, so a shared one repeats."""
    pairs = world.tables["pairs"]
    robust = pairs.assign(kind="robust", model_id=pairs.robust_model_id)
    standard = pairs.assign(kind="standard", model_id=pairs.standard_model_id)
    both = pd.concat([robust, standard]).rename(columns={"robust_model_id": "pair"})
    return both[["dataset", "kind", "pair", "model_id"]]


@oracle(2)
def model_counts(world: World) -> pd.DataFrame:
    models = world.tables["models"].assign(kind=lambda m: kind_of(m.robust))
    parts = [(dataset, kind, part) for (dataset, kind), part in models.groupby(["dataset", "kind"])]
    parts += [("all", kind, part) for kind, part in models.groupby("kind")]
    parts += [("all", "full", models)]
    rows = []
    for dataset, kind, part in parts:
        paper = published(world, "model_counts", kind=kind, metric="filters")
        paper = paper[paper.dataset.isna() if dataset == "all" else paper.dataset == dataset]
        rows.append(
            {
                "dataset": dataset,
                "kind": kind,
                "models": len(part),
                "architectures": part.architecture.nunique(),
                "filters": part.n_filters.sum(),
                "filters_per_model": part.n_filters.mean(),
                "published": paper.value.iloc[0],
            }
        )
    return pd.DataFrame(rows)


@oracle(3)
def architectures(world: World) -> pd.DataFrame:
    models = world.tables["models"].assign(kind=lambda m: kind_of(m.robust))
    grouped = models.groupby(["dataset", "architecture", "kind"]).n_filters
    return grouped.agg(models="size", fewest_filters="min", most_filters="max").reset_index()


@oracle(3)
def accuracy_by_pair(world: World) -> pd.DataFrame:
    models = world.tables["models"].set_index("model_id")
    rows = []
    for pair in world.tables["pairs"].itertuples():
        r, s = models.loc[pair.robust_model_id], models.loc[pair.standard_model_id]
        rows.append(
            {
                "dataset": pair.dataset,
                "robust_network": r.network,
                "standard_network": s.network,
                "standard_clean_acc": s.clean_acc,
                "standard_autoattack_acc": s.autoattack_acc,
                "robust_clean_acc": r.clean_acc,
                "robust_autoattack_acc": r.autoattack_acc,
                "clean_loss": s.clean_acc - r.clean_acc,
            }
        )
    return pd.DataFrame(rows)


@oracle(3)
def accuracy_means(world: World) -> pd.DataFrame:
    both = members(world).merge(world.tables["models"], on=["model_id", "dataset"])
    rows = []
    for (dataset, kind), part in both.groupby(["dataset", "kind"]):
        for metric in ("clean_acc", "autoattack_acc") if kind == "robust" else ("clean_acc",):
            known = published(world, "accuracy_means", dataset=dataset, kind=kind, metric=metric)
            value = known.value.iloc[0]
            rows.append(
                {
                    "dataset": dataset,
                    "kind": kind,
                    "metric": metric,
                    "pairs": part[metric].notna().sum(),
                    "accuracy": part[metric].mean(),
                    "published": value,
                    "difference": part[metric].mean() - value,
                    "within": abs(part[metric].mean() - value) <= 0.005,
                }
            )
    return pd.DataFrame(rows)


@oracle(1)
def accuracy_correlation(world: World) -> pd.DataFrame:
    models = world.tables["models"]
    robust = models[models.robust & models.clean_acc.notna() & models.autoattack_acc.notna()]
    rows = []
    for dataset, part in robust.groupby("dataset"):
        if len(part) > 2:
            rho = scipy.stats.spearmanr(part.clean_acc, part.autoattack_acc).statistic
            rows.append({"dataset": dataset, "models": len(part), "spearman": rho})
    return pd.DataFrame(rows)


@oracle(2)
def sparsity_overall(world: World) -> pd.DataFrame:
    pairs = world.tables["pairs"]
    paired = {*pairs.robust_model_id, *pairs.standard_model_id}
    models = world.tables["models"].assign(kind=lambda m: kind_of(m.robust))
    models = models[models.model_id.isin(paired)]
    rows = []
    for (dataset, kind), part in [
        *models.groupby(["dataset", "kind"]),
        *((("all", kind), part) for kind, part in models.groupby("kind")),
    ]:
        overall = published(world, "sparsity_overall", kind=kind)
        values = dict(zip(overall.reading, overall.value, strict=True))
        rows.append(
            {
                "dataset": dataset,
                "kind": kind,
                "n_sparse": part.n_sparse.sum(),
                "sparsity": part.n_sparse.sum() / part.n_filters.sum(),
                "as_printed": values["as printed"] if dataset == "all" else None,
                "published": values["the study"] if dataset == "all" else None,
            }
        )
    return pd.DataFrame(rows)


@oracle(1)
def sparsity_by_model(world: World) -> pd.DataFrame:
    columns = ["model_id", "n_layers", "n_filters", "sparsity", "sparsity_trained", "n_sparse"]
    return world.tables["models"][columns].assign(published=None, within=None)


def _boxes(
    world: World, finding: str, value: Callable[[pd.DataFrame], float], reading: str | None
) -> pd.DataFrame:
    layers = world.tables["layers"]
    folded = layers[layers.weights == "folded"].drop(columns="dataset")
    grouped = members(world).merge(folded, on="model_id")
    values = grouped.groupby(["dataset", "depth_bin", "kind", "pair"]).apply(value)
    paper = published(world, finding)
    if reading is not None:
        paper = paper[paper.reading == reading]
    rows = []
    for (dataset, depth_bin, kind), x in values.groupby(level=[0, 1, 2]):
        x = x.dropna().to_numpy()
        q1, median, q3 = np.percentile(x, [25, 50, 75])
        inside = x[(x >= q1 - 1.5 * (q3 - q1)) & (x <= q3 + 1.5 * (q3 - q1))]
        mine = {
            "whisker_low": min(inside.min(), q1),
            "q1": q1,
            "median": median,
            "q3": q3,
            "whisker_high": max(inside.max(), q3),
            "n_outliers": len(x) - len(inside),
            "mean": x.mean(),
        }
        here = paper[
            (paper.dataset == dataset) & (paper.depth_bin == depth_bin) & (paper.kind == kind)
        ]
        theirs = dict(zip(here.metric, here.value, strict=True))
        rows.append(
            {
                "dataset": dataset,
                "depth_bin": depth_bin,
                "kind": kind,
                **({} if reading is None else {"reading": reading}),
                "n_points": len(x),
                **mine,
                "published": theirs["mean"],
                "difference": max(abs(mine[k] - theirs[k]) for k in mine),
            }
        )
    return pd.DataFrame(rows)


def _weighted(values: pd.Series, weights: pd.Series) -> float:
    known = values.notna()
    return float(np.average(values[known], weights=weights[known])) if known.any() else np.nan


@oracle(3)
def sparsity_by_depth(world: World) -> pd.DataFrame:
    return _boxes(world, "sparsity_by_depth", lambda g: _weighted(g.sparsity, g.n_filters), None)


@oracle(4)
def variance_entropy_by_depth(world: World) -> pd.DataFrame:
    finding = "variance_entropy_by_depth"
    by_filters = _boxes(
        world,
        finding,
        lambda g: _weighted(g.variance_entropy, g.n_filters - g.n_sparse),
        "weighted by filters",
    )
    alike = _boxes(world, finding, lambda g: g.variance_entropy.mean(), "layers alike")
    return pd.concat([by_filters, alike])


@oracle(3)
def orthogonality_by_depth(world: World) -> pd.DataFrame:
    return _boxes(
        world,
        "orthogonality_by_depth",
        lambda g: _weighted(g.orthogonality, g.out_channels),
        None,
    )


def _union(world: World, kind: str) -> np.ndarray:
    models = world.tables["models"]
    chosen = models if kind == "full" else models[models.robust == (kind == "robust")]
    return np.concatenate([model_filters(world, m, "folded") for m in chosen.model_id])


@oracle(2)
def explained_variance(world: World) -> pd.DataFrame:
    rows = []
    for kind in ("full", "robust", "standard"):
        x = _union(world, kind)
        eigenvalues = np.linalg.eigvalsh(np.cov(x.T))[::-1]
        paper = published(world, "explained_variance", kind=kind, metric="ratio")
        for i, value in enumerate(eigenvalues / eigenvalues.sum()):
            theirs = paper[paper.component == i].value.iloc[0]
            rows.append(
                {
                    "kind": kind,
                    "component": i,
                    "n_samples": len(x),
                    "ratio": value,
                    "published": theirs,
                    "difference": value - theirs,
                }
            )
    return pd.DataFrame(rows)


@oracle(2)
def basis_distance(world: World) -> pd.DataFrame:
    rows = []
    for kind in ("full", "robust", "standard"):
        vectors = np.linalg.eigh(np.cov(_union(world, kind).T))[1][:, ::-1]
        paper = published(world, "basis_distance", kind=kind).sort_values(["component", "entry"])
        theirs = paper.value.to_numpy().reshape(9, 9)
        for i in range(9):
            cosine = abs(vectors[:, i] @ theirs[i])
            rows.append(
                {
                    "kind": kind,
                    "component": i,
                    "cosine": cosine,
                    "angle": np.degrees(np.arccos(min(cosine, 1))),
                    "difference": 1 - cosine,
                }
            )
    return pd.DataFrame(rows)


@oracle(1)
def explained_variance_by_model(world: World) -> pd.DataFrame:
    rows = []
    for model_id in world.tables["models"].model_id:
        x = model_filters(world, model_id, "folded")
        eigenvalues = np.linalg.eigvalsh(np.cov(x.T))[::-1]
        ratio = eigenvalues[0] / eigenvalues.sum()
        rows.append({"model_id": model_id, "n_samples": len(x), "ratio": ratio, "published": None})
    return pd.DataFrame(rows)


def _divergence(world: World, robust: list[str], standard: list[str], depth: int | None) -> float:
    """Symmetric KL of two groups of models; a model named twice counts twice."""
    histograms = world.tables["histograms"]
    if depth is not None:
        histograms = histograms[histograms.depth_bin == depth]
    counts = histograms.pivot_table(
        index="model_id", columns=["component", "bin"], values="n", aggfunc="sum"
    )
    pca = world.tables["pca"]
    weights = pca[(pca.basis == "full") & (pca.weights == "folded")].explained_variance_ratio
    total = 0.0
    for component, weight in enumerate(weights):
        shares = []
        for group in (robust, standard):
            n = counts[component].loc[group].sum().to_numpy(float)
            n[n == 0] = np.finfo(np.float32).eps
            shares.append(n / n.sum())
        p, q = shares
        total += weight * (scipy.stats.entropy(p, q) + scipy.stats.entropy(q, p))
    return total


@oracle(2)
def divergence(world: World) -> pd.DataFrame:
    rows = []
    for dataset, pairs in world.tables["pairs"].groupby("dataset"):
        robust, standard = list(pairs.robust_model_id), list(pairs.standard_model_id)
        for reading, group in (("pairs", standard), ("distinct", sorted(set(standard)))):
            value = _divergence(world, robust, group, None)
            known = published(world, "divergence", dataset=dataset, reading=reading)
            rows.append(
                {
                    "reading": reading,
                    "dataset": dataset,
                    "divergence": value,
                    "published": known.value.iloc[0],
                    "difference": value - known.value.iloc[0],
                }
            )
    return pd.DataFrame(rows)


@oracle(2)
def divergence_by_depth(world: World) -> pd.DataFrame:
    rows = []
    histograms = world.tables["histograms"]
    for dataset, pairs in world.tables["pairs"].groupby("dataset"):
        robust, standard = list(pairs.robust_model_id), list(pairs.standard_model_id)
        for depth in sorted(histograms[histograms.dataset == dataset].depth_bin.unique()):
            known = published(world, "divergence_by_depth", dataset=dataset, depth_bin=depth)
            rows.append(
                {
                    "dataset": dataset,
                    "depth_bin": depth,
                    "divergence": _divergence(world, robust, standard, depth),
                    "published": known.value.iloc[0],
                }
            )
    return pd.DataFrame(rows)


@oracle(2)
def divergence_largest(world: World) -> pd.DataFrame:
    by_depth = divergence_by_depth(world)
    grouped = by_depth.groupby("dataset")
    return pd.DataFrame(
        {
            "dataset": by_depth.dataset,
            "depth_bin": by_depth.depth_bin,
            "place": grouped.divergence.rank(ascending=False),
            "region": by_depth.depth_bin.map({0: "first", 9: "deepest", 10: "deepest"}).fillna(
                "between"
            ),
            "divergence": by_depth.divergence,
            "relative": by_depth.divergence / grouped.divergence.transform("max"),
            "published": grouped.published.rank(ascending=False),
        }
    )


@oracle(3)
def first_layer_metrics(world: World) -> pd.DataFrame:
    layers = world.tables["layers"]
    first = layers[(layers.weights == "folded") & (layers.conv_depth == 0)]
    both = members(world).merge(first.drop(columns="dataset"), on="model_id")
    rows = []
    for (dataset, kind), part in both.groupby(["dataset", "kind"]):
        for metric in ("sparsity", "variance_entropy", "orthogonality"):
            known = published(
                world, f"{metric}_by_depth", dataset=dataset, kind=kind, depth_bin=0, metric="mean"
            )
            known = known[known.reading.isna() | (known.reading == "weighted by filters")]
            rows.append(
                {
                    "dataset": dataset,
                    "metric": metric,
                    "kind": kind,
                    "pairs": part[metric].notna().sum(),
                    "mean": part[metric].mean(),
                    "published": known.value.iloc[0],
                }
            )
    return pd.DataFrame(rows)


@oracle(2)
def first_layer_response(world: World) -> pd.DataFrame:
    table = world.tables["first_layer"]
    whole = table[table.out_channel.isna()].set_index(["model_id", "perturbation"])
    rows = []
    for pair in world.tables["pairs"].itertuples():
        for perturbation in ("random", "pgd"):
            r = whole.loc[(pair.robust_model_id, perturbation)]
            s = whole.loc[(pair.standard_model_id, perturbation)]
            rows.append(
                {
                    "robust_model_id": pair.robust_model_id,
                    "perturbation": perturbation,
                    "standard_model_id": pair.standard_model_id,
                    "standard_pre": s.response_pre,
                    "robust_pre": r.response_pre,
                    "standard_post": s.response_post,
                    "robust_post": r.response_post,
                    "standard_activation_pass": s.activation_pass,
                    "robust_activation_pass": r.activation_pass,
                    "ratio": r.response_post / s.response_post,
                }
            )
    return pd.DataFrame(rows)


def _correlations(world: World, by: list[str], finding: str) -> pd.DataFrame:
    models = world.tables["models"]
    robust = models[models.robust].assign(mean_abs_cosine=lambda m: 1 - m.orthogonality)
    rows = []
    for keys, part in robust.groupby(by):
        if len(part) < 3:
            continue
        for metric in (
            "clean_acc",
            "sparsity",
            "variance_entropy",
            "orthogonality",
            "mean_abs_cosine",
        ):
            known = published(world, finding, metric=metric)
            for column, key in zip(by, keys, strict=True):
                known = known[known[column] == key]
            rows.append(
                {
                    **dict(zip(by, keys, strict=True)),
                    "metric": metric,
                    "models": len(part),
                    "spearman": scipy.stats.spearmanr(part[metric], part.autoattack_acc).statistic,
                    "published": known.value.iloc[0] if len(known) else None,
                }
            )
    return pd.DataFrame(rows)


@oracle(2)
def metric_correlation(world: World) -> pd.DataFrame:
    return _correlations(world, ["dataset"], "metric_correlation")


@oracle(3)
def metric_correlation_by_architecture(world: World) -> pd.DataFrame:
    finding = "metric_correlation_by_architecture"
    return _correlations(world, ["dataset", "architecture"], finding)


@oracle(2)
def extra_data(world: World) -> pd.DataFrame:
    models = world.tables["models"].set_index(["dataset", "network"])
    with_, without = models.loc[("cifar10", "Ash_extra")], models.loc[("cifar10", "Ash")]
    without = without[without.robust] if isinstance(without, pd.DataFrame) else without
    return pd.DataFrame(
        [
            {
                "dataset": "cifar10",
                "network": "Ash",
                "extra_network": "Ash_extra",
                "ratio": with_.n_sparse / without.n_sparse,
                "sparsity_ratio": with_.sparsity / without.sparsity,
                "published": None,
            }
        ]
    )


@oracle(2)
def cifar10_cifar100(world: World) -> pd.DataFrame:
    models = world.tables["models"]
    both = models[models.dataset == "cifar10"].merge(
        models[models.dataset == "cifar100"], on=["network", "robust"], suffixes=("_10", "_100")
    )
    return pd.DataFrame(
        {
            "network": both.network,
            "kind": kind_of(both.robust),
            "same_architecture": both.architecture_10 == both.architecture_100,
            "n_sparse_cifar10": both.n_sparse_10,
            "n_sparse_cifar100": both.n_sparse_100,
            "change": both.n_sparse_100 - both.n_sparse_10,
        }
    )


@oracle(2)
def duplicate_models(world: World) -> pd.DataFrame:
    first = {}
    rows = []
    for model in world.tables["models"].itertuples():
        parts = [w for (m, _), (w, _) in sorted(world.weights.items()) if m == model.model_id]
        content = b"".join(w.tobytes() for w in parts)
        first.setdefault(content, model.model_id)
        kind = "robust" if model.robust else "standard"
        rows += [(d, kind, first[content]) for d in (model.dataset, "all")]
    found = pd.DataFrame(rows, columns=["dataset", "kind", "first"])
    grouped = found.groupby(["dataset", "kind"])["first"]
    return grouped.agg(models="size", distinct_models="nunique").reset_index()


@oracle(3)
def batchnorm_folding(world: World) -> pd.DataFrame:
    layers = world.tables["layers"]
    models = world.tables["models"].set_index("model_id")
    both = layers[layers.weights == "trained"].merge(
        layers[layers.weights == "folded"], on=["model_id", "layer_index"], suffixes=("_t", "_f")
    )
    both["kind"] = kind_of(both.model_id.map(models.robust))
    rows = []
    for (dataset, kind), part in both.groupby(["dataset_t", "kind"]):
        for metric in ("sparsity", "variance_entropy", "orthogonality"):
            t, f = part[metric + "_t"], part[metric + "_f"]
            known = t.notna() & f.notna()
            t, f = t[known], f[known]
            rows.append(
                {
                    "dataset": dataset,
                    "metric": metric,
                    "kind": kind,
                    "layers": known.sum(),
                    "folded_layers": (known & part.bn_layer_t.notna()).sum(),
                    "trained": t.mean(),
                    "folded": f.mean(),
                    "mean_change": (f - t).mean(),
                    "largest_change": (f - t).abs().max(),
                }
            )
    return pd.DataFrame(rows)


def _spectrum(world: World, model_id: str) -> np.ndarray:
    eigenvalues = np.linalg.eigvalsh(np.cov(model_filters(world, model_id, "folded").T))
    return np.clip(eigenvalues, 0, None)[::-1] / eigenvalues.sum()


def _interval(clusters: list[np.ndarray]) -> tuple[float | None, float | None]:
    """Percentiles of 1000 medians, each over as many clusters as there are, drawn by MD5."""
    if len(clusters) < 2:
        return None, None
    medians = []
    for resample in range(1000):
        drawn = []
        for place in range(len(clusters)):
            digest = hashlib.md5(f"0:{resample}:{place}".encode()).hexdigest()
            drawn.append(clusters[int(int(digest[:13], 16) / 16**13 * len(clusters))])
        medians.append(np.median(np.concatenate(drawn)))
    low, high = np.percentile(medians, [2.5, 97.5])
    return float(low), float(high)


@oracle(3)
def paired_effects(world: World) -> pd.DataFrame:
    models = world.tables["models"].set_index("model_id")
    spectra = {m: _spectrum(world, m) for m in models.index}
    values = models[["sparsity", "variance_entropy", "orthogonality"]].assign(
        first_ratio={m: p[0] for m, p in spectra.items()},
        spectrum_entropy={m: scipy.stats.entropy(p, base=10) for m, p in spectra.items()},
    )
    pairs = world.tables["pairs"]
    same = models.same_filters_as.fillna(pd.Series(models.index, models.index))
    pairs = pairs.assign(cluster=pairs.standard_model_id.map(same))
    rows = []
    parts = [(d, "all", part) for d, part in pairs.groupby("dataset")]
    parts += [(d, a, part) for (d, a), part in pairs.groupby(["dataset", "architecture"])]
    for dataset, architecture, part in parts:
        for metric in values:
            robust = values.loc[part.robust_model_id, metric].to_numpy(float)
            standard = values.loc[part.standard_model_id, metric].to_numpy(float)
            x = robust - standard
            below, above = int((x < 0).sum()), int((x > 0).sum())
            clusters = [x[(part.cluster == c).to_numpy()] for c in sorted(part.cluster.unique())]
            low, high = _interval(clusters)
            rows.append(
                {
                    "dataset": dataset,
                    "architecture": architecture,
                    "metric": metric,
                    "pairs": len(part),
                    "standard_models": len(clusters),
                    "below": below,
                    "above": above,
                    "p_value": scipy.stats.binomtest(below, below + above).pvalue
                    if below + above
                    else None,
                    "median_difference": np.median(x),
                    "low": low,
                    "high": high,
                }
            )
    return pd.DataFrame(rows)


def _order_shares(x: np.ndarray) -> np.ndarray:
    """Shares of the energy of (n, 9) filters on the DCT functions of order 0, 1 and 2."""
    spectrum = scipy.fft.dctn(x.reshape(-1, 3, 3), type=2, norm="ortho", axes=(1, 2))
    energy = (spectrum**2).sum(axis=0)
    order = np.maximum.outer(range(3), range(3))
    return np.array([energy[order == k].sum() for k in range(3)]) / energy.sum()


@oracle(4)
def frequency_by_pair(world: World) -> pd.DataFrame:
    rows = []
    for pair in world.tables["pairs"].itertuples():
        r = _order_shares(model_filters(world, pair.robust_model_id, "folded"))
        s = _order_shares(model_filters(world, pair.standard_model_id, "folded"))
        rows.append(
            {
                "dataset": pair.dataset,
                "architecture": pair.architecture,
                "robust_model_id": pair.robust_model_id,
                "standard_model_id": pair.standard_model_id,
                "standard_constant": s[0],
                "robust_constant": r[0],
                "standard_order_1": s[1],
                "robust_order_1": r[1],
                "standard_order_2": s[2],
                "robust_order_2": r[2],
                "constant_difference": r[0] - s[0],
                "order_2_difference": r[2] - s[2],
            }
        )
    return pd.DataFrame(rows)


@oracle(3)
def frequency_by_depth(world: World) -> pd.DataFrame:
    layers = world.tables["layers"]
    folded = layers[layers.weights == "folded"].drop(columns="dataset")
    both = members(world).merge(folded, on="model_id")

    def shares(part: pd.DataFrame) -> pd.Series:
        keys = zip(part.model_id, part.layer_index, strict=True)
        x = np.concatenate([scaled_filters(*world.weights[key], "folded") for key in keys])
        return pd.Series(_order_shares(x), ["constant", "order_1", "order_2"])

    keys = ["dataset", "depth_bin", "kind"]
    values = both.groupby([*keys, "pair"])[["model_id", "layer_index"]].apply(shares)
    grouped = values.groupby(keys)
    return grouped.mean().assign(pairs=grouped.size()).reset_index()


@oracle(2)
def effective_rank(world: World) -> pd.DataFrame:
    rows = []
    for pair in world.tables["pairs"].itertuples():
        r = np.exp(scipy.stats.entropy(_spectrum(world, pair.robust_model_id)))
        s = np.exp(scipy.stats.entropy(_spectrum(world, pair.standard_model_id)))
        rows.append(
            {
                "dataset": pair.dataset,
                "robust_model_id": pair.robust_model_id,
                "standard_rank": s,
                "robust_rank": r,
                "difference": r - s,
            }
        )
    return pd.DataFrame(rows)


def threshold(world: World) -> pd.DataFrame:
    """Of the audit of that name: shares of filters at most layer_linf / part, folded."""
    rows = []
    for kind, group in members(world).drop_duplicates(["kind", "model_id"]).groupby("kind"):
        for dataset, part in group.groupby("dataset"):
            layers = world.tables["layers"]
            own = layers[layers.model_id.isin(part.model_id) & (layers.weights == "folded")]
            bins = [(b, own[own.depth_bin == b]) for b in sorted(own.depth_bin.unique())]
            for depth_bin, chosen in [*bins, (None, own)]:
                relative = []
                for key in zip(chosen.model_id, chosen.layer_index, strict=True):
                    w, scale = world.weights[key]
                    length = np.abs(w * scale[:, None, None, None]).max(axis=(2, 3)).astype(float)
                    relative.append((length / length.max()).ravel())
                x = np.concatenate(relative)
                shares = {
                    f"sparsity_{n}": (x <= 1 / n).mean() for n in (1000, 500, 200, 100, 50, 20, 10)
                }
                rows.append(
                    {"dataset": dataset, "depth_bin": depth_bin, "kind": kind, "n_filters": len(x)}
                    | shares
                )
    return pd.DataFrame(rows)
