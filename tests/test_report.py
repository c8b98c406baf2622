"""The page of a release holds the numbers of its SQL, says what is missing, and escapes texts."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import duckdb
import numpy as np
import pytest
import report_releases as releases
from synthetic_release import make_world, write_release
from typer.testing import CliRunner

from builder import schema
from builder.cli.main import app
from builder.errors import UsageError
from builder.hub import Place
from builder.paper.reference import write_reference
from builder.release.manifest import read_manifest
from builder.release.reader import open_release
from builder.report import page
from builder.report.figures import drawings, write_figures
from builder.report.overlay import read_overlay
from builder.report.pictures import packed
from builder.report.tables import columnar, open_tables, read, rounded
from builder.sql import catalog
from builder.sql.console import console_link


class Scripts(HTMLParser):
    """What a browser makes of the page: its scripts, its links, its visible text."""

    def __init__(self) -> None:
        super().__init__()
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._inside: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        self._inside = None

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            about, text = self.scripts[-1]
            self.scripts[-1] = (about, text + data)
        elif self._inside != "style":
            self.text += data


def parsed(html: str) -> tuple[dict[str, Any], Scripts]:
    """The embedded data of a page, and the page as parsed."""
    parser = Scripts()
    parser.feed(html)
    (data,) = [json.loads(text) for about, text in parser.scripts if about.get("id") == "data"]
    return data, parser


def unfolded(table: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of a table as page.js unfolds them."""
    columns = {
        name: [None if i is None else c["texts"][i] for i in c["index"]]
        if isinstance(c, dict)
        else c
        for name, c in table["columns"].items()
    }
    return [{name: c[i] for name, c in columns.items()} for i in range(table["n"])]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_release(tmp_path_factory.mktemp("world"), make_world())


@pytest.fixture(scope="module")
def world_page(world: Path) -> tuple[dict[str, Any], Scripts]:
    return parsed(page.render(str(world)))


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("reference") / "out"
    write_reference(out)
    return out


@pytest.mark.parametrize(
    ("query", "metric"),
    [
        ("08_sparsity_by_depth", "sparsity"),
        ("09_variance_entropy_by_depth", "variance_entropy"),
        ("10_orthogonality_by_depth", "orthogonality"),
    ],
)
def test_boxes_of_the_page_are_those_of_the_queries(
    world: Path, world_page: tuple[dict[str, Any], Scripts], query: str, metric: str
) -> None:
    data, _ = world_page
    answer = open_release(world).sql(catalog.load(query).sql).to_pylist()
    wanted = {
        (r["dataset"], r["depth_bin"], r["kind"]): r
        for r in answer
        if r.get("reading") in (None, "weighted by filters")
    }
    shown = {
        (r["dataset"], r["depth_bin"], r["kind"]): r
        for r in unfolded(data["tables"]["depth_boxes"])
        if r["metric"] == metric and r["weights"] == "folded"
    }
    assert shown.keys() == wanted.keys() and len(shown) > 20
    for key, row in shown.items():
        for column in ("n_points", "q1", "median", "q3", "whisker_low", "whisker_high", "mean"):
            assert row[column] == pytest.approx(wanted[key][column], rel=1e-5, abs=1e-9), key


def test_correlations_are_those_of_the_query(world: Path) -> None:
    with open_tables(open_release(world)) as con:
        ours = {
            (r["dataset"], r["metric"]): r["spearman"]
            for r in read(con, "correlations").to_pylist()
            if r["weights"] == "folded"
        }
    answer = open_release(world).sql(catalog.load("metric_correlation").sql).to_pylist()
    wanted = {
        (r["dataset"], r["metric"]): r["spearman"]
        for r in answer
        if r["metric"] != "mean_abs_cosine"
    }
    assert ours == pytest.approx(wanted) and ours


def test_answers_keep_every_row_and_digit(
    world: Path, world_page: tuple[dict[str, Any], Scripts]
) -> None:
    data, _ = world_page
    for found in data["findings"]:
        query = catalog.load(found["query"])
        answer = open_release(world).sql(query.sql)
        assert found["columns"] == answer.column_names
        assert found["sql"] == query.sql.strip()
        assert len(found["rows"]) == answer.num_rows
        for row, wanted in zip(found["rows"], answer.to_pylist(), strict=True):
            numbers = [v for v in wanted.values() if isinstance(v, float) and np.isfinite(v)]
            assert [v for v in row if isinstance(v, float)] == pytest.approx(numbers, rel=1e-12)


