"""The audits on Spark: the same SQL as DuckDB's, by sqlglot, and the same answers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_queries import AUDITS, BROKEN, broken, names

from builder.errors import UsageError
from builder.paper.reference import write_reference
from builder.release.reader import open_release
from builder.release.views import open_views
from builder.sql import catalog, run
from builder.sql.spark import run_on_spark, session

pytestmark = pytest.mark.spark
if not shutil.which("java"):
    pytest.skip("Spark needs Java; there is none here", allow_module_level=True)
for package in ("pyspark", "sqlglot"):
    pytest.importorskip(package, reason="pip install 'robust-filter-lens[spark]'")

__all__ = ["broken"]  # a fixture


@pytest.fixture(scope="module")
def spark() -> Iterator[None]:
    """One session for the tests that ask for it: Spark takes seconds to start."""
    with session("local[2]"):
        yield


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The mini release, from the weights that ship."""
    out = tmp_path_factory.mktemp("mini") / "mini"
    build = ("build", "--cohort", "mini", "--no-first-layer", "--quiet", "--out", str(out))
    subprocess.run([sys.executable, "-m", "builder", *build], check=True)
    return out


def answers_agree(release: Path, asked: catalog.Query, **params: str) -> int:
    """How many rows DuckDB and Spark answer: the same, in the same order and columns."""
    opened = open_release(release)
    with open_views(opened) as con:
        duck = run.run_query(con, asked, params).rows()
    spark = run_on_spark(opened, asked, params, "local[2]").to_pylist()
    assert len(duck) == len(spark)
    for ours, theirs in zip(duck, spark, strict=True):
        assert list(ours) == list(theirs)
        for column, value in ours.items():
            if isinstance(value, float):
                value = pytest.approx(value, rel=1e-9, abs=1e-8, nan_ok=True)
            assert theirs[column] == value, column
    return len(duck)


@pytest.mark.parametrize("asked", AUDITS, ids=names(AUDITS))
def test_an_audit_answers_the_same_on_the_mini_release(
    asked: catalog.Query, mini: Path, spark: None
) -> None:
    assert answers_agree(mini, asked) > 0


@pytest.mark.parametrize("name", ["linf", "sparsity", "second_moments", "threshold"])
def test_layers_that_are_not_finite_answer_the_same(
    name: str, broken: tuple[Path, object], spark: None
) -> None:
    assert answers_agree(broken[0], catalog.load(f"audit/{name}")) > 0


def test_parameters_reach_spark(broken: tuple[Path, object], spark: None) -> None:
    model_id, index = BROKEN[0]
    for layer_index in (str(index), "1"):
        asked = catalog.load("audit/orthogonality")
        given = {"model_id": model_id, "layer_index": layer_index, "weights": "trained"}
        assert answers_agree(broken[0], asked, **given) == 1
    counted = catalog.parse("counted", "select count(*) as n from filters where model_id = $m")
    assert answers_agree(broken[0], counted, m=model_id) == 1


def test_a_list_keeps_its_order_and_is_counted_from_one(
    broken: tuple[Path, object], spark: None
) -> None:
    asked = catalog.parse(
        "lists",
        """
        with listed as (
            select
                model_id,
                list(depth_bin order by layer_index desc) filter (where weights = 'folded') as bins
            from layers
            group by all
        )

        select
            l.model_id,
            r.range as position,
            l.bins[1] as first,
            l.bins[r.range] as here
        from listed as l
        cross join range(1, 9) as r
        order by l.model_id, position
        """,
    )
    assert answers_agree(broken[0], asked) > 8


def test_views_in_folders_that_look_like_partitions_are_read_as_they_are(
    release: Path, tmp_path: Path, spark: None
) -> None:
    odd = shutil.copytree(release, tmp_path / "model_id=x" / "a b*")
    asked = catalog.parse("ids", "select distinct model_id, dataset from filters order by all")
    spark_rows = run_on_spark(open_release(odd), asked, {}, "local[2]").to_pylist()
    models = open_release(odd).table("models")
    assert [r["model_id"] for r in spark_rows] == sorted(models["model_id"].to_pylist())


def builder(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "builder", *words],
        capture_output=True,
        text=True,
        env={**os.environ, **env},
    )


def test_the_command_line_answers_as_duckdb_does_and_keeps_sparks_chatter_to_itself(
    release: Path, tmp_path: Path
) -> None:
    asked = ("query", "audit/sparsity", "--release", str(release), "--format", "csv")
    duck = builder(*asked)
    spark = builder(*asked, "--engine", "spark", "--master", "local[1]", TMPDIR=str(tmp_path))
    assert spark.returncode == 0 and spark.stdout == duck.stdout and not spark.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "env", "said"),
    [
        (["--master", "spork://x"], {}, "--master spork://x: Master must"),
        ([], {"JAVA_HOME": "/nowhere"}, "JAVA_HOME=/nowhere has no bin/java"),
        ([], {"JAVA_HOME": "", "PATH": "/nowhere"}, "there is no java here"),
        (["--memory-limit", "1GB"], {}, "--memory-limit is for --engine duckdb"),
        (["--param", "model_id=nobody"], {}, "no model 'nobody'"),
    ],
)
def test_a_wrong_start_is_one_message(
    options: list[str], env: dict[str, str], said: str, release: Path
) -> None:
    asked = ("query", "audit/linf", "--release", str(release), "--engine", "spark")
    done = builder(*asked, *options, **env)
    assert done.returncode == 2 and not done.stdout
    assert said in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr and "\tat " not in done.stderr
    assert len(done.stderr.splitlines()) < 5


def test_what_spark_finds_wrong_is_one_message(release: Path, spark: None) -> None:
    opened = open_release(release)
    with pytest.raises(UsageError, match=r"Spark: \[UNRESOLVED_COLUMN"):
        run_on_spark(opened, catalog.parse("q", "select nothing from filters"), {}, "local[2]")


def test_a_release_without_filters_or_on_the_hub_is_refused(tmp_path: Path) -> None:
    write_reference(tmp_path / "reference")
    opened = open_release(tmp_path / "reference")
    asked = catalog.load("audit/linf")
    with pytest.raises(UsageError, match="has no filters"):
        run_on_spark(opened, asked, {}, "local[2]")
    away = type(opened)("hf://datasets/a/b@v1.0.0", opened.manifest, opened.fetch)
    with pytest.raises(UsageError, match="is no folder"):
        run_on_spark(away, asked, {}, "local[2]")
