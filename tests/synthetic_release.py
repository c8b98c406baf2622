"""A tiny release whose numbers hang together: filters, and every metric computed from them.

Random filters, seeded; the cohort is called `synthetic`. The metrics are computed here with NumPy
by other means than the build's (SVD, np.histogram, explicit loops), so that queries and audits can
be compared with an independent computation. The tables are kept as pandas data frames.
"""

from __future__ import annotations

import itertools
import math
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from builder import schema
from builder.paper.published import paper_table
from builder.release import content
from builder.release.manifest import write_manifest
from builder.release.sample import positions
from builder.release.split import with_splits
from builder.release.write import write_table

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Net:
    network: str
    dataset: str
    robust: bool
    architecture: str
    partner: str | None = None
    clean_acc: float | None = None
    autoattack_acc: float | None = None
    filters_of: str | None = None  # network whose filters this one repeats

    @property
    def model_id(self) -> str:
        return schema.model_id(self.dataset, self.robust, self.network)


NETS = (
    Net("Ash", "cifar10", True, "Tiny-1", "Plain", 84.0, 50.0),
    Net("Ash_extra", "cifar10", True, "Tiny-1", "Plain", 88.5, 56.25),
    Net("Birch", "cifar10", True, "Tiny-1", "Twin", 84.0, 47.5),
    Net("Cedar", "cifar10", True, "Tiny-2", "Other", 80.5, 41.0),
    Net("Plain", "cifar10", False, "Tiny-1", None, 95.0, 0.0),
    Net("Twin", "cifar10", False, "Tiny-1", None, 94.5, None, filters_of="Plain"),
    Net("Other", "cifar10", False, "Tiny-2", None, 93.0, 0.25),
    Net("Ash", "cifar100", True, "Tiny-1", "Plain", 62.0, 27.0),
    Net("Birch", "cifar100", True, "Tiny-1", "Plain", 60.0, 29.0),
    Net("Cedar", "cifar100", True, "Tiny-2", "Plain", 58.0, 25.0),
    Net("Plain", "cifar100", False, "Tiny-1", None, 75.0, 0.0),
    Net("Doum", "imagenet", True, "Tiny-3", "Wide", 61.0, 30.0),
    Net("Wide", "imagenet", False, "Tiny-3", None, 78.0, None),
)

# (layer, output channels, input channels, conv_depth, depth bin, folded BatchNorm)
LAYERS: tuple[tuple[str, int, int, int, int, str | None], ...] = (
    ("conv1", 8, 3, 0, 0, "bn1"),
    ("layer1.conv1", 6, 8, 1, 1, None),
    ("layer1.conv2", 8, 6, 5, 5, "layer1.bn2"),
    ("layer2.conv1", 10, 8, 9, 9, "layer2.bn1"),
    ("layer2.conv2", 7, 10, 10, 10, None),
    ("head", 1, 7, 10, 10, None),
)


def layers_of(net: Net) -> list[tuple[int, tuple[str, int, int, int, int, str | None]]]:
    """The 3x3 layers of a network; ImageNet's have no first one, their stem is 7x7."""
    own = LAYERS[1:] if net.dataset == "imagenet" else LAYERS
    return list(enumerate(own))


def sampled(filters: pa.Table) -> pa.Table:
    """The rows of filters_sample of one model's filters."""
    layer = filters["layer_index"].to_numpy()
    found = [np.flatnonzero(layer == index) for index in np.unique(layer)]
    return filters.take(np.concatenate([rows[positions(len(rows))] for rows in found]))


@dataclass
class World:
    """The tables of the release, and `weights[model_id, layer_index] = (w, bn_scale)`."""

    weights: dict[tuple[str, int], tuple[Array, Array]] = field(default_factory=dict)
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)


def _weights(net: Net, index: int, outs: int, ins: int, bn: bool) -> tuple[Array, Array]:
    name = f"v2/{net.dataset}/{net.filters_of or net.network}/{net.robust}/{index}"
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    w = rng.normal(size=(outs, ins, 3, 3)) @ rng.normal(size=(3, 3))
    quiet = rng.random((outs, ins)) < rng.uniform(0.05, 0.5)
    w[quiet] *= 1e-4  # sparse filters, each well away from the threshold
    scale = np.ones(outs)
    if bn:
        scale = rng.normal(1.0, 0.5, outs)
        scale[0] *= -1
        if outs > 6:
            scale[1] = 0.0
    return w.astype(np.float32), scale.astype(np.float32)