def test_first_filters_are_those_of_the_release_within_eight_bits(world: Path) -> None:
    with open_tables(open_release(world)) as con:
        table = read(con, "first_filters")
        exact = np.array(table.column("w").to_pylist())
        made = packed(table, scale_by="model_id")
    import base64

    steps = np.frombuffer(base64.b64decode(made["w"]), np.int8).reshape(-1, 9)
    scale = np.array(made["columns"]["scale"])[:, None]
    assert len(exact) and np.abs(steps / 127 * scale - exact).max() <= scale.max() / 253
    ids = made["columns"]["model_id"]
    assert {ids["texts"][i] for i in ids["index"]} == {
        r["model_id"]
        for r in open_release(world).table("models").to_pylist()
        if r["dataset"] != "imagenet"
    }


def test_a_page_names_no_address_that_a_browser_fetches(
    world_page: tuple[dict[str, Any], Scripts],
) -> None:
    _, parser = world_page
    for tag, attributes in parser.tags:
        assert "src" not in attributes and tag != "link", tag
        assert not [name for name in attributes if name.startswith("on")]


def test_names_of_a_cohort_are_never_markup(tmp_path: Path) -> None:
    data, parser = parsed(page.render(str(releases.write_odd(tmp_path))))
    assert len(parser.scripts) == 4
    assert not {"img", "link", "iframe"} & {tag for tag, _ in parser.tags}
    shown = {r["network"] for r in unfolded(data["tables"]["models"])}
    assert shown == set(releases.ODD_NAMES)
    assert "<b>set</b>" in parser.text
    links = [a["href"] for tag, a in parser.tags if tag == "a"]
    assert not [href for href in links if href and href.startswith("javascript:")]


@pytest.mark.parametrize("text", ["</script>", "<!--", "<SCRIPT>", "\u2028", "&amp;"])
def test_embedded_json_cannot_leave_its_script(text: str) -> None:
    made = page.embedded({"name": text})
    assert json.loads(made) == {"name": text}
    assert not re.search("[<>&\u2028\u2029]", made)


def test_numbers_that_are_none_become_null() -> None:
    assert rounded([float("nan"), float("inf"), 1 / 3]) == [None, None, 0.333333]


def words(tmp_path: Path, tables: dict[str, Any], **about: Any) -> tuple[dict[str, Any], str]:
    data, parser = parsed(page.render(str(releases.write(tmp_path / "r", tables, **about))))
    return data, " ".join(parser.text.split())


def test_an_empty_release_says_so(tmp_path: Path) -> None:
    data, text = words(tmp_path, {})
    assert data["figures"] == []
    assert "This release has no models." in text
    for said in ("has no layers", "has no PCA basis", "No histograms", "no sample of filters"):
        assert said in text


def test_one_model_without_a_pair_says_that_nothing_is_compared(tmp_path: Path) -> None:
    row = releases.model("cifar10", True, "only", sparsity=0.25)
    layers = releases.layer_rows(row, 2, np.random.default_rng(0))
    data, text = words(tmp_path, {"models": [row], "layers": layers})
    assert "no pairs of a robust and a standard model" in text
    ids = {f["id"] for f in data["figures"]}
    assert {"depth-sparsity-cifar10", "sparsity-cifar10"} <= ids
    assert "robust 25.00 %" in text


def test_layers_without_a_value_are_counted_and_not_drawn(tmp_path: Path) -> None:
    rows = [releases.model("cifar10", robust, "a") for robust in (True, False)]
    layers = [x for r in rows for x in releases.layer_rows(r, 3, np.random.default_rng(0))]
    for row in layers[:2]:
        row |= {"sparsity": float("nan"), "variance_entropy": None}
    tables = {"models": rows, "pairs": [releases.pair("cifar10", "a")], "layers": layers}
    data, text = words(tmp_path, tables)
    assert "2 layer(s) have no sparsity" in text and "2 layer(s) have no variance entropy" in text
    assert None in data["tables"]["layers"]["columns"]["sparsity"]


def test_seeded_weights_are_announced_before_any_figure(tmp_path: Path) -> None:
    _, text = words(tmp_path, {"models": [releases.model("x", True, "a")]}, weights="seeded:3")
    assert "Synthetic: the weights are seeded:3" in text


