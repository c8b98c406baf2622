"""Every change to a release is found: flipped bytes, missing and extra files, forged numbers."""

from __future__ import annotations

import json
import os
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from builder import schema
from builder.check.parallel import Step, in_parallel
from builder.check.verify import verify
from builder.errors import BuilderError, UsageError
from builder.files import file_sha256
from builder.release.manifest import read_manifest, write_manifest
from builder.release.reader import open_release
from builder.release.write import TABLE_SETTINGS, write_table
from builder.workers import HERE

MODEL = "cifar10-robust-alpha"


@pytest.fixture
def copy(release: Path, tmp_path: Path) -> Path:
    return shutil.copytree(release, tmp_path / "copy")


def reported(root: Path, full: bool = False) -> str:
    """What verify says, in one text; '' where it finds nothing."""
    try:
        return "\n".join(map(str, verify(root, full)))
    except BuilderError as e:
        return str(e)


def test_every_flipped_byte_is_reported(release: Path, copy: Path):
    files = sorted(p for p in copy.rglob("*") if p.is_file())
    draw = random.Random(0)
    # Every file at least three times, and 200 more anywhere, in proportion to size.
    places = [(p, draw.randrange(p.stat().st_size)) for p in files for _ in range(3)]
    sizes = [p.stat().st_size for p in files]
    places += [(p, draw.randrange(p.stat().st_size)) for p in draw.choices(files, sizes, k=200)]
    for path, position in places:
        good = path.read_bytes()
        bad = bytearray(good)
        bad[position] ^= 1 << draw.randrange(8)
        path.write_bytes(bad)
        said = reported(copy)
        assert path.name in said, f"{path} at {position}: {said!r}"
        path.write_bytes(good)
    assert reported(copy) == ""


def test_a_cut_file_a_missing_file_and_a_stray_file_are_reported(copy: Path):
    path = copy / schema.table_path("layers")
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    assert f"has {len(data) - 1} bytes, the manifest says {len(data)}" in reported(copy)
    path.unlink()
    assert "files: data/layers.parquet: is missing" in reported(copy)
    path.write_bytes(data)
    (copy / "data" / "notes.txt").write_text("hello")
    assert "files: data/notes.txt: is not in the manifest" in reported(copy)


def test_what_a_download_from_the_hub_adds_is_tolerated_and_no_more(copy: Path):
    for path in (".gitattributes", ".cache/huggingface/download/manifest.json.metadata"):
        (copy / path).parent.mkdir(parents=True, exist_ok=True)
        (copy / path).write_text("theirs")
    assert reported(copy) == ""
    for path in (".cache/other", "data/.gitattributes"):
        (copy / path).write_text("mine")
        assert f"files: {path}: is not in the manifest" in reported(copy)


def test_a_release_made_of_links_is_checked_through_them(release: Path, tmp_path: Path):
    """As a snapshot in the Hub's cache is: every file a link to a blob of another name."""
    root, blobs = tmp_path / "snapshot", tmp_path / "blobs"
    blobs.mkdir()
    for number, path in enumerate(sorted(p for p in release.rglob("*") if p.is_file())):
        shutil.copy(path, blobs / str(number))
        link = root / path.relative_to(release)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blobs / str(number), link.parent))
    assert reported(root, full=True) == ""
    layers = root / schema.table_path("layers")
    blob = layers.resolve()
    blob.write_bytes(blob.read_bytes()[:-1] + b"X")
    assert "files: data/layers.parquet: has changed" in reported(root)
    blob.unlink()
    assert "files: data/layers.parquet: is a link that leads to no file" in reported(root)


def test_a_linked_folder_of_a_release_is_checked_through_the_link(copy: Path, tmp_path: Path):
    (copy / "data").rename(tmp_path / "elsewhere")
    (copy / "data").symlink_to(tmp_path / "elsewhere")
    assert reported(copy, full=True) == ""
    (tmp_path / "elsewhere" / "notes.txt").write_text("mine")
    assert reported(copy) == "files: data/notes.txt: is not in the manifest"


