"""The page in a browser: offline, without errors, by mouse and by keyboard, for every reader.

Needs playwright and Debian's chromium (`apt-get install chromium`); skips where one is absent.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import report_releases as releases
from synthetic_release import make_world, write_release

from builder.paper.reference import write_reference
from builder.release.reader import open_release
from builder.report.page import write_report
from builder.sql import catalog

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]

PAGES = ("world", "reference", "paper", "odd")
ROBUST = "cifar10-robust-Ash"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return releases.with_sample(write_release(tmp_path_factory.mktemp("world"), make_world()))


@pytest.fixture(scope="module")
def pages(world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pages of a small release with every table, the published study, and the paper's size."""
    folder = tmp_path_factory.mktemp("pages")
    write_reference(folder / "reference")
    releases.write_paper_size(folder / "paper")
    releases.write_odd(folder / "odd")
    made = {}
    for name in PAGES:
        release = world if name == "world" else folder / name
        made[name] = folder / f"{name}.html"
        write_report(str(release), made[name])
    return made


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


class Visit:
    """An open page, and what it did that a page must not."""

    def __init__(self, browser: Any, path: Path, **context: Any) -> None:
        self.context = browser.new_context(offline=True, **context)
        self.page = self.context.new_page()
        self.page.set_default_timeout(10_000)
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else None)
        self.page.on("pageerror", lambda e: self.errors.append(str(e)))
        self.page.on("dialog", lambda d: (self.errors.append(d.message), d.dismiss()))
        self.page.on("request", lambda r: self.requests.append(r.url))
        started = time.perf_counter()
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("html[data-ready=yes]", state="attached")
        self.seconds = time.perf_counter() - started

    def draw_all(self) -> None:
        for figure in self.page.query_selector_all("figure"):
            # Not scroll_into_view_if_needed: it waits until figures that are drawn stop moving it.
            figure.evaluate("f => f.scrollIntoView()")
            self.page.wait_for_function("f => f.dataset.drawn", arg=figure)

    def values(self, figure: str) -> list[dict[str, str]]:
        """The rows of the table behind a figure, as shown."""
        # By keyboard: figures that are drawn meanwhile move what a pointer aims at.
        self.page.locator(f"#{figure} details.behind summary").press("Enter")
        self.page.wait_for_selector(f"#{figure} .rows td")
        return self.page.evaluate(
            """id => {
              const names = [...document.querySelectorAll(`#${id} .rows th`)].map(t => t.innerText);
              return [...document.querySelectorAll(`#${id} .rows tbody tr`)].map(r =>
                Object.fromEntries([...r.cells].map((c, i) => [names[i], c.innerText])));
            }""",
            figure,
        )


@pytest.fixture
def visit(browser: Any, pages: dict[str, Path]) -> Iterator[Any]:
    opened: list[Visit] = []

    def go(name: str, **context: Any) -> Visit:
        opened.append(Visit(browser, pages[name], **context))
        return opened[-1]

    yield go
    for one in opened:
        one.context.close()


@pytest.mark.parametrize("name", PAGES)
def test_a_page_opens_offline_without_an_error_or_a_request(visit: Any, name: str) -> None:
    opened = visit(name)
    opened.draw_all()
    assert opened.errors == []
    assert not [u for u in opened.requests if not u.startswith(("file:", "blob:", "data:"))]
    drawn = opened.page.locator("figure .chart svg").count()
    empty = opened.page.locator("figure > .missing:not([hidden])").count()
    assert drawn + empty >= opened.page.locator("figure").count() > 0
    if name in ("paper", "reference"):
        assert opened.seconds < 6, "usable within 2 s where the machine is not shared"


def test_a_page_of_the_papers_size_stays_below_10_megabytes(pages: dict[str, Path]) -> None:
    assert pages["paper"].stat().st_size < 10e6