@pytest.mark.parametrize("n", [400, pytest.param(2000, marks=pytest.mark.slow)])
def test_many_models_are_named_and_details_are_of_some(tmp_path: Path, n: int) -> None:
    html = page.render(str(releases.write_many(tmp_path / "r", n)))
    data, parser = parsed(html)
    assert data["tables"]["models"]["n"] == n
    assert f"of 300 of {n:,} models" in " ".join(parser.text.split())
    ids = data["tables"]["layers"]["columns"]["model_id"]
    assert len(set(ids["index"])) == page.DETAILED_MODELS
    boxes = unfolded(data["tables"]["depth_boxes"])
    assert {r["n_points"] for r in boxes if r["depth_bin"] == 0} == {n // 2}
    assert len(html) < 10e6


def test_findings_of_ours_are_marked_and_the_paper_is_not_named_as_theirs(
    world_page: tuple[dict[str, Any], Scripts],
) -> None:
    text = " ".join(world_page[1].text.split())
    ours = [q for q in catalog.list_findings() if q.origin == "ours"]
    assert {q.name[:2] for q in ours} >= {"25", "26", "27", "28"}
    assert text.count("ours, not the paper's") == len(ours)
    for query in catalog.list_findings():
        label = "Claim" if query.origin == "ours" else "Paper"
        assert f"{label}{query.finding}" in text, query.name


def test_a_finding_of_ours_that_a_page_opens_with_is_marked(reference: Path) -> None:
    opening = re.search(r'<ul class="headlines".*?</ul>', page.render(str(reference)), re.S)
    assert opening is not None
    for item in opening[0].split("<li>")[1:]:
        query = catalog.load(item.split("#finding-")[1].split('"')[0])
        assert ("ours, not the paper's" in item) == (query.origin == "ours")


def test_a_page_opens_with_findings_that_it_can_tell(
    world_page: tuple[dict[str, Any], Scripts],
) -> None:
    _, parser = world_page
    links = [a["href"] for tag, a in parser.tags if tag == "a" and a.get("href")]
    leading = [link for link in links if link and link.startswith("#finding-")]
    ids = {a.get("id") for tag, a in parser.tags if tag == "article"}
    assert 0 < len(leading) <= 4 and {link[1:] for link in leading} <= ids
    verdicts = {a.get("id"): a.get("data-verdict") for tag, a in parser.tags if tag == "article"}
    assert all(verdicts[link[1:]] != "not applicable" for link in leading)


def test_the_reference_page_shows_what_was_published(reference: Path) -> None:
    html = page.render(str(reference))
    data, parser = parsed(html)
    text = " ".join(parser.text.split())
    assert "Published values, copied and not rebuilt" in text
    ids = {f["id"] for f in data["figures"]}
    assert {f"depth-{m}-{d}" for m in ("sparsity", "variance_entropy", "orthogonality")
            for d in ("cifar10", "cifar100", "imagenet")} <= ids  # fmt: skip
    assert {"bases", "explained", "cumulated", "divergence-by-depth", "accuracy-sparsity"} <= ids
    assert (data["tables"]["models"]["n"], data["tables"]["pca"]["n"]) == (114, 117 * 9)
    boxes = data["tables"]["depth_published"]["n"]
    assert boxes == 2 * (11 + 11 + 10) * 3
    assert "cifar10 -0.2743 (49 models; published -0.2743)" in text
    assert (
        "Published values: the mean variance entropy of robust models lies above that of standard "
        "ones in 10 of 11 depth bins" in text
    )
    assert data["tables"]["pca_published"]["n"] == 0, "published values laid over themselves"
    trained = [a for tag, a in parser.tags if tag == "input" and a.get("value") == "trained"]
    assert "disabled" in trained[0]
    assert len(html) < 5e6


def measured(path: Path, layers: Any, **more: Any) -> Path:
    path.write_text(json.dumps({"layers": layers, "summary": {"model_id": "mine"}, **more}))
    return path


def test_an_overlay_lies_on_every_depth_figure(reference: Path, tmp_path: Path) -> None:
    rows = releases.layer_rows(releases.model("x", True, "m"), 3, np.random.default_rng(0))
    failed = {"layer": "odd", "weights": "trained", "status": "skipped", "reason": "5x5"}
    mine = measured(tmp_path / "mine.json", [*rows, failed])
    data, parser = parsed(page.render(str(reference), overlay=mine))
    shown = unfolded(data["tables"]["overlay"])
    assert [r["sparsity"] for r in shown] == pytest.approx([r["sparsity"] for r in rows], rel=1e-5)
    depth = [f for f in data["figures"] if f["id"].startswith("depth-")]
    assert depth and all("overlay" in f["data"] for f in depth)
    assert "mine (your model)" in parser.text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is no JSON"),
        ("[]", "no list `layers`"),
        ('{"layers": {}}', "no list `layers`"),
        ('{"layers": []}', "no measured layer"),
        ('{"layers": [{"weights": "folded", "depth_bin": "x"}]}', "mine.json"),
    ],
)
def test_an_overlay_that_is_no_measurement_is_a_usage_error(
    tmp_path: Path, content: str, said: str
) -> None:
    path = tmp_path / "mine.json"
    path.write_text(content)
    with pytest.raises(UsageError, match=re.escape(said)):
        read_overlay(path)
    with pytest.raises(UsageError, match="cannot read"):
        read_overlay(tmp_path / "none.json")


