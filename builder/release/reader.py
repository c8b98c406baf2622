"""Read a release from Python: tables as Arrow, filters as (n, 3, 3) arrays. Needs no torch.

Only the files that are asked for are fetched from the Hub. They stay in its cache as Parquet:
no second, uncompressed copy is made.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from builder import hub, schema, store
from builder.errors import UsageError
from builder.files import cache_folder
from builder.release.manifest import Manifest, filter_files, parse_manifest, read_manifest
from builder.release.parquet import open_parquet

BATCH_ROWS = 131_072
"""Rows of a batch: one Parquet page of our files, and few enough to stay in the CPU's cache."""


@dataclass(frozen=True)
class FilterBatch:
    """Consecutive filters of one model.

    Attributes:
        model_id: the model.
        filters: (n, 3, 3) float32, row and column of the slice.
        layer_index, out_channel, in_channel: (n,) int16, the key of each filter.
    """

    model_id: str
    filters: npt.NDArray[np.float32]
    layer_index: npt.NDArray[np.int16]
    out_channel: npt.NDArray[np.int16]
    in_channel: npt.NDArray[np.int16]

    def __len__(self) -> int:
        return len(self.filters)


@dataclass(frozen=True)
class Release:
    """An open release.

    Attributes:
        address: where it is.
        manifest: what it is made of.
        fetch: maps a path inside it to a file on this machine.
        opened: opens a path inside it to read some of it where it is; None for a folder.
    """

    address: str
    manifest: Manifest
    fetch: Callable[[str], Path] = field(repr=False)
    opened: Callable[[str], IO[bytes]] | None = field(default=None, repr=False)

    def table(
        self,
        name: str,
        *,
        columns: Sequence[str] | None = None,
        where: Any = None,
    ) -> pa.Table:
        """A table other than `filters`, as Arrow.

        Args:
            name: one of builder.schema.SMALL_TABLES, e.g. "models" or "layers".
            columns: the columns wanted, in this order; default all.
            where: rows wanted, as pyarrow.parquet.read_table takes its `filters`, e.g.
                `[("weights", "=", "folded")]`.

        Raises:
            UsageError: no such table or column in this release.
        """
        path = schema.table_path(name)
        if name not in schema.SMALL_TABLES or path not in self.manifest["files"]:
            has = [t for t in schema.SMALL_TABLES if schema.table_path(t) in self.manifest["files"]]
            raise UsageError(
                f"{self.address} has no table '{name}'; it has {', '.join(has)}.",
                hint="the filters come from .filters()." if name == "filters" else "",
            )
        unknown = [c for c in columns or () if c not in schema.TABLES[name].names]
        if unknown:
            raise UsageError(
                f"table '{name}' has no column {', '.join(unknown)}.",
                hint=f"columns: {', '.join(schema.TABLES[name].names)}.",
            )
        wanted = list(columns) if columns is not None else None
        return pq.read_table(self.fetch(path), columns=wanted, filters=where, partitioning=None)

    @property
    def model_ids(self) -> list[str]:
        """The models of the release, sorted."""
        return sorted(self.manifest["models"])

    def filters(
        self,
        models: str | Sequence[str] = "*",
        *,
        layers: Sequence[str | int] | None = None,
        view: str = "trained",
        batch_rows: int = BATCH_ROWS,
    ) -> Iterator[FilterBatch]:
        """The filters of chosen models and layers, in the order of the files.

        Args:
            models: model_ids or shell patterns, e.g. "cifar10-robust-*".
            layers: module paths ("layer1.0.conv1") or values of layer_index; default all.
            view: "trained", the checkpoint's weights; or "folded", the paper's:
                `w * bn_scale` in float32.
            batch_rows: upper bound of rows in a batch.

        Yields:
            Batches of at most `batch_rows` filters; none spans two models.

        Raises:
            UsageError: a pattern, layer or view that does not exist.
        """
        schema.check_view(view)
        paths = self._filter_paths([models] if isinstance(models, str) else models)
        wanted = self.layer_indices(list(paths), layers)
        for model_id, path in paths.items():
            if layers is None or wanted[model_id]:
                chosen = None if layers is None else wanted[model_id]
                yield from _batches(self.fetch(path), model_id, chosen, view, batch_rows)

    def sql(
        self,
        query: str,
        params: Mapping[str, object] | Sequence[object] | None = None,
        *,
        memory_limit: str | None = None,
    ) -> pa.Table:
        """The answer of one SELECT over the views `models`, `pairs`, `layers`, `pca`,
        `histograms`, `first_layer`, `paper` and `filters` (and those of queries/views.sql).

        Args:
            query: DuckDB SQL.
            params: values that DuckDB binds: by name to `$name`, or in their order to `?`. A value
                is never read as SQL.
            memory_limit: of DuckDB, e.g. "4GB".

        Raises:
            UsageError: not one SELECT, a value too many or too few, or what DuckDB finds wrong.
            NetworkError: a release on the Hub that cannot be read.
        """
        from builder.release.views import explained, one_select, open_views

        one_select("the query", query)
        bound = dict(params) if isinstance(params, Mapping) else list(params or ())
        with open_views(self, memory_limit=memory_limit) as con, explained("the query"):
            return con.sql(query, params=bound or None).to_arrow_table()

    def weight(
        self, model_id: str, layer: str | int, *, view: str = "trained"
    ) -> npt.NDArray[np.float32]:
        """One layer's weight as (out_channels, in_channels, 3, 3) float32.

        `in_channels` counts inside a group, as in torch.nn.Conv2d.weight.

        Raises:
            UsageError: no such model, layer or view.
        """
        if model_id not in self.model_ids:  # `filters` would take a pattern
            raise UsageError(
                f"no model of {self.address} is called {model_id!r}.",
                hint=f"it has {len(self.model_ids)} models, e.g. {self.model_ids[0]}.",
            )
        parts = list(self.filters(model_id, layers=[layer], view=view))
        outs = int(max(part.out_channel[-1] for part in parts)) + 1
        flat = np.concatenate([part.filters for part in parts])
        return flat.reshape(outs, -1, 3, 3)

    def _filter_paths(self, patterns: Sequence[str]) -> dict[str, str]:
        """{model_id: path of its filters}, for every model that a pattern matches."""
        files = filter_files(self.manifest)
        found: dict[str, str] = {}
        for pattern in patterns:
            hit = {m: p for m, p in files.items() if fnmatchcase(m, pattern)}
            if not hit:
                raise UsageError(
                    f"no model of {self.address} matches {pattern!r}.",
                    hint=f"it has {len(files)} models, e.g. {next(iter(files), 'none')}.",
                )
            found |= hit
        return found

    def layer_indices(
        self, models: Sequence[str], layers: Sequence[str | int] | None
    ) -> dict[str, list[int]]:
        """{model_id: chosen layer_index values}; empty where `layers` is None.

        Raises:
            UsageError: a layer that none of the models has.
        """
        chosen: dict[str, list[int]] = {m: [] for m in models}
        if layers is None:
            return chosen
        table = self.table(
            "layers",
            columns=["model_id", "layer_index", "layer"],
            where=[("weights", "=", "trained"), ("model_id", "in", list(models))],
        )
        missing = set(layers)
        for row in table.to_pylist():
            hit = {row["layer"], row["layer_index"]} & set(layers)
            if hit:
                chosen[row["model_id"]].append(row["layer_index"])
                missing -= hit
        if missing:
            names = ", ".join(sorted(map(repr, missing)))
            raise UsageError(
                f"no chosen model has the 3x3 layer {names}.",
                hint="release.table('layers') lists the layers of every model.",
            )
        return chosen


