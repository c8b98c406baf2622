"""The dataset card: true to its release, read by `datasets`, and its examples run."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_client import HubClient
from tiny_release import LAYERS, MODELS, Tiny, write_tiny_release

from builder import schema
from builder.files import project_file
from builder.release.card import configs, render_card, size_category
from builder.release.manifest import read_manifest


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_release(tmp_path_factory.mktemp("card") / "release")


@pytest.fixture(scope="module")
def client(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubClient]:
    """A process in the release folder whose Hub cannot be reached."""
    pytest.importorskip("datasets")
    client = HubClient("http://127.0.0.1:9", tmp_path_factory.mktemp("hf"), token=None)
    client.run("import os; os.chdir(path)", path=str(root))
    yield client
    client.close()


def blocks(card: str, language: str) -> list[str]:
    """The fenced code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", card, flags=re.M | re.S)


TEMPLATE_BLOCKS = 6  # python blocks of the card; a new one is run like the others


@pytest.mark.parametrize("number", range(TEMPLATE_BLOCKS))
def test_python_example_runs_on_a_release_folder(
    root: Path, client: HubClient, number: int
) -> None:
    found = blocks((root / "README.md").read_text(), "python")
    assert len(found) == TEMPLATE_BLOCKS
    client.run(found[number], name=f"card example {number}")
    assert client.said.strip()  # every example shows something