@pytest.mark.parametrize("target", ["nowhere", "/", "..", "."])
@pytest.mark.parametrize("at", ["stray", "data/stray", "data/filters/stray"])
def test_a_stray_link_is_reported_and_not_followed(copy: Path, at: str, target: str):
    (copy / at).symlink_to(target)
    assert reported(copy) == f"files: {at}: is not in the manifest"


@pytest.mark.parametrize(
    "name",
    [
        *(
            "robust=false/dataset=x/weights=none/r",
            "dataset=x",
            "model_id=y/r",
            "2026-11-25T03:04:05",
        ),
        *(
            "semi:colon",
            "hf:__x",
            "s3:",
            "~",
            "br[a]cket",
            "st*r",
            "q?",
            "it's",
            "new\nline",
            "-dash",
        ),
    ],
)
def test_the_name_of_a_folder_changes_nothing_of_what_is_read(
    release: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(release, name)
    assert reported(Path(name), full=True) == ""
    query = "select dataset, model_id, robust from models order by all"
    answer = open_release(Path(name)).sql(query)
    assert answer.equals(open_release(release).sql(query)) and answer["robust"].to_pylist()[0]


def test_a_folder_without_a_manifest_is_no_release(tmp_path: Path):
    with pytest.raises(UsageError, match="is not a release"):
        verify(tmp_path)


def test_a_manifest_of_a_newer_schema_is_refused(copy: Path):
    write_manifest(copy, {**read_manifest(copy), "schema_version": 99})
    with pytest.raises(UsageError, match="schema version 99"):
        verify(copy)


def forge(root: Path, path: str, change: Callable[[pa.Table], pa.Table], table: str) -> None:
    """Rewrite a table and make the manifest agree with it, as a careful forger would."""
    rows = change(pq.read_table(root / path))
    if table == "filters":
        kept = rows.schema.metadata
        with pq.ParquetWriter(root / path, rows.schema.with_metadata(kept)) as writer:
            writer.write_table(rows)
        facts = {"rows": rows.num_rows, "bytes": (root / path).stat().st_size,
                 "sha256": file_sha256(root / path), "content_hash": "0" * 32}  # fmt: skip
    else:
        columns = schema.TABLES.get(table, schema.FILTERS)
        facts = write_table(root / path, columns, rows, "seeded:0")
    manifest = read_manifest(root)
    manifest["files"][path] = facts
    write_manifest(root, manifest)


def with_value(name: str, row: int, value: object) -> Callable[[pa.Table], pa.Table]:
    def change(rows: pa.Table) -> pa.Table:
        values = rows[name].to_pylist()
        values[row] = value
        index = rows.schema.get_field_index(name)
        return rows.set_column(index, rows.schema.field(name), pa.array(values, rows[name].type))

    return change


@pytest.mark.parametrize(
    ("table", "change", "said"),
    [
        ("models", with_value("model_id", 0, "cifar10-robust-other"), "without their"),
        ("models", with_value("network", 0, "other"), "not dataset-kind-network"),
        ("models", with_value("n_filters", 0, 5), "do not add up"),
        ("models", with_value("clean_acc", 0, 130.0), "accuracy out of range"),
        ("models", lambda t: t.slice(1), "without their"),
        ("pairs", with_value("standard_model_id", 0, MODEL), "without their standard"),
        ("pairs", with_value("architecture", 0, "Other-1"), "of another architecture"),
        ("pairs", lambda t: pa.concat_tables([t, t]), "occurs twice"),
        ("layers", with_value("sparsity", 0, 1.5), "out of range"),
        ("layers", with_value("norm_l1", 0, float("nan")), "has NaN"),
        ("layers", with_value("depth_bin", 0, 11), "out of range"),
        ("layers", lambda t: t.slice(2), "do not add up"),
        ("layers", lambda t: t.slice(t.num_rows), "totals are"),
        ("histograms", with_value("n", 40, 10**6), "does not hold every non-sparse filter"),
    ],
)
def test_tables_that_contradict_each_other_are_reported(
    copy: Path, table: str, change: Callable[[pa.Table], pa.Table], said: str
):
    forge(copy, schema.table_path(table), change, table)
    assert said in reported(copy)


@pytest.mark.parametrize(
    "metric",
    ["n_sparse", "variance_entropy", "variance_entropy_raw_norm", "orthogonality", "norm_l2"],
)
def test_a_forged_metric_is_reported_by_the_full_tier(copy: Path, metric: str):
    path = schema.table_path("layers")
    value = pq.read_table(copy / path)[metric][3].as_py()
    forge(copy, path, with_value(metric, 3, value + 1 if metric == "n_sparse" else value * 0.99),
          "layers")  # fmt: skip
    assert metric in reported(copy, full=True) or "histogram" in reported(copy)


MODEL_FORGERIES = {
    "n_layers": 99,
    "n_sparse": 7,
    "n_sparse_trained": 7,
    "sparsity": 0.9,
    "sparsity_trained": 0.3,
    "variance_entropy": 0.123,
    "variance_entropy_trained": 0.123,
    "orthogonality": 0.5,
    "orthogonality_trained": None,
    "filters_hash": "0" * 32,
    "same_filters_as": "cifar10-standard-beta",
    "source_url": "elsewhere.pt",
    "checkpoint_sha256": "0" * 64,
    "checkpoint_bytes": 5,
    "n_params": 1,
}


@pytest.mark.parametrize("column", MODEL_FORGERIES)
def test_a_forged_number_of_a_model_is_reported_by_the_full_tier(copy: Path, column: str):
    change = with_value(column, 1, MODEL_FORGERIES[column])
    forge(copy, schema.table_path("models"), change, "models")
    said = reported(copy, full=True)
    assert f"{column} is {MODEL_FORGERIES[column]}" in said or "do not add up" in said


@pytest.mark.parametrize("change", [{"models": {}}, {"duplicates": [["a", "b"]]}], ids=str)
def test_a_manifest_of_other_models_is_reported_by_the_full_tier(
    copy: Path, change: dict[str, object]
):
    write_manifest(copy, read_manifest(copy) | change)
    assert "manifest.json: lists other" in reported(copy, full=True)


def test_a_forged_filter_is_reported_by_the_full_tier(copy: Path):
    path = schema.filters_path("cifar10", MODEL)
    forge(copy, path, with_value("w11", 7, 0.125), "filters")
    assert reported(copy) == ""  # the fast tier reads no filters
    said = reported(copy, full=True)
    assert "content hash is not the manifest's" in said
    assert "its filters give" in said


def test_a_forged_sample_is_reported_by_the_full_tier(copy: Path):
    rows = pq.read_table(copy / schema.SAMPLE)
    forge(copy, schema.SAMPLE, with_value("w11", 2, 0.125), "filters_sample")
    assert "filters_sample.parquet: has rows that are not in " in reported(copy, full=True)
    forge(copy, schema.SAMPLE, lambda t: rows.drop_columns(["linf"]), "filters")
    assert "columns differ from table 'filters'" in reported(copy)


def test_shuffled_filters_are_reported_by_the_full_tier(copy: Path):
    order = np.random.default_rng(0).permutation(184)
    forge(copy, schema.filters_path("cifar10", MODEL), lambda t: t.take(order), "filters")
    assert "is not sorted by its key" in reported(copy, full=True)


def test_filters_under_another_name_are_reported(copy: Path):
    path = schema.filters_path("cifar10", MODEL)
    other = pq.read_table(copy / schema.filters_path("cifar10", "cifar10-standard-alpha"))
    forge(copy, path, lambda t: other, "filters")
    assert f"holds rows of other models than {MODEL}" in reported(copy)


def times(name: str, factor: float) -> Callable[[pa.Table], pa.Table]:
    """Every value of a column multiplied, vectors too."""

    def change(rows: pa.Table) -> pa.Table:
        values = (factor * np.array(rows[name].to_pylist())).tolist()
        index = rows.schema.get_field_index(name)
        return rows.set_column(index, rows.schema.field(name), pa.array(values, rows[name].type))

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (with_value("n_samples", 0, 3), "n_samples does not follow"),
        (with_value("explained_variance", 1, 0.111), "explained_variance does not follow"),
        (with_value("explained_variance_ratio", 2, None), "explained_variance_ratio does not"),
        (times("explained_variance_ratio", 0.111), "explained_variance_ratio does not follow"),
        (times("direction", -1), "direction does not follow"),
        (times("mean", 1.01), "mean does not follow"),
        (with_value("direction", 1, [1 / 3] * 9), "direction does not follow"),
        (with_value("direction", 1, None), "direction does not follow"),
        (lambda t: t.slice(1), "is incomplete"),
        (lambda t: t.slice(9), "is incomplete"),
        (with_value("basis", 0, "another"), "is incomplete"),
    ],
)
def test_a_forged_basis_is_reported_by_the_full_tier(
    copy: Path, change: Callable[[pa.Table], pa.Table], said: str
):
    forge(copy, schema.table_path("pca"), change, "pca")
    assert said in reported(copy, full=True)