def _row_groups(file: pq.ParquetFile, layers: Sequence[int] | None) -> list[int]:
    """Row groups that can hold the chosen layers, by their statistics where they have any."""
    meta = file.metadata
    if layers is None:
        return list(range(meta.num_row_groups))
    column = file.schema_arrow.get_field_index("layer_index")
    kept: list[int] = []
    for group in range(meta.num_row_groups):
        stats = meta.row_group(group).column(column).statistics
        known = stats is not None and stats.has_min_max
        if not known or any(stats.min <= layer <= stats.max for layer in layers):
            kept.append(group)
    return kept


def to_array(batch: pa.RecordBatch | pa.Table, view: str = "trained") -> npt.NDArray[np.float32]:
    """(n, 3, 3) float32 filters of an Arrow batch of the filters table.

    Args:
        batch: Arrow data with the columns w00 ... w22, and bn_scale for the folded view; from
            `datasets` (`with_format("arrow")`), DuckDB or pyarrow.
        view: "trained" or "folded".
    """
    schema.check_view(view)
    scale = batch.column("bn_scale").to_numpy() if view == "folded" else None
    out = np.empty((batch.num_rows, 9), np.float32)
    for i, name in enumerate(schema.FILTER_COLUMNS):
        column = batch.column(name).to_numpy()
        if scale is None:
            out[:, i] = column
        else:
            np.multiply(column, scale, out=out[:, i])
    return out.reshape(-1, 3, 3)


