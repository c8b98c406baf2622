"""docs/reference.png, the picture of README: a figure on the page of the published study.

`make pictures` runs it; it needs playwright and Debian's chromium.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from builder.paper.reference import write_reference
from builder.report.page import write_report

PICTURE = Path(__file__).with_name("reference.png")
FIGURE = "#bases"
WIDTH = 1200
"""Pixels of a browser's window."""


def main() -> None:
    """Draw the study as published, and keep a picture of one figure."""
    chromium = shutil.which("chromium")
    if chromium is None:
        sys.exit("there is no chromium here: apt-get install chromium")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        page_file = Path(folder) / "reference.html"
        write_reference(Path(folder) / "reference")
        write_report(str(Path(folder) / "reference"), page_file)
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        window = {"width": WIDTH, "height": 1400}
        page = browser.new_page(viewport=window, device_scale_factor=1.5, offline=True)
        page.goto(page_file.as_uri())
        page.add_style_tag(content=".bar { position: static } .tools { display: none }")
        figure = page.locator(FIGURE)
        figure.scroll_into_view_if_needed()
        figure.locator("svg").wait_for()
        figure.screenshot(path=PICTURE)
        browser.close()
    print(f"{PICTURE}: {PICTURE.stat().st_size:,} bytes")  # noqa: T201


if __name__ == "__main__":
    main()