@pytest.mark.parametrize("query", catalog.list_findings(), ids=lambda q: q.name)
def test_a_console_link_carries_the_query_and_all_that_it_needs(
    world: Path, query: catalog.Query
) -> None:
    link = urlsplit(console_link(query, Place("org/name", "v1.0.0")))
    assert (link.netloc, link.path) == ("huggingface.co", "/datasets/org/name")
    asked = parse_qs(link.query)
    assert asked["sql_console"] == ["true"]
    sql = asked["sql"][0]
    assert sql.endswith(query.sql.strip())
    here = sql.replace("https://huggingface.co/datasets/org/name/resolve/v1.0.0", str(world))
    with duckdb.connect() as con:  # nothing but the link's own statements
        rows = con.execute(here).fetchall()
    assert len(rows) == open_release(world).sql(query.sql).num_rows


def test_a_release_at_a_tag_links_to_the_console(world: Path) -> None:
    place = Place("org/name", "v1.0.0")
    _, parser = parsed(page.render(str(world), place=place))
    links = [a["href"] or "" for tag, a in parser.tags if tag == "a"]
    assert sum("sql_console=true" in href for href in links) == len(catalog.list_findings())
    assert page.tag_of("hf://datasets/org/name@v1.0.0") == place
    assert page.tag_of("hf://datasets/org/name") is None
    assert page.tag_of(str(world)) is None


def test_figures_embed_their_font_and_name_the_release(world: Path, tmp_path: Path) -> None:
    write_figures(str(world), tmp_path)
    drawn, manifest = drawings(str(world))
    assert len(drawn) == 7
    for drawing in drawn:
        pdf = (tmp_path / f"{drawing.name}.pdf").read_bytes()
        svg = (tmp_path / f"{drawing.name}.svg").read_text()
        assert b"/FontFile" in pdf and b"OpenSans" in pdf
        assert "@font-face" in svg and "data:font/ttf;base64," in svg
        (_, _, width, _) = map(float, re.search(rb"/MediaBox ?\[([^]]+)]", pdf)[1].split())  # type: ignore[index]
        assert 200 < width <= 250, f"{drawing.name} is no column wide"
    captions = (tmp_path / "captions.md").read_text()
    assert f"{manifest['name']} {manifest['version']}" in captions
    assert str(manifest["files"][schema.table_path("layers")]["content_hash"]) in captions


def test_a_caption_names_the_boxes_that_its_figure_has(world: Path, reference: Path) -> None:
    of_both, of_published = (
        [d.caption for d in drawings(str(root))[0] if d.name.startswith("depth-")]
        for root in (world, reference)
    )
    assert len(of_both) == len(of_published) == 3
    assert all("Narrow boxes: this release; wide, pale ones: published." in c for c in of_both)
    assert all("Boxes: published values, for" in c for c in of_published)


def test_figures_of_nothing_are_a_usage_error(tmp_path: Path) -> None:
    releases.write(tmp_path / "r", {})
    with pytest.raises(UsageError, match="nothing to draw"):
        write_figures(str(tmp_path / "r"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_commands_print_what_they_wrote(reference: Path, tmp_path: Path) -> None:
    out = tmp_path / "a" / "r.html"
    done = CliRunner().invoke(app, ["report", str(reference), "-o", str(out)])
    assert done.exit_code == 0 and done.stdout == f"{out}\n" and out.exists()
    done = CliRunner().invoke(app, ["figures", str(reference), "-o", str(tmp_path / "f")])
    assert done.exit_code == 0
    assert sorted(done.stdout.split()) == sorted(map(str, (tmp_path / "f").iterdir()))


def test_a_folder_is_no_page(reference: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a folder"):
        page.write_report(str(reference), tmp_path)
    with pytest.raises(UsageError, match=r"cannot write the page to study.pdf; expected .html"):
        page.write_report(str(reference), tmp_path / "study.pdf")
    assert not list(tmp_path.iterdir())


def test_a_release_that_is_not_there_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        page.render(str(tmp_path / "none"))


def test_columnar_tables_share_their_texts(reference: Path) -> None:
    table = open_release(reference).table("pairs")
    made = columnar(table)
    assert unfolded(made) == table.to_pylist()
    assert len(made["columns"]["dataset"]["texts"]) == 3
    assert read_manifest(reference)["totals"]["pairs"] == made["n"]
