"""Running queries: names, parameters, formats, errors, remote releases."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import synthetic_release
from fsspec.implementations.local import LocalFileSystem
from hub_client import ClientError, HubClient
from loopback_hub import Hub, running_hub
from rich.text import Text

from builder import schema
from builder.errors import BuilderError, UsageError
from builder.files import project_file
from builder.release.reader import open_release
from builder.release.views import open_views
from builder.sql import catalog, render, run
from builder.sql.reads import audit_readings


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("synthetic")
    return synthetic_release.write_release(root, synthetic_release.make_world())


@pytest.fixture
def con(release: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    with open_views(open_release(release)) as connection:
        yield connection


def ask(
    release: Path, name: str, form: str = "csv", params: tuple[str, ...] = ()
) -> tuple[bytes, str]:
    """The answer's bytes, and what was said beside it."""
    out = io.BytesIO()
    said = run.answer_query(str(release), name, out, form=form, params=params)
    return out.getvalue(), said


class Terminal(io.BytesIO):
    """What a terminal shows; its width is COLUMNS."""

    def isatty(self) -> bool:
        return True


def show(release: Path, name: str) -> tuple[list[str], str]:
    """The lines of a table on a terminal, and what was said beside them."""
    out = Terminal()
    said = run.answer_query(str(release), name, out)
    return Text.from_ansi(out.getvalue().decode()).plain.splitlines(), said


def write_query(folder: Path, sql: str) -> str:
    path = folder / "mine.sql"
    path.write_text(sql)
    return str(path)


@pytest.mark.parametrize("name", ["06_sparsity_overall", "sparsity_overall"])
def test_a_query_is_found_with_and_without_its_number(name: str) -> None:
    assert catalog.load(name).name == "06_sparsity_overall"


def test_an_audit_query_is_found_below_its_folder() -> None:
    assert catalog.load("audit/sparsity").name == "audit/sparsity"


def test_a_wrong_name_suggests_the_nearest_ones() -> None:
    with pytest.raises(UsageError, match=r"did you mean .*06_sparsity_overall"):
        catalog.load("sparsity_overal")


def test_a_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read the query .*none\.sql: No such file"):
        catalog.load(str(tmp_path / "none.sql"))


