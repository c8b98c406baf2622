"""The queries: against independent computations, and in a bare duckdb. Golden answers: release/."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pytest
import query_oracles
import synthetic_release
from conftest import build_toy
from query_oracles import KEYS, ORACLES
from synthetic_release import NETS, World

from builder import schema
from builder.files import project_file
from builder.paper.published import paper_table
from builder.release.reader import open_release
from builder.release.views import open_views
from builder.sql import catalog, run

ROOT = Path(__file__).parent.parent
QUERIES = catalog.list_queries()
FINDINGS = catalog.list_findings()
AUDITS = [q for q in QUERIES if "/" in q.name]


def names(queries: list[catalog.Query]) -> list[str]:
    return [q.name for q in queries]


@pytest.fixture(scope="module")
def world() -> World:
    return synthetic_release.make_world()


@pytest.fixture(scope="module")
def release(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic_release.write_release(tmp_path_factory.mktemp("synthetic"), world)


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Schema only: every table without rows, one filter file without rows."""
    path = schema.filters_path("cifar10", "none")
    filters = {path: schema.FILTERS.arrow.empty_table()}
    return synthetic_release.write_tables(tmp_path_factory.mktemp("empty"), {}, filters)


@pytest.fixture(scope="module")
def single(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One standard model, no pair, as a cohort of one."""
    net = next(n for n in NETS if not n.robust)
    tables = {}
    for name in ("models", "layers", "histograms", "first_layer"):
        frame = world.tables[name]
        tables[name] = synthetic_release.arrow_table(name, frame[frame.model_id == net.model_id])
    pca = world.tables["pca"]
    own = pca[pca.basis.isin([net.model_id, "full", "standard"])]
    tables["pca"] = synthetic_release.arrow_table("pca", own)
    tables["paper"] = paper_table()
    path = schema.filters_path(net.dataset, net.model_id)
    filters = {path: synthetic_release.filter_table(world, net)}
    return synthetic_release.write_tables(tmp_path_factory.mktemp("single"), tables, filters)


@pytest.fixture(scope="module")
def con(release: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    with open_views(open_release(release), threads=1) as connection:
        yield connection


def answer(con: duckdb.DuckDBPyConnection, asked: catalog.Query, **params: str) -> pd.DataFrame:
    got = run.run_query(con, asked, params)
    return pd.DataFrame(got.rows(), columns=got.schema.names)


def same(ours: Any, theirs: Any, what: str) -> None:
    if ours is None or theirs is None or pd.isna(ours) or pd.isna(theirs):
        assert pd.isna(ours) and pd.isna(theirs), f"{what}: {ours} against {theirs}"
    elif isinstance(ours, float | np.floating) or isinstance(theirs, float | np.floating):
        assert float(ours) == pytest.approx(float(theirs), rel=1e-9, abs=1e-9), what
    else:
        assert ours == theirs, what


@pytest.mark.parametrize("asked", FINDINGS, ids=names(FINDINGS))
def test_an_answer_is_what_numpy_and_pandas_compute(
    asked: catalog.Query, con: duckdb.DuckDBPyConnection, world: World
) -> None:
    agree(answer(con, asked), ORACLES[asked.subject](world), KEYS[asked.subject])


def agree(got: pd.DataFrame, expected: pd.DataFrame, n_keys: int) -> None:
    """The same rows, found by their first columns."""
    assert len(expected) > 0
    keys = list(expected.columns[:n_keys])
    assert not got.duplicated(keys).any()
    by_key = {tuple(row[k] for k in keys): row for row in got.to_dict("records")}
    wanted = {tuple(row[k] for k in keys): row for row in expected.to_dict("records")}
    assert by_key.keys() == wanted.keys()
    for key, row in wanted.items():
        for column in expected.columns[len(keys) :]:
            same(by_key[key][column], row[column], f"{key}: {column}")


@pytest.mark.parametrize("asked", AUDITS, ids=names(AUDITS))
def test_an_audit_agrees_with_the_tables(
    asked: catalog.Query, con: duckdb.DuckDBPyConnection
) -> None:
    got = answer(con, asked)
    assert len(got) > 0 and got.within.all()


def test_the_audit_of_the_threshold_is_what_numpy_computes(
    con: duckdb.DuckDBPyConnection, world: World
) -> None:
    got = answer(con, catalog.load("audit/threshold"))
    assert got.within.all()
    whole = {"depth_bin": -1}  # null: all depth bins
    agree(got.fillna(whole), query_oracles.threshold(world).fillna(whole), 3)


def test_the_dct_functions_are_orthonormal_and_packed_as_scatter_is(
    con: duckdb.DuckDBPyConnection,
) -> None:
    rows = con.sql("select c, packed from dct_basis").fetchall()
    c = np.array([row[0] for row in rows])
    assert np.allclose(c @ c.T, np.eye(9), atol=1e-15)
    s = np.arange(81.0).reshape(9, 9)
    s += s.T
    flat = [s[i, j] for i, j in schema.SCATTER_PAIRS]
    for direction, packed in rows:
        assert np.dot(packed, flat) == pytest.approx(np.array(direction) @ s @ direction)


@pytest.mark.parametrize("column", ["w00", "w22", "bn_scale", "linf"])
def test_the_audits_notice_a_filter_that_was_changed(
    column: str, release: Path, world: World, tmp_path: Path
) -> None:
    net = NETS[0]
    filters = {
        schema.filters_path(n.dataset, n.model_id): synthetic_release.filter_table(world, n)
        for n in NETS
    }
    path = schema.filters_path(net.dataset, net.model_id)
    frame = filters[path].to_pandas()
    row = int(frame.linf.to_numpy().argmax())
    frame.loc[row, column] *= np.float32(50)
    filters[path] = type(filters[path]).from_pandas(
        frame, schema.FILTERS.arrow, preserve_index=False
    )
    tables = {n: synthetic_release.arrow_table(n, f) for n, f in world.tables.items()}
    synthetic_release.write_tables(tmp_path, tables, filters)
    with open_views(open_release(tmp_path)) as con:
        noticed = {q.name for q in AUDITS if not answer(con, q).within.all()}
    assert noticed, f"no audit noticed {column}"
    assert ("audit/linf" in noticed) == (column != "bn_scale")


def test_an_audit_of_one_model_answers_for_that_model(con: duckdb.DuckDBPyConnection) -> None:
    model = NETS[2].model_id
    for asked in AUDITS:
        if "model_id" in asked.param_names:
            got = answer(con, asked, model_id=model)
            assert set(got.model_id) == {model}, asked.name


@pytest.mark.parametrize("index", range(6))
@pytest.mark.parametrize("view", schema.WEIGHT_VIEWS)
def test_orthogonality_of_each_layer_can_be_recomputed(
    index: int, view: str, con: duckdb.DuckDBPyConnection
) -> None:
    (row,) = answer(
        con,
        catalog.load("audit/orthogonality"),
        model_id=NETS[0].model_id,
        layer_index=str(index),
        weights=view,
    ).to_dict("records")
    assert row["within"] and (index == 5) == pd.isna(row["value"])


BROKEN = ((NETS[0].model_id, 0), (NETS[1].model_id, 3), (NETS[7].model_id, 4))
METRICS = [c.name for c in schema.LAYERS.columns if c.nullable and c.name != "bn_layer"]


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, World]:
    """Layers with a weight that is not finite: no metrics, as the build writes them."""
    world = synthetic_release.make_world()
    layers = world.tables["layers"]
    bad = dict(zip(BROKEN, (np.nan, np.inf, np.nan), strict=True))
    hit = [key in bad for key in zip(layers.model_id, layers.layer_index, strict=True)]
    metrics = [name for name in METRICS if name in layers]
    layers.loc[hit, metrics] = np.nan
    for key, value in bad.items():
        world.weights[key][0][0, 0, 1, 1] = value
    root = synthetic_release.write_release(tmp_path_factory.mktemp("broken"), world)
    return root, world


@pytest.mark.parametrize(
    "name",
    [
        "sparsity_by_depth",
        "variance_entropy_by_depth",
        "orthogonality_by_depth",
        "first_layer_metrics",
        "batchnorm_folding",
    ],
)
def test_layers_without_metrics_count_in_no_denominator(
    name: str, broken: tuple[Path, World]
) -> None:
    root, world = broken
    with open_views(open_release(root)) as con:
        agree(answer(con, catalog.load(name)), ORACLES[name](world), KEYS[name])


def test_audits_find_no_fault_in_layers_without_metrics(broken: tuple[Path, World]) -> None:
    with open_views(open_release(broken[0])) as con:
        for name in ("linf", "sparsity", "second_moments"):
            got = answer(con, catalog.load(f"audit/{name}"))
            assert len(got) and got.within.all(), name
        asked = catalog.load("audit/orthogonality")
        for model_id, index in BROKEN:
            got = answer(con, asked, model_id=model_id, layer_index=str(index))
            assert got.within.all() and got["value"].isna().all() and len(got) == 1


def test_a_build_with_a_nan_layer_answers_every_query(tmp_path: Path, toy_cohort: Path) -> None:
    import torch
    import toy_networks

    torch.manual_seed(0)
    lines = []
    for network, robust in (("alpha", "true"), ("beta", "true"), ("alpha", "false")):
        state = toy_networks.Toy().state_dict()
        if (network, robust) == ("alpha", "true"):
            state["grouped.weight"][0, 0, 0, 0] = torch.nan
        torch.save(state, tmp_path / f"{network}-{robust}.pt")
        partner = "alpha" if robust == "true" else ""
        lines.append(
            f"{network},cifar10,{robust},Toy-8,toy_networks:Toy,"
            f"{tmp_path}/{network}-{robust}.pt,{partner}"
        )
    cohort = tmp_path / "nan.csv"
    cohort.write_text("\n".join([toy_cohort.read_text().splitlines()[0], *lines]) + "\n")
    outcome = build_toy(cohort, tmp_path / "out", weights="checkpoints", cache=tmp_path / "cache")
    assert not outcome.failures and "NaN" in outcome.problems[0]
    with open_views(open_release(tmp_path / "out")) as con:
        for asked in QUERIES:
            got = answer(con, asked)
            if "/" in asked.name:
                assert got.within.all(), asked.name
        depth = answer(con, catalog.load("sparsity_by_depth"))
        folded = con.sql("from layers where weights = 'folded' and sparsity is null").fetchall()
        assert len(folded) == 1 and depth["mean"].notna().all()
        response = answer(con, catalog.load("first_layer_response"))
        assert response.ratio.notna().all()


@pytest.mark.parametrize("where", ["release", "empty", "single"])
def test_every_query_runs_in_the_bare_client_through_views_sql(
    where: str, request: pytest.FixtureRequest
) -> None:
    con = duckdb.connect()
    con.execute("set variable release = ?", [str(request.getfixturevalue(where))])
    con.execute((project_file("queries") / "views.sql").read_text())
    for asked in QUERIES:
        rows = con.execute(asked.sql).fetchall()
        assert where != "empty" or rows == [], asked.name
    con.close()


@pytest.mark.parametrize("asked", QUERIES, ids=names(QUERIES))
def test_columns_keep_their_types_without_rows(
    asked: catalog.Query, con: duckdb.DuckDBPyConnection, empty: Path
) -> None:
    full = run.run_query(con, asked).schema
    with open_views(open_release(empty)) as nothing:
        assert run.run_query(nothing, asked).schema.names == full.names
    assert len(set(full.names)) == len(full.names)


@pytest.mark.parametrize("asked", QUERIES, ids=names(QUERIES))
def test_order_is_total(asked: catalog.Query, con: duckdb.DuckDBPyConnection) -> None:
    """The sort keys identify a row: the answer does not depend on how DuckDB got there."""
    order = asked.sql.rpartition("\norder by ")[2].strip()
    assert order and "\n" not in order
    got = answer(con, asked)
    plain = [part.split()[0].rpartition(".")[2] for part in order.split(", ")]
    keys = [k for k in dict.fromkeys(plain) if k in got.columns]
    assert keys and not got.astype(str).duplicated(keys).any(), keys


@pytest.mark.parametrize("asked", QUERIES, ids=names(QUERIES))
def test_a_header_says_what_the_query_is_for(asked: catalog.Query) -> None:
    assert asked.title and asked.finding and asked.expect
    assert asked.paper or "/" in asked.name
    fields = [field for field, _ in catalog.header(asked.sql)]
    assert set(fields) <= set(catalog.FIELDS)
    assert fields == sorted(fields, key=catalog.FIELDS.index), "fields come in one order"


@pytest.mark.parametrize("asked", QUERIES, ids=names(QUERIES))
def test_a_query_is_one_select_without_paths(asked: catalog.Query) -> None:
    (statement,) = duckdb.extract_statements(asked.sql)
    assert statement.type == duckdb.StatementType.SELECT
    for word in ("read_parquet", "parquet'", "hf://", "{{"):
        assert word not in asked.sql


def test_every_finding_has_an_oracle_and_a_claim() -> None:
    claims = {p.stem for p in (project_file("queries") / "claims").glob("*.sql")}
    assert {q.subject for q in FINDINGS} == set(ORACLES)
    assert {q.name for q in FINDINGS} == claims
    assert [q.name for q in catalog.list_claimed_audits()] == ["audit/threshold"]
    assert {q.origin for q in QUERIES} == {"paper", "ours"}
    numbers = [int(q.name.partition("_")[0]) for q in FINDINGS]
    assert numbers == list(range(1, len(numbers) + 1))


@pytest.mark.slow
def test_the_sql_is_within_sqlfluffs_rules() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sqlfluff", "lint", "queries", "--config", "pyproject.toml"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