def test_a_forged_histogram_is_reported_by_the_full_tier(copy: Path):
    path = schema.table_path("histograms")

    def move_one(rows: pa.Table) -> pa.Table:  # from the fullest bin to an empty one
        first = rows["n"].to_pylist()[:70]
        full, empty = first.index(max(first)), first.index(0)
        moved = with_value("n", full, first[full] - 1)(rows)
        return with_value("n", empty, 1)(moved)

    forge(copy, path, move_one, "histograms")
    assert reported(copy) == ""
    assert "differs from what is stored" in reported(copy, full=True)


@pytest.mark.parametrize("first", [70, 10**6])
def test_a_missing_histogram_is_reported_by_the_full_tier(copy: Path, first: int):
    forge(copy, schema.table_path("histograms"), lambda t: t.slice(first), "histograms")
    assert f"{MODEL}, depth bin 0, component 0: 0 bins, expected 70" in reported(copy, full=True)


def test_another_schema_is_reported(copy: Path):
    path = copy / schema.table_path("models")
    rows = pq.read_table(path).drop_columns(["title"])
    with pq.ParquetWriter(path, rows.schema, **TABLE_SETTINGS) as writer:
        writer.write_table(rows)
    manifest = read_manifest(copy)
    facts = manifest["files"][schema.table_path("models")]
    facts |= {"sha256": file_sha256(path), "bytes": path.stat().st_size}
    write_manifest(copy, manifest)
    assert "columns differ from table 'models'" in reported(copy)


