"""What changed between two releases, and the version it calls for."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from tiny_release import MODELS, Tiny, _facts, write_tiny_release

from builder import schema
from builder.check import rows
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


def moved(column: str, step: float) -> Any:
    """A change of every value of a column, or of the first entry of a vector, by `step` of it."""

    def move(value: Any) -> Any:
        return [move(value[0]), *value[1:]] if isinstance(value, list) else value * (1 + step)

    def change(table: pa.Table) -> pa.Table:
        values = pa.array(
            [move(v) for v in table[column].to_pylist()], table.schema.field(column).type
        )
        return table.set_column(table.schema.get_field_index(column), column, values)

    return change


@pytest.mark.parametrize(
    ("table", "column", "step"),
    [
        ("layers", "norm_l2", 2e-16),
        ("layers", "orthogonality", 1e-8),
        ("layers", "scatter", 1e-15),
        ("models", "variance_entropy_trained", 1e-15),
        ("pca", "direction", 1e-14),
        ("first_layer", "response_pre", 9e-3),
    ],
)
def test_rounding_of_another_machine_is_a_patch_in_one_line(
    first: Path, tmp_path: Path, table: str, column: str, step: float
) -> None:
    root = write_tiny_release(tmp_path / "b")
    edit(root, schema.table_path(table), moved(column, step))
    d = diff(first, root)
    assert d.bump == "patch" and d.next_version == "0.1.1"
    (change,) = d.tables
    assert change.rounding_rows and not change.changed_rows and not change.examples
    assert all(c.rounding for c in change.columns)
    (line,) = [line for line in as_text(d).splitlines() if table in line and "other" not in line]
    assert f"patch: rounding, within the tolerances of the columns: {change.rounding_rows}" in line


@pytest.mark.parametrize(
    ("table", "column", "step"),
    [
        ("layers", "norm_l2", 1e-6),
        ("layers", "orthogonality", 1e-3),
        ("layers", "scatter", 1e-6),
        ("layers", "layer_linf", 1e-12),
        ("models", "sparsity", 1e-12),
        ("first_layer", "eps", 1e-12),
        ("first_layer", "response_pre", 0.5),
        ("paper", "value", 1e-12),
    ],
)
def test_a_difference_beyond_the_tolerance_of_its_column_is_a_change(
    first: Path, tmp_path: Path, table: str, column: str, step: float
) -> None:
    root = write_tiny_release(tmp_path / "b")
    edit(root, schema.table_path(table), moved(column, step))
    d = diff(first, root)
    assert d.bump == "major" and f"changed in {column}" in d.reasons[0]


def test_rounding_beside_a_change_of_the_same_column_hides_neither(
    first: Path, tmp_path: Path
) -> None:
    root = write_tiny_release(tmp_path / "b")

    def change(table: pa.Table) -> pa.Table:
        values = table["norm_l1"].to_pylist()
        values[0] *= 2
        values[1] *= 1 + 2e-16
        index = table.schema.get_field_index("norm_l1")
        return table.set_column(index, "norm_l1", pa.array(values, pa.float64()))

    edit(root, schema.table_path("layers"), change)
    (layers,) = diff(first, root).tables
    assert (layers.changed_rows, layers.rounding_rows) == (1, 1)
    assert [(c.rows, c.rounding) for c in layers.columns] == [(1, False), (1, True)]


def test_a_flipped_sign_of_zero_is_a_change_of_the_filters(tmp_path: Path) -> None:
    def zero(sign: float) -> Any:
        def change(table: pa.Table) -> pa.Table:
            values = table.column("w11").to_numpy().copy()
            values[7] = sign * 0.0
            return table.set_column(table.schema.get_field_index("w11"), "w11", pa.array(values))

        return change

    path = schema.filters_path("cifar10", MODELS[0].model_id)
    a, b = (write_tiny_release(tmp_path / name) for name in "ab")
    edit(a, path, zero(1.0))
    edit(b, path, zero(-1.0))
    d = diff(a, b)
    assert d.models_changed == [MODELS[0].model_id] and d.tables[0].changed_rows == 1


@pytest.mark.parametrize("size", [1, 5, 64, 1 << 17])
def test_filters_are_matched_by_their_key_whatever_the_batches(
    first: Path, tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A layer that is gone, one row more, one row changed; batches end anywhere."""
    monkeypatch.setattr(rows, "_BATCH_ROWS", size)
    root = write_tiny_release(tmp_path / "b")
    path = schema.filters_path("cifar10", MODELS[0].model_id)

    def change(table: pa.Table) -> pa.Table:
        values = table.column("w11").to_numpy().copy()
        values[-1] += 1
        table = table.set_column(table.schema.get_field_index("w11"), "w11", pa.array(values))
        index = table.schema.get_field_index("in_channel")
        more = table.slice(len(table) - 1)
        more = more.set_column(index, "in_channel", pa.array([8], pa.int16()))
        kept = table.filter(pc.not_equal(table["layer_index"], 1))
        return pa.concat_tables([kept, more.cast(kept.schema)])

    edit(root, path, change)
    change_ = next(t for t in diff(first, root).tables if t.path == path)
    assert (change_.added_rows, change_.removed_rows, change_.changed_rows) == (1, 64, 1)
    assert [c.column for c in change_.columns] == ["w11"] and change_.columns[0].largest == 1
    assert change_.examples[0] == f"{MODELS[0].model_id}, 1, 0, 0"


AWKWARD = ("br[a]cket", "st*r", "q?", "it's", "semi:colon", "2026-11-25T03:04:05", "s3:", "~")


@pytest.mark.parametrize("name", AWKWARD)
def test_a_folder_whose_name_is_a_pattern_or_an_address_is_compared_itself(
    first: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(first, name)
    for other in ("bracket", "brack", "star", "qa", "a"):  # what a pattern would match as well
        shutil.copytree(first, other, dirs_exist_ok=True)
        edit(Path(other), schema.table_path("layers"), lambda t: t.slice(1))
    edit(Path(name).absolute(), schema.table_path("models"), moved("clean_acc", 0.5))
    d = diff(first, name)
    assert [t.table for t in d.tables] == ["models"] and d.tables[0].changed_rows == len(MODELS)


def test_a_hundred_added_models_stood_on_one_line(first: Path, tmp_path: Path) -> None:
    new = tuple(Tiny(f"New{i}", partner="Plain") for i in range(15))
    d = diff(first, write_tiny_release(tmp_path / "b", models=(*MODELS, *new)))
    lines = as_text(d).splitlines()
    at = lines.index("models added (15):")
    assert lines[at + 1 : at + 11] == [f"  {name}" for name in d.models_added[:10]]
    assert lines[at + 11] == "  and 5 more; --json has all"
    names = ", ".join(d.models_added[:3])
    assert f"minor: models added: {names} and 12 more" in d.reasons
    assert max(map(len, lines[2:])) < 200
    assert len(asdict(d)["models_added"]) == 15


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