def test_numbers_in_the_browser_are_those_of_the_sql(visit: Any, world: Path) -> None:
    opened = visit("world")
    shown = opened.values("depth-sparsity-cifar10")
    answer = open_release(world).sql(catalog.load("sparsity_by_depth").sql).to_pylist()
    wanted = {(r["depth_bin"], r["kind"]): r for r in answer if r["dataset"] == "cifar10"}
    assert len(shown) == len(wanted)
    for row in shown:
        of = wanted[int(row["depth_bin"]), row["kind"]]
        for name in ("median", "q1", "q3", "mean"):
            assert float(row[name]) == pytest.approx(of[name], rel=1e-5, abs=1e-9)
    marks = opened.page.evaluate(
        """() => [...document.querySelectorAll('#depth-sparsity-cifar10 svg [aria-label]')]
          .map(e => e.getAttribute('aria-label')).filter(t => t.includes('median'))"""
    )
    assert marks


def test_trained_weights_bring_other_numbers(visit: Any) -> None:
    opened = visit("world")
    folded = opened.values("explained")
    opened.page.check("input[name=weights][value=trained]")
    opened.page.wait_for_timeout(500)
    trained = opened.page.inner_text("#explained .rows")
    assert "folded" not in trained and "trained" in trained
    assert folded[0]["ratio"] not in trained
    assert opened.page.is_visible("#explained [data-view=trained]")
    assert not opened.page.is_visible("#explained [data-view=folded]")


def test_a_figure_shows_what_was_chosen_while_it_was_drawn(visit: Any) -> None:
    figure = "#depth-variance_entropy-cifar10"
    hold = """() => { const embed = vegaEmbed; let free;
      const freed = new Promise(go => { free = go; });
      window.vegaEmbed = (...all) => { window.held = true;
        return freed.then(() => embed(...all)); };
      window.free = free; }"""
    marks = "all => all.map(m => m.getAttribute('aria-label'))"
    seen = []
    for held in (True, False):
        page = visit("world").page
        if held:
            page.evaluate(hold)
        else:
            page.check("input[name=weights][value=trained]")
        page.eval_on_selector(figure, "f => f.scrollIntoView()")
        if held:
            page.wait_for_function("window.held")
            page.check("input[name=weights][value=trained]")
            page.evaluate("window.free()")
        page.wait_for_selector(f"{figure}[data-drawn] svg")
        seen.append(page.eval_on_selector_all(f"{figure} svg [aria-label]", marks))
    assert seen[0] == seen[1] != []


def test_a_model_is_followed_through_all_figures(visit: Any) -> None:
    opened = visit("world")
    opened.draw_all()
    opened.page.fill("#follow", ROBUST)
    opened.page.keyboard.press("Enter")
    assert opened.page.inner_text("#said") == f"Following {ROBUST}."
    opened.page.wait_for_function(
        "document.querySelector('#bases svg').textContent.includes('Ash')"
    )
    assert opened.page.input_value("#pick-first") == ROBUST
    assert opened.page.input_value("#pick-model") == ROBUST
    line = "#depth-sparsity-cifar10 svg path[stroke='#CC79A7']"
    assert opened.page.locator(line).count() > 0
    opened.page.click("#unfollow")
    opened.page.wait_for_timeout(300)
    assert opened.page.locator(line).count() == 0
    assert opened.errors == []


def test_a_click_on_a_point_follows_its_model(visit: Any) -> None:
    opened = visit("world")
    opened.page.locator("#accuracy-sparsity").scroll_into_view_if_needed()
    opened.page.wait_for_selector("#accuracy-sparsity svg .mark-symbol path")
    opened.page.locator("#accuracy-sparsity svg .role-mark.mark-symbol path").first.click(
        force=True
    )
    opened.page.wait_for_function("document.querySelector('#follow').value !== ''")
    assert opened.page.input_value("#follow").startswith("cifar")