def _batches(
    path: Path, model_id: str, layers: Sequence[int] | None, view: str, batch_rows: int
) -> Iterator[FilterBatch]:
    """Batches of one model's file, restricted to `layers`."""
    keys = ["layer_index", "out_channel", "in_channel"]
    columns = [*keys, *schema.FILTER_COLUMNS, *(["bn_scale"] if view == "folded" else [])]
    with open_parquet(path) as file:
        groups = _row_groups(file, layers)
        for batch in file.iter_batches(batch_rows, row_groups=groups, columns=columns):
            if layers is not None:
                index = batch.column("layer_index").to_numpy()
                keep = np.isin(index, np.asarray(layers, index.dtype))
                if not keep.all():
                    batch = batch.filter(pa.array(keep))
            if batch.num_rows:
                key = [batch.column(k).to_numpy() for k in keys]
                yield FilterBatch(model_id, to_array(batch, view), *key)


def open_release(release: str | Path, revision: str | None = None) -> Release:
    """Open a release: a folder, "hf://datasets/org/name@v0.1.0" or "s3://bucket/prefix".

    Args:
        release: where it is; a Hub id "org/name", too, unless there is a folder of that name.
        revision: tag, branch or commit on the Hub; name a tag for results that stay the same.

    Raises:
        UsageError: not a release, or a revision given for a folder.
        NetworkError: the Hub or the store cannot be reached, or has no such repository, revision
            or bucket.
    """
    if isinstance(release, str) and store.is_address(release):
        if revision is not None:
            raise UsageError(f"{release} has no revisions; they belong to a Hub id.")
        return _in_a_bucket(store.Bucket(release))
    if isinstance(release, Path) or not hub.is_address(release):
        if revision is not None:
            raise UsageError(f"{release} is a folder; a revision belongs to a Hub id.")
        manifest = read_manifest(Path(release))
        root = Path(release).absolute()  # pyarrow takes a relative `a:b/c` for a URI
        return Release(str(release), manifest, lambda path: root / path)
    return _on_the_hub(hub.parse(release, revision))


def _on_the_hub(place: hub.Place) -> Release:
    fetch = hub.fetcher(place)
    manifest = read_manifest(fetch(schema.MANIFEST).parent)

    def opened(path: str) -> IO[bytes]:
        if schema.filters_key(path) and not hub.is_cached(place, path):
            there: IO[bytes] = hub.duckdb_filesystem().open(f"{place}/{path}", "rb")
            return there
        return fetch(path).open("rb")

    return Release(str(place), manifest, fetch, opened)


def _in_a_bucket(bucket: store.Bucket) -> Release:
    """What is fetched stays in the cache, in a folder per manifest: it is of this very release,
    whatever is written to the bucket later."""
    raw = bucket.read(schema.MANIFEST)
    if raw is None:
        raise UsageError(
            f"{bucket} is not a release: it has no {schema.MANIFEST}.",
            hint=f"`builder build --out {bucket}` makes one.",
        )
    manifest = parse_manifest(raw, bucket)
    folder = cache_folder() / "releases" / manifest["sha256"]
    files = manifest["files"]

    def fetch(path: str) -> Path:
        if not (folder / path).is_file():
            bucket.fetch(path, folder / path, sha256=files[path]["sha256"])
        return folder / path

    def opened(path: str) -> IO[bytes]:
        if schema.filters_key(path) and not (folder / path).is_file():
            return io.BufferedReader(bucket.open(path, files[path]["bytes"]))
        return fetch(path).open("rb")

    return Release(str(bucket), manifest, fetch, opened)