def scaled_filters(w: Array, scale: Array, view: str) -> Array:
    """(n, 9) float64: non-sparse filters of a layer, each divided by its largest |x|."""
    x = w * scale[:, None, None, None] if view == "folded" else w
    x = x.reshape(-1, 9).astype(np.float64)
    length = np.abs(x).max(axis=1)
    return x[length > length.max() / 100] / length[length > length.max() / 100, None]


def ratios(x: Array) -> Array:
    """Explained variance ratios by SVD of the centred filters."""
    s = np.linalg.svd(x - x.mean(axis=0), compute_uv=False) ** 2
    s = np.pad(s, (0, 9 - len(s)))
    return s / s.sum()


def entropy(x: Array) -> float:
    p = ratios(x)
    return float(-sum(v * math.log10(v) for v in p if v > 1e-300))


def orthogonality(w: Array) -> float | None:
    """1 - mean off-diagonal |cosine|, pair by pair; zero channels count on the diagonal."""
    n = len(w)
    if n == 1:
        return None
    rows = w.reshape(n, -1).astype(np.float64)
    total = 0.0
    for i, j in itertools.product(range(n), range(n)):
        a, b = rows[i], rows[j]
        norm = np.linalg.norm(a) * np.linalg.norm(b)
        total += abs((a @ b / norm if norm else 0.0) - (i == j))
    return 1 - total / (n * (n - 1))


def _layer_rows(world: World) -> list[dict[str, Any]]:
    rows = []
    for net in NETS:
        for index, (layer, outs, ins, depth, depth_bin, bn) in layers_of(net):
            w, scale = world.weights[net.model_id, index]
            for view in schema.WEIGHT_VIEWS:
                x = scaled_filters(w, scale, view)
                raw = w * scale[:, None, None, None] if view == "folded" else w
                centred = x - x.mean(axis=0)
                scatter = sum(np.outer(row, row) for row in centred)
                rows.append(
                    {
                        "dataset": net.dataset,
                        "model_id": net.model_id,
                        "layer_index": index,
                        "layer": layer,
                        "weights": view,
                        "conv_depth": depth,
                        "conv_depth_norm": depth / 10,
                        "depth_bin": depth_bin,
                        "out_channels": outs,
                        "in_channels": ins,
                        "groups": 1,
                        "stride": 1,
                        "n_filters": outs * ins,
                        "bn_layer": bn,
                        "layer_linf": float(np.abs(raw).max()),
                        "n_sparse": outs * ins - len(x),
                        "sparsity": (outs * ins - len(x)) / (outs * ins),
                        "variance_entropy": entropy(x),
                        "orthogonality": orthogonality(raw),
                        "explained_variance_ratio": ratios(x).tolist(),
                        "mean": x.mean(axis=0).tolist(),
                        "scatter": [float(scatter[i, j]) for i, j in schema.SCATTER_PAIRS],
                    }
                )
    return rows


def _aggregates(layers: pd.DataFrame, model_id: str, view: str) -> dict[str, Any]:
    own = layers[(layers.model_id == model_id) & (layers.weights == view)]
    suffix = "" if view == "folded" else "_trained"
    kept = own.n_filters - own.n_sparse
    known = own[own.orthogonality.notna()]
    return {
        "n_sparse" + suffix: int(own.n_sparse.sum()),
        "sparsity" + suffix: own.n_sparse.sum() / own.n_filters.sum(),
        "variance_entropy" + suffix: np.average(own.variance_entropy, weights=kept),
        "orthogonality" + suffix: np.average(known.orthogonality, weights=known.out_channels),
    }


