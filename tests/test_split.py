"""Groups of models that belong together, and the split that follows from them."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_release import Tiny, write_tiny_release

from builder import schema
from builder.check.diff import diff
from builder.check.tables import check_tables
from builder.cohort.registry import load_cohort
from builder.paper.reference import model_rows
from builder.release.manifest import read_manifest
from builder.release.split import SPLITS, assign


def model(name: str, n_filters: int = 9, **facts: Any) -> dict[str, Any]:
    known = {"dataset": "cifar10", "robust": True, "title": None, "filters_hash": name}
    return {"model_id": name, "n_filters": n_filters, **known, **facts}


def groups(models: list[dict[str, Any]], pairs: list[dict[str, Any]]) -> list[set[str]]:
    found: dict[str, set[str]] = {}
    for name, row in assign(models, pairs).items():
        found.setdefault(row["group"], set()).add(name)
    assert all(first == min(members) for first, members in found.items())
    return sorted(found.values(), key=min)


def pair(robust: str, standard: str) -> dict[str, Any]:
    return {"robust_model_id": robust, "standard_model_id": standard}


def test_what_has_filters_a_paper_or_a_partner_in_common_is_one_group() -> None:
    models = [
        model("a", filters_hash="same"),
        model("b", filters_hash="same", title="One"),
        model("c", title="One"),
        model("d", paper_url="https://example.org"),
        model("e"),
        model("f"),
        model("g", title="Two"),
    ]
    pairs = [pair("c", "e"), pair("d", "e")]
    assert groups(models, pairs) == [{"a", "b", "c", "d", "e"}, {"f"}, {"g"}]


def test_a_title_that_is_not_known_ties_nothing_together() -> None:
    assert groups([model("a"), model("b"), model("c", title="")], []) == [{"a"}, {"b"}, {"c"}]


def test_the_order_of_the_rows_changes_nothing() -> None:
    models, pairs = model_rows(load_cohort("paper")), load_cohort("paper").pair_rows()
    expected = assign(models, pairs)
    random.Random(0).shuffle(models)
    random.Random(1).shuffle(pairs)
    assert assign(models, pairs) == expected


def test_the_papers_models_are_split_70_15_15_by_whole_groups() -> None:
    models = model_rows(load_cohort("paper"))
    total = sum(m["n_filters"] for m in models)
    share: Counter[str] = Counter()
    for m in models:
        share[m["split"]] += m["n_filters"] / total
    for name, wanted in SPLITS.items():
        assert share[name] == pytest.approx(float(wanted), abs=0.03)
    assert len({(m["group"], m["split"]) for m in models}) == len({m["group"] for m in models}) > 10
    for dataset in ("cifar10", "cifar100"):  # all of imagenet is one group
        for robust in (True, False):
            here = {m["split"] for m in models if (m["dataset"], m["robust"]) == (dataset, robust)}
            assert here == set(SPLITS)


def test_a_single_group_is_all_for_training() -> None:
    assert {r["split"] for r in assign([model("a"), model("b")], [pair("a", "b")]).values()} == {
        "train"
    }
    assert assign([], []) == {}


def test_models_without_filters_are_split_too() -> None:
    assert assign([model("a", 0), model("b", 0)], []).keys() == {"a", "b"}


def test_verify_reports_a_split_that_does_not_follow(tmp_path: Path) -> None:
    root = write_tiny_release(tmp_path)
    assert not list(check_tables(root, read_manifest(root)))
    path = root / schema.table_path("models")
    rows = pq.ParquetFile(path).read()
    moved = ["test" if v != "test" else "train" for v in rows["split"].to_pylist()]
    at = rows.schema.get_field_index("split")
    field = rows.schema.field("split")
    changed = rows.set_column(at, field, pa.array(moved).dictionary_encode().cast(field.type))
    pq.write_table(changed, path)
    said = [str(f) for f in check_tables(root, read_manifest(root))]
    assert len(said) == rows.num_rows and ": split is " in said[0] and "the models give" in said[0]


def test_more_models_that_move_the_split_are_a_minor_change(tmp_path: Path) -> None:
    before = tuple(Tiny(name) for name in "ABCD")
    a = write_tiny_release(tmp_path / "a", models=before)
    b = write_tiny_release(tmp_path / "b", models=(*before, Tiny("Aa")))
    old, new = (
        {r["model_id"]: r["split"] for r in pq.read_table(p / "data/models.parquet").to_pylist()}
        for p in (a, b)
    )
    assert any(new[m] != s for m, s in old.items()), "this release moves none"
    found = diff(a, b)
    (change,) = (t for t in found.tables if t.table == "models")
    assert change.changed_rows == change.summary_rows > 0
    assert found.bump == "minor"