def test_everything_works_by_keyboard_alone(visit: Any) -> None:
    opened = visit("world")
    seen: list[str] = []
    for _ in range(24):
        opened.page.keyboard.press("Tab")
        seen.append(
            opened.page.evaluate(
                "document.activeElement.id || document.activeElement.name "
                "|| document.activeElement.innerText"
            )
        )
    assert seen[0] == "Skip to the figures"
    for name in ("weights", "follow", "unfollow", "theme", "Depth"):
        assert name in seen
    opened.page.focus("#theme")
    opened.page.keyboard.press("Enter")
    assert opened.page.evaluate("document.documentElement.className") == "dark"
    opened.page.focus("#explained details.behind summary")
    opened.page.keyboard.press("Enter")
    opened.page.wait_for_selector("#explained .rows td")
    opened.page.focus("input[name=weights]")
    opened.page.keyboard.press("ArrowRight")
    assert opened.page.evaluate("document.documentElement.dataset.weights") == "trained"


def test_the_table_of_models_sorts_filters_searches_and_chooses_columns(visit: Any) -> None:
    page = visit("reference").page
    first = "#model-table tbody tr:first-child td:first-child"
    heading = page.locator("#model-table thead th", has_text="AutoAttack").first
    heading.click()
    heading.click()
    page.wait_for_function(
        f"document.querySelector('{first}').innerText.startsWith('cifar10-robust')"
    )
    column = page.evaluate(
        """() => { const i = [...document.querySelectorAll('#model-table thead tr:first-child th')]
             .findIndex(t => t.innerText.includes('AutoAttack'));
           return [...document.querySelectorAll('#model-table tbody tr')]
             .map(r => parseFloat(r.cells[i].innerText)); }"""
    )
    assert len(column) == 25 and column == sorted(column, reverse=True)
    page.fill("#models input[type=search]", "robust-Carmon2019")
    page.wait_for_function("document.querySelectorAll('#model-table tbody tr').length < 25")
    assert "Carmon2019" in page.inner_text(first)
    page.fill("#models input[type=search]", "")
    page.select_option("#model-filters select >> nth=0", "imagenet")
    page.wait_for_function("document.querySelectorAll('#model-table tbody tr').length === 8")
    before = page.locator("#model-table thead th").count()
    page.click("#models button:has-text('Columns')")
    page.click(".dt-button-collection >> text=network")
    page.wait_for_function(
        f"document.querySelectorAll('#model-table thead th').length === {before + 1}"
    )


def test_the_table_of_models_fits_a_screen_and_cuts_no_name(visit: Any) -> None:
    page = visit("reference", viewport={"width": 1280, "height": 900}).page
    page.wait_for_selector("#model-table[data-ready=yes]", state="attached")
    cut = "all => all.filter(t => t.scrollWidth > t.clientWidth).map(t => t.innerText)"
    assert page.eval_on_selector_all(":has(> #model-table)", cut) == []
    for screen in (1280, 360):
        page.set_viewport_size({"width": screen, "height": 900})
        assert page.eval_on_selector_all("#model-table td:first-child", cut) == []


@pytest.mark.parametrize("width", [1280, 360])
def test_the_choice_of_columns_is_not_cut_off_below_a_short_table(visit: Any, width: int) -> None:
    page = visit("world", viewport={"width": width, "height": 900}).page
    page.wait_for_selector("#model-table[data-ready=yes]", state="attached")
    page.locator("#models button:has-text('Columns')").press("Enter")
    menu = page.wait_for_selector(".dt-button-collection")
    menu.evaluate("m => m.scrollIntoView({ block: 'center' })")
    at = """(m, [x, y]) => { const box = m.getBoundingClientRect();
      return m.contains(document.elementFromPoint(box.left + x * (box.width - 1),
        box.top + y * (box.height - 1))); }"""
    for corner in ((0.05, 0.02), (0.95, 0.02), (0.05, 0.98), (0.95, 0.98)):
        assert menu.evaluate(at, corner), corner


@pytest.mark.parametrize("form", ["csv", "svg", "png"])
@pytest.mark.parametrize("figure", ["explained", "first-chosen", "histograms-cifar10"])
def test_a_figure_is_saved_as(visit: Any, tmp_path: Path, figure: str, form: str) -> None:
    page = visit("world").page
    with page.expect_download() as download:
        page.click(f"#{figure} [data-save={form}]")
    assert download.value.suggested_filename == f"{figure}.{form}"
    download.value.save_as(tmp_path / "saved")
    data = (tmp_path / "saved").read_bytes()
    start = {"svg": b"<svg", "png": b"\x89PNG"}.get(form)
    if start:
        assert data.startswith(start) and len(data) > 1000
    else:
        assert len(data.decode().splitlines()) > 9 and b"," in data.splitlines()[0]


