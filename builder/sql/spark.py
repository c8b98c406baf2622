"""Queries on Spark: for those that read every filter, where one machine is not enough."""

from __future__ import annotations

import logging
import os
import re
import shutil
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from builder import schema
from builder.errors import UsageError
from builder.files import scratch
from builder.release.manifest import filter_files
from builder.release.reader import Release
from builder.secrets import redact
from builder.sql.catalog import Query

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

MASTER = "local[*]"


def run_on_spark(
    release: Release, query: Query, params: Mapping[str, str], master: str
) -> pa.Table:
    """The answer of a query, collected.

    Args:
        release: a folder; on a cluster, one that every worker sees under the same path.
        query: one SELECT for DuckDB; it may use what queries/views.sql defines.
        params: of the query.
        master: as Spark writes it, e.g. "local[*]" or "spark://host:7077".

    Raises:
        UsageError: a release on the Hub or without filters, no Java, or what Spark finds wrong.
    """
    if "://" in release.address:
        raise UsageError(
            f"{release.address} is no folder; Spark's workers read a release from a folder.",
            hint="fetch it first, where every worker sees it.",
        )
    filters = list(filter_files(release.manifest).values())
    if not filters:
        raise UsageError(
            f"{release.address} has no filters; its small tables are read without --engine spark."
        )
    from builder.sql.transpile import to_spark

    with session(master) as spark, _explained(query.name):
        for name in schema.SMALL_TABLES:
            if (path := schema.table_path(name)) in release.manifest["files"]:
                _view(spark, release, name, [path])
        _view(spark, release, "filters", filters)
        return spark.sql(to_spark(query.name, query.sql, params)).toArrow()


def _view(spark: SparkSession, release: Release, name: str, paths: list[str]) -> None:
    """A table of the release under its name. No partition is read out of the folders' names."""
    names = [str(release.fetch(path).absolute()) for path in paths]
    files = ["file://" + re.sub(r"[][{}*?\\]", r"\\\g<0>", name) for name in names]  # no patterns
    spark.read.parquet(*files).createOrReplaceTempView(name)


@contextmanager
def session(master: str) -> Iterator[SparkSession]:
    """The session of this process, or a new one, stopped at the end."""
    from py4j.protocol import Py4JError
    from pyspark.errors import PySparkException
    from pyspark.sql import SparkSession

    if running := SparkSession.getActiveSession():
        yield running
        return
    java = os.environ.get("JAVA_HOME")
    if not shutil.which(f"{java}/bin/java" if java else "java"):
        raise UsageError(
            "--engine spark needs Java 17 or newer; "
            + (f"JAVA_HOME={java} has no bin/java." if java else "there is no java here."),
            hint="Debian and Ubuntu have it: apt install openjdk-17-jre-headless",
        )
    logging.getLogger("SQLQueryContextLogger").disabled = True  # what it logs is raised, too
    warnings.filterwarnings("ignore", message="PySpark does not yet fully support pandas")
    with scratch() as folder:
        start = (
            SparkSession.builder.master(master)
            .appName("builder query")
            .config("spark.sql.warehouse.dir", str(folder))
            .config("spark.sql.ansi.enabled", "false")  # as in DuckDB, x / 0 is no error
        )
        if master.startswith("local"):
            start.config("spark.driver.host", "127.0.0.1")
            start.config("spark.driver.bindAddress", "127.0.0.1")
            start.config("spark.local.dir", str(folder))
            start.config("spark.ui.enabled", "false")
        log = folder / "stderr"
        try:
            with _stderr_to(log):  # Spark keeps it: its errors are raised, the rest is chatter
                session = start.getOrCreate()
        except (PySparkException, Py4JError) as e:
            why = re.search(r"Exception: (.+)", log.read_text(errors="replace"))
            raise UsageError(
                f"--master {master}: {redact(why[1]) if why else _first_line(e)}"
            ) from None
        try:
            yield session
        finally:
            session.stop()


@contextmanager
def _stderr_to(path: Path) -> Iterator[None]:
    """Send what this process and those it starts write to stderr to a file."""
    sys.stderr.flush()
    kept = os.dup(2)
    with path.open("wb") as file:
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Spark's own words, in the project's kind of error."""
    from py4j.protocol import Py4JError
    from pyspark.errors import PySparkException

    try:
        yield
    except (PySparkException, Py4JError) as e:
        raise UsageError(f"{name}: Spark: {_first_line(e)}") from None


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return redact(lines[0]) if lines else type(error).__name__
