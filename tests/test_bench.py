"""The parts of the benchmarks: what they time is what they say. No time is asserted."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from builder.bench.build import bare_writer, plain_write
from builder.bench.page import _plot, _table
from builder.bench.read import bench_read, stored_filters
from builder.bench.scale import Took, ask, parts
from builder.errors import UsageError
from builder.paper.reference import write_reference
from builder.sql.catalog import list_queries


def test_the_bare_writer_writes_the_same_file(release: Path, tmp_path: Path) -> None:
    for path in stored_filters(release):
        bare_writer(path, tmp_path / "bare.parquet")
        assert pq.read_table(tmp_path / "bare.parquet").equals(pq.read_table(path))


def test_a_plain_write_has_the_bytes_asked_for(tmp_path: Path) -> None:
    plain_write(tmp_path / "plain", (1 << 24) + 5)
    assert (tmp_path / "plain").stat().st_size == (1 << 24) + 5


def test_every_audit_is_asked_and_every_library_reads_all(release: Path) -> None:
    asked = ask(release, audits=True)
    assert set(asked) == {"findings"} | {q.name for q in list_queries() if "/" in q.name}
    assert set(ask(release, audits=False)) == {"findings"}
    assert len(bench_read(release)) == 3 + 6  # it checks that each route read every filter


def test_reading_a_release_without_filters_is_refused(tmp_path: Path) -> None:
    write_reference(tmp_path / "reference")
    with pytest.raises(UsageError, match="holds no filters"):
        bench_read(tmp_path / "reference")


def test_the_parts_of_the_cohort_have_about_the_size_asked_for() -> None:
    for size, models in parts((1_000_000, 100_000_000)).items():
        assert len(set(models)) == len(models) > 0
        assert size <= 1.3e6 or len(models) > 3


def test_tables_have_their_columns_and_the_plot_is_svg() -> None:
    assert _table(("a", "b"), [(1, 2)]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"
    costs = {"build": Took(2, 3)}
    at = [
        {"n_filters": n, "bare_writer": Took(n / 1e6, n / 1e6), "costs": costs} for n in (1e6, 1e7)
    ]
    assert _plot(at).startswith("<svg") and "core seconds" in _plot(at)
