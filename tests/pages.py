"""The project's pages as Markdown reads them: links, anchors, and blocks of code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parent.parent
PAGES = tuple(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/*.md", "builder/README.md", "builder/*/README.md")
    for path in sorted(ROOT.glob(pattern))
    if path.name != "dataset_card.md"  # a template; tests/test_card.py runs its examples
)

LANGUAGES = ("sh", "python", "sql", "csv", "text", "math", "{include} README.md", "{toctree}")


@dataclass(frozen=True)
class Block:
    """A fence: its language, its text, its line from 1.

    Attributes:
        why_not: why it is parsed and not run, from `<!-- parsed, not run: WHY -->` before it.
        output: what stands behind `<!-- output -->` after it: what it prints.
    """

    language: str
    text: str
    line: int
    why_not: str | None = None
    output: str | None = None


def _tokens(page: str) -> tuple[list[Token], list[str]]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return MarkdownIt("commonmark").enable("table").parse(text), text.splitlines()


def blocks(page: str) -> list[Block]:
    """Every fence of a page."""
    tokens, lines = _tokens(page)
    found = []
    for i, token in enumerate(tokens):
        if token.type != "fence":
            continue
        before = tokens[i - 1].content if i and tokens[i - 1].type == "html_block" else ""
        why = re.search(r"<!-- parsed, not run: (.+?) -->", before, re.DOTALL)
        output = None
        behind = tokens[i + 1] if i + 1 < len(tokens) else None
        if behind is not None and behind.content.strip() == "<!-- output -->" and behind.map:
            shown = lines[behind.map[1] :]
            end = shown.index("") if "" in shown else len(shown)
            output = "\n".join(line for line in shown[:end] if not line.startswith("```"))
        start = token.map[0] + 1 if token.map else 0
        found.append(
            Block(token.info.strip(), token.content, start, why[1] if why else None, output)
        )
    return found


def commands(text: str) -> list[str]:
    """The command lines of a `sh` block, each whole, without comments and prompts."""
    found, quoted = [], ""
    for line in text.replace("\\\n", " ").splitlines():
        quoted += line + "\n"
        if quoted.count('"') % 2 == 0 and quoted.count("'") % 2 == 0:
            found.append(quoted.strip())
            quoted = ""
    assert not quoted, f"a quote is open: {quoted}"
    return [line for line in found if line and not line.startswith("#")]


def links(page: str) -> Iterator[str]:
    """The target of every link and picture of a page."""
    for token in _tokens(page)[0]:
        for child in token.children or ():
            target = child.attrs.get("href", child.attrs.get("src"))
            if target is not None:
                yield str(target)
        if token.type in ("html_block", "inline"):
            yield from re.findall(r'<(?:img|a) [^>]*?(?:src|href)="([^"]+)"', token.content)


def code_spans(page: str) -> Iterator[str]:
    """Every piece of code inside a sentence or a table."""
    for token in _tokens(page)[0]:
        yield from (c.content for c in token.children or () if c.type == "code_inline")


def anchors(page: str) -> set[str]:
    """What a link to a heading of a page may end in, as GitHub and the site make it."""
    tokens, _ = _tokens(page)
    found: set[str] = set()
    for before, token in pairwise(tokens):
        if before.type == "heading_open":
            words = "".join(c.content for c in token.children or ())
            slug = re.sub(r"[^\w\- ]", "", words.strip().lower()).replace(" ", "-")
            assert slug not in found, f"{page}: two headings make #{slug}"
            found.add(slug)
    return found
