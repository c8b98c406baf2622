"""What changed between two releases, and the version it calls for."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from tiny_release import MODELS, Tiny, _facts, write_tiny_release

from builder import schema
from builder.check.diff import Diff, as_text, diff, next_version
from builder.errors import UsageError
from builder.release.manifest import read_manifest, write_manifest
from builder.release.versions import parse_version


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_release(tmp_path_factory.mktemp("first"))


def edit(root: Path, path: str, change: Any) -> None:
    """Apply `change` to one table of a release and make the manifest agree."""
    table = pq.ParquetFile(root / path).read()
    pq.write_table(change(table), root / path)
    manifest = read_manifest(root)
    manifest["files"][path] = _facts(root, root / path)
    write_manifest(root, manifest)


def test_a_release_against_itself_calls_for_nothing(first: Path) -> None:
    d = diff(first, first)
    assert d.bump == "none" and d.next_version == "0.1.0" and not d.reasons
    assert "nothing changed" in as_text(d)


def test_other_bytes_of_the_same_content_are_a_patch(first: Path, tmp_path: Path) -> None:
    root = write_tiny_release(tmp_path / "b", version="0.1.1")
    edit(root, schema.table_path("layers"), lambda t: t.slice(0).combine_chunks())
    d = diff(first, root)
    assert (d.bump, d.next_version, d.tables) == ("patch", "0.1.1", [])
    assert "data/layers.parquet" in d.files_changed


def test_an_added_model_is_a_minor_change(first: Path, tmp_path: Path) -> None:
    new = Tiny("Delta", partner="Plain")
    d = diff(first, write_tiny_release(tmp_path / "b", models=(*MODELS, new)))
    assert d.bump == "minor" and d.models_added == [new.model_id]
    assert not d.models_changed and not d.models_removed
    added = {t.table: t.added_rows for t in d.tables}
    assert added["models"] == 1 and added["layers"] == 6
    summaries = {t.table: t.summary_rows for t in d.tables if t.summary_rows}
    assert set(summaries) == {"pca", "histograms"}
    assert next_version("1.0.0", d.bump) == "1.1.0"


def test_a_changed_model_is_a_major_change_and_is_named(first: Path, tmp_path: Path) -> None:
    models = (replace(MODELS[0], seed=1), *MODELS[1:])
    d = diff(first, write_tiny_release(tmp_path / "b", models=models))
    assert d.bump == "major" and d.next_version == "0.2.0"
    assert d.models_changed == [MODELS[0].model_id]
    filters = next(t for t in d.tables if t.path.startswith("data/filters/"))
    assert filters.changed_rows == 216 and not filters.added_rows
    w00 = next(c for c in filters.columns if c.column == "w00")
    assert w00.rows == 216 and w00.largest and w00.largest > 0.1
    metrics = next(t for t in d.tables if t.table == "layers")
    assert "sparsity" in {c.column for c in metrics.columns}
    assert metrics.changed_rows == 6
    assert MODELS[0].model_id in metrics.examples[0]
    text = as_text(d)
    assert "the next version is 0.2.0 or higher" in text and MODELS[0].model_id in text


def test_one_changed_bit_of_one_filter_is_found(first: Path, tmp_path: Path) -> None:
    root = write_tiny_release(tmp_path / "b")
    path = schema.filters_path("cifar10", MODELS[0].model_id)

    def change(table: pa.Table) -> pa.Table:
        values = table.column("w11").to_numpy().copy()
        values[7] = -values[7]
        return table.set_column(table.schema.get_field_index("w11"), "w11", pa.array(values))

    edit(root, path, change)
    d = diff(first, root)
    (filters,) = d.tables
    assert (filters.changed_rows, [c.column for c in filters.columns]) == (1, ["w11"])
    assert d.bump == "major" and len(filters.examples) == 1
    quick = diff(first, root, values=False)
    assert quick.bump == "major" and quick.models_changed == [MODELS[0].model_id]


def test_a_removed_model_is_a_major_change(first: Path, tmp_path: Path) -> None:
    d = diff(first, write_tiny_release(tmp_path / "b", models=MODELS[1:]))
    assert d.bump == "major" and d.models_removed == [MODELS[0].model_id]


@pytest.mark.parametrize(
    ("change", "bump", "said"),
    [
        (lambda t: t.append_column("colour", pa.array(["x"] * len(t))), "minor", "columns added"),
        (lambda t: t.drop_columns("eps"), "major", "columns removed: eps"),
        (
            lambda t: t.set_column(
                t.schema.get_field_index("year"), "year", pc.cast(t["year"], pa.int64())
            ),
            "major",
            "column types changed: year",
        ),
        (lambda t: t.slice(1), "major", "1 rows removed"),
    ],
)
def test_columns_and_rows_of_a_table(
    first: Path, tmp_path: Path, change: Any, bump: str, said: str
) -> None:
    root = write_tiny_release(tmp_path / "b")
    edit(root, schema.table_path("models"), change)
    d = diff(first, root)
    assert d.bump == bump and said in " ".join(d.reasons)


def test_null_and_nan_are_equal_to_themselves(first: Path, tmp_path: Path) -> None:
    def blank(table: pa.Table) -> pa.Table:
        index = table.schema.get_field_index("orthogonality")
        column = pa.array([None, float("nan"), *[0.5] * (len(table) - 2)], pa.float64())
        return table.set_column(index, "orthogonality", column)

    a = write_tiny_release(tmp_path / "a")
    b = write_tiny_release(tmp_path / "b")
    path = schema.table_path("layers")
    edit(a, path, blank)
    edit(b, path, lambda t: blank(t).append_column("extra", pa.array([1] * len(t))))
    (layers,) = diff(a, b).tables
    assert layers.changed_rows == 0 and layers.added_columns == ["extra"]


def test_json_has_every_field_and_is_json(first: Path, tmp_path: Path) -> None:
    d = diff(first, write_tiny_release(tmp_path / "b", models=MODELS[1:]))
    data = json.loads(json.dumps(asdict(d)))
    assert data["bump"] == "major" and data["next_version"] == "0.2.0"
    assert {"models_added", "tables", "reasons", "a", "b"} <= set(data)
    assert isinstance(d, Diff)


@pytest.mark.parametrize(
    ("old", "bump", "new"),
    [
        ("1.2.3", "none", "1.2.3"),
        ("1.2.3", "patch", "1.2.4"),
        ("1.2.3", "minor", "1.3.0"),
        ("1.2.3", "major", "2.0.0"),
        ("0.1.0", "major", "0.2.0"),
        ("0.1.9", "minor", "0.2.0"),
    ],
)
def test_next_version(old: str, bump: str, new: str) -> None:
    assert next_version(old, bump) == new


@pytest.mark.parametrize("text", ["1.2", "1.2.x", "", "1.2.3.4", "v", "1.-2.3"])
def test_a_wrong_version_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"MAJOR\.MINOR\.PATCH"):
        parse_version(text)
