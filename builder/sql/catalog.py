"""The queries that ship with the project: their names and headers.

A query file starts with comment lines `-- field: text`, continued by lines indented further. Its
name is its path below queries/ without `.sql`; the number in front may be left out.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import duckdb

from builder.errors import UsageError
from builder.files import project_file

FIELDS = ("title", "finding", "origin", "paper", "expect", "note", "param")
"""Fields of a header. `param: name, what it means and its default` may come more than once;
`origin: ours` marks a finding that is not the paper's."""


UNNAMED = "the query"
"""Name of a query that came as SQL."""


@dataclass(frozen=True)
class Query:
    """A query: one SELECT, its name, and what its header says."""

    name: str
    sql: str
    title: str = ""
    finding: str = ""
    origin: str = "paper"
    paper: str = ""
    expect: str = ""
    note: str = ""
    params: tuple[str, ...] = ()

    @property
    def subject(self) -> str:
        """The name without its number: `sparsity_overall` of 06_sparsity_overall."""
        return re.sub(r"^\d+_", "", self.name)

    @property
    def param_names(self) -> tuple[str, ...]:
        return tuple(re.split(r"\W", text, maxsplit=1)[0] for text in self.params)


def header(sql: str) -> list[tuple[str, str]]:
    """(field, text) of the comment lines that open a file."""
    found: list[tuple[str, str]] = []
    for line in sql.splitlines():
        if not line.startswith("--"):
            break
        field, colon, text = line[2:].strip().partition(": ")
        if colon and re.fullmatch("[a-z]+", field):
            found.append((field, text.strip()))
        elif found:
            found[-1] = (found[-1][0], f"{found[-1][1]} {line[2:].strip()}")
    return found


def parse(name: str, sql: str) -> Query:
    """A query from its text. Fields that are not ours are the author's own and left alone."""
    lines = header(sql)
    known = {field: text for field, text in lines if field in FIELDS and field != "param"}
    return Query(name, sql, **known, params=tuple(t for field, t in lines if field == "param"))


def _read(path: Path, name: str) -> Query:
    try:
        return parse(name, path.read_text(encoding="utf-8"))
    except OSError as e:
        raise UsageError(f"cannot read the query {path}: {e.strerror}.") from None
    except UnicodeDecodeError:
        raise UsageError(f"cannot read the query {path}: it is no UTF-8 text.") from None


def list_queries() -> list[Query]:
    """Every query of the project: the findings in order, then the audit queries."""
    folder = project_file("queries")
    files = [*sorted(folder.glob("[0-9]*.sql")), *sorted((folder / "audit").glob("*.sql"))]
    return [_read(f, f.relative_to(folder).with_suffix("").as_posix()) for f in files]


def definitions(sql: str) -> dict[str, str]:
    """The statements of views.sql that a query stands on, by the name that each makes, in order."""
    text = (project_file("queries") / "views.sql").read_text(encoding="utf-8")
    known: dict[str, str] = {}
    for statement in duckdb.extract_statements(text):
        body = re.sub(r"(?m)^\s*--.*\n?", "", statement.query).strip().rstrip(";")
        if made := re.search(r"create or replace (?:view|macro) (\w+)", body):
            known[made[1]] = body
    wanted: set[str] = set()
    waiting = [sql]
    while waiting:
        found = known.keys() & set(re.findall(r"\w+", waiting.pop())) - wanted
        wanted |= found
        waiting += [known[name] for name in found]
    return {name: body for name, body in known.items() if name in wanted}


def list_findings() -> list[Query]:
    """The queries that reproduce a finding, in order."""
    return [q for q in list_queries() if "/" not in q.name]


def list_claimed_audits() -> list[Query]:
    """The audit queries that answer a question of their own, beside checking the tables."""
    claims = project_file("queries") / "claims"
    return [q for q in list_queries() if "/" in q.name and (claims / f"{q.name}.sql").exists()]


_COMMENT = re.compile(r"\s+|--[^\n]*(?:\n|\Z)|/\*.*?\*/|\(", re.DOTALL)
_SQL = re.compile(
    r"(select|with|from|values|table|describe|desc|summarize|show|pivot|unpivot|explain|call|pragma"
    r"|insert|update|delete|create|alter|drop|copy|attach|set)\b\s*\S",
    re.IGNORECASE,
)


def is_sql(text: str) -> bool:
    """Whether a text is SQL rather than a name: what it starts with, behind comments."""
    start = 0
    while skipped := _COMMENT.match(text, start):
        start = skipped.end()
    return _SQL.match(text, start) is not None


def load(name: str) -> Query:
    """A query by name, by the path of a file, from standard input (`-`), or SQL itself.

    Raises:
        UsageError: nothing of that name; the message suggests the nearest ones.
    """
    if name == "-":
        return parse(UNNAMED, sys.stdin.read())
    if is_sql(name):
        return parse(UNNAMED, name)
    known = list_queries()
    for query in known:
        if name in (query.name, query.subject, query.name.rpartition("/")[2]):
            return query
    if name.endswith(".sql") or Path(name).is_file():
        return _read(Path(name), name)
    names = {text: q.name for q in known for text in (q.name, q.subject)}
    near = list(dict.fromkeys(names[n] for n in get_close_matches(name, names, 5, 0.5)))[:3]
    raise UsageError(
        f"no query '{name}'" + (f"; did you mean {', '.join(near)}?" if near else "."),
        hint="`builder query --list` names them; a file ends in .sql, - reads standard input, and "
        "SQL itself starts with select, with or from.",
    )