def _model_rows(layers: pd.DataFrame) -> list[dict[str, Any]]:
    rows = []
    for net in NETS:
        twin = schema.model_id(net.dataset, net.robust, net.filters_of) if net.filters_of else None
        own = layers[(layers.model_id == net.model_id) & (layers.weights == "trained")]
        about = asdict(net)
        rows.append(
            {
                **{k: about[k] for k in ("network", "dataset", "robust", "architecture")},
                "clean_acc": net.clean_acc,
                "autoattack_acc": net.autoattack_acc,
                "model_id": net.model_id,
                "constructor": "synthetic:none",
                "source": "synthetic",
                "n_params": 0,
                "n_layers": len(own),
                "n_filters": int(own.n_filters.sum()),
                "filters_hash": twin or net.model_id,
                "same_filters_as": twin,
                **_aggregates(layers, net.model_id, "folded"),
                **_aggregates(layers, net.model_id, "trained"),
            }
        )
    return rows


def model_filters(world: World, model_id: str, view: str) -> Array:
    """All scaled non-sparse filters of a model, (n, 9)."""
    parts = [v for (m, _), v in sorted(world.weights.items()) if m == model_id]
    return np.concatenate([scaled_filters(w, s, view) for w, s in parts])


def _pca_rows(world: World) -> list[dict[str, Any]]:
    sets = {net.model_id: [net.model_id] for net in NETS}
    sets["full"] = [n.model_id for n in NETS]
    sets["robust"] = [n.model_id for n in NETS if n.robust]
    sets["standard"] = [n.model_id for n in NETS if not n.robust]
    rows = []
    for basis, members in sets.items():
        for view in schema.WEIGHT_VIEWS:
            x = np.concatenate([model_filters(world, m, view) for m in members])
            _, s, directions = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
            for i in range(9):
                sign = np.sign(directions[i][np.abs(directions[i]).argmax()])
                rows.append(
                    {
                        "basis": basis,
                        "weights": view,
                        "component": i,
                        "n_samples": len(x),
                        "explained_variance": s[i] ** 2 / (len(x) - 1),
                        "explained_variance_ratio": s[i] ** 2 / (s**2).sum(),
                        "direction": (directions[i] * sign).tolist(),
                        "mean": x.mean(axis=0).tolist(),
                    }
                )
    return rows


def _histogram_rows(world: World, pca: pd.DataFrame) -> list[dict[str, Any]]:
    full = pca[(pca.basis == "full") & (pca.weights == "folded")].sort_values("component")
    directions, mean = np.stack(full.direction), np.array(full["mean"].iloc[0])
    coefficients: dict[tuple[str, str, int], list[Array]] = {}
    for net in NETS:
        for index, (_, _, _, _, depth_bin, _) in layers_of(net):
            w, scale = world.weights[net.model_id, index]
            x = (scaled_filters(w, scale, "folded") - mean) @ directions.T
            coefficients.setdefault((net.dataset, net.model_id, depth_bin), []).append(x)
    everything = np.concatenate([x for parts in coefficients.values() for x in parts])
    extent = (everything.min(), everything.max())
    rows = []
    for (dataset, model_id, depth_bin), parts in coefficients.items():
        for component in range(9):
            counts, edges = np.histogram(
                np.concatenate(parts)[:, component], schema.N_BINS, range=extent
            )
            for number, n in enumerate(counts):
                rows.append(
                    {
                        "dataset": dataset,
                        "model_id": model_id,
                        "depth_bin": depth_bin,
                        "component": component,
                        "bin": number,
                        "bin_low": edges[number],
                        "bin_high": edges[number + 1],
                        "n": int(n),
                    }
                )
    return rows


def _first_layer_rows() -> list[dict[str, Any]]:
    rng = np.random.default_rng(3)
    return [
        {
            "dataset": net.dataset,
            "model_id": net.model_id,
            "layer": "conv1",
            "perturbation": perturbation,
            "out_channel": channel,
            "eps": 8 / 255,
            "n_images": 4,
            "response_pre": float(rng.uniform(0.5, 2)),
            "response_post": float(rng.uniform(0.1, 1)),
            "activation_pass": float(rng.uniform(0.1, 1)),
        }
        for net in NETS
        for perturbation in ("random", "pgd")
        for channel in (None, 0, 1)
    ]


