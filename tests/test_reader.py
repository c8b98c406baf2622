"""The helper for Python users, on a release folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from types import FrameType

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
import tiny_release
from tiny_release import LAYERS, MODELS, write_tiny_release

import builder
from builder import schema
from builder.errors import UsageError
from builder.release.reader import Release, open_release, to_array


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_release(tmp_path_factory.mktemp("release"))


@pytest.fixture(scope="module")
def release(root: Path) -> Release:
    return open_release(root)


def stored(model: tiny_release.Tiny) -> tuple[pa.Table, np.ndarray]:
    table = tiny_release.filters(model)
    w = np.stack([table.column(c).to_numpy() for c in schema.FILTER_COLUMNS], axis=1)
    return table, w.reshape(-1, 3, 3)


def test_every_filter_comes_once_and_in_the_order_of_the_file(release: Release) -> None:
    for model in MODELS:
        table, w = stored(model)
        parts = list(release.filters(model.model_id, batch_rows=50))
        assert max(map(len, parts)) <= 50 and len(parts) > 1
        got = np.concatenate([p.filters for p in parts])
        assert got.dtype == np.float32 and got.shape[1:] == (3, 3)
        np.testing.assert_array_equal(got, w)
        for key in ("layer_index", "out_channel", "in_channel"):
            column = np.concatenate([getattr(p, key) for p in parts])
            np.testing.assert_array_equal(column, table.column(key).to_numpy())


def test_the_folded_view_is_w_times_bn_scale_in_float32(release: Release) -> None:
    table, w = stored(MODELS[0])
    scale = table.column("bn_scale").to_numpy()
    (batch,) = release.filters(MODELS[0].model_id, view="folded")
    assert batch.filters.dtype == np.float32
    np.testing.assert_array_equal(batch.filters, w * scale[:, None, None])


@pytest.mark.parametrize("chosen", [["layer1.0.conv1"], [1], [0, 2], ["conv1", 2]])
def test_layers_are_chosen_by_path_or_by_index(release: Release, chosen: list[str | int]) -> None:
    names = [name for name, _, _ in LAYERS]
    wanted = sorted(names.index(c) if isinstance(c, str) else c for c in chosen)
    table, w = stored(MODELS[1])
    keep = np.isin(table.column("layer_index").to_numpy(), wanted)
    parts = list(release.filters(MODELS[1].model_id, layers=chosen, batch_rows=64))
    np.testing.assert_array_equal(np.concatenate([p.filters for p in parts]), w[keep])


def test_a_weight_has_the_shape_of_its_convolution(release: Release) -> None:
    name, outs, ins = LAYERS[2]
    weight = release.weight(MODELS[0].model_id, name)
    assert weight.shape == (outs, ins, 3, 3)
    table, w = stored(MODELS[0])
    rows = (table.column("layer_index").to_numpy() == 2).nonzero()[0]
    np.testing.assert_array_equal(weight[5, 3], w[rows[5 * ins + 3]])


def test_a_weight_is_that_of_one_model(release: Release) -> None:
    with pytest.raises(UsageError, match=r"no model of .* is called 'cifar10-\*'"):
        release.weight("cifar10-*", 0)


def test_patterns_choose_models(release: Release) -> None:
    ids = {b.model_id for b in release.filters("cifar10-robust-*")}
    assert ids == {m.model_id for m in MODELS if m.dataset == "cifar10" and m.robust}
    both = {b.model_id for b in release.filters([MODELS[0].model_id, "cifar100-*"])}
    assert len(both) == 3
    assert {b.model_id for b in release.filters()} == set(release.model_ids)


def test_tables_come_as_arrow_with_the_types_of_the_schema(release: Release) -> None:
    for name in schema.SMALL_TABLES:
        table = release.table(name)
        assert table.schema.names == list(schema.TABLES[name].names)
        assert table.schema.equals(schema.TABLES[name].arrow)
    folded = release.table(
        "layers", columns=["layer", "sparsity"], where=[("weights", "=", "folded")]
    )
    assert folded.num_rows == len(LAYERS) * len(MODELS)
    assert folded.column_names == ["layer", "sparsity"]


def test_sql_answers_in_arrow(release: Release) -> None:
    answer = release.sql("select model_id, n_filters from models order by model_id")
    assert isinstance(answer, pa.Table)
    assert answer["model_id"].to_pylist() == release.model_ids
    assert set(answer["n_filters"].to_pylist()) == {216}
    filters = release.sql("select count(*) as n, count(distinct model_id) as models from filters")
    assert filters.to_pylist() == [{"n": 216 * len(MODELS), "models": len(MODELS)}]
    assert release.sql("select 1 as one from models where false").num_rows == 0


@pytest.mark.parametrize(
    "query",
    ["selec 1", "select colour from models", "from nothing", "select 1; drop view models", ""],
)
def test_sql_that_is_wrong_is_a_usage_error(release: Release, query: str) -> None:
    with pytest.raises(UsageError, match="the query"):
        release.sql(query)


@pytest.mark.parametrize(
    "query",
    [
        "copy models to 'a.csv'",
        "create table t as select 1",
        "attach 'a.db'",
        "export database 'x'",
    ],
)
def test_sql_writes_no_file(
    release: Release, tmp_path: Path, query: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = open_release(Path(release.address).absolute())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="expected one SELECT"):
        there.sql(query)
    assert list(tmp_path.iterdir()) == []


def test_sql_larger_than_memory_spills_to_a_folder_that_is_gone_afterwards(
    release: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    spill = tmp_path / "spill"
    spill.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(spill))
    sorted_ = (
        "select max(x) from (select x from range(6000000) t(x) order by hash(x) limit 5999999)"
    )
    assert release.sql(sorted_, memory_limit="60MB").num_rows == 1
    assert [p.name for p in tmp_path.iterdir()] == ["spill"] and not list(spill.iterdir())


def test_every_way_to_read_a_file_ignores_the_folders_above(root: Path, tmp_path: Path) -> None:
    """Below robust=false/dataset=x/: pandas, pyarrow, Polars, datasets, DuckDB as on the card."""
    import pandas as pd

    home = tmp_path / "robust=false" / "dataset=x" / "release"
    shutil.copytree(root, home)
    models, filters = home / "data" / "models.parquet", home / "data" / "filters"
    expected = [(m.dataset, m.robust) for m in MODELS]
    columns = ["dataset", "robust"]

    def pairs(frame: pd.DataFrame) -> list[tuple[str, bool]]:
        return [(str(d), bool(r)) for d, r in frame[columns].itertuples(index=False)]

    assert pairs(pd.read_parquet(models)) == expected
    assert pairs(pq.read_table(models).to_pandas()) == expected
    assert pairs(pa.dataset.dataset(models).to_table().to_pandas()) == expected
    assert pairs(open_release(home).table("models").to_pandas()) == expected
    for path in (filters, *filters.glob("*/*.parquet")):
        for table in (pq.read_table(path), pq.read_table(path, partitioning=None)):
            assert "x" not in table["dataset"].unique().to_pylist()
        assert "x" not in set(pd.read_parquet(path)["dataset"])
    polars = pytest.importorskip("polars")
    assert polars.read_parquet(models).select(columns).rows() == expected
    assert polars.scan_parquet(models).select(columns).collect().rows() == expected
    for path in (filters, filters / "*" / "*.parquet"):
        found = polars.scan_parquet(path).select("dataset").unique().collect()["dataset"]
        assert set(found.cast(polars.String)) == {"cifar10", "cifar100"}
    duckdb = pytest.importorskip("duckdb")
    read = f"read_parquet('{models}', hive_partitioning = false)"
    assert duckdb.sql(f"select dataset, robust from {read}").fetchall() == expected
    pytest.importorskip("datasets")
    code = (
        "import sys; from datasets import load_dataset\n"
        "for name, stream in (('models', False), ('filters_cifar10', True)):\n"
        "    rows = load_dataset(sys.argv[1], name, split='train', streaming=stream)\n"
        "    print(name, sorted({row['dataset'] for row in rows}))\n"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(home)], env=environment, capture_output=True, text=True
    )
    assert done.stdout.splitlines() == [
        "models ['cifar10', 'cifar100']",
        "filters_cifar10 ['cifar10']",
    ], done.stderr


def test_row_groups_without_the_layer_are_not_read(tmp_path: Path, root: Path) -> None:
    from builder.release.reader import _row_groups

    source = root / schema.filters_path("cifar10", MODELS[0].model_id)
    pq.write_table(pq.ParquetFile(source).read(), tmp_path / "f.parquet", row_group_size=64)
    file = pq.ParquetFile(tmp_path / "f.parquet")
    assert len(_row_groups(file, None)) == file.metadata.num_row_groups == 4
    assert _row_groups(file, [0]) == [0]
    assert _row_groups(file, [2]) == [1, 2, 3]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda r: list(r.filters("nobody")), "no model .* matches 'nobody'"),
        (lambda r: list(r.filters(view="bent")), "unknown view 'bent'"),
        (lambda r: list(r.filters(layers=["conv9"])), "layer 'conv9'"),
        (lambda r: r.table("filters"), "no table 'filters'"),
        (lambda r: r.table("models", columns=["colour"]), "no column colour"),
    ],
)
def test_a_wrong_name_is_one_clear_message(release: Release, call: object, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        call(release)  # type: ignore[operator]


def test_a_value_in_sql_is_bound_and_never_read_as_sql(release: Release) -> None:
    model = MODELS[0].model_id
    asked = "select count(*) as n from models where model_id = "
    count = {"n": [1]}
    assert release.sql(f"{asked} $id", {"id": model}).to_pydict() == count
    assert release.sql(f"{asked} ?", [model]).to_pydict() == count
    assert release.sql(f"{asked} $id", {"id": f"{model}' or true --"}).to_pydict() == {"n": [0]}
    several = "select count(*) as n from models where list_contains($ids, model_id)"
    assert release.sql(several, {"ids": [model, "another"]}).to_pydict() == count
    for query, params, said in (
        ("select $id", {}, "parameters: id"),
        ("select 1", {"id": 1}, "Expected 0, got 1"),
        ("select ?", [1, 2], "excess parameters: 2"),
        ("select $id", {"id": object()}, "Unable to transform"),
    ):
        with pytest.raises(UsageError, match=said):
            release.sql(query, params)


def test_what_is_no_release_is_said_to_be_none(tmp_path: Path, root: Path) -> None:
    with pytest.raises(UsageError, match="not a release"):
        open_release(tmp_path)
    with pytest.raises(UsageError, match="revision belongs to a Hub id"):
        open_release(root, revision="v1.0.0")
    assert builder.open_release is open_release


def test_reading_imports_neither_torch_nor_the_hub(root: Path) -> None:
    source = (
        "import sys, builder; r = builder.open_release(sys.argv[1]); "
        "n = sum(map(len, r.filters(view='folded'))); assert n, n; "
        "bad = {'torch', 'huggingface_hub', 'datasets', 'duckdb'} & set(sys.modules)\n"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", source, str(root)], check=True)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file of a million filters with the layout of a release."""
    n = 1 << 20
    rng = np.random.default_rng(0)
    outs = 1 << 10
    table = pa.table(
        {
            "dataset": pa.array(np.zeros(n, np.int32)),
            "model_id": pa.array(np.zeros(n, np.int32)),
            "layer_index": np.repeat(np.arange(8, dtype=np.int16), n // 8),
            "out_channel": np.tile(np.repeat(np.arange(outs, dtype=np.int16), n // 8 // outs), 8),
            "in_channel": np.tile(np.arange(n // 8 // outs, dtype=np.int16), 8 * outs),
            **{c: rng.normal(size=n).astype(np.float32) for c in schema.FILTER_COLUMNS},
            "bn_scale": rng.normal(size=n).astype(np.float32),
        }
    )
    path = tmp_path_factory.mktemp("large") / "large.parquet"
    floats = [f.name for f in table.schema if pa.types.is_float32(f.type)]
    pq.write_table(
        table,
        path,
        compression="zstd",
        compression_level=1,
        use_dictionary=["dataset", "model_id", "layer_index"],
        column_encoding=dict.fromkeys(floats, "BYTE_STREAM_SPLIT"),
        row_group_size=524_288,
        max_rows_per_page=131_072,
        data_page_size=8 << 20,
    )
    return path


@pytest.mark.parametrize("view", schema.WEIGHT_VIEWS)
def test_no_python_runs_per_filter(large: Path, view: str) -> None:
    from builder.release.reader import _batches

    done: Counter[int] = Counter()  # instructions of the interpreter, by the size of the batches

    def count(frame: FrameType, event: str, argument: object) -> object:
        frame.f_trace_opcodes = True
        done[rows] += event == "opcode"
        return count

    for rows in (1 << 12, 1 << 17):
        batches = _batches(large, "m", None, view, rows)
        first = next(batches)  # opening the file is none of it
        before = sys.gettrace()
        sys.settrace(count)
        try:
            rest = list(batches)
        finally:
            sys.settrace(before)
        assert {len(b) for b in (first, *rest)} == {rows}
        done[rows] //= len(rest)
    assert 100 < done[1 << 17] < 1.1 * done[1 << 12] + 100


def test_arrow_batches_of_any_origin_become_arrays(root: Path) -> None:
    model = MODELS[0]
    table, w = stored(model)
    np.testing.assert_array_equal(to_array(table), w)
    duckdb = pytest.importorskip("duckdb")
    path = root / schema.filters_path(model.dataset, model.model_id)
    with duckdb.connect() as con:
        batch = con.sql(f"FROM '{path}' WHERE layer_index = 0").to_arrow_table()
    np.testing.assert_array_equal(to_array(batch), w[: batch.num_rows])