def test_findings_can_be_told_as_json(copy: Path):
    (copy / "README.md").unlink()
    (finding,) = verify(copy)
    assert json.loads(json.dumps(asdict(finding))) == {
        "check": "files",
        "path": "README.md",
        "message": "is missing",
    }


def test_statistics_hold_the_key_columns(release: Path):
    table = pq.read_table(release / schema.filters_path("cifar10", MODEL))
    assert pc.unique(table["model_id"]).to_pylist() == [MODEL]


def test_every_step_of_the_full_tier_says_how_far_it_is(release: Path):
    said: dict[str, list[tuple[int, int | None]]] = {}

    def report(subject: str, what: str, done: int, total: int | None) -> None:
        said.setdefault(what, []).append((done, total))

    assert verify(release, full=True, report=report) == []
    assert list(said) == ["files", "content", "metrics", "audits", "queries"]
    for what, steps in said.items():
        assert steps == sorted(steps), what
        assert steps[-1][0] == steps[-1][1], what
    n = read_manifest(release)["totals"]["filters"]
    assert said["metrics"][-1] == said["audits"][-1] == (n, n)
    assert len(said["audits"]) == 4 * 4  # of every model, what audits share and those of a model


def test_whoever_stops_listening_ends_the_work():
    seen: list[int] = []
    begun = threading.Event()

    def work(item: int, step: Step) -> Iterator[int]:
        yield item
        begun.set()
        while item:  # until it is told to end
            time.sleep(0.01)
            step(0)

    found = in_parallel(work, [0, 1, 2], lambda *said: seen.append(said[2]), "check", 3, HERE)
    assert next(found) == 0
    assert begun.wait(60)
    found.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("verify")]