def make_world() -> World:
    """The whole release, in memory. The same on every call."""
    world = World()
    for net in NETS:
        for index, (_, outs, ins, _, _, bn) in layers_of(net):
            world.weights[net.model_id, index] = _weights(net, index, outs, ins, bn is not None)
    tables = world.tables
    tables["layers"] = pd.DataFrame(_layer_rows(world))
    tables["pairs"] = pd.DataFrame(
        {
            "robust_model_id": net.model_id,
            "standard_model_id": schema.model_id(net.dataset, False, net.partner),
            "dataset": net.dataset,
            "architecture": net.architecture,
        }
        for net in NETS
        if net.partner
    )
    models = with_splits(_model_rows(tables["layers"]), tables["pairs"].to_dict("records"))
    tables["models"] = pd.DataFrame(models)
    tables["pca"] = pd.DataFrame(_pca_rows(world))
    tables["histograms"] = pd.DataFrame(_histogram_rows(world, tables["pca"]))
    tables["first_layer"] = pd.DataFrame(_first_layer_rows())
    tables["paper"] = paper_table().to_pandas()
    return world


def filter_table(world: World, net: Net) -> pa.Table:
    """Rows of `filters` of one model."""
    parts = []
    for index, (_, outs, ins, _, _, _) in layers_of(net):
        w, scale = world.weights[net.model_id, index]
        flat = w.reshape(-1, 9)
        parts.append(
            pd.DataFrame(
                {
                    "dataset": net.dataset,
                    "model_id": net.model_id,
                    "layer_index": index,
                    "out_channel": np.repeat(np.arange(outs), ins),
                    "in_channel": np.tile(np.arange(ins), outs),
                    **{name: flat[:, i] for i, name in enumerate(schema.FILTER_COLUMNS)},
                    "linf": np.abs(flat).max(axis=1),
                    "bn_scale": np.repeat(scale, ins),
                }
            )
        )
    rows = pd.concat(parts)
    columns = {name: rows[name].to_numpy() for name in schema.FILTERS.names}  # keeps NaN
    return pa.Table.from_pydict(columns, schema.FILTERS.arrow)


def arrow_table(name: str, frame: pd.DataFrame) -> pa.Table:
    """A data frame with the columns, types and order that the schema asks for."""
    table = schema.TABLES[name]
    rows = frame.astype(object).where(frame.notna(), None).to_dict("records")
    return pa.Table.from_pylist(
        [{c: row.get(c) for c in table.names} for row in rows], schema=table.arrow
    )


def write_tables(
    root: Path,
    tables: dict[str, pa.Table],
    filters: dict[str, pa.Table],
    *,
    cohort: str = "synthetic",
    weights: str = "checkpoints",
) -> Path:
    """A release folder of the given tables; missing ones are written without rows."""
    files = {}
    for name in schema.SMALL_TABLES:
        data = tables.get(name, schema.TABLES[name].arrow.empty_table())
        path = schema.table_path(name)
        files[path] = write_table(root / path, schema.TABLES[name], data, weights)
    for path, data in filters.items():
        written = write_table(root / path, schema.FILTERS, data, weights)
        own = content.hash_rows(data, content.FILTER_IDENTITY)  # whose they are is in the path
        files[path] = {**written, "content_hash": content.text(own)}
    n_models = tables["models"].num_rows if "models" in tables else 0
    n_pairs = tables["pairs"].num_rows if "pairs" in tables else 0
    write_manifest(
        root,
        {
            "name": "synthetic",
            "version": "0.1.0",
            "schema_version": schema.SCHEMA_VERSION,
            "cohort": {"name": cohort, "digest": "", "models": None},
            "weights": weights,
            "options": {},
            "tools": {},
            "totals": {"models": n_models, "pairs": n_pairs, "layers": 0, "filters": 0},
            "files": files,
            "models": {},
            "duplicates": [],
            "problems": [],
        },
    )
    return root


def write_release(root: Path, world: World, **about: str) -> Path:
    """Write a world as a release folder."""
    tables = {n: arrow_table(n, f) for n, f in world.tables.items() if n != "paper"}
    filters = {
        schema.filters_path(net.dataset, net.model_id): filter_table(world, net) for net in NETS
    }
    return write_tables(root, {**tables, "paper": paper_table()}, filters, **about)