def test_sql_example_runs_on_a_release_folder(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    duckdb = pytest.importorskip("duckdb")
    monkeypatch.chdir(root)
    (sql,) = blocks((root / "README.md").read_text(), "sql")
    with duckdb.connect() as con:
        rows = con.sql(sql).fetchall()
    n = sum(outs * ins for _, outs, ins in LAYERS)
    assert [r[:2] for r in rows] == sorted(
        (m.model_id, n) for m in MODELS if m.dataset == "cifar10"
    )


def test_every_configuration_loads_with_the_rows_of_the_manifest(
    root: Path, client: HubClient
) -> None:
    manifest = read_manifest(root)
    expected = {}
    for name, pattern in configs(manifest["files"], ["cifar10", "cifar100"]).items():
        start = pattern.split("*")[0]
        expected[name] = sum(f["rows"] for p, f in manifest["files"].items() if p.startswith(start))
    assert set(expected) >= {"filters_cifar10", "filters_sample", *schema.SMALL_TABLES}
    source = """
from datasets import get_dataset_config_names, load_dataset
import os
here = os.getcwd()
names = get_dataset_config_names(here)
result = {}
for name in names:
    plain = load_dataset(here, name, split="train")
    stream = load_dataset(here, name, split="train", streaming=True)
    streamed = sum(len(b) for b in stream.with_format("arrow").iter(batch_size=50))
    result[name] = [plain.num_rows, streamed, plain.column_names]
"""
    loaded = client.run(source)
    assert {n: v[:2] for n, v in loaded.items()} == {n: [r, r] for n, r in expected.items()}
    assert loaded["filters_cifar10"][2] == list(schema.FILTERS.names)
    assert client.run(
        "import os; from datasets import load_dataset\n"
        "result = load_dataset(os.getcwd(), split='train').column_names"
    ) == list(schema.MODELS.names)


def test_the_card_describes_every_column_of_every_table(root: Path) -> None:
    card = (root / "README.md").read_text()
    for table in schema.TABLES.values():
        section = card.split(f"\n### {table.name}\n")[1].split("\n### ")[0]
        rows = re.findall(r"^\| `(\w+)` \| ", section, flags=re.M)
        assert rows[: len(table.columns)] == list(table.names)


def test_numbers_of_the_card_follow_the_manifest(root: Path) -> None:
    manifest = read_manifest(root)
    card = render_card(manifest, root)
    assert f"| {len(MODELS)} |" in card and "| 1,080 |" in card
    manifest["totals"]["filters"] = 1_234_567
    manifest["version"] = "7.8.9"
    card = render_card(manifest, root)
    assert "| 1,234,567 |" in card and "v7.8.9" in card and "v0.1.0" not in card
    assert "- 1M<n<10M" in card


@pytest.mark.parametrize(
    ("cohort", "accuracies"),
    [
        ("paper", "copied from RobustBench"),
        ("mini", "on a JPEG copy"),
        ("mine", "what the cohort lists"),
    ],
)
def test_the_card_says_whence_accuracies_are(root: Path, cohort: str, accuracies: str) -> None:
    manifest = read_manifest(root)
    manifest["cohort"]["name"] = cohort
    card = render_card(manifest, root)
    assert accuracies in card
    assert ("RobustBench listed" in card) == (cohort == "paper")


def test_the_template_states_no_count_by_hand() -> None:
    text = project_file("dataset_card.md").read_text()
    text = re.sub(r"```bibtex.*?```|https?://\S+|\{\{\w+\}\}", "", text, flags=re.S)
    allowed = {"3", "1", "7", "4", "0", "2022", "32", "256", "64", "6414075", "7097538"}
    allowed |= {"131_072", "100", "4.0"}
    assert set(re.findall(r"\d[\d_,.]*\d|\d", text)) <= allowed


def test_an_empty_table_is_no_configuration(root: Path) -> None:
    """`datasets` fails on a Parquet file without rows; a cohort without pairs has one."""
    manifest = read_manifest(root)
    manifest["files"]["data/pairs.parquet"]["rows"] = 0
    card = render_card(manifest, root)
    assert "config_name: layers" in card and "config_name: pairs" not in card
    assert "### pairs" in card


def test_no_placeholder_is_left(root: Path) -> None:
    assert "{{" not in (root / "README.md").read_text()


@pytest.mark.parametrize(
    ("n", "category"),
    [(1, "n<1K"), (1000, "1K<n<10K"), (995_381_344, "100M<n<1B"), (10**9, "1B<n<10B")],
)
def test_size_category_is_the_hubs(n: int, category: str) -> None:
    assert size_category(n) == category


def test_a_seeded_release_says_so_before_anything_else(tmp_path: Path) -> None:
    root = write_tiny_release(tmp_path / "seeded", weights="seeded:0")
    card = (root / "README.md").read_text()
    head = card.split("\n# Robust Filter Lens\n")[1].lstrip()
    assert head.startswith("> **These are not trained filters.**")
    assert "`seeded:0`" in head.splitlines()[0]


def licences(root: Path, manifest: dict[str, Any], *values: str | None) -> str:
    """The card with the licences of the models replaced."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = root / schema.table_path("models")
    table = pq.read_table(path)
    column = [*values, *["MIT"] * (table.num_rows - len(values))]
    index = table.schema.get_field_index("license")
    pq.write_table(table.set_column(index, "license", pa.array(column, pa.string())), path)
    return render_card(manifest, root)


def test_one_restrictive_or_unknown_licence_makes_the_whole_other(tmp_path: Path) -> None:
    root = write_tiny_release(tmp_path / "licences")
    manifest = read_manifest(root)
    assert "\nlicense: cc-by-sa-4.0\n" in licences(root, manifest, "MIT", "Apache-2.0")
    for value in ("CC-BY-NC-SA-4.0", None):
        card = licences(root, manifest, value)
        assert "\nlicense: other\nlicense_name: per-model\n" in card
        assert f"({value or 'unknown'})" in card


def test_examples_on_the_hub_name_the_repository_and_the_tag(root: Path) -> None:
    card = render_card(read_manifest(root), root, repo_id="lens/filters")
    examples = "".join(blocks(card, "python") + blocks(card, "sql"))
    assert examples.count('"lens/filters"') >= 4
    assert examples.count("v0.1.0") >= 7
    assert '"."' not in examples and "'./" not in examples and "getcwd" not in examples


def test_every_model_has_its_licence_and_paper_among_the_sources(root: Path) -> None:
    sources = (root / "README.md").read_text().split("### Sources and licences")[1]
    for model in MODELS:
        assert f"`{model.model_id}`" in sources
        assert f"https://example.org/{model.network}" in sources


def test_the_sample_has_the_same_number_of_rows_of_every_layer(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    models = (Tiny("A"), Tiny("B", robust=False))
    root = write_tiny_release(tmp_path / "a", models=models)
    again = write_tiny_release(tmp_path / "b", models=models)
    path = "data/filters_sample.parquet"
    assert (root / path).read_bytes() == (again / path).read_bytes()
    table = pq.ParquetFile(root / path).read()
    assert table.schema.names == list(schema.FILTERS.names)
    counts = table.group_by(["model_id", "layer_index"]).aggregate([("w00", "count")])
    assert counts.column("w00_count").to_pylist() == [8] * 6
    every = pq.read_table(root / "data" / "filters", partitioning=None).to_pylist()
    keys = schema.FILTERS.key
    full = {tuple(r[k] for k in keys): r for r in every}
    for row in table.to_pylist():
        assert full[tuple(row[k] for k in keys)] == row


def test_paths_of_this_machine_are_not_in_the_card(root: Path) -> None:
    card = (root / "README.md").read_text()
    assert str(root) not in card and os.path.expanduser("~") + "/" not in card  # noqa: PTH111