def test_the_answer_of_a_finding_is_shown_and_saved(
    visit: Any, world: Path, tmp_path: Path
) -> None:
    page = visit("world").page
    article = page.locator("[data-query='06_sparsity_overall']")
    article.locator("details.answer summary").click()
    answer = open_release(world).sql(catalog.load("sparsity_overall").sql)
    assert article.locator("tbody tr").count() == answer.num_rows
    with page.expect_download() as download:
        article.locator("[data-answer-csv]").click()
    download.value.save_as(tmp_path / "saved")
    head, *lines = (tmp_path / "saved").read_text().splitlines()
    assert head == ",".join(answer.column_names) and len(lines) == answer.num_rows
    article.locator("details.sql summary").click()
    article.locator("[data-copy]").click()
    page.wait_for_function("document.querySelector('#said').textContent.startsWith('Copied')")


def test_odd_names_are_shown_as_they_are(visit: Any) -> None:
    opened = visit("odd")
    opened.draw_all()
    opened.page.fill("#follow", "<b>set</b>-robust-<script>alert(1)</script>")
    opened.page.keyboard.press("Enter")
    text = opened.page.inner_text("#model-table")
    for name in releases.ODD_NAMES:
        assert f"<b>set</b>-robust-{name}" in text
    assert opened.page.locator("#model-table img, #model-table b, main img").count() == 0
    assert opened.page.locator("#model-table a[href^='javascript']").count() == 0
    opened.page.hover("#accuracy-sparsity svg .role-mark.mark-symbol path >> nth=0", force=True)
    opened.page.wait_for_timeout(400)
    assert opened.page.locator("#vg-tooltip-element img, #vg-tooltip-element script").count() == 0
    assert opened.errors == []


@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_a_phone(visit: Any, name: str) -> None:
    opened = visit(name, viewport={"width": 360, "height": 740})
    opened.draw_all()
    wide, screen = opened.page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert (wide, screen) == (360, 360)
    hint, room = opened.page.eval_on_selector(
        ".follow input",
        """i => { const pen = document.createElement("canvas").getContext("2d");
          const style = getComputedStyle(i);
          pen.font = style.font;
          const padding = parseFloat(style.paddingLeft) + parseFloat(style.paddingRight);
          return [pen.measureText(i.placeholder).width, i.clientWidth - padding]; }""",
    )
    assert hint <= room, "the hint of the search is cut off"
    assert opened.errors == []


def test_the_page_is_dark_where_the_reader_prefers_it(visit: Any) -> None:
    opened = visit("world", color_scheme="dark")
    opened.page.locator("#depth-sparsity-cifar10").scroll_into_view_if_needed()
    opened.page.wait_for_selector("#depth-sparsity-cifar10 svg")
    ground = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == "rgb(22, 23, 26)"
    table = "getComputedStyle(document.querySelector('#models .dt-container')).backgroundColor"
    assert opened.page.evaluate(table) == ground
    assert "#56B4E9" in opened.page.inner_html("#depth-sparsity-cifar10 .chart")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["world", "reference"])
def test_no_serious_violation_of_accessibility(visit: Any, name: str, scheme: str) -> None:
    axe = pytest.importorskip("axe_core_python.sync_playwright", reason="no axe-core-python")
    opened = visit(name, color_scheme=scheme)
    opened.draw_all()
    for name in ("#explained .behind", ".finding .sql", ".finding .answer"):
        opened.page.locator(f"{name} summary").first.click()
    opened.page.wait_for_timeout(500)
    found = axe.Axe().run(opened.page, options={"resultTypes": ["violations"]})["violations"]
    serious = [
        {"id": v["id"], "help": v["help"], "nodes": [n["html"][:160] for n in v["nodes"]][:4]}
        for v in found
        if v["impact"] in ("serious", "critical")
    ]
    assert not serious, json.dumps(serious, indent=1)
