"""What release/ keeps of a release, and that a changed number is found by its line."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import synthetic_release

from builder import schema
from builder.check.record import check, record
from builder.errors import UsageError
from builder.paper.reference import write_reference
from builder.release.manifest import write_manifest
from builder.sql import catalog

KEPT = Path(__file__).parent.parent / "release"


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("synthetic")
    return synthetic_release.write_release(root, synthetic_release.make_world())


@pytest.fixture(scope="module")
def recorded(release: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(release, tmp_path_factory.mktemp("release"))


@pytest.fixture
def kept(recorded: Path, tmp_path: Path) -> Path:
    """The record of the release, to change; its parent is what `check` is given."""
    return shutil.copytree(recorded, tmp_path / "release" / recorded.name)


def edit(path: Path, line: int, column: str, value: str) -> str:
    """Write another value into a CSV; the value that was there."""
    with path.open(newline="") as f:
        rows = list(csv.reader(f))
    at = rows[0].index(column)
    old, rows[line - 1][at] = rows[line - 1][at], value
    with path.open("w", newline="") as f:
        csv.writer(f, lineterminator="\n").writerows(rows)
    return old


def test_the_reference_release_has_the_recorded_numbers(tmp_path: Path) -> None:
    write_reference(tmp_path / "reference")
    assert check(tmp_path / "reference", KEPT) == {}


def test_every_query_and_every_scalar_of_the_small_tables_is_recorded(
    release: Path, kept: Path
) -> None:
    found = {p.relative_to(kept).with_suffix("").as_posix() for p in kept.rglob("*.csv")}
    assert {f"answers/{q.name}" for q in catalog.list_queries()} <= found
    assert {f"tables/{n}" for n in ("models", "pairs", "layers", "pca", "first_layer")} <= found
    header = (kept / "tables" / "layers.csv").read_text().partition("\n")[0].split(",")
    left_out = set(schema.LAYERS.names) - set(header)
    assert left_out == {"explained_variance_ratio", "mean", "scatter"}
    assert check(release, kept.parent) == {}


def test_a_number_beyond_its_tolerance_is_named_by_file_and_line(release: Path, kept: Path) -> None:
    path = kept / "tables" / "layers.csv"
    old = edit(path, 4, "variance_entropy", "0.5")
    answer = kept / "answers" / "06_sparsity_overall.csv"
    edit(answer, 2, "n_filters", "7")
    found = check(release, kept.parent)
    assert list(found) == [answer, path]
    assert found[path][0].startswith(
        f"{path}:4: variance_entropy: {old}, recorded 0.5 (may differ by "
    )
    assert found[answer][0].startswith(f"{answer}:2: n_filters: ") and len(found[answer]) == 1


def test_rounding_is_no_difference_and_changes_no_line(release: Path, kept: Path) -> None:
    path = kept / "tables" / "layers.csv"
    old = edit(path, 4, "variance_entropy", "x")
    edit(path, 4, "variance_entropy", repr(float(old) * (1 + 1e-12)))
    before = path.read_bytes()
    assert check(release, kept.parent) == {}
    record(release, kept.parent, update=True)
    assert path.read_bytes() == before
    edit(path, 4, "variance_entropy", repr(float(old) * (1 + 1e-6)))
    assert path in check(release, kept.parent)


def test_the_response_to_an_attack_may_move_further(release: Path, kept: Path) -> None:
    with (kept / "answers" / "18_first_layer_response.csv").open() as f:
        first = next(csv.DictReader(f))
    path = kept / "answers" / "18_first_layer_response.csv"
    edit(path, 2, "robust_post", repr(float(first["robust_post"]) * 1.005))
    assert check(release, kept.parent) == {}
    edit(path, 2, "robust_post", repr(float(first["robust_post"]) * 1.05))
    assert len(check(release, kept.parent)[path]) == 1


def test_a_row_too_many_and_a_row_too_few_are_named(release: Path, kept: Path) -> None:
    path = kept / "tables" / "pairs.csv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:2], *lines[3:], "gone,gone,cifar10,Net\n"]))
    missing, extra = check(release, kept.parent)[path]
    assert missing == f"{path}:2: followed by a new line: {lines[2].strip()}"
    assert extra == f"{path}:{len(lines)}: gone: gone,gone,cifar10,Net"


def test_a_column_more_or_a_query_more_is_named(release: Path, kept: Path) -> None:
    edit(kept / "tables" / "pairs.csv", 1, "architecture", "net")
    (kept / "answers" / "01_model_counts.csv").unlink()
    (kept / "answers" / "99_gone.csv").write_text("a\n1\n")
    found = check(release, kept.parent)
    assert sorted(p.name for p in found) == ["01_model_counts.csv", "99_gone.csv", "pairs.csv"]
    assert ":1: columns " in found[kept / "tables" / "pairs.csv"][0]
    record(release, kept.parent, update=True)
    assert check(release, kept.parent) == {} and not (kept / "answers" / "99_gone.csv").exists()


def test_filters_are_compared_by_their_content_hash(release: Path, kept: Path) -> None:
    manifest = json.loads((kept / "manifest.json").read_text())
    path = next(p for p in manifest["files"] if schema.filters_key(p))
    manifest["files"][path]["content_hash"] = "0" * 64
    del manifest["sha256"]
    write_manifest(kept, manifest)
    (lines,) = check(release, kept.parent).values()
    assert "content hash" in lines[0] and f"recorded {'0' * 64}" in lines[0]


def test_a_kept_version_is_only_replaced_when_asked(
    release: Path, kept: Path, tmp_path: Path
) -> None:
    manifest = (kept / "manifest.json").read_bytes()
    (kept / "NOTES.md").write_text("mine")
    assert record(release, kept.parent) == kept, "the same release once more"
    other = synthetic_release.write_tables(tmp_path / "other", {}, {})
    with pytest.raises(UsageError, match=r"keeps another release of version 0\.1\.0"):
        record(other, kept.parent)
    assert (kept / "manifest.json").read_bytes() == manifest
    record(other, kept.parent, update=True)
    assert (kept / "manifest.json").read_bytes() == (other / "manifest.json").read_bytes()
    assert check(other, kept.parent) == {} and (kept / "NOTES.md").read_text() == "mine"


def test_a_release_without_a_record_is_a_usage_error(release: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="keeps no record"):
        check(release, tmp_path)
