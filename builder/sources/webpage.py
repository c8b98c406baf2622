"""Web pages that a server sends where a checkpoint was asked for."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from urllib.parse import urlencode, urljoin, urlsplit

from builder.errors import NetworkError


class _ConfirmForm(HTMLParser):
    """The form of Drive's page 'too large to scan for viruses': where to go to get the file."""

    def __init__(self) -> None:
        super().__init__()
        self.action: str | None = None
        self.fields: dict[str, str] = {}
        self._inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {k: v or "" for k, v in attrs}
        if tag == "form" and values.get("id") == "download-form":
            self.action, self._inside = values.get("action", ""), True
        elif tag == "input" and self._inside and values.get("type") == "hidden":
            self.fields[values.get("name", "")] = values.get("value", "")

    def handle_endtag(self, tag: str) -> None:
        if tag == "form":
            self._inside = False


def confirmation_link(page: str, base: str) -> str | None:
    """Where the confirmation form of a page at `base` leads; None where it has none."""
    form = _ConfirmForm()
    form.feed(page)
    if form.action is None:
        return None
    target = urljoin(base, form.action)
    if urlsplit(target).scheme != urlsplit(base).scheme:
        return None
    return f"{target}{'&' if urlsplit(target).query else '?'}{urlencode(form.fields)}"


def explain(page: str, url: str) -> NetworkError:
    """The error for a page that came instead of a checkpoint, in words a user can act on."""
    title = re.search(r"<title>(.*?)</title>", page, re.S | re.I)
    named = f" titled {' '.join(title[1].split())[:80]!r}" if title else ""
    quota = re.search(r"quota|too many users", page, re.I)
    why = " The server's download quota for this file is used up." if quota else ""
    if re.search(r"/(?:blob|src|tree)/", urlsplit(url).path):
        return NetworkError(
            f"{url} is the page that shows the file{named}, not the file.",
            hint="its bytes are at the address of its download button: /resolve/ in place of "
            "/blob/ on the Hub (or hf://ORG/REPO/PATH), /raw/ on GitHub and GitLab.",
        )
    return NetworkError(
        f"{url} answers with a web page{named} instead of a checkpoint.{why}",
        hint="try again in 24 hours, or fetch the file with a browser.",
    )