def test_sql_comes_from_a_file_or_standard_input(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sql = "select count(*) as n from models"
    assert ask(release, write_query(tmp_path, sql))[0] == b"n\n13\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(sql))
    assert ask(release, "-")[0] == b"n\n13\n"


@pytest.mark.parametrize(
    "sql",
    [
        "select 13 as n",
        "SELECT count(*) AS n FROM models",
        "from models select count(*) as n",
        "FROM(select 13 as n)",
        "with a as (select 13 as n) from a",
        "(select 13 as n)",
        "values (13)",
        "-- how many\nselect count(*) as n from models",
        "  /* how\nmany */ -- models\n select count(*) as n from models;",
    ],
)
def test_sql_itself_is_a_query(release: Path, sql: str) -> None:
    assert ask(release, sql)[0].splitlines()[1:] == [b"13"]


@pytest.mark.parametrize("sql", ["describe models", "summarize models", "show tables", "DESC pca"])
def test_the_words_that_look_at_a_table_are_queries_too(release: Path, sql: str) -> None:
    assert len(ask(release, sql)[0].splitlines()) > 5


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("select nope from models", "^the query: Binder Error"),
        ("drop view models", "^the query: expected one SELECT, found DROP"),
        ("explain select 1", "^the query: expected one SELECT, found EXPLAIN"),
        ("select $n as n", "^the query needs --param n="),
    ],
)
def test_an_error_in_sql_itself_does_not_repeat_it(release: Path, sql: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ask(release, sql)


def test_a_table_that_is_not_there_is_told_with_where_they_are_listed(release: Path) -> None:
    with pytest.raises(UsageError, match="name nosuch does not exist") as error:
        ask(release, "select * from nosuch")
    assert "show tables" in str(error.value.hint)


@pytest.mark.parametrize("name", ["sparsity overall", "from", "selected", "with_layers", ""])
def test_a_name_is_not_taken_for_sql(name: str) -> None:
    with pytest.raises(UsageError, match="no query"):
        catalog.load(name)


def test_all_formats_hold_the_same_rows(release: Path) -> None:
    rows = json.loads(ask(release, "sparsity_overall", "json")[0])["rows"]
    parquet = pq.read_table(pa.BufferReader(ask(release, "sparsity_overall", "parquet")[0]))
    assert parquet.to_pylist() == rows and len(rows) == 8
    table = list(csv.DictReader(io.StringIO(ask(release, "sparsity_overall")[0].decode())))
    assert [float(r["sparsity"]) for r in table] == [r["sparsity"] for r in rows]
    markdown = ask(release, "sparsity_overall", "markdown")[0].decode().splitlines()
    assert len(markdown) == 2 + 8 and markdown[0].startswith("| dataset | kind |")


def test_json_is_one_object_without_nan(release: Path, tmp_path: Path) -> None:
    sql = "select 'nan'::double as a, [1.5, 'inf'::double] as b, date '2022-04-05' as c, true as d"
    got = json.loads(ask(release, write_query(tmp_path, sql), "json")[0])
    assert got["rows"] == [{"a": None, "b": [1.5, None], "c": "2022-04-05", "d": True}]


def test_an_answer_without_rows_still_has_its_columns(release: Path, tmp_path: Path) -> None:
    name = write_query(tmp_path, "select model_id, n_filters from models where false")
    assert ask(release, name)[0] == b"model_id,n_filters\n"
    assert json.loads(ask(release, name, "json")[0])["rows"] == []
    assert pq.read_table(pa.BufferReader(ask(release, name, "parquet")[0])).num_rows == 0


@pytest.mark.parametrize("width", [40, 80, 120])
def test_a_table_fits_the_terminal_and_says_what_it_left_out(
    release: Path, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    lines, said = show(release, "sparsity_overall")
    assert max(map(len, lines)) <= width
    assert ("columns do not fit" in said) == ("…" in lines[0])
    assert lines[0].startswith("dataset") and lines[0].rstrip().endswith("within")


def test_a_long_table_is_cut_and_says_so(release: Path) -> None:
    sql = "select range as n from range(1000)"
    lines, said = show(release, sql)
    assert len(lines) == 1 + render.TABLE_ROWS
    assert said == "the query: the first 200 rows; --format csv has all."
    assert len(ask(release, sql)[0].splitlines()) == 1001


def test_a_table_in_a_pipe_is_tab_separated_and_whole(release: Path) -> None:
    out, said = ask(
        release, "select range as n, null as x, [0.5::double] as y from range(1000)", "table"
    )
    lines = out.decode().splitlines()
    assert lines[:2] == ["n\tx\ty", "0\t\t[0.5]"] and len(lines) == 1001 and said == ""


@pytest.mark.parametrize("form", ["csv", "table", "json", "markdown"])
def test_true_was_spelled_otherwise_in_every_format(release: Path, form: str) -> None:
    text = ask(release, "select true as a, false as b, [true, null] as c", form)[0].decode()
    assert "true" in text and "false" in text
    assert not any(word in text for word in ("True", "False", "yes", "None"))


def test_a_parameter_is_a_variable_of_the_query(release: Path) -> None:
    model = "cifar10-robust-Cedar"
    out, _ = ask(release, "audit/sparsity", params=(f"model_id={model}",))
    rows = list(csv.DictReader(io.StringIO(out.decode())))
    assert {r["model_id"] for r in rows} == {model}


def test_a_parameter_binds_a_named_placeholder(release: Path, tmp_path: Path) -> None:
    sql = "select count(*) as n from layers where model_id = $model and layer_index = $layer"
    name = write_query(tmp_path, sql)
    params = ("model=cifar10-robust-Ash", "layer=0")
    assert ask(release, name, params=params)[0] == b"n\n2\n"


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (("modelid=x",), "no parameter 'modelid'; did you mean model_id"),
        (("model_id",), "expected name=value"),
        (("a b=1",), "expected name=value"),
    ],
)
def test_wrong_parameters_are_usage_errors(
    release: Path, params: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        ask(release, "audit/sparsity", params=params)


def test_a_model_that_the_release_does_not_have_is_no_empty_answer(release: Path) -> None:
    for asked in catalog.list_queries():
        if "model_id" in asked.param_names:
            with pytest.raises(UsageError, match="no model 'cifar10-robust-Ceder' in this release"):
                ask(release, asked.name, params=("model_id=cifar10-robust-Ceder",))
    with pytest.raises(UsageError, match="did you mean cifar10-robust-Cedar"):
        ask(release, "audit/sparsity", params=("model_id=cifar10-robust-Ceder",))


def test_an_empty_answer_is_said_with_its_parameters(release: Path) -> None:
    out, said = ask(release, "audit/orthogonality", params=("layer_index=99", "weights=fold"))
    assert out.count(b"\n") == 1
    assert said == "audit/orthogonality: no row matches layer_index=99, weights=fold."
    sql = "select network from models where model_id = $model_id"
    assert ask(release, sql, params=("model_id=x",))[1] == "the query: no row matches model_id=x."
    assert ask(release, "select 1 where false")[1] == "the query: no row."
    assert ask(release, "select 1")[1] == ""


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("select nope from models", "nope"),
        ("select * from modells", "Did you mean"),
        ("selec 1", "syntax error"),
        ("select 1; select 2", "expected one SELECT, found SELECT, SELECT"),
        ("drop view models", "expected one SELECT, found DROP"),
        ("-- nothing", "expected one SELECT, found nothing"),
        ("select $n as n", "needs --param n="),
        ("select error('stop') from models", "stop"),
    ],
)
def test_wrong_sql_is_a_usage_error_in_duckdbs_words(
    release: Path, tmp_path: Path, sql: str, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        ask(release, write_query(tmp_path, sql))


def test_an_unknown_format_is_a_usage_error(release: Path) -> None:
    with pytest.raises(UsageError, match="expected table, csv, json, parquet, markdown"):
        ask(release, "sparsity_overall", "xml")


def test_a_folder_that_is_no_release_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a release"):
        ask(tmp_path, "sparsity_overall")


def test_a_damaged_release_is_a_usage_error(tmp_path: Path) -> None:
    root = synthetic_release.write_tables(tmp_path, {}, {})
    (root / "data" / "layers.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(UsageError):
        ask(root, "sparsity_by_depth")


def test_a_memory_limit_is_kept_and_explained(release: Path) -> None:
    asked = catalog.parse("big", "select list(random()) as x from range(50000000)")
    with open_views(open_release(release), memory_limit="100MB") as con:
        with pytest.raises(BuilderError, match="out of memory") as raised:
            run.run_query(con, asked)
        assert "--memory-limit" in raised.value.hint
    with (
        pytest.raises(UsageError, match="--memory-limit much"),
        open_views(open_release(release), memory_limit="much"),
    ):
        pass


def plan(con: duckdb.DuckDBPyConnection, sql: str) -> list[dict[str, Any]]:
    """Every operator of DuckDB's plan."""
    row = con.execute(f"explain (format json) {sql}").fetchone()
    assert row is not None

    def walk(nodes: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [m for n in nodes for m in (n, *walk(n["children"]))]

    return walk(json.loads(row[1]))


class Counting(LocalFileSystem):
    """Local files as `count://`, and the bytes that are read of the filters."""

    protocol = "count"
    read: ClassVar[list[int]] = []

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return LocalFileSystem._strip_protocol(path.removeprefix("count://"))

    def glob(self, path: str, **kwargs: Any) -> list[str]:
        return [f"count://{p}" for p in super().glob(self._strip_protocol(path))]

    def modified(self, path: str) -> datetime:
        return datetime.fromtimestamp(0, UTC)

    def _open(self, path: str, *args: Any, **kwargs: Any) -> Any:
        log = self.read if "/filters/" in path else []

        class File(io.FileIO):
            def read(self, size: int = -1) -> bytes:
                data = super().read(size)
                log.append(len(data))
                return data

        return File(self._strip_protocol(path))


def test_an_audit_reads_what_the_card_says(tmp_path: Path) -> None:
    n, rng = 1 << 18, np.random.default_rng(0)
    columns: dict[str, Any] = {c.name: np.arange(n) % 100 for c in schema.FILTERS.columns[2:5]}
    columns |= {c.name: rng.normal(size=n).astype("f4") for c in schema.FILTERS.columns[5:]}
    labels = {"dataset": ["cifar10"] * n, "model_id": ["m"] * n}
    rows = pa.table({**labels, **columns}).cast(schema.FILTERS.arrow)
    filters = {schema.filters_path("cifar10", "m"): rows}
    root = synthetic_release.write_tables(tmp_path, {}, filters)
    said = next(r for r in audit_readings(root) if r.query == "audit/linf")
    with duckdb.connect(config={"threads": 1}) as con:
        con.register_filesystem(Counting(skip_instance_cache=True))
        con.execute("set variable release = ?", [f"count://{root}"])
        con.execute((project_file("queries") / "views.sql").read_text())
        Counting.read.clear()
        con.execute(catalog.load("audit/linf").sql).fetchall()
    assert 11e6 < said.bytes <= sum(Counting.read) <= said.bytes * 1.01
    assert 1 < len(Counting.read) <= said.requests


def copies_filters(con: duckdb.DuckDBPyConnection, sql: str) -> bool:
    """Whether a CTE keeps rows of `filters`: read from the files, and not summed up since."""

    def reads(node: dict[str, Any]) -> bool:
        name = node["name"].strip().upper().replace(" ", "_")
        if name in ("HASH_GROUP_BY", "PERFECT_HASH_GROUP_BY", "UNGROUPED_AGGREGATE"):
            return False
        return "linf" in str(node["extra_info"]) or any(map(reads, node["children"]))

    kept = [n for n in plan(con, sql) if n["name"].strip() == "CTE"]
    return any(reads(n["children"][0]) for n in kept)


@pytest.mark.parametrize("body", ["from filters", "from viewed_filters(null, ['folded'])"])
def test_a_copy_of_the_filters_would_be_noticed(con: duckdb.DuckDBPyConnection, body: str) -> None:
    select = "select * from a where exists (from a as b where b.out_channel > a.in_channel)"
    what = "linf" if body == "from filters" else "length"
    for hint, copied in (("materialized", True), ("not materialized", False)):
        sql = f"with a as {hint} (select {what}, out_channel, in_channel {body}) {select}"
        assert copies_filters(con, sql) == copied


def test_audits_never_copy_the_filters(con: duckdb.DuckDBPyConnection) -> None:
    """A CTE that DuckDB materialises would write a billion filters to disk."""
    for asked in catalog.list_queries():
        if asked.name.startswith("audit/") and asked.name != "audit/orthogonality":  # of one layer
            assert not copies_filters(con, asked.sql), asked.name


def test_an_audit_of_one_model_reads_the_filters_of_that_model_alone(
    con: duckdb.DuckDBPyConnection,
) -> None:
    model = "cifar10-robust-Cedar"
    con.execute("set variable model_id = ?", [model])
    for asked in catalog.list_queries():
        if "model_id" in asked.param_names and asked.name != "audit/orthogonality":  # by its join
            scans = [
                n
                for n in plan(con, asked.sql)
                if not n["children"] and "linf" in str(n["extra_info"])
            ]
            assert scans and all(model in str(n["extra_info"]["Filters"]) for n in scans)


@pytest.mark.parametrize("name", ["a[1]b", "a*b", "a?b", "a[*]b", "a{x,y}b", "it's"])
def test_a_folder_may_have_a_name_that_looks_like_a_pattern(
    release: Path, tmp_path: Path, name: str
) -> None:
    root = shutil.copytree(release, tmp_path / name)
    shutil.copytree(release, tmp_path / "a2b")
    assert ask(root, "audit/linf") == ask(release, "audit/linf")


def test_a_folder_that_duckdb_cannot_name_is_a_usage_error(release: Path, tmp_path: Path) -> None:
    root = shutil.copytree(release, tmp_path / "a\\b")
    with pytest.raises(UsageError, match="has a backslash in its name"):
        ask(root, "audit/linf")


@pytest.fixture(scope="module")
def hub_release(
    release: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Hub, HubClient]]:
    pytest.importorskip("huggingface_hub")
    with running_hub() as hub:
        client = HubClient(hub.url, tmp_path_factory.mktemp("hf_home"))
        client.run(
            """
from pathlib import Path
from huggingface_hub import CommitOperationAdd, HfApi
api = HfApi()
api.create_repo("lens/tiny", repo_type="dataset")
files = [p for p in Path(root).rglob("*") if p.is_file()]
ops = [CommitOperationAdd(p.relative_to(root).as_posix(), p) for p in files]
info = api.create_commit("lens/tiny", ops, commit_message="first", repo_type="dataset")
api.create_tag("lens/tiny", tag="v0.1.0", revision=info.oid, repo_type="dataset")
""",
            root=str(release),
        )
        yield hub, client
        client.close()


REMOTE = """
import io
from builder.sql import run
out = io.BytesIO()
run.answer_query(address, asked, out, form="csv")
result = out.getvalue().decode()
"""


@pytest.mark.parametrize("name", ["06_sparsity_overall", "audit/sparsity"])
@pytest.mark.parametrize("address", ["hf://datasets/lens/tiny@v0.1.0", "lens/tiny@v0.1.0"])
def test_a_release_on_the_hub_gives_the_same_answer(
    name: str, address: str, hub_release: tuple[Hub, HubClient], release: Path
) -> None:
    got = hub_release[1].run(REMOTE, address=address, asked=name)
    assert got.encode() == ask(release, name)[0]


def test_a_missing_tag_is_a_network_error(hub_release: tuple[Hub, HubClient]) -> None:
    with pytest.raises(ClientError) as raised:
        hub_release[1].run(REMOTE, address="lens/tiny@v9.9.9", asked="06_sparsity_overall")
    assert raised.value.kind == "NetworkError" and raised.value.exit_code == 4


def test_a_long_query_of_a_script_draws_no_bar_on_its_output():
    # What DuckDB takes for a person at a terminal.
    script = (
        "from builder.release.views import connect\n"
        "with connect() as c: print(c.execute(\"select current_setting('enable_progress_bar')\")"
        ".fetchall())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "[(False,)]\n"
